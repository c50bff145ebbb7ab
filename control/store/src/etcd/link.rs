//! The connection to one of etcd's members, and to the next one when it fails.
//!
//! One member at a time: spreading calls over all of them would send a share of every caller's to
//! a member that is cut off from the others. A call that may have reached etcd is repeated only if
//! it reads.

use std::error::Error as _;
use std::io::ErrorKind;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};
use tokio::time::timeout;
use tonic::Code;

use crate::StoreError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A member that is silent for twice this is given up, and with it the streams from it.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// A commit waits for the disks of a majority.
const WRITE_TIMEOUT: Duration = Duration::from_secs(4);

/// Whether a call may be made again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// It changes nothing.
    Read,
    /// It would be done twice.
    Write,
}

/// What a failed call means.
#[derive(Debug)]
enum Fault {
    /// etcd never saw it.
    Unsent(String),
    /// etcd may have done it.
    Unknown(String),
    /// etcd has done nothing, and would not at another member either.
    Refused(StoreError),
}

#[derive(Debug)]
pub(super) struct Link {
    urls: Vec<String>,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// Counts moves; the member is this modulo their number.
    turn: usize,
    client: Option<Client>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("turn", &self.turn).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(urls: Vec<String>) -> Self {
        Self { urls, current: Mutex::default() }
    }

    /// A client of the member in use, and whose turn that is.
    pub(super) async fn client(&self) -> Result<(usize, Client), StoreError> {
        let turn = {
            let current = self.lock();
            if let Some(client) = &current.client {
                return Ok((current.turn, client.clone()));
            }
            current.turn
        };
        let url = self.urls.get(turn % self.urls.len().max(1));
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true)
            // A member without a majority says so, at once and also in the middle of a watch.
            .with_require_leader(true);
        // Connects when it is used.
        let client = Client::connect(url.as_slice(), Some(options)).await;
        let client = client.map_err(|error| StoreError::Away(error.to_string()))?;
        let mut current = self.lock();
        if current.turn == turn {
            current.client = Some(client.clone());
        }
        Ok((turn, client))
    }

    /// Goes on to the next member, unless somebody has.
    pub(super) fn move_on(&self, turn: usize) {
        let mut current = self.lock();
        if current.turn == turn {
            *current = Current { turn: turn + 1, client: None };
        }
    }

    /// Calls a member; another one if that is known to do no harm.
    pub(super) async fn call<T, F>(
        &self,
        kind: Call,
        work: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let limit = match kind {
            Call::Read => READ_TIMEOUT,
            Call::Write => WRITE_TIMEOUT,
        };
        let mut last = String::new();
        for _ in 0..=self.urls.len() {
            let (turn, client) = self.client().await?;
            let fault = match timeout(limit, work(client)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => fault(error),
                Err(_elapsed) => Fault::Unknown(format!("no answer within {limit:?}")),
            };
            last = match fault {
                Fault::Refused(error) => return Err(error),
                Fault::Unknown(reason) if kind == Call::Write => {
                    self.move_on(turn);
                    return Err(StoreError::Unknown(reason));
                }
                Fault::Unsent(reason) | Fault::Unknown(reason) => reason,
            };
            self.move_on(turn);
        }
        Err(StoreError::Away(last))
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        // Nothing here can panic between two writes that belong together.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// The texts are etcd's own: it has more errors than gRPC has codes.
fn fault(error: Error) -> Fault {
    let Error::GRpcStatus(status) = error else {
        let reason = error.to_string();
        let is_gone = reason.contains("lease not found");
        return if is_gone { Fault::Refused(StoreError::Deposed) } else { Fault::Unknown(reason) };
    };
    let message = status.message();
    let says = |part: &str| message.contains(part);
    if says("database space exceeded") {
        return Fault::Refused(StoreError::Full(message.to_owned()));
    }
    if says("too many operations")
        || says("request is too large")
        || says("message larger than max")
    {
        return Fault::Refused(StoreError::TooLarge(message.to_owned()));
    }
    if says("lease not found") {
        return Fault::Refused(StoreError::Deposed);
    }
    if says("no leader") || is_unsent(&status) {
        return Fault::Unsent(message.to_owned());
    }
    let is_refusal = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::OutOfRange
    );
    if is_refusal {
        return Fault::Refused(StoreError::Refused(message.to_owned()));
    }
    Fault::Unknown(message.to_owned())
}

/// Whether there was no connection to send it on.
fn is_unsent(status: &tonic::Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::AddrNotAvailable
            );
        }
        cause = error.source();
    }
    false
}
