//! Policy rules: what a group may receive (in) and send (out).
//!
//! The checks are Contiv's, except that addresses are parsed as addresses: a /32 is fine.

use std::fmt;
use std::net::IpAddr;

use flowtable::entry::{Direction, Permit, Prefix};
use flowtable::ids::RuleId;

use crate::key::RuleKey;
use crate::name::{GroupName, NetworkName};
use crate::refusal::{Reason, Refused};

const PRIORITY_DEFAULT: u8 = 1;
const PRIORITY_MAX: u32 = 100;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// An address or block as given, so that users see what they wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressMatch {
    address: IpAddr,
    length: Option<u8>,
}

impl AddressMatch {
    /// Checks an address, alone or with a length of 1 to 32 or, with IPv6, 128; empty is `None`.
    ///
    /// # Errors
    /// [`Refused`] for anything else.
    pub fn parse(field: &'static str, text: &str) -> Result<Option<Self>, Refused> {
        if text.is_empty() {
            return Ok(None);
        }
        let refuse = || Refused::new(field, text, Reason::BadRulePrefix);
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_not_an_address| refuse())?;
        let Some(length) = length else { return Ok(Some(Self { address, length: None })) };
        let digits = length.bytes().all(|b| b.is_ascii_digit());
        let fitting = length.parse().ok().filter(|l| digits && (1..=longest(address)).contains(l));
        Ok(Some(Self { address, length: Some(fitting.ok_or_else(refuse)?) }))
    }

    /// The block, without host bits.
    #[must_use]
    pub fn prefix(self) -> Prefix {
        let masked = self.length.and_then(|length| Prefix::new(self.address, length).ok());
        masked.unwrap_or_else(|| Prefix::host(self.address))
    }

    /// The address, when it is exactly one.
    #[must_use]
    pub fn host(self) -> Option<IpAddr> {
        self.length.is_none_or(|length| length == longest(self.address)).then_some(self.address)
    }
}

const fn longest(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for AddressMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length {
            Some(length) => write!(f, "{}/{length}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// An IP protocol as given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 6
    Tcp,
    /// 17
    Udp,
    /// 1; also matches `ICMPv6` in IPv6 packets.
    Icmp,
    /// By number.
    Number(u8),
}

impl Protocol {
    /// Checks `tcp`, `udp`, `icmp` or `0..255`; empty is `None`, any protocol.
    ///
    /// # Errors
    /// [`Refused`] for anything else.
    pub fn parse(field: &'static str, text: &str) -> Result<Option<Self>, Refused> {
        Ok(Some(match text {
            "" => return Ok(None),
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "icmp" => Self::Icmp,
            _ => {
                let digits = text.bytes().all(|b| b.is_ascii_digit());
                let number = text.parse().ok().filter(|_| digits);
                let refuse = || Refused::new(field, text, Reason::BadProtocol);
                Self::Number(number.ok_or_else(refuse)?)
            }
        }))
    }

    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
            Self::Icmp => ICMP,
            Self::Number(number) => number,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// The other end of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The addresses of a network.
    Network(NetworkName),
    /// Members of a group, with addresses of a block; `None` is any.
    Match {
        /// Their group.
        group: Option<GroupName>,
        /// Their addresses.
        address: Option<AddressMatch>,
    },
}

/// The fields of a rule as text, before any check.
#[derive(Debug, Clone, Copy, Default)]
pub struct RuleText<'a> {
    /// in | out
    pub direction: &'a str,
    /// 1..=100; 0 is the default.
    pub priority: u32,
    /// Group of the sender, or empty.
    pub from_group: &'a str,
    /// Group of the receiver, or empty.
    pub to_group: &'a str,
    /// Network of the sender, or empty.
    pub from_network: &'a str,
    /// Network of the receiver, or empty.
    pub to_network: &'a str,
    /// Addresses of the sender, or empty.
    pub from_address: &'a str,
    /// Addresses of the receiver, or empty.
    pub to_address: &'a str,
    /// tcp | udp | icmp | 0..255 | empty
    pub protocol: &'a str,
    /// 1..=65535; 0 is any.
    pub port: u32,
    /// allow | deny
    pub action: &'a str,
}

/// A rule as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// Tenant, policy and id.
    pub key: RuleKey,
    /// Where it is enforced.
    pub direction: Direction,
    /// 1..=100; higher wins.
    pub priority: u8,
    /// The other end: sender of an in-rule, receiver of an out-rule.
    pub peer: Peer,
    /// In-rules: only for this address of the policy's group.
    pub own_address: Option<AddressMatch>,
    /// The protocol; `None` is any.
    pub protocol: Option<Protocol>,
    /// The receiver's TCP or UDP port; `None` is any.
    pub port: Option<u16>,
    /// The verdict.
    pub permit: Permit,
}

