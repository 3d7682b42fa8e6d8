//! Which ranges wait to be made durable, epoch by epoch: what was flushed and
//! not sealed, what was sealed and not yet said to the host, and what the host
//! works on. Knows nothing of memory or frames.
//!
//! ```text
//!            flush          seal              say               answered
//!   nothing -------> fresh -------> sealed ---------> flying ------------> durable
//!                                     ^                  |
//!                                     +-- failed, lost --+
//! ```
//!
//! The host answers epochs in order, and after a failure fails all of them until
//! it is told AGAIN. So when one fails, its ranges and those of all behind it are
//! named again, with the next epoch that is sealed: nothing is reached before
//! what was sealed before it is durable.

use std::collections::VecDeque;

use paste_abi::Slot;
use paste_pmem::Ticket;

/// Ranges of an epoch that are kept apart: then those near to each other are
/// taken together, and if that does not help, all of them.
const RANGES_MAX: usize = 8192;
/// Bytes that may lie between two ranges that are taken together.
const GAP_MAX: u64 = 4096;

/// A range of the mapping that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
}

/// Ranges in the order in which they were named.
#[derive(Debug, Default)]
struct Ranges(Vec<Range>);

impl Ranges {
    fn push(&mut self, range: Range) {
        // Structures write forwards: most often it goes on where the last ends.
        if let Some(last) = self.0.last_mut()
            && range.start <= last.end
            && last.start <= range.end
        {
            last.start = last.start.min(range.start);
            last.end = last.end.max(range.end);
            return;
        }
        if self.0.len() == RANGES_MAX {
            self.shrink();
        }
        self.0.push(range);
    }

    fn append(&mut self, other: &mut Ranges) {
        for range in other.0.drain(..) {
            self.push(range);
        }
    }

    /// Takes ranges together, so that at most half of the room is used.
    fn shrink(&mut self) {
        self.0.sort_unstable_by_key(|range| range.start);
        let mut gap = GAP_MAX;
        while self.0.len() > RANGES_MAX / 2 {
            self.0.dedup_by(|next, kept| {
                let near = next.start <= kept.end.saturating_add(gap);
                if near {
                    kept.end = kept.end.max(next.end);
                }
                near
            });
            gap = gap.saturating_mul(4);
        }
    }
}

/// An epoch that was sealed.
#[derive(Debug)]
struct Epoch {
    ticket: u64,
    ranges: Ranges,
    /// Slots of it that were said.
    said: usize,
    /// It names again what failed before.
    again: bool,
}

/// The account of one region's epochs.
#[derive(Debug)]
pub(super) struct Flushes {
    /// Whether the host makes ranges durable; otherwise epochs are reached when
    /// they are sealed.
    by_host: bool,
    fresh: Ranges,
    sealed: VecDeque<Epoch>,
    /// Tickets under way, and the ranges that are named again if they fail.
    flying: VecDeque<(u64, Ranges)>,
    /// What failed and is to be named again with the next epoch.
    redo: Ranges,
    /// Something failed that was not named again yet.
    failed: bool,
    /// Epochs before this one are not tried any more: it stands for them.
    debt: u64,
    last: u64,
    reached: u64,
}

/// The host answered an epoch that was not the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfOrder;

impl Flushes {
    pub(super) fn new() -> Flushes {
        Flushes {
            by_host: false,
            fresh: Ranges::default(),
            sealed: VecDeque::new(),
            flying: VecDeque::new(),
            redo: Ranges::default(),
            failed: false,
            debt: 0,
            last: 0,
            reached: 0,
        }
    }

    /// A channel was opened: says whether this host makes ranges durable. What
    /// waited for an earlier one is said again.
    pub(super) fn open(&mut self, by_host: bool) {
        self.lose();
        self.by_host = by_host;
        if !by_host {
            self.fresh.0.clear();
            self.sealed.clear();
            self.reached = self.last;
        }
    }

