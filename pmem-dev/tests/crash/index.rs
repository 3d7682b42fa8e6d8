//! The index with values in buffers: set, replaced, removed, committed alone and
//! in batches with several commits under way, the program restarted.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use paste_pmem::crash::{Explorer, Mutant, Op, Random, Recorder, Trace};
use paste_pmem::index::{Index, verify};
use paste_pmem::wal::{Piece, Place};
use paste_pmem::{Medium, Part, Ticket, checksum};

use crate::explore;

const PAGES: u64 = 40;
const PART: Part = Part { offset: 0, len: PAGES * 4096 };
const BUFFERS: u32 = 24;
const PLACE: Place = Place {
    log: Part { offset: 0, len: 0 },
    buffers: Part { offset: PAGES * 4096, len: BUFFERS as u64 * 64 },
    buffer_size: 64,
};
const LEN: usize = PAGES as usize * 4096 + BUFFERS as usize * 64;

/// What the whole index is after each commit: versions by key.
type State = BTreeMap<Vec<u8>, u64>;

fn content(version: u64) -> [u8; 16] {
    let mut random = Random::new(version);
    let words = [random.draw(), random.draw()].map(u64::to_le_bytes);
    *words.concat().first_chunk().unwrap()
}

fn key(number: u64) -> Vec<u8> {
    // Long ones, so that few fill a page.
    let mut key = number.to_be_bytes().to_vec();
    key.resize(8 + (number * 131 % 480) as usize, b'k');
    key
}

struct Program {
    medium: Recorder,
    random: Random,
    index: Index,
    state: State,
    bufs: BTreeMap<Vec<u8>, u32>,
    free: Vec<u32>,
    /// Given up since the last commit.
    dropped: Vec<u32>,
    leaving: Vec<(Ticket, u64, Vec<u32>)>,
    /// States that were committed. Marks name them: twice the number when the commit
    /// begins, and one more when it is promised.
    states: Vec<State>,
    version: u64,
    restarts: u64,
}

impl Program {
    fn new(seed: u64) -> Program {
        let mut random = Random::new(seed);
        let mut image = vec![0; LEN];
        image[4096..].iter_mut().for_each(|byte| *byte = random.draw() as u8);
        let mut medium = Recorder::prompt(image);
        let index = Index::create(&mut medium, PART, PLACE).unwrap();
        let medium = Recorder::waiting(medium.image().to_vec());
        let mut program = Program {
            medium,
            random,
            index,
            state: State::new(),
            bufs: BTreeMap::new(),
            free: (0..BUFFERS).collect(),
            dropped: Vec::new(),
            leaving: Vec::new(),
            states: vec![State::new()],
            version: 0,
            restarts: 0,
        };
        program.restart();
        program
    }

    fn set(&mut self, key: Vec<u8>) {
        let Some(buf) = self.free.pop() else { return };
        self.version += 1;
        let bytes = content(self.version);
        let piece = Piece { buf, offset: 8, len: 16, csum: checksum::of(&bytes) };
        self.medium.store(PLACE.locate(&piece).unwrap(), &bytes);
        if self.index.insert(&mut self.medium, &key, &[piece]).is_err() {
            return self.free.push(buf);
        }
        self.state.insert(key.clone(), self.version);
        self.dropped.extend(self.bufs.insert(key, buf));
    }

    fn remove(&mut self, key: &[u8]) {
        if self.index.remove(&self.medium, key).is_ok_and(|old| old.is_some()) {
            self.state.remove(key);
            self.dropped.extend(self.bufs.remove(key));
        }
    }

    fn commit(&mut self) {
        let number = self.states.len() as u64;
        self.medium.mark(2 * number);
        match self.index.commit(&mut self.medium) {
            Some(ticket) => {
                self.leaving.push((ticket, number, std::mem::take(&mut self.dropped)));
                self.states.push(self.state.clone());
            }
            // The mark is said again with the commit that is made.
            None => {
                assert!(!self.leaving.is_empty() || !self.medium.reached(Ticket(1)));
            }
        }
    }

    fn poll(&mut self) {
        let (gone, leaving) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition::<Vec<_>, _>(|(ticket, ..)| self.medium.reached(*ticket));
        self.leaving = leaving;
        for (_, number, bufs) in gone {
            self.medium.mark(2 * number + 1);
            self.free.extend(bufs);
        }
    }

    /// The program dies and comes back; the machine goes on.
    fn restart(&mut self) {
        self.medium.lose();
        let (index, _) = Index::recover(&mut self.medium, PART, PLACE, |_| true).unwrap();
        let (state, bufs) = read(&index, &self.medium).unwrap();
        assert_eq!(Some(&state), self.states.last());
        self.index = index;
        self.state = state;
        self.dropped.clear();
        self.leaving.clear();
        if self.random.once_in(3) {
            return self.restart();
        }
        self.medium.reach_all();
        self.medium.mark(2 * (self.states.len() as u64 - 1) + 1);
        self.free = (0..BUFFERS).filter(|buf| !bufs.values().any(|used| used == buf)).collect();
        self.bufs = bufs;
        self.restarts += 1;
    }

    fn step(&mut self, keys: u64) {
        let key = key(self.random.below(keys));
        match self.random.below(24) {
            0..9 => self.set(key),
            9..13 => self.remove(&key),
            13..18 => self.commit(),
            18..23 => self.medium.reach_all(),
            _ => {
                if self.random.once_in(3) {
                    self.restart();
                }
            }
        }
        self.poll();
    }
}

