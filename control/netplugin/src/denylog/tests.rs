use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use control_api::v1::watch_event::Kind as Event;
use control_api::v1::{Object, Policy, Rule, WatchEvent, object};
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::mirror::tests::{endpoint, event, gold_group, member, network, snapshot, tenant};
use crate::program::tests::{Bench, Process};

const FLOW: &str = "in_port=3,eth_src=02:00:00:00:00:05,eth_dst=00:00:11:11:11:11,tcp,\
                    nw_src=10.40.0.5,nw_dst=10.40.0.6,tp_src=40000,tp_dst=443";

fn mirror() -> Mirror {
    let mirror = Mirror::new();
    fill(&mirror);
    mirror
}

/// Tenant red with an endpoint of group web, one of no group, and a rule of policy `edge`.
fn fill(mirror: &Mirror) {
    let put = |kind| event(5, Event::Put(Object { kind: Some(kind) }));
    let policy = Policy { tenant_name: "red".into(), policy_name: "edge".into() };
    let rule = Rule {
        tenant_name: "red".into(),
        policy_name: "edge".into(),
        rule_id: "no-tls".into(),
        direction: "out".into(),
        priority: 1,
        action: "deny".into(),
        cookie: 77,
        ..Rule::default()
    };
    let mut events: Vec<WatchEvent> = vec![tenant(1), network(2, "b", "vxlan", 40)];
    events.extend(gold_group(3, "b", "10 mbps"));
    events.push(member(endpoint(4, "c1:eth0", "b", "10.40.0.5")));
    events.push(endpoint(4, "c2:eth0", "b", "10.40.0.6"));
    events.push(put(object::Kind::Policy(policy)));
    events.push(put(object::Kind::Rule(rule)));
    snapshot(mirror, 5, events);
}

fn dropped() -> DroppedPacket {
    DroppedPacket {
        unix_ns: 1,
        reason: "policy-deny".into(),
        rule: 77,
        in_port: 3,
        vrf: 7,
        src_group: 3,
        flow: FLOW.into(),
        suppressed: 0,
        number: 1,
        history: false,
    }
}

fn named(dropped: &DroppedPacket) -> Denial {
    mirror().read(|intent| denial(intent, dropped, 4))
}

#[test]
fn a_denied_packet_has_the_names_that_people_gave() {
    let expected = Denial {
        tenant: "red".into(),
        src_group: Some("web".into()),
        dst_group: None,
        policy: Some("edge".into()),
        rule: Some("no-tls".into()),
        protocol: Some("tcp".into()),
        src: Some([10, 40, 0, 5].into()),
        src_port: Some(40_000),
        dst: Some([10, 40, 0, 6].into()),
        dst_port: Some(443),
        reason: "policy-deny".into(),
        suppressed: 4,
    };
    assert_eq!(named(&dropped()), expected);
}

#[test]
fn groups_of_packets_from_the_wire_are_those_of_their_addresses() {
    let flow = FLOW.replace("10.40.0.5", "x").replace("10.40.0.6", "10.40.0.5");
    let flow = flow.replace('x', "10.40.0.6");
    let denial = named(&DroppedPacket { src_group: 0, flow, ..dropped() });
    assert_eq!((denial.src_group, denial.dst_group), (None, Some("web".into())));
    let denial = named(&DroppedPacket { src_group: 0, ..dropped() });
    assert_eq!((denial.src_group, denial.dst_group), (Some("web".into()), None));
}

#[test]
fn what_has_no_name_any_more_is_said_by_number() {
    let denial = named(&DroppedPacket { rule: 78, vrf: 8, ..dropped() });
    assert_eq!(
        (denial.tenant.as_str(), denial.policy, denial.rule),
        ("vrf 8", None, Some("78".into()))
    );
    // Another tenant's group of the same number is nobody's here.
    assert_eq!(denial.src_group, None);
    let denial = named(&DroppedPacket { rule: 0, ..dropped() });
    assert_eq!(denial.rule, Some("default".into()));
    let denial = named(&DroppedPacket { rule: 0, reason: "no-connection".into(), ..dropped() });
    assert_eq!(denial.rule, None);
    let denial = named(&DroppedPacket { flow: "?".into(), ..dropped() });
    assert_eq!((denial.src, denial.protocol, denial.rule), (None, None, Some("no-tls".into())));
}

