//! The parser against `etherparse` on valid frames, and against anything at all.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code, though not in test functions")]

mod frames;

use etherparse::{
    Ipv6FragmentHeaderSlice, Ipv6Slice, LinkExtSlice, LinkSlice, NetSlice, SlicedPacket,
    TcpHeaderSlice, UdpHeaderSlice,
};
use flowtable::DropReason;
use flowtable::key::{Decap, FlowKey, Origin, Parsed, ethertype, flag, mapped, parse};
use frames::seeds::seeds;
use frames::{
    Extras, Family, L4, Place, Plan, container, ipv6_with, resummed, tcp, udp, uplink, v6, vxlan,
    with,
};
use proptest::prelude::*;

/// The key of a valid frame, as `etherparse` sees it.
fn oracle(frame: &[u8], origin: Origin) -> FlowKey {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(LinkSlice::Ethernet2(link)) = &packet.link else { panic!("no Ethernet header") };
    let mut key = FlowKey {
        in_port: origin.in_port.get(),
        eth_dst: link.destination(),
        eth_src: link.source(),
        eth_type: link.ether_type().0,
        ..FlowKey::default()
    };
    if let Some(LinkExtSlice::Vlan(tag)) = packet.link_exts.first() {
        key.vid = tag.vlan_identifier().value();
        key.eth_type = tag.ether_type().0;
    }
    let (ttl, payload, later) = match packet.net.as_ref() {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (key.src, key.dst) = (mapped(header.source()), mapped(header.destination()));
            key.flags |= if header.options().is_empty() { 0 } else { flag::IP_OPTIONS };
            let later = header.fragments_offset().value() != 0;
            (header.ttl(), ip.payload(), later)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (key.src, key.dst) = (header.source(), header.destination());
            key.flags |= if ip.extensions().is_empty() { 0 } else { flag::IP_OPTIONS };
            (header.hop_limit(), ip.payload(), is_later(ip))
        }
        Some(NetSlice::Arp(arp)) => {
            key.src = mapped(arp.sender_protocol_addr().try_into().unwrap());
            key.dst = mapped(arp.target_protocol_addr().try_into().unwrap());
            key.flags |= if arp.operation().0 == 1 { 0 } else { flag::ARP_REPLY };
            return key;
        }
        None => return key,
    };
    key.proto = payload.ip_number.0;
    key.flags |= if ttl <= 1 { flag::TTL_LOW } else { 0 };
    if later {
        key.flags |= flag::FRAG_LATER;
        return key;
    }
    key.flags |= if payload.fragmented { flag::FRAG_FIRST } else { 0 };
    (key.src_port, key.dst_port) = match (payload.ip_number.0, key.eth_type) {
        (6, _) => {
            let tcp = TcpHeaderSlice::from_slice(payload.payload).unwrap();
            (tcp.source_port(), tcp.destination_port())
        }
        (17, _) => {
            let udp = UdpHeaderSlice::from_slice(payload.payload).unwrap();
            (udp.source_port(), udp.destination_port())
        }
        (1, ethertype::IPV4) | (58, ethertype::IPV6) => {
            (u16::from(payload.payload[0]), u16::from(payload.payload[1]))
        }
        _ => (0, 0),
    };
    key
}

/// The fragment header is the last of the extension headers that our frames have.
fn is_later(ip: &Ipv6Slice<'_>) -> bool {
    let extensions = ip.extensions().slice();
    let fragment = ip.payload().fragmented.then(|| &extensions[extensions.len() - 8..]);
    fragment.is_some_and(|bytes| {
        let header = Ipv6FragmentHeaderSlice::from_slice(bytes).unwrap();
        header.fragment_offset().value() != 0
    })
}

fn offsets_are_inside(parsed: &Parsed, frame: &[u8]) -> bool {
    let len = frame.len();
    usize::from(parsed.l3) <= len
        && usize::from(parsed.l4) <= len
        && usize::from(parsed.inner) + 14 <= len
        && parsed.l3 >= parsed.inner + 14
        && (parsed.l4 == 0 || parsed.l4 >= parsed.l3 + 20)
}

