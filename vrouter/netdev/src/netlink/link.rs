//! Links: looking them up, making veth pairs, changing and removing them.

use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::Netlink;
use super::error::{Error, Operation};
use crate::namespace::Namespace;

/// A network device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number, unique in its namespace while the device exists; 1 or more.
    pub index: u32,
    /// The name, 1 to 15 bytes.
    pub name: String,
    /// The hardware address; zero where the device has none of six bytes.
    pub mac: [u8; 6],
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Ready to carry packets. The kernel gets there some time after the link and its peer are up
    /// (up to a second), and loses without a trace what is sent before.
    pub running: bool,
    /// Tells a pulled cable at once, where `running` can be a second late.
    pub carrier: Carrier,
    /// The driver's kind ("veth", "bridge"); `None` for physical devices and `lo`.
    pub kind: Option<String>,
    /// Index of the other end of a veth pair, in the peer's namespace.
    pub peer_index: Option<u32>,
    /// This namespace's id for the peer's namespace; `None` when the peer is in this one.
    pub peer_netns_id: Option<i32>,
    /// Index of the bridge, bond or VRF that the link is a port of.
    pub controller: Option<u32>,
    /// What somebody wrote down about the link (`ip link set alias`), at most 255 bytes.
    pub alias: Option<String>,
}

/// Whether something is at the other end of the cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// Something is.
    Present,
    /// Nothing is, or the device is down.
    Absent,
}

/// A veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub struct VethSpec<'a> {
    /// Name of the end in the socket's namespace.
    pub name: &'a str,
    /// Its address; the kernel draws one when `None`.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// The other end's address.
    pub peer_mac: Option<[u8; 6]>,
    /// The other end's MTU in bytes.
    pub peer_mtu: u32,
    /// Where the other end is made; the socket's namespace when `None`.
    pub peer_netns: Option<&'a Namespace>,
}

/// Whether a link resolves addresses by ARP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arp {
    /// It does.
    On,
    /// It does not: `IFF_NOARP`.
    Off,
}

