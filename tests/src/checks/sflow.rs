//! A collector that others wrote estimates the right packet rate from our samples.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::wait_until;

use crate::check::Check;
use crate::world::{SAMPLE_RATE, Who, World};

const PORT: u16 = 9999;
const DATAGRAMS: u64 = 150_000;
/// Between two looks at the counter.
const BATCH: u32 = 10_000;
/// The exporter sends each second, the collector writes each second: what was quiet for longer is final.
const QUIET: Duration = Duration::from_millis(2500);
const BOUND: Duration = Duration::from_secs(20);

pub(crate) const CHECK: Check = Check {
    number: 6,
    title: "sfacctd decodes the sFlow datagrams, and its estimate is within the sampling error",
    run,
    sabotage: |world| world.collector.take().context("no collector")?.stop(),
};

fn run(world: &mut World) -> Result<String> {
    let (sender, receiver) = (world.container(Who::A)?, world.container(Who::C)?);
    let to = SocketAddr::from((receiver.address(), PORT));
    // Bound and never read: a full buffer drops silently, no port answers "unreachable".
    let _silent = receiver.namespace().run(|| UdpSocket::bind(to))??;
    let socket = sender.namespace().run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    let before = received(world)?;
    let enough = || {
        for _ in 0..BATCH {
            // What a full device queue or the port's limit takes is missing on both sides.
            drop(socket.send_to(&[0x5a; 58], to));
        }
        received(world).ok().filter(|now| *now >= before + DATAGRAMS)
    };
    wait_until(BOUND, format!("{DATAGRAMS} packets to come to the port"), enough)?;
    let sent = wait_until(BOUND, "the port's counter to settle", || settled(world))? - before;
    let (src, dst) = (sender.address().to_string(), receiver.address().to_string());
    let samples = f64::from(u32::try_from(sent)?) / f64::from(SAMPLE_RATE);
    // Packet sampling basics (sflow.org): 196*sqrt(1/c) % at 95 %; 4.5 sigma for a test.
    let allowed_pct = 450.0 / samples.sqrt();
    let mut last = (0, Instant::now());
    let complete = || {
        let estimate = world.collector.as_ref()?.estimate(&src, &dst, PORT).ok()?;
        if estimate != last.0 {
            last = (estimate, Instant::now());
        }
        (estimate > 0 && last.1.elapsed() > QUIET).then_some(estimate)
    };
    let estimate = wait_until(BOUND, format!("a final estimate of {sent} packets"), complete)?;
    let error_pct = deviation_pct(estimate, sent).context("too many packets to compare")?;
    ensure!(
        error_pct.abs() <= allowed_pct,
        "{sent} packets, estimated {estimate}: {error_pct:+.2} %"
    );
    Ok(format!(
        "{sent} packets at 1:{SAMPLE_RATE}, estimated {estimate}: {error_pct:+.2} % of \
         {allowed_pct:.2} % allowed"
    ))
}

fn received(world: &World) -> Result<u64> {
    world.port(Who::A)?["rx_packets"].as_u64().context("no rx_packets")
}

/// The counter, once two looks agree.
fn settled(world: &World) -> Option<u64> {
    let first = received(world).ok()?;
    (received(world).ok()? == first).then_some(first)
}

fn deviation_pct(estimate: u64, truth: u64) -> Option<f64> {
    let (estimate, truth) = (u32::try_from(estimate).ok()?, u32::try_from(truth).ok()?);
    Some(100.0 * (f64::from(estimate) - f64::from(truth)) / f64::from(truth))
}
