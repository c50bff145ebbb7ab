//! The seeds of the fuzzing corpus: each kind of frame, cut and lying ones.

use flowtable::DropReason;
use flowtable::key::mapped;

use super::{Extras, Family, L4, Place, Plan, ipv6_with, resummed, tcp, udp, vxlan, with};

/// One file of the corpus.
#[derive(Debug, Clone)]
pub(crate) struct Seed {
    /// The file's name.
    pub(crate) name: String,
    /// Parsed as an uplink's frame, not a container's.
    pub(crate) wire: bool,
    pub(crate) frame: Vec<u8>,
    /// What parsing makes of it.
    pub(crate) refused: Option<DropReason>,
}

/// Every seed, in a fixed order.
pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, wire: bool, refused: Option<DropReason>, frame: Vec<u8>| {
        seeds.push(Seed { name: name.to_owned(), wire, frame, refused });
    };
    for (name, frame) in valid() {
        add(&format!("valid-{name}"), name.starts_with("wire"), None, frame);
    }
    for (name, frame) in malformed() {
        add(&format!("bad-{name}"), name.starts_with("wire"), Some(DropReason::Malformed), frame);
    }
    let tagged = Plan { vid: Some(100), ..Plan::default() }.frame();
    add("bad-container-tag", false, Some(DropReason::ContainerTag), tagged);
    let zero = vxlan(Family::V4, 0, &tcp());
    add("bad-wire-vxlan-vni-0", true, Some(DropReason::UnknownVni), zero);
    seeds
}

fn valid() -> Vec<(&'static str, Vec<u8>)> {
    let plan = Plan::default;
    let v6 = || Plan { family: Family::V6, ..plan() };
    let arp = |opcode: u16| Plan { family: Family::Arp, ports: [opcode - 1, 0], ..plan() };
    let tagged = || Plan { vid: Some(100), ..plan() };
    let later = Plan { l4: L4::Icmp, place: Place::Later, ..plan() };
    vec![
        ("tcp", tcp()),
        ("udp", udp()),
        ("icmp", Plan { l4: L4::Icmp, ports: [8, 0], ..plan() }.frame()),
        ("gre", Plan { l4: L4::Other, ..plan() }.frame()),
        ("tcp6", v6().frame()),
        ("udp6", Plan { l4: L4::Udp, ..v6() }.frame()),
        ("icmp6", Plan { l4: L4::Icmp, ports: [128, 0], ..v6() }.frame()),
        ("arp-request", arp(1).frame()),
        ("arp-reply", arp(2).frame()),
        ("lldp", Plan { family: Family::Other, ..plan() }.frame()),
        ("padded", Plan { padding: 6, ..plan() }.frame()),
        ("ttl-1", Plan { ttl: 1, ..plan() }.frame()),
        ("options", Plan { extras: Extras::One, ..plan() }.frame()),
        ("options-two", Plan { extras: Extras::Two, l4: L4::Udp, ..plan() }.frame()),
        ("extension", Plan { extras: Extras::One, ..v6() }.frame()),
        ("extensions-two", Plan { extras: Extras::Two, l4: L4::Udp, ..v6() }.frame()),
        ("fragment-first", Plan { place: Place::First, l4: L4::Udp, ..plan() }.frame()),
        ("fragment-later", Plan { place: Place::Later, l4: L4::Udp, ..plan() }.frame()),
        ("fragment-first6", Plan { place: Place::First, ..v6() }.frame()),
        ("fragment-later6", Plan { place: Place::Later, ..v6() }.frame()),
        ("fragment-atomic6", ipv6_with(44, &[17, 0, 0, 0, 0, 0, 0, 1])),
        ("container-vxlan", vxlan(Family::V4, 77, &tcp())),
        ("wire-vlan", tagged().frame()),
        ("wire-vlan-udp6", Plan { l4: L4::Udp, vid: Some(4094), ..v6() }.frame()),
        ("wire-priority-tag", with(tagged().frame(), 14, &[0xe0, 0])),
        ("wire-vxlan", vxlan(Family::V4, 77, &tcp())),
        ("wire-vxlan-over-ipv6", vxlan(Family::V6, 0xff_ffff, &v6().frame())),
        ("wire-vxlan-arp", vxlan(Family::V4, 1, &arp(1).frame())),
        ("wire-vxlan-inner-fragment", vxlan(Family::V4, 1, &later.frame())),
    ]
}

fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let cut = |frame: Vec<u8>, len: usize| frame[..len].to_vec();
    let tunnel = || vxlan(Family::V4, 77, &tcp());
    let tagged = || Plan { vid: Some(100), ..Plan::default() }.frame();
    let arp = Plan { family: Family::Arp, ..Plan::default() }.frame();
    vec![
        ("empty", Vec::new()),
        ("ethernet-cut", cut(tcp(), 13)),
        ("ethernet-only", cut(tcp(), 14)),
        ("ipv4-header-cut", cut(tcp(), 33)),
        ("tcp-header-cut", cut(tcp(), 53)),
        ("ipv6-header-cut", cut(ipv6_with(17, &[]), 53)),
        ("ipv4-version", resummed(with(tcp(), 14, &[0x55]))),
        ("ipv4-header-length-4", resummed(with(tcp(), 14, &[0x44]))),
        ("ipv4-header-length-15", with(tcp(), 14, &[0x4f])),
        ("ipv4-total-length-long", resummed(with(tcp(), 16, &[0xff, 0xff]))),
        ("ipv4-total-length-zero", resummed(with(tcp(), 16, &[0, 0]))),
        ("ipv4-checksum", with(tcp(), 24, &[0, 0])),
        ("tcp-data-offset-15", with(tcp(), 46, &[0xf0])),
        ("tcp-data-offset-0", with(tcp(), 46, &[0])),
        ("tcp-fragment-at-1", resummed(with(tcp(), 20, &[0, 1]))),
        ("udp-length-7", with(udp(), 38, &[0, 7])),
        ("udp-length-long", with(udp(), 38, &[0xff, 0xff])),
        ("fragment-beyond-65535", resummed(with(udp(), 20, &[0x1f, 0xff]))),
        ("ipv6-payload-length-long", with(ipv6_with(17, &[]), 18, &[0xff, 0xff])),
        ("ipv6-extensions-nine", ipv6_with(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(9))),
        ("ipv6-extension-long", ipv6_with(60, &[17, 255, 1, 4, 0, 0, 0, 0])),
        ("ipv6-fragment-twice", ipv6_with(44, &[44, 0, 0, 0, 0, 0, 0, 1].repeat(2))),
        ("arp-hardware", with(arp, 15, &[6])),
        ("wire-tag-cut", cut(tagged(), 16)),
        // Found by the fuzzer: its text was no flow text.
        ("wire-tag-4095", with(tagged(), 14, &[0x0f, 0xff])),
        ("wire-tag-twice", with(tagged(), 16, &[0x81, 0])),
        ("wire-service-tag", with(tagged(), 12, &[0x88, 0xa8])),
        ("wire-vxlan-i-flag", with(tunnel(), 42, &[0])),
        ("wire-vxlan-cut", cut(tunnel(), 45)),
        ("wire-vxlan-no-inner", vxlan(Family::V4, 77, &[])),
        ("wire-vxlan-inner-cut", vxlan(Family::V4, 77, &cut(tcp(), 40))),
        ("wire-vxlan-inner-tag", vxlan(Family::V4, 77, &tagged())),
        ("wire-vxlan-outer-fragment", resummed(with(tunnel(), 20, &[0x20, 0]))),
        ("wire-vxlan-disguised", with(vxlan(Family::V6, 7, &tcp()), 22, &mapped([10, 0, 0, 1]))),
    ]
}
