//! The forms of output that programs read.

use serde::Serialize;

/// A form for programs. Both carry the same fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// Indented by 2, with a newline behind it, as Contiv prints JSON.
    Json,
    /// One document, without `---` before it.
    Yaml,
}

/// A value that has no such form; none of netctl's is one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("cannot write YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser_error::Error),
}

impl Data {
    /// `value` as text.
    pub(crate) fn text<T: Serialize>(self, value: &T) -> Result<String, DataError> {
        match self {
            Self::Json => Ok(serde_json::to_string_pretty(value)? + "\n"),
            Self::Yaml => Ok(serde_saphyr::to_string(value)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Data;

    #[test]
    fn yaml_reads_back_as_what_json_says_also_for_text_that_looks_like_something_else() {
        let odd = vec![
            "",
            "yes",
            "no",
            "null",
            "~",
            "10",
            "0x1f",
            "1e3",
            "1:30",
            "2026-11-25",
            "- a",
            "# a",
            "a: b",
            "a #b",
            " a",
            "a ",
            "\"",
            "'",
            "[a]",
            "{a}",
            "&a",
            "*a",
            "!a",
            "|",
            ">",
            "%",
            "@",
            "`",
            "a\nb",
            "a\tb",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "10.1.1.0/24",
            "true",
            ".inf",
            "-",
            "---",
            "...",
            "?",
            ":",
            "<<",
            "=",
            "0o7",
            "1_000",
            "blue:web",
            "::1",
            "2001:db8::/64",
        ];
        let value = serde_json::json!({ "texts": odd, "number": 7, "flag": true, "none": [] });
        let text = Data::Yaml.text(&value).unwrap();
        let back: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
    }

    #[test]
    fn json_is_indented_and_ends_with_a_newline() {
        assert_eq!(Data::Json.text(&["a"]).unwrap(), "[\n  \"a\"\n]\n");
        assert_eq!(Data::Yaml.text(&["a"]).unwrap(), "- a\n");
    }
}
