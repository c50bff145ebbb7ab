//! What the end-to-end tests and the demo stand on: nodes, containers, packets, and waiting.
//!
//! Everything made here is held by a guard, which removes it when dropped, on a panic too; the
//! demo also calls [`cleanup_on_signal`]. Names carry a prefix ([`Purpose`]) and the process's id,
//! so that runs do not meet and what a killed run left is found by [`remove_leftovers`].
//!
//! Daemons and tools are the built binaries, run as a user would run them. Nothing sleeps for a
//! fixed time: [`wait_until`] looks for a condition, with a bound, and says what it waited for.
//! Errors are `anyhow`: whoever uses this is a test.

mod binary;
mod cleanup;
mod cni;
mod container;
mod dir;
pub mod frame;
mod netns;
mod node;
pub mod pages;
mod ping;
mod process;
mod requirements;
mod tcp;
mod topology;
mod wait;

pub use binary::binary;
pub use cleanup::{cleanup_on_signal, remove_leftovers};
pub use cni::CniCall;
pub use container::{CONTAINER_IFNAME, Container, ContainerSpec};
pub use dir::DirGuard;
pub use netns::{NetnsGuard, Purpose, capture};
pub use node::{Daemon, Node};
pub use ping::{Flow, FlowReport, Ping, ping};
pub use process::{Finished, ProcessGuard, run, run_with_input};
pub use requirements::{Missing, Needs, requirements};
pub use tcp::{TcpServer, TcpSink, tcp_connect, tcp_echo, tcp_transfer};
pub use topology::{FABRIC_PORT, OneNode, Topology, TwoNodes, UPLINK};
pub use wait::{TimedOut, retry, wait_until};
