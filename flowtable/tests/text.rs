//! The text form: what it prints it reads back, and what it reads it can send.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code, though not in test functions")]

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use flowtable::DropReason;
use flowtable::ids::{Bd, Group, Mac, PortId, Vrf};
use flowtable::key::{Decap, FlowKey, Origin, flag, parse};
use flowtable::text::{CtAssume, FlowSpec, FlowTextError, MaskedKey, PortRef, TunnelSpec};
use proptest::prelude::*;
use zerocopy::IntoBytes as _;

fn uplink() -> Origin {
    Origin { in_port: PortId::MIN, decap: Decap::Vxlan }
}

fn read(text: &str) -> FlowSpec {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// The key with the TCP flags that the text looks at, as if rules looked at the same.
fn key_of(text: &str) -> FlowKey {
    let spec = read(text);
    let parsed = parse(&spec.frame().unwrap(), uplink());
    let parsed = parsed.unwrap_or_else(|e| panic!("{text}: {e}"));
    let looked_at = spec.tcp_flags.map_or(0, |flags| flags.mask);
    FlowKey { tcp_flags: parsed.tcp_flags & looked_at, ..parsed.key }
}

/// `+syn+ack` for the bits set.
fn set_flags(bits: u8) -> String {
    let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
    let set = names.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
    set.map(|(_, name)| format!("+{name}")).collect::<Vec<_>>().concat()
}

fn macs() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

/// Texts in which every field that a key holds is said.
fn texts() -> impl Strategy<Value = String> {
    let v4 = any::<[u8; 4]>().prop_map(|ip| IpAddr::from(ip).to_string());
    let v6 = any::<[u8; 16]>().prop_map(|ip| IpAddr::from(ip).to_string());
    let packet = prop_oneof![
        (v4, any::<[u16; 2]>(), 0..6_u8).prop_map(|(ip, ports, kind)| {
            let dst = "10.9.8.7";
            if kind == 5 {
                return format!("arp,nw_src={ip},nw_dst={dst},arp_op={}", ports[0] % 2 + 1);
            }
            format!("{}nw_src={ip},nw_dst={dst}{}", words(kind, ""), tail(kind, ports))
        }),
        (v6, any::<[u16; 2]>(), 0..5_u8).prop_map(|(ip, ports, kind)| {
            format!("{}ipv6_src={ip},ipv6_dst=fd00::7{}", words(kind, "6"), tail(kind, ports))
        }),
        Just("dl_type=0x88cc".to_owned()),
    ];
    let ends = prop_oneof![
        2 => Just(String::new()),
        1 => (1..4095_u16).prop_map(|vid| format!("vlan_vid={vid},")),
        1 => (1..=0xff_ffff_u32).prop_map(|id| format!("tun_id={id},tun_src=198.51.100.9,")),
        1 => (1..=0xff_ffff_u32).prop_map(|id| format!("tun_id={id},tun_src=2001:db8::9,")),
    ];
    (macs(), macs(), ends, packet).prop_map(|(src, dst, ends, packet)| {
        format!("in_port=1,{ends}eth_src={src},eth_dst={dst},{packet}")
    })
}

fn words(kind: u8, six: &str) -> String {
    match kind {
        0 | 3 => format!("tcp{six},"),
        1 => format!("udp{six},"),
        2 => format!("icmp{six},"),
        _ => format!("ip{},nw_proto=47,", if six.is_empty() { "" } else { "v6" }),
    }
}

fn tail(kind: u8, ports: [u16; 2]) -> String {
    // 4789 in an untagged frame of an uplink would be a tunnel.
    let [src, dst] = [ports[0], if ports[1] == 4789 { 1 } else { ports[1] }];
    match kind {
        0 if src as u8 == 0 => format!(",tp_src={src},tp_dst={dst},nw_frag=first"),
        0 => {
            let flags = set_flags(src as u8);
            format!(",tp_src={src},tp_dst={dst},tcp_flags={flags},nw_frag=first")
        }
        1 => format!(",tp_src={src},tp_dst={dst},nw_ttl=1"),
        2 if src % 2 == 0 => {
            let echo = [0, 8, 128, 129][usize::from(src / 2 % 4)];
            format!(",icmp_type={echo},icmp_code={},icmp_id={src}", dst % 256)
        }
        2 => {
            let kind = [3, 11, 255][usize::from(src % 3)];
            format!(",icmp_type={kind},icmp_code={}", dst % 256)
        }
        3 => ",nw_frag=later".to_owned(),
        _ => String::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn text_to_frame_to_key_to_text_is_the_same_text(text in texts()) {
        let key = key_of(&text);
        prop_assert_eq!(key.to_string(), text.clone());
        prop_assert!(read(&text).matches(&key));
    }

    #[test]
    fn a_changed_key_no_longer_matches(text in texts(), other in texts()) {
        let (key, other_key) = (key_of(&text), key_of(&other));
        prop_assert_eq!(read(&text).matches(&other_key), text == other);
        prop_assert!(FlowSpec::default().matches(&key));
    }

    /// What the masked text describes are the keys that agree in the bits looked at.
    #[test]
    fn a_masked_text_describes_the_keys_equal_under_the_mask(
        text in texts(), other in texts(), mask in masks(), change in changes(),
    ) {
        let key = key_of(&text);
        let masked = MaskedKey { key: &key, mask: &mask }.to_string();
        let spec = read(&masked);
        for other in [key, key_of(&other), changed(&key, change)] {
            let equal = under(&other, &mask) == under(&key, &mask);
            prop_assert_eq!(spec.matches(&other), equal, "{} of {}: {}", masked, text, other);
        }
    }

    #[test]
    fn frames_pass_another_parser_with_right_checksums(text in texts()) {
        let spec = FlowSpec { tunnel: TunnelSpec::default(), ..read(&text) };
        let frame = spec.frame().unwrap();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        check_sums(&packet);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z_0-9=,./:x+-]{0,40}") {
        if let Ok(spec) = text.parse::<FlowSpec>() {
            prop_assert!(spec.frame().map_or(true, |frame| frame.len() > 14));
        }
    }
}

/// Masks of whole fields and prefixes; the type is looked at, and fragmentation with the ports.
fn masks() -> impl Strategy<Value = FlowKey> {
    let prefix = || prop_oneof![Just(0_u8), 96..=128_u8, Just(128)];
    (any::<u16>(), prefix(), prefix(), any::<[u8; 2]>()).prop_map(|(on, src, dst, bits)| {
        let word = |bit: u16| if on & (1 << bit) != 0 { u16::MAX } else { 0 };
        let bytes = |len: u8| (!u128::MAX.checked_shr(len.into()).unwrap_or(0)).to_be_bytes();
        let frag = flag::FRAG_FIRST | flag::FRAG_LATER;
        FlowKey {
            in_port: word(0),
            vid: word(1),
            eth_type: u16::MAX,
            proto: u8::MAX,
            flags: frag | bits[0],
            eth_dst: [word(2) as u8; 6],
            eth_src: [word(3) as u8; 6],
            vni: if word(4) == 0 { 0 } else { 0xff_ffff },
            tun_src: [(word(4) & word(5)) as u8; 16],
            src: bytes(src),
            dst: bytes(dst),
            src_port: word(6),
            dst_port: word(7),
            icmp_id: word(8),
            tcp_flags: bits[1],
            zero: 0,
        }
    })
}

/// A field, and the bits of it that are flipped.
fn changes() -> impl Strategy<Value = (u8, u32)> {
    (0..10_u8, 0..32_u32).prop_map(|(field, bit)| (field, 1 << bit))
}

/// Another key of the same type.
fn changed(key: &FlowKey, (field, bits): (u8, u32)) -> FlowKey {
    let mut new = *key;
    let is_ip = matches!(key.eth_type, 0x0800 | 0x86dd);
    let address = |bytes: [u8; 16]| (u128::from_be_bytes(bytes) ^ u128::from(bits)).to_be_bytes();
    match field {
        0 => new.in_port ^= bits as u16,
        1 => new.vid ^= bits as u16,
        2 => new.eth_src[5] ^= bits as u8,
        3 => new.eth_dst[0] ^= bits as u8,
        4 if is_ip => new.src = address(key.src),
        5 if is_ip => new.dst = address(key.dst),
        6 if is_ip && matches!(key.proto, 6 | 17) => new.src_port ^= bits as u16,
        7 if is_ip && matches!(key.proto, 6 | 17) => new.dst_port ^= bits as u16,
        8 if is_ip && key.proto == 6 => new.tcp_flags ^= bits as u8,
        9 if is_ip => new.flags ^= (flag::TTL_LOW | flag::IP_OPTIONS) & bits as u8,
        _ => {}
    }
    if key.flags & flag::FRAG_LATER != 0 {
        (new.src_port, new.dst_port, new.tcp_flags) = (0, 0, 0);
    }
    new
}

fn under(key: &FlowKey, mask: &FlowKey) -> Vec<u8> {
    key.as_bytes().iter().zip(mask.as_bytes()).map(|(key, mask)| key & mask).collect()
}

fn check_sums(packet: &SlicedPacket<'_>) {
    match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(ip)), transport) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    let sum = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload());
                    assert_eq!(sum, Ok(tcp.checksum()));
                }
                Some(TransportSlice::Udp(udp)) => {
                    let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
                    assert_eq!(sum, Ok(udp.checksum()));
                }
                Some(TransportSlice::Icmpv4(icmp)) => {
                    assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
                }
                Some(TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_)) | None => {}
            }
        }
        (Some(NetSlice::Ipv6(ip)), transport) => {
            let header = ip.header().to_header();
            match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    let sum = tcp.to_header().calc_checksum_ipv6(&header, tcp.payload());
                    assert_eq!(sum, Ok(tcp.checksum()));
                }
                Some(TransportSlice::Udp(udp)) => {
                    let sum = udp.to_header().calc_checksum_ipv6(&header, udp.payload());
                    assert_eq!(sum, Ok(udp.checksum()));
                }
                Some(TransportSlice::Icmpv6(icmp)) => {
                    assert!(icmp.is_checksum_valid(header.source, header.destination));
                }
                Some(TransportSlice::Icmpv4(_) | TransportSlice::Igmp(_)) | None => {}
            }
        }
        (Some(NetSlice::Arp(_)) | None, _) => {}
    }
}

