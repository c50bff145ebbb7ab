//! Neighbor discovery (RFC 4861): what is read of a message, and which ones nobody may believe.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::net::Ipv6Addr;

use flowtable::DropReason;
use flowtable::ids::PortId;
use flowtable::key::{Decap, FlowKey, Neighbor, Origin, flag, parse};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A message as it is on the wire, to be changed in one place.
#[derive(Debug, Clone)]
struct Message {
    kind: u8,
    code: u8,
    status: u8,
    hop_limit: u8,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    target: Ipv6Addr,
    options: Vec<u8>,
    /// Between the IPv6 header and the message: its type and its bytes.
    extension: Option<(u8, [u8; 8])>,
}

impl Message {
    fn solicitation() -> Self {
        Self {
            kind: SOLICITATION,
            code: 0,
            status: 0,
            hop_limit: 255,
            src: ip("2001:db8::1"),
            dst: ip("ff02::1:ff00:9"),
            target: ip("2001:db8::9"),
            options: link_layer(1, MAC),
            extension: None,
        }
    }

    fn advertisement() -> Self {
        Self {
            kind: ADVERTISEMENT,
            status: 0x60,
            dst: ip("2001:db8::9"),
            target: ip("2001:db8::1"),
            options: link_layer(2, MAC),
            ..Self::solicitation()
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut body = vec![self.kind, self.code, 0, 0, self.status, 0, 0, 0];
        body.extend(self.target.octets());
        body.extend(&self.options);
        let mut next_header = 58;
        if let Some((kind, bytes)) = self.extension {
            body.splice(0..0, bytes);
            next_header = kind;
        }
        let mut frame = vec![0x33, 0x33, 0xff, 0, 0, 9];
        frame.extend(MAC);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((body.len() as u16).to_be_bytes());
        frame.extend([next_header, self.hop_limit]);
        frame.extend(self.src.octets());
        frame.extend(self.dst.octets());
        frame.extend(body);
        frame
    }

    fn key(&self) -> Result<FlowKey, DropReason> {
        let origin = Origin { in_port: PortId::MIN, decap: Decap::Never };
        parse(&self.frame(), origin).map(|parsed| parsed.key)
    }
}

fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

fn refused(change: impl Fn(&mut Message)) {
    for message in [Message::solicitation(), Message::advertisement()] {
        let mut changed = message;
        change(&mut changed);
        assert_eq!(changed.key().err(), Some(DropReason::Malformed), "{changed:?}");
    }
}

#[test]
fn a_solicitation_asks_for_its_target() {
    let key = Message::solicitation().key().unwrap();
    assert_eq!(key.neighbor(), Some(Neighbor::Solicitation));
    assert_eq!(
        (key.src_ip(), key.dst_ip()),
        (Some(ip("2001:db8::1").into()), Some(ip("2001:db8::9").into()))
    );
    assert_eq!((key.src_port, key.dst_port, key.flags), (135, 0, 0));
}

#[test]
fn an_advertisement_speaks_for_its_target() {
    // Also when it is sent from the link-local address.
    let message = Message { src: ip("fe80::1"), ..Message::advertisement() };
    let key = message.key().unwrap();
    assert_eq!(key.neighbor(), Some(Neighbor::Advertisement));
    assert_eq!(
        (key.src_ip(), key.dst_ip()),
        (Some(ip("2001:db8::1").into()), Some(ip("2001:db8::9").into()))
    );
}

#[test]
fn another_hardware_address_in_the_option_is_noted() {
    let foreign = [2, 0, 0, 0, 0, 2];
    let solicits = Message { options: link_layer(1, foreign), ..Message::solicitation() };
    let advertises = Message { options: link_layer(2, foreign), ..Message::advertisement() };
    for message in [solicits, advertises] {
        assert_eq!(message.key().unwrap().flags, flag::FOREIGN_MAC);
    }
    // The option of the other message means nothing here (RFC 4861, section 4.3).
    let other = Message { options: link_layer(2, foreign), ..Message::solicitation() };
    assert_eq!(other.key().unwrap().flags, 0);
}

#[test]
fn who_has_no_address_yet_asks_the_solicited_node_without_an_option() {
    let probe =
        Message { src: Ipv6Addr::UNSPECIFIED, options: Vec::new(), ..Message::solicitation() };
    assert_eq!(probe.key().unwrap().src_ip(), Some(Ipv6Addr::UNSPECIFIED.into()));
    let told = Message { options: link_layer(1, MAC), ..probe.clone() };
    let unicast = Message { dst: probe.target, ..probe.clone() };
    let speaks = Message { src: Ipv6Addr::UNSPECIFIED, ..Message::advertisement() };
    for message in [told, unicast, speaks] {
        // What an advertisement is sent from does not matter, what it speaks for does.
        assert_eq!(message.key().err(), Some(DropReason::Malformed), "{message:?}");
    }
}

#[test]
fn what_a_router_may_have_let_pass_is_refused() {
    refused(|message| message.hop_limit = 254);
    refused(|message| message.code = 1);
    refused(|message| message.target = ip("ff02::1"));
}

#[test]
fn fragments_and_extension_headers_hide_nothing() {
    // RFC 6980, section 5.
    refused(|message| message.extension = Some((44, [58, 0, 0, 1, 0, 0, 0, 1])));
    refused(|message| message.extension = Some((60, [58, 0, 1, 4, 0, 0, 0, 0])));
}

#[test]
fn an_advertisement_to_all_answers_nobody() {
    let to_all = Message { dst: ip("ff02::1"), ..Message::advertisement() };
    assert_eq!(to_all.key().err(), Some(DropReason::Malformed));
    let unasked = Message { status: 0x20, ..to_all };
    assert_eq!(unasked.key().unwrap().neighbor(), Some(Neighbor::Advertisement));
}

#[test]
fn options_have_a_length_and_end_with_the_message() {
    refused(|message| message.options = vec![1, 0, 2, 0, 0, 0, 0, 1]);
    refused(|message| message.options = vec![1, 2, 2, 0, 0, 0, 0, 1]);
    refused(|message| message.options.push(1));
    // Two of the same kind, and more than anybody sends.
    refused(|message| {
        message.options = [message.options.clone(), message.options.clone()].concat();
    });
    refused(|message| message.options = link_layer(14, MAC).repeat(17));
    let other = [link_layer(14, MAC), link_layer(1, MAC)].concat();
    let message = Message { options: other, ..Message::solicitation() };
    assert_eq!(message.key().unwrap().flags, 0);
}

#[test]
fn cut_anywhere_it_is_no_message() {
    for message in [Message::solicitation(), Message::advertisement()] {
        let whole = message.frame();
        let origin = Origin { in_port: PortId::MIN, decap: Decap::Never };
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len], origin).err(), Some(DropReason::Malformed), "{len}");
        }
    }
}
