//! Packet keys, tables, caches and the text form of flows.
//!
//! Pure and synchronous: no I/O, no clock, no thread, no frame ownership. The engine (`vrouter`)
//! walks these tables; the control plane compiles intent into [`entry::Entry`] values; both sides
//! name drops by [`DropReason`]. All multi-byte numbers in these types are in host order, all
//! addresses are `std::net` types or, inside [`key::FlowKey`], bytes as on the wire.

pub mod action;
pub mod cache;
pub mod conn;
pub mod drop;
pub mod entry;
pub mod exact;
pub mod fragment;
pub mod hot;
pub mod ids;
pub mod key;
pub mod lpm;
pub mod meter;
pub mod policy;
pub mod service;
pub mod text;

pub use action::{Action, ActionList, Verdict};
pub use drop::DropReason;
