//! `vrperf engine` as it is called: one JSON object, whose numbers fit together.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]
#![expect(clippy::float_cmp, reason = "shares of none and of all are exact")]

use std::process::Command;

use serde_json::Value;

fn vrperf(args: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vrperf"));
    command.args(["engine", "--json", "--seconds", "0.2", "--acl-rules", "50"]).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {report}"))
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {report}"))
}

#[test]
fn established_flows_are_all_decided_by_a_cache_and_compared() {
    for args in [&["--flows", "300"][..], &["--encap", "vxlan"], &["--decap", "vxlan"]] {
        let report = vrperf(args);
        assert_eq!(number(&report, "/exact_hit_pct") + number(&report, "/masked_hit_pct"), 100.0);
        let (packets, verified) = (count(&report, "/packets"), count(&report, "/verified_packets"));
        assert!(packets > 0 && verified >= 2 * count(&report, "/flows"), "{report}");
        assert_eq!((&report["output_verified"], count(&report, "/drops")), (&true.into(), 0));
    }
}

#[test]
fn no_new_flow_is_found_in_a_cache() {
    for args in [&["--new-flows"][..], &["--new-flows", "--stateless", "--encap", "vxlan"]] {
        let report = vrperf(args);
        assert_eq!(number(&report, "/exact_hit_pct"), 0.0, "{report}");
        assert_eq!(number(&report, "/pipeline_pct"), 100.0, "{report}");
        assert!(number(&report, "/new_flows_per_s") > 0.0, "{report}");
        assert!(count(&report, "/verified_packets") >= 65_536, "{report}");
    }
}

#[test]
fn without_caches_every_packet_walks_the_tables() {
    let report = vrperf(&["--caches", "off"]);
    assert_eq!(number(&report, "/pipeline_pct"), 100.0, "{report}");
    let args = ["engine", "--json", "--seconds", "0.1", "--caches", "off", "--flows", "1"];
    let output = Command::new(env!("CARGO_BIN_EXE_vrperf")).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("want more --flows"), "{said}");
}

#[test]
fn victims_are_counted_without_and_with_each_attack() {
    for attack in ["tse", "new-flows", "syn"] {
        let report = vrperf(&["--attack", attack, "--victim-pps", "1000"]);
        for phase in ["without", "with"] {
            let at = |field: &str| format!("/attack/{phase}/{field}");
            let (offered, delivered) =
                (count(&report, &at("victim_offered")), count(&report, &at("victim_delivered")));
            assert!(delivered > 0 && delivered <= offered, "{report}");
            assert_eq!(count(&report, &at("victim_drops")), 0, "{report}");
            assert!(count(&report, &at("delay_ns_p50")) <= count(&report, &at("delay_ns_p99")));
        }
        let dropped = report.pointer("/attack/attacker/dropped").and_then(Value::as_object);
        let dropped = dropped.unwrap().values().filter_map(Value::as_u64).sum::<u64>();
        let forwarded = count(&report, "/attack/attacker/forwarded");
        assert_eq!(count(&report, "/attack/attacker/received"), forwarded + dropped, "{report}");
        if attack == "tse" {
            assert!(dropped > forwarded, "{report}");
        } else {
            // The rules let a flood pass; what the port may not open is refused.
            let refused = report.pointer("/attack/attacker/dropped/flow-limit");
            assert!(forwarded > 0, "{report}");
            assert_eq!(refused.and_then(Value::as_u64).unwrap_or(0), dropped, "{report}");
        }
    }
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let args = ["engine", "--attack", "syn", "--new-flows"];
    let output = Command::new(env!("CARGO_BIN_EXE_vrperf")).args(args).output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(2), Vec::new()));
}
