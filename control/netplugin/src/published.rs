//! Ports of the node that lead to containers, as runtimes ask for them.
//!
//! A mapping says which address of the node it is for, or leaves that open: then it is for all that the
//! uplink's devices have, since packets for them come by the uplink. Which those are is looked up
//! whenever the engine is programmed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use control_model::{EndpointId, FwdMode, Intent, PublishedPort};
use flowtable::entry::{NodePort, Tracking};
use netdev::Netlink;
use serde::{Deserialize, Serialize};

use crate::attachment::{Attachment, State};
use crate::refusal::Refusal;

/// The key of the runtime's configuration.
pub(crate) const FIELD: &str = "runtimeConfig.portMappings";
const UDP: u8 = 17;
/// RFC 7348, section 5.
const VXLAN: u16 = 4789;

/// A port of the node that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Mapping {
    /// `None`: every address of the uplink; `0.0.0.0` or `::`: every one of the family.
    pub(crate) host_ip: Option<IpAddr>,
    /// 6 (TCP) or 17 (UDP).
    pub(crate) protocol: u8,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
}

impl Mapping {
    /// Some packet would be for both.
    fn meets(&self, other: &Self) -> bool {
        let same = self.protocol == other.protocol && self.host_port == other.host_port;
        let address = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) if a.is_ipv4() != b.is_ipv4() => false,
            (Some(a), Some(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
            (None, _) | (_, None) => true,
        };
        same && address
    }

    /// Whether it is for this address of the node.
    fn is_for(&self, address: IpAddr) -> bool {
        self.host_ip.is_none_or(|own| {
            own == address || own.is_unspecified() && own.is_ipv4() == address.is_ipv4()
        })
    }

    /// The ports of these addresses that it is for.
    fn at(self, addresses: &[IpAddr]) -> impl Iterator<Item = PublishedPort> {
        let Self { protocol, host_port: port, container_port: to_port, .. } = self;
        let own = addresses.iter().copied().filter(move |address| self.is_for(*address));
        own.map(move |address| {
            let node = NodePort { address, protocol, port };
            PublishedPort { node, to_port }
        })
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ip) = self.host_ip {
            write!(f, "{ip} ")?;
        }
        let protocol = if self.protocol == UDP { "udp" } else { "tcp" };
        write!(f, "port {}/{protocol}", self.host_port)
    }
}

/// As podman's `-p` has it: `8080:80/tcp`, `192.0.2.1:8080:80/udp`, `[2001:db8::1]:8080:80/tcp`.
impl From<Mapping> for String {
    fn from(mapping: Mapping) -> Self {
        let Mapping { host_ip, protocol, host_port, container_port } = mapping;
        let protocol = if protocol == UDP { "udp" } else { "tcp" };
        let node = match host_ip {
            Some(ip) => SocketAddr::new(ip, host_port).to_string(),
            None => host_port.to_string(),
        };
        format!("{node}:{container_port}/{protocol}")
    }
}

/// A text that is no mapping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no mapping of a port, as 8080:80/tcp or 192.0.2.1:8080:80/udp is")]
pub(crate) struct BadMapping(String);

impl TryFrom<String> for Mapping {
    type Error = BadMapping;

    fn try_from(text: String) -> Result<Self, BadMapping> {
        let read = || {
            let (ports, protocol) = text.split_once('/')?;
            let (node, container_port) = ports.rsplit_once(':')?;
            let (host_ip, host_port) = match node.parse::<SocketAddr>() {
                Ok(node) => (Some(node.ip()), node.port()),
                Err(_no_address) => (None, node.parse().ok()?),
            };
            let protocol = match protocol {
                "tcp" => 6,
                "udp" => UDP,
                _ => return None,
            };
            Some(Self {
                host_ip,
                protocol,
                host_port,
                container_port: container_port.parse().ok()?,
            })
        };
        read().ok_or_else(|| BadMapping(text.clone()))
    }
}

fn refuse(reason: String) -> Refusal {
    Refusal::Request { field: FIELD, reason }
}

/// Addresses of the node that packets come for by its uplink.
pub(crate) fn node_addresses(devices: &[String]) -> Result<Vec<IpAddr>, netdev::Error> {
    let netlink = Netlink::open()?;
    let mut all = Vec::new();
    for device in devices {
        let Some(link) = netlink.link_by_name(device)? else { continue };
        all.extend(netlink.addresses(link.index)?.into_iter().map(|address| address.ip));
    }
    all.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    Ok(all)
}

