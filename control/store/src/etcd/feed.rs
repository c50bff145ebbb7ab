//! The task that follows etcd and fills the log. etcd's client does not reconnect a watch; this does,
//! from the revision after the last one heard.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Event, EventType, GetOptions, KeyValue, ResponseHeader, WatchOptions, WatchResponse,
};
use tracing::{info, warn};

use super::keys::Keys;
use super::link::{Call, Link};
use super::log::{Leader, Log};
use crate::{Op, StoreError};

const PAUSE: Duration = Duration::from_millis(200);
/// Most bytes of one message of a watch: a thousand of the largest writes etcd takes would be more,
/// but ours are small.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Why a watch ended.
enum End {
    Away(String),
    /// Everything up to this revision is gone from etcd's history.
    Compacted(u64),
}

/// Follows for ever.
#[expect(clippy::infinite_loop, reason = "a task for the life of the store")]
pub(super) async fn run(link: Arc<Link>, log: Arc<Log>, keys: Keys) -> Infallible {
    let mut reported = String::new();
    loop {
        match follow(&link, &log, &keys).await {
            End::Compacted(revision) => log.skip_to(revision),
            End::Away(reason) => {
                if reason != reported {
                    warn!(reason, "no watch on etcd; trying its members in turn");
                    reported = reason;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn follow(link: &Link, log: &Log, keys: &Keys) -> End {
    let (turn, client) = match link.client().await {
        Ok(found) => found,
        Err(error) => return End::Away(error.to_string()),
    };
    let end = hear(client, link, log, keys).await;
    if matches!(end, End::Away(_)) {
        link.move_on(turn);
    }
    end
}

async fn hear(client: etcd_client::Client, link: &Link, log: &Log, keys: &Keys) -> End {
    let away = |error: etcd_client::Error| End::Away(error.to_string());
    let start = i64::try_from(log.heard() + 1).unwrap_or(i64::MAX);
    let options = WatchOptions::new().with_prefix().with_start_revision(start);
    let mut watcher = client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut stream = match watcher.watch(keys.root(), Some(options)).await {
        Ok(stream) => stream,
        Err(error) => return away(error),
    };
    loop {
        let response = match stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return End::Away("the watch ended".to_owned()),
            Err(error) => return away(error),
        };
        if response.created() {
            if let Err(error) = begin(link, log, keys, &response).await {
                return End::Away(error.to_string());
            }
            continue;
        }
        if response.compact_revision() > 0 {
            return End::Compacted(response.compact_revision().unsigned_abs());
        }
        if response.canceled() {
            return End::Away(response.cancel_reason().to_owned());
        }
        take(log, keys, response.events());
    }
}

/// Looks where etcd is, and who leads: events tell only of changes.
async fn begin(
    link: &Link,
    log: &Log,
    keys: &Keys,
    created: &WatchResponse,
) -> Result<(), StoreError> {
    let before = log.heard();
    let (revision, leader) = leader(link, keys).await?;
    if revision < before {
        warn!(revision, before, "etcd's history went back: it was restored from a backup");
        log.rewind(revision);
        return Err(StoreError::Away("etcd was restored".to_owned()));
    }
    log.tell_leader(leader);
    info!(revision = created.header().map_or(0, ResponseHeader::revision), "etcd");
    Ok(())
}

/// etcd's revision and who leads at it.
pub(super) async fn leader(link: &Link, keys: &Keys) -> Result<(u64, Option<Leader>), StoreError> {
    let key = keys.leader();
    let reply = link
        .call(Call::Read, |client| {
            let key = key.clone();
            async move { client.kv_client().get(key, Some(GetOptions::new())).await }
        })
        .await?;
    let revision = reply.header().map_or(0, |header| header.revision().unsigned_abs());
    Ok((revision, reply.kvs().first().map(leader_of)))
}

/// Events of one revision come together.
fn take(log: &Log, keys: &Keys, events: &[Event]) {
    for batch in events.chunk_by(|a, b| revision(a) == revision(b)) {
        let at = batch.first().map_or(0, revision);
        let heard: Vec<_> = batch.iter().filter_map(|event| read(keys, event)).collect();
        let is_write = heard.iter().any(|heard| !matches!(heard, Heard::Leader(_)));
        let mut ops = Vec::new();
        for heard in heard {
            match heard {
                Heard::Leader(leader) => log.tell_leader(leader),
                Heard::Head => {}
                Heard::Op(op) => ops.push(op),
            }
        }
        if is_write { log.push(at, ops) } else { log.quiet(at) }
    }
}

fn revision(event: &Event) -> u64 {
    event.kv().map_or(0, |kv| kv.mod_revision().unsigned_abs())
}

/// What an event is about.
enum Heard {
    Leader(Option<Leader>),
    Head,
    Op(Op),
}

fn read(keys: &Keys, event: &Event) -> Option<Heard> {
    let kv = event.kv()?;
    let is_put = event.event_type() == EventType::Put;
    if kv.key() == keys.leader() {
        return Some(Heard::Leader(is_put.then(|| leader_of(kv))));
    }
    if kv.key() == keys.head() {
        return Some(Heard::Head);
    }
    let key = keys.strip(kv.key())?.to_vec();
    Some(Heard::Op(if is_put { Op::Put(key, kv.value().to_vec()) } else { Op::Delete(key) }))
}

fn leader_of(kv: &KeyValue) -> Leader {
    Leader {
        token: kv.create_revision().unsigned_abs(),
        address: String::from_utf8_lossy(kv.value()).into_owned(),
    }
}
