//! Buffers that guests keep and send from on many flows at once, and the books of
//! their shares.

use paste_abi::Slot;
use paste_abi::slot::SHARE;
use paste_stack::Memory;

use super::MARK;
use crate::sim::host::Host;
use crate::sim::memory::Owner;
use crate::sim::pattern::{self, Stored};

/// What is to become of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its guest sends from it.
    Kept,
    /// Its guest returns it when no send of it is under way any more.
    Returned,
    /// Its guest has returned it while sends of it were under way.
    Retired,
}

/// A buffer that its guest has stored something in.
#[derive(Debug)]
struct Store {
    buf: u32,
    channel: u16,
    /// Where the stored bytes begin.
    start: u16,
    fate: Fate,
    /// Sends of it that are under way.
    shares: u32,
}

/// The stores of one host's guests.
#[derive(Debug)]
pub(super) struct Stores {
    shares_max: u32,
    stores: Vec<Store>,
    /// Sends that there were in all.
    pub sent: u64,
}

impl Stores {
    /// None yet. At most `shares_max` sends may be under way at once.
    pub(super) fn new(shares_max: u32) -> Stores {
        Stores { shares_max, stores: Vec::new(), sent: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stores.is_empty()
    }

    /// The buffer that the guest of `channel` sends from, and where in it the
    /// stored bytes begin.
    pub(super) fn kept(&self, channel: u16) -> Option<(u32, u16)> {
        let store = self.stores.iter().find(|s| s.channel == channel && s.fate == Fate::Kept)?;
        Some((store.buf, store.start))
    }

    /// The guest of `channel` stores bytes in a buffer of its own.
    pub(super) fn keep(
        &mut self,
        buf: u32,
        channel: u16,
        start: u16,
        stored: &Stored,
        host: &mut Host,
    ) {
        let size = host.memory.buffer_size();
        let whole = host.memory.bytes_mut(buf, 0, size);
        whole.fill(MARK);
        pattern::fill(stored.key, 0, &mut whole[start.into()..][..stored.len as usize]);
        self.stores.push(Store { buf, channel, start, fate: Fate::Kept, shares: 0 });
    }

    /// A send of a buffer is under way.
    pub(super) fn shared(&mut self, buf: u32, host: &mut Host) {
        host.memory.lend(buf);
        self.sent += 1;
        let at = self.position(buf);
        self.stores[at].shares += 1;
    }

    /// A send was refused for want of room.
    pub(super) fn refused(&self) {
        let shares: u32 = self.stores.iter().map(|s| s.shares).sum();
        assert_eq!(shares, self.shares_max, "shared sends under way, when there was no room");
    }

    /// ACKED of a send of `buf`: the buffer is as it was stored.
    pub(super) fn acked(
        &mut self,
        now: u64,
        buf: u32,
        slot: &Slot,
        stored: &Stored,
        host: &mut Host,
    ) {
        assert_eq!((slot.modifiers, slot.buf_idx), (SHARE, buf), "ACKED of a shared send");
        let at = self.position(buf);
        let store = &mut self.stores[at];
        assert!(store.shares > 0, "a share of buffer {buf} comes back twice");
        store.shares -= 1;
        if store.shares > 0 || store.fate != Fate::Retired {
            let whole = host.memory.bytes(buf, 0, host.memory.buffer_size());
            let (before, rest) = whole.split_at(store.start.into());
            let (within, after) = rest.split_at(stored.len as usize);
            assert_eq!(pattern::difference(stored.key, 0, within), None, "a shared buffer");
            let around = before.iter().chain(after);
            assert!(around.into_iter().all(|&b| b == MARK), "a shared buffer was written to");
        }
        self.settle(now, at, host);
    }

    /// The guest of `channel` sends from what it kept no more. It returns the
    /// buffer at once, or when no send of it is under way.
    pub(super) fn give_up(&mut self, now: u64, channel: u16, at_once: bool, host: &mut Host) {
        let kept = |s: &Store| s.channel == channel && s.fate == Fate::Kept;
        let Some(at) = self.stores.iter().position(kept) else { return };
        self.stores[at].fate = Fate::Returned;
        if at_once && self.stores[at].shares > 0 {
            self.stores[at].fate = Fate::Retired;
            host.release(now, self.stores[at].buf);
        }
        self.settle(now, at, host);
    }

    /// The guest of `channel` died, and its flows with it.
    pub(super) fn die(&mut self, now: u64, channel: u16, host: &mut Host) {
        for store in self.stores.extract_if(.., |s| s.channel == channel) {
            if store.fate != Fate::Retired {
                host.release(now, store.buf);
            }
        }
    }

    /// A buffer of which sends are under way has the owner that it should.
    pub(super) fn check(&self, host: &Host) {
        for store in &self.stores {
            let owner = if store.fate == Fate::Retired { Owner::Stack } else { Owner::Guest };
            assert_eq!(host.memory.owner(store.buf), owner, "a shared buffer: {store:?}");
        }
    }

    /// Forgets a buffer that was given up, with its last share.
    fn settle(&mut self, now: u64, at: usize, host: &mut Host) {
        let Store { buf, fate, shares, .. } = self.stores[at];
        if shares > 0 || fate == Fate::Kept {
            return;
        }
        if fate == Fate::Returned {
            host.release(now, buf);
        }
        self.stores.swap_remove(at);
    }

    fn position(&self, buf: u32) -> usize {
        let found = self.stores.iter().position(|s| s.buf == buf);
        found.unwrap_or_else(|| panic!("a share of buffer {buf}, which has none"))
    }
}