impl Netlink {
    /// The link of that name, if there is one.
    ///
    /// # Errors
    /// [`Error`] for every failure but a missing link.
    pub fn link_by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        let operation = Operation::new("looking up link", name);
        self.link(&operation, 0, Some(LinkAttribute::IfName(name.into())))
    }

    /// The link of that index, if there is one.
    ///
    /// # Errors
    /// [`Error`] for every failure but a missing link.
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        self.link(&Operation::on_link("looking up", index), index, None)
    }

    /// Every link of the namespace.
    ///
    /// # Errors
    /// [`Error`], naming the operation.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        let operation = Operation::new("listing links", "");
        let request = RouteNetlinkMessage::GetLink(message(0, vec![without_statistics()]));
        Ok(self.dump(&operation, &request)?.iter().filter_map(link_in).collect())
    }

    /// Makes a veth pair, both ends in one request, down. Returns the near end.
    ///
    /// # Errors
    /// [`Error::is_existing`] when one of the names is taken.
    pub fn create_veth(&self, spec: &VethSpec<'_>) -> Result<Link, Error> {
        let operation = Operation::new("creating veth", spec.name);
        let mut peer = end_attributes(spec.peer_name, spec.peer_mac, spec.peer_mtu);
        if let Some(namespace) = spec.peer_netns {
            peer.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        }
        let peer = InfoData::Veth(InfoVeth::Peer(message(0, peer)));
        let mut attributes = end_attributes(spec.name, spec.mac, spec.mtu);
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(peer),
        ]));
        let request = RouteNetlinkMessage::NewLink(message(0, attributes));
        self.request(&operation, request, NLM_F_CREATE | NLM_F_EXCL)?;
        self.link_by_name(spec.name)?
            .ok_or(Error::Incomplete { operation, missing: "the link that was made" })
    }

    /// Makes a vxlan device that has no tunnel of its own: each packet's is in its metadata
    /// (`ip link add NAME type vxlan external dstport PORT udp6zerocsumrx`). Packets over IPv6 need no UDP
    /// checksum (RFC 6935). Returns it, down.
    ///
    /// # Errors
    /// [`Error::is_existing`] when the name is taken, or another device has the port.
    pub fn create_external_vxlan(&self, name: &str, udp_port: u16) -> Result<Link, Error> {
        let operation = Operation::new("creating vxlan device", name);
        let own = vec![
            InfoVxlan::CollectMetadata(true),
            InfoVxlan::Port(udp_port),
            InfoVxlan::Learning(false),
            InfoVxlan::UDPZeroCsumRX(true),
        ];
        let attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(own)),
            ]),
        ];
        let request = RouteNetlinkMessage::NewLink(message(0, attributes));
        self.request(&operation, request, NLM_F_CREATE | NLM_F_EXCL)?;
        self.link_by_name(name)?
            .ok_or(Error::Incomplete { operation, missing: "the link that was made" })
    }

    /// Removes a link; a veth's peer goes with it.
    ///
    /// # Errors
    /// [`Error::is_missing`] when there is no such link.
    pub fn delete_link(&self, index: u32) -> Result<(), Error> {
        let operation = Operation::on_link("deleting", index);
        let request = RouteNetlinkMessage::DelLink(message(index, Vec::new()));
        self.request(&operation, request, 0).map(drop)
    }

    /// Sets a link administratively up.
    ///
    /// # Errors
    /// [`Error`], naming the link.
    pub fn set_up(&self, index: u32) -> Result<(), Error> {
        let operation = Operation::on_link("setting up", index);
        self.set_flag(&operation, index, LinkFlags::Up, LinkFlags::Up)
    }

    /// Sets a link administratively down.
    ///
    /// # Errors
    /// [`Error`], naming the link.
    pub fn set_down(&self, index: u32) -> Result<(), Error> {
        let operation = Operation::on_link("setting down", index);
        self.set_flag(&operation, index, LinkFlags::Up, LinkFlags::empty())
    }

    /// Sets a link's MTU in bytes.
    ///
    /// # Errors
    /// [`Error`], naming the link; `EINVAL` outside what the device takes.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        let operation = Operation::on_link("setting the MTU of", index);
        self.set_attribute(&operation, index, LinkAttribute::Mtu(mtu))
    }

    /// Sets a link's hardware address.
    ///
    /// # Errors
    /// [`Error`], naming the link.
    pub fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), Error> {
        let operation = Operation::on_link("setting the MAC address of", index);
        self.set_attribute(&operation, index, LinkAttribute::Address(mac.to_vec()))
    }

    /// Switches ARP on a link.
    ///
    /// # Errors
    /// [`Error`], naming the link.
    pub fn set_arp(&self, index: u32, arp: Arp) -> Result<(), Error> {
        let operation = Operation::on_link("switching ARP of", index);
        let flags = match arp {
            Arp::On => LinkFlags::empty(),
            Arp::Off => LinkFlags::Noarp,
        };
        self.set_flag(&operation, index, LinkFlags::Noarp, flags)
    }

    /// Renames a link.
    ///
    /// # Errors
    /// [`Error::is_existing`] when the name is taken.
    pub fn rename(&self, index: u32, name: &str) -> Result<(), Error> {
        let operation = Operation::new("renaming a link to", name);
        self.set_attribute(&operation, index, LinkAttribute::IfName(name.into()))
    }

    /// Writes something down about a link, 1 to 255 bytes.
    ///
    /// # Errors
    /// [`Error`], naming the link; `EINVAL` for text that is longer.
    pub fn set_alias(&self, index: u32, alias: &str) -> Result<(), Error> {
        let operation = Operation::on_link("setting the alias of", index);
        self.set_attribute(&operation, index, LinkAttribute::IfAlias(alias.into()))
    }

    /// This namespace's id for another namespace, as links name it; `None` when it has none, which is
    /// so for a namespace that no link leads to.
    ///
    /// # Errors
    /// [`Error`], naming the operation.
    pub fn namespace_id(&self, namespace: &Namespace) -> Result<Option<i32>, Error> {
        let operation = Operation::new("asking for the id of a namespace", "");
        let mut message = NsidMessage::default();
        let descriptor = namespace.as_fd().as_raw_fd().unsigned_abs();
        message.attributes.push(NsidAttribute::Fd(descriptor));
        let answer = self.request(&operation, RouteNetlinkMessage::GetNsId(message), 0)?;
        let ids = answer.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(message) => Some(&message.attributes),
            _ => None,
        });
        let id = |attribute: &NsidAttribute| match attribute {
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        };
        Ok(ids.flatten().find_map(id))
    }

    /// Moves a link to another namespace, where it arrives down and without addresses.
    ///
    /// # Errors
    /// [`Error::is_existing`] when its name is taken there.
    pub fn set_netns(&self, index: u32, namespace: &Namespace) -> Result<(), Error> {
        let operation = Operation::on_link("moving to another namespace", index);
        let attribute = LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd());
        self.set_attribute(&operation, index, attribute)
    }

    fn link(
        &self,
        operation: &Operation,
        index: u32,
        attribute: Option<LinkAttribute>,
    ) -> Result<Option<Link>, Error> {
        let attributes = attribute.into_iter().chain([without_statistics()]).collect();
        let request = RouteNetlinkMessage::GetLink(message(index, attributes));
        match self.request(operation, request, 0) {
            Ok(answer) => Ok(answer.iter().find_map(link_in)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set_flag(
        &self,
        operation: &Operation,
        index: u32,
        change_mask: LinkFlags,
        flags: LinkFlags,
    ) -> Result<(), Error> {
        let mut change = message(index, Vec::new());
        change.header.flags = flags;
        change.header.change_mask = change_mask;
        self.request(operation, RouteNetlinkMessage::SetLink(change), 0).map(drop)
    }

    fn set_attribute(
        &self,
        operation: &Operation,
        index: u32,
        attribute: LinkAttribute,
    ) -> Result<(), Error> {
        let change = RouteNetlinkMessage::SetLink(message(index, vec![attribute]));
        self.request(operation, change, 0).map(drop)
    }
}

/// The link that a message describes.
pub(crate) fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Running),
        carrier: if message.header.flags.contains(LinkFlags::LowerUp) {
            Carrier::Present
        } else {
            Carrier::Absent
        },
        kind: None,
        peer_index: None,
        peer_netns_id: None,
        controller: None,
        alias: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::Link(peer) => link.peer_index = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns_id = Some(*id),
            LinkAttribute::Controller(controller) => link.controller = Some(*controller),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(infos) => link.kind = infos.iter().find_map(kind_in),
            _ => {}
        }
    }
    link
}

fn kind_in(info: &LinkInfo) -> Option<String> {
    if let LinkInfo::Kind(kind) = info { Some(kind.to_string()) } else { None }
}

fn link_in(answer: &RouteNetlinkMessage) -> Option<Link> {
    if let RouteNetlinkMessage::NewLink(message) = answer { Some(link_of(message)) } else { None }
}

fn message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn end_attributes(name: &str, mac: Option<[u8; 6]>, mtu: u32) -> Vec<LinkAttribute> {
    let mut attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Mtu(mtu)];
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes
}

/// Statistics make most of a link's description and nobody here reads them.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}