#[test]
fn each_tenant_has_ten_lines_a_second_and_says_what_is_missing() {
    let mut lines = Lines::default();
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    for n in 0..10 {
        assert_eq!(lines.admit(&dropped(), at(n * 50)), Some(0));
    }
    let more = DroppedPacket { suppressed: 3, ..dropped() };
    assert_eq!(lines.admit(&more, at(999)), None);
    // Another tenant's lines are its own.
    assert_eq!(lines.admit(&DroppedPacket { vrf: 8, ..dropped() }, at(999)), Some(0));
    let no_denial = DroppedPacket { reason: "no-route".into(), suppressed: 2, ..dropped() };
    assert_eq!(lines.admit(&no_denial, at(1000)), None);
    assert_eq!(lines.admit(&dropped(), at(1000)), Some(6));
    assert_eq!(lines.admit(&dropped(), at(1049)), None);
    assert_eq!(lines.admit(&dropped(), at(1050)), Some(1));
}

#[test]
fn tenants_beyond_the_bound_share_a_budget() {
    let mut lines = Lines::default();
    let now = Instant::now();
    let mut of = |vrf| lines.admit(&DroppedPacket { vrf, ..dropped() }, now);
    assert!((1..=4096).all(|vrf| of(vrf) == Some(0)));
    assert!((5001..=5010).all(|vrf| of(vrf) == Some(0)));
    assert_eq!([of(5011), of(1)], [None, Some(0)]);
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Sink {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn the_log_follows_one_engine_after_the_other_and_repeats_nothing() {
    let sink = Sink::default();
    let log = tracing_subscriber::fmt().with_writer(sink.clone()).with_ansi(false).finish();
    // Only this thread's, on which the test's tasks run too.
    let _guard = tracing::subscriber::set_default(log);
    let bench = Bench::start(None, BTreeMap::new());
    fill(&bench.mirror);
    let (mirror, programmer) = (Arc::clone(&bench.mirror), Arc::clone(&bench.programmer));
    let task = tokio::spawn(async move { run(&mirror, &programmer).await });
    // What the clock says when it is set back plays no part.
    let packet = |number: u64, history, tp_dst| {
        let flow = FLOW.replace("tp_dst=443", &format!("tp_dst={tp_dst}"));
        DroppedPacket { unix_ns: 1000 - number, number, history, flow, ..dropped() }
    };
    let written = async |tp_dst: u16| {
        let (line, start) = (format!("dst_port={tp_dst} "), Instant::now());
        while !sink.text().contains(&line) {
            assert!(start.elapsed() < Duration::from_secs(10), "{line}not written");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let first = Process::start(&bench.socket(), "a", &[]);
    // From before this process began.
    first.drop_packet(packet(1, true, 1)).await;
    first.drop_packet(packet(2, false, 2)).await;
    first.drop_packet(packet(3, false, 3)).await;
    written(3).await;
    drop(first);
    // The same engine tells again what it has, and what was dropped meanwhile.
    let again = Process::start(&bench.socket(), "a", &[]);
    again.drop_packet(packet(3, true, 3)).await;
    again.drop_packet(packet(4, true, 4)).await;
    written(4).await;
    drop(again);
    // All that another one has is from since.
    let second = Process::start(&bench.socket(), "b", &[]);
    second.drop_packet(packet(1, true, 5)).await;
    second.drop_packet(packet(2, false, 6)).await;
    written(6).await;
    task.abort();
    let text = sink.text();
    let lines = text.lines().filter(|line| line.contains("packet denied"));
    let wanted = [2, 3, 4, 5, 6].map(|tp_dst| format!("dst_port={tp_dst} "));
    let lines: Vec<&str> = lines.collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines.iter().zip(&wanted).all(|(line, port)| line.contains(port)), "{lines:?}");
    assert!(lines[0].contains("tenant=\"red\""), "{lines:?}");
}

#[test]
fn a_line_as_json_has_each_name_as_a_field() {
    let sink = Sink::default();
    let format = tracing_subscriber::fmt().json().with_writer(sink.clone());
    let denial = named(&dropped());
    tracing::subscriber::with_default(format.finish(), || denial.log());
    let line: serde_json::Value = serde_json::from_slice(&sink.0.lock().unwrap()).unwrap();
    let fields = serde_json::json!({
        "message": "packet denied", "tenant": "red", "src_group": "web", "policy": "edge",
        "rule": "no-tls", "protocol": "tcp", "src": "10.40.0.5", "src_port": 40000,
        "dst": "10.40.0.6", "dst_port": 443, "reason": "policy-deny", "suppressed": 4,
    });
    assert_eq!((&line["level"], &line["fields"]), (&"INFO".into(), &fields));
}
