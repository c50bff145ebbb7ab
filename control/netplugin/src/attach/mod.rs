//! Attaching containers and detaching them: what cni.v1 asks for.
//!
//! A row is durable before anything else is made, so whatever happens next, somebody knows what
//! to undo. Undoing is one procedure ([`release`]), whether an ADD failed, a DEL came, a crash
//! left something behind or garbage is collected; each of its steps is fine with having nothing
//! to do.

mod add;
mod check;
mod release;

pub(crate) use add::{Added, Source, Wish, WishedAddress, add};
pub(crate) use check::{check, raise, status};
pub(crate) use release::{Released, del, gc, release};

use crate::refusal::Refusal;

/// Runs blocking work, which is never cut short: a link made after its ADD was given up would
/// belong to nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::links::Error> + Send + 'static,
) -> Result<T, Refusal> {
    Ok(tokio::task::spawn_blocking(work).await??)
}
