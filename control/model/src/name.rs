//! Names. Keys join names with colons and DNS uses them as labels, so that the accepted characters
//! are Contiv's: labels of letters, digits and inner dashes, joined by dots.

use std::borrow::Borrow;
use std::fmt;

use crate::refusal::{Reason, Refused};

const NAME_LEN_MAX: usize = 64;
const TAG_LEN_MAX: usize = 128;
const LONG_NAME_LEN_MAX: usize = 256;
const IDENTIFIER_LEN_MAX: usize = 255;

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks `text`, given as `field`.
            ///
            /// # Errors
            /// [`Refused`] with the field and the value.
            pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
                let check: fn(&str) -> Result<(), Reason> = $check;
                match check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(reason) => Err(Refused::new(field, text, reason)),
                }
            }

            /// As [`Self::parse`], but empty text is `None`.
            ///
            /// # Errors
            /// [`Refused`] with the field and the value.
            pub fn parse_optional(field: &'static str, text: &str) -> Result<Option<Self>, Refused> {
                if text.is_empty() { Ok(None) } else { Self::parse(field, text).map(Some) }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_type!(
    /// A tenant's name.
    TenantName, |text| if text.is_empty() { Err(Reason::NoTenant) } else { name(text, NAME_LEN_MAX) }
);
text_type!(
    /// A network's name, unique in its tenant, also among groups.
    NetworkName, |text| name(text, NAME_LEN_MAX)
);
text_type!(
    /// An endpoint group's name, unique in its tenant, also among networks.
    GroupName, |text| name(text, NAME_LEN_MAX)
);
text_type!(
    /// A policy's name, unique in its tenant.
    PolicyName, |text| name(text, NAME_LEN_MAX)
);
text_type!(
    /// A rule's id, unique in its policy.
    RuleName, |text| name(text, NAME_LEN_MAX)
);
text_type!(
    /// A net profile's name, unique in its tenant. Contiv has no rule for it: what keys and paths are
    /// joined with can't be in it.
    ProfileName, |text| profile(text)
);
text_type!(
    /// A node's name.
    NodeName, |text| name(text, NAME_LEN_MAX)
);
text_type!(
    /// A service's name, unique in its tenant.
    ServiceName,
    |text| if text.is_empty() { Err(Reason::NoService) } else { name(text, LONG_NAME_LEN_MAX) }
);
text_type!(
    /// An application profile's name, unique in its tenant.
    AppProfileName, |text| name(text, NAME_LEN_MAX)
);
text_type!(
    /// The host of BGP settings.
    HostName,
    |text| if text.is_empty() { Err(Reason::NoHost) } else { name(text, LONG_NAME_LEN_MAX) }
);
text_type!(
    /// A tag users give to a network or group, at most 128 characters.
    CfgdTag, |text| name(text, TAG_LEN_MAX)
);
text_type!(
    /// An endpoint: container id and interface name, joined with a colon.
    EndpointId, identifier
);
text_type!(
    /// Who holds a reserved address.
    Owner, identifier
);

text_type!(
    /// Text only for people to read: at most 255 bytes without control characters, or nothing.
    Label, label
);

// Maps by owner are searched by the names of endpoints.
impl Borrow<str> for Owner {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl NetworkName {
    /// Before every name, and none itself: where a search begins.
    pub(crate) const fn before_all() -> Self {
        Self(String::new())
    }
}

impl TenantName {
    /// The tenant that exists from the start.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }
}

fn name(text: &str, len_max: usize) -> Result<(), Reason> {
    let good = text.len() <= len_max && text.split('.').all(is_label);
    if good { Ok(()) } else { Err(Reason::BadName { len_max }) }
}

fn profile(text: &str) -> Result<(), Reason> {
    let good = (1..=NAME_LEN_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && !b":/".contains(&b));
    if good { Ok(()) } else { Err(Reason::BadProfileName) }
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

fn identifier(text: &str) -> Result<(), Reason> {
    let good = !text.is_empty()
        && text.len() <= IDENTIFIER_LEN_MAX
        && text.bytes().all(|b| b.is_ascii_graphic());
    if good { Ok(()) } else { Err(Reason::BadIdentifier) }
}

fn label(text: &str) -> Result<(), Reason> {
    let good = text.len() <= IDENTIFIER_LEN_MAX && !text.chars().any(char::is_control);
    if good { Ok(()) } else { Err(Reason::BadLabel) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contivs_name_vectors_are_accepted_and_refused_alike() {
        for good in ["tenant1", "tenant-valid", "contiv-valid", "a", "a.b-c.d"] {
            assert_eq!(TenantName::parse("tenantName", good).unwrap().as_str(), good);
        }
        let bad = [
            "tenant:invalid",
            "tenant|invalid",
            "tenant\\invalid",
            "tenant#invalid",
            "-tenant",
            "tenant@invalid",
            "tenant!invalid",
            "tenant~invalid",
            "tenant*invalid",
            "tenant^invalid",
            "contiv:invalid",
            "contiv|invalid",
            "-invalid",
            "in_valid",
            "tenant-",
            "a..b",
            ".a",
            "a b",
            "\u{fc}ber",
        ];
        for text in bad {
            let refused = TenantName::parse("tenantName", text).unwrap_err();
            assert_eq!((refused.field, refused.value.as_str()), ("tenantName", text));
            assert_eq!(refused.reason, Reason::BadName { len_max: 64 });
        }
        assert_eq!(
            GroupName::parse("groupName", "").unwrap_err().reason,
            Reason::BadName { len_max: 64 }
        );
        assert_eq!(TenantName::parse("tenantName", "").unwrap_err().reason, Reason::NoTenant);
    }

    #[test]
    fn a_pods_namespace_and_name_are_a_containers_name_and_an_owner() {
        for text in ["shop/web-0", &format!("{}/...{}", "n".repeat(63), "a".repeat(188))] {
            assert_eq!(Label::parse("containerName", text).unwrap().as_str(), text);
            assert_eq!(Owner::parse("owner", text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_profile_may_have_any_visible_character_but_those_that_join_keys() {
        for good in ["gold", "net_profile-1", "-x", &"a".repeat(64)] {
            assert_eq!(ProfileName::parse("profileName", good).unwrap().as_str(), good);
        }
        for bad in ["", "a:b", "a/b", "a b", "a\n", "\u{fc}ber", &"a".repeat(65)] {
            let refused = ProfileName::parse("profileName", bad).unwrap_err();
            assert_eq!(refused.reason, Reason::BadProfileName, "{bad}");
        }
    }

    #[test]
    fn a_name_has_at_most_64_characters_and_a_tag_128() {
        assert!(NetworkName::parse("networkName", &"a".repeat(64)).is_ok());
        assert!(NetworkName::parse("networkName", &"a".repeat(65)).is_err());
        assert!(CfgdTag::parse("cfgdTag", &"a".repeat(128)).is_ok());
        assert!(CfgdTag::parse("cfgdTag", &"a".repeat(129)).is_err());
        assert!(ServiceName::parse("serviceName", &"a".repeat(256)).is_ok());
        assert!(HostName::parse("hostname", &"a".repeat(257)).is_err());
        let empty = ServiceName::parse("serviceName", "").unwrap_err();
        assert_eq!(empty.to_string(), "Invalid service name");
        assert_eq!(HostName::parse("hostname", "").unwrap_err().to_string(), "Invalid host name");
    }

    #[test]
    fn contivs_network_tag_vectors_are_accepted_and_refused_alike() {
        for good in ["contiv-net", "io.contiv.network.test"] {
            assert!(CfgdTag::parse("cfgdTag", good).is_ok(), "{good}");
        }
        for bad in ["tag=contiv-net", "io.contiv.network/test"] {
            assert!(CfgdTag::parse("cfgdTag", bad).is_err(), "{bad}");
        }
    }
}
