//! Where entries and copied bytes are written: the page, the scrap buffer, and
//! the empty buffers that become them.

use std::collections::VecDeque;

use super::holds::Holds;
use crate::kv::entry::{ALIGN, HEAD, Head, RUN_HEAD};
use crate::kv::extent::Extent;
use crate::kv::index::Spot;
use crate::kv::region::{Region, Run};

/// A buffer that is being filled.
#[derive(Clone, Copy, Debug)]
struct Filling {
    buffer: u32,
    /// Where the next bytes go.
    fill: usize,
}

/// The writer of pages.
#[derive(Debug)]
pub(super) struct Pages {
    buffer_size: usize,
    headroom: usize,
    page: Option<Filling>,
    /// Where the run that is being written starts in the page.
    run_start: Option<usize>,
    scrap: Option<Filling>,
    /// Empty buffers.
    spares: VecDeque<u32>,
    /// Runs of this batch in pages that are full.
    runs: Vec<Extent>,
    /// The record before which everything is known to be durable.
    pub(super) durable: u64,
    /// Buffers that are pages, the one being filled included.
    pub(super) count: usize,
}

impl Pages {
    pub(super) fn new(region: &impl Region) -> Pages {
        Pages {
            headroom: region.headroom().into(),
            // Lengths of runs are 16 bits.
            buffer_size: (region.buffer_size() as usize).min(usize::from(u16::MAX) & !(ALIGN - 1)),
            page: None,
            run_start: None,
            scrap: None,
            spares: VecDeque::new(),
            runs: Vec::new(),
            durable: 0,
            count: 0,
        }
    }

    /// Bytes of a page.
    pub(super) fn page_len(&self) -> usize {
        self.buffer_size
    }

    /// Makes sure that as many empty buffers are at hand as `entries` bytes of
    /// entries and `scraps` copied bytes can need.
    pub(super) fn prepare(
        &mut self,
        region: &mut impl Region,
        entries: usize,
        scraps: usize,
    ) -> bool {
        // An entry leaves less than the longest entry of a page unused; at worst
        // half of each page.
        let pages = 2 * entries.div_ceil(self.buffer_size) + 1;
        let need = pages + scraps.div_ceil(self.buffer_size - self.headroom) + 1;
        while self.spares.len() < need {
            match region.take() {
                Some(buffer) => self.spares.push_back(buffer),
                None => return false,
            }
        }
        true
    }

    /// Empty buffers at hand.
    #[cfg(test)]
    pub(super) fn spares(&self) -> usize {
        self.spares.len()
    }

    /// Appends an entry of a head, a key and a body. There must be a buffer for
    /// it ([`Pages::prepare`]); `None` if there is not.
    pub(super) fn append(
        &mut self,
        region: &mut impl Region,
        holds: &mut Holds,
        head: &Head,
        key: &[u8],
        body: &[u8],
    ) -> Option<Spot> {
        let len = head.entry_len();
        let room = if self.run_start.is_some() { len } else { len + RUN_HEAD };
        if self.page.is_none_or(|page| page.fill + room > self.buffer_size) {
            self.turn_page(region, holds)?;
        }
        let page = self.page.as_mut()?;
        if self.run_start.is_none() {
            self.run_start = Some(page.fill);
            region.write(page.buffer, page.fill as u16, &self.durable.to_le_bytes());
            page.fill += RUN_HEAD;
        }
        let spot = Spot { buffer: page.buffer, offset: page.fill as u16 };
        let mut at = page.fill;
        for part in [&head.to_bytes(), key, body] {
            region.write(page.buffer, at as u16, part);
            at += part.len();
        }
        let end = page.fill + len;
        region.write(page.buffer, at as u16, &[0; ALIGN][..end - at]);
        page.fill = end;
        Some(spot)
    }

    /// Begins a new page.
    fn turn_page(&mut self, region: &mut impl Region, holds: &mut Holds) -> Option<()> {
        let buffer = self.spares.pop_front()?;
        self.end_run(region, holds);
        if let Some(full) = self.page.take() {
            holds.drop(region, full.buffer);
        }
        holds.hold(buffer);
        holds.claim(region, buffer);
        self.count += 1;
        self.page = Some(Filling { buffer, fill: 0 });
        Some(())
    }

