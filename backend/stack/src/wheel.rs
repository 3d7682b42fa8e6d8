//! A hierarchical timing wheel: set, move and cancel a timer in O(1), find the
//! next one in O(levels).
//!
//! Level 0 has a slot for each of the next 64 ticks, level 1 for each of the
//! next 64 spans of 64 ticks, and so on. When the hand enters a span, its
//! timers ring, early, and their owners set them again: an owner looks at its
//! deadline whenever a timer rings. So one whose deadline moves later leaves the
//! timer where it is: most deadlines move many times for each time that one is
//! reached, and a timer that moved down the levels by itself would be touched
//! once more for each level, for nothing. Each id has at most one timer.

use core::ops::Range;

use crate::clock::TICK_BITS;

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 5;
/// Ticks ahead that the wheel can hold, about twelve days; later timers are put
/// there and ring early, which owners must allow anyway. One slot of the
/// highest level less than a whole turn, so that nothing ever lands in the
/// hand's own slot there.
const HORIZON: u64 = (SLOTS as u64 - 1) << (SLOT_BITS * (LEVELS as u32 - 1));
const NIL: u32 = u32::MAX;
const IDLE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    prev: u32,
    tick: u64,
    slot: u16,
}

/// The wheel.
#[derive(Debug)]
pub(crate) struct Wheel {
    nodes: Box<[Node]>,
    heads: [u32; SLOTS * LEVELS],
    /// A bit for each slot that has a timer.
    used: [u64; LEVELS],
    /// The first tick whose timers have not rung.
    tick: u64,
    started: bool,
}

impl Wheel {
    /// A wheel for ids below `ids`.
    pub(crate) fn new(ids: u32) -> Wheel {
        let idle = Node { next: NIL, prev: NIL, tick: 0, slot: IDLE };
        Wheel {
            nodes: vec![idle; ids as usize].into_boxed_slice(),
            heads: [NIL; SLOTS * LEVELS],
            used: [0; LEVELS],
            tick: 0,
            started: false,
        }
    }

    /// Where it lies.
    pub(crate) fn memory(&self) -> Range<*const u8> {
        let Range { start, end } = self.nodes.as_ptr_range();
        start.cast()..end.cast()
    }

    /// Sets the hand of a wheel without timers, so that a clock that starts at
    /// any value costs nothing. Returns whether this was the first time.
    #[inline]
    pub(crate) fn start(&mut self, now: u64) -> bool {
        let first = !self.started;
        if first {
            self.started = true;
            self.tick = now >> TICK_BITS;
        }
        first
    }

    /// Makes the timer of `id` ring at `deadline` at the latest one tick after
    /// it, unless it is set to ring earlier already.
    #[inline]
    pub(crate) fn set_earlier(&mut self, id: u32, deadline: u64) {
        // Rounded up, so that a timer that rings is due.
        let tick = (deadline >> TICK_BITS).saturating_add(1).max(self.tick);
        let node = &self.nodes[id as usize];
        if node.slot != IDLE {
            if node.tick <= tick {
                return;
            }
            self.cancel(id);
        }
        self.insert(id, tick.min(self.tick + HORIZON));
    }

    /// Reads from an id's place, so that it is in the cache when it is needed.
    #[inline]
    pub(crate) fn touch(&self, id: u32) -> u32 {
        self.nodes[id as usize].next
    }

    /// The id that is likely to ring after this one, which just did.
    #[inline]
    pub(crate) fn following(&self, id: u32) -> Option<u32> {
        Some(self.nodes[id as usize].next).filter(|&next| next != NIL)
    }

    /// Stops the timer of `id`, if it is set.
    #[inline]
    pub(crate) fn cancel(&mut self, id: u32) {
        let Node { next, prev, slot, .. } = self.nodes[id as usize];
        if slot == IDLE {
            return;
        }
        let slot = usize::from(slot);
        if prev == NIL {
            self.heads[slot] = next;
            if next == NIL {
                self.used[slot / SLOTS] &= !(1 << (slot % SLOTS));
            }
        } else {
            self.nodes[prev as usize].next = next;
        }
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        self.nodes[id as usize].slot = IDLE;
    }

    #[inline]
    fn insert(&mut self, id: u32, tick: u64) {
        // The level of the highest digit in which the tick and the hand differ.
        let differ = (tick ^ self.tick) | 1;
        let level = ((63 - differ.leading_zeros()) / SLOT_BITS).min(LEVELS as u32 - 1);
        let digit = (tick >> (SLOT_BITS * level)) as usize % SLOTS;
        let slot = level as usize * SLOTS + digit;
        let head = self.heads[slot];
        self.nodes[id as usize] = Node { next: head, prev: NIL, tick, slot: slot as u16 };
        if head != NIL {
            self.nodes[head as usize].prev = id;
        }
        self.heads[slot] = id;
        self.used[level as usize] |= 1 << digit;
    }

