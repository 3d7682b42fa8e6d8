//! A region in memory that loses power: what tests store in.

use std::collections::BTreeMap;

use paste_pmem::Ticket;

use super::extent::{Bytes, Extent};
use super::region::{Recovering, Region, Run};

const WORD: usize = 8;

/// What survives, and what is only stored.
#[derive(Clone, Debug)]
struct State {
    bytes: Vec<u8>,
    claims: Vec<bool>,
    log: BTreeMap<u64, Run>,
    first: u64,
}

/// What an epoch makes durable.
#[derive(Clone, Debug, Default)]
struct Epoch {
    flushed: Vec<Extent>,
    claims: Vec<u32>,
    records: Vec<u64>,
    truncated: bool,
}

/// The region.
#[derive(Clone, Debug)]
pub(super) struct Fake {
    size: u32,
    now: State,
    durable: State,
    free: Vec<u32>,
    next_record: u64,
    log_capacity: u64,
    epoch: Epoch,
    /// Sealed and not reached, with their tickets.
    sealed: Vec<(u64, Epoch)>,
    tickets: u64,
    reached: u64,
    /// Whether a ticket is reached as soon as it is drawn.
    pub(super) at_once: bool,
}

impl Fake {
    pub(super) fn new(count: u32, size: u32, log_capacity: u64) -> Fake {
        let state = State {
            bytes: vec![0; (count * size) as usize],
            claims: vec![false; count as usize],
            log: BTreeMap::new(),
            first: 0,
        };
        Fake {
            size,
            now: state.clone(),
            durable: state,
            free: (0..count).rev().collect(),
            next_record: 1,
            log_capacity,
            epoch: Epoch::default(),
            sealed: Vec::new(),
            tickets: 0,
            reached: 0,
            at_once: true,
        }
    }

    fn range(&self, extent: Extent) -> std::ops::Range<usize> {
        let start = (extent.buffer * self.size) as usize + usize::from(extent.offset);
        start..start + usize::from(extent.len)
    }

    /// Buffers that nobody has.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Buffers that are claimed.
    pub(super) fn claimed(&self) -> usize {
        self.now.claims.iter().filter(|claim| **claim).count()
    }

    /// Changes bytes behind the store's back, for good.
    pub(super) fn damage(&mut self, extent: Extent) {
        let range = self.range(extent);
        for state in [&mut self.now, &mut self.durable] {
            state.bytes[range.clone()].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
    }

    /// The oldest `count` epochs on their way become durable.
    pub(super) fn reach(&mut self, count: usize) {
        for (ticket, epoch) in self.sealed.drain(..count.min(self.sealed.len())) {
            for extent in epoch.flushed {
                let start = (extent.buffer * self.size) as usize + usize::from(extent.offset);
                let range = start..start + usize::from(extent.len);
                self.durable.bytes[range.clone()].copy_from_slice(&self.now.bytes[range]);
            }
            for buffer in epoch.claims {
                self.durable.claims[buffer as usize] = self.now.claims[buffer as usize];
            }
            for number in epoch.records {
                if let Some(run) = self.now.log.get(&number) {
                    self.durable.log.insert(number, *run);
                }
            }
            if epoch.truncated {
                self.durable.first = self.now.first;
                self.durable.log = self.durable.log.split_off(&self.now.first);
            }
            self.reached = ticket;
        }
    }

    pub(super) fn under_way(&self) -> usize {
        self.sealed.len()
    }

    /// Power is lost: of what was not durable, `survives` says word by word, claim
    /// by claim and for the log's end what was.
    pub(super) fn crash(&mut self, mut survives: impl FnMut() -> bool) {
        let (old, new) = (&mut self.durable, &self.now);
        for (old, new) in old.bytes.chunks_mut(WORD).zip(new.bytes.chunks(WORD)) {
            if old != new && survives() {
                old.copy_from_slice(new);
            }
        }
        for (old, new) in old.claims.iter_mut().zip(&new.claims) {
            if *old != *new && survives() {
                *old = *new;
            }
        }
        for (number, run) in &new.log {
            if !old.log.contains_key(number) {
                if !survives() {
                    break;
                }
                old.log.insert(*number, *run);
            }
        }
        if survives() {
            old.first = new.first;
            old.log = old.log.split_off(&new.first);
        }
        self.next_record = old.log.keys().last().map_or(new.first, |last| last + 1).max(1);
        self.now = self.durable.clone();
        self.free = (0..self.now.claims.len() as u32)
            .rev()
            .filter(|&buffer| !self.now.claims[buffer as usize])
            .collect();
        self.epoch = Epoch::default();
        self.sealed.clear();
    }

    /// A buffer that a client's bytes arrived in.
    pub(super) fn arrive(&mut self, offset: u16, bytes: &[u8]) -> Option<Extent> {
        let buffer = self.take()?;
        self.write(buffer, offset, bytes);
        Some(Extent { buffer, offset, len: bytes.len() as u16 })
    }
}

impl Bytes for Fake {
    fn bytes(&self, extent: Extent) -> &[u8] {
        &self.now.bytes[self.range(extent)]
    }
}

impl Region for Fake {
    fn buffer_size(&self) -> u32 {
        self.size
    }

