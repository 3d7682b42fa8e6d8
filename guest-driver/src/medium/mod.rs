//! The region as persistent structures store in it.
//!
//! A claim table, a log or an index of `paste-pmem` stores through a
//! [`RegionMedium`], which [`crate::Channel::medium`] lends. How what it stored
//! becomes durable is the host's matter ([`crate::Geometry::flush_domain`]):
//! either the processor does it, and a ticket is reached when it is drawn; or
//! the host does, the ranges of an epoch go to it with the next poll, and
//! [`crate::Event::Flushed`] tells when they are durable.

mod flushes;

use std::sync::Arc;

use paste_abi::Slot;
use paste_abi::control::FlushDomain;
use paste_pmem::{DomainError, Instruction, Medium, Ticket};

use crate::sys::Mapping;
use flushes::Flushes;
pub(crate) use flushes::OutOfOrder;

/// The mapped region as a [`Medium`]. Offsets are from the start of the guest's
/// mapping, as in the region's superblock.
///
/// It outlives a lost channel: what was not durable then is said again when the
/// channel is open, and the tickets stay good. If the host comes back with
/// another region ([`crate::Geometry::region_uuid`]), nothing that was stored is
/// there any more, whatever the tickets say.
#[derive(Debug)]
pub struct RegionMedium {
    /// The memory, which makes durable what the processor can.
    memory: Option<paste_pmem::RegionMedium>,
    by_host: bool,
    /// What the host is to make durable; and tickets, whoever does.
    flushes: Flushes,
}

impl RegionMedium {
    pub(crate) fn new() -> RegionMedium {
        RegionMedium { memory: None, by_host: false, flushes: Flushes::new() }
    }

    /// The channel is open, and this is its region.
    pub(crate) fn open(
        &mut self,
        mapping: Arc<Mapping>,
        domain: FlushDomain,
    ) -> Result<(), DomainError> {
        self.by_host = domain == FlushDomain::Host;
        let write_back = match domain {
            FlushDomain::CpuCache => Some(Instruction::detect().ok_or(DomainError)?),
            FlushDomain::None | FlushDomain::Host => None,
        };
        self.memory = Some(paste_pmem::RegionMedium::new(mapping, write_back));
        self.flushes.open(self.by_host);
        Ok(())
    }

    /// The channel is lost.
    pub(crate) fn lose(&mut self) {
        self.memory = None;
        self.flushes.lose();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.memory.is_some()
    }

    /// Says what was sealed, until `say` has no room. Whether all of it is said.
    pub(crate) fn say(&mut self, say: impl FnMut(&Slot) -> bool) -> bool {
        self.flushes.say(say);
        self.flushes.is_said()
    }

    /// The host has answered the oldest epoch under way.
    pub(crate) fn answered(&mut self, ticket: u64, durable: bool) -> Result<(), OutOfOrder> {
        self.flushes.answered(ticket, durable)
    }
}

impl Medium for RegionMedium {
    fn len(&self) -> u64 {
        self.memory.as_ref().map_or(0, Medium::len)
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        match &self.memory {
            Some(memory) => memory.load(at, out),
            None => out.fill(0),
        }
    }

    fn store(&mut self, at: u64, data: &[u8]) {
        if let Some(memory) = &mut self.memory {
            memory.store(at, data);
        }
    }

    fn flush(&mut self, at: u64, len: u64) {
        if self.by_host {
            self.flushes.flush(at, len);
        } else if let Some(memory) = &mut self.memory {
            memory.flush(at, len);
        }
    }

    fn seal(&mut self) -> Ticket {
        if let Some(memory) = &mut self.memory {
            memory.seal();
        }
        self.flushes.seal()
    }

    fn reached(&self, ticket: Ticket) -> bool {
        self.flushes.reached(ticket)
    }
}
