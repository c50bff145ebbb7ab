//! The engine's interface: `datapath.v1` as generated from `proto/datapath.proto`, and the
//! conversions between its messages and the plain entries of `flowtable`.

pub mod convert;

/// The types that [`convert`] speaks, for programs that read the engine and are no part of it.
pub use flowtable::{entry, ids};

/// Messages, client and server of `datapath.v1`.
#[expect(
    clippy::pedantic,
    clippy::excessive_nesting,
    clippy::clone_on_ref_ptr,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    missing_docs,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("datapath.v1");
}

/// Encoded file descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
