//! The twenty steps of Contiv's `TestPolicyFeatures`, over both encapsulations, and what is asked of
//! no rule. A change is felt by the first connection after it: nothing here waits.
//!
//! In steps 17 and 19 Contiv's ping from A fails because the reply meets A's rules. Replies need no
//! rule here, so that it is B's ping of A that is denied.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Container, Purpose, TcpServer, Topology, TwoNodes, ping};

use crate::Test;
use crate::site::{attach_to_group, configure, netctl, reach_soon};

/// For the answer to a SYN. Without one the connection is closed.
const PATIENCE: Duration = Duration::from_millis(500);

pub(crate) fn tests() -> Vec<Test> {
    let test = |name: &str, encap: &'static str| -> Test {
        (name.to_owned(), Box::new(move || twenty_steps(encap)))
    };
    vec![
        test("pol_1_contivs_twenty_steps_over_vxlan", "vxlan"),
        test("pol_1_contivs_twenty_steps_over_vlan", "vlan"),
    ]
}

/// Who opens what, or pings whom.
#[derive(Debug, Clone, Copy)]
enum Ask {
    /// B to a port of A.
    ToA(u16),
    /// A to a port of B.
    ToB(u16),
    /// A pings B.
    PingB,
    /// B pings A.
    PingA,
}

use Ask::{PingA, PingB, ToA, ToB};

/// Changes of policy `first` (`+ID flags` or `-ID`), and what is open then.
type Step = (&'static [&'static str], &'static [(Ask, bool)]);

const STEPS: [Step; 21] = [
    (&[], &[(ToA(8000), true), (ToB(8000), true), (PingA, true)]),
    (&["+1 -d in -l tcp -j deny"], &[(ToA(8000), false)]),
    (&["+2 -d in -l tcp -P 8000 -j allow -p 100"], &[(ToA(8000), true), (ToA(8001), false)]),
    (&["+3 -d in -g srv2 -l tcp -P 8001 -j allow -p 100"], &[(ToA(8001), true)]),
    (&["-3"], &[(ToA(8001), false)]),
    (
        &["+3 -d in -n private -l tcp -j allow -p 10", "+4 -d in -n dummy -l tcp -j deny -p 100"],
        &[(ToA(8001), true)],
    ),
    (&["-3", "-4"], &[(ToA(8001), false)]),
    (
        &["+3 -d in -i B -l tcp -j allow -p 10", "+4 -d in -i 20.1.0.0/16 -l tcp -j deny -p 100"],
        &[(ToA(8001), true)],
    ),
    (&["-1", "-2", "-3", "-4"], &[(ToA(8000), true)]),
    (&["+1 -d out -l tcp -j deny"], &[(ToB(8000), false)]),
    (&["+2 -d out -l tcp -P 8000 -j allow -p 100"], &[(ToB(8000), true), (ToB(8001), false)]),
    (&["+3 -d out -e srv2 -l tcp -P 8001 -j allow -p 100"], &[(ToB(8001), true)]),
    (&["-3"], &[(ToB(8001), false)]),
    (
        &["+3 -d out -o private -l tcp -j allow -p 10", "+4 -d out -o dummy -l tcp -j deny -p 100"],
        &[(ToB(8001), true)],
    ),
    (&["-3", "-4"], &[(ToB(8001), false)]),
    (
        &["+3 -d out -s B -l tcp -j allow -p 10", "+4 -d out -s 20.1.0.0/16 -l tcp -j deny -p 100"],
        &[(ToB(8001), true)],
    ),
    (&["-1", "-2", "-3", "-4"], &[(PingB, true)]),
    (&["+1 -d in -l icmp -j deny"], &[(PingA, false), (PingB, true)]),
    (&["+2 -d in -i B -l icmp -j allow -p 100"], &[(PingA, true)]),
    (&["-2"], &[(PingA, false)]),
    (&["-1"], &[(PingA, true)]),
];

