//! Payload that travels with the slots, for guests that map no region: out of frames
//! into the buffers that the guest owns, and out of these into frames.
//!
//! The guest has no more to say of a buffer than if it had mapped it: bytes for one that
//! is not its own go nowhere, and the slot that names it is refused at the same door.

use std::collections::VecDeque;

use paste_abi::Slot;
use paste_abi::frame::Frame;
use paste_abi::inline::{InlineError, Piece, Progress, Put, Reader, Writer};
use paste_pmem::Owner;
use paste_stack::Memory;

use super::conversation::Conversation;
use super::{ChannelCounters, hand_over, requests};
use crate::engine::{RegionMemory, StackPort};

/// Slots that are taken from the stack port at once.
const BATCH: usize = 64;

/// What a conversation keeps of its inline slots between frames.
pub struct Inline {
    /// Of the payload that the guest brings.
    taken: Progress,
    /// Slots of the stack port that found no room in a frame yet: their buffers are the
    /// guest's.
    waiting: VecDeque<Slot>,
    /// How much of the first one's payload is with the guest.
    brought: u16,
}

impl Inline {
    /// Nothing is under way.
    pub fn new() -> Inline {
        Inline { taken: Progress::default(), waiting: VecDeque::with_capacity(BATCH), brought: 0 }
    }

    /// Whether a frame of the guest's is well formed. Nothing in it is acted on.
    pub fn judge(&self, frame: &Frame<'_>) -> Result<(), InlineError> {
        let mut progress = self.taken;
        let mut reader = Reader::new(frame.body, frame.header.count);
        while let Some(slot) = reader.next(&mut progress) {
            slot?;
        }
        Ok(())
    }
}

/// Acts on a frame of the guest's that was judged.
pub fn take(
    door: &mut requests::Door<'_>,
    mem: &mut RegionMemory,
    engine: &mut dyn StackPort,
    frame: &Frame<'_>,
) {
    let mut reader = Reader::new(frame.body, frame.header.count);
    loop {
        let Some(inline) = door.open.inline.as_deref_mut() else { return };
        let Some(Ok((slot, piece, bytes))) = reader.next(&mut inline.taken) else { return };
        if !bytes.is_empty() {
            put(door, mem, piece, bytes);
        }
        if slot.as_request() != Some(paste_abi::Request::Piece) {
            door.take_request(mem, engine, &slot);
        }
    }
}

/// Puts what a frame brought into its buffer, if that is the guest's.
fn put(door: &mut requests::Door<'_>, mem: &mut RegionMemory, piece: Piece, bytes: &[u8]) {
    let guest = Owner::Guest(door.number);
    if mem.pool().owner(piece.buf_idx) == Some(guest) && piece.end() <= mem.buffer_size() {
        mem.write(piece.buf_idx, piece.offset.into(), bytes);
        door.counters.inline_bytes_in += bytes.len() as u64;
    }
}

/// Fills the body of a frame: the rest of what was split, replies, then what the stack
/// port has. Returns the slots and the bytes.
pub fn fill(
    scratch: &mut [Slot],
    open: &mut Conversation,
    mem: &mut RegionMemory,
    engine: &mut dyn StackPort,
    channel: u16,
    body: &mut [u8],
    counters: &mut ChannelCounters,
) -> (u16, usize) {
    let Conversation { inline: Some(inline), replies, .. } = open else { return (0, 0) };
    let mut writer = Writer::new(body);
    if inline.brought == 0 {
        while let Some(reply) = replies.front() {
            if writer.put(reply, &mut 0, &mut |_, _| {}) != Put::Whole {
                return (writer.count(), writer.len());
            }
            replies.pop_front();
        }
    }
    let before = writer.count();
    loop {
        if inline.waiting.is_empty() {
            if !engine.has_slots(channel) {
                break;
            }
            let room = scratch.len().min(BATCH);
            let count = engine.poll_slots(mem, channel, &mut scratch[..room]);
            for slot in &scratch[..count] {
                hand_over(mem, channel, slot, counters);
                inline.waiting.push_back(*slot);
            }
            if count == 0 {
                break;
            }
        }
        let Some(slot) = inline.waiting.front() else { break };
        let put = writer.put(slot, &mut inline.brought, &mut |piece, out| {
            mem.read(piece.buf_idx, piece.offset.into(), out);
            counters.inline_bytes_out += out.len() as u64;
        });
        match put {
            Put::Whole => drop(inline.waiting.pop_front()),
            Put::Split | Put::No => break,
        }
    }
    let told = writer.count() - before;
    counters.slots_out += u64::from(told);
    counters.batches_out += u64::from(told > 0);
    (writer.count(), writer.len())
}
