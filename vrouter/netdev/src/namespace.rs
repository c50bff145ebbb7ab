//! Network namespaces: making, naming, entering.
//!
//! A [`Namespace`] is a descriptor: it keeps the namespace alive and cannot be confused by a path
//! that is reused. Work inside one runs on a thread made for it, because `setns` changes the
//! calling thread and a runtime's worker must never be left in another namespace.
//!
//! Named namespaces are made as iproute2 makes them, so `ip netns` sees them: a file in
//! /run/netns, on a shared mount, with the namespace bound over it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const NAMED_DIR: &str = "/run/netns";
const OWN_NET: &str = "/proc/thread-self/ns/net";
/// `NSIO` of linux/nsfs.h.
const NSFS_IOCTL: u8 = 0xb7;
/// linux/socket.h; not in libc for every target.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Why a namespace could not be made, found, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path leads nowhere or may not be opened.
    #[error("opening namespace {}", path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The path is a file of another kind.
    #[error("{} is not a network namespace", path.display())]
    NotNetwork {
        /// What was opened.
        path: PathBuf,
    },
    /// A name that would leave /run/netns.
    #[error("\"{name}\" cannot name a namespace: it must be one path component")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// The name exists already, or the kernel refused a new namespace.
    #[error("creating namespace {name}")]
    Create {
        /// The name, or "(anonymous)".
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// /run/netns could not be made a shared mount.
    #[error("preparing {NAMED_DIR}")]
    NamedDir {
        /// The cause.
        source: io::Error,
    },
    /// The name could not be removed.
    #[error("deleting namespace {name}")]
    Delete {
        /// The name.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// `setns` or the thread for it failed.
    #[error("entering a network namespace")]
    Enter {
        /// The cause.
        source: io::Error,
    },
    /// The private sysfs could not be mounted.
    #[error("mounting sysfs for a network namespace")]
    Sysfs {
        /// The cause.
        source: io::Error,
    },
    /// The namespace's cookie could not be read.
    #[error("reading a namespace's cookie")]
    Cookie {
        /// The cause.
        source: io::Error,
    },
}

/// A network namespace, held open.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    inode: u64,
}

