//! The durable side of a region: claims and the log, over any [`Medium`].

use std::collections::VecDeque;

use paste_pmem::wal::{Entry, Place, Position, Wal, WalError};
use paste_pmem::{Claims, Geometry, Medium, Ticket};

use super::extent::Extent;
use super::region::Run;

/// The kind of a record of the log that names a run.
const RUN: u16 = 1;
/// Bytes of its tag: an extent and a checksum.
const TAG: usize = Extent::STORED + 4;
/// Bytes of the log that are kept for what it has to say itself.
const LOG_KEPT: u64 = 4096;

/// Claims and log of one region.
#[derive(Debug)]
pub(super) struct Journal {
    geometry: Geometry,
    claims: Claims,
    wal: Wal,
    /// Of the records that are not given up.
    positions: VecDeque<Position>,
    /// What the log's head became, with the epochs that made it so.
    heads: VecDeque<(Ticket, u64)>,
    first: u64,
    /// What recovery read, until it is asked for.
    found: Vec<(u64, Run)>,
    /// Records that the log had lost.
    lost: u64,
}

impl Journal {
    /// Takes up the log, or makes one where there is none yet. `salt` is random.
    pub(super) fn open(
        medium: &mut impl Medium,
        geometry: Geometry,
        salt: u64,
    ) -> Result<Journal, WalError> {
        let place = Place::from(&geometry);
        let (mut positions, mut found) = (VecDeque::new(), Vec::new());
        let recovered = Wal::recover(
            medium,
            place,
            |_| true,
            |record| {
                if let (RUN, Some(run)) = (record.kind(), decode(record.tag())) {
                    positions.push_back(record.position());
                    found.push((record.sequence(), run));
                }
            },
        );
        let (wal, lost) = match recovered {
            Ok((wal, recovery)) => (wal, recovery.loss.count),
            Err(WalError::Absent) => (Wal::create(medium, place, salt)?, 0),
            Err(error) => return Err(error),
        };
        let (claims, first) = (Claims::new(&geometry), wal.head().sequence);
        Ok(Journal { geometry, claims, wal, positions, heads: VecDeque::new(), first, found, lost })
    }

    /// Whether the log takes records.
    pub(super) fn is_ready(&self, medium: &impl Medium) -> bool {
        self.wal.is_ready(medium)
    }

    /// Damages of the log that recovery has met.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// The records that recovery has read; once.
    pub(super) fn take_found(&mut self) -> Vec<(u64, Run)> {
        std::mem::take(&mut self.found)
    }

    /// Where a byte of a buffer is in the mapping.
    pub(super) fn at(&self, buffer: u32, offset: u16) -> u64 {
        let size = u64::from(self.geometry.buffer_size());
        self.geometry.buffers().offset + u64::from(buffer) * size + u64::from(offset)
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn is_claimed(&self, medium: &impl Medium, buffer: u32) -> bool {
        self.claims.contains(medium, buffer)
    }

    pub(super) fn set_claim(&self, medium: &mut impl Medium, buffer: u32, claimed: bool) {
        // Buffers that do not exist are nobody's.
        let _ = match claimed {
            true => self.claims.set(medium, buffer),
            false => self.claims.clear(medium, buffer),
        };
    }

    /// Records that the log can still take.
    pub(super) fn room(&self) -> u64 {
        self.wal.free().saturating_sub(LOG_KEPT) / Wal::record_len(0, 0, TAG)
    }

    pub(super) fn append(&mut self, medium: &mut impl Medium, run: &Run) -> Option<u64> {
        let mut tag = [0; TAG];
        tag[..Extent::STORED].copy_from_slice(&run.extent.to_bytes());
        tag[Extent::STORED..].copy_from_slice(&run.checksum.to_le_bytes());
        let entry = Entry { kind: RUN, time: 0, pieces: &[], ends: &[], tag: &tag };
        let position = self.wal.append(medium, &entry).ok()?;
        self.positions.push_back(position);
        Some(position.sequence)
    }

    pub(super) fn truncate(&mut self, first: u64) {
        while self.positions.pop_front_if(|position| position.sequence < first).is_some() {}
        let to = self.positions.front().copied().unwrap_or_else(|| self.wal.tail());
        self.wal.truncate(to);
    }

    pub(super) fn first(&self, medium: &impl Medium) -> u64 {
        let durable = self.heads.iter().take_while(|(ticket, _)| medium.reached(*ticket));
        durable.last().map_or(self.first, |(_, first)| *first)
    }

    pub(super) fn seal(&mut self, medium: &mut impl Medium) -> Ticket {
        while let Some((_, first)) = self.heads.pop_front_if(|(t, _)| medium.reached(*t)) {
            self.first = first;
        }
        let before = self.wal.head();
        let ticket = self.wal.commit(medium);
        let after = self.wal.head();
        if after != before {
            self.heads.push_back((ticket, after.sequence));
        }
        ticket
    }
}

fn decode(tag: &[u8]) -> Option<Run> {
    let (extent, checksum) = tag.split_first_chunk::<{ Extent::STORED }>()?;
    let checksum = u32::from_le_bytes(checksum.try_into().ok()?);
    Some(Run { extent: Extent::from_bytes(*extent), checksum })
}
