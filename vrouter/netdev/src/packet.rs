//! A raw packet socket on one device: whole Ethernet frames in and out.
//!
//! For tests, captures and traffic generators; the engine has faster ways. The kernel takes the
//! VLAN tag out of a frame before a packet socket sees it and delivers it beside the data;
//! [`PacketSocket::receive`] puts it back, so that frames read as they are on the wire.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// From `linux/if_packet.h`; not in libc for every target.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// Two MAC addresses come before a VLAN tag.
const TAG_OFFSET: usize = 12;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// Why a packet socket failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {ifname}")]
pub struct Error {
    action: &'static str,
    ifname: String,
    source: io::Error,
}

/// Sends and receives frames of one device, received ones only: what this or another program
/// sends by the device is not read back.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    ifname: String,
}

impl PacketSocket {
    /// Opens the device of that name in the calling thread's namespace. Frames that arrive after
    /// this returns are received.
    ///
    /// # Errors
    /// [`Error`] when there is no such device, or without the privilege.
    pub fn open(ifname: &str) -> Result<Self, Error> {
        let failed = |source| Error { action: "capturing on", ifname: ifname.into(), source };
        let index = if_nametoindex(ifname).map_err(|errno| failed(errno.into()))?;
        let socket = bound_socket(index).map_err(failed)?;
        Ok(Self { socket, ifname: ifname.into() })
    }

    /// Sends one frame: destination MAC first, without checksum at the end.
    ///
    /// # Errors
    /// [`Error`]; the device is down, or the frame too long for it.
    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        nix::unistd::write(&self.socket, frame).map(drop).map_err(|errno| Error {
            action: "sending on",
            ifname: self.ifname.clone(),
            source: errno.into(),
        })
    }

    /// The next frame; `None` when none arrived for `timeout`. A frame sent by a local program may
    /// carry an unfinished checksum, as it does between any two virtual devices.
    ///
    /// # Errors
    /// [`Error`] when the device goes away or down.
    pub fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>, Error> {
        let failed = |source| Error { action: "receiving on", ifname: self.ifname.clone(), source };
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut wanted = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, timeout) {
            Ok(0) | Err(Errno::EINTR) => Ok(None),
            Ok(_) => receive_tagged(&self.socket).map(Some).map_err(failed),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

/// While it lives, the device hands over unicast frames for any MAC address; the host's stack still
/// ignores those that are not its own. The kernel counts who asks, so that others are not disturbed.
#[derive(Debug)]
pub struct Promiscuous {
    _socket: OwnedFd,
}

impl Promiscuous {
    /// Asks the device of that name in the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error`] when there is no such device, or without the privilege.
    pub fn open(ifname: &str) -> Result<Self, Error> {
        let failed =
            |source| Error { action: "widening the filter of", ifname: ifname.into(), source };
        let index = if_nametoindex(ifname).map_err(|errno| failed(errno.into()))?;
        let socket = unbound_socket().map_err(failed)?;
        let membership = libc::packet_mreq {
            mr_ifindex: index.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_option(&socket, libc::PACKET_ADD_MEMBERSHIP, &membership).map_err(failed)?;
        Ok(Self { _socket: socket })
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Protocol 0 receives nothing until bind names protocol and device together: otherwise frames of
/// other devices could come in between.
fn unbound_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointer is involved.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if raw == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn bound_socket(index: u32) -> io::Result<OwnedFd> {
    let (socket, on): (_, libc::c_int) = (unbound_socket()?, 1);
    set_option(&socket, libc::PACKET_AUXDATA, &on)?;
    set_option(&socket, PACKET_IGNORE_OUTGOING, &on)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a whole `sockaddr_ll` of `len` bytes that lives across the call.
    let status = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if status == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option whose value is a plain number or structure of numbers.
fn set_option<T: Copy>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = (&raw const *value).cast();
    // SAFETY: `value` is a whole `T` of `len` bytes that lives across the call, which only reads it.
    let status =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value, len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Room for one control message of the packet level, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn receive_tagged(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    // The largest GSO packet of a virtual device, and its Ethernet header.
    let mut frame = vec![0_u8; (1 << 16) + 64];
    let mut control = Control([0; 64]);
    let mut place = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    let mut header = libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: &raw mut place,
        msg_iovlen: 1,
        msg_control: control.0.as_mut_ptr().cast(),
        msg_controllen: control.0.len(),
        msg_flags: 0,
    };
    // SAFETY: `header` describes `frame` and `control` with their true lengths, and all three
    // live across the call, which writes within those lengths.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let Ok(len) = usize::try_from(received) else { return Err(io::Error::last_os_error()) };
    frame.truncate(len);
    if let Some(tag) = tag_in(&control.0[..header.msg_controllen])
        && frame.len() >= TAG_OFFSET
    {
        frame.splice(TAG_OFFSET..TAG_OFFSET, tag);
    }
    Ok(frame)
}

/// The four bytes of the VLAN tag in a control message: `struct cmsghdr` (length, level, type;
/// 16 bytes) followed by `struct tpacket_auxdata`.
fn tag_in(control: &[u8]) -> Option<[u8; 4]> {
    let level = i32::from_ne_bytes(control.get(8..12)?.try_into().ok()?);
    let kind = i32::from_ne_bytes(control.get(12..16)?.try_into().ok()?);
    if level != libc::SOL_PACKET || kind != libc::PACKET_AUXDATA {
        return None;
    }
    let auxdata = control.get(16..16 + size_of::<libc::tpacket_auxdata>())?;
    let status = u32::from_ne_bytes(auxdata.get(..4)?.try_into().ok()?);
    let field = |at: usize| Some(u16::from_ne_bytes(auxdata.get(at..at + 2)?.try_into().ok()?));
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tci = field(16)?;
    let known = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let tpid = if known { field(18)? } else { ETHERTYPE_VLAN };
    let ([a, b], [c, d]) = (tpid.to_be_bytes(), tci.to_be_bytes());
    Some([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(status: u32, tci: u16, tpid: u16) -> Vec<u8> {
        let mut bytes = 36_u64.to_ne_bytes().to_vec();
        bytes.extend(libc::SOL_PACKET.to_ne_bytes());
        bytes.extend(libc::PACKET_AUXDATA.to_ne_bytes());
        bytes.extend(status.to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(tci.to_ne_bytes());
        bytes.extend(tpid.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_tag_beside_the_frame_is_read_in_network_order() {
        let both = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
        assert_eq!(tag_in(&control(both, 0x2064, 0x88a8)), Some([0x88, 0xa8, 0x20, 0x64]));
        let no_type = libc::TP_STATUS_VLAN_VALID;
        assert_eq!(tag_in(&control(no_type, 100, 0)), Some([0x81, 0, 0, 100]));
        assert_eq!(tag_in(&control(0, 100, 0x8100)), None);
    }

    #[test]
    fn a_short_control_message_has_no_tag() {
        let whole = control(libc::TP_STATUS_VLAN_VALID, 1, 0);
        for length in 0..whole.len() {
            assert_eq!(tag_in(&whole[..length]), None, "{length} bytes");
        }
    }
}