    /// Ends the run that is being written: it gets a record of its own, which
    /// holds the page.
    fn end_run(&mut self, region: &mut impl Region, holds: &mut Holds) {
        if let (Some(start), Some(page)) = (self.run_start.take(), self.page) {
            let extent = Extent {
                buffer: page.buffer,
                offset: start as u16,
                len: (page.fill - start) as u16,
            };
            region.flush(extent);
            holds.hold(page.buffer);
            self.runs.push(extent);
        }
    }

    /// Runs that will need a record when this batch ends.
    pub(super) fn pending_runs(&self) -> usize {
        self.runs.len() + usize::from(self.run_start.is_some())
    }

    /// Ends the batch: logs its runs, each with the number of its record.
    pub(super) fn log(
        &mut self,
        region: &mut impl Region,
        holds: &mut Holds,
        mut logged: impl FnMut(u64, Extent),
    ) -> bool {
        self.end_run(region, holds);
        let any = !self.runs.is_empty();
        for extent in self.runs.drain(..) {
            let checksum = region.checksum(extent, 0);
            match region.append(&Run { extent, checksum }) {
                Some(number) => logged(number, extent),
                // Room was made sure of before anything was written.
                None => debug_assert!(false, "the log is full"),
            }
        }
        any
    }

    /// Copies bytes to the scrap buffer, and adds the extents that they have
    /// there. They are held and flushed.
    pub(super) fn scrap(
        &mut self,
        region: &mut impl Region,
        holds: &mut Holds,
        mut bytes: &[u8],
        out: &mut Vec<Extent>,
    ) -> Option<()> {
        while !bytes.is_empty() {
            if self.scrap.is_none_or(|scrap| scrap.fill == self.buffer_size) {
                let buffer = self.spares.pop_front()?;
                holds.hold(buffer);
                holds.claim(region, buffer);
                if let Some(full) = self.scrap.replace(Filling { buffer, fill: self.headroom }) {
                    holds.drop(region, full.buffer);
                }
            }
            let scrap = self.scrap.as_mut()?;
            let len = bytes.len().min(self.buffer_size - scrap.fill).min(u16::MAX.into());
            let (now, later) = bytes.split_at(len);
            region.write(scrap.buffer, scrap.fill as u16, now);
            let extent =
                Extent { buffer: scrap.buffer, offset: scrap.fill as u16, len: len as u16 };
            region.flush(extent);
            scrap.fill += len;
            bytes = later;
            match out.last_mut() {
                Some(last)
                    if last.buffer == extent.buffer
                        && last.offset + last.len == extent.offset
                        && usize::from(last.len) + len <= usize::from(u16::MAX) =>
                {
                    last.len += extent.len;
                }
                _ => {
                    holds.hold(extent.buffer);
                    out.push(extent);
                }
            }
        }
        Some(())
    }

    /// Writes a list of extents to scrap buffers, so that none of them is cut by
    /// a buffer's end.
    pub(super) fn scrap_list(
        &mut self,
        region: &mut impl Region,
        holds: &mut Holds,
        mut list: &[u8],
        out: &mut Vec<Extent>,
    ) -> Option<()> {
        while !list.is_empty() {
            let room = self.scrap.map_or(0, |scrap| self.buffer_size - scrap.fill);
            let mut len = room - room % Extent::STORED;
            if len == 0 {
                if let Some(scrap) = &mut self.scrap {
                    scrap.fill = self.buffer_size;
                }
                len = (self.buffer_size - self.headroom) & !(Extent::STORED - 1);
            }
            let (now, later) = list.split_at(len.min(list.len()));
            self.scrap(region, holds, now, out)?;
            list = later;
        }
        Some(())
    }
}

/// Bytes of the longest key, so that an entry fits a page of the smallest buffers
/// with a value of half a buffer.
pub(in crate::kv) const KEY_MAX: usize = 900;
const _: () = assert!(HEAD + KEY_MAX + 1024 + RUN_HEAD + ALIGN <= 2048);
