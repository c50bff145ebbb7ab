//! Offloads and queues of a device, by the ethtool ioctl.
//!
//! The ioctl works on the calling thread's network namespace; use
//! [`Namespace::run`](crate::Namespace::run) for a device elsewhere. The netlink form of ethtool
//! has no crate that can set features, and the ioctl's commands here exist in every kernel.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// linux/sockios.h; not in libc for every target.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const GET_CHANNELS: u32 = 0x3c;

/// An offload that can be switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Checksums of received packets are verified by the device.
    RxChecksum,
    /// Checksums of sent packets are left to the device.
    TxChecksum,
    /// Packets may be sent from several buffers.
    ScatterGather,
    /// TCP segments are cut by the device.
    Tso,
    /// Large packets stay whole until just before the driver.
    Gso,
    /// Received segments are joined.
    Gro,
    /// VLAN tags are taken out of received frames.
    RxVlan,
    /// VLAN tags are put into sent frames by the device.
    TxVlan,
}

/// Whether an offload is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// In use.
    On,
    /// Not in use.
    Off,
}

/// Why an offload could not be read or set, or queues not be counted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket to ask through.
    #[error("opening a socket for ethtool")]
    Socket {
        /// The cause.
        source: io::Error,
    },
    /// A device name longer than 15 bytes.
    #[error("\"{ifname}\" is too long for a device name")]
    Name {
        /// What was asked for.
        ifname: String,
    },
    /// The kernel refused; `ENODEV` when there is no such device.
    #[error("{operation} {feature:?} of {ifname}")]
    Kernel {
        /// "reading" or "setting".
        operation: &'static str,
        /// The offload.
        feature: Feature,
        /// The device.
        ifname: String,
        /// The cause.
        source: io::Error,
    },
    /// The kernel did not say; `ENODEV` when there is no such device.
    #[error("counting the queues of {ifname}")]
    Queues {
        /// The device.
        ifname: String,
        /// The cause.
        source: io::Error,
    },
}

/// How the kernel names a feature: commands of its own, or a bit in the shared flags.
enum Code {
    Commands { get: u32, set: u32 },
    Flag(u32),
}

impl Feature {
    const fn code(self) -> Code {
        match self {
            Self::RxChecksum => Code::Commands { get: 0x14, set: 0x15 },
            Self::TxChecksum => Code::Commands { get: 0x16, set: 0x17 },
            Self::ScatterGather => Code::Commands { get: 0x18, set: 0x19 },
            Self::Tso => Code::Commands { get: 0x1e, set: 0x1f },
            Self::Gso => Code::Commands { get: 0x23, set: 0x24 },
            Self::Gro => Code::Commands { get: 0x2b, set: 0x2c },
            Self::TxVlan => Code::Flag(1 << 7),
            Self::RxVlan => Code::Flag(1 << 8),
        }
    }
}

/// Whether `feature` of `ifname` is on, in the calling thread's namespace.
///
/// # Errors
/// [`Error`], naming the device.
pub fn get(ifname: &str, feature: Feature) -> Result<State, Error> {
    let device = Device::open(ifname)?;
    let failed = |source| kernel_error("reading", feature, ifname, source);
    let on = match feature.code() {
        Code::Commands { get, .. } => device.call(get, 0).map_err(failed)? != 0,
        Code::Flag(bit) => device.call(GET_FLAGS, 0).map_err(failed)? & bit != 0,
    };
    Ok(if on { State::On } else { State::Off })
}

/// Switches `feature` of `ifname`, in the calling thread's namespace. Setting what is already set
/// is success.
///
/// # Errors
/// [`Error`], naming the device; `EOPNOTSUPP` where the device cannot change it.
pub fn set(ifname: &str, feature: Feature, state: State) -> Result<(), Error> {
    let device = Device::open(ifname)?;
    let failed = |source| kernel_error("setting", feature, ifname, source);
    match feature.code() {
        Code::Commands { set, .. } => device.call(set, u32::from(state == State::On)),
        Code::Flag(bit) => device.call(GET_FLAGS, 0).and_then(|flags| match state {
            State::On => device.call(SET_FLAGS, flags | bit),
            State::Off => device.call(SET_FLAGS, flags & !bit),
        }),
    }
    .map(drop)
    .map_err(failed)
}

/// How many queues `ifname` receives by, in the calling thread's namespace. A driver that can't say has
/// one.
///
/// # Errors
/// [`Error`], naming the device.
pub fn receive_queues(ifname: &str) -> Result<u32, Error> {
    let device = Device::open(ifname)?;
    let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
    match device.ioctl(&mut channels) {
        Ok(()) => Ok(channels.rx_count + channels.combined_count),
        Err(source) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(source) => Err(Error::Queues { ifname: ifname.into(), source }),
    }
}

fn kernel_error(
    operation: &'static str,
    feature: Feature,
    ifname: &str,
    source: io::Error,
) -> Error {
    Error::Kernel { operation, feature, ifname: ifname.into(), source }
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels` of linux/ethtool.h.
#[derive(Default)]
#[repr(C)]
struct Channels {
    command: u32,
    _max: [u32; 4],
    rx_count: u32,
    _tx_count: u32,
    _other_count: u32,
    combined_count: u32,
}

/// What a command reads and writes, with the command in front.
trait Argument {}

impl Argument for Value {}
impl Argument for Channels {}

struct Device {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Device {
    fn open(ifname: &str) -> Result<Self, Error> {
        // One byte stays for the terminating zero.
        if ifname.len() >= libc::IFNAMSIZ {
            return Err(Error::Name { ifname: ifname.into() });
        }
        let mut name = [0; libc::IFNAMSIZ];
        for (place, byte) in name.iter_mut().zip(ifname.bytes()) {
            *place = byte.cast_signed();
        }
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| Error::Socket { source: errno.into() })?;
        Ok(Self { socket, name })
    }

    fn call(&self, command: u32, data: u32) -> io::Result<u32> {
        let mut value = Value { command, data };
        self.ioctl(&mut value).map(|()| value.data)
    }

    fn ioctl<A: Argument>(&self, argument: &mut A) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut *argument).cast() },
        };
        // SAFETY: `request` is a whole `ifreq` with a terminated name, its data points at the
        // structure that the command in front of it reads and writes (`Argument`), and both live
        // across the call. The socket is open because `self` owns it.
        let status = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if status == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_and_a_missing_device_are_named_in_the_error() {
        let long = "a-name-of-sixteen";
        assert!(matches!(get(long, Feature::Tso), Err(Error::Name { ifname }) if ifname == long));
        let missing = get("wt-none", Feature::Tso).unwrap_err();
        assert_eq!(missing.to_string(), "reading Tso of wt-none");
        let missing = receive_queues("wt-none").unwrap_err();
        assert_eq!(missing.to_string(), "counting the queues of wt-none");
    }

    #[test]
    fn a_driver_that_cannot_say_has_one_queue() {
        assert_eq!(receive_queues("lo").unwrap(), 1);
    }
}