/// Whether this node can publish all of these at all.
///
/// # Errors
/// The first that it can't, and why.
pub(crate) fn check(wanted: &[Mapping], addresses: Option<&[IpAddr]>) -> Result<(), Refusal> {
    let Some(first) = wanted.first() else { return Ok(()) };
    let Some(addresses) = addresses else {
        return Err(refuse(format!(
            "{first}: published ports are reached by an uplink, and this node has none (netplugin --uplink)"
        )));
    };
    for (place, mapping) in wanted.iter().enumerate() {
        if mapping.protocol == UDP && mapping.host_port == VXLAN {
            return Err(refuse(format!("{mapping}: tunnels of VXLAN networks end there")));
        }
        let is_there = addresses.iter().any(|address| mapping.is_for(*address));
        if let Some(ip) = mapping.host_ip.filter(|_| !is_there) {
            let known: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            return Err(refuse(format!(
                "{mapping}: {ip} is no address of the uplink; it has {}",
                known.join(", ")
            )));
        }
        if wanted[..place].iter().any(|other| other.meets(mapping)) {
            return Err(refuse(format!("{mapping} is given twice")));
        }
    }
    Ok(())
}

/// Whether answers of the endpoint can leave its network, and are known to be answers.
///
/// # Errors
/// What is in the way.
pub(crate) fn check_network(intent: &Intent, endpoint: &EndpointId) -> Result<(), Refusal> {
    let found = intent.endpoint(endpoint).and_then(|e| intent.network(&e.network));
    let Some(network) = found else { return Ok(()) };
    let (key, name) = (&network.key, &network.key.network);
    if intent.global().fwd_mode == FwdMode::Bridge {
        return Err(refuse("with fwdMode bridge nothing answers a port of the node".to_owned()));
    }
    if network.gateway.is_none() && network.gateway6.is_none() {
        return Err(refuse(format!("network {name} has no gateway, which answers go by")));
    }
    let tenant = intent.tenant(&key.tenant);
    if tenant.is_some_and(|tenant| tenant.settings.tracking == Tracking::Stateless) {
        let tenant = &key.tenant;
        return Err(refuse(format!(
            "tenant {tenant} is stateless: no packet is known for an answer"
        )));
    }
    Ok(())
}

/// Whether no other attachment has one of these.
///
/// # Errors
/// The first that another one has, which is named.
pub(crate) fn check_free(row: &Attachment, others: &[Attachment]) -> Result<(), Refusal> {
    let others =
        others.iter().filter(|other| other.id != row.id && other.state != State::Releasing);
    for other in others {
        let met = |mapping: &&Mapping| other.published.iter().any(|held| held.meets(mapping));
        if let Some(mapping) = row.published.iter().find(met) {
            return Err(Refusal::Published { mapping: *mapping, holder: other.id.to_string() });
        }
    }
    Ok(())
}

