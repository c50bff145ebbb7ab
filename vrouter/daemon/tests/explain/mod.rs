//! What the engine says of real packets: the drop log, live traces and connections.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datapath_api::v1;
use flowtable::entry::{Direction, Entry, EntryKey, Op, Permit, PortRange, RuleEntry};
use flowtable::ids::RuleId;
use tonic::{Code, Streaming};

use crate::Pair;
use crate::node::{Container, LIMIT, until, vrf};

/// How soon a dropped packet is to be seen.
const SEEN: Duration = Duration::from_millis(100);
const RULE: u64 = 77;
const PORT: u16 = 9;

/// Denies UDP to [`PORT`].
fn deny() -> RuleEntry {
    RuleEntry {
        priority: 10,
        protocol: Some(17),
        dst_ports: Some(PortRange { first: PORT, last: PORT }),
        ..RuleEntry::any(RuleId(RULE), vrf(), Direction::Out, Permit::Deny)
    }
}

/// The next message; `None` at the end of the stream.
fn next<T>(pair: &Pair, stream: &mut Streaming<T>) -> Option<T> {
    let message = async { tokio::time::timeout(LIMIT, stream.message()).await };
    pair.engine.block_on(message).unwrap().unwrap()
}

fn socket(container: &Container) -> UdpSocket {
    let address: SocketAddr = (container.ip(), 0).into();
    container.namespace.inside(|| UdpSocket::bind(address).unwrap())
}

pub(crate) fn denied_packet_is_in_the_drop_log_at_once() {
    let pair = Pair::new(&[]);
    assert!(pair.a.pings(&pair.b));
    pair.engine.write(&[Op::Put(Entry::Rule(deny()))]);
    let follow = v1::DropLogRequest { follow: true, vrf: Some(1) };
    let mut log = pair
        .engine
        .block_on(async { pair.engine.client().drop_log(follow).await })
        .unwrap()
        .into_inner();
    let sender = socket(&pair.a);
    let port = sender.local_addr().unwrap().port();
    let mut best = LIMIT;
    for _ in 0..5 {
        let sent = Instant::now();
        sender.send_to(b"x", (pair.b.ip(), PORT)).unwrap();
        let dropped = loop {
            let dropped = next(&pair, &mut log).unwrap();
            if dropped.rule == RULE {
                break dropped;
            }
        };
        best = best.min(sent.elapsed());
        let tuple = format!("udp,nw_src=10.1.1.5,nw_dst=10.1.1.6,tp_src={port},tp_dst={PORT}");
        assert!(dropped.flow.ends_with(&tuple), "{dropped:?}");
        assert_eq!((dropped.reason.as_str(), dropped.in_port, dropped.vrf), ("policy-deny", 5, 1));
        #[expect(clippy::disallowed_methods, reason = "as drops are stamped")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let age = Duration::from_nanos(now - dropped.unix_ns);
        assert!(age < LIMIT, "{age:?}");
    }
    eprintln!("a dropped packet was seen after {best:?}");
    assert!(best < SEEN, "{best:?}");
    // They are kept for who asks later, and are nobody else's.
    let kept = |vrf| {
        let request = v1::DropLogRequest { follow: false, vrf };
        let call = async { pair.engine.client().drop_log(request).await };
        let mut log = pair.engine.block_on(call).unwrap().into_inner();
        std::iter::from_fn(|| next(&pair, &mut log)).filter(|d| d.rule == RULE).count()
    };
    assert_eq!([kept(None), kept(Some(1)), kept(Some(2))], [5, 5, 0]);
}

