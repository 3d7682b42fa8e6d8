//! The owner of every buffer: the pool, the port, the stack, a guest's channel,
//! or the guest's durable data, in a table that only the host can read or write.
//!
//! Each move names the owner that the buffer is believed to have, and is
//! refused if that is wrong: a guest that names a buffer which it does not own
//! is found here. Every operation is O(1), and giving back what a dead channel
//! held is linear in what it held: free buffers, and the buffers of each
//! channel, are lists threaded through the table. Nothing allocates after
//! [`Pool::new`].
//!
//! The claim table is the guest's to write, and the host believes one thing of
//! it: a buffer whose bit is set is not to be handed out. The whole table is read
//! once, when the pool is made; after that, one bit is read whenever a buffer
//! that a guest has had would become free. So a stored value survives the loss
//! of its channel even while it is being sent, and a guest that claims what it
//! likes withholds buffers from nobody but itself.

use std::sync::Arc;

use paste_abi::CHANNELS_MAX;

use crate::buffers::Buffers;
use crate::claims;
use crate::layout::Part;
use crate::occupied::Occupied;
use crate::sys::Mapping;

/// Who owns a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Nobody: it is free.
    Pool,
    /// The port: a NIC fills or sends it.
    Port,
    /// The stack: it waits to be sent, acknowledged or put in order.
    Stack,
    /// The guest's durable data, on no channel: nobody gets it until a channel
    /// names it.
    Claimed,
    /// Another pool of the same region: see [`Pool::split`].
    Elsewhere,
    /// The guest, on this channel (below [`CHANNELS_MAX`]).
    Guest(u16),
}

/// Why a buffer did not change its owner. The table is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// No such buffer.
    #[error("buffer {buf} does not exist, the region has {count}")]
    OutOfRange {
        /// The index that was named.
        buf: u32,
        /// Buffers in the region.
        count: u32,
    },
    /// The buffer is somebody else's.
    #[error("buffer {buf} belongs to {is:?}, not to {named:?}")]
    Foreign {
        /// The buffer.
        buf: u32,
        /// Its owner.
        is: Owner,
        /// The owner that was named.
        named: Owner,
    },
    /// Only [`Pool::take`] takes buffers out of the pool.
    #[error("buffer {buf} was to be taken out of the pool by name")]
    FromPool {
        /// The buffer.
        buf: u32,
    },
    /// [`Owner::Elsewhere`] was named: buffers do not go from one pool to another.
    #[error("a buffer was to go from one pool to another")]
    OtherPool,
    /// No such channel.
    #[error("channel {channel} does not exist, channels are below {CHANNELS_MAX}")]
    NoChannel {
        /// The channel that was named.
        channel: u16,
    },
}

/// Owners as small numbers: pool, port, stack, durable data, another pool, then the
/// channels.
const CODES: usize = GUEST as usize + CHANNELS_MAX as usize;
const POOL: u8 = 0;
const PORT: u8 = 1;
const STACK: u8 = 2;
const CLAIMED: u8 = 3;
const ELSEWHERE: u8 = 4;
const GUEST: u8 = 5;
/// Ends a list.
const END: u32 = u32::MAX;

const _: () = assert!(CODES <= u8::MAX as usize);

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The next buffer in the list of the pool or of a channel.
    next: u32,
    /// The one before, in the list of a channel.
    prev: u32,
    owner: u8,
    /// Whether it has been a guest's since it was free: its claim bit counts.
    guests: bool,
}

/// Buffers in a word of the claim table, which a guest writes as a whole.
const CLAIMS_IN_WORD: u32 = u64::BITS;

/// What became of the buffers of a channel; see [`Pool::reclaim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reclaimed {
    /// Buffers that are free again.
    pub freed: u32,
    /// Buffers that are claimed, and so kept.
    pub kept: u32,
}

/// The claim table, as the guest may be writing it.
#[derive(Clone, Debug)]
struct ClaimBits {
    mapping: Arc<Mapping>,
    offset: usize,
}

