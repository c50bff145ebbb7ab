//! Random worlds, random packets, random changes: whatever they are, the engine does with every
//! packet what the oracle says, explains it the same way, does it again from its cache, and gives no
//! tenant anything of another.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod callers;
#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "../fabric/mod.rs"]
mod fabric;
#[expect(dead_code, reason = "stateless tenants need no memory")]
#[path = "../oracle/mod.rs"]
mod oracle;
mod packets;
mod run;
mod tables;
mod world;

use proptest::prelude::*;

use run::Node;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_oracle_says(plan in world::plan()) {
        let mut node = Node::new(&plan.world);
        for step in &plan.steps {
            node.take(step, &plan.world.hosts);
        }
        node.balance();
    }
}

/// What random plans must meet often enough for the property to mean something.
#[test]
fn random_plans_meet_every_fate() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut met = run::Met::default();
    for _ in 0..300 {
        let plan = world::plan().new_tree(&mut runner).unwrap().current();
        let mut node = Node::new(&plan.world);
        for step in &plan.steps {
            node.take(step, &plan.world.hosts);
        }
        met.add(&node);
    }
    met.assert_enough();
}
