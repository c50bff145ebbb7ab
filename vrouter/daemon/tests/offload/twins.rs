//! Two nodes live the same life, one with offloading from the second packet on, one without: after
//! every step they have delivered, dropped and counted the same.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use datapath_api::v1;
use flowtable::entry::{Entry, EntryKey, NextHop, Op, Permit, TenantEntry};
use flowtable::ids::RuleId;
use flowtable::text::FlowSpec;
use netdev::packet::PacketSocket;

use super::{ALLOW, rule, stats, switched};
use crate::Pair;
use crate::node::{until, vrf};

const FLOWS: usize = 4;
const PORT: u16 = 7100;
const DENY: u64 = 1000;

/// One of the two.
struct Twin {
    pair: Pair,
    /// From a to b, at b's [`PORT`] plus the flow's number.
    flows: Vec<[UdpSocket; 2]>,
    raw: PacketSocket,
    sent: u64,
    received: [[u64; 2]; FLOWS],
}

/// What one can see of a node.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    received: [[u64; 2]; FLOWS],
    ports: Vec<[u64; 4]>,
    drops: BTreeMap<String, (u64, u64)>,
    rules: BTreeMap<u64, (u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many datagrams of a length, by a side of a flow.
    Burst { flow: usize, side: usize, count: usize, len: usize },
    /// A frame of a flow that is no plain datagram.
    Odd { flow: usize, kind: usize },
    /// A rule that denies a flow comes or goes.
    Deny { flow: usize },
    /// A rule that counts a flow comes or goes.
    Allow { flow: usize },
    /// What no rule matches is denied, or allowed.
    Default { permit: Permit },
    /// b's address moves away and comes back: its connections end.
    Move,
    /// Of the twin that offloads, everything is taken back.
    Pause,
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn step(&mut self) -> Step {
        let flow = self.below(FLOWS);
        match self.below(40) {
            0..4 => Step::Odd { flow, kind: self.below(4) },
            4 => Step::Deny { flow },
            5..7 => Step::Allow { flow },
            7 => Step::Default {
                permit: if self.below(4) == 0 { Permit::Deny } else { Permit::Allow },
            },
            8 => Step::Move,
            9 => Step::Pause,
            _ => Step::Burst {
                flow,
                side: self.below(2),
                count: 1 + self.below(40),
                len: 1 + self.below(1400),
            },
        }
    }
}

impl Twin {
    fn new(flags: &[&str]) -> Self {
        let limits = ["--port-pps", "0", "--port-mbps", "0"];
        let pair = Pair::new(&[&limits, flags].concat());
        for (own, other) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
            // ARP would come when it likes.
            let neighbour = format!("{} lladdr {} dev eth0", other.ip(), other.mac());
            own.namespace.must(&format!("ip neigh add {neighbour} nud permanent"));
        }
        let bind = |container: &crate::node::Container, port| {
            let address = SocketAddr::from((container.ip(), port));
            let socket = container.namespace.inside(|| UdpSocket::bind(address).unwrap());
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let flows = (0..FLOWS as u16).map(|flow| {
            let ends = [bind(&pair.a, PORT + flow), bind(&pair.b, PORT + flow)];
            for (own, other) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
                own.connect(other.local_addr().unwrap()).unwrap();
            }
            ends
        });
        let flows = flows.collect();
        let raw = pair.a.namespace.inside(|| PacketSocket::open("eth0").unwrap());
        let sent = rx(&pair);
        Self { pair, flows, raw, sent, received: [[0; 2]; FLOWS] }
    }

    fn live(&mut self, step: Step, rules: &mut [bool; 2 * FLOWS]) {
        match step {
            Step::Burst { flow, side, count, len } => {
                (0..count).for_each(|_| send(&self.flows[flow][side], len));
                self.sent += count as u64;
            }
            Step::Odd { flow, kind } => {
                self.raw.send(&odd(flow, kind)).unwrap();
                self.sent += 1;
            }
            Step::Deny { flow } => self.toggle((DENY, Permit::Deny), flow, &mut rules[flow]),
            Step::Allow { flow } => {
                self.toggle((ALLOW, Permit::Allow), flow, &mut rules[FLOWS + flow]);
            }
            Step::Default { permit } => {
                let tenant = Entry::Tenant(TenantEntry::new(vrf(), permit));
                self.pair.engine.write(&[Op::Put(tenant)]);
            }
            Step::Move => {
                for next_hop in [NextHop::UnknownEndpoint, NextHop::Local(self.pair.b.port())] {
                    self.pair.engine.write(&self.pair.b.known_at(next_hop));
                }
            }
            Step::Pause => {
                let on = stats(&self.pair).on;
                switched(&self.pair, Some(false));
                switched(&self.pair, Some(on));
            }
        }
    }

    fn toggle(&self, (id, permit): (u64, Permit), flow: usize, there: &mut bool) {
        let id = id + flow as u64;
        *there = !*there;
        self.pair.engine.write(&[if *there {
            rule(id, permit, PORT + flow as u16)
        } else {
            Op::Delete(EntryKey::Rule(RuleId(id), 0))
        }]);
    }

    /// Everything that was sent is delivered or dropped, and what was delivered is read.
    fn seen(&mut self) -> Seen {
        until("what was sent to be decided", || {
            let (ports, drops) = (self.pair.engine.ports(), self.drops());
            let dropped: u64 = drops.values().map(|(packets, _)| packets).sum();
            let tx: u64 = ports.iter().map(|p| p.tx_packets).sum();
            rx(&self.pair) == self.sent && tx + dropped >= self.sent
        });
        let mut bytes = [0; 2048];
        for (counts, ends) in self.received.iter_mut().zip(&self.flows) {
            for (count, end) in counts.iter_mut().zip(ends) {
                *count += std::iter::from_fn(|| end.recv(&mut bytes).ok()).count() as u64;
            }
        }
        let ports = self.pair.engine.ports();
        let ports = ports.iter().map(|p| [p.rx_packets, p.rx_bytes, p.tx_packets, p.tx_bytes]);
        let counters = |mut c: v1::datapath_client::DatapathClient<_>| async move {
            c.counters(v1::CountersRequest {}).await
        };
        let rules = self.pair.engine.call(counters).rules;
        Seen {
            received: self.received,
            ports: ports.collect(),
            drops: self.drops(),
            rules: rules.iter().map(|r| (r.cookie, (r.packets, r.bytes))).collect(),
        }
    }

    fn drops(&self) -> BTreeMap<String, (u64, u64)> {
        let reply =
            self.pair.engine.call(|mut c| async move { c.drops(v1::DropsRequest {}).await });
        let drops = reply.drops.into_iter().filter(|d| d.packets > 0);
        drops.map(|d| (d.reason, (d.packets, d.bytes))).collect()
    }
}

