//! Services: an address of a network, and the endpoints that answer for it. This version checks them,
//! hands out their address and says who would answer; it forwards none of their traffic.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::key::{NetworkKey, ServiceKey};
use crate::name::NetworkName;
use crate::refusal::{Reason, Refused};

const TEXT_BYTES_MAX: usize = 512;
/// Most selectors or ports of a service, and labels of an endpoint.
const COUNT_MAX: usize = 64;

/// What a container is labelled with, and what a service selects by: `name=value`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerLabel {
    name: String,
    value: String,
}

impl ContainerLabel {
    fn read(text: &str) -> Option<Self> {
        let (name, value) = text.split_once('=')?;
        let good = text.len() <= TEXT_BYTES_MAX
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_graphic())
            && !value.chars().any(char::is_control);
        good.then(|| Self { name: name.to_owned(), value: value.to_owned() })
    }

    /// Checks the labels of an endpoint; one given twice counts once.
    ///
    /// # Errors
    /// [`Refused`] for text without `=` or over 512 bytes, and for more than 64 labels.
    pub fn parse_all(field: &'static str, texts: &[String]) -> Result<BTreeSet<Self>, Refused> {
        if texts.len() > COUNT_MAX {
            return Err(Refused::new(field, &texts.len(), Reason::LabelCount));
        }
        let bad = |text: &String| Refused::new(field, text, Reason::LabelFormat);
        texts.iter().map(|text| Self::read(text).ok_or_else(|| bad(text))).collect()
    }
}

impl fmt::Display for ContainerLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// What a service carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A port of a service, and where its providers answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// What clients ask for.
    pub port: u16,
    /// Where providers answer.
    pub target: u16,
    /// Of both.
    pub transport: Transport,
}

impl ServicePort {
    /// Every entry is checked, each part of it.
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (port, target, transport) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let transport = match transport {
            "TCP" | "tcp" | "Tcp" => Transport::Tcp,
            "UDP" | "udp" | "Udp" => Transport::Udp,
            _ => return None,
        };
        Some(Self { port: port_number(port)?, target: port_number(target)?, transport })
    }
}

fn port_number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.port, self.target, self.transport)
    }
}

/// A service as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Tenant and name.
    pub key: ServiceKey,
    /// Where its address is from, in the same tenant.
    pub network: NetworkName,
    /// The wanted address; `None`: allocate.
    pub address: Option<Ipv4Addr>,
    /// Endpoints of the tenant with all of these labels answer for it.
    pub selectors: BTreeSet<ContainerLabel>,
    /// What it offers, in the order given.
    pub ports: Vec<ServicePort>,
}

impl ServiceSpec {
    /// Checks an IPv4 address; empty is `None`.
    ///
    /// # Errors
    /// [`Refused`] for IPv6 and for text that is no address.
    pub fn parse_address(field: &'static str, text: &str) -> Result<Option<Ipv4Addr>, Refused> {
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse() {
            Ok(IpAddr::V4(address)) => Ok(Some(address)),
            Ok(IpAddr::V6(_)) => Err(Refused::new(field, text, Reason::ServiceIpv6)),
            Err(_not_an_address) => Err(Refused::new(field, text, Reason::BadAddress)),
        }
    }

    /// Checks selectors; one given twice counts once.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts: none, more than 64, or one that is not `name=value`.
    pub fn parse_selectors(
        field: &'static str,
        texts: &[String],
    ) -> Result<BTreeSet<ContainerLabel>, Refused> {
        if !(1..=COUNT_MAX).contains(&texts.len()) {
            return Err(Refused::new(field, &texts.len(), Reason::SelectorCount));
        }
        let bad = |text: &String| {
            Refused::new(field, text, Reason::SelectorFormat { selector: text.clone() })
        };
        texts.iter().map(|text| ContainerLabel::read(text).ok_or_else(|| bad(text))).collect()
    }

