//! Refusals and failures as gRPC statuses. The message is the reason; field, value and next step
//! travel as an `ErrorDetail` in the status's details.

use control_api::v1::ErrorDetail;
use control_model::{Class, Refused};
use control_store::StoreError;
use prost::Message as _;
use tonic::{Code, Status};

use crate::master::Failure;

/// Most bytes of a user's text that go back in a status: it travels in a header, and header blocks
/// have small bounds.
const TEXT_BYTES_MAX: usize = 512;

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refused) => status(&refused),
            Failure::RefusedObject(refused) => about(&refused.refused, &refused.object),
            Failure::Store(StoreError::Full(_)) => {
                let next_step = "make room where netmaster's store is; what was stored is unharmed";
                failed(Code::ResourceExhausted, &failure, next_step)
            }
            Failure::Store(StoreError::TooLarge(_)) => {
                let next_step =
                    "write less at once, or raise etcd's --max-txn-ops and --max-request-bytes";
                failed(Code::ResourceExhausted, &failure, next_step)
            }
            Failure::Store(StoreError::Deposed) => {
                failed(Code::Unavailable, &failure, "try again: another netmaster takes over")
            }
            Failure::Store(StoreError::Unknown(_)) => {
                let next_step = "look whether it is there; the same request again does no harm";
                failed(Code::Unavailable, &failure, next_step)
            }
            Failure::Store(_) | Failure::Conflicts | Failure::Task(_) | Failure::Cluster { .. } => {
                let next_step = "look at netmaster's log and at its store, then try again";
                failed(Code::Unavailable, &failure, next_step)
            }
            Failure::Unreadable(_) => {
                failed(Code::Unavailable, &failure, "restore netmaster's store from a backup")
            }
        }
    }
}

/// A refusal.
pub(crate) fn status(refused: &Refused) -> Status {
    about(refused, "")
}

/// A refusal of one of many objects.
fn about(refused: &Refused, object: &str) -> Status {
    let code = match refused.class() {
        Class::Invalid => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::Exists => Code::AlreadyExists,
        Class::InUse => Code::FailedPrecondition,
        Class::Exhausted => Code::ResourceExhausted,
    };
    let reason = shortened(&refused.to_string());
    let detail = ErrorDetail {
        field: refused.field.to_owned(),
        value: shortened(&refused.value),
        reason: reason.clone(),
        next_step: refused.next_step().to_owned(),
        object: shortened(object),
    };
    Status::with_details(code, reason, detail.encode_to_vec().into())
}

fn failed(code: Code, failure: &Failure, next_step: &str) -> Status {
    tracing::error!(error = failure as &dyn std::error::Error, "a request failed");
    unable(code, failure.to_string(), next_step)
}

/// What can't be done now, through no fault of the request.
pub(crate) fn unable(code: Code, reason: String, next_step: &str) -> Status {
    let detail = ErrorDetail {
        reason: reason.clone(),
        next_step: next_step.to_owned(),
        ..ErrorDetail::default()
    };
    Status::with_details(code, reason, detail.encode_to_vec().into())
}

fn shortened(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"\u{e4}".repeat(1000));
        assert_eq!(long.len(), 512 + 3);
        let odd = shortened(&format!("a{}", "\u{e4}".repeat(1000)));
        assert_eq!(odd.len(), 511 + 3);
    }
}
