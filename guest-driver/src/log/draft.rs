//! What a server needs that drafts its records before it has all of their buffers, and
//! keeps the newest.

use paste_pmem::Ticket;
use paste_pmem::wal::{Entry, Position};

use super::{Holder, Log, Lost, RecordError};
use crate::buffer::Buffer;
use crate::channel::Channel;

impl Log {
    /// Claimed buffers.
    pub(crate) fn claimed(&self) -> usize {
        self.claimed
    }

    /// Buffers of the region.
    pub(crate) fn buffer_count(&self) -> usize {
        self.holdings.len()
    }

    /// Pieces of the present epoch's records.
    pub(crate) fn fresh_pieces(&self) -> usize {
        self.fresh.len()
    }

    /// Records of the present epoch.
    pub(crate) fn fresh_records(&self) -> usize {
        self.fresh_records
    }

    /// Records that are not given up for good.
    pub(crate) fn records(&self) -> usize {
        self.records.len()
    }

    /// Whether a piece names the buffer.
    pub(crate) fn is_named(&self, buf: u32) -> bool {
        self.holding(buf).is_some_and(|held| held.users > 0)
    }

    /// A piece that is drafted names the buffer.
    pub(crate) fn draft(&mut self, buf: u32) {
        self.name(buf);
    }

    /// It was not recorded and is not to be.
    pub(crate) fn undraft(&mut self, channel: &mut Channel, buf: u32) {
        self.unname(channel, buf);
    }

    /// Takes a buffer that a drafted piece or a record names.
    pub(crate) fn keep(&mut self, buffer: Buffer) {
        let buf = buffer.index();
        self.take(buffer);
        if self.holdings[buf as usize].claimed {
            self.unsaid.push(buf);
        }
    }

    /// Takes a buffer to write to.
    pub(crate) fn fill(&mut self, buffer: Buffer) {
        let buf = buffer.index();
        self.take(buffer);
        self.name(buf);
        self.filling = Some(buf);
    }

    /// The buffer that is being written to.
    pub(crate) fn filling(&mut self) -> Option<&mut Buffer> {
        match &mut self.holdings[self.filling? as usize].holder {
            Holder::Us(buffer) => Some(buffer),
            Holder::Stored | Holder::Other => None,
        }
    }

    /// It is written to no more.
    pub(crate) fn filled(&mut self, channel: &mut Channel) {
        if let Some(buf) = self.filling.take() {
            if self.holdings[buf as usize].claimed {
                self.unsaid.push(buf);
            }
            self.unname(channel, buf);
        }
    }

    /// Records an entry whose pieces are drafted, each once.
    pub(crate) fn record(
        &mut self,
        channel: &mut Channel,
        entry: &Entry<'_>,
    ) -> Result<Position, RecordError> {
        self.write(channel, entry)
    }

    /// As [`Log::commit`], and gives up this many of the oldest records if `crowded` says
    /// so of the log as it is then.
    pub(crate) fn commit_within(
        &mut self,
        channel: &mut Channel,
        crowded: impl FnOnce(&Log) -> bool,
        count: usize,
    ) -> Result<Ticket, Lost> {
        self.stage(channel)?;
        if crowded(self)
            && !self.wal.is_truncating()
            && let Some((position, _)) = self.records.get(count.min(self.records.len() / 2))
        {
            self.wal.truncate(*position);
        }
        self.seal(channel)
    }
}