    /// The channel was lost, and what was under way with it.
    pub(super) fn lose(&mut self) {
        let mut ranges = std::mem::take(&mut self.redo);
        for (_, mut flying) in self.flying.drain(..) {
            ranges.append(&mut flying);
        }
        for mut epoch in self.sealed.drain(..) {
            ranges.append(&mut epoch.ranges);
        }
        self.failed = false;
        self.debt = 0;
        if self.reached < self.last {
            self.sealed.push_back(Epoch { ticket: self.last, ranges, said: 0, again: false });
        } else {
            self.fresh.append(&mut ranges);
        }
    }

    pub(super) fn flush(&mut self, start: u64, len: u64) {
        if self.by_host && len > 0 {
            self.fresh.push(Range { start, end: start.saturating_add(len) });
        }
    }

    pub(super) fn seal(&mut self) -> Ticket {
        self.last += 1;
        if !self.by_host {
            self.reached = self.last;
            return Ticket(self.last);
        }
        let mut ranges = std::mem::take(&mut self.fresh);
        if ranges.0.is_empty() && !self.failed && self.reached + 1 == self.last {
            self.reached = self.last;
            return Ticket(self.last);
        }
        let again = std::mem::take(&mut self.failed);
        if again {
            self.debt = self.last;
            ranges.append(&mut self.redo);
        }
        self.sealed.push_back(Epoch { ticket: self.last, ranges, said: 0, again });
        Ticket(self.last)
    }

    pub(super) fn reached(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.reached
    }

    /// Whether everything sealed has been said.
    pub(super) fn is_said(&self) -> bool {
        self.sealed.is_empty()
    }

    /// Says what is sealed, slot by slot, until `say` has no room.
    pub(super) fn say(&mut self, mut say: impl FnMut(&Slot) -> bool) {
        while let Some(epoch) = self.sealed.front_mut() {
            while let Some(range) = epoch.ranges.0.get(epoch.said) {
                if !say(&Slot::flush(range.start, range.end - range.start)) {
                    return;
                }
                epoch.said += 1;
            }
            if !say(&Slot::seal(epoch.ticket, epoch.again)) {
                return;
            }
            if let Some(epoch) = self.sealed.pop_front() {
                self.flying.push_back((epoch.ticket, epoch.ranges));
            }
        }
    }