/// The buffers of a region and their owners.
pub struct Pool {
    buffers: Buffers,
    claims: Option<ClaimBits>,
    /// Who asks which buffers are a guest's, or were and are claimed.
    occupied: Option<Arc<Occupied>>,
    entries: Box<[Entry]>,
    lists: [List; CODES],
}

/// The buffers of one owner. Apart from its neighbour's, so that no load spans two counts
/// that were stored one after the other: the CPU would first wait for every store before
/// them, those to guest memory too.
#[derive(Clone, Copy, Debug)]
struct List {
    /// The first one, of an owner whose buffers are linked.
    head: u32,
    count: u32,
}

impl List {
    const EMPTY: List = List { head: END, count: 0 };
}

impl Owner {
    fn code(self) -> Result<u8, OwnerError> {
        match self {
            Owner::Pool => Ok(POOL),
            Owner::Port => Ok(PORT),
            Owner::Stack => Ok(STACK),
            Owner::Claimed => Ok(CLAIMED),
            Owner::Elsewhere => Err(OwnerError::OtherPool),
            Owner::Guest(channel) if channel < CHANNELS_MAX => Ok(GUEST + channel as u8),
            Owner::Guest(channel) => Err(OwnerError::NoChannel { channel }),
        }
    }

    fn from_code(code: u8) -> Owner {
        match code {
            POOL => Owner::Pool,
            PORT => Owner::Port,
            STACK => Owner::Stack,
            CLAIMED => Owner::Claimed,
            ELSEWHERE => Owner::Elsewhere,
            channel => Owner::Guest(u16::from(channel - GUEST)),
        }
    }
}

impl Pool {
    /// All of `buffers` free, to be taken in the order of their indices. There
    /// is no claim table: nothing outlives its channel.
    pub fn new(buffers: Buffers) -> Pool {
        let entry = Entry { next: END, prev: END, owner: POOL, guests: false };
        let entries = vec![entry; buffers.count() as usize].into_boxed_slice();
        let mut pool =
            Pool { buffers, claims: None, occupied: None, entries, lists: [List::EMPTY; CODES] };
        for buf in (0..pool.buffers.count()).rev() {
            pool.link(buf, POOL);
        }
        pool
    }

    /// The buffers of a region whose claim table is `table` of `mapping`: those
    /// claimed now are [`Owner::Claimed`], all others free, to be taken in the
    /// order of their indices. `None` if the table does not lie in the mapping.
    /// `occupied` is kept told of what is a guest's, and of what is claimed.
    pub(crate) fn with_claims(
        buffers: Buffers,
        mapping: &Arc<Mapping>,
        table: Part,
        occupied: Option<Arc<Occupied>>,
    ) -> Option<Pool> {
        // Read once into memory of the host's, and judged from there.
        let bits = claims::snapshot(mapping, table, buffers.count())?;
        let mut pool = Pool::new(buffers);
        pool.occupied = occupied;
        pool.lists[usize::from(POOL)] = List::EMPTY;
        for buf in (0..pool.buffers.count()).rev() {
            let claimed = bits[buf as usize / 64] >> (buf % 64) & 1 == 1;
            pool.link(buf, if claimed { CLAIMED } else { POOL });
        }
        pool.claims =
            Some(ClaimBits { mapping: Arc::clone(mapping), offset: table.offset as usize });
        Some(pool)
    }

