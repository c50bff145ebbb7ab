//! The way of containers' frames between kernel and worker: a veth pair with the tc programs on
//! this namespace's end and the worker's `AF_XDP` socket on the other.
//!
//! The worker's end lives in a namespace that nobody else has: nothing in it sends router
//! solicitations or mDNS into the ring, its `lo` is free for the UMEM's anchor, and the pair goes
//! away with the process, however that ends.

use std::thread;

use afxdp::{Pages, ProgramError, ProgramKind, QueueError, Umem, UmemError, XdpProgram, XskQueue};
use netdev::ethtool::{self, Feature, State};
use netdev::{Arp, Netlink, VethSpec, set_disable_ipv6};
use packet_io::TRUNK_FRAME_BYTES;

use crate::config::HugePages;

/// This namespace's ends, by the number of the worker.
const NEAR: &str = "wr-t0.";
/// The workers' ends.
const FAR: &str = "wr-t1.";
const MTU: u32 = TRUNK_FRAME_BYTES as u32 - 14;
/// Longest frame of a container that the trunk takes for sure, without FCS and tag.
pub(crate) const FRAME_BYTES: u16 = TRUNK_FRAME_BYTES as u16;

/// The trunk could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrunkError {
    #[error("the worker's network namespace")]
    Namespace(#[from] netdev::NamespaceError),
    #[error("the trunk's devices")]
    Link(#[from] netdev::Error),
    #[error("the worker's network namespace has no lo")]
    NoLoopback,
    #[error("the trunk lost {0}")]
    NoFarEnd(String),
    #[error("the trunk's offloads")]
    Offloads(#[from] ethtool::Error),
    #[error("the trunk's IPv6")]
    Ipv6(#[from] netdev::SysctlError),
    #[error("packet buffers")]
    Umem(#[from] UmemError),
    #[error("the trunk's program")]
    Program(#[from] ProgramError),
    #[error("the trunk's socket")]
    Queue(#[from] QueueError),
}

/// The pair, with its program. Dropping it removes the pair.
#[derive(Debug)]
pub(crate) struct Trunk {
    ifindex: u32,
    // Held: without it the pair is gone.
    _namespace: netdev::Namespace,
    _program: XdpProgram,
}

/// A trunk that was just made, with what its worker gets.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) trunk: Trunk,
    pub(crate) umem: Umem,
    pub(crate) queue: XskQueue,
}

impl Trunk {
    /// That of worker `number`, with packet buffers of its own.
    pub(crate) fn open(
        number: u16,
        frames: u32,
        hugepages: HugePages,
    ) -> Result<Opened, TrunkError> {
        let namespace = netdev::Namespace::anonymous()?;
        let netlink = Netlink::open()?;
        // Making devices waits for the kernel's grace periods and making the region clears memory,
        // so they are done at the same time: both count against a restart.
        let (umem, ifindex) = thread::scope(|scope| {
            let umem = scope.spawn(|| open_region(&namespace, frames, hugepages));
            let ifindex = make_pair(&netlink, &namespace, number);
            let umem = umem.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (umem, ifindex)
        });
        let (umem, ifindex) = (umem?, ifindex?);
        let (program, queue) = namespace.run(|| open_socket(&umem, &far(number)))??;
        let trunk = Self { ifindex, _namespace: namespace, _program: program };
        Ok(Opened { trunk, umem, queue })
    }

    /// Of the end that the tc programs redirect to.
    pub(crate) fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        let removed = Netlink::open().and_then(|netlink| netlink.delete_link(self.ifindex));
        if let Err(error) = removed
            && !error.is_missing()
        {
            tracing::warn!(%error, "the trunk was not removed; it goes with this process");
        }
    }
}

fn open_region(
    namespace: &netdev::Namespace,
    frames: u32,
    hugepages: HugePages,
) -> Result<Umem, TrunkError> {
    let netlink = Netlink::open_in(namespace)?;
    let lo = netlink.link_by_name("lo")?.ok_or(TrunkError::NoLoopback)?;
    netlink.set_up(lo.index)?;
    let umem = namespace.run(|| match hugepages {
        HugePages::Off => Umem::new(frames),
        HugePages::On => Umem::with_pages(frames, Pages::Huge),
        HugePages::Auto => Umem::with_pages(frames, Pages::Huge).or_else(|_| Umem::new(frames)),
    })?;
    Ok(umem?)
}

fn near(number: u16) -> String {
    format!("{NEAR}{number}")
}

/// Name of the end that worker `number` has its socket on.
pub(crate) fn far(number: u16) -> String {
    format!("{FAR}{number}")
}

fn make_pair(
    netlink: &Netlink,
    namespace: &netdev::Namespace,
    number: u16,
) -> Result<u32, TrunkError> {
    let (near_name, far_name) = (near(number), far(number));
    let near = netlink.create_veth(&VethSpec {
        name: &near_name,
        mac: None,
        mtu: MTU,
        peer_name: &far_name,
        peer_mac: None,
        peer_mtu: MTU,
        peer_netns: Some(namespace),
    })?;
    // The tag goes into the data, checksums arrive complete and large packets cut, so that the
    // worker never sees a partial checksum.
    for feature in [Feature::TxVlan, Feature::TxChecksum, Feature::Gro] {
        ethtool::set(&near_name, feature, State::Off)?;
    }
    set_disable_ipv6(None, &near_name)?;
    netlink.set_arp(near.index, Arp::Off)?;
    set_disable_ipv6(Some(namespace), &far_name)?;
    let inside = Netlink::open_in(namespace)?;
    let far = inside.link_by_name(&far_name)?;
    let far = far.ok_or(TrunkError::NoFarEnd(far_name))?;
    inside.set_arp(far.index, Arp::Off)?;
    inside.set_up(far.index)?;
    netlink.set_up(near.index)?;
    Ok(near.index)
}

/// Of an engine that was killed, however many workers it had: the kernel takes its namespaces apart in
/// its own time.
pub(crate) fn remove_leftovers() -> Result<(), TrunkError> {
    let netlink = Netlink::open()?;
    for old in netlink.links()?.iter().filter(|link| link.name.starts_with(NEAR)) {
        match netlink.delete_link(old.index) {
            Err(error) if !error.is_missing() => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn open_socket(umem: &Umem, far: &str) -> Result<(XdpProgram, XskQueue), TrunkError> {
    let program = XdpProgram::attach(ProgramKind::Trunk, far)?;
    let queue = XskQueue::open(umem, far, 0)?;
    program.set_socket(0, queue.fd())?;
    Ok((program, queue))
}

/// Frames for the workers that found their trunk's queue in the kernel full, by the devices' own
/// counters; 0 when they can't be read.
pub(crate) fn overflow_count() -> u64 {
    // /proc/thread-self/net shows the namespace of the thread, not that of the process.
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    transmit_drops(&table, NEAR)
}

/// Of all devices whose names begin so.
fn transmit_drops(table: &str, prefix: &str) -> u64 {
    /// Receive has eight columns; transmit starts with bytes, packets, errors, drops.
    const TRANSMIT_DROPS: usize = 8 + 3;
    let devices = table.lines().filter_map(|line| line.trim_start().split_once(':'));
    let ours = devices.filter(|(name, _)| name.starts_with(prefix));
    let drops = |counts: &str| counts.split_whitespace().nth(TRANSMIT_DROPS)?.parse::<u64>().ok();
    ours.filter_map(|(_, counts)| drops(counts)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transmit_drops_are_the_twelfth_number_of_a_trunk_s_line() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets\n\
                     \x20   lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                     wr-t0.0: 0 1 2 3 4 5 6 7 8 9 10 77 12 13 14 15\n\
                     wr-t0.12: 0 1 2 3 4 5 6 7 8 9 10 5 12 13 14 15\n";
        assert_eq!(transmit_drops(table, NEAR), 82);
        assert_eq!(transmit_drops(table, "wr-t1."), 0);
    }
}