impl RuleSpec {
    /// Checks every field and their mix.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts.
    pub fn parse(key: RuleKey, text: &RuleText<'_>) -> Result<Self, Refused> {
        let direction = match text.direction {
            "in" => Direction::In,
            "out" => Direction::Out,
            other => return Err(Refused::new("direction", other, Reason::BadDirection)),
        };
        let protocol = Protocol::parse("protocol", text.protocol)?;
        let (peer, own_address) = match direction {
            Direction::In => in_ends(text)?,
            Direction::Out => (out_peer(text)?, None),
        };
        Ok(Self {
            key,
            direction,
            priority: parse_priority(text.priority)?,
            peer,
            own_address,
            protocol,
            port: parse_port(text.port, protocol)?,
            permit: match text.action {
                "allow" => Permit::Allow,
                "deny" => Permit::Deny,
                other => {
                    let reason = Reason::NotOneOf { list: "allow, deny" };
                    return Err(Refused::new("action", other, reason));
                }
            },
        })
    }
}

fn in_ends(text: &RuleText<'_>) -> Result<(Peer, Option<AddressMatch>), Refused> {
    refuse_given("toNetwork", text.to_network, Reason::InRuleWithTo)?;
    refuse_given("toEndpointGroup", text.to_group, Reason::InRuleWithTo)?;
    if !text.from_network.is_empty() {
        refuse_given("fromIpAddress", text.from_address, Reason::FromNetworkAndAddress)?;
        refuse_given("fromEndpointGroup", text.from_group, Reason::FromNetworkAndGroup)?;
    }
    let own_address = AddressMatch::parse("toIpAddress", text.to_address)?;
    let peer = match NetworkName::parse_optional("fromNetwork", text.from_network)? {
        Some(network) => Peer::Network(network),
        None => Peer::Match {
            group: GroupName::parse_optional("fromEndpointGroup", text.from_group)?,
            address: AddressMatch::parse("fromIpAddress", text.from_address)?,
        },
    };
    if let (Peer::Match { address: Some(theirs), .. }, Some(own)) = (&peer, own_address)
        && theirs.address.is_ipv4() != own.address.is_ipv4()
    {
        return Err(Refused::new("toIpAddress", &own, Reason::MixedFamilies));
    }
    Ok((peer, own_address))
}

fn out_peer(text: &RuleText<'_>) -> Result<Peer, Refused> {
    refuse_given("fromNetwork", text.from_network, Reason::OutRuleWithFrom)?;
    refuse_given("fromEndpointGroup", text.from_group, Reason::OutRuleWithFrom)?;
    refuse_given("fromIpAddress", text.from_address, Reason::OutRuleWithFrom)?;
    if !text.to_network.is_empty() {
        refuse_given("toIpAddress", text.to_address, Reason::ToNetworkAndAddress)?;
        refuse_given("toEndpointGroup", text.to_group, Reason::ToNetworkAndGroup)?;
    }
    Ok(match NetworkName::parse_optional("toNetwork", text.to_network)? {
        Some(network) => Peer::Network(network),
        None => Peer::Match {
            group: GroupName::parse_optional("toEndpointGroup", text.to_group)?,
            address: AddressMatch::parse("toIpAddress", text.to_address)?,
        },
    })
}

fn refuse_given(field: &'static str, text: &str, reason: Reason) -> Result<(), Refused> {
    if text.is_empty() { Ok(()) } else { Err(Refused::new(field, text, reason)) }
}

fn parse_priority(number: u32) -> Result<u8, Refused> {
    match number {
        0 => Ok(PRIORITY_DEFAULT),
        1..=PRIORITY_MAX => Ok(number as u8),
        _ => Err(Refused::new("priority", &number, Reason::BadPriority)),
    }
}

fn parse_port(number: u32, protocol: Option<Protocol>) -> Result<Option<u16>, Refused> {
    if number == 0 {
        return Ok(None);
    }
    let Ok(port) = u16::try_from(number) else {
        return Err(Refused::new("port", &number, Reason::BadPort));
    };
    // A port without a protocol would say nothing about which headers have it.
    if !matches!(protocol.map(Protocol::number), Some(TCP | UDP)) {
        return Err(Refused::new("port", &number, Reason::PortWithoutProtocol));
    }
    Ok(Some(port))
}

