//! The daemon's unix socket, and the lock that keeps a second engine out of its namespace.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, umask};

/// Abstract names belong to a network namespace, as the trunk's name does, and are free again the
/// moment their process ends, however it ends.
const LOCK: &str = "weir-vrouterd";

/// A killed process holds its name until its memory is given back.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The socket or the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("another vrouterd runs in this network namespace; a namespace has one")]
    NamespaceTaken,
    #[error("locking the network namespace")]
    Lock(#[source] io::Error),
    #[error("{}: another process answers there", .0.display())]
    PathTaken(PathBuf),
    #[error("socket {}", path.display())]
    Path { path: PathBuf, source: io::Error },
}

/// Held for the life of the process: this is the engine of its network namespace.
#[derive(Debug)]
pub(crate) struct NamespaceLock {
    _name: UnixListener,
}

impl NamespaceLock {
    /// Waits a moment for an engine that was killed just now and has not quite ended.
    pub(crate) fn acquire() -> Result<Self, SocketError> {
        let address = SocketAddr::from_abstract_name(LOCK).map_err(SocketError::Lock)?;
        let start = Instant::now();
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(name) => return Ok(Self { _name: name }),
                Err(e) if e.kind() != io::ErrorKind::AddrInUse => return Err(SocketError::Lock(e)),
                Err(_) if start.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_PAUSE),
                Err(_) => return Err(SocketError::NamespaceTaken),
            }
        }
    }
}

/// A listening socket that only its owner can connect to. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Option<UnixListener>,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, after removing what a process that is gone left there.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Path { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(SocketError::PathTaken(path.to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (),
            // Other files refuse connections too; they stay, and fail the bind.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                if path.symlink_metadata().map_err(failed)?.file_type().is_socket() {
                    std::fs::remove_file(path).map_err(failed)?;
                }
            }
            Err(e) => return Err(failed(e)),
        }
        // The mask, so that the socket is never open to others, not even before the chmod below.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let socket = bound.map_err(failed)?;
        let listener = Self { socket: Some(socket), path: path.to_owned() };
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).map_err(failed)?;
        Ok(listener)
    }

    /// The socket, once, for an async runtime.
    pub(crate) fn take(&mut self) -> io::Result<UnixListener> {
        let socket = self.socket.take().ok_or(io::ErrorKind::NotConnected)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket was not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_private_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/vrouterd.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&path), Err(SocketError::PathTaken(p)) if p == path));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_another_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vrouterd.sock");
        drop(UnixListener::bind(&path).unwrap());
        drop(Listener::bind(&path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::Path { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
