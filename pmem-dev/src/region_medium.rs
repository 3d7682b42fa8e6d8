//! The [`Medium`] of a real region: what a guest maps, and the domain that its
//! host has told.

use std::sync::Arc;

use crate::domain::Domain;
use crate::medium::{Medium, Ticket};
use crate::ranges::{FlushRange, Ranges};
use crate::sys::{self, Mapping};

/// Ranges that are kept apart in one epoch: beyond that, neighbours are joined.
const RANGES: usize = 1024;

/// A region's memory as persistent structures store to it.
///
/// With [`Domain::CpuCache`] it makes durable by itself. With [`Domain::Mirror`]
/// it collects: who owns it tells the host the ranges of the epochs that have
/// ended ([`RegionMedium::pop`]) under the newest ticket
/// ([`RegionMedium::sealed`]), and says here which ticket the host has reached
/// ([`RegionMedium::flushed`]). With [`Domain::None`] every ticket is reached at
/// once, and nothing outlives the machine. Nothing allocates after
/// [`RegionMedium::new`].
#[derive(Debug)]
pub struct RegionMedium {
    mapping: Arc<Mapping>,
    domain: Domain,
    /// Of the present epoch.
    open: Ranges,
    /// Of the epochs that have ended, not yet told to the host.
    ended: Ranges,
    sealed: Ticket,
    /// The last epoch that had a range.
    dirty: Ticket,
    done: Ticket,
}

impl RegionMedium {
    /// The memory behind `mapping`, which is writable and starts where the
    /// guest's mapping starts.
    pub fn new(mapping: Arc<Mapping>, domain: Domain) -> RegionMedium {
        RegionMedium {
            mapping,
            domain,
            open: Ranges::new(RANGES),
            ended: Ranges::new(RANGES),
            sealed: Ticket(0),
            dirty: Ticket(0),
            done: Ticket(0),
        }
    }

    /// What makes it durable.
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// A range that the host is to make durable before it reaches
    /// [`RegionMedium::sealed`]. `None` when it has been told all; always, with
    /// another domain than [`Domain::Mirror`].
    pub fn pop(&mut self) -> Option<FlushRange> {
        self.ended.pop()
    }

    /// Whether [`RegionMedium::pop`] has a range.
    pub fn has_ranges(&self) -> bool {
        !self.ended.is_empty()
    }

    /// The ticket of the last epoch that has ended.
    pub fn sealed(&self) -> Ticket {
        self.sealed
    }

    /// The host has made everything durable that it was told up to `ticket`.
    pub fn flushed(&mut self, ticket: Ticket) {
        // Epochs after the last range have nothing to wait for.
        let ticket = if ticket >= self.dirty { self.sealed } else { ticket };
        self.done = self.done.max(ticket.min(self.sealed));
    }

    /// What was told to the host may be lost: everything will be told again.
    pub fn lost(&mut self) {
        if self.domain == Domain::Mirror && self.done < self.sealed {
            self.ended.clear();
            self.ended.push(FlushRange { offset: 0, len: self.len() });
        }
    }
}

