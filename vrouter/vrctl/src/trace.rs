//! A trace as text: the packet, one step a paragraph in the order the tables were walked, what the
//! decision depended on and touches, and the verdict.

use std::collections::BTreeMap;

use datapath_api::v1;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct TraceView {
    verdict: String,
    reason: String,
    rule: u64,
    out_ports: Vec<u32>,
    steps: Vec<StepView>,
    flow: String,
    mask: String,
    ct_state: String,
    meters: Vec<TraceMeterView>,
    in_port: u32,
    cache: String,
    packet_bytes: u32,
}

#[derive(Debug, Serialize)]
struct TraceMeterView {
    meter: u32,
    way: String,
    colour: String,
}

#[derive(Debug, Serialize)]
struct StepView {
    table: String,
    rule: u64,
    #[serde(rename = "match")]
    matches: String,
    actions: Vec<String>,
}

impl From<v1::TraceReply> for TraceView {
    fn from(reply: v1::TraceReply) -> Self {
        let step = |step: v1::TraceStep| StepView {
            table: step.table,
            rule: step.rule,
            matches: step.r#match,
            actions: step.actions,
        };
        let meter = |meter: v1::TraceMeter| TraceMeterView {
            meter: meter.meter,
            way: meter.way,
            colour: meter.colour,
        };
        Self {
            verdict: reply.verdict,
            reason: reply.reason,
            rule: reply.rule,
            out_ports: reply.out_ports,
            steps: reply.steps.into_iter().map(step).collect(),
            flow: reply.flow,
            mask: reply.mask,
            ct_state: reply.ct_state,
            meters: reply.meters.into_iter().map(meter).collect(),
            in_port: reply.in_port,
            cache: reply.cache,
            packet_bytes: reply.packet_bytes,
        }
    }
}

/// The text of a trace. `names` are the ports' names by id.
pub(crate) fn trace_text(trace: &TraceView, names: &BTreeMap<u32, String>) -> String {
    let line = |name: &str, value: &str| match value {
        "" => String::new(),
        value => format!("{name}: {value}\n"),
    };
    let mut text = packet_line(trace);
    text += &line("state", &trace.ct_state);
    text.extend(trace.steps.iter().map(step_text));
    text.extend(trace.meters.iter().map(meter_line));
    text += &line("mask", &trace.mask);
    text += &line("cache", &trace.cache);
    text + &verdict_line(trace, names)
}

fn packet_line(trace: &TraceView) -> String {
    match (trace.flow.as_str(), trace.packet_bytes) {
        ("", _) => String::new(),
        (flow, 0) => format!("packet: {flow}\n"),
        (flow, bytes) => format!("packet: {flow} ({bytes} bytes)\n"),
    }
}

/// `meter: 7 (from, green)`
fn meter_line(meter: &TraceMeterView) -> String {
    format!("meter: {} ({}, {})\n", meter.meter, meter.way, meter.colour)
}

fn step_text(step: &StepView) -> String {
    let rule = if step.rule == 0 { String::new() } else { format!(" rule {}", step.rule) };
    let actions: Vec<_> = step.actions.iter().map(|action| format!("    {action}\n")).collect();
    format!("  {}: {}{rule}\n{}", step.table, step.matches, actions.concat())
}