#[test]
fn what_is_left_open_becomes_a_syn_to_the_gateways_mac() {
    let frame = FlowSpec::default().frame().unwrap();
    let parsed = parse(&frame, Origin { decap: Decap::Never, ..uplink() }).unwrap();
    assert_eq!(
        parsed.key.to_string(),
        "in_port=1,eth_src=02:00:00:00:00:01,eth_dst=00:00:11:11:11:11,tcp,nw_src=192.0.2.1,\
         nw_dst=192.0.2.2,tp_src=40000,tp_dst=80"
    );
    assert_eq!((parsed.tcp_flags, frame[22]), (2, 64));
    let key = key_of("icmp6");
    assert_eq!((key.src_port, key.dst_port), (128, 0));
    assert_eq!(key_of("arp,nw_dst=10.1.1.1").eth_dst(), Mac::BROADCAST);
    assert_eq!(key_of("udp,nw_ttl=0").to_string().split(',').next_back(), Some("nw_ttl=1"));
}

/// RFC 768: a checksum of zero on the wire means that there is none.
#[test]
fn a_udp_checksum_is_never_sent_as_zero() {
    for port in 0..=u16::MAX {
        let spec = FlowSpec { src_port: Some(port), ..read("udp") };
        assert_ne!(spec.frame().unwrap()[40..42], [0, 0], "port {port}");
    }
}

