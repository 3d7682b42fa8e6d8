//! The switch's end of the rings between it and one guest.
//!
//! Four rings carry 32 bytes or four at a time: frames to the guest, and their buffers
//! back; frames from the guest, and free buffers to put them in. The guest's end is
//! trusted code, on the guest's worker; nothing in the rings is the guest's to write.

use std::sync::Arc;

use paste_pmem::{Buffers, Owner, Pool};
use rtrb::{Consumer, Producer, RingBuffer};

use super::bell::Bell;
use super::port::{Ends, SwitchPort};
use super::{Passing, RING};
use crate::port::{Caps, FRAME_OVERHEAD};
use crate::sys::wake::{Waker, Wakeups};

/// A guest, as the switch sees it.
#[derive(Debug)]
pub(super) struct Member {
    name: String,
    guest: usize,
    to: Producer<Passing>,
    back: Consumer<u32>,
    from: Consumer<Passing>,
    free: Producer<u32>,
    bell: Arc<Bell>,
    frame_max: u16,
    /// Buffers that are with the guest's end, beside the free ones.
    away: usize,
    /// Free buffers that the guest's end is still to get.
    owed: usize,
    /// Frames that it had no room for.
    dropped: u64,
    /// Something was put into a ring since it was rung for.
    news: bool,
}

/// Both ends of a guest's rings.
pub(super) fn pair(
    name: &str,
    guest: usize,
    caps: Caps,
    buffers: Buffers,
    switch: Arc<Bell>,
    (waker, wakeups): (Waker, Wakeups),
) -> (Member, SwitchPort) {
    let (to, received) = RingBuffer::new(RING);
    let (returned, back) = RingBuffer::new(RING);
    let (sending, from) = RingBuffer::new(RING);
    let (free, credit) = RingBuffer::new(RING);
    let bell = Arc::new(Bell::new(waker));
    let frame_max = caps.mtu + FRAME_OVERHEAD;
    let ends = Ends { received, returned, sending, credit, switch, own: Arc::clone(&bell) };
    let member = Member {
        name: name.to_owned(),
        guest,
        to,
        back,
        from,
        free,
        bell,
        frame_max,
        away: 0,
        owed: RING,
        dropped: 0,
        news: false,
    };
    (member, SwitchPort::new(caps, buffers, ends, wakeups))
}

impl Member {
    /// Passes a frame on to the guest, if it has room for it.
    pub(super) fn give(&mut self, passing: Passing) -> bool {
        // With as many places in the ring back, no buffer can get stuck.
        let fits = passing.len <= self.frame_max && self.away < RING;
        let given = fits && self.to.push(passing).is_ok();
        self.away += usize::from(given);
        self.news |= given;
        self.dropped += u64::from(!given);
        given
    }

    /// The guest's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// It is this one's, by the table of guests.
    pub(super) fn set_guest(&mut self, guest: usize) {
        self.guest = guest;
    }

    /// Whose it is, by the table of guests.
    pub(super) fn guest(&self) -> usize {
        self.guest
    }

    /// Frames for the guest that it had no room for.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The next buffer that the guest's end is done with.
    pub(super) fn taken_back(&mut self) -> Option<u32> {
        let buf = self.back.pop().ok()?;
        self.away -= 1;
        Some(buf)
    }

    /// The next frame that the guest sends; its buffer is the switch's.
    pub(super) fn take(&mut self) -> Option<Passing> {
        let passing = self.from.pop().ok()?;
        self.owed += 1;
        Some(passing)
    }

    /// Whether the guest has sent anything.
    pub(super) fn has_frames(&self) -> bool {
        !self.from.is_empty()
    }

    /// Ends a turn: gives the guest's end the buffers that it is owed, as far as there
    /// are any, and wakes it for what it was given.
    pub(super) fn settle(&mut self, pool: &mut Pool) {
        while self.owed > 0 && !self.free.is_full() {
            let Some(buf) = pool.take(Owner::Port) else { break };
            let pushed = self.free.push(buf);
            debug_assert!(pushed.is_ok(), "there was room for it");
            self.owed -= 1;
            self.news = true;
        }
        if std::mem::take(&mut self.news) {
            self.bell.ring();
        }
    }
}
