//! What the engine delivers from veth to veth.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use kit::binary;
use serde_json::Value;

use crate::check::Check;
use crate::world::World;

pub(crate) const CHECK: Check = Check {
    number: 8,
    title: "vrperf throughput prints what is delivered veth to veth",
    run,
    sabotage: |world| {
        world.throughput = vec!["--frame".into(), "1".into()];
        Ok(())
    },
};

fn run(world: &mut World) -> Result<String> {
    let mut command = Command::new(binary("vrperf")?);
    command.args(["throughput", "--topology", "veth", "--json"]).args(&world.throughput);
    let text = kit::run(world.nodes.one.namespace(), command)?.success()?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let number = |field: &str| report[field].as_f64().with_context(|| format!("no {field}"));
    let delivered = number("delivered_mpps")?;
    ensure!(delivered > 0.0, "nothing delivered: {report}");
    Ok(format!(
        "{delivered:.2} Mpps of {} bytes delivered ({:.2} offered), {} flows, {} rules",
        report["frame"],
        number("offered_mpps")?,
        report["flows"],
        report["acl_rules"],
    ))
}
