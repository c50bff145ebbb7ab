//! Descriptors for moved packet starts.
//!
//! `xsk-rs` offers no way to move the start of a descriptor, and pushing or popping a header moves
//! the start of a packet. So there is a table of descriptors for each [`START_OFFSETS`], taken from
//! a throw-away UMEM of the same geometry with another headroom: a descriptor is a plain address.
//!
//! Such a UMEM costs about 15 ms for 8192 frames, too much to build all of them when a node's
//! engine starts and its containers wait. A table is therefore built by a thread of its own when
//! the first frame needs it; until it is there, such frames are moved by copying.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use packet_io::{FRAME_BYTES, HEADROOM};
use xsk_rs::FrameDesc;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

use crate::umem::{FRAME_HEADROOM, UmemError, XDP_HEADROOM};

/// Packet starts, in bytes from [`HEADROOM`], that are sent without copying: every sum of VLAN tag
/// (4), VXLAN over IPv4 (50) and over IPv6 (70) pushed or popped by the pipeline.
pub const START_OFFSETS: [i16; 11] = [0, -46, -66, 46, 66, -50, -70, 50, 70, 4, -4];

const NONE: u8 = u8::MAX;

/// From a packet's start (relative to the lowest one a descriptor can have) to its table.
const TABLE_OF_START: [u8; 256] = {
    let mut table = [NONE; 256];
    let mut i = 0;
    while i < START_OFFSETS.len() {
        table[FRAME_HEADROOM.wrapping_add_signed(START_OFFSETS[i]) as usize] = i as u8;
        i += 1;
    }
    table
};

/// One for each of [`START_OFFSETS`]; that of offset 0 stays empty, see [`Tables::own`].
type Slots = [OnceLock<Box<[FrameDesc]>>; START_OFFSETS.len()];

/// The tables of one UMEM.
#[derive(Debug)]
pub(crate) struct Tables {
    own: Box<[FrameDesc]>,
    slots: Arc<Slots>,
    asked: [AtomicBool; START_OFFSETS.len()],
    requests: SyncSender<u8>,
}

impl Tables {
    /// Starts with the UMEM's own descriptors as the table of offset 0.
    pub(crate) fn new(own: Vec<FrameDesc>) -> Result<Self, UmemError> {
        let frames = NonZeroU32::new(own.len() as u32).ok_or(UmemError::NoFrames)?;
        let slots = Arc::new(Slots::default());
        let (requests, received) = sync_channel(START_OFFSETS.len());
        let built = Arc::clone(&slots);
        std::thread::Builder::new()
            .name("descriptors".to_owned())
            .spawn(move || build_on_request(frames, &built, &received))
            .map_err(UmemError::Thread)?;
        Ok(Self { own: own.into(), slots, asked: Default::default(), requests })
    }

    /// The descriptor for buffer `index` with the packet at [`HEADROOM`].
    #[inline]
    pub(crate) fn own(&self, index: u32) -> FrameDesc {
        self.own[index as usize]
    }

    /// The descriptor for buffer `index` with the packet at `start`, if its table is there. Asks
    /// for the table otherwise.
    #[inline]
    pub(crate) fn descriptor(&self, index: u32, start: usize) -> Option<FrameDesc> {
        if start == HEADROOM {
            return Some(self.own(index));
        }
        let slot = start.checked_sub(XDP_HEADROOM).and_then(|s| TABLE_OF_START.get(s).copied());
        let slot = slot.filter(|s| *s != NONE)?;
        let table = self.slots[usize::from(slot)].get();
        if table.is_none() {
            self.ask(slot);
        }
        table.map(|table| table[index as usize])
    }

    /// Builds every table now, on the calling thread.
    pub(crate) fn build_all(&self, frames: NonZeroU32) -> Result<(), UmemError> {
        for (slot, offset) in self.slots.iter().zip(START_OFFSETS).skip(1) {
            if slot.get().is_none() {
                let table = build(frames, offset)?;
                // Losing the race against the builder thread leaves its equal table there.
                slot.get_or_init(|| table);
            }
        }
        Ok(())
    }

    #[cold]
    fn ask(&self, slot: u8) {
        if !self.asked[usize::from(slot)].swap(true, Ordering::Relaxed) {
            // The channel holds one request for each slot, so it is never full; without its thread
            // frames go on being moved by copying, which is counted.
            self.requests.try_send(slot).ok();
        }
    }
}

fn build_on_request(frames: NonZeroU32, slots: &Slots, requests: &Receiver<u8>) {
    while let Ok(slot) = requests.recv() {
        let slot = usize::from(slot);
        // A failure (out of memory) leaves the slot empty: copying goes on, and is counted.
        if let Ok(table) = build(frames, START_OFFSETS[slot]) {
            slots[slot].get_or_init(|| table);
        }
    }
}

fn build(frames: NonZeroU32, offset: i16) -> Result<Box<[FrameDesc]>, UmemError> {
    let rings = QueueSize::new(64).map_err(UmemError::RingSize)?;
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(FRAME_BYTES as u32).map_err(UmemError::FrameSize)?)
        .frame_headroom(u32::from(FRAME_HEADROOM).wrapping_add_signed(i32::from(offset)))
        .fill_queue_size(rings)
        .comp_queue_size(rings)
        .build()
        .map_err(|error| UmemError::Geometry(Box::new(error)))?;
    let (umem, table) = xsk_rs::Umem::new(config, frames, false).map_err(UmemError::Create)?;
    drop(umem);
    Ok(table.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offered_offset_has_a_table_and_no_other_start_has_one() {
        let with_table = (0..256)
            .filter(|s| TABLE_OF_START[*s] != NONE)
            .map(|s| s + XDP_HEADROOM)
            .collect::<Vec<_>>();
        let mut offered = START_OFFSETS.map(|o| HEADROOM.wrapping_add_signed(o.into()));
        offered.sort_unstable();
        assert_eq!(with_table, offered);
    }
}
