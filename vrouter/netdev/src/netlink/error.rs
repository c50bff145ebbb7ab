//! What went wrong in a netlink request, and in which one.

use std::fmt;
use std::io;

use netlink_packet_core::DecodeError;
use nix::errno::Errno;

use crate::namespace;

/// What was being done and to which device: "creating veth wr1234".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    action: &'static str,
    subject: String,
}

impl Operation {
    pub(crate) fn new(action: &'static str, subject: impl fmt::Display) -> Self {
        Self { action, subject: subject.to_string() }
    }

    pub(crate) fn on_link(action: &'static str, index: u32) -> Self {
        Self { action, subject: format!("link {index}") }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action)?;
        if !self.subject.is_empty() {
            write!(f, " {}", self.subject)?;
        }
        Ok(())
    }
}

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the request, or the socket failed.
    #[error("{operation}")]
    Kernel {
        /// What was asked for.
        operation: Operation,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel answered with something that is not a netlink message.
    #[error("{operation}: the answer cannot be parsed")]
    Answer {
        /// What was asked for.
        operation: Operation,
        /// The parser's complaint.
        source: DecodeError,
    },
    /// The kernel confirmed the request without the object that it should have returned.
    #[error("{operation}: the answer lacks {missing}")]
    Incomplete {
        /// What was asked for.
        operation: Operation,
        /// What was to be in it.
        missing: &'static str,
    },
    /// The list changed under the kernel's hands each time it was read.
    #[error("{operation}: the list kept changing while it was read")]
    Unsteady {
        /// What was asked for.
        operation: Operation,
    },
    /// The socket's namespace could not be entered.
    #[error("opening a netlink socket in another namespace")]
    Namespace(#[from] namespace::Error),
}

impl Error {
    /// The kernel's error number, when the kernel refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Answer { .. }
            | Self::Incomplete { .. }
            | Self::Unsteady { .. }
            | Self::Namespace(_) => None,
        }
    }

    /// The device, address, route or neighbour is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL)
        )
    }

    /// Something of that name or address is there already.
    #[must_use]
    pub fn is_existing(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// No route leads to the address.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn an_error_names_operation_and_device_and_keeps_the_cause() {
        let operation = Operation::new("creating veth", "wr1234");
        let source = io::Error::from(Errno::EEXIST);
        let error = Error::Kernel { operation, source };
        assert_eq!(error.to_string(), "creating veth wr1234");
        assert!(error.source().unwrap().to_string().starts_with("File exists"));
        assert!(error.is_existing());
        assert!(!error.is_missing());
    }
}
