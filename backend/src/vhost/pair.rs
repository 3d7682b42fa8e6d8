//! Pairs of rings that another thread moves data through.
//!
//! The session of a device, and everything that its messages change, is one thread's. A
//! pair beyond the first can be another's: it is *lent*, by value, with a hand on the
//! guest's memory, to a device of that thread which has no session, and whose data path
//! is the same as any other's. Before a message is handled every pair is back at home, so
//! nothing is ever used by two threads, and nothing is locked.

use super::control::Control;
use super::device::Device;
use super::memory::GuestRam;
use super::queue::{Ring, RingError};

/// A pair of rings on its way from one thread to another.
#[derive(Debug)]
pub struct Pair {
    rings: [Ring; 2],
    mem: GuestRam,
    features: Option<u64>,
    /// Whose front end it is from.
    epoch: u64,
}

impl Device {
    /// Takes pair `pair`, counted from 0, out of this device, if data can pass through it.
    /// The first one stays.
    pub fn lend(&mut self, pair: usize) -> Option<Pair> {
        let Control { rings, model, .. } = &mut self.control;
        let at = pair.checked_mul(2).filter(|&at| at > 0)?;
        let own = rings.get_mut(at..at + 2)?;
        if !own.iter().all(|ring| ring.is_ready() && ring.enabled) {
            return None;
        }
        let mut take =
            |index: usize| std::mem::replace(&mut own[index], Ring::new(model.queue_size_max));
        let rings = [take(0), take(1)];
        self.control.generation += 1;
        let Control { mem, features, epoch, .. } = &self.control;
        Some(Pair { rings, mem: mem.clone(), features: *features, epoch: *epoch })
    }

    /// Puts a pair back that was lent. One of a front end that has gone goes as well, and
    /// one of a device that needs a reset waits for it.
    pub fn put_back(&mut self, pair: usize, lent: Pair) {
        let Pair { rings, epoch, .. } = lent;
        if epoch != self.control.epoch {
            return;
        }
        for (index, ring) in rings.into_iter().enumerate() {
            if let Some(place) = self.control.rings.get_mut(2 * pair + index) {
                *place = ring;
            }
        }
        self.control.generation += 1;
        if self.control.needs_reset() {
            self.control.halt();
        }
    }

    /// What was wrong with a ring of a pair that was lent: the whole device stops until the
    /// driver resets it.
    pub fn broke_elsewhere(&mut self, pair: usize, error: RingError) {
        let ring = 2 * pair + error.ring;
        if ring < self.control.rings.len() {
            self.control.broken(RingError { ring, fault: error.fault });
        }
    }

    /// Moves data through a pair of another device's from now on.
    pub fn use_pair(&mut self, pair: Pair) {
        let Pair { rings, mem, features, epoch } = pair;
        self.control.clear();
        self.control.rings = Box::new(rings);
        (self.control.mem, self.control.features, self.control.epoch) = (mem, features, epoch);
    }

    /// Gives the pair away again, everything used on it shown to the driver, and what was
    /// wrong with it. `None` without a pair.
    pub fn return_pair(&mut self) -> Option<(Pair, Option<RingError>)> {
        self.control.settle();
        let Control { features, epoch, .. } = self.control;
        let mem = std::mem::take(&mut self.control.mem);
        let fault = self.control.fault;
        let rings = std::mem::take(&mut self.control.rings).into_vec();
        self.control.clear();
        // Only rings that a front end spoke of have memory.
        let rings = <[Ring; 2]>::try_from(rings).ok().filter(|_| !mem.is_empty())?;
        Some((Pair { rings, mem, features, epoch }, fault))
    }
}
