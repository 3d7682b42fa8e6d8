//! The [`Medium`] of a real region: what a guest maps, and the CPU's cache before it.

use std::sync::Arc;

use crate::medium::{Medium, Ticket};
use crate::sys::{self, Instruction, Mapping};

/// A region's memory as persistent structures store to it.
///
/// It makes durable what the CPU can, so its tickets are reached at once. Where
/// that does not do ([`Domain::Mirror`](crate::Domain::Mirror)), who owns it has the
/// host make durable what was flushed, and does not go by its tickets. Nothing
/// allocates after [`RegionMedium::new`].
#[derive(Debug)]
pub struct RegionMedium {
    mapping: Arc<Mapping>,
    write_back: Option<Instruction>,
    sealed: Ticket,
}

impl RegionMedium {
    /// The memory behind `mapping`, which is writable and starts where the
    /// guest's mapping starts. What is flushed leaves the CPU's cache by
    /// `write_back`, if stores are durable then
    /// ([`Domain::CpuCache`](crate::Domain::CpuCache)).
    pub fn new(mapping: Arc<Mapping>, write_back: Option<Instruction>) -> RegionMedium {
        RegionMedium { mapping, write_back, sealed: Ticket(0) }
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
        if let Some(instruction) = self.write_back {
            let done = self.mapping.write_back(at as usize, len as usize, instruction);
            debug_assert!(done, "checked above");
        }
    }

    fn seal(&mut self) -> Ticket {
        if self.write_back.is_some() {
            sys::fence();
        }
        self.sealed.0 += 1;
        self.sealed
    }

    fn reached(&self, ticket: Ticket) -> bool {
        ticket <= self.sealed
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const LEN: u64 = 8192;

    fn medium(write_back: Option<Instruction>) -> RegionMedium {
        let file = sys::memory_file("medium", LEN, Default::default()).unwrap();
        let mapping = Mapping::from_fd(file.as_fd(), 0, LEN as usize, true).unwrap();
        RegionMedium::new(Arc::new(mapping), write_back)
    }

    #[test]
    fn loads_show_stores_at_any_place_and_length() {
        let mut medium = medium(None);
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
    fn a_ticket_is_reached_when_it_is_drawn_and_not_before() {
        for write_back in [None, Instruction::detect()] {
            let mut medium = medium(write_back);
            medium.store(100, b"record");
            medium.flush(100, 6);
            assert!(!medium.reached(Ticket(1)));
            let ticket = medium.seal();
            assert_eq!(ticket, Ticket(1));
            assert!(medium.reached(ticket), "{write_back:?}");
        }
    }
}
