//! The deletion queue: DELs that came while netplugin was away, for its next start.
//!
//! A runtime that gets no DEL through keeps the container, or forgets it; both leak. So a DEL without
//! anybody to ask is written down, as an empty file whose name says what to delete, and succeeds.
//! netplugin takes the queue over at its start: it holds the lock alone from before it reads the
//! queue until its socket answers. Under the shared lock either nobody answers at the socket and
//! nobody has read the queue, or somebody answers: no DEL falls between the two.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cni_api::v1::Attachment;

/// As many attachments as a node has port ids.
const ENTRIES_MAX: usize = 4096;
/// Bytes the kernel allows a file name.
const NAME_BYTES_MAX: usize = 255;
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Why a DEL was not queued.
#[derive(Debug)]
pub(crate) enum NotQueued {
    /// Somebody answers at netplugin's socket, or may soon: ask there.
    Present,
    /// The queue could not take it.
    Failed(String),
}

impl From<io::Error> for NotQueued {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Queues the DEL of `attachment` in directory `queue`, if really nobody listens at `socket`; on disk
/// when this returns. Waits at most until `deadline` for a netplugin that is just starting.
pub(crate) fn enqueue(
    queue: &Path,
    socket: &Path,
    attachment: &Attachment,
    deadline: Instant,
) -> Result<(), NotQueued> {
    let entry = entry_path(queue, attachment)?;
    DirBuilder::new().recursive(true).mode(0o700).create(queue)?;
    let _shared = lock_shared(queue, deadline)?;
    if !nobody_listens(socket) {
        return Err(NotQueued::Present);
    }
    if entry.exists() {
        return Ok(());
    }
    let count = fs::read_dir(queue)?.count();
    if count > ENTRIES_MAX {
        return Err(NotQueued::Failed(format!("{} is full: {count} entries", queue.display())));
    }
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&entry)?;
    // The name is all there is to an entry, and it is the directory that holds names.
    File::open(queue)?.sync_all()?;
    Ok(())
}

fn entry_path(queue: &Path, attachment: &Attachment) -> Result<PathBuf, NotQueued> {
    let name = format!("{}:{}.delete", attachment.container_id, attachment.ifname);
    if name.len() > NAME_BYTES_MAX {
        return Err(NotQueued::Failed(format!("{name} is too long for a file name")));
    }
    Ok(queue.join(name))
}

fn lock_shared(queue: &Path, deadline: Instant) -> Result<File, NotQueued> {
    let path = queue.join("lock");
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_POLL);
            }
            // It starts, and will serve soon.
            Err(TryLockError::WouldBlock) => return Err(NotQueued::Present),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}

/// A socket that is not there, or whose listener died. One that is only slow is somebody.
fn nobody_listens(socket: &Path) -> bool {
    let refused = UnixStream::connect(socket).map_err(|error| error.kind());
    matches!(refused, Err(ErrorKind::NotFound | ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn attachment(id: &str) -> Attachment {
        Attachment { container_id: id.into(), ifname: "eth0".into() }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    fn entries(queue: &Path) -> Vec<String> {
        let names = fs::read_dir(queue).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_del_without_netplugin_is_queued_once_however_often_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, socket) = (dir.path().join("q"), dir.path().join("none.sock"));
        for _ in 0..2 {
            enqueue(&queue, &socket, &attachment("c1"), soon()).unwrap();
        }
        assert_eq!(entries(&queue), ["c1:eth0.delete", "lock"]);
    }

    #[test]
    fn a_socket_that_a_crash_left_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, socket) = (dir.path().join("q"), dir.path().join("cni.sock"));
        drop(UnixListener::bind(&socket).unwrap());
        assert!(socket.exists());
        enqueue(&queue, &socket, &attachment("c1"), soon()).unwrap();
    }

    #[test]
    fn nothing_is_queued_while_somebody_listens_or_takes_the_queue_over() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, socket) = (dir.path().join("q"), dir.path().join("cni.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let refused = enqueue(&queue, &socket, &attachment("c1"), soon());
        assert!(matches!(refused, Err(NotQueued::Present)), "{refused:?}");
        drop(listener);
        let lock = File::open(queue.join("lock")).unwrap();
        lock.lock().unwrap();
        let refused = enqueue(&queue, &socket, &attachment("c1"), soon());
        assert!(matches!(refused, Err(NotQueued::Present)), "{refused:?}");
        assert_eq!(entries(&queue), ["lock"]);
    }

    #[test]
    fn a_full_queue_and_one_that_cannot_be_made_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, socket) = (dir.path().join("q"), dir.path().join("none.sock"));
        enqueue(&queue, &socket, &attachment("first"), soon()).unwrap();
        for n in 1..ENTRIES_MAX {
            File::create(queue.join(format!("c{n}:eth0.delete"))).unwrap();
        }
        let full = enqueue(&queue, &socket, &attachment("last"), soon());
        assert!(
            matches!(&full, Err(NotQueued::Failed(why)) if why.contains("is full")),
            "{full:?}"
        );
        enqueue(&queue, &socket, &attachment("first"), soon()).unwrap();
        let blocked = enqueue(&queue.join("lock/q"), &socket, &attachment("c1"), soon());
        assert!(matches!(blocked, Err(NotQueued::Failed(_))), "{blocked:?}");
        let long = enqueue(&queue, &socket, &attachment(&"a".repeat(250)), soon());
        assert!(
            matches!(&long, Err(NotQueued::Failed(why)) if why.contains("too long")),
            "{long:?}"
        );
    }
}