#[test]
fn fields_may_be_left_out_masked_and_spelled_as_ovs_does() {
    let key = key_of("in_port=1,tcp,nw_src=10.1.1.2,nw_dst=10.2.0.9,tp_dst=443");
    let matching = [
        "",
        "ip",
        " tcp , tp_dst=443 ",
        "nw_src=10.1.1.0/24",
        "ip,nw_dst=10.2.0.0/16,nw_proto=6",
        "dl_type=0x0800,nw_frag=no,nw_ttl=63",
        "eth_dst=00:00:11:11:11:11",
        "dl_dst=00:00:11:11:11:11,vlan_vid=0,tun_id=0",
        "in_port=1",
    ];
    for text in matching {
        assert!(read(text).matches(&key), "{text}");
    }
    let other = [
        "udp",
        "ipv6",
        "arp",
        "tcp,tp_dst=444",
        "nw_src=10.1.2.0/24",
        "nw_ttl=1",
        "nw_frag=later",
        "vlan_vid=5",
        "tun_id=5",
        "in_port=2",
        "in_port=eth0",
        "tun_src=10.0.0.0/8",
        "icmp",
        "arp_op=1",
        "ipv6_src=::/0",
    ];
    for text in other {
        assert!(!read(text).matches(&key), "{text}");
    }
}

