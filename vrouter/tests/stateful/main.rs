//! Random conversations between tracked tenants on random tables that change meanwhile: the engine
//! does with every packet what the oracle with its plain lists says, in the caches or not, explains
//! it beforehand the same way, counts every rule the same, and keeps the same connections.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../differential/callers.rs"]
mod callers;
#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "../fabric/mod.rs"]
mod fabric;
mod node;
#[path = "../oracle/mod.rs"]
mod oracle;
#[path = "../differential/packets.rs"]
mod packets;
mod plan;
#[expect(dead_code, reason = "another node runs these plans")]
#[path = "../differential/run.rs"]
mod run;
#[path = "../differential/tables.rs"]
mod tables;
mod talk;
#[expect(dead_code, reason = "another plan uses this world")]
#[path = "../differential/world.rs"]
mod world;

use proptest::prelude::*;

use node::Node;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn dbg_1_trace_and_caches_and_tables_and_oracle_agree_about_every_packet(plan in plan::plan()) {
        Node::run(&plan, 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Who asks and who answers meet different workers, wherever their ports are odd and even.
    #[test]
    fn two_workers_and_oracle_agree_about_every_packet(plan in plan::plan()) {
        Node::run(&plan, 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_and_no_table_stops_a_worker(storm in plan::storm()) {
        node::endure(&storm);
    }
}

/// What random plans must meet often enough for the property to mean something.
#[test]
fn random_conversations_meet_every_fate() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut met = node::Met::default();
    for _ in 0..120 {
        let plan = plan::plan().new_tree(&mut runner).unwrap().current();
        met.add(&Node::run(&plan, 1));
    }
    met.assert_enough();
}