impl Medium for RegionMedium {
    fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        let read = usize::try_from(at).is_ok_and(|at| self.mapping.read_words_at(at, out));
        if !read {
            out.fill(0);
        }
    }

    fn store(&mut self, at: u64, data: &[u8]) {
        let stored = usize::try_from(at).is_ok_and(|at| self.mapping.write_words_at(at, data));
        debug_assert!(stored, "{} bytes at {at:#x} are not in the region", data.len());
    }

    fn flush(&mut self, at: u64, len: u64) {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len());
        debug_assert!(inside, "{len} bytes at {at:#x} are not in the region");
        if !inside {
            return;
        }
        match self.domain {
            Domain::None => {}
            Domain::CpuCache(instruction) => {
                let done = self.mapping.write_back(at as usize, len as usize, instruction);
                debug_assert!(done, "checked above");
            }
            Domain::Mirror => self.open.push(FlushRange { offset: at, len }),
        }
    }

    fn seal(&mut self) -> Ticket {
        self.sealed.0 += 1;
        if matches!(self.domain, Domain::CpuCache(_)) {
            sys::fence();
        }
        if !self.open.is_empty() {
            self.ended.append(&mut self.open);
            self.dirty = self.sealed;
        } else if self.done >= self.dirty {
            self.done = self.sealed;
        }
        self.sealed
    }

    fn reached(&self, ticket: Ticket) -> bool {
        ticket <= self.done
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::Instruction;

    const LEN: u64 = 8192;

    fn medium(domain: Domain) -> RegionMedium {
        let file = sys::memory_file("medium", LEN, Default::default()).unwrap();
        let mapping = Mapping::from_fd(file.as_fd(), 0, LEN as usize, true).unwrap();
        RegionMedium::new(Arc::new(mapping), domain)
    }

    fn ranges(medium: &mut RegionMedium) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| medium.pop()).map(|range| (range.offset, range.len)).collect()
    }

    #[test]
    fn loads_show_stores_at_any_place_and_length() {
        let mut medium = medium(Domain::None);
        let data: Vec<u8> = (1..=64).collect();
        for at in 0..16 {
            for len in 0..=32 {
                medium.store(at, &data[..len]);
                let mut out = vec![0; len];
                medium.load(at, &mut out);
                assert_eq!(out, data[..len], "{at} {len}");
            }
        }
        let mut beyond = [7; 4];
        medium.load(LEN - 3, &mut beyond);
        assert_eq!(beyond, [0; 4]);
        medium.load(u64::MAX, &mut beyond);
    }

    #[test]
    fn without_a_host_to_ask_a_ticket_is_reached_at_once() {
        for domain in [Domain::None, Domain::CpuCache(Instruction::detect().unwrap())] {
            let mut medium = medium(domain);
            medium.store(100, b"record");
            medium.flush(100, 6);
            let ticket = medium.seal();
            assert!(medium.reached(ticket), "{domain:?}");
            assert_eq!(medium.pop(), None);
        }
    }

    #[test]
    fn the_host_is_told_the_ranges_of_epochs_that_have_ended() {
        let mut medium = medium(Domain::Mirror);
        medium.flush(64, 8);
        assert_eq!(medium.pop(), None, "the epoch has not ended");
        let first = medium.seal();
        medium.flush(128, 8);
        assert!(medium.has_ranges());
        assert_eq!(ranges(&mut medium), [(64, 8)]);
        let second = medium.seal();
        assert_eq!(medium.sealed(), second);
        assert_eq!(ranges(&mut medium), [(128, 8)]);
        assert!(!medium.reached(first));
        medium.flushed(first);
        assert!(medium.reached(first));
        assert!(!medium.reached(second));
        medium.flushed(second);
        assert!(medium.reached(second));
    }

    #[test]
    fn an_epoch_without_ranges_waits_for_those_before_it_and_no_longer() {
        let mut medium = medium(Domain::Mirror);
        let idle = medium.seal();
        assert!(medium.reached(idle));
        medium.flush(0, 8);
        let dirty = medium.seal();
        let empty = medium.seal();
        assert!(!medium.reached(empty));
        medium.flushed(dirty);
        assert!(medium.reached(empty));
        assert!(!medium.reached(Ticket(empty.0 + 1)));
        // A host that claims more than was asked is not believed.
        medium.flushed(Ticket(u64::MAX));
        assert!(!medium.reached(Ticket(empty.0 + 1)));
    }

    #[test]
    fn after_a_loss_everything_is_told_again() {
        let mut medium = medium(Domain::Mirror);
        medium.lost();
        assert_eq!(medium.pop(), None, "nothing was under way");
        medium.flush(64, 8);
        let ticket = medium.seal();
        ranges(&mut medium);
        medium.lost();
        assert_eq!(ranges(&mut medium), [(0, LEN)]);
        medium.flushed(ticket);
        assert!(medium.reached(ticket));
    }
}