/// A stored rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What was asked for.
    pub spec: RuleSpec,
    /// Its identity in counters, traces and samples.
    pub cookie: RuleId,
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: RuleText<'_> = RuleText {
        direction: "in",
        priority: 0,
        from_group: "",
        to_group: "",
        from_network: "",
        to_network: "",
        from_address: "",
        to_address: "",
        protocol: "",
        port: 0,
        action: "allow",
    };
    const OUT: RuleText<'_> = RuleText { direction: "out", ..IN };

    fn parse(text: &RuleText<'_>) -> Result<RuleSpec, Refused> {
        RuleSpec::parse(RuleKey::parse("key", "default:policy1:1").unwrap(), text)
    }

    #[test]
    fn contivs_good_rules_are_accepted() {
        let good = [
            RuleText { protocol: "tcp", port: 80, ..IN },
            RuleText { action: "deny", ..IN },
            RuleText { protocol: "tcp", port: 80, ..OUT },
            RuleText { from_address: "10.1.1.1/24", protocol: "tcp", port: 80, ..IN },
            RuleText { to_address: "10.1.1.1/24", protocol: "tcp", port: 80, ..OUT },
            RuleText { from_group: "group1", action: "deny", ..IN },
            RuleText { to_group: "group1", protocol: "tcp", port: 80, ..OUT },
            RuleText { from_address: "10.1.1.15", to_address: "10.2.1.31", ..IN },
            RuleText { from_address: "10.1.1.15/32", ..IN },
            RuleText { from_address: "2016::1", to_address: "2016::2/128", ..IN },
            RuleText { to_address: "2016:617::/108", protocol: "icmp", ..OUT },
            RuleText { protocol: "255", ..IN },
        ];
        for text in good {
            assert_eq!(parse(&text).unwrap().priority, 1, "{text:?}");
        }
    }

    #[test]
    fn every_bad_field_and_mix_is_refused_with_its_field_and_contivs_text() {
        let in_to = "can not specify 'to' parameters in incoming rule";
        let out_from = "can not specify 'from' parameters in outgoing rule";
        let bad = [
            (RuleText { to_network: "n", ..IN }, "toNetwork", in_to),
            (RuleText { to_group: "g", ..IN }, "toEndpointGroup", in_to),
            (RuleText { to_address: "invalid", ..IN }, "toIpAddress", ""),
            (RuleText { from_network: "n", ..OUT }, "fromNetwork", out_from),
            (RuleText { from_group: "g", ..OUT }, "fromEndpointGroup", out_from),
            (RuleText { from_address: "10.1.1.1", ..OUT }, "fromIpAddress", out_from),
            (
                RuleText { from_network: "n", from_address: "10.1.1.1", ..IN },
                "fromIpAddress",
                "can not specify both from network and from ip address",
            ),
            (
                RuleText { from_network: "n", from_group: "g", ..IN },
                "fromEndpointGroup",
                "can not specify both from network and from EndpointGroup",
            ),
            (
                RuleText { to_network: "n", to_address: "10.1.1.1", ..OUT },
                "toIpAddress",
                "can not specify both to-network and to-ip address",
            ),
            (
                RuleText { to_network: "n", to_group: "g", ..OUT },
                "toEndpointGroup",
                "can not specify both to-network and to-EndpointGroup",
            ),
            (RuleText { direction: "both", ..IN }, "direction", "invalid direction for the rule"),
            (RuleText { direction: "xyz", ..IN }, "direction", "invalid direction for the rule"),
            (RuleText { protocol: "xyz", ..IN }, "protocol", ""),
            (RuleText { protocol: "256", ..IN }, "protocol", ""),
            (RuleText { protocol: "+6", ..IN }, "protocol", ""),
            (RuleText { action: "xyz", ..IN }, "action", ""),
            (RuleText { action: "accept", ..IN }, "action", ""),
            (RuleText { priority: 101, ..IN }, "priority", ""),
            (RuleText { protocol: "tcp", port: 65536, ..IN }, "port", ""),
            (RuleText { port: 80, ..IN }, "port", "a port needs protocol tcp or udp"),
            (
                RuleText { protocol: "icmp", port: 80, ..IN },
                "port",
                "a port needs protocol tcp or udp",
            ),
            (RuleText { from_address: "10.1.1.1/33", ..IN }, "fromIpAddress", ""),
            (RuleText { from_address: "10.1.1.1/0", ..IN }, "fromIpAddress", ""),
            (RuleText { from_address: "10.1.1.1-20", ..IN }, "fromIpAddress", ""),
            (RuleText { from_address: "2016::1/129", ..IN }, "fromIpAddress", ""),
            (RuleText { from_address: "2016::/0", ..IN }, "fromIpAddress", ""),
            (RuleText { from_group: "in_valid", ..IN }, "fromEndpointGroup", ""),
            (
                RuleText { from_address: "2016::/64", to_address: "10.1.1.1", ..IN },
                "toIpAddress",
                "no packet has addresses of both families",
            ),
        ];
        for (text, field, reason) in bad {
            let refused = parse(&text).unwrap_err();
            assert_eq!(refused.field, field, "{text:?}");
            assert!(reason.is_empty() || refused.to_string() == reason, "{text:?}: {refused}");
        }
    }

    #[test]
    fn an_address_is_shown_as_given_and_matches_its_block() {
        let address = AddressMatch::parse("fromIpAddress", "10.1.1.1/24").unwrap().unwrap();
        assert_eq!(address.to_string(), "10.1.1.1/24");
        assert_eq!(address.prefix().to_string(), "10.1.1.0/24");
        assert_eq!(address.host(), None);
        for (text, block) in [("2016:0617::9/108", "2016:617::/108"), ("2016::9", "2016::9/128")] {
            let address = AddressMatch::parse("fromIpAddress", text).unwrap().unwrap();
            assert_eq!(address.prefix().to_string(), block);
        }
    }
}