impl Namespace {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Open`] without /proc.
    pub fn current() -> Result<Self, Error> {
        Self::open(OWN_NET)
    }

    /// The namespace at a path such as /run/netns/NAME or /proc/PID/ns/net.
    ///
    /// # Errors
    /// [`Error::Open`], and [`Error::NotNetwork`] for any other kind of file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |source| Error::Open { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let inode = file.metadata().map_err(failed)?.ino();
        if !is_network_namespace(&file) {
            return Err(Error::NotNetwork { path: path.into() });
        }
        Ok(Self { file, inode })
    }

    /// The namespace that `ip netns` calls `name`.
    ///
    /// # Errors
    /// As [`Namespace::open`], and [`Error::Name`].
    pub fn open_named(name: &str) -> Result<Self, Error> {
        Self::open(named_path(name)?)
    }

    /// Makes a namespace that lives as long as something holds it open.
    ///
    /// # Errors
    /// [`Error::Create`] without the privilege.
    pub fn anonymous() -> Result<Self, Error> {
        let name = "(anonymous)";
        let failed = |source| Error::Create { name: name.into(), source };
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
            Self::current()
        })
        .map_err(failed)?
    }

    /// Makes a namespace and binds it to /run/netns/`name`; it lives until
    /// [`Namespace::delete_named`].
    ///
    /// # Errors
    /// [`Error::Create`] when the name exists, [`Error::Name`], [`Error::NamedDir`].
    pub fn create_named(name: &str) -> Result<Self, Error> {
        let path = named_path(name)?;
        let failed = |source| Error::Create { name: name.into(), source };
        prepare_named_dir().map_err(|source| Error::NamedDir { source })?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o0)
            .open(&path)
            .map_err(failed)?;
        let made = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some(OWN_NET), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        match made.and_then(|inner| inner.map_err(io::Error::from)) {
            Ok(()) => Self::open(path),
            Err(source) => {
                // The first failure is the one to report; an empty file left behind is harmless.
                drop(fs::remove_file(&path));
                Err(failed(source))
            }
        }
    }

    /// Removes the name; the namespace goes when nothing else holds it.
    ///
    /// # Errors
    /// [`Error::Delete`] when there is no such name, [`Error::Name`].
    pub fn delete_named(name: &str) -> Result<(), Error> {
        let path = named_path(name)?;
        let failed = |source| Error::Delete { name: name.into(), source };
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a file that was never bound, left by a creation that was cut short.
            Ok(()) | Err(Errno::EINVAL) => fs::remove_file(&path).map_err(failed),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Inode number on nsfs: the same for two descriptors of one namespace. The kernel reuses it
    /// once the namespace is gone.
    #[must_use]
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// The kernel's cookie of this namespace: never reused until the next boot, so that a stored
    /// value tells a namespace from a later one at the same path.
    ///
    /// # Errors
    /// [`Error::Cookie`], [`Error::Enter`].
    pub fn cookie(&self) -> Result<u64, Error> {
        self.run(|| read_cookie().map_err(|source| Error::Cookie { source }))?
    }

    /// Runs `work` on a new thread inside this namespace and waits for it. A panic in `work`
    /// continues in the caller.
    ///
    /// # Errors
    /// [`Error::Enter`] without the privilege.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let entered = on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        entered.and_then(|inner| inner).map_err(|source| Error::Enter { source })
    }

    /// As [`Namespace::run`], with a private mount namespace whose /sys shows this namespace's
    /// devices: a sysfs shows those of the namespace it was mounted from.
    ///
    /// # Errors
    /// [`Error::Enter`], [`Error::Sysfs`].
    pub fn run_with_sysfs<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        self.run(|| {
            mount_private_sysfs().map_err(|errno| Error::Sysfs { source: errno.into() })?;
            Ok(work())
        })?
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let joined = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?.join();
        Ok(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn named_path(name: &str) -> Result<PathBuf, Error> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::Name { name: name.into() });
    }
    Ok(Path::new(NAMED_DIR).join(name))
}

/// Shared, as iproute2 has it: a namespace made in one mount namespace is then seen, and can be
/// removed, in the others. The lock keeps two processes from stacking two mounts.
fn prepare_named_dir() -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(NAMED_DIR)?;
    let lock = Flock::lock(File::open(NAMED_DIR)?, FlockArg::LockExclusive);
    let _held = lock.map_err(|(_, errno)| io::Error::from(errno))?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, NAMED_DIR, None::<&str>, flags, None::<&str>)
    };
    if share() == Err(Errno::EINVAL) {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(NAMED_DIR), NAMED_DIR, None::<&str>, flags, None::<&str>)?;
        share()?;
    }
    Ok(())
}

fn mount_private_sysfs() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)?;
    match umount2("/sys", MntFlags::MNT_DETACH) {
        // EINVAL: nothing was mounted there.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)
}

fn is_network_namespace(file: &File) -> bool {
    let request = nix::request_code_none!(NSFS_IOCTL, 3);
    // SAFETY: NS_GET_NSTYPE takes no argument and only returns a number; on a descriptor of any
    // other kind the number is unknown to it and it fails with ENOTTY.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), request) };
    kind == libc::CLONE_NEWNET
}

fn read_cookie() -> io::Result<u64> {
    let probe = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` is a valid place for `len` bytes, both live across the call, and the
    // descriptor is open because `probe` owns it.
    let status = unsafe {
        libc::getsockopt(
            probe.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_directory() {
        for name in ["", ".", "..", "a/b", "../x", "a\0b"] {
            assert!(matches!(named_path(name), Err(Error::Name { .. })), "{name:?}");
        }
        assert_eq!(named_path("wt-1").unwrap(), Path::new("/run/netns/wt-1"));
    }

    #[test]
    fn a_file_that_is_no_network_namespace_is_refused() {
        for path in ["/proc/self/status", "/proc/self/ns/mnt"] {
            let refused = Namespace::open(path);
            assert!(matches!(refused, Err(Error::NotNetwork { .. })), "{path}: {refused:?}");
        }
        assert!(matches!(Namespace::open("/nowhere/at/all"), Err(Error::Open { .. })));
    }

    #[test]
    fn one_namespace_has_one_inode() {
        let mine = Namespace::current().unwrap();
        assert_eq!(mine.inode(), Namespace::open("/proc/self/ns/net").unwrap().inode());
    }
}