    /// The host has answered the oldest epoch under way.
    pub(super) fn answered(&mut self, ticket: u64, durable: bool) -> Result<(), OutOfOrder> {
        if self.flying.front().is_none_or(|(next, _)| *next != ticket) {
            return Err(OutOfOrder);
        }
        let (_, mut ranges) = self.flying.pop_front().unwrap_or_default();
        // One that failed is not reached before the one that stands for it.
        let doomed = self.failed || ticket < self.debt;
        if durable && !doomed {
            self.reached = ticket;
        }
        if durable || doomed {
            return Ok(());
        }
        self.redo.append(&mut ranges);
        for (_, flying) in &mut self.flying {
            self.redo.append(flying);
        }
        match self.sealed.front_mut() {
            Some(epoch) => {
                epoch.ranges.append(&mut self.redo);
                // They may have been taken together with what was said: it is
                // said once more.
                epoch.said = 0;
                epoch.again = true;
                self.debt = epoch.ticket;
            }
            None => self.failed = true,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paste_abi::Request;
    use proptest::prelude::*;

    fn opened() -> Flushes {
        let mut flushes = Flushes::new();
        flushes.open(true);
        flushes
    }

    /// Everything that can be said.
    fn said(flushes: &mut Flushes) -> Vec<Slot> {
        let mut slots = Vec::new();
        flushes.say(|slot| {
            slots.push(*slot);
            true
        });
        slots
    }

    fn ranges(slots: &[Slot]) -> Vec<(u64, u64)> {
        let flushes = slots.iter().filter(|s| s.as_request() == Some(Request::Flush));
        flushes.map(Slot::range).collect()
    }

    #[test]
    fn without_a_host_that_flushes_epochs_are_reached_at_once() {
        let mut flushes = Flushes::new();
        flushes.open(false);
        flushes.flush(0, 64);
        let ticket = flushes.seal();
        assert!(flushes.reached(ticket) && said(&mut flushes).is_empty());
    }

    #[test]
    fn an_epoch_is_said_with_its_ranges_and_reached_when_answered() {
        let mut flushes = opened();
        flushes.flush(0, 64);
        flushes.flush(64, 8);
        flushes.flush(4096, 8);
        flushes.flush(9, 0);
        let ticket = flushes.seal();
        assert_eq!(
            said(&mut flushes),
            [Slot::flush(0, 72), Slot::flush(4096, 8), Slot::seal(ticket.0, false)]
        );
        assert!(!flushes.reached(ticket));
        assert_eq!(flushes.answered(ticket.0 + 1, true), Err(OutOfOrder));
        assert_eq!(flushes.answered(ticket.0, true), Ok(()));
        assert!(flushes.reached(ticket));
        assert_eq!(flushes.answered(ticket.0, true), Err(OutOfOrder));
    }

    #[test]
    fn an_empty_epoch_waits_only_for_those_before_it() {
        let mut flushes = opened();
        let first = flushes.seal();
        assert!(flushes.reached(first));
        flushes.flush(0, 8);
        let second = flushes.seal();
        let third = flushes.seal();
        assert!(!flushes.reached(third));
        said(&mut flushes);
        flushes.answered(second.0, true).unwrap();
        flushes.answered(third.0, true).unwrap();
        assert!(flushes.reached(third));
    }

    #[test]
    fn what_failed_is_named_again_and_reached_by_the_epoch_that_does_so() {
        let mut flushes = opened();
        let tickets: Vec<_> = (0..3)
            .map(|i| {
                flushes.flush(i * 4096, 8);
                flushes.seal()
            })
            .collect();
        said(&mut flushes);
        flushes.answered(tickets[0].0, false).unwrap();
        flushes.answered(tickets[1].0, false).unwrap();
        // The third is still under way, and bound to fail as well.
        let again = flushes.seal();
        let slots = said(&mut flushes);
        assert_eq!(ranges(&slots), [(0, 8), (4096, 8), (8192, 8)]);
        assert_eq!(slots.last(), Some(&Slot::seal(again.0, true)));
        flushes.answered(tickets[2].0, false).unwrap();
        assert!(!flushes.reached(tickets[0]));
        flushes.answered(again.0, true).unwrap();
        assert!(tickets.iter().all(|&ticket| flushes.reached(ticket)));
    }

    #[test]
    fn a_failure_before_the_next_epoch_is_said_goes_with_that_one() {
        let mut flushes = opened();
        flushes.flush(0, 8);
        let first = flushes.seal();
        said(&mut flushes);
        flushes.flush(4096, 8);
        let second = flushes.seal();
        // Its range is on its way already, its seal is not.
        let mut room = 1;
        flushes.say(|_| std::mem::replace(&mut room, 0) > 0);
        flushes.answered(first.0, false).unwrap();
        assert_eq!(
            said(&mut flushes),
            [Slot::flush(4096, 8), Slot::flush(0, 8), Slot::seal(second.0, true)]
        );
        flushes.answered(second.0, true).unwrap();
        assert!(flushes.reached(first));
    }

    #[test]
    fn a_lost_channel_loses_no_range() {
        let mut flushes = opened();
        flushes.flush(0, 8);
        let first = flushes.seal();
        said(&mut flushes);
        flushes.flush(4096, 8);
        let second = flushes.seal();
        flushes.flush(8192, 8);
        flushes.open(true);
        let slots = said(&mut flushes);
        assert_eq!(ranges(&slots), [(0, 8), (4096, 8)]);
        assert_eq!(slots.last(), Some(&Slot::seal(second.0, false)));
        flushes.answered(second.0, true).unwrap();
        assert!(flushes.reached(first));
        let third = flushes.seal();
        assert_eq!(said(&mut flushes), [Slot::flush(8192, 8), Slot::seal(third.0, false)]);
    }

    #[test]
    fn too_many_ranges_become_fewer_that_cover_them() {
        let mut flushes = opened();
        for i in 0..4 * RANGES_MAX as u64 {
            flushes.flush(i * 1_000_000, 8);
        }
        let slots = {
            flushes.seal();
            said(&mut flushes)
        };
        assert!(slots.len() <= RANGES_MAX + 1);
        let all = ranges(&slots);
        for i in 0..4 * RANGES_MAX as u64 {
            let (start, end) = (i * 1_000_000, i * 1_000_000 + 8);
            assert!(all.iter().any(|&(at, len)| at <= start && end <= at + len), "{start}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Flush(u64),
        Seal,
        Say(usize),
        Answer(bool),
        Lose,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..40).prop_map(Step::Flush),
            3 => Just(Step::Seal),
            3 => (0usize..6).prop_map(Step::Say),
            3 => prop::bool::weighted(0.7).prop_map(Step::Answer),
            1 => Just(Step::Lose),
        ]
    }

    proptest! {
        /// Against a host that keeps the rules of PROTOCOL.md section 11: a ticket
        /// is reached only when each range flushed before it is durable.
        #[test]
        fn reached_is_durable(steps in prop::collection::vec(step(), 1..200)) {
            let mut flushes = opened();
            // Cells flushed for each ticket, and those that the host made durable
            // after the flush: a version for each.
            let mut version = [0u32; 40];
            let mut durable = [0u32; 40];
            let mut open: Vec<(usize, u32)> = Vec::new();
            let mut wanted: Vec<(Ticket, Vec<(usize, u32)>)> = Vec::new();
            let mut told: Vec<Slot> = Vec::new();
            let mut epochs: VecDeque<(Vec<usize>, u64, bool)> = VecDeque::new();
            let mut failing = false;
            for step in steps {
                match step {
                    Step::Flush(cell) => {
                        version[cell as usize] += 1;
                        open.push((cell as usize, version[cell as usize]));
                        flushes.flush(cell * 8192, 8);
                    }
                    Step::Seal => {
                        let ticket = flushes.seal();
                        wanted.push((ticket, std::mem::take(&mut open)));
                    }
                    Step::Say(room) => {
                        let mut left = room;
                        flushes.say(|slot| {
                            if left == 0 {
                                return false;
                            }
                            left -= 1;
                            told.push(*slot);
                            true
                        });
                        while let Some(at) =
                            told.iter().position(|s| s.as_request() == Some(Request::Seal))
                        {
                            let rest = told.split_off(at + 1);
                            let seal = told.pop().unwrap();
                            let cells = told.iter().map(|s| (s.range().0 / 8192) as usize);
                            epochs.push_back((cells.collect(), seal.cookie, seal.modifiers != 0));
                            told = rest;
                        }
                    }
                    Step::Answer(works) => {
                        let Some((cells, ticket, again)) = epochs.pop_front() else { continue };
                        failing &= !again;
                        let works = works && !failing;
                        failing |= !works;
                        if works {
                            for cell in cells {
                                durable[cell] = version[cell];
                            }
                        }
                        prop_assert_eq!(flushes.answered(ticket, works), Ok(()));
                    }
                    Step::Lose => {
                        told.clear();
                        epochs.clear();
                        failing = false;
                        flushes.open(true);
                    }
                }
                let mut all_before = true;
                for (ticket, cells) in &wanted {
                    all_before &= cells.iter().all(|&(cell, at)| durable[cell] >= at);
                    if flushes.reached(*ticket) {
                        prop_assert!(all_before, "{:?} is reached too early", ticket);
                    }
                }
            }
            // And with a host that works, all of it is reached.
            let last = flushes.seal();
            for _ in 0..2 {
                flushes.say(|slot| {
                    if slot.as_request() == Some(Request::Seal) {
                        epochs.push_back((Vec::new(), slot.cookie, slot.modifiers != 0));
                    }
                    true
                });
                while let Some((_, ticket, again)) = epochs.pop_front() {
                    failing &= !again;
                    flushes.answered(ticket, !failing).unwrap();
                }
            }
            prop_assert!(flushes.reached(last));
        }
    }
}