#[derive(Debug)]
struct Pair {
    a: Container,
    b: Container,
    _listening: Vec<TcpServer>,
    nodes: TwoNodes,
}

fn build(encap: &str) -> Result<Pair> {
    let nodes = Topology::new(Purpose::Test).two_nodes()?;
    let private =
        format!("network create -t blue -e {encap} -p 10 -s 10.1.0.0/16 -g 10.1.1.254 private");
    let dummy =
        format!("network create -t blue -e {encap} -p 20 -s 20.1.0.0/16 -g 20.1.1.254 dummy");
    let lines = [
        "tenant create blue",
        &private,
        &dummy,
        "policy create -t blue first",
        "policy create -t blue second",
        "group create -t blue -p first private srv1",
        "group create -t blue -p second private srv2",
    ];
    configure(&nodes.one, &lines)?;
    let a = attach_to_group(&nodes.one, "a", "private", Some("srv1"))?;
    let b = attach_to_group(&nodes.two, "b", "private", Some("srv2"))?;
    let mut listening = Vec::new();
    for container in [&a, &b] {
        for port in [8000, 8001] {
            let address = SocketAddr::from((container.address(), port));
            listening.push(TcpServer::start(container.namespace(), address)?);
        }
    }
    reach_soon(&a, b.address())?;
    Ok(Pair { a, b, _listening: listening, nodes })
}

impl Pair {
    fn change(&self, change: &str) -> Result<()> {
        let address = self.b.address().to_string();
        let line = match change.split_at(1) {
            ("+", rule) => {
                let (id, flags) = rule.split_once(' ').context("a rule without flags")?;
                let words = flags.split(' ').map(|w| if w == "B" { &address } else { w });
                let flags = words.collect::<Vec<_>>().join(" ");
                format!("policy rule-add -t blue {flags} first {id}")
            }
            (_, id) => format!("policy rule-rm -t blue first {id}"),
        };
        netctl(&self.nodes.one, &line).map(drop)
    }

    fn is_open(&self, ask: Ask) -> Result<bool> {
        let connects = |from: &Container, to: Ipv4Addr, port| -> Result<bool> {
            let to = SocketAddr::from((to, port));
            Ok(from.namespace().run(|| TcpStream::connect_timeout(&to, PATIENCE))?.is_ok())
        };
        let (a, b) = (&self.a, &self.b);
        match ask {
            ToA(port) => connects(b, a.address(), port),
            ToB(port) => connects(a, b.address(), port),
            PingA => Ok(ping(b.namespace(), a.address(), 1)?.received == 1),
            PingB => Ok(ping(a.namespace(), b.address(), 1)?.received == 1),
        }
    }

    fn expect(&self, asks: &[(Ask, bool)], when: &str) -> Result<()> {
        for (ask, open) in asks {
            let seen = self.is_open(*ask)?;
            ensure!(seen == *open, "{when}: {ask:?} is open: {seen}");
        }
        Ok(())
    }
}

fn twenty_steps(encap: &str) -> Result<()> {
    let pair = build(encap)?;
    for (number, (changes, asks)) in STEPS.iter().enumerate() {
        changes.iter().try_for_each(|change| pair.change(change))?;
        pair.expect(asks, &format!("step {number}"))?;
    }
    // What no rule is about is as the tenant says.
    let all = |open| [(ToA(8000), open), (ToB(8001), open), (PingA, open), (PingB, open)];
    netctl(&pair.nodes.one, "tenant update --default-verdict deny blue")?;
    pair.expect(&all(false), "denied by default")?;
    pair.change("+1 -d in -l tcp -P 8000 -j allow")?;
    netctl(&pair.nodes.one, "policy rule-add -t blue -d out -l tcp -P 8000 -j allow second 1")?;
    pair.expect(&[(ToA(8000), true), (ToA(8001), false), (ToB(8000), false)], "two rules")?;
    netctl(&pair.nodes.one, "tenant update --default-verdict allow blue")?;
    pair.expect(&all(true), "allowed by default")
}
