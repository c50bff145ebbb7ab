//! Why a run failed, its exit code, and the lines that tell the user.

use std::io;
use std::path::PathBuf;

use datapath_api::convert::ConvertError;
use tonic::{Code, Status};

use crate::packet::PacketError;

/// Wrong usage.
pub(crate) const EXIT_USAGE: u8 = 1;
/// The request failed, or the engine can't be reached.
const EXIT_FAILED: u8 = 2;
/// The engine refuses: bad flow text, no such port.
const EXIT_REFUSED: u8 = 3;
/// A local file or stream.
pub(crate) const EXIT_IO: u8 = 4;

/// Everything that ends a run early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The packet to trace.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// No connection.
    #[error("cannot reach vrouterd at {}: {cause}", .socket.display(), cause = root_cause(.source))]
    Unreachable {
        /// Where it should be.
        socket: PathBuf,
        /// What the transport says.
        source: tonic::transport::Error,
    },
    /// A socket path that can't be written as text.
    #[error("{} is not a socket path: it is not UTF-8", .0.display())]
    SocketPath(PathBuf),
    /// An answer with an error status.
    #[error("{}", .0.message())]
    Status(Box<Status>),
    /// An answer that makes no sense.
    #[error("the engine's reply makes no sense ({0}); are vrctl and vrouterd of the same version?")]
    Reply(#[from] ConvertError),
    /// The result can't be written as JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Standard output or the runtime.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The directory for manual pages.
    #[error("cannot write manual pages to {}: {source}", .dir.display())]
    Pages {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl Failure {
    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Packet(PacketError::Open { .. } | PacketError::Pcap { .. })
            | Self::Json(_)
            | Self::Io(_)
            | Self::Pages { .. } => EXIT_IO,
            Self::Packet(_) | Self::SocketPath(_) => EXIT_USAGE,
            Self::Status(status) => status_exit_code(status.code()),
            Self::Unreachable { .. } | Self::Reply(_) => EXIT_FAILED,
        }
    }

    /// The message, and the next step where there is one.
    pub(crate) fn report(&self) -> String {
        match self {
            Self::Unreachable { .. } => format!(
                "vrctl: error: {self}\n  next: start vrouterd, or name its socket with --socket or \
                 WEIR_DATAPATH\n"
            ),
            Self::Status(status) if status.message().is_empty() => {
                format!("vrctl: error: {:?}\n", status.code())
            }
            Self::Packet(_)
            | Self::SocketPath(_)
            | Self::Status(_)
            | Self::Reply(_)
            | Self::Json(_)
            | Self::Io(_)
            | Self::Pages { .. } => format!("vrctl: error: {self}\n"),
        }
    }
}

fn status_exit_code(code: Code) -> u8 {
    match code {
        Code::Ok => 0,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange => EXIT_REFUSED,
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => EXIT_FAILED,
    }
}

/// tonic's own texts say "transport error"; the system's reason is at the end of the chain.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_exit_code() {
        let code = |code| Failure::from(Status::new(code, "x")).exit_code();
        assert_eq!(code(Code::InvalidArgument), 3);
        assert_eq!(code(Code::NotFound), 3);
        assert_eq!(code(Code::Unavailable), 2);
        assert_eq!(code(Code::Unimplemented), 2);
        assert_eq!(Failure::from(PacketError::HexOdd).exit_code(), 1);
        let open =
            PacketError::Open { path: "/nowhere".into(), source: io::ErrorKind::NotFound.into() };
        assert_eq!(Failure::from(open).exit_code(), 4);
        assert_eq!(Failure::Io(io::ErrorKind::StorageFull.into()).exit_code(), 4);
    }

    #[test]
    fn a_status_without_a_message_is_named_by_its_code() {
        let report = Failure::from(Status::new(Code::Unimplemented, "")).report();
        assert_eq!(report, "vrctl: error: Unimplemented\n");
        let report = Failure::from(Status::new(Code::NotFound, "no port \"x\"")).report();
        assert_eq!(report, "vrctl: error: no port \"x\"\n");
    }
}
