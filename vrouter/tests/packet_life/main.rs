//! A packet's life, one sentence a test: the exact bytes that come out, and every counter that
//! changed. [`fabric`] describes the node that all of them run on.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod arp;
mod delivery;
mod discovery;
mod explain;
#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "../fabric/mod.rs"]
mod fabric;
mod gateway;
#[expect(dead_code, clippy::expect_used, reason = "the other tests use the rest")]
#[path = "../oracle/bytes.rs"]
mod oracle_bytes;
mod ports;
mod refused;
mod tables;
mod tunnel;
mod wire;