/// What each endpoint gets of the node's ports. Of two that want one, which [`check_free`] rules out, the
/// first gets it: tables that contradict themselves would be refused whole.
pub(crate) fn expand<'a>(
    wanted: impl Iterator<Item = (&'a EndpointId, &'a [Mapping])>,
    addresses: &[IpAddr],
) -> BTreeMap<EndpointId, Vec<PublishedPort>> {
    let mut taken: BTreeMap<NodePort, &EndpointId> = BTreeMap::new();
    let mut expanded: BTreeMap<EndpointId, Vec<PublishedPort>> = BTreeMap::new();
    for (endpoint, mappings) in wanted {
        let published = mappings.iter().flat_map(|mapping| mapping.at(addresses));
        let own = published.filter(|p| *taken.entry(p.node).or_insert(endpoint) == endpoint);
        expanded.entry(endpoint.clone()).or_default().extend(own);
    }
    expanded.retain(|_, published| !published.is_empty());
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::tests::example;

    fn tcp(host_ip: Option<&str>, host_port: u16) -> Mapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        Mapping { host_ip, protocol: 6, host_port, container_port: 80 }
    }

    fn addresses() -> Vec<IpAddr> {
        ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into()
    }

    #[test]
    fn a_mapping_is_read_as_written() {
        let udp = Mapping { protocol: 17, ..tcp(Some("192.0.2.1"), 53) };
        let v6 = tcp(Some("2001:db8::1"), 443);
        for (mapping, text) in [
            (tcp(None, 8080), "8080:80/tcp"),
            (udp, "192.0.2.1:53:80/udp"),
            (v6, "[2001:db8::1]:443:80/tcp"),
        ] {
            assert_eq!(String::from(mapping), text);
            assert_eq!(Mapping::try_from(text.to_owned()), Ok(mapping));
        }
        for bad in
            ["", "80", "80/tcp", "80:80", "80:80/sctp", "a:80/tcp", "80:65536/tcp", "1.2:1:1/tcp"]
        {
            assert!(Mapping::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_node_cannot_publish_is_refused_with_the_reason() {
        let have = addresses();
        let text = |wanted: &[Mapping], addresses: Option<&[IpAddr]>| {
            check(wanted, addresses).err().map(|refusal| refusal.to_string())
        };
        let any = tcp(None, 8080);
        let of_one = tcp(Some("192.0.2.1"), 8080);
        assert_eq!(text(&[], None), None);
        assert_eq!(
            text(&[any, tcp(None, 8081), Mapping { protocol: 17, ..any }], Some(&have)),
            None
        );
        for other in ["2001:db8::1", "::"] {
            assert_eq!(text(&[of_one, tcp(Some(other), 8080)], Some(&have)), None);
        }
        let vxlan = Mapping { protocol: 17, host_port: 4789, ..any };
        let loopback = tcp(Some("127.0.0.1"), 8080);
        for (wanted, addresses, reason) in [
            (
                vec![any],
                None,
                "port 8080/tcp: published ports are reached by an uplink, and this node has none (netplugin --uplink)",
            ),
            (vec![vxlan], Some(&have[..]), "port 4789/udp: tunnels of VXLAN networks end there"),
            (
                vec![loopback],
                Some(&have[..]),
                "127.0.0.1 port 8080/tcp: 127.0.0.1 is no address of the uplink; it has 192.0.2.1, 2001:db8::1",
            ),
            (vec![any, of_one], Some(&have[..]), "192.0.2.1 port 8080/tcp is given twice"),
            (
                vec![tcp(Some("0.0.0.0"), 8080), of_one],
                Some(&have[..]),
                "192.0.2.1 port 8080/tcp is given twice",
            ),
        ] {
            assert_eq!(text(&wanted, addresses), Some(format!("{FIELD}: {reason}")));
        }
    }

    #[test]
    fn one_port_is_one_attachments() {
        let row = |id, published| Attachment { published, ..example(id) };
        let held =
            [row("c1", vec![tcp(Some("192.0.2.1"), 8080)]), row("c2", vec![tcp(None, 9090)])];
        let free = |published| check_free(&row("c3", published), &held);
        assert!(free(vec![tcp(Some("192.0.2.2"), 8080), tcp(None, 8081)]).is_ok());
        assert!(free(vec![Mapping { protocol: 17, ..tcp(None, 9090) }]).is_ok());
        let text = free(vec![tcp(None, 8080)]).unwrap_err().to_string();
        assert_eq!(text, format!("{FIELD}: port 8080/tcp is c1:eth0's"));
        assert!(free(vec![tcp(Some("192.0.2.9"), 9090)]).is_err());
        // Its own is no other's, and one that goes away holds nothing.
        assert!(check_free(&held[0], &held).is_ok());
        let leaving = Attachment { state: State::Releasing, ..held[0].clone() };
        assert!(check_free(&row("c3", vec![tcp(None, 8080)]), &[leaving]).is_ok());
    }

    #[test]
    fn a_mapping_without_an_address_is_for_all_that_the_uplink_has() {
        let [one, two] = ["a:eth0", "b:eth0"].map(|id| EndpointId::parse("", id).unwrap());
        let both = [tcp(None, 8080), tcp(Some("192.0.2.1"), 8081)];
        let rest = [tcp(Some("192.0.2.1"), 8080), tcp(None, 9090), tcp(Some("::"), 9091)];
        let wanted = [(&one, &both[..]), (&two, &rest[..])];
        let expanded = expand(wanted.into_iter(), &addresses());
        let ports = |id| -> Vec<String> {
            let node = |p: &PublishedPort| format!("{} {}", p.node.address, p.node.port);
            expanded[id].iter().map(node).collect()
        };
        assert_eq!(ports(&one), ["192.0.2.1 8080", "2001:db8::1 8080", "192.0.2.1 8081"]);
        assert_eq!(ports(&two), ["192.0.2.1 9090", "2001:db8::1 9090", "2001:db8::1 9091"]);
        assert_eq!(expand(wanted.into_iter(), &[]), BTreeMap::new());
    }
}
