//! Per-device switches below /proc/sys/net.
//!
//! The kernel shows there the devices of the network namespace of the task that looks, so setting
//! one elsewhere takes a thread inside that namespace.

use std::io;
use std::path::{Path, PathBuf};

use crate::namespace::{self, Namespace};

const IPV6: &str = "/proc/sys/net/ipv6";

/// Why a switch could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file refused the value, or the device has none.
    #[error("writing {}", path.display())]
    Write {
        /// The switch.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("setting a switch in another namespace")]
    Namespace(#[from] namespace::Error),
}

/// Turns IPv6 off on `ifname`, in `namespace` or in the calling thread's own when that is `None`.
/// A kernel without IPv6 has nothing to turn off, which is success.
///
/// # Errors
/// [`Error::Write`] when there is no such device, [`Error::Namespace`].
pub fn set_disable_ipv6(namespace: Option<&Namespace>, ifname: &str) -> Result<(), Error> {
    match namespace {
        Some(namespace) => namespace.run(|| disable_ipv6(ifname))?,
        None => disable_ipv6(ifname),
    }
}

fn disable_ipv6(ifname: &str) -> Result<(), Error> {
    if !Path::new(IPV6).exists() {
        return Ok(());
    }
    let path = Path::new(IPV6).join("conf").join(ifname).join("disable_ipv6");
    std::fs::write(&path, "1").map_err(|source| Error::Write { path, source })
}
