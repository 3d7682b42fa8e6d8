//! Buffers that stay their guest's while they are sent, on any flows and many
//! times at once, and what a guest may not do with them.

use paste_abi::{Flow, Reason, Slot};
use paste_stack::Tx;

use super::bed::{BUFFER_SIZE, BUFFERS, Bed, HEADROOM};
use super::bytes::Bytes;
use crate::sim::Owner;

/// Shared sends that may be under way at once.
pub const SHARES_MAX: u32 = 8;
/// Steps whose first byte is not below this are of this module.
pub const SHARING: u8 = 220;
/// Payload of most shared sends, bytes.
const LENGTHS: [u16; 4] = [1, 100, 1000, 1800];

/// A shared send that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// The channel and the flow.
    pub channel: u16,
    flow: Flow,
    buf: u32,
    cookie: u64,
}

/// What a buffer is full of when it is shared.
fn mark(buf: u32) -> u8 {
    0x80 | buf as u8
}

/// Whether the bytes are those of a shared buffer.
pub fn is_marked(buf: u32, bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == mark(buf))
}

/// A step that `choice` chooses.
pub fn step(bed: &mut Bed, bytes: &mut Bytes<'_>, choice: u8) {
    match choice % 8 {
        0..=3 => {
            let name = bed.name(bytes.u8().into());
            let bits = bytes.u8();
            let buf = bed.any_buffer(bits & 1 != 0, bits >> 4);
            let tx = Tx {
                offset: HEADROOM + u16::from(bits & 0x30),
                len: bytes.one_of(&LENGTHS),
                cookie: bytes.u8().into(),
                keep: bits & 2 != 0,
                ..Tx::default()
            };
            for _ in 0..1 + choice % 8 {
                let Some(buf) = buf else { break };
                let _ = bed.guest_share(name, Tx { buf, ..tx });
            }
        }
        4 => {
            let name = bed.name(bytes.u8().into());
            let (offset, len) = (bytes.u16() % 2100, bytes.u16());
            if let Some(buf) = bed.any_buffer(false, bytes.u8()) {
                let _ = bed.guest_share(name, Tx { buf, offset, len, ..Tx::default() });
            }
        }
        5 => {
            let name = bed.name(bytes.u8().into());
            let buf = u32::from(bytes.u8()) % (BUFFERS + 2 * SHARES_MAX);
            share_what_is_not_the_guests(bed, name, buf);
        }
        // Kept for good: the guest still has it.
        6 => {
            if let Some(buf) = bed.any_buffer(false, bytes.u8()) {
                let sending = bed.stack.release(bed.now, buf);
                assert_eq!(sending, bed.is_under_way(buf), "buffer {buf} is kept");
            }
        }
        _ => {
            let name = bed.name(bytes.u8().into());
            let tx = Tx { offset: HEADROOM, len: 10, ..Tx::default() };
            let _ = bed.guest_send(name, tx, false);
        }
    }
    bed.check();
}

/// A buffer that is the stack's own, or that does not exist, is refused, and no
/// other request for it does anything.
fn share_what_is_not_the_guests(bed: &mut Bed, (channel, flow): (u16, Flow), buf: u32) {
    if buf < BUFFERS {
        if bed.mem.owner(buf) != Owner::Stack {
            return;
        }
    } else {
        assert!(!bed.stack.release(bed.now, buf), "buffer {buf} is released");
        bed.stack.retire(buf);
        bed.stack.frame_sent(&mut bed.mem, buf);
    }
    let tx = Tx { buf, offset: HEADROOM, len: 10, share: true, ..Tx::default() };
    let sent = bed.stack.send(&mut bed.mem, bed.now, channel, flow, &tx);
    assert!(sent.is_err(), "buffer {buf} was shared and is not the guest's");
}

impl Bed {
    /// A buffer of the guests', or a new one.
    fn any_buffer(&mut self, fresh: bool, choice: u8) -> Option<u32> {
        if fresh || self.guest.is_empty() {
            self.guest.extend(self.mem.take_for(Owner::Guest));
            return self.guest.last().copied();
        }
        self.guest.get(usize::from(choice) % self.guest.len()).copied()
    }

    /// A guest sends a buffer that stays its own.
    fn guest_share(&mut self, (channel, flow): (u16, Flow), tx: Tx) -> Result<(), Reason> {
        let buf = tx.buf;
        if !self.is_shared(buf) {
            self.mem.bytes_mut(buf, 0, BUFFER_SIZE).fill(mark(buf));
        }
        let tx = Tx { share: true, ..tx };
        let sent = self.stack.send(&mut self.mem, self.now, channel, flow, &tx);
        match sent {
            Ok(()) => {
                let end = usize::from(tx.offset) + usize::from(tx.len);
                let inside = tx.len > 0 && tx.offset >= HEADROOM && end <= BUFFER_SIZE;
                assert!(inside, "{tx:?} is beyond its buffer");
                self.mem.lend(buf);
                self.shares.push(Share { channel, flow, buf, cookie: tx.cookie });
            }
            Err(Reason::NoRoom) => {
                assert_eq!(self.shares.len(), SHARES_MAX as usize, "there is room for shares");
            }
            Err(refusal) => {
                let of_buffer = matches!(refusal, Reason::ForeignBuffer | Reason::BadRequest);
                assert!(!of_buffer, "the guest's own buffer {buf} is refused: {refusal}");
            }
        }
        self.check();
        sent
    }

    /// Whether shared sends of a buffer are under way.
    pub(super) fn is_shared(&self, buf: u32) -> bool {
        self.shares.iter().any(|share| share.buf == buf)
    }

    /// The same, or the port has it.
    pub(super) fn is_under_way(&self, buf: u32) -> bool {
        self.is_shared(buf) || self.at_port().any(|at_port| at_port == buf)
    }

    /// ACKED of the oldest shared send of a flow.
    pub(super) fn share_ended(&mut self, channel: u16, slot: &Slot) {
        let found = self.shares.iter().position(|share| share.flow == slot.flow);
        let share = self.shares.remove(found.expect("a shared send that was not acknowledged"));
        let told = (channel, slot.buf_idx, slot.cookie);
        assert_eq!(told, (share.channel, share.buf, share.cookie), "ACKED of another send");
        let buf = share.buf;
        let intact = is_marked(buf, self.mem.bytes(buf, 0, BUFFER_SIZE));
        assert!(!self.mem.is_lent(buf) || intact, "buffer {buf} was written to");
    }

    /// A flow that ends has told of its shared sends.
    pub(super) fn no_share_is_left(&self, flow: Flow) {
        let left = self.shares.iter().find(|share| share.flow == flow);
        assert!(left.is_none(), "a flow ended without its {left:?}");
    }

    /// A buffer that is shared is its guest's, or the stack's if it was given back.
    pub(super) fn check_shares(&self) {
        let free = self.shares.iter().find(|share| self.mem.owner(share.buf) == Owner::Pool);
        assert!(free.is_none(), "a free buffer that is shared: {free:?}");
    }
}
