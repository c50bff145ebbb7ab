//! The deletion queue: DELs that weir-cni wrote down while nobody served its socket.
//!
//! Taken over at start, before the socket is there: an ADD that is served must not meet the DEL of an
//! earlier life. The lock is held from before the queue is read until the socket answers, so that a
//! plugin either finds the socket or has its entry read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::attachment::{Attachment, AttachmentId, State};
use crate::links;
use crate::naming::host_ifname;
use crate::roster::Roster;

const SUFFIX: &str = ".delete";

/// The queue, with its lock held.
#[derive(Debug)]
pub(crate) struct Queue {
    dir: PathBuf,
    _lock: File,
}

impl Queue {
    /// Waits for plugins that are writing right now, a matter of milliseconds, and locks them out.
    pub(crate) fn lock(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join("lock");
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        lock.lock()?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Marks what is queued as being released, durably, and empties the queue. An entry that cannot
    /// be marked stays for the next start.
    pub(crate) async fn take_over(&self, roster: &Roster) {
        let entries = match self.entries() {
            Ok(entries) => entries,
            Err(error) => {
                warn!(queue = %self.dir.display(), %error, "cannot read the deletion queue");
                return;
            }
        };
        for path in entries {
            let marked = if let Some(id) = id_of(&path) {
                mark(roster, &id).await
            } else {
                warn!(entry = %path.display(), "no entry of the deletion queue; removing it");
                true
            };
            if marked && let Err(error) = fs::remove_file(&path) {
                warn!(entry = %path.display(), %error, "cannot remove an entry of the deletion queue");
            }
        }
    }

    fn entries(&self) -> io::Result<Vec<PathBuf>> {
        let paths = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path()));
        let paths = paths.collect::<io::Result<Vec<PathBuf>>>()?;
        Ok(paths.into_iter().filter(|path| text(path).ends_with(SUFFIX)).collect())
    }
}

fn text(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn id_of(path: &Path) -> Option<AttachmentId> {
    let (container, ifname) = text(path).strip_suffix(SUFFIX)?.split_once(':')?;
    AttachmentId::new(container, ifname).ok()
}

/// A row is released by the first round of reconciling; without one, its names lead to what a lost
/// state directory left, and reconciling deletes an endpoint that has no row.
async fn mark(roster: &Roster, id: &AttachmentId) -> bool {
    let outcome = match roster.row(id) {
        Some(row) => {
            let row = Attachment { state: State::Releasing, ..row };
            roster.put(row).await.map_err(|error| error.to_string())
        }
        None => links::remove(&host_ifname(id)).map_err(|error| error.to_string()),
    };
    match &outcome {
        Ok(()) => info!(%id, "releasing: its DEL came while netplugin was away"),
        Err(error) => warn!(%id, error, "cannot take over a queued DEL; it stays queued"),
    }
    outcome.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::tests::example;
    use crate::store::Store;

    fn roster(dir: &tempfile::TempDir) -> Roster {
        Roster::load(Store::open(&dir.path().join("netplugin.redb")).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn queued_rows_are_releasing_on_disk_and_others_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (example("c1"), example("c2"));
        let queue_dir = dir.path().join("cni-queue");
        let before = roster(&dir);
        before.put(one.clone()).await.unwrap();
        before.put(two.clone()).await.unwrap();
        let queue = Queue::lock(&queue_dir).unwrap();
        for name in ["c1:eth0.delete", "c9:eth0.delete", "rubbish.delete", "notes"] {
            File::create(queue_dir.join(name)).unwrap();
        }
        queue.take_over(&before).await;
        drop(before);
        let roster = roster(&dir);
        assert_eq!(roster.row(&one.id).unwrap().state, State::Releasing);
        assert_eq!(roster.row(&two.id).unwrap().state, State::Attached);
        let left = fs::read_dir(&queue_dir).unwrap().map(|e| e.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["lock", "notes"]);
    }

    #[test]
    fn plugins_are_locked_out_until_the_queue_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::lock(dir.path()).unwrap();
        let plugin = File::open(dir.path().join("lock")).unwrap();
        assert!(plugin.try_lock_shared().is_err());
        drop(queue);
        plugin.try_lock_shared().unwrap();
    }
}