fn send(socket: &UdpSocket, len: usize) {
    // An error that an earlier one met is told once.
    while socket.send(&vec![0x5a; len]).is_err() {}
}

fn rx(pair: &Pair) -> u64 {
    pair.engine.ports().iter().map(|p| p.rx_packets).sum()
}

/// From a to b: with a foreign MAC, with a length that lies, a first fragment, with options.
fn odd(flow: usize, kind: usize) -> Vec<u8> {
    let port = PORT + flow as u16;
    let source = if kind == 0 { "02:00:0a:01:01:77" } else { "02:00:0a:01:01:05" };
    let text = format!(
        "eth_src={source},eth_dst=02:00:0a:01:01:06,udp,nw_src=10.1.1.5,nw_dst=10.1.1.6,\
         tp_src={port},tp_dst={port}"
    );
    let mut frame = text.parse::<FlowSpec>().unwrap().frame().unwrap();
    match kind {
        1 => frame[38..40].copy_from_slice(&[0xff, 0xff]),
        2 => frame[20] = 0x20,
        3 => {
            frame[14] = 0x46;
            frame.splice(34..34, [1; 4]);
            let len = u16::from_be_bytes([frame[16], frame[17]]) + 4;
            frame[16..18].copy_from_slice(&len.to_be_bytes());
        }
        _ => {}
    }
    let header = 14..14 + usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let words = frame[header].chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame
}

pub(super) fn offloading_changes_nothing_that_can_be_seen() {
    let steps = if std::env::var_os("WEIR_SOAK").is_some() { 20_000 } else { 400 };
    let mut hot = Twin::new(&["--offload-after", "1"]);
    let mut cold = Twin::new(&["--offload", "off"]);
    let mut random = Random(0x5eed_0027);
    let (mut hot_rules, mut cold_rules) = ([false; 2 * FLOWS], [false; 2 * FLOWS]);
    for number in 0..steps {
        let step = random.step();
        hot.live(step, &mut hot_rules);
        cold.live(step, &mut cold_rules);
        let (hot, cold) = (hot.seen(), cold.seen());
        assert_eq!(hot, cold, "step {number}, {step:?}: offloaded and not");
    }
    let (offloaded, total) = (stats(&hot.pair).packets, rx(&hot.pair));
    eprintln!("{offloaded} of {total} packets were offloaded");
    assert!(offloaded * 10 > total, "{offloaded} of {total}");
    assert_eq!(stats(&cold.pair).packets, 0);
}
