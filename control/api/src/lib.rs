//! The control plane's interface: `control.v1` as generated from `proto/control.proto`, and its
//! conversions to and from the types of `control-model`.

pub mod convert;

/// Messages, client and server of `control.v1`.
#[expect(
    clippy::pedantic,
    clippy::excessive_nesting,
    clippy::large_enum_variant,
    clippy::clone_on_ref_ptr,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    missing_docs,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("control.v1");
}

/// Encoded file descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
