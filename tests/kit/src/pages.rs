//! The pages daemons serve over HTTP: asked for as any client would, and metrics read strictly.
//!
//! The format is that of the `OpenMetrics` specification 1.0: families announced before their
//! series, each once; known types; histograms whose buckets never fall and end at `+Inf`; no series
//! twice; `# EOF` at the end and nothing behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use netdev::Namespace;

const BOUND: Duration = Duration::from_secs(10);

/// An answer of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The status code.
    pub status: u16,
    /// The content type, or nothing.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// Gets `path` from a server of the namespace, over HTTP/1.1.
///
/// # Errors
/// When nothing answers, or not with HTTP.
pub fn page(namespace: &Namespace, server: SocketAddr, path: &str) -> Result<Page> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    let answer = namespace.run(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&server, BOUND)?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let headers: BTreeMap<String, &str> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    ensure!(!headers.contains_key("transfer-encoding"), "a body in chunks: {head}");
    Ok(Page {
        status: status.context("no status")?.parse()?,
        content_type: headers.get("content-type").map_or_else(String::new, |t| (*t).to_owned()),
        body: body.to_owned(),
    })
}

/// One scrape: values by series, written `name{label="value",...}` with the labels as sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// The value of a series, without its fraction.
    ///
    /// # Errors
    /// When there is no such series.
    pub fn value(&self, series: &str) -> Result<i64> {
        let found = self.0.get(series).map(|value| *value as i64);
        found.with_context(|| format!("no {series} among {:?}", self.names()))
    }

    /// The sum of every series of this name whose labels contain all of `labels`, without its
    /// fraction.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> i64 {
        let of_name = |series: &str| series.split('{').next() == Some(name);
        let matching = self.0.iter().filter(|(series, _)| {
            of_name(series) && labels.iter().all(|label| series.contains(label))
        });
        matching.map(|(_, value)| value).sum::<f64>() as i64
    }

    /// The names of all series.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.keys().filter_map(|series| series.split('{').next()).collect()
    }
}

/// Scrapes `/metrics` of a server.
///
/// # Errors
/// When it does not answer, or with anything that breaks a rule of the format.
pub fn scrape(namespace: &Namespace, server: SocketAddr) -> Result<Metrics> {
    let Page { status, content_type, body } = page(namespace, server, "/metrics")?;
    ensure!(status == 200, "status {status}: {body}");
    let wanted = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ensure!(content_type == wanted, "content type {content_type}");
    parse(&body).with_context(|| format!("in\n{body}"))
}

/// Reads a scrape.
///
/// # Errors
/// The first rule that is broken.
pub fn parse(text: &str) -> Result<Metrics> {
    let body = text.strip_suffix("# EOF\n").context("the end is not \"# EOF\"")?;
    let mut reader = Reader::default();
    for line in body.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => reader.announce(comment),
            None => reader.series(line),
        }
        .with_context(|| format!("line {line:?}"))?;
    }
    reader.end_family()?;
    Ok(Metrics(reader.values))
}

#[derive(Default)]
struct Reader {
    values: BTreeMap<String, f64>,
    seen: BTreeSet<String>,
    family: String,
    kind: String,
    /// Buckets of the family's histograms: labels but `le` to bounds and counts, as they came.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Reader {
    fn announce(&mut self, comment: &str) -> Result<()> {
        let mut words = comment.splitn(3, ' ');
        let (what, name) = (words.next().context("empty")?, words.next().context("no name")?);
        let rest = words.next().context("nothing behind the name")?;
        ensure!(is_name(name), "{name} is no name");
        if name != self.family {
            self.end_family()?;
            ensure!(self.seen.insert(name.to_owned()), "{name} comes twice");
            name.clone_into(&mut self.family);
            self.kind.clear();
        }
        match what {
            "HELP" => ensure!(!rest.trim().is_empty() && self.kind.is_empty(), "no help, or late"),
            "TYPE" => {
                let kinds = ["counter", "gauge", "histogram", "info"];
                ensure!(kinds.contains(&rest) && self.kind.is_empty(), "type {rest}");
                rest.clone_into(&mut self.kind);
            }
            "UNIT" => {}
            _ => bail!("an unknown comment"),
        }
        Ok(())
    }