    /// Checks ports like `80:8080:TCP`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's text: none, more than 64, or one that is no port; and for a port
    /// given twice.
    pub fn parse_ports(field: &'static str, texts: &[String]) -> Result<Vec<ServicePort>, Refused> {
        if !(1..=COUNT_MAX).contains(&texts.len()) {
            return Err(Refused::new(field, &texts.len(), Reason::PortMapping));
        }
        let (mut ports, mut seen) = (Vec::new(), BTreeSet::new());
        for text in texts {
            let refuse = |reason| Refused::new(field, text, reason);
            let port = ServicePort::read(text).ok_or_else(|| refuse(Reason::PortMapping))?;
            if !seen.insert((port.port, port.transport)) {
                return Err(refuse(Reason::PortTwice { port: port.port.to_string() }));
            }
            ports.push(port);
        }
        Ok(ports)
    }

    /// The key of its network.
    #[must_use]
    pub fn network_key(&self) -> NetworkKey {
        NetworkKey::new(self.key.tenant.clone(), self.network.clone())
    }
}

/// A stored service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What was asked for.
    pub spec: ServiceSpec,
    /// Its address.
    pub vip: Ipv4Addr,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn contivs_ports_and_selectors_are_accepted() {
        for spelling in ["TCP", "tcp", "Tcp"] {
            let ports =
                ServiceSpec::parse_ports("ports", &texts(&[&format!("80:8080:{spelling}")]));
            assert_eq!(ports.unwrap()[0].to_string(), "80:8080:TCP");
        }
        for spelling in ["UDP", "udp", "Udp"] {
            let ports =
                ServiceSpec::parse_ports("ports", &texts(&[&format!("643:7070:{spelling}")]));
            assert_eq!(ports.unwrap()[0].to_string(), "643:7070:UDP");
        }
        let both = ServiceSpec::parse_ports("ports", &texts(&["53:53:TCP", "53:53:UDP"]));
        assert_eq!(both.unwrap().len(), 2);
        let pair = texts(&["key1=value1", "key2=value2"]);
        let selectors = ServiceSpec::parse_selectors("selectors", &pair).unwrap();
        assert_eq!(selectors.iter().map(ToString::to_string).collect::<Vec<_>>(), pair);
    }

    #[test]
    fn every_port_is_checked_and_not_the_first_alone() {
        let format = "Invalid Port maping . Port format is - Port:TargetPort:Protocol";
        for bad in [
            "80",
            "80:8080",
            "80:8080:",
            "80:8080:TCP:x",
            "0:80:TCP",
            "80:0:TCP",
            "65536:80:TCP",
            "+80:80:TCP",
            "80:8080:SCTP",
            "80:8080:tCp",
            " 80:8080:TCP",
            "",
        ] {
            for ports in [texts(&[bad]), texts(&["443:443:TCP", bad])] {
                let refused = ServiceSpec::parse_ports("ports", &ports).unwrap_err();
                assert_eq!((refused.value.as_str(), refused.to_string().as_str()), (bad, format));
            }
        }
        assert_eq!(ServiceSpec::parse_ports("ports", &[]).unwrap_err().to_string(), format);
        let many = vec!["80:80:TCP".to_owned(); COUNT_MAX + 1];
        assert_eq!(ServiceSpec::parse_ports("ports", &many).unwrap_err().to_string(), format);
        let twice = ServiceSpec::parse_ports("ports", &texts(&["80:1:TCP", "80:2:TCP"]));
        assert_eq!(twice.unwrap_err().to_string(), "the service port 80 is given twice");
    }

    #[test]
    fn selectors_and_labels_are_name_value_pairs() {
        let none = ServiceSpec::parse_selectors("selectors", &[]).unwrap_err();
        assert_eq!(none.to_string(), "Invalid selector options");
        let long = format!("a={}", "b".repeat(TEXT_BYTES_MAX));
        for bad in ["key1", "=value1", "ke y=v", "k=\n", "", &long] {
            let refused = ServiceSpec::parse_selectors("selectors", &texts(&["a=b", bad]));
            let text = format!("Invalid selector {bad}. selector format is key1=value1");
            assert_eq!(refused.unwrap_err().to_string(), text);
            let refused = ContainerLabel::parse_all("labels", &texts(&[bad])).unwrap_err();
            assert_eq!((refused.field, refused.reason), ("labels", Reason::LabelFormat));
        }
        let many = vec!["a=b".to_owned(); COUNT_MAX + 1];
        let refused = ContainerLabel::parse_all("labels", &many).unwrap_err();
        assert_eq!(refused.reason, Reason::LabelCount);
    }
}
