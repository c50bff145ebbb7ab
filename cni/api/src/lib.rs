//! What weir-cni asks of netplugin: `cni.v1` as generated from `proto/cni.proto`.

/// Messages, client and server of `cni.v1`.
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
    tonic::include_proto!("cni.v1");
}

/// Encoded file descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
