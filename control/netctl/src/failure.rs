//! Why a run failed, its exit code, and the lines that tell the user.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use control_api::v1;
use prost::Message as _;
use tonic::{Code, Status};

use crate::data::DataError;
use crate::manifest::ManifestError;
use crate::rule::RuleError;
use crate::target::Target;

/// Wrong usage.
pub(crate) const EXIT_USAGE: u8 = 1;
/// The request failed, or netmaster can't be reached.
const EXIT_FAILED: u8 = 2;
/// Netmaster refuses: bad value, not found, conflict.
const EXIT_REFUSED: u8 = 3;
/// A local file or stream.
pub(crate) const EXIT_IO: u8 = 4;

/// Everything that ends a run early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A rule that can't be meant.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// No connection.
    #[error("cannot reach netmaster at {target}: {cause}", cause = root_cause(&**.source))]
    Unreachable {
        /// Where it should be.
        target: Target,
        /// What the transport or the system says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer with an error status.
    #[error("{}", .0.message())]
    Status(Box<Status>),
    /// An answer that makes no sense; netmaster and netctl do not fit together.
    #[error("netmaster's reply has no {0}; are netctl and netmaster of the same version?")]
    Reply(&'static str),
    /// The result can't be written in the form asked for.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file with objects in it that are none.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// A file that can't be read.
    #[error("cannot read {}: {source}", if name == "-" { "standard input" } else { name })]
    File {
        /// Its name, or "-".
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// A file that can't be written.
    #[error("cannot write {name}: {source}")]
    Write {
        /// Its name.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// Contiv's `login`.
    #[error("there is nothing to log in to: netmaster has no users in this version")]
    NoLogin,
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
            Self::Rule(_) => EXIT_USAGE,
            Self::Status(status) => status_exit_code(status.code()),
            Self::Manifest(_) | Self::NoLogin => EXIT_REFUSED,
            Self::Unreachable { .. } | Self::Reply(_) => EXIT_FAILED,
            Self::Data(_)
            | Self::Io(_)
            | Self::File { .. }
            | Self::Write { .. }
            | Self::Pages { .. } => EXIT_IO,
        }
    }

    /// The message, and below it what netmaster says of the field at fault and the way out.
    pub(crate) fn report(&self) -> String {
        let message = self.to_string();
        let mut text = format!("netctl: error: {}\n", message.trim_end());
        for (name, value) in self.details(&message) {
            // Writing to a String cannot fail.
            if !value.is_empty() && writeln!(text, "  {name}: {value}").is_err() {
                break;
            }
        }
        text
    }

    fn details(&self, message: &str) -> Vec<(&'static str, String)> {
        match self {
            Self::Unreachable { .. } => {
                let step = "start netmaster, or name its address with --netmaster or NETMASTER";
                vec![("next", step.to_owned())]
            }
            Self::Status(status) => status_details(status, message),
            Self::NoLogin => {
                let step = "let netmaster listen where only you reach it";
                vec![("next", step.to_owned())]
            }
            Self::Manifest(_) => {
                vec![("next", "compare it with what `netctl get -o yaml` prints".to_owned())]
            }
            Self::Rule(_)
            | Self::Reply(_)
            | Self::Data(_)
            | Self::Io(_)
            | Self::File { .. }
            | Self::Write { .. }
            | Self::Pages { .. } => Vec::new(),
        }
    }
}

fn status_details(status: &Status, message: &str) -> Vec<(&'static str, String)> {
    // Details of another kind (a proxy's, say) are no ErrorDetail: the message alone stands then.
    let detail = v1::ErrorDetail::decode(status.details()).unwrap_or_default();
    // The reason is shown where it says more than the message does.
    let reason = if detail.reason == message { String::new() } else { detail.reason };
    // netctl's own deadline: netmaster has not said no.
    let late = matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded);
    let next = if late && detail.next_step.is_empty() {
        "a change may be stored all the same: look before repeating it, or raise --timeout".into()
    } else {
        detail.next_step
    };
    let status_name =
        if message.is_empty() { format!("{:?}", status.code()) } else { String::new() };
    vec![
        ("status", status_name),
        ("object", detail.object),
        ("field", detail.field),
        ("value", detail.value),
        ("reason", reason),
        ("next", next),
        ("request", request_id(status)),
    ]
}

/// What netmaster's log has the request under; empty when netmaster has not answered.
fn request_id(status: &Status) -> String {
    let id = status.metadata().get("x-request-id").and_then(|id| id.to_str().ok());
    id.unwrap_or_default().to_owned()
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

    fn refusal(code: Code, message: &str, detail: &v1::ErrorDetail) -> Failure {
        Status::with_details(code, message, detail.encode_to_vec().into()).into()
    }

    #[test]
    fn each_status_has_its_exit_code() {
        let code = |code| Failure::from(Status::new(code, "x")).exit_code();
        for refused in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::AlreadyExists,
            Code::FailedPrecondition,
            Code::ResourceExhausted,
        ] {
            assert_eq!(code(refused), 3, "{refused:?}");
        }
        for failed in [Code::Unavailable, Code::DeadlineExceeded, Code::Internal, Code::Cancelled] {
            assert_eq!(code(failed), 2, "{failed:?}");
        }
        assert_eq!(Failure::from(RuleError::Direction).exit_code(), 1);
        assert_eq!(Failure::Reply("object").exit_code(), 2);
        assert_eq!(Failure::Io(io::ErrorKind::StorageFull.into()).exit_code(), 4);
    }

    #[test]
    fn a_refusal_is_reported_with_field_value_reason_and_next_step() {
        let detail = v1::ErrorDetail {
            field: "gateway".into(),
            value: "10.1.2.254".into(),
            reason: "it is not inside 10.1.1.0/24".into(),
            next_step: "choose an address of the subnet".into(),
            ..v1::ErrorDetail::default()
        };
        let failure = refusal(Code::InvalidArgument, "Network subnet format not valid", &detail);
        assert_eq!(
            failure.report(),
            "netctl: error: Network subnet format not valid\n\
             \x20 field: gateway\n\
             \x20 value: 10.1.2.254\n\
             \x20 reason: it is not inside 10.1.1.0/24\n\
             \x20 next: choose an address of the subnet\n"
        );
    }

    #[test]
    fn empty_details_and_a_reason_that_repeats_the_message_are_left_out() {
        let detail = v1::ErrorDetail {
            field: "tenantName".into(),
            reason: "Tenant not found".into(),
            ..Default::default()
        };
        let failure = refusal(Code::NotFound, "Tenant not found", &detail);
        assert_eq!(failure.report(), "netctl: error: Tenant not found\n  field: tenantName\n");
        let plain = Failure::from(Status::new(Code::Internal, "store is read-only"));
        assert_eq!(plain.report(), "netctl: error: store is read-only\n");
    }

    #[test]
    fn a_call_that_took_too_long_says_that_the_change_may_be_there() {
        let failure = Failure::from(Status::cancelled("Timeout expired"));
        assert_eq!(
            failure.report(),
            "netctl: error: Timeout expired\n  next: a change may be stored all the same: look \
             before repeating it, or raise --timeout\n"
        );
    }

    #[test]
    fn details_of_another_kind_are_no_reason_to_fail() {
        let status = Status::with_details(Code::Unavailable, "no", vec![0xff; 9].into());
        assert_eq!(Failure::from(status).report(), "netctl: error: no\n");
        let silent = Failure::from(Status::new(Code::Unavailable, ""));
        assert_eq!(silent.report(), "netctl: error: \n  status: Unavailable\n");
    }
}