pub(crate) fn live_trace_says_what_became_of_a_real_packet() {
    let pair = Pair::new(&[]);
    assert!(pair.a.pings(&pair.b));
    pair.engine.write(&[Op::Put(Entry::Rule(deny()))]);
    let watch = |limit| {
        let filter = format!("in_port=wrh5,vrf=1,udp,tp_dst={PORT}");
        let request = v1::TraceLiveRequest { filter, limit, seconds: 30 };
        let call = async { pair.engine.client().trace_live(request).await };
        pair.engine.block_on(call).map(tonic::Response::into_inner)
    };
    let mut live = watch(2).unwrap();
    assert_eq!(watch(1).unwrap_err().code(), Code::ResourceExhausted);
    let denials = || {
        let counters =
            pair.engine.call(|mut c| async move { c.counters(v1::CountersRequest {}).await });
        let rule = counters.rules.iter().find(|r| r.cookie == RULE).map_or(0, |r| r.packets);
        (pair.engine.drops("policy-deny"), rule)
    };
    let sender = socket(&pair.a);
    let before = denials();
    // Other packets are not shown.
    sender.send_to(b"x", (pair.b.ip(), PORT + 1)).unwrap();
    sender.send_to(b"x", (pair.b.ip(), PORT)).unwrap();
    let denied = next(&pair, &mut live).unwrap();
    assert_eq!((denied.verdict.as_str(), denied.reason.as_str()), ("drop", "policy-deny"));
    assert_eq!((denied.rule, denied.in_port, denied.packet_bytes), (RULE, 5, 43));
    assert_eq!((denied.ct_state.as_str(), denied.cache.as_str()), ("+trk+new", "pipeline"));
    let last = denied.steps.last().unwrap();
    assert_eq!((last.table.as_str(), last.rule), ("policy-out", RULE));
    assert_eq!(denials(), (before.0 + 1, before.1 + 1));

    pair.engine.write(&[Op::Delete(EntryKey::Rule(RuleId(RULE), 0))]);
    let sent = || pair.engine.ports().iter().find(|p| p.id == 6).unwrap().tx_packets;
    let before = sent();
    sender.send_to(b"x", (pair.b.ip(), PORT)).unwrap();
    let passed = next(&pair, &mut live).unwrap();
    assert_eq!((passed.verdict.as_str(), passed.out_ports), ("forward", vec![6]));
    until("the packet on its way", || sent() > before);
    assert!(next(&pair, &mut live).is_none());
    // The same as an imagined packet: the exact cache would answer.
    let request = v1::TraceRequest {
        packet: Some(v1::trace_request::Packet::Flow(passed.flow.clone())),
        in_port: String::new(),
    };
    let imagined = pair.engine.call(|mut c| async move { c.trace(request).await });
    assert_eq!((imagined.flow, imagined.mask), (passed.flow.clone(), passed.mask));
    assert_eq!((imagined.cache.as_str(), imagined.ct_state.as_str()), ("exact", "+trk+est"));
    let flow = format!("{},ct_state=+trk+est+rpl", passed.flow);
    let packet = Some(v1::trace_request::Packet::Flow(flow));
    let request = v1::TraceRequest { packet, in_port: String::new() };
    let reply = pair.engine.call(|mut c| async move { c.trace(request).await });
    assert_eq!((reply.ct_state.as_str(), reply.cache.as_str()), ("+trk+est+rpl", ""));
    // Who leaves makes room for the next one.
    let mut left = None;
    until("a free seat", || {
        left = watch(0).ok();
        left.is_some()
    });
    drop(left);
    until("a free seat", || watch(0).is_ok());
}

pub(crate) fn open_connections_are_listed_with_their_state() {
    let pair = Pair::new(&[]);
    let listed = |filter: &str| {
        let kind = v1::ListKind::Connections.into();
        let request = v1::ListRequest { kind, filter: filter.into(), ..Default::default() };
        pair.engine.call(|mut c| async move { c.list(request).await }).connections
    };
    let (a, b) = (socket(&pair.a), socket(&pair.b));
    let (from, to) = (a.local_addr().unwrap().port(), b.local_addr().unwrap().port());
    a.send_to(b"x", (pair.b.ip(), to)).unwrap();
    let filter = format!("udp,tp_dst={to}");
    until("the flow", || !listed(&filter).is_empty());
    let flow = &listed(&filter)[0];
    let original = format!("vrf=1,udp,nw_src=10.1.1.5,nw_dst=10.1.1.6,tp_src={from},tp_dst={to}");
    assert_eq!((&flow.original, flow.state.as_str()), (&original, "unreplied"));
    assert_eq!((flow.port, flow.vrf), (5, 1));
    b.send_to(b"y", (pair.a.ip(), from)).unwrap();
    until("the reply", || listed(&original)[0].state == "replied");

    let address = (pair.b.ip(), 7000);
    let listener = pair.b.namespace.inside(|| TcpListener::bind(address).unwrap());
    let mut client = pair.a.namespace.inside(|| TcpStream::connect(address).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    let established = listed("in_port=wrh5,tcp,tp_dst=7000");
    assert_eq!((established.len(), established[0].state.as_str()), (1, "established"));
    assert!(established[0].expires_seconds > 60, "{established:?}");
    assert!(pair.a.pings(&pair.b));
    let echo = listed("icmp");
    assert!(echo[0].original.contains(",icmp_type=8,icmp_id="), "{echo:?}");
    let counters =
        pair.engine.call(|mut c| async move { c.counters(v1::CountersRequest {}).await });
    let counted = counters.connections.unwrap();
    assert!(counted.open >= 3 && counted.opened >= counted.open, "{counted:?}");
    drop((client, server));
    until("the end", || listed("tcp,tp_dst=7000").first().is_none_or(|c| c.state == "time-wait"));
}