/// `verdict: forward -> port 3 (name)`, `verdict: drop (policy-deny) by rule 7`.
fn verdict_line(trace: &TraceView, names: &BTreeMap<u32, String>) -> String {
    let port = |id: &u32| match names.get(id) {
        Some(name) => format!("port {id} ({name})"),
        None => format!("port {id}"),
    };
    let ports = trace.out_ports.iter().map(port).collect::<Vec<_>>().join(", ");
    let out = if ports.is_empty() { String::new() } else { format!(" -> {ports}") };
    let reason =
        if trace.reason.is_empty() { String::new() } else { format!(" ({})", trace.reason) };
    let rule = if trace.rule == 0 { String::new() } else { format!(" by rule {}", trace.rule) };
    format!("verdict: {}{out}{reason}{rule}\n", trace.verdict)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use datapath_api::v1;

    use super::{TraceView, trace_text};

    fn step(table: &str, rule: u64, matches: &str, actions: &[&str]) -> v1::TraceStep {
        v1::TraceStep {
            table: table.into(),
            rule,
            r#match: matches.into(),
            actions: actions.iter().map(|&a| a.into()).collect(),
        }
    }

    fn denied() -> TraceView {
        let reply = v1::TraceReply {
            verdict: "drop".into(),
            reason: "policy-deny".into(),
            rule: 7,
            out_ports: vec![],
            steps: vec![
                step("port", 0, "in_port=3", &["vrf=2", "bd=5", "src_group=3"]),
                step("policy", 7, "vrf=2,src_group=3,tcp,tp_dst=8001", &["deny"]),
            ],
            ..Default::default()
        };
        reply.into()
    }

    #[test]
    fn a_denied_packet_ends_with_reason_and_rule() {
        assert_eq!(
            trace_text(&denied(), &BTreeMap::new()),
            "\x20 port: in_port=3\n\
             \x20   vrf=2\n\
             \x20   bd=5\n\
             \x20   src_group=3\n\
             \x20 policy: vrf=2,src_group=3,tcp,tp_dst=8001 rule 7\n\
             \x20   deny\n\
             verdict: drop (policy-deny) by rule 7\n"
        );
    }

    #[test]
    fn a_forwarded_packet_names_its_port() {
        let reply = v1::TraceReply {
            verdict: "forward".into(),
            out_ports: vec![3, 4],
            steps: vec![step("mac", 0, "bd=5,dl_dst=02:00:0a:01:01:02", &["output:3"])],
            ..Default::default()
        };
        let names = BTreeMap::from([(3, "wr0123456789".to_owned())]);
        assert_eq!(
            trace_text(&reply.into(), &names),
            "\x20 mac: bd=5,dl_dst=02:00:0a:01:01:02\n\
             \x20   output:3\n\
             verdict: forward -> port 3 (wr0123456789), port 4\n"
        );
    }

    fn explained() -> TraceView {
        let meter = |meter, way: &str, colour: &str| v1::TraceMeter {
            meter,
            way: way.into(),
            colour: colour.into(),
        };
        let reply = v1::TraceReply {
            verdict: "forward".into(),
            out_ports: vec![4],
            steps: vec![step("port", 0, "in_port=3", &["vrf=2"])],
            flow: "in_port=3,tcp,nw_dst=10.1.1.2,tp_dst=80".into(),
            mask: "in_port=3,tcp,nw_dst=10.1.1.0/24,tp_dst=80/0xfff0".into(),
            ct_state: "+trk+new".into(),
            meters: vec![meter(7, "from", "green"), meter(9, "to", "yellow")],
            in_port: 3,
            cache: "masked".into(),
            packet_bytes: 98,
            ..Default::default()
        };
        reply.into()
    }

    #[test]
    fn a_trace_tells_what_it_depended_on_and_touches() {
        assert_eq!(
            trace_text(&explained(), &BTreeMap::new()),
            "packet: in_port=3,tcp,nw_dst=10.1.1.2,tp_dst=80 (98 bytes)\n\
             state: +trk+new\n\
             \x20 port: in_port=3\n\
             \x20   vrf=2\n\
             meter: 7 (from, green)\n\
             meter: 9 (to, yellow)\n\
             mask: in_port=3,tcp,nw_dst=10.1.1.0/24,tp_dst=80/0xfff0\n\
             cache: masked\n\
             verdict: forward -> port 4\n"
        );
    }

    #[test]
    fn new_fields_of_json_come_after_the_promised_ones() {
        assert_eq!(
            serde_json::to_string(&explained()).unwrap(),
            r#"{"verdict":"forward","reason":"","rule":0,"out_ports":[4],"steps":[{"table":"port","rule":0,"match":"in_port=3","actions":["vrf=2"]}],"flow":"in_port=3,tcp,nw_dst=10.1.1.2,tp_dst=80","mask":"in_port=3,tcp,nw_dst=10.1.1.0/24,tp_dst=80/0xfff0","ct_state":"+trk+new","meters":[{"meter":7,"way":"from","colour":"green"},{"meter":9,"way":"to","colour":"yellow"}],"in_port":3,"cache":"masked","packet_bytes":98}"#
        );
    }

    #[test]
    fn a_trace_as_json_has_the_promised_fields() {
        let json = serde_json::to_string(&denied()).unwrap();
        assert_eq!(
            json,
            r#"{"verdict":"drop","reason":"policy-deny","rule":7,"out_ports":[],"steps":[{"table":"port","rule":0,"match":"in_port=3","actions":["vrf=2","bd=5","src_group=3"]},{"table":"policy","rule":7,"match":"vrf=2,src_group=3,tcp,tp_dst=8001","actions":["deny"]}],"flow":"","mask":"","ct_state":"","meters":[],"in_port":0,"cache":"","packet_bytes":0}"#
        );
    }
}
