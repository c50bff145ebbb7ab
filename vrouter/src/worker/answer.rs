//! To the slow path and back: packets that the gateway answers, and its answers.

use flowtable::DropReason;
use flowtable::action::Punt;
use packet_io::{Frame, PacketIo};

use super::act::View;
use super::{BURST, ETHERNET_BYTES, Packet, Rx, Worker};
use crate::pipeline;
use crate::rewrite;
use crate::slow::{self, Answer, Asker, Punted, Reply};
use crate::snapshot::Snapshot;

impl<I: PacketIo> Worker<I> {
    /// Hands a packet to the slow path, within its port's share.
    #[cold]
    pub(super) fn punt(
        &mut self,
        frame: Frame,
        packet: &Packet,
        punt: Punt,
        (snapshot, now_ns): (&Snapshot, u64),
    ) {
        let &Packet { rx, ref parsed, hash, .. } = packet;
        let bytes = &self.io.bytes(&frame)[usize::from(parsed.inner)..];
        // What the slow path has of this worker has room among its answers.
        let room = self.punted < slow::SLOW_QUEUE && slow::fits(bytes.len());
        if !room || !self.shared.budgets.punts.take(rx.port, now_ns) {
            return self.end(frame, rx, DropReason::SlowPathLimit);
        }
        let mut copy = bytes.to_vec();
        if parsed.key.vid != 0 {
            copy.drain(12..12 + rewrite::TAG_BYTES);
        }
        let binding = snapshot.ports.lookup(rx.port).and_then(|p| p.binding.as_ref());
        let network = binding.and_then(|b| snapshot.networks.by_bd.get(&b.bd));
        let (vrf, entropy) = (pipeline::tenant(snapshot, &parsed.key), (hash >> 48) as u16);
        let punted = Punted {
            worker: self.number,
            punt,
            frame: copy.into_boxed_slice(),
            gateway: network.and_then(|n| slow::gateway(&n.gateways, &parsed.key)),
            asker: Asker { rx, key: parsed.key, vrf, entropy },
        };
        if self.punts.try_send(punted).is_err() {
            return self.end(frame, rx, DropReason::SlowPathLimit);
        }
        self.punted += 1;
        match punt {
            Punt::TimeExceeded => self.end(frame, rx, DropReason::TtlExpired),
            Punt::ArpReply(_) | Punt::NeighborAdvert(_) | Punt::GatewayEcho => self.io.free(frame),
        }
    }

    /// Sends what the slow path has answered.
    pub(super) fn send_replies(&mut self, snapshot: &Snapshot) -> usize {
        let mut sent = 0;
        while sent < BURST
            && let Some(reply) = self.replies.pop()
        {
            sent += 1;
            self.punted -= 1;
            self.send_reply(&reply, snapshot);
        }
        sent
    }

    fn send_reply(&mut self, reply: &Reply, snapshot: &Snapshot) {
        let Reply { asker: Asker { rx, key, vrf, entropy }, answer } = reply;
        let bytes = match answer {
            Answer::Frame(bytes) => bytes,
            Answer::Drop(reason) => return self.count_drop(*rx, *reason),
            Answer::None => return,
        };
        // Since it asked, its port, VNI or tag may have become another tenant's.
        if pipeline::tenant(snapshot, key) != *vrf {
            return self.count_drop(*rx, DropReason::PortGone);
        }
        let rx = Rx { len: bytes.len(), ..*rx };
        let Some(mut frame) = self.io.alloc() else {
            return self.count_drop(rx, DropReason::NoFrame);
        };
        if frame.set_len(bytes.len()).is_err() {
            return self.end(frame, rx, DropReason::NoFrame);
        }
        self.io.bytes_mut(&mut frame).copy_from_slice(bytes);
        // What the node answers is never translated.
        let view =
            View { l3: ETHERNET_BYTES, inner: 0, entropy: *entropy, l4: ETHERNET_BYTES, proto: 0 };
        let back = pipeline::return_path(key, rx.port);
        self.execute(frame, rx, (view, &back), snapshot);
    }
}