    /// The first tick at which a slot must be looked at, and the slot.
    #[inline]
    fn next_slot(&self) -> Option<(u64, usize)> {
        let mut first: Option<(u64, usize)> = None;
        for level in 0..LEVELS {
            let shift = SLOT_BITS * level as u32;
            let position = self.tick >> shift;
            let digit = position as u32 % SLOTS as u32;
            // Slots from the hand on, the hand's own first.
            let ahead = self.used[level].rotate_right(digit);
            if ahead == 0 {
                continue;
            }
            let distance = u64::from(ahead.trailing_zeros());
            let start = ((position + distance) << shift).max(self.tick);
            // Of two that start together the higher level goes first: some of
            // its timers may have to move down to be in time.
            if first.is_none_or(|(earliest, _)| start <= earliest) {
                let slot = level * SLOTS + (position + distance) as usize % SLOTS;
                first = Some((start, slot));
            }
        }
        first
    }

    /// A time not after the earliest deadline, in ns.
    pub(crate) fn next(&self) -> Option<u64> {
        self.next_slot().map(|(tick, _)| tick << TICK_BITS)
    }

    /// Takes out an id whose timer rings by `now`, if there is one. Its deadline may
    /// be later still: one that is set again then rings closer to it, and after
    /// one early ring for each level at most.
    #[inline]
    pub(crate) fn pop(&mut self, now: u64) -> Option<u32> {
        let now = now >> TICK_BITS;
        match self.next_slot() {
            Some((tick, slot)) if tick <= now => {
                self.tick = tick;
                let id = self.heads[slot];
                self.cancel(id);
                Some(id)
            }
            _ => {
                self.tick = self.tick.max(now);
                None
            }
        }
    }
}

#[cfg(any(test, feature = "audit"))]
impl Wheel {
    /// When the timer of `id` rings, ns.
    pub(crate) fn rings_at(&self, id: u32) -> Option<u64> {
        let node = &self.nodes[id as usize];
        (node.slot != IDLE).then_some(node.tick << TICK_BITS)
    }

    /// The latest time at which a timer that was set for `deadline` rings, ns.
    pub(crate) fn latest(&self, deadline: u64) -> u64 {
        let tick = (deadline >> TICK_BITS).saturating_add(1);
        tick.min(self.tick + HORIZON).max(self.tick) << TICK_BITS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: u64 = 1 << TICK_BITS;

    proptest! {
        #[test]
        fn rings_when_due_and_at_most_once_early_for_each_level(
            start in 0u64..1 << 50,
            steps in proptest::collection::vec((0u32..16, 0u64..1 << 36, 0u64..1 << 35, any::<bool>()), 1..120),
        ) {
            let mut wheel = Wheel::new(16);
            wheel.start(start);
            let mut model: [Option<u64>; 16] = [None; 16];
            let mut now = start;
            for (id, delay, pass, small) in steps {
                let (delay, pass) = if small { (delay >> 12, pass >> 12) } else { (delay, pass) };
                let deadline = now + delay;
                wheel.set_earlier(id, deadline);
                let entry = &mut model[id as usize];
                *entry = Some(entry.map_or(deadline, |d| d.min(deadline)));
                if pass % 5 == 0 {
                    wheel.cancel(id);
                    model[id as usize] = None;
                }
                let first = model.iter().flatten().min().copied();
                prop_assert_eq!(wheel.next().is_some(), first.is_some());
                if let (Some(next), Some(first)) = (wheel.next(), first) {
                    prop_assert!(next <= first.max(now) + TICK);
                }
                now += pass;
                let mut early = [0; 16];
                while let Some(rung) = wheel.pop(now) {
                    let due = model[rung as usize].expect("a timer that is set");
                    if due <= now {
                        model[rung as usize] = None;
                    } else {
                        early[rung as usize] += 1;
                        prop_assert!(early[rung as usize] < LEVELS);
                        wheel.set_earlier(rung, due);
                    }
                }
                for due in model.iter().flatten() {
                    prop_assert!(*due + TICK > now - now % TICK, "late: {due} at {now}");
                }
            }
        }
    }

    #[test]
    fn a_far_deadline_rings_early_rather_than_never() {
        let mut wheel = Wheel::new(1);
        wheel.start(0);
        wheel.set_earlier(0, u64::MAX - 1);
        assert_eq!(wheel.pop((HORIZON + 1) << TICK_BITS), Some(0));
    }
}
