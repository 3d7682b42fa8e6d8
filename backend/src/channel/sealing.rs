//! The epochs of one channel, and the requests that wait for them.
//!
//! ```text
//!   FLUSH  -> ranges of the open epoch
//!   SEAL   -> the epoch waits for its batch ----> FLUSHED, in the order of SEALs
//!   DATA with DURABLE -> held behind the last SEAL --> sent, or refused
//!   later requests of that flow -> held behind it ---> acted on
//! ```
//!
//! Knows neither the pool nor the stack port: who may wait was judged before, and
//! what becomes of it is done by the door.

use std::collections::VecDeque;

use paste_abi::control::FlushDomain;
use paste_abi::slot::AGAIN;
use paste_abi::{Event, Flow, Reason, Slot};
use paste_pmem::FlushRange;

use crate::durability::Durability;

/// Ranges of an epoch, at most.
pub const RANGES_MAX: usize = 65_536;

/// An epoch that was sealed and is not answered.
#[derive(Debug)]
struct Epoch {
    ticket: u64,
    /// The batch that makes it durable, or why it is not tried.
    batch: Result<u64, Reason>,
    /// The guest knows of what failed before.
    again: bool,
}

/// A request that waits.
#[derive(Debug)]
struct Held {
    slot: Slot,
    /// It waits for this epoch, counted from 1.
    epoch: u64,
}

/// The state of one channel.
#[derive(Debug)]
pub struct Sealing {
    /// Ranges of the open epoch.
    ranges: Vec<FlushRange>,
    /// Something in the open epoch cannot be.
    bad: bool,
    epochs: VecDeque<Epoch>,
    /// Epochs sealed so far, and those of them that were answered.
    sealed: u64,
    answered: u64,
    /// The epoch answered last is durable, or there was none.
    durable: bool,
    held: VecDeque<Held>,
    /// How many held requests each flow has, by the flow's index.
    waiting: Box<[u16]>,
}

impl Sealing {
    /// Nothing was sealed yet on a channel of at most `flows_max` flows.
    pub fn new(flows_max: u32) -> Sealing {
        Sealing {
            ranges: Vec::new(),
            bad: false,
            epochs: VecDeque::new(),
            sealed: 0,
            answered: 0,
            durable: true,
            held: VecDeque::new(),
            waiting: vec![0; flows_max as usize].into_boxed_slice(),
        }
    }

    /// Replies that what waits may still cause.
    pub fn replies_due(&self) -> usize {
        self.epochs.len() + self.held.len()
    }

    /// Takes a range of the open epoch, of a mapping of `region_len` bytes.
    pub fn flush(&mut self, (start, len): (u64, u64), region_len: u64) {
        let inside = start.checked_add(len).is_some_and(|end| end <= region_len);
        if !inside || self.ranges.len() == RANGES_MAX {
            self.bad = true;
            self.ranges.clear();
        } else if len > 0 && !self.bad {
            self.ranges.push(FlushRange { offset: start, len });
        }
    }

    /// Ends the open epoch.
    pub fn seal(&mut self, slot: &Slot, durability: &mut Durability) {
        let bad = std::mem::take(&mut self.bad);
        let batch = match durability.domain() {
            _ if bad => Err(Reason::BadRange),
            FlushDomain::None => Err(Reason::NotDurable),
            FlushDomain::CpuCache => Err(Reason::Ok),
            FlushDomain::Host => durability.seal(&mut self.ranges).ok_or(Reason::NotDurable),
        };
        self.ranges.clear();
        self.sealed += 1;
        let again = slot.modifiers & AGAIN != 0;
        self.epochs.push_back(Epoch { ticket: slot.cookie, batch, again });
    }

    /// Whether a DATA with DURABLE must wait; the error is why it cannot be sent.
    pub fn must_wait(&self) -> Result<bool, Reason> {
        if self.answered < self.sealed {
            Ok(true)
        } else if self.durable {
            Ok(false)
        } else {
            Err(Reason::NotDurable)
        }
    }

    /// Whether requests of this flow wait, so that later ones have to.
    pub fn is_waiting(&self, flow: Flow) -> bool {
        self.waiting.get(flow.index() as usize).is_some_and(|&count| count > 0)
    }

    /// Keeps a request until the last epoch that was sealed is answered; `false`
    /// if its flow cannot exist.
    pub fn hold(&mut self, slot: &Slot) -> bool {
        let Some(count) = self.waiting.get_mut(slot.flow.index() as usize) else {
            return false;
        };
        *count = count.saturating_add(1);
        self.held.push_back(Held { slot: *slot, epoch: self.sealed });
        true
    }

    /// The answer to the oldest epoch, if it has one, given the last batch that is
    /// done and its outcome. What waited for it is to be released before the next
    /// one is asked for.
    pub fn answer(&mut self, done: Option<(u64, bool)>) -> Option<Slot> {
        let epoch = self.epochs.front()?;
        let outcome = match (epoch.batch, done) {
            (Err(reason), _) => reason,
            (Ok(batch), Some((number, durable))) if batch <= number => {
                if durable {
                    Reason::Ok
                } else {
                    Reason::NotDurable
                }
            }
            (Ok(_), _) => return None,
        };
        // After a failure nothing counts until the guest knows of it.
        let outcome = if self.durable || epoch.again { outcome } else { Reason::NotDurable };
        self.durable = outcome == Reason::Ok;
        self.answered += 1;
        let ticket = self.epochs.pop_front()?.ticket;
        let slot = Slot::event(Event::Flushed, Flow::default());
        Some(Slot { cookie: ticket, len: outcome as u16, ..slot })
    }

    /// The next request that waits no more.
    pub fn release(&mut self) -> Option<Slot> {
        let held = self.held.pop_front_if(|held| held.epoch <= self.answered)?;
        let count = &mut self.waiting[held.slot.flow.index() as usize];
        *count = count.saturating_sub(1);
        Some(held.slot)
    }

    /// Whether the epoch that was answered last is durable.
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// What waits, when the channel ends.
    pub fn drain(&mut self) -> impl Iterator<Item = Slot> {
        self.held.drain(..).map(|held| held.slot)
    }
}