/// Any valid frame without a tunnel.
fn plans() -> impl Strategy<Value = Plan> {
    let families = prop_oneof![
        5 => Just(Family::V4), 4 => Just(Family::V6), 1 => Just(Family::Arp), 1 => Just(Family::Other)
    ];
    let protocols = prop_oneof![3 => Just(L4::Tcp), 3 => Just(L4::Udp), 2 => Just(L4::Icmp), 1 => Just(L4::Other)];
    let places =
        prop_oneof![4 => Just(Place::Whole), 1 => Just(Place::First), 1 => Just(Place::Later)];
    let extras =
        prop_oneof![3 => Just(Extras::None), 1 => Just(Extras::One), 1 => Just(Extras::Two)];
    let ttl = prop_oneof![1 => Just(0_u8), 1 => Just(1_u8), 4 => 2..=255_u8];
    let vid = proptest::option::weighted(0.3, 1..4095_u16);
    let addresses = any::<[[u8; 4]; 2]>();
    let rest = (addresses, any::<[u16; 2]>(), ttl, vid, 0..40_usize);
    (families, protocols, places, extras, rest).prop_map(|(family, l4, place, extras, rest)| {
        let (addresses, ports, ttl, vid, padding) = rest;
        // Else a plain UDP frame would be a malformed tunnel.
        let ports = if ports[1] == 4789 { [ports[0], 4790] } else { ports };
        // Neighbor discovery has a body of its own: tests/discovery.rs. Types are low bytes here.
        let discovery = matches!(ports[0] & 0xff, 135 | 136);
        let ports = if discovery { [ports[0] & 0xff7f, ports[1]] } else { ports };
        Plan { family, l4, place, extras, addresses, ports, ttl, vid, padding }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_key_is_what_etherparse_sees(plan in plans()) {
        let frame = plan.frame();
        if plan.place == Place::Later && plan.l4 == L4::Udp && plan.vid.is_none() && matches!(plan.family, Family::V4 | Family::V6) {
            // It may be a part of a tunnelled frame.
            prop_assert_eq!(parse(&frame, uplink()), Err(DropReason::Malformed));
            prop_assert_eq!(parse(&frame, container()).unwrap().key, oracle(&frame, container()));
            return Ok(());
        }
        let parsed = parse(&frame, uplink()).unwrap();
        prop_assert_eq!(parsed.key, oracle(&frame, uplink()));
        prop_assert!(offsets_are_inside(&parsed, &frame));
        let from_container = parse(&frame, container());
        if plan.vid.is_some() {
            prop_assert_eq!(from_container, Err(DropReason::ContainerTag));
        } else {
            let key = FlowKey { in_port: container().in_port.get(), ..parsed.key };
            prop_assert_eq!(from_container, Ok(Parsed { key, ..parsed }));
        }
    }

    #[test]
    fn a_tunnelled_key_is_the_inner_frames_with_the_tunnel(
        plan in plans(), v6_outer in any::<bool>(), vni in 1..=0xff_ffff_u32,
    ) {
        let inner = Plan { vid: None, ..plan }.frame();
        let family = if v6_outer { Family::V6 } else { Family::V4 };
        let frame = vxlan(family, vni, &inner);
        let parsed = parse(&frame, uplink()).unwrap();
        let src = [192, 0, 2, 11];
        let tun_src = if v6_outer { v6(src) } else { mapped(src) };
        prop_assert_eq!(parsed.key, FlowKey { vni, tun_src, ..oracle(&inner, uplink()) });
        prop_assert_eq!(usize::from(parsed.inner), frame.len() - inner.len());
        prop_assert_eq!(usize::from(parsed.l3), frame.len() - inner.len() + 14);
        prop_assert!(offsets_are_inside(&parsed, &frame));
        // A container that sends the same bytes is a sender of UDP.
        let parsed = parse(&frame, container()).unwrap();
        prop_assert_eq!(parsed.key, oracle(&frame, container()));
        prop_assert_eq!((parsed.key.vni, parsed.inner, parsed.key.dst_port), (0, 0, 4789));
    }

    #[test]
    fn random_bytes_are_refused_or_have_offsets_inside(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), wire in any::<bool>(),
    ) {
        let origin = if wire { uplink() } else { container() };
        if let Ok(parsed) = parse(&bytes, origin) {
            prop_assert!(offsets_are_inside(&parsed, &bytes));
        }
    }

    #[test]
    fn damaged_frames_are_refused_or_have_offsets_inside(
        plan in plans(), tunnel in any::<bool>(), cut in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut frame = plan.frame();
        if tunnel {
            frame = vxlan(Family::V4, 77, &frame);
        }
        for (at, value) in damage {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        let whole = parse(&frame, uplink());
        if let Ok(parsed) = whole {
            prop_assert!(offsets_are_inside(&parsed, &frame));
            prop_assert!(parsed.key.vid == 0 || parsed.key.vni == 0);
        }
        let cut = &frame[..cut.index(frame.len())];
        for origin in [uplink(), container()] {
            if let Ok(parsed) = parse(cut, origin) {
                prop_assert!(offsets_are_inside(&parsed, cut));
            }
        }
    }

    #[test]
    fn a_valid_frame_cut_before_its_end_is_malformed(
        plan in plans(), cut in any::<prop::sample::Index>(),
    ) {
        let frame = Plan { padding: 0, ..plan }.frame();
        let cut = cut.index(frame.len());
        // Only a payload that no header describes may be shorter.
        prop_assume!(plan.family != Family::Other || cut < 14);
        prop_assert_eq!(parse(&frame[..cut], uplink()), Err(DropReason::Malformed));
    }
}

#[test]
fn every_seed_of_the_corpus_has_the_outcome_that_it_was_made_for() {
    for seed in seeds() {
        let origin = if seed.wire { uplink() } else { container() };
        let outcome = parse(&seed.frame, origin).err();
        assert_eq!(outcome, seed.refused, "{}", seed.name);
    }
}

#[test]
fn tcp_flags_and_offsets_are_those_of_the_inner_packet() {
    let parsed = parse(&tcp(), container()).unwrap();
    assert_eq!((parsed.l3, parsed.l4, parsed.inner, parsed.tcp_flags), (14, 34, 0, 2));
    let parsed = parse(&vxlan(Family::V6, 5, &tcp()), uplink()).unwrap();
    assert_eq!((parsed.l3, parsed.l4, parsed.inner, parsed.tcp_flags), (84, 104, 70, 2));
    assert_eq!(parsed.key.src_ip(), Some("10.1.1.2".parse().unwrap()));
    assert_eq!(parsed.key.tun_src_ip(), Some("2001:db8::c000:20b".parse().unwrap()));
}

#[test]
fn ipv4_lies_are_malformed() {
    let bad = [
        ("version", resummed(with(tcp(), 14, &[0x55]))),
        ("header length", resummed(with(tcp(), 14, &[0x44]))),
        ("total length beyond the frame", resummed(with(tcp(), 16, &[0x01, 0x00]))),
        ("total length within the header", resummed(with(tcp(), 16, &[0x00, 0x13]))),
        ("header checksum", with(tcp(), 24, &[0, 0])),
        ("TCP data offset beyond the packet", with(tcp(), 46, &[0xf0])),
        ("TCP data offset within the header", with(tcp(), 46, &[0x40])),
        ("UDP length beyond the packet", with(udp(), 38, &[0, 33])),
        ("UDP length within the header", with(udp(), 38, &[0, 7])),
        ("TCP fragment at offset 1", resummed(with(tcp(), 20, &[0x00, 0x01]))),
        ("fragment that ends beyond 65535", resummed(with(udp(), 20, &[0x1f, 0xff]))),
    ];
    for (what, frame) in bad {
        assert_eq!(parse(&frame, container()), Err(DropReason::Malformed), "{what}");
    }
}

#[test]
fn a_first_fragment_without_the_whole_tcp_header_is_malformed() {
    let mut frame = resummed(with(tcp(), 16, &[0x00, 20 + 16, 0, 1, 0x20, 0x00]));
    frame.truncate(14 + 20 + 16);
    assert_eq!(parse(&frame, container()), Err(DropReason::Malformed));
}

#[test]
fn a_first_fragment_of_udp_may_be_shorter_than_its_datagram() {
    let first = Plan { l4: L4::Udp, place: Place::First, ..Plan::default() };
    let parsed = parse(&with(first.frame(), 38, &[0x10, 0x00]), container()).unwrap();
    assert_eq!(parsed.key.flags, flag::FRAG_FIRST);
    assert_eq!((parsed.key.dst_port, parsed.l4), (80, 34));
    let later = Plan { l4: L4::Udp, place: Place::Later, ..Plan::default() };
    let parsed = parse(&later.frame(), container()).unwrap();
    assert_eq!(parsed.key.flags, flag::FRAG_LATER);
    assert_eq!((parsed.key.src_port, parsed.key.dst_port, parsed.l4), (0, 0, 0));
}

#[test]
fn extension_headers_are_walked_up_to_eight() {
    let options = [60, 0, 1, 4, 0, 0, 0, 0];
    let last = [17, 0, 1, 4, 0, 0, 0, 0];
    let chain = |count: usize| [options.repeat(count - 1), last.to_vec()].concat();
    let parsed = parse(&ipv6_with(60, &chain(8)), container()).unwrap();
    assert_eq!((parsed.key.proto, parsed.key.dst_port, parsed.l4), (17, 80, 54 + 64));
    assert_eq!(parsed.key.flags, flag::IP_OPTIONS);
    let bad = [
        ("nine headers", ipv6_with(60, &chain(9))),
        ("header beyond the packet", ipv6_with(60, &[17, 9, 0, 0, 0, 0, 0, 0])),
        ("hop-by-hop not first", ipv6_with(60, &[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0])),
        (
            "two fragment headers",
            ipv6_with(44, &[44, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 1]),
        ),
        ("payload length beyond the frame", with(ipv6_with(17, &[]), 18, &[0xff, 0xff])),
        ("version", with(ipv6_with(17, &[]), 14, &[0x40])),
        ("only the start of a header", ipv6_with(58, &[]).split_off(0)[..56].to_vec()),
    ];
    for (what, frame) in bad {
        assert_eq!(parse(&frame, container()), Err(DropReason::Malformed), "{what}");
    }
    // RFC 6946: an atomic fragment is a whole packet.
    let parsed = parse(&ipv6_with(44, &[17, 0, 0, 0, 0, 0, 0, 1]), container()).unwrap();
    assert_eq!((parsed.key.flags, parsed.key.dst_port), (flag::IP_OPTIONS, 80));
}

#[test]
fn tags_are_for_the_wire_only_and_one_at_a_time() {
    let tagged = Plan { vid: Some(100), ..Plan::default() }.frame();
    assert_eq!(parse(&tagged, container()), Err(DropReason::ContainerTag));
    assert_eq!(parse(&tagged, uplink()).unwrap().key.vid, 100);
    let priority = with(tagged.clone(), 14, &[0xe0, 0x00]);
    let parsed = parse(&priority, uplink()).unwrap();
    assert_eq!((parsed.key.vid, parsed.l3, parsed.key.eth_type), (0, 18, ethertype::IPV4));
    for (at, tag) in [(12, [0x88, 0xa8]), (16, [0x81, 0x00]), (16, [0x88, 0xa8])] {
        let frame = with(tagged.clone(), at, &tag);
        assert_eq!(parse(&frame, uplink()), Err(DropReason::Malformed));
        assert_eq!(parse(&frame, container()), Err(DropReason::ContainerTag));
    }
}

#[test]
fn arp_of_other_kinds_is_malformed() {
    let arp = Plan { family: Family::Arp, ..Plan::default() };
    let parsed = parse(&arp.frame(), container()).unwrap();
    assert_eq!((parsed.key.flags, parsed.key.proto), (0, 0));
    assert_eq!(parsed.key.dst_ip(), Some("10.1.1.3".parse().unwrap()));
    for (at, value) in [(15, 6), (16, 0x86), (18, 8), (19, 16)] {
        let frame = with(arp.frame(), at, &[value]);
        assert_eq!(parse(&frame, container()), Err(DropReason::Malformed), "byte {at}");
    }
}

#[test]
fn tunnels_that_lie_are_refused() {
    let good = vxlan(Family::V4, 77, &tcp());
    assert_eq!(parse(&good, uplink()).unwrap().key.vni, 77);
    let tagged = Plan { vid: Some(5), ..Plan::default() }.frame();
    let bad = [
        ("I flag clear", with(good.clone(), 42, &[0xf7])),
        ("inner tag", vxlan(Family::V4, 77, &tagged)),
        ("no inner frame", vxlan(Family::V4, 77, &[])),
        ("inner frame beyond the datagram", with(good.clone(), 38, &[0, 60])),
        ("outer first fragment", resummed(with(good.clone(), 20, &[0x20, 0x00]))),
        ("outer later fragment", resummed(with(good.clone(), 20, &[0x00, 0x03]))),
        (
            "outer IPv4 address in IPv6",
            with(vxlan(Family::V6, 7, &tcp()), 22, &mapped([10, 0, 0, 1])),
        ),
    ];
    for (what, frame) in bad {
        assert_eq!(parse(&frame, uplink()), Err(DropReason::Malformed), "{what}");
    }
    let zero = with(good.clone(), 46, &[0, 0, 0]);
    assert_eq!(parse(&zero, uplink()), Err(DropReason::UnknownVni));
    let reserved = with(with(good.clone(), 42, &[0xff, 1, 2, 3]), 49, &[9]);
    assert_eq!(parse(&reserved, uplink()), parse(&good, uplink()));
    let checksummed = with(good.clone(), 40, &[0xbe, 0xef]);
    assert_eq!(parse(&checksummed, uplink()), parse(&good, uplink()));
}

#[test]
fn a_tagged_frame_is_never_opened_as_a_tunnel() {
    let mut frame = vxlan(Family::V4, 77, &tcp());
    frame.splice(12..12, [0x81, 0x00, 0x00, 0x64]);
    let key = parse(&frame, uplink()).unwrap().key;
    assert_eq!((key.vid, key.vni, key.dst_port, key.src), (100, 0, 4789, mapped([192, 0, 2, 11])));
}

#[test]
fn ipv6_cannot_pass_for_ipv4() {
    let plan = Plan { family: Family::V6, extras: Extras::None, ..Plan::default() };
    let frame = with(plan.frame(), 22, &mapped([10, 1, 1, 2]));
    let key = parse(&frame, container()).unwrap().key;
    assert_eq!(key.src_ip(), Some("::ffff:10.1.1.2".parse().unwrap()));
    assert!(key.src_ip().unwrap().is_ipv6());
}

#[test]
fn an_oversized_buffer_is_too_big() {
    let origin = Origin { decap: Decap::Never, ..container() };
    assert_eq!(parse(&vec![0; 65536], origin), Err(DropReason::TooBig));
}
