//! The `CNI_*` environment: which variables each command needs, and what they may hold.
//!
//! `CNI_PATH` is not asked for here: only a configuration that delegates needs it.

use std::collections::BTreeMap;

use cni_api::v1::{Attachment, Code};

use crate::failure::Failure;

/// Interface names are at most `IFNAMSIZ - 1` bytes long.
const IFNAME_BYTES_MAX: usize = 15;

/// What the runtime asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|c| c.text() == text)
    }

    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }
}

/// The trace that the runtime has this call in (W3C Trace Context and Baggage, in the variables that
/// OpenTelemetry's "environment variables as context propagation carriers" names).
const TRACE: [&str; 3] = ["TRACEPARENT", "TRACESTATE", "BAGGAGE"];

/// The variables as they were given, unchecked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Variables that are not UTF-8 read as absent.
    pub(crate) fn of_process() -> Self {
        let utf8 = |(k, v): (std::ffi::OsString, std::ffi::OsString)| {
            Some((k.into_string().ok()?, v.into_string().ok()?))
        };
        let is_ours = |name: &str| name.starts_with("CNI_") || TRACE.contains(&name);
        Self(std::env::vars_os().filter_map(utf8).filter(|(k, _)| is_ours(k)).collect())
    }

    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    fn value(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(crate) fn has_command(&self) -> bool {
        !self.value("CNI_COMMAND").is_empty()
    }

    /// The command, once every variable it needs is there and well formed.
    pub(crate) fn command(&self) -> Result<Command, Failure> {
        let text = self.value("CNI_COMMAND");
        let command = Command::parse(text).ok_or_else(|| {
            Failure::new(Code::InvalidEnvironment, format!("unknown CNI_COMMAND: {text}"))
                .details("use ADD, DEL, CHECK, GC, STATUS or VERSION")
        })?;
        let missing: Vec<&str> =
            command.required().iter().copied().filter(|n| self.value(n).is_empty()).collect();
        if !missing.is_empty() {
            let msg = format!("required env variables [{}] missing", missing.join(","));
            return Err(Failure::new(Code::InvalidEnvironment, msg));
        }
        if !command.required().is_empty() {
            check_container_id(self.value("CNI_CONTAINERID"))?;
            check_ifname(self.value("CNI_IFNAME"))?;
        }
        Ok(command)
    }

    pub(crate) fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.value("CNI_CONTAINERID").to_owned(),
            ifname: self.value("CNI_IFNAME").to_owned(),
        }
    }

    pub(crate) fn netns(&self) -> &str {
        self.value("CNI_NETNS")
    }

    /// Directories of plugins, separated by colons.
    pub(crate) fn path(&self) -> &str {
        self.value("CNI_PATH")
    }

    /// The headers that carry the runtime's trace on, with their values.
    pub(crate) fn trace(&self) -> impl Iterator<Item = (String, &str)> {
        let given = TRACE.into_iter().map(|name| (name.to_ascii_lowercase(), self.value(name)));
        given.filter(|(_, value)| !value.is_empty())
    }

    /// All of them, for a plugin that is delegated to.
    pub(crate) const fn variables(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Whether the caller insists on a namespace that is the plugin's own.
    pub(crate) fn overrides_netns(&self) -> bool {
        let text = self.value("CNI_NETNS_OVERRIDE");
        text == "1" || text.eq_ignore_ascii_case("true")
    }

    /// One key of `CNI_ARGS` (`K=V;K=V`), if it has a value. Keys nobody asks for are ignored,
    /// whatever `IgnoreUnknown` says.
    pub(crate) fn arg(&self, key: &str) -> Option<&str> {
        self.value("CNI_ARGS")
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(k, v)| *k == key && !v.is_empty())
            .map(|(_, v)| v)
    }
}

/// Whether `text` is a container id or network name of the specification:
/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn check_container_id(id: &str) -> Result<(), Failure> {
    if is_name(id) {
        return Ok(());
    }
    Err(Failure::new(
        Code::InvalidEnvironment,
        format!("invalid characters in CNI_CONTAINERID: {id}"),
    )
    .details(
        "letters, digits, \"_\", \".\" and \"-\" are accepted, beginning with a letter or digit",
    ))
}

fn check_ifname(name: &str) -> Result<(), Failure> {
    let bad = |why: String| {
        Err(Failure::new(Code::InvalidEnvironment, format!("invalid CNI_IFNAME {name:?}: {why}")))
    };
    if name.len() > IFNAME_BYTES_MAX {
        return bad(format!("longer than {IFNAME_BYTES_MAX} bytes"));
    }
    if name == "." || name == ".." {
        return bad("is a directory name".to_owned());
    }
    if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        return bad("contains \"/\", \":\" or white space".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_of_fifteen_bytes_is_accepted_and_sixteen_are_not() {
        assert_eq!(check_ifname("abcdefghijklmno"), Ok(()));
        let failure = check_ifname("abcdefghijklmnop").unwrap_err();
        assert_eq!(failure.code, 4);
        assert_eq!(failure.msg, "invalid CNI_IFNAME \"abcdefghijklmnop\": longer than 15 bytes");
    }

    #[test]
    fn interface_names_the_kernel_refuses_are_refused() {
        for name in [".", "..", "a/b", "a:b", "a b", "a\tb"] {
            assert_eq!(check_ifname(name).unwrap_err().code, 4, "{name}");
        }
    }

    #[test]
    fn container_ids_follow_the_specification() {
        for id in ["a", "default-t1", "0a_b.c"] {
            assert_eq!(check_container_id(id), Ok(()), "{id}");
        }
        for id in ["-a", ".a", "a/b", "ä", "a b"] {
            assert_eq!(check_container_id(id).unwrap_err().code, 4, "{id}");
        }
    }

    #[test]
    fn unknown_args_are_ignored_with_and_without_ignore_unknown() {
        let env = Environment::of(&[("CNI_ARGS", "K8S_POD_NAME=p1;NOISE;IP=10.1.1.5;MAC=")]);
        assert_eq!(env.arg("IP"), Some("10.1.1.5"));
        assert_eq!(env.arg("MAC"), None);
        assert_eq!(env.arg("GATEWAY"), None);
    }
}
