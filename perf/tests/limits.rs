//! `vrperf meter` and `vrperf scale` as they are called.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::process::Command;

use serde_json::Value;

fn vrperf(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_vrperf")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {report}"))
}

/// Not a timed test: rate and clock are of the same CPU time, however busy the machine is.
#[test]
fn udp_gets_its_rate_within_two_percent_at_every_frame_size() {
    for rate in ["5000000", "50000000"] {
        let report = vrperf(&["meter", "--json", "--seconds", "0.5", "--rate", rate]);
        assert!(number(&report, "/error_pct_max") < 2.0, "{report}");
        for size in 0..3 {
            let refused = number(&report, &format!("/sizes/{size}/limited_packets"));
            assert!(refused > 0.0, "{report}");
        }
    }
}

#[test]
fn a_rate_that_the_worker_never_reaches_is_no_measurement() {
    let args = ["meter", "--seconds", "0.1", "--rate", "2000000000"];
    let output = Command::new(env!("CARGO_BIN_EXE_vrperf"))
        .args(args)
        .args(["--burst", "1000000000"])
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--rate"), "{output:?}");
}

#[test]
fn ten_3_tenants_with_the_same_addresses_do_not_disturb_one_another() {
    let args = ["--tenants", "50", "--networks", "500", "--endpoints", "3", "--seconds", "0.1"];
    let report = vrperf(&[&["scale", "--json"][..], &args].concat());
    // Tenants and their rules, networks with their tunnels and endpoints, one tunnel end point.
    let entries = 50 * (1 + 10) + 500 * (2 + 3 * 3) + 1;
    assert!((number(&report, "/entries") - f64::from(entries)).abs() < 0.5, "{report}");
    assert!(number(&report, "/drops").abs() < 0.5, "{report}");
    assert!(number(&report, "/ns_per_packet") > 0.0, "{report}");
}
