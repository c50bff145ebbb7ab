//! What a runtime alone has said of an attachment, noted on its host end (`ip link` shows it as alias),
//! so that it outlives the rows: what the container is limited to, which ports of the node lead to it, and
//! whose garbage collection may take it.

use serde::{Deserialize, Serialize};

use crate::attachment::{Attachment, Limits};
use crate::published::Mapping;

/// Bytes the kernel keeps of a link's alias.
const BYTES_MAX: usize = 255;

/// The note, as JSON on the link.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Note {
    /// `name` of the CNI configuration.
    pub(crate) config: String,
    pub(crate) limits: Limits,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) published: Vec<Mapping>,
}

impl Note {
    pub(crate) fn of(row: &Attachment) -> Self {
        let (config, published) = (row.config_name.clone(), row.published.clone());
        Self { config, limits: row.limits, published }
    }

    /// Without the name where there is no room for it, and without the ports of the node if that does not
    /// help; the limits always fit.
    pub(crate) fn text(&self) -> Option<String> {
        let fits = |note: &Self| {
            let text = serde_json::to_string(note).ok()?;
            (text.len() <= BYTES_MAX).then_some(text)
        };
        let nameless = Self { config: String::new(), ..self.clone() };
        let portless = Self { published: Vec::new(), ..nameless.clone() };
        fits(self).or_else(|| fits(&nameless)).or_else(|| fits(&portless))
    }

    /// Whether there is room for the ports of the node. Without it they are not published again when the
    /// state directory is lost.
    pub(crate) fn keeps_published(&self) -> bool {
        Self::parse(self.text().as_deref()).published == self.published
    }

    /// What was noted; nothing, where that was another's or of before there were notes.
    pub(crate) fn parse(alias: Option<&str>) -> Self {
        alias.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::Limit;
    use crate::attachment::tests::example;

    #[test]
    fn a_note_reads_back_and_other_text_is_none() {
        let most = Limit { rate: 400_000_000_000, burst: 1_000_000_000 };
        let limits = Limits { from: Some(most), to: Some(most) };
        let published: Vec<Mapping> = ["8080:80/tcp", "[2001:db8::1]:53:5353/udp"]
            .map(|text| text.to_owned().try_into().unwrap())
            .into();
        let note = Note::of(&Attachment { limits, published, ..example("c1") });
        assert_eq!(Note::parse(note.text().as_deref()), note);
        for other in [None, Some(""), Some("uplink of rack 7"), Some("{}")] {
            assert_eq!(Note::parse(other), Note::default(), "{other:?}");
        }
    }

    #[test]
    fn a_name_for_which_there_is_no_room_does_not_cost_the_limits() {
        let most = Limit { rate: 400_000_000_000, burst: 1_000_000_000 };
        let limits = Limits { from: Some(most), to: Some(most) };
        let port: Mapping = "8080:80/tcp".to_owned().try_into().unwrap();
        for (count, kept) in [(0, 0), (3, 3), (30, 0)] {
            let note = Note { config: "n".repeat(200), limits, published: vec![port; count] };
            let text = note.text().unwrap();
            assert!(text.len() <= BYTES_MAX, "{text}");
            assert_eq!(note.keeps_published(), count == kept);
            let published = vec![port; kept];
            assert_eq!(Note::parse(Some(&text)), Note { config: String::new(), limits, published });
        }
    }
}
