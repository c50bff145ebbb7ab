//! A trace as text: one step a paragraph, in the order the tables were walked, then the verdict.

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
        Self {
            verdict: reply.verdict,
            reason: reply.reason,
            rule: reply.rule,
            out_ports: reply.out_ports,
            steps: reply.steps.into_iter().map(step).collect(),
        }
    }
}

/// The text of a trace. `names` are the ports' names by id.
pub(crate) fn trace_text(trace: &TraceView, names: &BTreeMap<u32, String>) -> String {
    let mut text: String = trace.steps.iter().map(step_text).collect::<Vec<_>>().concat();
    text.push_str(&verdict_line(trace, names));
    text
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

    #[test]
    fn a_trace_as_json_has_the_promised_fields() {
        let json = serde_json::to_string(&denied()).unwrap();
        assert_eq!(
            json,
            r#"{"verdict":"drop","reason":"policy-deny","rule":7,"out_ports":[],"steps":[{"table":"port","rule":0,"match":"in_port=3","actions":["vrf=2","bd=5","src_group=3"]},{"table":"policy","rule":7,"match":"vrf=2,src_group=3,tcp,tp_dst=8001","actions":["deny"]}]}"#
        );
    }
}
