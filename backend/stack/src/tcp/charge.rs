//! Which flow may have another buffer for what it receives, and how small
//! payload is gathered so that it needs none.
//!
//! A flow is charged for every buffer that it holds or that its guest has not
//! given up. It may have as many as are free beyond a reserve that payload
//! never takes (the dynamic threshold of Choudhury and Hahne, 1998): a flow
//! alone may have half of the pool, `n` greedy ones have a share of 1/(n+1)
//! each, and whatever they do, something is left for one that has nothing yet.
//! Early payload may have half as much, and goes first when the pool is low,
//! from the flow that has had a hole for the longest.
//!
//! A buffer with one byte in it costs as much as a full one. So once a flow has
//! a few buffers, small payload is copied behind the payload before it, where
//! that is still the stack's. A flow with full segments, or with a request or
//! two, never comes to that.

use paste_abi::Flow;

use crate::bufs::{NIL, Place};
use crate::checksum;
use crate::flow::Links;
use crate::memory::Memory;
use crate::stack::Stack;
use crate::tcp::input::Segment;

/// Buffers that a flow may have before small payload is gathered.
const GATHER_BEYOND: u32 = 4;
/// Small is less than this part of a buffer.
const GATHER_PART: usize = 4;

/// Payload in a buffer, on its way to behind another's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub buf: u32,
    pub offset: u16,
    pub len: u16,
    /// Checksum of the payload, where it is known.
    pub csum: Option<u16>,
}

impl Segment {
    /// The payload.
    pub(crate) fn piece(&self) -> Piece {
        Piece { buf: self.buf, offset: self.offset, len: self.len, csum: self.csum }
    }
}

impl Stack {
    /// Free buffers that received payload never takes: the port must go on
    /// receiving acknowledgements, which are what frees buffers.
    #[inline]
    fn reserve(&self) -> u32 {
        (self.bufs.count() / 32).clamp(1, 256)
    }

    /// Free buffers that received payload may take.
    #[inline]
    pub(crate) fn spare(&self, free: u32) -> u32 {
        free.saturating_sub(self.reserve())
    }

    /// Whether the flow may have a buffer for payload in order. Held payload
    /// gives way to it.
    pub(crate) fn admits<M: Memory>(&mut self, mem: &mut M, index: u32) -> bool {
        if self.spare(mem.free()) == 0 {
            self.drop_oldest_held(mem);
        }
        let spare = self.spare(mem.free());
        let admitted = self.flows[index].rx_bufs < spare;
        if !admitted && spare == 0 {
            self.counters.drop_pool_empty += 1;
        } else if !admitted {
            self.counters.drop_flow_share += 1;
        }
        admitted
    }

    /// Whether the flow may have a buffer for early payload.
    pub(crate) fn admits_early<M: Memory>(&mut self, mem: &M, index: u32) -> bool {
        let spare = self.spare(mem.free());
        let admitted = self.flows[index].rx_bufs < spare / 2;
        if !admitted {
            self.counters.drop_flow_share += 1;
        }
        admitted
    }

    /// The flow holds early payload from now on.
    pub(crate) fn list_holder(&mut self, index: u32) {
        if !self.flows.linked(Links::Age, index) {
            self.flows.push_back(&mut self.holders, Links::Age, index);
        }
    }

    /// Throws away what the flow holds that has had a hole for the longest
    /// (RFC 2018 section 8).
    fn drop_oldest_held<M: Memory>(&mut self, mem: &mut M) {
        if let Some(oldest) = self.holders.head() {
            self.counters.held_dropped += 1;
            self.drop_held(mem, oldest);
        }
    }

    /// Charges the flow for a buffer.
    #[inline]
    pub(crate) fn charge(&mut self, index: u32) {
        self.flows[index].rx_bufs += 1;
        self.charged += 1;
    }

    /// Returns a buffer for which the flow was charged to the pool.
    pub(crate) fn uncharge<M: Memory>(&mut self, mem: &mut M, index: u32, buf: u32) {
        self.flows[index].rx_bufs -= 1;
        self.charged -= 1;
        self.bufs.get_mut(buf).place = Place::Elsewhere;
        mem.give(buf);
    }

    /// Takes the charge for a delivered buffer off its flow, and gives the flow
    /// if it still lives.
    #[inline]
    pub(crate) fn uncharge_delivered(&mut self, buf: u32) -> Option<u32> {
        let meta = self.bufs.get_mut(buf);
        if meta.place != Place::Delivered {
            return None;
        }
        meta.place = Place::Elsewhere;
        let name = Flow(meta.flow);
        self.charged -= 1;
        let index = self.flows.find(name)?;
        self.flows[index].rx_bufs -= 1;
        Some(index)
    }

    /// Whether small payload of the flow is to be gathered.
    #[inline]
    pub(crate) fn gathers(&self, index: u32) -> bool {
        self.flows[index].rx_bufs >= GATHER_BEYOND
    }

    /// Copies a piece behind the payload of `to`, which may be [`NIL`], if it
    /// has room and the piece is small, or `hard` pressed. The buffer of the
    /// piece is not needed then.
    pub(crate) fn gather<M: Memory>(
        &mut self,
        mem: &mut M,
        to: u32,
        piece: &Piece,
        hard: bool,
    ) -> bool {
        if to == NIL {
            return false;
        }
        let meta = self.bufs.get_mut(to);
        let (end, len) = (usize::from(meta.offset) + usize::from(meta.len), usize::from(piece.len));
        let small = len < mem.buffer_size() / GATHER_PART;
        if end + len > mem.buffer_size() || !(small || hard) {
            return false;
        }
        mem.copy(piece.buf, usize::from(piece.offset), to, end, len);
        match piece.csum {
            Some(csum) if meta.csum_valid => {
                // RFC 1071 section 2B: behind an odd byte, bytes change places.
                let sum = if meta.len.is_multiple_of(2) { !csum } else { (!csum).swap_bytes() };
                meta.csum = !checksum::add(!meta.csum, sum);
            }
            _ => meta.forget_csum(),
        }
        meta.len += piece.len;
        self.counters.bytes_copied += len as u64;
        true
    }
}