#[test]
fn fields_of_the_tables_are_kept_for_the_caller() {
    let spec = read("in_port=web0,vrf=7,bd=0x10,src_group=3,dst_group=0");
    assert_eq!(spec.in_port, Some(PortRef::Name("web0".to_owned())));
    assert_eq!(spec.tenant.vrf, Some(Vrf::new(7).unwrap()));
    assert_eq!(spec.tenant.bd, Some(Bd::new(16).unwrap()));
    assert_eq!(spec.tenant.src_group, Some(Group::new(3).unwrap()));
    assert_eq!(spec.tenant.dst_group, Some(Group::NONE));
    assert_eq!(read("in_port=12").in_port, Some(PortRef::Id(PortId::new(12).unwrap())));
}

#[test]
fn a_masked_key_prints_only_what_was_looked_at() {
    let key = key_of(
        "in_port=1,tcp,nw_src=10.1.1.2,nw_dst=10.2.0.9,tp_src=1025,tp_dst=443,tcp_flags=+syn-ack",
    );
    let text = |mask: FlowKey| MaskedKey { key: &key, mask: &mask }.to_string();
    let v4 = |mask: [u8; 4]| flowtable::key::mapped(mask);
    assert_eq!(text(FlowKey::default()), "");
    let typed = FlowKey { eth_type: 0xffff, proto: 0xff, ..FlowKey::default() };
    assert_eq!(text(typed), "tcp");
    let dst = v4([0xff, 0xff, 0, 0]);
    assert_eq!(
        text(FlowKey { dst, tcp_flags: 0x12, ..typed }),
        "tcp,nw_dst=10.2.0.0/16,tcp_flags=+syn-ack"
    );
    let src = v4([0xff, 0, 0xff, 0]);
    let odd = FlowKey { src, src_port: 0xfc00, dst_port: 0xffff, ..typed };
    assert_eq!(text(odd), "tcp,nw_src=10.0.1.0/255.0.255.0,tp_src=0x400/0xfc00,tp_dst=443");
    let untunnelled =
        FlowKey { in_port: 0xffff, vid: 0xffff, vni: 0xffff_ffff, ..FlowKey::default() };
    let untunnelled = FlowKey { eth_src: [1, 0, 0, 0, 0, 0], ..untunnelled };
    assert_eq!(
        text(untunnelled),
        "in_port=1,tun_id=0,vlan_vid=0,eth_src=00:00:00:00:00:00/01:00:00:00:00:00"
    );
    let flags = |flags| text(FlowKey { flags, ..typed });
    assert_eq!(flags(flag::FRAG_FIRST | flag::FRAG_LATER), "tcp,nw_frag=no");
    assert_eq!(flags(flag::FRAG_LATER | flag::ARP_REPLY), "tcp,nw_frag=not_later");
    assert_eq!(flags(flag::FRAG_FIRST | flag::TTL_LOW), "tcp,flags=-frag_first-ttl_low");
    let ip = FlowKey { eth_type: 0xffff, proto: 0x0f, ..FlowKey::default() };
    assert_eq!(text(ip), "ip,nw_proto=0x6/0xf");
    let unreachable = key_of("icmp,icmp_type=3");
    let mask = FlowKey { icmp_id: 0xffff, ..typed };
    assert_eq!(MaskedKey { key: &unreachable, mask: &mask }.to_string(), "icmp,icmp_id=0");
    let arp = key_of("arp,arp_op=2,nw_dst=10.1.1.1");
    let mask = FlowKey { flags: 0xff, dst: [0xff; 16], eth_type: 0xffff, ..FlowKey::default() };
    let printed = MaskedKey { key: &arp, mask: &mask }.to_string();
    assert_eq!(printed, "arp,nw_dst=10.1.1.1,arp_op=2,flags=-foreign_mac");
}