    fn buffer_count(&self) -> u32 {
        self.now.claims.len() as u32
    }

    fn headroom(&self) -> u16 {
        128
    }

    fn read(&self, buffer: u32, offset: u16, out: &mut [u8]) {
        let start = (buffer * self.size) as usize + usize::from(offset);
        assert!(usize::from(offset) + out.len() <= self.size as usize);
        out.copy_from_slice(&self.now.bytes[start..start + out.len()]);
    }

    fn write(&mut self, buffer: u32, offset: u16, bytes: &[u8]) {
        let start = (buffer * self.size) as usize + usize::from(offset);
        assert!(usize::from(offset) + bytes.len() <= self.size as usize);
        self.now.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn flush(&mut self, extent: Extent) {
        self.epoch.flushed.push(extent);
    }

    fn take(&mut self) -> Option<u32> {
        let buffer = self.free.pop()?;
        assert!(!self.now.claims[buffer as usize], "a claimed buffer was handed out");
        // Whoever had it last has left something in it.
        let range = self.range(Extent { buffer, offset: 0, len: self.size as u16 });
        self.now.bytes[range].fill(0xA5);
        Some(buffer)
    }

    fn give_back(&mut self, buffer: u32) {
        assert!(!self.free.contains(&buffer), "buffer {buffer} was given back twice");
        let claims = [&self.now.claims, &self.durable.claims];
        assert!(claims.iter().all(|c| !c[buffer as usize]), "buffer {buffer} is claimed");
        self.free.push(buffer);
    }

    fn claim(&mut self, buffer: u32) {
        self.now.claims[buffer as usize] = true;
        self.epoch.claims.push(buffer);
    }

    fn unclaim(&mut self, buffer: u32) {
        self.now.claims[buffer as usize] = false;
        self.epoch.claims.push(buffer);
    }

    fn log_room(&self) -> u64 {
        // The space of a record is free when its end is durable.
        self.log_capacity - (self.next_record - self.durable.first.max(1))
    }

    fn append(&mut self, run: &Run) -> Option<u64> {
        if self.log_room() == 0 {
            return None;
        }
        let number = self.next_record;
        self.next_record += 1;
        self.now.log.insert(number, *run);
        self.epoch.records.push(number);
        Some(number)
    }

    fn truncate(&mut self, first: u64) {
        self.now.first = first;
        self.now.log = self.now.log.split_off(&first);
        self.epoch.truncated = true;
    }

    fn first(&self) -> u64 {
        self.durable.first
    }

    fn seal(&mut self) -> Ticket {
        self.tickets += 1;
        self.sealed.push((self.tickets, std::mem::take(&mut self.epoch)));
        if self.at_once {
            self.reach(1);
        }
        Ticket(self.tickets)
    }

    fn reached(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.reached
    }
}

impl Recovering for Fake {
    fn is_claimed(&self, buffer: u32) -> bool {
        self.now.claims[buffer as usize]
    }

    fn records(&mut self) -> Vec<(u64, Run)> {
        self.now.log.iter().map(|(number, run)| (*number, *run)).collect()
    }

    fn log_damages(&self) -> u64 {
        0
    }
}
