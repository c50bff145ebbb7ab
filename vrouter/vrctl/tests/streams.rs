//! The program as it is run, against an engine that says its words one by one.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

mod engine;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout};

use datapath_api::v1::{DroppedPacket, TraceReply};
use engine::{Engine, Script};
use tokio::sync::mpsc;

fn lines(child: &mut Child) -> BufReader<ChildStdout> {
    BufReader::new(child.stdout.take().unwrap())
}

fn next_line(lines: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line
}

fn forwarded(flow: &str) -> TraceReply {
    let (verdict, flow) = ("forward".to_owned(), flow.to_owned());
    TraceReply { verdict, flow, out_ports: vec![3], ..TraceReply::default() }
}

fn dropped(seconds: u64) -> DroppedPacket {
    let (reason, flow) = ("policy-deny".to_owned(), "in_port=3,arp".to_owned());
    DroppedPacket {
        unix_ns: seconds * 1_000_000_000,
        reason,
        flow,
        rule: 7,
        ..DroppedPacket::default()
    }
}

#[test]
fn live_traces_are_printed_before_the_next_packet_comes() {
    let (sender, traces) = mpsc::channel(1);
    let engine = Engine::start(Script { traces: Some(traces), ..Script::default() });
    let mut child = engine.vrctl(&["trace", "--live", "tcp", "--count", "2"]).spawn().unwrap();
    let mut output = lines(&mut child);
    engine.say(&sender, forwarded("in_port=1,arp"));
    assert_eq!(next_line(&mut output), "packet: in_port=1,arp\n");
    assert_eq!(next_line(&mut output), "verdict: forward -> port 3 (web)\n");
    engine.say(&sender, forwarded("in_port=2,arp"));
    assert_eq!(next_line(&mut output), "\n");
    assert_eq!(next_line(&mut output), "packet: in_port=2,arp\n");
    drop(sender);
    assert!(child.wait().unwrap().success());
    let asked = &engine.script.lock().unwrap().asked;
    assert_eq!(asked[1], "TraceLiveRequest { filter: \"tcp\", limit: 2, seconds: 0 }");
}

#[test]
fn live_traces_as_json_are_an_object_a_line() {
    let (sender, traces) = mpsc::channel(2);
    let engine = Engine::start(Script { traces: Some(traces), ..Script::default() });
    engine.say(&sender, forwarded("in_port=1,arp"));
    engine.say(&sender, forwarded("in_port=2,arp"));
    drop(sender);
    let text = engine.run(&["trace", "--live", "", "--seconds", "5", "-o", "json"]);
    let flows = text.lines().map(|line| {
        let trace: serde_json::Value = serde_json::from_str(line).unwrap();
        trace["flow"].as_str().unwrap().to_owned()
    });
    assert_eq!(flows.collect::<Vec<_>>(), ["in_port=1,arp", "in_port=2,arp"]);
}

#[test]
fn a_refused_filter_is_told_with_exit_code_3() {
    let engine = Engine::start(Script::default());
    let output = engine.vrctl(&["trace", "--live", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error, "vrctl: error: filter: \"x\" is not a flow field\n");
    assert_eq!(engine.vrctl(&["drops", "--log"]).output().unwrap().status.code(), Some(3));
}

#[test]
fn the_log_of_drops_is_followed_until_the_reader_leaves() {
    let (sender, packets) = mpsc::channel(1);
    let engine = Engine::start(Script { dropped: Some(packets), ..Script::default() });
    let mut child = engine.vrctl(&["drops", "--log", "--follow", "--vrf", "5"]).spawn().unwrap();
    let mut output = lines(&mut child);
    engine.say(&sender, dropped(0));
    assert_eq!(
        next_line(&mut output),
        "1970-01-01T00:00:00.000000000Z policy-deny rule=7 port=0 vrf=0 group=0 in_port=3,arp\n"
    );
    drop(output);
    engine.say(&sender, dropped(1));
    assert!(child.wait().unwrap().success());
    let asked = &engine.script.lock().unwrap().asked;
    assert_eq!(asked[0], "DropLogRequest { follow: true, vrf: Some(5) }");
}

#[test]
fn the_log_of_drops_is_one_result() {
    let (sender, packets) = mpsc::channel(2);
    let engine = Engine::start(Script { dropped: Some(packets), ..Script::default() });
    engine.say(&sender, dropped(1));
    engine.say(&sender, dropped(2));
    drop(sender);
    let text = engine.run(&["drops", "--log", "-o", "json"]);
    let log: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(log[0]["time"], "1970-01-01T00:00:01.000000000Z");
    assert_eq!(
        (log[1]["unix_ns"].as_u64(), log[1]["rule"].as_u64()),
        (Some(2_000_000_000), Some(7))
    );
}

#[test]
fn frames_of_a_capture_and_bytes_are_traced_with_the_new_fields() {
    let engine = Engine::start(Script::default());
    let mut capture = vec![0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4];
    capture.extend([0; 12]);
    capture.extend([0, 0, 0, 1]);
    for frame in [[7; 2], [8; 2]] {
        capture.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2]);
        capture.extend(frame);
    }
    let path = engine.path("two.pcap");
    std::fs::write(&path, capture).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(
        engine.run(&["trace", "--pcap", path, "--all", "--in-port", "3"]),
        "packet 1:\npacket: [7, 7] (2 bytes)\nverdict: drop\n\
         packet 2:\npacket: [8, 8] (2 bytes)\nverdict: drop\n"
    );
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&engine.run(arguments)).unwrap()
    };
    let all = json(&["trace", "--pcap", path, "--all", "--in-port", "3", "-o", "json"]);
    assert_eq!((&all[0]["flow"], &all[1]["flow"]), (&"[7, 7]".into(), &"[8, 8]".into()));
    let one = json(&["trace", "--hex", "01:02:03", "--in-port", "3", "-o", "json"]);
    assert_eq!((one["packet_bytes"].as_u64(), one["in_port"].as_u64()), (Some(3), Some(3)));
    std::fs::write(path, [0x0a, 0x0d, 0x0d, 0x0a, 0]).unwrap();
    let refused = engine.vrctl(&["trace", "--pcap", path, "--in-port", "3"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is a pcapng file; convert it"));
}

#[test]
fn connections_and_meters_are_listed() {
    let engine = Engine::start(Script::default());
    assert_eq!(
        engine.run(&["connection", "ls", "tcp", "--limit", "5"]),
        "VRF  PORT  STATE  IDLE  EXPIRES  ORIGINAL\n  0     3  new      0s       0s\n"
    );
    assert!(engine.run(&["conn", "stats"]).starts_with("open: 6\nhalf open: 0\n"));
    let meters: serde_json::Value =
        serde_json::from_str(&engine.run(&["meter", "ls", "-o", "json"])).unwrap();
    assert_eq!((meters[0]["meter"].as_u64(), meters[0]["unit"].as_str()), (Some(7), Some("bits")));
    let asked = &engine.script.lock().unwrap().asked;
    assert_eq!(asked[0], "ListRequest { kind: Connections, filter: \"tcp\", vrf: None, limit: 5 }");
}
