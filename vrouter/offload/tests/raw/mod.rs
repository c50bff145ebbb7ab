//! A packet socket that gives a frame's 802.1Q tag, which the kernel takes out of the data of
//! received frames.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

const FRAME_MAX: usize = 2048;

/// `struct tpacket_auxdata` of `linux/if_packet.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct AuxData {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// Room for one control message with [`AuxData`].
#[repr(C, align(8))]
struct Control([u8; 64]);

pub(crate) struct RawSocket(OwnedFd);

impl RawSocket {
    /// On device `ifname` of the calling thread's namespace; `receive` waits 200 ms at most.
    pub(crate) fn open(ifname: &str) -> Self {
        let ifindex = nix::net::if_::if_nametoindex(ifname).unwrap();
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain numbers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into()) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel just made it for us.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: all zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = ifindex.cast_signed();
        // SAFETY: the address is valid for the call and its length is given.
        let bound = unsafe {
            let len = size_of_val(&address) as libc::socklen_t;
            libc::bind(fd, (&raw const address).cast(), len)
        };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32);
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32);
        let timeout = libc::timeval { tv_sec: 0, tv_usec: 200_000 };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout);
        socket
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is borrowed for the call and its size is given.
        let result = unsafe {
            let value = std::ptr::from_ref(value).cast();
            libc::setsockopt(self.0.as_raw_fd(), level, option, value, len)
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let fd = self.0.as_raw_fd();
        // SAFETY: the buffer is borrowed for the call and its length is given.
        let sent = unsafe { libc::send(fd, frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len().cast_signed(), "{}", io::Error::last_os_error());
    }

    /// The tag (0: none) and the frame without it.
    pub(crate) fn receive(&self) -> Option<(u16, Vec<u8>)> {
        let mut frame = vec![0; FRAME_MAX];
        let mut control = Control([0; 64]);
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: FRAME_MAX };
        // SAFETY: all zero is a valid message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control.0).cast();
        message.msg_controllen = control.0.len();
        // SAFETY: both buffers live until the call returns and their lengths are given.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        frame.truncate(usize::try_from(len).ok()?);
        // SAFETY: the kernel filled in the message.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        assert!(!header.is_null(), "no auxiliary data");
        // SAFETY: it lies in `control`.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: the socket asked for no other control message than this one.
        let aux = unsafe { data.cast::<AuxData>().read_unaligned() };
        Some((aux.vlan_tci & 0xfff, frame))
    }
}
