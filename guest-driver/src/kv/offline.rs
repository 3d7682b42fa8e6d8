//! A store that is looked at where it lies, with nobody serving it.
//!
//! Recovery runs over the region's file, or over its mirror, as a server would run it,
//! and what it stores is kept in this process's memory. So what is found is what a server
//! would find, and the file stays as it is.

use std::collections::HashMap;
use std::path::Path;

use paste_pmem::wal::WalError;
use paste_pmem::{Image, Medium, RegionError, Ticket};

use super::extent::Extent;
use super::journal::Journal;
use super::region::{Recovering, Region, Run};
use super::store::{RecoverError, Recovered, Store};
use crate::sys;

/// Bytes that are kept apart at once.
const PAGE: u64 = 4096;

/// Why a store cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file cannot be read, or is no region.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The log cannot be read.
    #[error("the region's log cannot be used: {0}")]
    Log(#[from] WalError),
    /// There is no room to note what recovery found, not even in memory.
    #[error(transparent)]
    Recover(#[from] RecoverError),
}

/// Verifies every key and every value of the store in a region's file, or in its
/// mirror, and changes nothing.
///
/// # Errors
/// [`CheckError`]; [`RegionError::InUse`] while a process serves the region, as what is
/// being written would look like damage.
pub fn check(path: &Path) -> Result<Recovered, CheckError> {
    let image = Image::open(path)?;
    if image.in_use() {
        return Err(RegionError::InUse { region: image.name().to_owned() }.into());
    }
    let geometry = *image.geometry();
    let mut medium = Overlay { image, pages: HashMap::new(), tickets: 0 };
    let journal = Journal::open(&mut medium, geometry, sys::random_u64())?;
    let mut region = Offline { medium, journal, looked_at: 0 };
    while !region.journal.is_ready(&region.medium) {
        region.seal();
    }
    let secret = [sys::random_u64(), sys::random_u64()];
    let (_, recovered) = Store::recover(&mut region, geometry.buffer_count(), secret)?;
    Ok(recovered)
}

/// A region's file, and what was stored over it.
#[derive(Debug)]
struct Overlay {
    image: Image,
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
    tickets: u64,
}

impl Overlay {
    /// The parts of a range, page by page: the page, where in it, and where in the range.
    fn parts(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let (at, left) = (at.checked_add(done as u64)?, len - done);
            let within = (at % PAGE) as usize;
            let count = left.min(PAGE as usize - within);
            let range = done..done + count;
            done += count;
            (count > 0).then_some((at / PAGE, within, range))
        })
    }
}

impl Medium for Overlay {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        self.image.load(at, out);
        for (page, within, range) in Overlay::parts(at, out.len()) {
            if let Some(page) = self.pages.get(&page) {
                let stored = &page[within..within + range.len()];
                out[range].copy_from_slice(stored);
            }
        }
    }

    fn store(&mut self, at: u64, data: &[u8]) {
        for (number, within, range) in Overlay::parts(at, data.len()) {
            let page = self.pages.entry(number).or_insert_with(|| {
                let mut page = Box::new([0; PAGE as usize]);
                // The last page may end before its end does.
                let len = self.image.len().saturating_sub(number * PAGE).min(PAGE) as usize;
                self.image.load(number * PAGE, &mut page[..len]);
                page
            });
            page[within..within + range.len()].copy_from_slice(&data[range]);
        }
    }

    fn flush(&mut self, _: u64, _: u64) {}

    fn seal(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn reached(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.tickets
    }
}

/// The region, as the store uses it.
struct Offline {
    medium: Overlay,
    journal: Journal,
    /// Buffers before this one were asked for their claims.
    looked_at: u32,
}

impl Region for Offline {
    fn buffer_size(&self) -> u32 {
        self.journal.geometry().buffer_size()
    }

    fn buffer_count(&self) -> u32 {
        self.journal.geometry().buffer_count()
    }

    fn headroom(&self) -> u16 {
        // Nothing is sent from here.
        0
    }

    fn read(&self, buffer: u32, offset: u16, out: &mut [u8]) {
        self.medium.load(self.journal.at(buffer, offset), out);
    }

    fn write(&mut self, buffer: u32, offset: u16, bytes: &[u8]) {
        self.medium.store(self.journal.at(buffer, offset), bytes);
    }

    fn flush(&mut self, _: Extent) {}

    fn take(&mut self) -> Option<u32> {
        while self.looked_at < self.buffer_count() {
            let buffer = self.looked_at;
            self.looked_at += 1;
            if !self.is_claimed(buffer) {
                return Some(buffer);
            }
        }
        None
    }

    fn give_back(&mut self, _: u32) {}

    fn claim(&mut self, buffer: u32) {
        self.journal.set_claim(&mut self.medium, buffer, true);
    }

    fn unclaim(&mut self, buffer: u32) {
        self.journal.set_claim(&mut self.medium, buffer, false);
    }

    fn log_room(&self) -> u64 {
        self.journal.room()
    }

    fn append(&mut self, run: &Run) -> Option<u64> {
        self.journal.append(&mut self.medium, run)
    }

    fn truncate(&mut self, first: u64) {
        self.journal.truncate(first);
    }

    fn first(&self) -> u64 {
        self.journal.first(&self.medium)
    }

    fn seal(&mut self) -> Ticket {
        self.journal.seal(&mut self.medium)
    }

    fn reached(&self, ticket: Ticket) -> bool {
        self.medium.reached(ticket)
    }
}

impl Recovering for Offline {
    fn is_claimed(&self, buffer: u32) -> bool {
        self.journal.is_claimed(&self.medium, buffer)
    }

    fn records(&mut self) -> Vec<(u64, Run)> {
        self.journal.take_found()
    }

    fn log_damages(&self) -> u64 {
        self.journal.lost()
    }
}
