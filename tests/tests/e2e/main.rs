//! End-to-end tests: the built programs on real namespaces, devices and sockets.
//!
//! A test that cannot run here shows as ignored, with the reason in its name; with
//! `WEIR_REQUIRE_ALL=1` (CI) that is a failure. Tests run one at a time: two cores carry two nodes.
#![expect(clippy::print_stderr, reason = "a test harness")]

mod addresses;
mod api;
mod atomic;
mod checksums;
mod clocks;
mod cni;
mod control;
mod crew;
mod ctl;
mod disk;
mod dual;
mod explain;
mod failover;
mod features;
mod files;
mod foreign;
mod ha;
mod hostile;
mod job;
mod kills;
mod lessons;
mod metrics;
mod offloading;
mod offloads;
mod pace;
mod packet;
mod policy;
mod published;
mod qos;
mod refusals;
mod restart;
mod runtime;
mod scale;
mod shared;
mod site;
mod starts;
mod state;
mod trouble;
mod uplink;
mod wire;
mod work;

use std::process::ExitCode;

use kit::{Needs, Purpose, remove_leftovers, requirements};
use libtest_mimic::{Arguments, Failed, Trial};

/// A test: its name, a sentence, and what it does.
type Test = (String, Box<dyn FnOnce() -> anyhow::Result<()> + Send>);

const NEEDS: Needs<'static> = Needs {
    binaries: &["netmaster", "netplugin", "vrouterd", "netctl", "vrctl", "vrperf", "weir-cni"],
    programs: &["sfacctd", "ip"],
};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let missing = requirements(&NEEDS).err().map(|missing| missing.to_string());
    let must_run = std::env::var_os("WEIR_REQUIRE_ALL").is_some_and(|value| value != "0");
    if let Some(reason) = &missing
        && must_run
    {
        eprintln!("e2e: nothing may be skipped (WEIR_REQUIRE_ALL), but this machine {reason}");
        return ExitCode::FAILURE;
    }
    if missing.is_none()
        && let Err(error) = remove_leftovers(Purpose::Test)
    {
        eprintln!("e2e: leftovers of an earlier run: {error:#}");
        return ExitCode::FAILURE;
    }
    let modules = [
        job::tests,
        cni::tests,
        lessons::tests,
        refusals::tests,
        api::tests,
        addresses::tests,
        dual::tests,
        scale::tests,
        policy::tests,
        features::tests,
        atomic::tests,
        starts::tests,
        pace::tests,
        state::tests,
        qos::tests,
        published::tests,
        wire::tests,
        hostile::tests,
        uplink::tests,
        failover::tests,
        restart::tests,
        trouble::tests,
        disk::tests,
        offloading::tests,
        offloads::tests,
        checksums::tests,
        work::tests,
        crew::tests,
        ctl::tests,
        metrics::tests,
        files::tests,
        explain::tests,
        ha::without_etcd,
    ];
    let ours =
        modules.into_iter().flat_map(|tests| tests()).map(|test| trial(test, missing.as_deref()));
    let suites = foreign::SUITES.into_iter().chain([ha::SUITE, clocks::SUITE]);
    let more = suites.flat_map(|(programs, tests)| {
        let needs = Needs { programs, ..Needs::default() };
        let absent = requirements(&needs).err().map(|missing| missing.to_string());
        let reason = missing.clone().or(absent);
        tests().into_iter().map(move |test| trial(test, reason.as_deref()))
    });
    let trials = ours.chain(more).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test; ignored, with the reason in its name, where something is missing.
fn trial((name, test): Test, missing: Option<&str>) -> Trial {
    let name = missing.map_or(name.clone(), |reason| format!("{name} [{reason}]"));
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
        .with_ignored_flag(missing.is_some())
}
