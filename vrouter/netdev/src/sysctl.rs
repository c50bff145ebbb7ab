//! Per-device switches below /proc/sys/net.
//!
//! The kernel shows there the devices of the network namespace of the task that looks, so setting
//! one elsewhere takes a thread inside that namespace.

use std::io;
use std::path::{Path, PathBuf};

use crate::namespace::{self, Namespace};

const IPV4: &str = "/proc/sys/net/ipv4";
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

/// Has `ifname` in `namespace` take IPv6 addresses, and none but those it is given: no router's
/// advertisement changes its addresses or routes. A runtime may have turned IPv6 off there.
///
/// # Errors
/// [`Error::Write`] when there is no such device or the kernel has no IPv6, [`Error::Namespace`].
pub fn take_only_given_ipv6(namespace: &Namespace, ifname: &str) -> Result<(), Error> {
    let conf = Path::new(IPV6).join("conf").join(ifname);
    namespace.run(|| {
        for (switch, value) in [("accept_ra", "0"), ("disable_ipv6", "0")] {
            let path = conf.join(switch);
            std::fs::write(&path, value).map_err(|source| Error::Write { path, source })?;
        }
        Ok(())
    })?
}

/// Has the calling thread's own namespace forward nothing that arrives on `ifname`, and take nothing
/// whose sender it would not reach over it (RFC 3704, section 2.2: strict), which is nobody on a device
/// without address and routes. `conf/all/rp_filter` set to 2 weakens the second.
///
/// # Errors
/// [`Error::Write`] when there is no such device.
pub fn refuse_ipv4(ifname: &str) -> Result<(), Error> {
    let conf = Path::new(IPV4).join("conf").join(ifname);
    for (switch, value) in [("forwarding", "0"), ("rp_filter", "1")] {
        let path = conf.join(switch);
        std::fs::write(&path, value).map_err(|source| Error::Write { path, source })?;
    }
    Ok(())
}

fn disable_ipv6(ifname: &str) -> Result<(), Error> {
    if !Path::new(IPV6).exists() {
        return Ok(());
    }
    let path = Path::new(IPV6).join("conf").join(ifname).join("disable_ipv6");
    std::fs::write(&path, "1").map_err(|source| Error::Write { path, source })
}
