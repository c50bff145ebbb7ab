//! Where netmaster is: `http://HOST:PORT` or `unix:PATH`; several, separated by commas, where there are
//! several.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// A checked `--netmaster`, its addresses kept as the user wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target(Vec<String>);

/// Why a text is no address of netmaster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    /// TLS is not built into this netctl.
    #[error(
        "this netctl is built without TLS; use http://HOST:PORT on a trusted network or unix:PATH"
    )]
    Tls,
    /// No known scheme.
    #[error("want http://HOST:PORT or unix:PATH")]
    Scheme,
    /// Nothing behind the scheme, or no URL.
    #[error("nothing to connect to; want http://HOST:PORT or unix:PATH")]
    Address,
    /// A path behind the port: control.v1 has none.
    #[error("a path (\"{0}\") is not used; want http://HOST:PORT")]
    Path(String),
}

impl Target {
    /// Each address by itself.
    pub(crate) fn each(&self) -> impl Iterator<Item = Self> {
        self.0.iter().map(|address| Self(vec![address.clone()]))
    }

    /// The socket's path, if the first address is one's.
    pub(crate) fn socket(&self) -> Option<&str> {
        self.0.first()?.strip_prefix("unix:")
    }

    /// Host and port of the first address.
    pub(crate) fn authority(&self) -> Option<String> {
        let uri: Uri = self.0.first()?.parse().ok()?;
        Some(format!("{}:{}", uri.host()?, uri.port_u16().unwrap_or(80)))
    }

    /// Connects to the first that answers, within `timeout`, which is also the time each call may
    /// take. Any will do: those that do not lead pass on to the one that does.
    pub(crate) async fn connect(
        &self,
        timeout: Duration,
    ) -> Result<Channel, tonic::transport::Error> {
        let share = timeout / u32::try_from(self.0.len()).unwrap_or(u32::MAX).max(1);
        let connect = async |address: &String| {
            let endpoint = Endpoint::from_shared(address.clone())?;
            endpoint.connect_timeout(share).timeout(timeout).connect().await
        };
        let mut last = connect(&self.0[0]).await;
        for address in &self.0[1..] {
            if last.is_ok() {
                break;
            }
            last = connect(address).await;
        }
        last
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        text.split(',').map(address).collect::<Result<_, _>>().map(Self)
    }
}

fn address(text: &str) -> Result<String, TargetError> {
    let found = |accepted| if accepted { Ok(text.to_owned()) } else { Err(TargetError::Address) };
    if let Some(path) = text.strip_prefix("unix:") {
        return found(!path.trim_start_matches('/').is_empty());
    }
    if text.starts_with("https://") {
        return Err(TargetError::Tls);
    }
    if !text.starts_with("http://") {
        return Err(TargetError::Scheme);
    }
    match text.parse::<Uri>() {
        Ok(uri) if !matches!(uri.path(), "" | "/") => Err(TargetError::Path(uri.path().to_owned())),
        Ok(uri) => found(uri.host().is_some_and(|host| !host.is_empty())),
        Err(_) => Err(TargetError::Address),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// A time that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("want a number and a unit, for example 10s, 500ms or 2m; at least 1ms")]
pub(crate) struct BadDuration;

/// Parses `10s`, `500ms`, `2m`. A bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().or(Err(BadDuration))?;
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => return Err(BadDuration),
    };
    let duration = Duration::from_millis(u64::from(number) * unit_ms);
    if duration.is_zero() { Err(BadDuration) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BadDuration, Target, TargetError, parse_duration};

    #[test]
    fn http_and_unix_addresses_are_taken_as_written() {
        for text in [
            "http://127.0.0.1:9999",
            "http://netmaster:9999/",
            "unix:/run/weir/n.sock",
            "http://m1:9999,http://m2:9999,unix:/run/weir/n.sock",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_wrong_address_is_refused_with_its_reason() {
        let refused = |text: &str| text.parse::<Target>().unwrap_err();
        assert_eq!(refused("https://netmaster:9999"), TargetError::Tls);
        assert_eq!(refused("netmaster:9999"), TargetError::Scheme);
        assert_eq!(refused(""), TargetError::Scheme);
        assert_eq!(refused("unix:"), TargetError::Address);
        assert_eq!(refused("http://"), TargetError::Address);
        assert_eq!(refused("http://a b"), TargetError::Address);
        assert_eq!(refused("http://n:9999,m2:9999"), TargetError::Scheme);
        assert_eq!(refused("http://n:9999,"), TargetError::Scheme);
        assert_eq!(refused("http://n:9999/api"), TargetError::Path("/api".into()));
    }

    #[tokio::test]
    async fn the_first_that_answers_is_taken() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let target: Target = format!("http://127.0.0.1:1,http://{here}").parse().unwrap();
        let (connected, accepted) =
            tokio::join!(target.connect(Duration::from_secs(5)), listener.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        let nobody: Target = "http://127.0.0.1:1,http://127.0.0.1:1".parse().unwrap();
        assert!(nobody.connect(Duration::from_secs(5)).await.is_err());
    }

    #[test]
    fn durations_have_a_unit_and_are_never_zero() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        for bad in ["", "s", "1h", "-1s", "0s", "1.5s", "99999999999s"] {
            assert_eq!(parse_duration(bad), Err(BadDuration), "{bad}");
        }
    }
}
