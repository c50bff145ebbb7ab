//! Texts of other people's making, without what is nobody else's business.

/// Words that announce a secret, in lower case.
const WORDS: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "private-key",
    "private_key",
    "api-key",
];
const REMOVED: &str = "(removed)";

/// The text with secrets replaced: values on lines that announce one, private keys, and what stands
/// before `@` in URLs. Rather a line too many than one too few.
pub(crate) fn cleaned(text: &str) -> String {
    let mut in_key = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let is_key = in_key;
        in_key = match () {
            () if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") => true,
            () if line.contains("-----END") => false,
            () => in_key,
        };
        match (is_key, in_key) {
            (false, true) => lines.push(REMOVED.to_owned()),
            (true, _) => {}
            (false, false) => lines.push(cleaned_line(line)),
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn cleaned_line(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    // The first word counts: what follows it may be a part of the secret.
    let announced =
        WORDS.iter().filter_map(|word| lower.find(word).map(|at| at + word.len())).min();
    let line = match announced {
        Some(end) => format!("{} {REMOVED}", &line[..end]),
        None => line.to_owned(),
    };
    without_users(&line)
}

/// Without `user:password@` in URLs.
fn without_users(line: &str) -> String {
    let mut parts = line.split("://");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str("://");
        let end =
            part.find(|c: char| c == '/' || c.is_whitespace() || c == '"').unwrap_or(part.len());
        match part[..end].rfind('@') {
            Some(at) => {
                text.push_str(REMOVED);
                text.push_str(&part[at..]);
            }
            None => text.push_str(part),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::cleaned;

    #[test]
    fn what_looks_like_a_secret_is_replaced() {
        for (line, clean) in [
            ("password = \"hunter2\"", "password (removed)"),
            ("  API-Key: abc", "  API-Key (removed)"),
            ("level=info token=abc node=n1", "level=info token (removed)"),
            (
                "store = \"etcd:http://root:pw@10.0.0.1:2379,http://10.0.0.2:2379\"",
                "store = \"etcd:http://(removed)@10.0.0.1:2379,http://10.0.0.2:2379\"",
            ),
            ("netmaster = [\"http://10.0.0.1:9999\"]", "netmaster = [\"http://10.0.0.1:9999\"]"),
            ("see http://a/b@c", "see http://a/b@c"),
            ("an ordinary line", "an ordinary line"),
        ] {
            assert_eq!(cleaned(line), format!("{clean}\n"), "{line}");
        }
    }

    #[test]
    fn private_keys_go_and_certificates_stay() {
        let text = "a\n-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\n\
                    -----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\nb";
        assert_eq!(
            cleaned(text),
            "a\n(removed)\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\nb\n"
        );
        assert_eq!(cleaned("-----BEGIN PRIVATE KEY-----\nMHcC\n"), "(removed)\n");
    }
}
