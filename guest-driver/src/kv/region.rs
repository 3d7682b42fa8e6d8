//! What the store asks of the region that it lies in.

use paste_pmem::Ticket;

use super::extent::Extent;

/// A record of the log: a run of entries in one page, and its CRC32C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where the run lies.
    pub(super) extent: Extent,
    /// The checksum of its bytes.
    pub(super) checksum: u32,
}

/// Buffers, claims and the log of a region.
///
/// Everything that is written, claimed, logged or flushed belongs to the present
/// epoch, which [`Region::seal`] ends; nothing of it is durable before that ticket
/// is reached ([`paste_pmem::Medium`] has the rules).
pub(super) trait Region {
    /// Bytes of a buffer.
    fn buffer_size(&self) -> u32;
    /// Buffers of the region.
    fn buffer_count(&self) -> u32;
    /// What is sent starts here in its buffer, or later.
    fn headroom(&self) -> u16;

    /// Copies bytes out of a buffer.
    fn read(&self, buffer: u32, offset: u16, out: &mut [u8]);
    /// Copies bytes into a buffer.
    fn write(&mut self, buffer: u32, offset: u16, bytes: &[u8]);
    /// The CRC32C of a range, going on from `seed`.
    fn checksum(&self, extent: Extent, seed: u32) -> u32 {
        let (mut sum, mut rest, mut chunk) = (seed, extent, [0; 512]);
        while rest.len > 0 {
            let part = rest.first(chunk.len());
            let bytes = &mut chunk[..part.len.into()];
            self.read(part.buffer, part.offset, bytes);
            sum = crc32c::crc32c_append(sum, bytes);
            rest = rest.skip(part.len.into());
        }
        sum
    }
    /// Makes a range part of the present epoch.
    fn flush(&mut self, extent: Extent);

    /// An empty buffer, if there is one at hand.
    fn take(&mut self) -> Option<u32>;
    /// Gives a buffer back that nothing names any more.
    fn give_back(&mut self, buffer: u32);

    /// Claims a buffer.
    fn claim(&mut self, buffer: u32);
    /// Clears a buffer's claim.
    fn unclaim(&mut self, buffer: u32);

    /// Records that the log can still take.
    fn log_room(&self) -> u64;
    /// Appends a record and returns its number, one more than the last one's;
    /// `None` if the log is full.
    fn append(&mut self, run: &Run) -> Option<u64>;
    /// Gives up the records before this number, over the next epochs.
    fn truncate(&mut self, first: u64);
    /// No crash brings a record before this number back.
    fn first(&self) -> u64;

    /// Ends the epoch.
    fn seal(&mut self) -> Ticket;
    /// Whether everything before the ticket is durable.
    fn reached(&self, ticket: Ticket) -> bool;
}

/// What recovery asks besides.
pub(super) trait Recovering: Region {
    /// Whether the buffer is claimed, and so held for the store.
    fn is_claimed(&self, buffer: u32) -> bool;
    /// The records of the log in their order, with their numbers.
    fn records(&mut self) -> Vec<(u64, Run)>;
    /// Places of the log that are damaged.
    fn log_damages(&self) -> u64;
}
