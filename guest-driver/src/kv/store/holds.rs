//! How many names each buffer has, and when it may be given back.
//!
//! A buffer is given back when nothing names it: no stored value, no record of
//! the log, no request that is being read, no answer that is being sent. If it is
//! claimed, the record that took its last name away must be durable before the
//! claim is cleared, and that before the buffer is given back.

use std::collections::VecDeque;

use paste_pmem::Ticket;

use crate::kv::region::Region;

/// The names of all buffers.
#[derive(Debug)]
pub(super) struct Holds {
    names: Box<[u32]>,
    claimed: Box<[bool]>,
    claims: u32,
    /// Claimed buffers that lost their last name in this epoch.
    freed: Vec<u32>,
    /// Those of earlier epochs, which wait for their tickets.
    waiting: VecDeque<(Ticket, u32)>,
    /// Buffers whose claims were cleared in this epoch.
    unclaimed: Vec<u32>,
    /// Those of earlier epochs.
    leaving: VecDeque<(Ticket, u32)>,
}

impl Holds {
    pub(super) fn new(buffers: u32) -> Holds {
        Holds {
            names: vec![0; buffers as usize].into(),
            claimed: vec![false; buffers as usize].into(),
            claims: 0,
            freed: Vec::new(),
            waiting: VecDeque::new(),
            unclaimed: Vec::new(),
            leaving: VecDeque::new(),
        }
    }

    /// Buffers that are claimed.
    pub(super) fn claims(&self) -> u32 {
        self.claims
    }

    /// Claimed buffers that nothing names.
    pub(super) fn nameless(&self) -> usize {
        self.freed.len() + self.waiting.len()
    }

    /// Whether buffers wait for a ticket.
    pub(super) fn is_unfinished(&self) -> bool {
        self.nameless() + self.unclaimed.len() + self.leaving.len() > 0
    }

    /// The buffer has one more name.
    pub(super) fn hold(&mut self, buffer: u32) {
        self.names[buffer as usize] += 1;
    }

    /// The buffer has one name less.
    pub(super) fn drop(&mut self, region: &mut impl Region, buffer: u32) {
        let names = &mut self.names[buffer as usize];
        debug_assert!(*names > 0, "buffer {buffer} has no name to lose");
        *names -= 1;
        if *names == 0 {
            if self.claimed[buffer as usize] {
                self.freed.push(buffer);
            } else {
                region.give_back(buffer);
            }
        }
    }

    /// As [`Holds::drop`], for a claimed buffer, where what took the name away is
    /// durable already. Answers whether it was the last.
    pub(super) fn drop_durably(&mut self, region: &mut impl Region, buffer: u32) -> bool {
        let names = &mut self.names[buffer as usize];
        debug_assert!(*names > 0, "buffer {buffer} has no name to lose");
        *names -= 1;
        if *names > 0 {
            return false;
        }
        self.leave(region, buffer);
        true
    }

    fn leave(&mut self, region: &mut impl Region, buffer: u32) {
        self.claimed[buffer as usize] = false;
        self.claims -= 1;
        region.unclaim(buffer);
        self.unclaimed.push(buffer);
    }

    /// Whether buffers lost their last names in this epoch.
    pub(super) fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// Claims the buffer. Answers whether it was not claimed before.
    pub(super) fn claim(&mut self, region: &mut impl Region, buffer: u32) -> bool {
        let new = !std::mem::replace(&mut self.claimed[buffer as usize], true);
        if new {
            self.claims += 1;
            region.claim(buffer);
        }
        new
    }

    /// Recovery found the buffer claimed.
    pub(super) fn found_claimed(&mut self, buffer: u32) {
        self.claimed[buffer as usize] = true;
        self.claims += 1;
    }

    /// Recovery is done: what was claimed and has no name leaves.
    pub(super) fn free_nameless(&mut self) -> u32 {
        let nameless = (0..self.names.len())
            .filter(|&buffer| self.claimed[buffer] && self.names[buffer] == 0)
            .map(|buffer| buffer as u32);
        self.freed.extend(nameless);
        self.freed.len() as u32
    }

    /// The epoch has ended.
    pub(super) fn sealed(&mut self, ticket: Ticket) {
        self.waiting.extend(self.freed.drain(..).map(|buffer| (ticket, buffer)));
        self.leaving.extend(self.unclaimed.drain(..).map(|buffer| (ticket, buffer)));
    }

    /// Gives back what may be given back. Answers whether claims were cleared.
    pub(super) fn release(&mut self, region: &mut impl Region) -> bool {
        while let Some(&(ticket, buffer)) = self.leaving.front()
            && region.reached(ticket)
        {
            self.leaving.pop_front();
            region.give_back(buffer);
        }
        let before = self.claims;
        while let Some(&(ticket, buffer)) = self.waiting.front()
            && region.reached(ticket)
        {
            self.waiting.pop_front();
            self.leave(region, buffer);
        }
        self.claims != before
    }
}
