//! What a flow needs to repair a loss, and at no other time: records that flows
//! borrow while something that they sent is delivered out of order, lost or
//! sent again. A flow borrows one only while it has a buffer in its send queue,
//! so as many as there are buffers are always enough.

use core::ops::{Index, IndexMut};

use crate::bufs::{NIL, Queue};
use crate::tcp::seq::Seq;
use crate::wire::tcp::SackBlock;

/// The record of one repair.
#[derive(Clone, Debug)]
pub(crate) struct Repair {
    /// No buffer before it has lost bytes; or [`NIL`] when none is known.
    pub rexmit_buf: u32,
    /// What of a lost unit is to be sent next, when part of it was.
    pub rexmit_nxt: Seq,
    /// Where loss is looked for among what was sent once, or [`NIL`] for the
    /// start of the queue.
    pub rack_cursor: u32,
    /// The buffer in which something was SACKed last, or [`NIL`].
    pub sack_hint: u32,
    /// Blocks that the peer told of last.
    pub sack_seen: [SackBlock; 3],
    /// Buffers of which something was sent again, in the order of time.
    pub resent: Queue,
}

/// All records.
#[derive(Debug)]
pub(crate) struct Repairs {
    slab: Box<[Repair]>,
    free: Vec<u32>,
}

impl Repairs {
    pub(crate) fn new(count: u32) -> Repairs {
        let repair = Repair {
            rexmit_buf: NIL,
            rexmit_nxt: Seq(0),
            rack_cursor: NIL,
            sack_hint: NIL,
            sack_seen: [SackBlock::default(); 3],
            resent: Queue::EMPTY,
        };
        Repairs {
            slab: vec![repair; count as usize].into_boxed_slice(),
            free: (0..count).rev().collect(),
        }
    }

    /// Lends a record to a flow with this SND.UNA.
    pub(crate) fn take(&mut self, snd_una: Seq) -> Option<u32> {
        let id = self.free.pop()?;
        let repair = &mut self.slab[id as usize];
        repair.rexmit_nxt = snd_una;
        // An empty block at a number that nothing in flight has.
        repair.sack_seen = [SackBlock { start: snd_una, end: snd_una }; 3];
        Some(id)
    }

    /// Takes a record back.
    pub(crate) fn give(&mut self, id: u32) {
        let repair = &mut self.slab[id as usize];
        repair.rexmit_buf = NIL;
        repair.rack_cursor = NIL;
        repair.sack_hint = NIL;
        debug_assert!(repair.resent.is_empty());
        self.free.push(id);
    }

    /// Records that are lent.
    #[cfg(any(test, feature = "audit"))]
    pub(crate) fn lent(&self) -> u64 {
        (self.slab.len() - self.free.len()) as u64
    }
}

impl Index<u32> for Repairs {
    type Output = Repair;

    fn index(&self, id: u32) -> &Repair {
        &self.slab[id as usize]
    }
}

impl IndexMut<u32> for Repairs {
    fn index_mut(&mut self, id: u32) -> &mut Repair {
        &mut self.slab[id as usize]
    }
}
