//! One packet buffer, by index.

/// Size of a buffer in bytes. Kernel copy mode needs 2048 or 4096; 2048 halves the footprint and
/// holds every frame of a 1500 byte MTU with its encapsulation.
pub const FRAME_BYTES: usize = 2048;

/// Longest frame that a trunk takes, without FCS and its tag: Ethernet's header and 1,600 bytes. A 1,500
/// byte packet with its own tag has 1,504, the rest is room; above 1,646 a frame does not fit a packet
/// buffer any more.
pub const TRUNK_FRAME_BYTES: usize = 14 + 1600;

/// Where a received or fresh packet starts: 256 bytes the kernel keeps for itself and 128 for the
/// headers we put in front (VXLAN over IPv6 needs 70).
pub const HEADROOM: usize = 256 + 128;

/// The buffer ends before the packet would fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room in the frame")]
pub struct NoRoom;

/// A packet in a buffer. Not `Copy`, not `Clone`: holding it is owning the buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    index: u32,
    start: u16,
    len: u16,
}

impl Frame {
    /// Names `len` bytes from `start` in buffer `index`. For implementations of
    /// [`crate::PacketIo`] only: making a second frame of one index breaks ownership.
    ///
    /// # Errors
    /// [`NoRoom`] when the packet would not lie inside the buffer.
    pub const fn new(index: u32, start: usize, len: usize) -> Result<Self, NoRoom> {
        if start > FRAME_BYTES || len > FRAME_BYTES - start {
            return Err(NoRoom);
        }
        Ok(Self { index, start: start as u16, len: len as u16 })
    }

    /// Names `len` bytes from [`HEADROOM`]; `len` is at most [`FRAME_BYTES`] minus that.
    pub(crate) const fn received(index: u32, len: u16) -> Self {
        debug_assert!(len as usize <= FRAME_BYTES - HEADROOM, "longer than a buffer");
        Self { index, start: HEADROOM as u16, len }
    }

    /// Number of the buffer in its region.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// First byte of the packet, counted from the start of the buffer.
    #[must_use]
    pub const fn start(&self) -> usize {
        self.start as usize
    }

    /// Bytes in the packet.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// No bytes in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Moves the start `count` bytes towards the end: the front of the packet is gone.
    ///
    /// # Errors
    /// [`NoRoom`] when the packet is shorter than that; it is unchanged then.
    #[inline]
    pub const fn shrink_front(&mut self, count: usize) -> Result<(), NoRoom> {
        if count > self.len() {
            return Err(NoRoom);
        }
        // The packet's end stays where it is, inside the buffer.
        self.start += count as u16;
        self.len -= count as u16;
        Ok(())
    }

    /// Moves the start `count` bytes towards the buffer's front; their content is undefined.
    ///
    /// # Errors
    /// [`NoRoom`] when the headroom is smaller than that; the packet is unchanged then.
    #[inline]
    pub const fn grow_front(&mut self, count: usize) -> Result<(), NoRoom> {
        if count > self.start() {
            return Err(NoRoom);
        }
        // The packet's end stays where it is, inside the buffer.
        self.start -= count as u16;
        self.len += count as u16;
        Ok(())
    }

    /// Sets the length, keeping the start.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer ends earlier; the packet is unchanged then.
    pub fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        *self = Self::new(self.index, self.start(), len)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_moves_both_ways_within_the_buffer() {
        let mut frame = Frame::new(3, HEADROOM, 60).unwrap();
        frame.grow_front(50).unwrap();
        assert_eq!((frame.start(), frame.len()), (HEADROOM - 50, 110));
        frame.shrink_front(54).unwrap();
        assert_eq!((frame.start(), frame.len()), (HEADROOM + 4, 56));
        assert_eq!(frame.shrink_front(57), Err(NoRoom));
        assert_eq!(frame.grow_front(HEADROOM + 5), Err(NoRoom));
        assert_eq!((frame.start(), frame.len()), (HEADROOM + 4, 56));
        assert_eq!(frame.set_len(FRAME_BYTES - HEADROOM - 3), Err(NoRoom));
        assert_eq!(Frame::new(0, FRAME_BYTES, 1), Err(NoRoom));
    }
}