    /// Divides a pool that nobody has taken anything from into `parts`, one for each of
    /// several threads. Each has a run of buffers of its own; to all others' it says that
    /// they are [`Owner::Elsewhere`]. Runs begin with a word of the claim table, so that no
    /// two threads of a guest write to the same one, and differ by a few words; where a part
    /// has less than a word, they have as many buffers as the others or one more.
    pub fn split(self, parts: u32) -> Vec<Pool> {
        let count = self.buffers.count();
        debug_assert_eq!(self.free() + self.count_of(Owner::Claimed), count, "all are there");
        let parts = parts.clamp(1, count.max(1));
        let grain = if count / parts >= CLAIMS_IN_WORD { CLAIMS_IN_WORD } else { 1 };
        let start = |part: u32| match part {
            _ if part == parts => count,
            _ => (u64::from(count / grain) * u64::from(part) / u64::from(parts)) as u32 * grain,
        };
        let pool = |part| {
            let own = start(part)..start(part + 1);
            let mut pool = Pool {
                buffers: self.buffers.clone(),
                claims: self.claims.clone(),
                occupied: self.occupied.clone(),
                entries: self.entries.clone(),
                lists: [List::EMPTY; CODES],
            };
            for buf in (0..count).rev() {
                let is = pool.entries[buf as usize].owner;
                pool.link(buf, if own.contains(&buf) { is } else { ELSEWHERE });
            }
            pool
        };
        (0..parts).map(pool).collect()
    }

    /// Buffers that this pool has, whoever owns them: all of the region's, or its part.
    pub fn count(&self) -> u32 {
        self.buffers.count() - self.lists[usize::from(ELSEWHERE)].count
    }

    /// The buffers of the region, those of other pools among them.
    #[inline]
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Takes a free buffer for `owner`, the one given back last. `None` if none
    /// is free, or if `owner` is none that may have it.
    #[inline]
    #[must_use]
    pub fn take(&mut self, owner: Owner) -> Option<u32> {
        let to = owner.code().ok().filter(|&code| code != POOL && code != CLAIMED)?;
        let buf = self.lists[usize::from(POOL)].head;
        let entry = self.entries.get(buf as usize)?;
        self.lists[usize::from(POOL)].head = entry.next;
        self.lists[usize::from(POOL)].count -= 1;
        self.link(buf, to);
        Some(buf)
    }

    /// Gives `buf` back to the pool. It is free to be taken at once, unless a
    /// guest has had it and its claim bit is set: then it is kept as
    /// [`Owner::Claimed`].
    ///
    /// # Errors
    /// [`OwnerError`] unless `from` owns it.
    #[inline]
    pub fn give(&mut self, buf: u32, from: Owner) -> Result<(), OwnerError> {
        self.transfer(buf, from, Owner::Pool)
    }

    /// Moves `buf` from one owner to another. `buf` may be any number, as from
    /// a guest. A channel that comes back takes what it still holds out of
    /// [`Owner::Claimed`]; a move to the pool is as [`Pool::give`].
    ///
    /// # Errors
    /// [`OwnerError`] unless `from` owns it and is not the pool.
    #[inline]
    pub fn transfer(&mut self, buf: u32, from: Owner, to: Owner) -> Result<(), OwnerError> {
        let (code, to) = (from.code()?, to.code()?);
        let Some(entry) = self.entries.get(buf as usize) else {
            return Err(OwnerError::OutOfRange { buf, count: self.buffers.count() });
        };
        if entry.owner != code {
            let is = Owner::from_code(entry.owner);
            return Err(OwnerError::Foreign { buf, is, named: from });
        }
        if code == POOL {
            return Err(OwnerError::FromPool { buf });
        }
        self.unlink(buf, code);
        let to = if to == POOL { self.rest(buf) } else { to };
        self.link(buf, to);
        Ok(())
    }

    /// The owner of `buf`; `None` if there is no such buffer.
    #[inline]
    pub fn owner(&self, buf: u32) -> Option<Owner> {
        self.entries.get(buf as usize).map(|entry| Owner::from_code(entry.owner))
    }

    /// Buffers that are free.
    #[inline]
    pub fn free(&self) -> u32 {
        self.lists[usize::from(POOL)].count
    }

    /// Buffers that `owner` has; 0 for a channel that does not exist.
    #[inline]
    pub fn count_of(&self, owner: Owner) -> u32 {
        owner.code().map_or(0, |code| self.lists[usize::from(code)].count)
    }