/// Everything in it, with the versions that the payload shows.
fn read(index: &Index, medium: &Recorder) -> Result<(State, BTreeMap<Vec<u8>, u32>), String> {
    let (mut state, mut bufs) = (State::new(), BTreeMap::new());
    let mut wrong = None;
    index
        .scan(medium, b"", |key, value| {
            let mut bytes = [0; 16];
            medium.load(PLACE.locate(&value[0]).unwrap(), &mut bytes);
            match (1..2000).find(|&version| content(version) == bytes) {
                Some(version) => drop(state.insert(key.to_vec(), version)),
                None => wrong = Some(format!("key {:?} has foreign bytes", &key[..8])),
            }
            bufs.insert(key.to_vec(), value[0].buf);
            ControlFlow::Continue(())
        })
        .map_err(|error| error.to_string())?;
    wrong.map_or(Ok((state, bufs)), Err)
}

fn judge(states: &[State], medium: &mut Recorder, marks: &[u64]) -> Result<(), String> {
    let promised = marks.iter().filter(|mark| *mark % 2 == 1).map(|mark| mark / 2).max();
    let begun = marks.iter().map(|mark| mark / 2).max().unwrap_or(0);
    let promised = promised.unwrap_or(0);
    let (index, _) = Index::recover(medium, PART, PLACE, |_| true).map_err(|e| e.to_string())?;
    let (state, _) = read(&index, medium)?;
    let known = &states[promised as usize..states.len().min(begun as usize + 1)];
    if !known.contains(&state) {
        return Err(format!(
            "{} keys are none of the states from {promised} to {begun}",
            state.len()
        ));
    }
    let report = verify(medium, PART, &PLACE, |_| true).map_err(|error| error.to_string())?;
    if report.damaged > 0 || report.entries != state.len() as u64 {
        return Err(format!("{report:?}"));
    }
    // Life goes on.
    let (mut index, _) =
        Index::recover(medium, PART, PLACE, |_| true).map_err(|e| e.to_string())?;
    let probe = b"\xff\xffprobe";
    let last = index.get(medium, probe).map_err(|error| error.to_string())?;
    if last.is_none() && index.insert(medium, probe, &[]).is_ok() {
        index.remove(medium, probe).map_err(|error| error.to_string())?;
        index.commit(medium).ok_or("no commit after recovery")?;
        let (again, _) =
            Index::recover(medium, PART, PLACE, |_| true).map_err(|e| e.to_string())?;
        if read(&again, medium)?.0 != state {
            return Err("another state without a crash".to_owned());
        }
    }
    Ok(())
}

type Judge = Box<dyn Fn(&mut Recorder, &[u64]) -> Result<(), String>>;

fn run(seed: u64, steps: usize) -> (Trace, Judge) {
    let mut program = Program::new(seed);
    for _ in 0..steps {
        program.step(40);
    }
    let states = program.states;
    let judge = move |medium: &mut Recorder, marks: &[u64]| judge(&states, medium, marks);
    (program.medium.into_trace(), Box::new(judge))
}

#[test]
fn the_index_survives_every_crash() {
    let explorer = Explorer { seed: 0, exhaustive: 32, samples: 6, recovery_samples: 1 };
    let test = "index::the_index_survives_every_crash";
    let cases = explore(test, 0..4, explorer, |seed| run(seed, 70));
    assert!(cases.images > 1000, "{cases:?}");
}

#[test]
#[ignore = "long: name the seeds in PASTE_CRASH_SEEDS"]
fn the_index_survives_every_crash_at_length() {
    let explorer = Explorer { seed: 0, exhaustive: 256, samples: 40, recovery_samples: 2 };
    let test = "index::the_index_survives_every_crash_at_length";
    explore(test, 100..120, explorer, |seed| run(seed, 300));
}

/// A flush, an end of an epoch or a wait is missing: each is found.
#[test]
fn every_bug_in_the_order_of_stores_is_found() {
    let explorer = Explorer { seed: 3, exhaustive: 32, samples: 10, recovery_samples: 0 };
    let mut program = Program::new(2);
    let from = program.medium.trace().ops.len();
    let mut until = from;
    for round in 0..9 {
        for number in 0..4 {
            program.set(key(3 + number + round % 2 * 2));
        }
        // None of those just set: their payload would never be promised.
        let gone = if round % 2 == 0 { 7 } else { 3 };
        program.remove(&key(gone + round / 2 % 2));
        program.commit();
        program.medium.reach_all();
        program.poll();
        if round == 4 {
            until = program.medium.trace().ops.len();
        }
    }
    let states = program.states;
    let trace = program.medium.into_trace();
    let judge = |medium: &mut Recorder, marks: &[u64]| judge(&states, medium, marks);
    explorer.explore(&trace, judge).unwrap();
    let mut mutants = trace.mutants();
    mutants.retain(|mutant| (from..until).contains(&mutant.step()));
    let (mut missed, mut waits) = (0, 0);
    for &mutant in &mutants {
        if explorer.explore(&trace.mutate(mutant), judge).is_err() {
            waits += u64::from(matches!(mutant, Mutant::NoWait { .. }));
            continue;
        }
        // New payload may be stored as early as its buffer is free, and new pages as
        // early as theirs are, which may be long before the ticket that the mutant
        // does not wait for.
        if !matches!(mutant, Mutant::NoWait { .. }) {
            println!(
                "not found: {mutant:?} {:?}",
                match &trace.ops[mutant.step()] {
                    Op::Store { at, .. } => format!("store at {at}"),
                    op => format!("{op:?}"),
                }
            );
            missed += 1;
        }
    }
    assert!(mutants.len() > 20);
    assert_eq!(missed, 0);
    assert!(waits > 0);
}
