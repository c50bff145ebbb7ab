//! The thread that follows the kernel: next hops of tunnel end points, and devices that go.
//!
//! Routes and neighbours of the underlay are the kernel's and only read. The engine's packets do
//! not pass the kernel's stack, so nobody else would keep a neighbour fresh: the kernel is asked to
//! resolve it when it is missing and to confirm it when it has become stale.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flowtable::entry::UnderlayEntry;
use flowtable::ids::{Mac, PortId};
use netdev::{Event, Monitor, NeighbourState, Netlink};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;

use crate::ports::{Ports, PortsError, Which};
use crate::tables::Tables;

/// Events bring changes at once; this is for what no event tells (routes) and for lost ones.
const CHECK: Duration = Duration::from_secs(1);
/// How often links are looked at where an uplink can move: the kernel may tell of a lost one up to a
/// second late.
const LOOK: Duration = Duration::from_millis(50);

/// One pass failed; the next one starts anew.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("netlink")]
    Netlink(#[from] netdev::Error),
    #[error("waiting for events")]
    Poll(#[from] nix::Error),
    #[error("closing a port")]
    Ports(#[from] PortsError),
    #[error("writing next hops")]
    Write(#[from] vrouter::WriteError),
}

/// The watcher; run it on a thread of its own.
#[derive(Debug)]
pub(crate) struct Watcher {
    netlink: Netlink,
    monitor: Monitor,
    tables: Arc<Tables>,
    ports: Arc<Ports>,
    trunks: WatchedTrunks,
    /// The container that was last looked at unasked.
    looked_at: PortId,
    /// Next hops as the kernel's routes last said: a route goes with its device, and another device of
    /// the same uplink leads to the same neighbours.
    hops: BTreeMap<IpAddr, Hop>,
}

/// Where a packet goes next, and over which interface.
#[derive(Debug, Clone, Copy)]
struct Hop {
    oif: u32,
    next_hop: IpAddr,
}

/// The trunks' devices, and who is told when one is gone.
#[derive(Debug)]
pub(crate) struct WatchedTrunks {
    pub(crate) ifindexes: Vec<u32>,
    pub(crate) lost: Arc<Notify>,
}

impl WatchedTrunks {
    fn are_there(&self, netlink: &Netlink) -> Result<bool, netdev::Error> {
        for ifindex in &self.ifindexes {
            if netlink.link_by_index(*ifindex)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What a round of events asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Nothing,
    NextHops,
    Everything,
}

impl Watcher {
    /// Sees everything that happens after this returns.
    pub(crate) fn new(
        tables: Arc<Tables>,
        ports: Arc<Ports>,
        trunks: WatchedTrunks,
    ) -> Result<Self, netdev::Error> {
        let (netlink, monitor) = (Netlink::open()?, Monitor::open()?);
        Ok(Self {
            netlink,
            monitor,
            tables,
            ports,
            trunks,
            looked_at: PortId::MIN,
            hops: BTreeMap::new(),
        })
    }

    pub(crate) fn run(&mut self, stop: &AtomicBool) {
        let mut next = Instant::now() + CHECK;
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = self.round(&mut next) {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "following the kernel");
                // A failure that stays must not make this thread spin.
                std::thread::sleep(CHECK);
            }
        }
    }

    /// Waits for something to do, and does it.
    fn round(&mut self, next: &mut Instant) -> Result<(), WatchError> {
        let due = next.saturating_duration_since(Instant::now());
        let mut wanted = self.wait(if self.ports.has_standby() { due.min(LOOK) } else { due })?;
        if self.ports.follow_uplinks(&self.netlink)? {
            wanted = wanted.max(Wanted::NextHops);
        }
        let is_due = Instant::now() >= *next;
        if is_due || wanted == Wanted::Everything {
            *next = Instant::now() + CHECK;
            // What the kernel tells of is looked at in full; unasked, a part is.
            let told = wanted == Wanted::Everything;
            let which = if told { Which::All } else { Which::After(self.looked_at) };
            wanted = wanted.max(Wanted::NextHops);
            if !self.trunks.are_there(&self.netlink)? {
                self.trunks.lost.notify_one();
                return Ok(());
            }
            self.looked_at = self.ports.check(&self.netlink, which)?;
            self.ports.mend_uplinks(&self.netlink)?;
            self.ports.roll_back(Instant::now())?;
            self.ports.restore_programs()?;
        }
        if wanted >= Wanted::NextHops {
            self.refresh()?;
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Wanted, WatchError> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut sources = [
            PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.tables.changed().as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut sources, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut wanted = Wanted::Nothing;
        if sources[1].any().unwrap_or(false) {
            self.tables.seen();
            wanted = Wanted::NextHops;
        }
        while let Some(event) = self.monitor.next(Duration::ZERO)? {
            wanted = wanted.max(match event {
                // Until its filter is back, the frames of a port are the host's to drop.
                Event::LinkGone { .. } | Event::FilterGone { .. } | Event::Overrun => {
                    Wanted::Everything
                }
                Event::LinkChanged(_) | Event::NeighbourChanged { .. } => Wanted::NextHops,
            });
        }
        Ok(wanted)
    }

    fn refresh(&mut self) -> Result<(), WatchError> {
        let mut resolved = BTreeMap::new();
        let mut failed = Ok(());
        let vteps = self.tables.vteps();
        self.hops.retain(|vtep, _| vteps.contains(vtep));
        for vtep in vteps {
            // One that can't be asked for keeps what it has and is no reason to leave out others.
            match self.resolve(vtep) {
                Ok(entry) => drop(resolved.insert(vtep, entry)),
                Err(error) => failed = Err(error),
            }
        }
        self.tables.set_underlay(&resolved)?;
        failed
    }

    /// The next hop towards a tunnel end point; `None` when there is none (yet).
    fn resolve(&mut self, vtep: IpAddr) -> Result<Option<UnderlayEntry>, WatchError> {
        let Some(hop) = self.hop(vtep)? else { return Ok(None) };
        let Some(uplink) = self.ports.uplink_on(hop.oif) else { return Ok(None) };
        let neighbour = self.netlink.neighbour(uplink.ifindex, hop.next_hop)?;
        let state = neighbour.map_or(NeighbourState::Unknown, |n| n.state);
        if needs_probe(state) {
            self.netlink.probe_neighbour(uplink.ifindex, hop.next_hop)?;
        }
        let known = neighbour.and_then(netdev::Neighbour::resolved).map(Mac);
        // Over another device of the uplink it is the same neighbour, until one hears otherwise.
        let is_asked = matches!(state, NeighbourState::Unknown | NeighbourState::Incomplete);
        let last = || self.tables.next_hop(vtep).filter(|_| uplink.has_standby && is_asked);
        let Some(dst_mac) = known.or_else(last) else { return Ok(None) };
        Ok(Some(UnderlayEntry { vtep, port: uplink.port, src_mac: uplink.mac, dst_mac }))
    }

    /// As the kernel's routes say. Those over a device that is gone are gone with it: as long as its
    /// uplink uses another one, the last answer holds.
    fn hop(&mut self, vtep: IpAddr) -> Result<Option<Hop>, WatchError> {
        match self.netlink.route_to(vtep) {
            Ok(route) if self.ports.uplink_on(route.oif).is_some() => {
                let next_hop = route.gateway.unwrap_or(vtep);
                self.hops.insert(vtep, Hop { oif: route.oif, next_hop });
            }
            Err(error) if !error.is_unreachable() && !is_refusal(&error) => {
                return Err(error.into());
            }
            Ok(_) | Err(_) => {
                let has_moved = |hop: &Hop| {
                    self.ports.uplink_on(hop.oif).is_some_and(|uplink| uplink.ifindex != hop.oif)
                };
                if !self.hops.get(&vtep).is_some_and(has_moved) {
                    self.hops.remove(&vtep);
                }
            }
        }
        Ok(self.hops.get(&vtep).copied())
    }
}

/// The address is behind a `blackhole` or `prohibit` route, or is none that packets are sent to.
fn is_refusal(error: &netdev::Error) -> bool {
    matches!(error.errno(), Some(Errno::EINVAL | Errno::EACCES))
}

const fn needs_probe(state: NeighbourState) -> bool {
    match state {
        NeighbourState::Unknown | NeighbourState::Failed | NeighbourState::Stale => true,
        NeighbourState::Incomplete
        | NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::NoArp
        | NeighbourState::Permanent => false,
    }
}
