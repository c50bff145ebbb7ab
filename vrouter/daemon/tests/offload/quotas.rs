//! Who may have flows offloaded, and how many: switches, quotas, and who has to go for whom.

use std::net::UdpSocket;

use datapath_api::v1;
use flowtable::entry::{Entry, Offload, Op};

use super::{echo, flows, offloaded, stats, talkers_at};
use crate::Pair;
use crate::node::{Container, until};

/// The container's entries, with the switch as given.
fn switched_to(container: &Container, offload: Offload) -> Vec<Op> {
    let mut ops = container.local();
    let Some(Op::Put(Entry::Port(entry))) = ops.first_mut() else { panic!("no port entry") };
    entry.offload = offload;
    ops
}

pub(super) fn a_port_that_is_switched_off_has_no_flow_offloaded() {
    let pair = Pair::new(&[]);
    let mut ends = offloaded(&pair);
    for container in [&pair.a, &pair.b] {
        pair.engine.write(&switched_to(container, Offload::Off));
        // In force with the answer, for both ways.
        let off = stats(&pair);
        assert_eq!((off.flows, off.on), (0, true));
        let tenant =
            v1::offload_reply::Tenant { vrf: 1, flows: 0, flows_max: 65_536, ports_off: 1 };
        assert_eq!(off.tenants, [tenant]);
        (0..300).for_each(|_| echo(&mut ends));
        assert_eq!(stats(&pair).packets, off.packets);
        let tcp = flows(&pair, "tcp");
        assert_eq!(tcp.len(), 2);
        assert!(tcp.iter().all(|f| f.offload == "switched-off"), "{tcp:?}");
        pair.engine.write(&switched_to(container, Offload::On));
        until("both ways to be offloaded again", || {
            echo(&mut ends);
            stats(&pair).flows == 2
        });
    }
}

/// A datagram there and one back.
fn exchange((from, to): &(UdpSocket, UdpSocket)) {
    for (socket, other) in [(from, to), (to, from)] {
        socket.send(&[7; 64]).unwrap();
        assert_eq!(other.recv(&mut [0; 64]).unwrap(), 64);
    }
}

/// Why the flow from a to this port of b is not offloaded, or `yes`.
fn state(pair: &Pair, (_, to): &(UdpSocket, UdpSocket)) -> String {
    let port = to.local_addr().unwrap().port();
    let found = flows(pair, &format!("in_port=5,udp,tp_dst={port}"));
    found.first().map(|flow| flow.offload.clone()).unwrap_or_default()
}

/// A port's quota is one of a's two flows, and b's has none to spare.
pub(super) fn a_full_quota_is_named_and_its_idle_flow_makes_room() {
    for (flag, limit, reason) in [
        ("--offload-port-flows", "1", "port-quota"),
        ("--offload-tenant-flows", "2", "tenant-quota"),
    ] {
        let pair = Pair::new(&[flag, limit]);
        let [first, second] = [7001, 7002].map(|port| talkers_at(&pair, port));
        until("the first to be offloaded, both ways", || {
            exchange(&first);
            stats(&pair).flows == 2
        });
        // While the first one carries something, nobody takes its place.
        let mut refused = || {
            for _ in 0..32 {
                exchange(&first);
                exchange(&second);
            }
            state(&pair, &second) == reason
        };
        until("the second to be refused", &mut refused);
        for _ in 0..30 {
            assert!(refused(), "{}", state(&pair, &second));
        }
        assert_eq!(state(&pair, &first), "yes");
        let refusals = stats(&pair).refused;
        assert!(refusals.iter().any(|r| r.reason == reason && r.count > 0), "{refusals:?}");
        until("the second to take the place of the idle one", || {
            (0..32).for_each(|_| exchange(&second));
            state(&pair, &second) == "yes"
        });
        let idle = stats(&pair);
        assert!(idle.idle >= 1 && idle.flows <= 2, "{idle:?}");
    }
}

pub(super) fn a_flood_of_new_flows_does_not_push_out_those_that_carry_much() {
    const FLOOD: u16 = 200;
    let pair = Pair::new(&["--offload-flows", "8", "--offload-after", "2"]);
    let elephant = talkers_at(&pair, 7001);
    let elephants = || {
        exchange(&elephant);
        flows(&pair, "in_port=5,udp,tp_dst=7001").pop().unwrap()
    };
    until("the elephant to be offloaded", || elephants().offload == "yes");
    let passed = |flow: &v1::Flow| flow.packets - flow.offloaded_packets;
    let before = elephants();
    for n in 0..FLOOD {
        let mouse = talkers_at(&pair, 8000 + n);
        (0..8).for_each(|_| exchange(&mouse));
        let now = elephants();
        assert_eq!((&now.offload[..], passed(&now)), ("yes", passed(&before)), "mouse {n}");
    }
    let now = stats(&pair);
    let refused: u64 = now.refused.iter().map(|refusal| refusal.count).sum();
    assert!(now.flows <= 8 && refused > 0, "{now:?}");
    assert!(elephants().offloaded_packets >= before.offloaded_packets + u64::from(FLOOD));
}
