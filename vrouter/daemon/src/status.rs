//! What a client is told of an error: it sees nothing else of it.

use std::error::Error;

use afxdp::ProgramError;
use flowtable::ids::OutOfRange;
use offload::OffloadError;
use tonic::{Code, Status};

use crate::ports::PortsError;

/// What a port that was not added or removed is to who asked for it.
pub(crate) const fn port_code(error: &PortsError) -> Code {
    match error {
        PortsError::NoDevice { .. } | PortsError::Unknown { .. } => Code::NotFound,
        PortsError::NotContainer { .. }
        | PortsError::ManyQueues { .. }
        | PortsError::Trunk { .. }
        | PortsError::Offload(OffloadError::Foreign { .. })
        | PortsError::Program(ProgramError::Foreign { .. } | ProgramError::Unsupported { .. }) => {
            Code::FailedPrecondition
        }
        PortsError::DeviceTaken { .. } | PortsError::PortTaken { .. } => Code::AlreadyExists,
        PortsError::NoQueue | PortsError::Frames { .. } => Code::ResourceExhausted,
        PortsError::Netlink(_)
        | PortsError::Ethtool(_)
        | PortsError::Offload(_)
        | PortsError::Tunnel(_)
        | PortsError::Program(_)
        | PortsError::Queue(_)
        | PortsError::Attach(_)
        | PortsError::Worker(_)
        | PortsError::Engine(_) => Code::Internal,
    }
}

/// A value that can't be.
pub(crate) fn invalid(error: &dyn Error) -> Status {
    status(Code::InvalidArgument, error)
}

/// A number that is out of range.
pub(crate) fn range(field: &str, error: OutOfRange) -> Status {
    Status::invalid_argument(format!("{field}: {error}"))
}

/// The error with all its causes.
pub(crate) fn status(code: Code, error: &dyn Error) -> Status {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    Status::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_every_cause() {
        let error = PortsError::Program(ProgramError::NoDevice {
            ifname: "eth1".into(),
            source: nix::Error::ENODEV,
        });
        let text = "the uplink's program: no device eth1: ENODEV: No such device";
        assert_eq!(status(Code::Internal, &error).message(), text);
    }
}