    fn series(&mut self, line: &str) -> Result<()> {
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse()?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}').context("no }")?),
            None => (series, ""),
        };
        let suffix = name.strip_prefix(self.family.as_str()).context("of another family")?;
        let suffixes: &[&str] = match self.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_count", "_sum"],
            "info" => &["_info"],
            _ => bail!("a series before its type"),
        };
        ensure!(suffixes.contains(&suffix), "suffix {suffix:?} of a {}", self.kind);
        ensure!(self.kind == "gauge" || value >= 0.0, "a negative count");
        let labels = read_labels(labels)?;
        if suffix == "_bucket" {
            self.bucket(&labels, value)?;
        }
        let twice = self.values.insert(series.to_owned(), value);
        ensure!(twice.is_none(), "the series comes twice");
        Ok(())
    }

    fn bucket(&mut self, labels: &[(String, String)], count: f64) -> Result<()> {
        let bound = labels.iter().find(|(name, _)| name == "le").context("no le")?;
        let bound = if bound.1 == "+Inf" { f64::INFINITY } else { bound.1.parse()? };
        let others: Vec<String> = labels
            .iter()
            .filter(|(name, _)| name != "le")
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        self.buckets.entry(others.join(",")).or_default().push((bound, count));
        Ok(())
    }

    fn end_family(&mut self) -> Result<()> {
        for (labels, buckets) in std::mem::take(&mut self.buckets) {
            let family = &self.family;
            let rises = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
            ensure!(buckets.windows(2).all(rises), "buckets of {family}{{{labels}}}: {buckets:?}");
            let last = buckets.last().context("no bucket")?;
            ensure!(last.0 == f64::INFINITY, "{family}{{{labels}}} has no bucket +Inf");
            let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let count = self.values.get(&format!("{family}_count{braces}"));
            ensure!(count == Some(&last.1), "{family}_count{braces} is {count:?}, not {}", last.1);
        }
        Ok(())
    }
}

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.bytes().all(plain) && text.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

/// `name="value",...`; in a value `\` stands before `\`, `"` and `n` only.
fn read_labels(text: &str) -> Result<Vec<(String, String)>> {
    let mut labels = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, behind) = rest.split_once("=\"").context("a label without value")?;
        ensure!(is_name(name), "{name} is no label");
        let mut escaped = false;
        let end = behind.char_indices().find(|&(_, c)| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let end = end.context("a value without end")?.0;
        labels.push((name.to_owned(), behind[..end].to_owned()));
        rest = &behind[end + 1..];
        if let Some(next) = rest.strip_prefix(',') {
            ensure!(!next.is_empty(), "a comma at the end");
            rest = next;
        } else {
            ensure!(rest.is_empty(), "{rest:?} behind a value");
        }
    }
    let names: BTreeSet<&String> = labels.iter().map(|(name, _)| name).collect();
    ensure!(names.len() == labels.len(), "a label comes twice");
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::parse;

    const GOOD: &str = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\n\
        a_seconds_sum{m=\"x,\\\"}\"} 0.5\na_seconds_count{m=\"x,\\\"}\"} 2\n\
        a_seconds_bucket{le=\"0.1\",m=\"x,\\\"}\"} 1\na_seconds_bucket{le=\"+Inf\",m=\"x,\\\"}\"} 2\n\
        # HELP b Things.\n# TYPE b gauge\nb 7\n# EOF\n";

    #[test]
    fn a_good_scrape_is_read() {
        let metrics = parse(GOOD).unwrap();
        assert_eq!(metrics.value("b").unwrap(), 7);
        assert_eq!(metrics.sum("a_seconds_count", &["m=\"x"]), 2);
        assert!(metrics.value("c").is_err());
    }

    #[test]
    fn each_broken_rule_is_found() {
        for (good, broken) in [
            ("# EOF\n", ""),
            ("# TYPE b gauge\n", ""),
            ("# TYPE b gauge", "# TYPE b thing"),
            ("b 7", "b"),
            ("b 7", "c 7"),
            ("b 7", "b 7\nb 8"),
            ("# HELP b", "# HELP a_seconds"),
            ("le=\"+Inf\"", "le=\"9\""),
            ("_bucket{le=\"0.1\",m=\"x,\\\"}\"} 1", "_bucket{le=\"0.1\",m=\"x,\\\"}\"} 3"),
            ("_count{m=\"x,\\\"}\"} 2", "_count{m=\"x,\\\"}\"} 3"),
            ("b 7", "b{x=\"1\",x=\"2\"} 7"),
            ("b 7", "b{x=\"1} 7"),
        ] {
            let text = GOOD.replacen(good, broken, 1);
            assert_ne!(text, GOOD, "{good}");
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}
