//! The device that shows a guest its region, in memory of its VMM's: the requests of its
//! link, and the flushes that answer them.
//!
//! What is asked for in one turn shares one flush of all that the guest sees, as with the
//! virtio-pmem device ([`PmemPort`](super::PmemPort)); what comes meanwhile is the next
//! one. When the VMM goes, the region stays, with nobody who sees it.

use std::os::fd::BorrowedFd;

use paste_pmem::device::Outcome;

use crate::durability::Durability;
use crate::link::{LinkError, RegionLink};

/// Requests that wait for a flush: the first `count` of those under way.
#[derive(Clone, Copy, Debug)]
struct Group {
    count: usize,
    /// The batch that makes everything durable that was stored before them; `None` if the
    /// host can do nothing of the kind.
    batch: Option<u64>,
}

/// The device, as long as its VMM is there.
#[derive(Debug)]
pub struct RegionPort {
    link: Option<RegionLink>,
    /// The descriptor has said something.
    called: bool,
    under_way: usize,
    waiting: Option<Group>,
    generation: u64,
    done: u64,
    failed: u64,
}

impl RegionPort {
    /// The device at the other end of a link.
    pub fn new(link: RegionLink) -> RegionPort {
        RegionPort {
            link: Some(link),
            called: true,
            under_way: 0,
            waiting: None,
            generation: 0,
            done: 0,
            failed: 0,
        }
    }

    /// Takes in the requests that have come, and asks for what was stored before them, in a
    /// mapping of `region_len` bytes, to be made durable. Makes a system call only where the
    /// descriptor has said something.
    pub fn ask(&mut self, durability: &mut Durability, region_len: u64) {
        let Some(link) = &mut self.link else { return };
        if std::mem::take(&mut self.called) {
            match link.take() {
                Ok(count) => self.under_way = count,
                Err(error) => return self.lose(error),
            }
        }
        if self.waiting.is_none() && self.under_way > 0 {
            let batch = durability.seal_everything(region_len);
            self.waiting = Some(Group { count: self.under_way, batch });
        }
    }

    /// Answers the requests whose flush is done, given the last batch that was and its
    /// outcome. Returns how many.
    pub fn answer(&mut self, last: Option<(u64, bool)>) -> usize {
        let (Some(Group { count, batch }), Some(link)) = (self.waiting, &mut self.link) else {
            return 0;
        };
        let durable = match (batch, last) {
            (None, _) => false,
            (Some(batch), Some((number, durable))) if number >= batch => durable,
            _ => return 0,
        };
        self.waiting = None;
        self.under_way -= count;
        let (outcome, counter) = match durable {
            true => (Outcome::Done, &mut self.done),
            false => (Outcome::Failed, &mut self.failed),
        };
        *counter += count as u64;
        if let Err(error) = link.answer(count, outcome) {
            self.lose(error);
        }
        count
    }

    /// The descriptor to be watched.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(RegionLink::fd)
    }

    /// Changes whenever [`RegionPort::fd`] is another one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The descriptor says something.
    pub fn call(&mut self) {
        self.called = true;
    }

    /// Every counter with its name.
    pub fn each_counter(&self, mut visit: impl FnMut(&'static str, u64)) {
        visit("flushes", self.done);
        visit("failed", self.failed);
    }

    fn lose(&mut self, error: LinkError) {
        match error {
            LinkError::Closed => tracing::info!("the VMM that shows the region has gone"),
            error => tracing::warn!(%error, "the VMM that shows the region was cut off"),
        }
        self.link = None;
        (self.waiting, self.under_way) = (None, 0);
        self.generation += 1;
    }
}
