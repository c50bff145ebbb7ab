//! The engine on memory ports, loaded with a tenant and its traffic: what `vrperf engine` measures
//! and what the benchmarks count the instructions of.
//!
//! [`workload`] makes tables and packets from numbers, [`Rig`] is vrouterd's own worker on memory
//! ports, [`Traffic`] what goes in and what must come out, [`Checker`] compares every byte of that, and
//! a [`Case`] is one of the workloads whose instructions are counted.

mod case;
mod rig;
mod traffic;
mod verify;
pub mod workload;

pub use case::{CASE_PACKETS, Case, Prepared};
pub use rig::{Rig, SINK, UPLINK, WIRE};
pub use traffic::Traffic;
pub use verify::{Checker, Order, Verified};