    /// Takes everything that a channel holds: what is claimed is kept for who
    /// names it, and the rest is free. Linear in what the channel held.
    pub fn reclaim(&mut self, channel: u16) -> Reclaimed {
        let mut reclaimed = Reclaimed::default();
        let Ok(code) = Owner::Guest(channel).code() else {
            return reclaimed;
        };
        for _ in 0..self.lists[usize::from(code)].count {
            let buf = self.lists[usize::from(code)].head;
            self.unlink(buf, code);
            let to = self.rest(buf);
            self.link(buf, to);
            if to == POOL {
                reclaimed.freed += 1;
            } else {
                reclaimed.kept += 1;
            }
        }
        reclaimed
    }

    /// The buffers that a channel holds, the one it got last first.
    pub fn held(&self, channel: u16) -> Held<'_> {
        let code = Owner::Guest(channel).code();
        Held {
            entries: &self.entries,
            next: code.map_or(END, |code| self.lists[usize::from(code)].head),
            left: code.map_or(0, |code| self.lists[usize::from(code)].count),
        }
    }

    /// Whether a guest has had the buffer, and claims it now.
    #[inline]
    pub fn is_claimed(&self, buf: u32) -> bool {
        (buf as usize) < self.entries.len() && self.rest(buf) == CLAIMED
    }

    /// Where a buffer goes that nobody needs any more: to the pool, unless a
    /// guest has claimed it.
    #[inline]
    fn rest(&self, buf: u32) -> u8 {
        let Some(claims) = self.claims.as_ref().filter(|_| self.entries[buf as usize].guests)
        else {
            return POOL;
        };
        let mut byte = [0];
        let read = claims.mapping.read_at(claims.offset + buf as usize / 8, &mut byte);
        debug_assert!(read, "checked when the pool was made");
        if byte[0] >> (buf % 8) & 1 == 1 { CLAIMED } else { POOL }
    }

    /// Puts `buf`, which is in no list, under `code`.
    #[inline]
    fn link(&mut self, buf: u32, code: u8) {
        self.lists[usize::from(code)].count += 1;
        let entry = &mut self.entries[buf as usize];
        entry.owner = code;
        match code {
            // Port and stack find their buffers by their own means, and what is
            // claimed is only ever asked for by name.
            PORT | STACK | ELSEWHERE => return,
            CLAIMED => entry.guests = true,
            _ => entry.guests = code >= GUEST,
        }
        if let Some(occupied) = &self.occupied {
            occupied.set(buf, entry.guests);
        }
        if code == CLAIMED {
            return;
        }
        let head = std::mem::replace(&mut self.lists[usize::from(code)].head, buf);
        entry.next = head;
        // Buffers leave the pool only at its head: no way back is needed.
        if code == POOL {
            return;
        }
        entry.prev = END;
        if let Some(second) = self.entries.get_mut(head as usize) {
            second.prev = buf;
        }
    }

    /// Takes `buf` from under `code`, which is not the pool.
    #[inline]
    fn unlink(&mut self, buf: u32, code: u8) {
        self.lists[usize::from(code)].count -= 1;
        if code < GUEST {
            return;
        }
        let Entry { next, prev, .. } = self.entries[buf as usize];
        match self.entries.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => self.lists[usize::from(code)].head = next,
        }
        if let Some(after) = self.entries.get_mut(next as usize) {
            after.prev = prev;
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("buffers", &self.buffers)
            .field("lists", &self.lists)
            .finish_non_exhaustive()
    }
}

/// The buffers that a channel holds; see [`Pool::held`].
#[derive(Clone, Debug)]
pub struct Held<'a> {
    entries: &'a [Entry],
    next: u32,
    left: u32,
}

impl Iterator for Held<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let entry = self.entries.get(self.next as usize)?;
        self.left -= 1;
        Some(std::mem::replace(&mut self.next, entry.next))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Held<'_> {}