#[test]
fn a_connection_state_may_be_assumed() {
    let states = [
        ("+trk+new", CtAssume::New),
        ("+new-rpl-inv", CtAssume::New),
        ("+est", CtAssume::Established),
        ("+trk+est-rpl", CtAssume::Established),
        ("+rpl", CtAssume::Reply),
        ("+est+rpl+trk", CtAssume::Reply),
        ("+rel", CtAssume::Related),
        ("+rel+rpl-new", CtAssume::Related),
    ];
    for (text, state) in states {
        let spec = read(&format!("icmp,ct_state={text}"));
        assert_eq!(spec.ct_state, Some(state), "{text}");
        assert_eq!(read(&format!("tcp,ct_state={state}")).ct_state, Some(state));
        assert!(spec.matches(&key_of("icmp")), "{text}");
    }
}

#[test]
fn frames_have_the_flags_and_the_id_asked_for() {
    let flags = |text: &str| parse(&read(text).frame().unwrap(), uplink()).unwrap().tcp_flags;
    assert_eq!(flags("tcp"), 0x02);
    assert_eq!(flags("tcp,tcp_flags=+ack"), 0x10);
    assert_eq!(flags("tcp6,tcp_flags=+syn+ack-rst"), 0x12);
    assert_eq!(flags("tcp,tcp_flags=-ack"), 0x02);
    assert_eq!(flags("tcp,tcp_flags=-syn"), 0);
    assert_eq!(flags("tcp,tcp_flags=0x014"), 0x14);
    assert_eq!(key_of("icmp").icmp_id, 1);
    assert_eq!(key_of("icmp6,icmp_id=0xbeef").icmp_id, 0xbeef);
    let error = read("flags=+ip_options").frame().unwrap_err();
    assert!(error.to_string().starts_with("flags: a frame needs nw_frag"), "{error}");
}

#[test]
fn neighbor_discovery_is_about_its_target() {
    let solicits = "in_port=1,eth_src=02:00:00:00:00:01,eth_dst=33:33:ff:00:00:09,icmp6,\
                    ipv6_src=2001:db8::1,nd_target=2001:db8::9,icmp_type=135,icmp_code=0";
    let advertises = "in_port=1,eth_src=02:00:00:00:00:01,eth_dst=02:00:00:00:00:02,icmp6,\
                      nd_target=2001:db8::1,ipv6_dst=2001:db8::9,icmp_type=136,icmp_code=0";
    for text in [solicits, advertises] {
        let key = key_of(text);
        assert_eq!(key.to_string(), text);
        assert!(read(text).matches(&key));
        assert!(!read("icmp6,icmp_type=135,nd_target=2001:db8::8").matches(&key));
        let mask = FlowKey {
            eth_type: 0xffff,
            proto: 0xff,
            src: [0xff; 16],
            dst: [0xff; 16],
            src_port: 0xffff,
            flags: flag::FOREIGN_MAC,
            ..FlowKey::default()
        };
        let masked = MaskedKey { key: &key, mask: &mask }.to_string();
        assert!(text.contains(masked.split(",icmp_type").next().unwrap()), "{masked}");
        assert!(masked.ends_with(",flags=-foreign_mac"), "{masked}");
    }
}

