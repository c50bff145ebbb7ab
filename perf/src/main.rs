//! `vrperf`: what the engine can do, reproducibly. Standard output is exactly one JSON object;
//! progress goes to standard error.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod classbench;
mod classify;
mod cpu;
mod duel;
mod engine;
mod memory;
mod meter;
mod scale;
mod throughput;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures the Weir engine.
#[derive(Debug, Parser)]
#[command(name = "vrperf", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The policy classifier on a `ClassBench` rule set, compared with a walk over the rules.
    Classify(classify::Options),
    /// The worker alone, on memory ports that copy every frame in.
    Engine(engine::Options),
    /// What the exact cache costs in memory alone: the bound for many flows.
    Memory(memory::Options),
    /// A limited container that sends as fast as it can.
    Meter(meter::Options),
    /// TCP in bulk between two containers, by Weir and by something else (root).
    Tcp(duel::Options),
    /// Small datagrams of one container to another, by Weir and by something else (root).
    Udp(duel::UdpOptions),
    /// Short TCP connections between two containers, by Weir and by something else (root).
    Connect(duel::Options),
    /// Round trips between two containers, by Weir and by something else (root).
    Rr(duel::EchoOptions),
    /// Many tenants and networks in one engine.
    Scale(scale::Options),
    /// Through AF_XDP and veth, from a generator to a counting sink (root).
    Throughput(throughput::Options),
}

fn main() -> Result<()> {
    let report = match Cli::parse().command {
        Command::Classify(options) => serde_json::to_string(&classify::run(&options)?)?,
        Command::Engine(options) => serde_json::to_string(&engine::run(&options)?)?,
        Command::Memory(options) => serde_json::to_string(&memory::run(&options)?)?,
        Command::Meter(options) => serde_json::to_string(&meter::run(&options)?)?,
        Command::Scale(options) => serde_json::to_string(&scale::run(&options)?)?,
        Command::Tcp(options) => serde_json::to_string(&duel::tcp(&options)?)?,
        Command::Udp(options) => serde_json::to_string(&duel::udp(&options)?)?,
        Command::Connect(options) => serde_json::to_string(&duel::connect(&options)?)?,
        Command::Rr(options) => serde_json::to_string(&duel::rr(&options)?)?,
        Command::Throughput(options) => serde_json::to_string(&throughput::run(&options)?)?,
    };
    println!("{report}");
    Ok(())
}