#[test]
fn errors_name_the_field_and_what_it_accepts() {
    let errors = [
        ("icmp6,nd_target=::1", "nd_target: only with icmp6 and icmp_type=135 or icmp_type=136"),
        ("icmp6,icmp_type=135,nd_target=1.2.3.4", "nd_target: \"1.2.3.4\""),
        ("icmp6,icmp_type=135,nd_target=::1,ipv6_dst=::2", "nd_target: contradicts"),
        ("nw_scr=1.2.3.4", "\"nw_scr\" is not a flow field; fields are in_port, eth_src"),
        ("ct_state=+est+new", "ct_state: \"+est+new\" is not accepted; write +trk+new, +trk+est"),
        ("ct_state=+new-new", "ct_state: \"+new-new\""),
        ("ct_state=-trk+new", "ct_state: \"-trk+new\""),
        ("ct_state=-est+rpl", "ct_state: \"-est+rpl\""),
        ("ct_state=+trk", "ct_state: \"+trk\""),
        ("ct_state=+inv", "ct_state: \"+inv\""),
        ("ct_state=new", "ct_state: \"new\""),
        ("arp,ct_state=+new", "ct_state: only with ip or ipv6"),
        ("tcp,tcp_flags=+sin", "tcp_flags: \"+sin\" is not accepted; write flags like +syn-ack"),
        ("tcp,tcp_flags=+syn-syn", "tcp_flags: \"+syn-syn\""),
        ("tcp,tcp_flags=0x10/0x02", "tcp_flags: \"0x10/0x02\""),
        ("tcp,tcp_flags=0x100", "tcp_flags: \"0x100\""),
        ("tcp,tcp_flags=", "tcp_flags: \"\""),
        ("udp,tcp_flags=+syn", "tcp_flags: only with tcp or tcp6"),
        ("tcp,tcp_flags=+syn,tcp_flags=-ack", "tcp_flags: contradicts"),
        ("tcp,icmp_id=1", "icmp_id: only with an echo request or reply"),
        ("icmp,icmp_type=3,icmp_id=1", "icmp_id: only with an echo request or reply"),
        ("icmp,icmp_id=65536", "icmp_id: \"65536\""),
        ("tcp,tp_dst=70000", "tp_dst: \"70000\" is not accepted; write a number in 0..=65535"),
        ("in_port=4095", "in_port: port 4095 is not in 1..=4094"),
        ("in_port", "in_port: \"\" is not accepted; write a port's id in 1..=4094, or its name"),
        ("eth_src=1", "eth_src: \"1\" is not accepted; write a MAC address like"),
        ("nw_src=10.1.1.0/33", "nw_src: \"10.1.1.0/33\" is not accepted; write an IPv4 address"),
        ("nw_src=::1", "nw_src: \"::1\" is not accepted; write an IPv4 address"),
        ("tcp=1", "tcp: \"1\" is not accepted; write the word alone"),
        ("tcp,udp", "udp: contradicts what the flow says before it"),
        ("ip,ipv6_src=::1", "ipv6_src: only with ipv6"),
        ("tcp6,nw_src=1.2.3.4", "nw_src: only with ip or arp"),
        ("tp_dst=80", "tp_dst: only with tcp, udp, tcp6 or udp6"),
        ("tcp,icmp_type=8", "icmp_type: only with icmp or icmp6"),
        ("tcp,tp_dst=80,nw_frag=later", "tp_dst: only with tcp, udp"),
        ("arp,nw_ttl=3", "nw_ttl: only with ip or ipv6"),
        ("ip,arp_op=1", "arp_op: only with arp"),
        ("vlan_vid=5,tun_id=5", "vlan_vid: contradicts"),
        ("dl_type=0x8100", "dl_type: \"0x8100\" is not accepted"),
        ("nw_frag=yes", "nw_frag: \"yes\" is not accepted; write no, first, later or not_later"),
        ("vrf=16777216", "vrf: vrf 16777216 is not in 0..=16777215"),
    ];
    for (text, want) in errors {
        let error = text.parse::<FlowSpec>().unwrap_err().to_string();
        assert!(error.starts_with(want), "{text}: {error}");
    }
}

#[test]
fn a_block_or_an_extension_header_makes_no_frame() {
    let error = read("nw_src=10.1.1.0/24").frame().unwrap_err();
    let needs = "one IPv4 address";
    assert_eq!(error, FlowTextError::NoFrame { field: "nw_src", needs });
    let error = read("ipv6,nw_proto=44").frame().unwrap_err();
    assert!(error.to_string().starts_with("nw_proto: a frame needs a protocol"));
}

#[test]
fn a_container_sending_the_built_tunnel_frame_is_not_a_tunnel() {
    let frame = read("tun_id=5,tcp").frame().unwrap();
    let key = parse(&frame, Origin { decap: Decap::Never, ..uplink() }).unwrap().key;
    assert_eq!((key.vni, key.dst_port), (0, 4789));
    let tagged = read("vlan_vid=5").frame().unwrap();
    let refused = parse(&tagged, Origin { decap: Decap::Never, ..uplink() });
    assert_eq!(refused.err(), Some(DropReason::ContainerTag));
}
