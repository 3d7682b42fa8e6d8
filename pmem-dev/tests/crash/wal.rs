//! The log and the claims, as a store of keys uses them: values in buffers, superseded, deleted,
//! their buffers given back and filled anew, old records written again, the
//! program restarted.

use std::collections::BTreeMap;

use paste_pmem::crash::{Explorer, Mutant, Op, Random, Recorder, Trace};
use paste_pmem::wal::{End, Entry, Piece, Place, Record, Scratch, Wal, WalError, verify};
use paste_pmem::{Claims, Geometry, Medium, Part, SIZE_MIN, Ticket, checksum};

use crate::explore;

const PLACE: Place = Place {
    log: Part { offset: 8192, len: 8192 + 1024 },
    buffers: Part { offset: 17408, len: BUFFERS as u64 * 64 },
    buffer_size: 64,
};
const LEN: usize = 17408 + BUFFERS as usize * 64;
const BUFFERS: u32 = 10;
const KEYS: u64 = 3;
/// A key that the judge writes to after recovery.
const AFTER: u64 = 99;
const SET: u16 = 1;
const DELETE: u16 = 2;

/// What a mark says.
#[derive(Clone, Debug)]
enum Event {
    /// A key gets this version: pieces of these lengths, or none.
    Issued { key: u64, version: u64, pieces: Vec<u16> },
    /// A version was promised.
    Promised { key: u64, version: u64 },
}

/// The claims on the buffers, each in a word of its own, so that no flush does
/// another's work. The table lies in the image's second page.
struct Table(Claims);

impl Table {
    fn new() -> Table {
        Table(Claims::new(&Geometry::new(SIZE_MIN, 2048).unwrap()))
    }

    fn set(&self, medium: &mut Recorder, buf: u32) {
        self.0.set(medium, buf * 64).unwrap();
    }

    fn clear(&self, medium: &mut Recorder, buf: u32) {
        self.0.clear(medium, buf * 64).unwrap();
    }

    fn contains(&self, medium: &Recorder, buf: u32) -> bool {
        buf < BUFFERS && self.0.contains(medium, buf * 64)
    }
}

/// Whether a step flushes a claim that was cleared: without it, a buffer leaks
/// until recovery, and no more.
fn flushes_cleared(trace: &Trace, step: usize) -> bool {
    let Op::Flush { at, .. } = trace.ops[step] else { return false };
    let last = trace.ops[..step].iter().rev().find_map(|op| match op {
        Op::Store { at: stored, data } if *stored == at => Some(data),
        _ => None,
    });
    (4096..8192).contains(&at) && last.is_some_and(|data| data.iter().all(|&byte| byte == 0))
}

/// The bytes of a version's piece.
fn content(version: u64, index: usize, len: u16) -> Vec<u8> {
    let mut random = Random::new(version << 8 | index as u64);
    (0..len).map(|_| random.draw() as u8).collect()
}

fn tag(key: u64, version: u64) -> Vec<u8> {
    // Some tags are long.
    let mut tag = [key.to_le_bytes(), version.to_le_bytes()].concat();
    tag.resize(16 + (version % 4 * 13) as usize, version as u8);
    tag
}

fn parse(record: &Record<'_>) -> Option<(u64, u64)> {
    let tag = record.tag();
    let word = |at: usize| Some(u64::from_le_bytes(tag.get(at..at + 8)?.try_into().ok()?));
    Some((word(0)?, word(8)?))
}

#[derive(Clone, Debug)]
struct Live {
    version: u64,
    sequence: u64,
    pieces: Vec<Piece>,
}

fn make_ready(wal: &mut Wal, medium: &mut Recorder) {
    while !wal.is_ready(medium) {
        wal.commit(medium);
        medium.reach_all();
    }
}

/// The program: what it holds in ordinary memory.
struct Program {
    medium: Recorder,
    random: Random,
    wal: Wal,
    live: BTreeMap<u64, Live>,
    free: Vec<u32>,
    /// Buffers that are free when the ticket is reached.
    leaving: Vec<(Option<Ticket>, Vec<u32>)>,
    /// Versions that are promised when it is reached.
    waiting: Vec<(Option<Ticket>, u64, u64)>,
    events: Vec<Event>,
    version: u64,
}

impl Program {
    fn new(seed: u64) -> Program {
        let mut random = Random::new(seed);
        // Buffers are never clean.
        let mut image = vec![0; LEN];
        image[17408..].iter_mut().for_each(|byte| *byte = random.draw() as u8);
        let mut medium = Recorder::waiting(image);
        let mut wal = Wal::create(&mut medium, PLACE, random.draw()).unwrap();
        make_ready(&mut wal, &mut medium);
        Program {
            medium,
            random,
            wal,
            live: BTreeMap::new(),
            free: (0..BUFFERS).collect(),
            leaving: Vec::new(),
            waiting: Vec::new(),
            events: Vec::new(),
            version: 0,
        }
    }

    fn event(&mut self, event: Event) {
        self.medium.mark(self.events.len() as u64);
        self.events.push(event);
    }

    fn write(&mut self, key: u64, delete: bool) {
        let count = if delete { 0 } else { 1 + self.random.below(2) as usize };
        if self.free.len() < count || (delete && !self.live.contains_key(&key)) {
            return;
        }
        self.version += 1;
        let version = self.version;
        let mut pieces = Vec::new();
        for index in 0..count {
            let buf = self.free.pop().unwrap();
            let len = 1 + self.random.below(24) as u16;
            let offset = self.random.below(u64::from(64 - len)) as u16;
            let bytes = content(version, index, len);
            let piece = Piece { buf, offset, len, csum: checksum::of(&bytes) };
            self.medium.store(PLACE.locate(&piece).unwrap(), &bytes);
            Table::new().set(&mut self.medium, buf);
            pieces.push(piece);
        }
        let lens = pieces.iter().map(|piece| piece.len).collect();
        self.event(Event::Issued { key, version, pieces: lens });
        let kind = if delete { DELETE } else { SET };
        let tag = tag(key, version);
        let ends: Vec<End> =
            self.live.get(&key).map(|live| End::record(live.sequence)).into_iter().collect();
        let entry = Entry { kind, time: version, pieces: &pieces, ends: &ends, tag: &tag };
        match self.wal.append(&mut self.medium, &entry) {
            Ok(position) => {
                let live = Live { version, sequence: position.sequence, pieces };
                let old = if delete { self.live.remove(&key) } else { self.live.insert(key, live) };
                let bufs = old.into_iter().flat_map(|old| old.pieces).map(|piece| piece.buf);
                self.leaving.push((None, bufs.collect()));
                self.waiting.push((None, key, version));
            }
            Err(_) => {
                for piece in pieces {
                    Table::new().clear(&mut self.medium, piece.buf);
                    self.free.push(piece.buf);
                }
            }
        }
    }

    fn commit(&mut self) {
        let ticket = self.wal.commit(&mut self.medium);
        self.leaving.iter_mut().for_each(|(at, _)| *at = at.or(Some(ticket)));
        self.waiting.iter_mut().for_each(|(at, ..)| *at = at.or(Some(ticket)));
    }

    fn poll(&mut self) {
        let medium = &self.medium;
        let reached = |at: &Option<Ticket>| at.is_some_and(|ticket| medium.reached(ticket));
        let (gone, leaving) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| reached(at));
        self.leaving = leaving;
        let (promised, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, ..)| reached(at));
        self.waiting = waiting;
        for buf in gone.into_iter().flat_map(|(_, bufs)| bufs) {
            Table::new().clear(&mut self.medium, buf);
            self.free.push(buf);
        }
        for (_, key, version) in promised {
            self.event(Event::Promised { key, version });
        }
    }

    /// Writes the oldest records that count anew and gives up their room.
    fn clean(&mut self) {
        let mut at = self.wal.head();
        let mut scratch = Scratch::default();
        for _ in 0..3 {
            let Some((record, next)) = self.wal.read(&self.medium, at, &mut scratch) else { break };
            let (key, _) = parse(&record).unwrap();
            let sequence = record.sequence();
            if self.live.get(&key).is_some_and(|live| live.sequence == sequence) {
                let pieces: Vec<Piece> = record.pieces().collect();
                let entry = Entry {
                    kind: SET,
                    time: record.time(),
                    pieces: &pieces,
                    ends: &[End::record(sequence)],
                    tag: record.tag(),
                };
                let Ok(position) = self.wal.rewrite(&mut self.medium, &entry) else { break };
                self.live.get_mut(&key).unwrap().sequence = position.sequence;
            }
            at = next;
        }
        self.wal.truncate(at);
    }

    /// The program dies and comes back; the machine goes on.
    fn restart(&mut self) {
        self.medium.lose();
        let (wal, live) = recover(&mut self.medium).unwrap();
        self.wal = wal;
        if self.random.once_in(3) {
            // It dies again at once.
            return self.restart();
        }
        claim(&mut self.medium, &live);
        make_ready(&mut self.wal, &mut self.medium);
        self.leaving.clear();
        self.waiting.clear();
        self.free = release(&mut self.medium, &live);
        for (&key, live) in &live {
            self.event(Event::Promised { key, version: live.version });
        }
        self.live = live;
    }

    fn step(&mut self) {
        let key = self.random.below(KEYS);
        match self.random.below(20) {
            0..8 => self.write(key, false),
            8..10 => self.write(key, true),
            10..14 => self.commit(),
            14..17 => self.medium.reach_all(),
            17..19 => self.clean(),
            _ => {
                if self.random.once_in(2) {
                    self.restart();
                }
            }
        }
        self.poll();
    }
}

/// Recovers as a program does: what counts, by key.
fn recover(medium: &mut Recorder) -> Result<(Wal, BTreeMap<u64, Live>), String> {
    let claimed: Vec<u32> =
        (0..BUFFERS).filter(|&buf| Table::new().contains(medium, buf)).collect();
    let mut live = BTreeMap::new();
    let mut odd = None;
    let (wal, recovery) = Wal::recover(
        medium,
        PLACE,
        |buf| claimed.contains(&buf),
        |record| {
            let Some((key, version)) = parse(&record) else {
                odd = Some(format!("record {} with a foreign tag", record.sequence()));
                return;
            };
            if record.kind() == DELETE {
                live.remove(&key);
            } else {
                let pieces = record.pieces().collect();
                live.insert(key, Live { version, sequence: record.sequence(), pieces });
            }
        },
    )
    .map_err(|error| error.to_string())?;
    if let Some(odd) = odd {
        return Err(odd);
    }
    if recovery.loss.count > 0 {
        return Err(format!("reported as lost: {:?}", recovery.loss.named));
    }
    Ok((wal, live))
}

/// Claims again what the program that died may have claimed in vain.
fn claim(medium: &mut Recorder, live: &BTreeMap<u64, Live>) {
    for piece in live.values().flat_map(|live| &live.pieces) {
        Table::new().set(medium, piece.buf);
    }
}

/// Gives back what is claimed and not named: a leak, never a loss.
fn release(medium: &mut Recorder, live: &BTreeMap<u64, Live>) -> Vec<u32> {
    let named = |buf: u32| live.values().flat_map(|live| &live.pieces).any(|p| p.buf == buf);
    let free: Vec<u32> = (0..BUFFERS).filter(|&buf| !named(buf)).collect();
    free.iter().for_each(|&buf| Table::new().clear(medium, buf));
    free
}

fn judge(events: &[Event], medium: &mut Recorder, marks: &[u64]) -> Result<(), String> {
    let events: Vec<&Event> = marks.iter().map(|&mark| &events[mark as usize]).collect();
    let report = verify(medium, &PLACE, |buf| Table::new().contains(medium, buf))
        .map_err(|error| error.to_string())?;
    let (mut wal, live) = recover(medium)?;
    claim(medium, &live);
    make_ready(&mut wal, medium);
    release(medium, &live);
    for key in 0..KEYS {
        let found = live.get(&key);
        let issued = |version: u64| {
            events.iter().find_map(|event| match event {
                Event::Issued { key: k, version: v, pieces } if (*k, *v) == (key, version) => {
                    Some(pieces)
                }
                _ => None,
            })
        };
        let promised = events
            .iter()
            .filter_map(|event| match event {
                Event::Promised { key: k, version } if *k == key => Some(*version),
                _ => None,
            })
            .max()
            .unwrap_or(0);
        match found {
            None => {
                // Never written, or deleted at or after the last promise.
                let deleted = events.iter().any(|event| {
                    matches!(event, Event::Issued { key: k, version, pieces }
                        if *k == key && *version >= promised && pieces.is_empty())
                });
                if promised > 0 && !deleted {
                    return Err(format!("key {key}: version {promised} is lost"));
                }
            }
            Some(live) => {
                let pieces = issued(live.version)
                    .ok_or_else(|| format!("key {key}: version {} is invented", live.version))?;
                if live.version < promised {
                    return Err(format!(
                        "key {key}: version {} came back, {promised} was promised",
                        live.version
                    ));
                }
                let lens: Vec<u16> = live.pieces.iter().map(|piece| piece.len).collect();
                if lens != *pieces {
                    return Err(format!("key {key}: pieces {lens:?} instead of {pieces:?}"));
                }
                for (index, piece) in live.pieces.iter().enumerate() {
                    let mut bytes = vec![0; piece.len.into()];
                    medium.load(PLACE.locate(piece).unwrap(), &mut bytes);
                    let right = content(live.version, index, piece.len);
                    // 16 bits of checksum cannot tell all torn payloads. What was
                    // promised is never torn.
                    let collides = checksum::equal(checksum::of(&bytes), piece.csum);
                    if bytes != right && (live.version <= promised || !collides) {
                        return Err(format!("key {key}: wrong bytes of version {}", live.version));
                    }
                }
            }
        }
    }
    if report.loss.count > 0 {
        return Err(format!("verify reports {:?}", report.loss.named));
    }
    // Life goes on: a record more, and everything is there again.
    // Of the length of any record that may have been there: what was after that one
    // must not come back.
    let mut tag = [AFTER.to_le_bytes(), 1u64.to_le_bytes()].concat();
    let length = medium.image().iter().map(|&byte| usize::from(byte)).sum::<usize>() % 10;
    tag.resize(16 + length * 8, 0);
    let entry = Entry { kind: SET, time: 0, pieces: &[], ends: &[], tag: &tag };
    if wal.append(medium, &entry).is_ok() {
        wal.commit(medium);
        let (_, again) = recover(medium)?;
        let versions = |live: &BTreeMap<u64, Live>| -> Vec<(u64, u64)> {
            live.iter().filter(|(k, _)| **k != AFTER).map(|(k, l)| (*k, l.version)).collect()
        };
        if versions(&live) != versions(&again) || !again.contains_key(&AFTER) {
            return Err(format!("{live:?} became {again:?} without a crash"));
        }
    }
    Ok(())
}

type Judge = Box<dyn Fn(&mut Recorder, &[u64]) -> Result<(), String>>;

fn run(seed: u64, steps: usize) -> (Trace, Judge) {
    let mut program = Program::new(seed);
    for _ in 0..steps {
        program.step();
    }
    let events = program.events;
    // The log is there from the start.
    let mut trace = program.medium.into_trace();
    let first = trace.ops.iter().position(|op| matches!(op, Op::Mark(_)));
    let mut begun = Recorder::prompt(trace.start);
    for op in trace.ops.drain(..first.unwrap_or(0)) {
        if let Op::Store { at, data } = op {
            begun.store(at, &data);
        }
    }
    trace.start = begun.image().to_vec();
    (trace, Box::new(move |medium, marks| judge(&events, medium, marks)))
}

#[test]
fn the_log_survives_every_crash() {
    let explorer = Explorer { seed: 0, exhaustive: 32, samples: 8, recovery_samples: 1 };
    let cases = explore("wal::the_log_survives_every_crash", 0..8, explorer, |seed| run(seed, 60));
    assert!(cases.images > 5_000, "{cases:?}");
}

#[test]
#[ignore = "long: name the seeds in PASTE_CRASH_SEEDS"]
fn the_log_survives_every_crash_at_length() {
    let explorer = Explorer { seed: 0, exhaustive: 256, samples: 40, recovery_samples: 2 };
    let test = "wal::the_log_survives_every_crash_at_length";
    explore(test, 100..140, explorer, |seed| run(seed, 200));
}

#[test]
fn a_log_in_the_making_is_absent_or_whole() {
    let mut medium = Recorder::waiting(vec![0; LEN]);
    let mut wal = Wal::create(&mut medium, PLACE, 5).unwrap();
    make_ready(&mut wal, &mut medium);
    medium.mark(0);
    let explorer = Explorer { seed: 0, exhaustive: 1 << 12, samples: 0, recovery_samples: 0 };
    let made = |medium: &mut Recorder, marks: &[u64]| match Wal::recover(
        medium,
        PLACE,
        |_| true,
        |_| (),
    ) {
        Ok((_, recovery)) if recovery.loss.count == 0 => Ok(()),
        Err(WalError::Absent | WalError::Header) if marks.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    };
    let cases = explorer.explore(medium.trace(), made).unwrap();
    assert_eq!(cases.exhausted, cases.prefixes);
}

/// The mutants that pass.
fn missed(
    explorer: &Explorer,
    trace: &Trace,
    mutants: &[Mutant],
    judge: impl Fn(&mut Recorder, &[u64]) -> Result<(), String>,
) -> Vec<Mutant> {
    explorer.explore(trace, &judge).unwrap();
    let passes = |mutant: &&Mutant| explorer.explore(&trace.mutate(**mutant), &judge).is_ok();
    mutants.iter().filter(passes).copied().collect()
}

/// A flush, an end of an epoch or a wait is missing: each is found.
#[test]
fn every_bug_in_the_order_of_stores_is_found() {
    let explorer = Explorer { seed: 3, exhaustive: 32, samples: 12, recovery_samples: 0 };
    let mut program = Program::new(0);
    let image = program.medium.image().to_vec();
    program.medium = Recorder::waiting(image);
    // Everything up to here is durable, so the log may take it up at once.
    program.wal = recover(&mut program.medium).unwrap().0;
    make_ready(&mut program.wal, &mut program.medium);
    // Bugs of recovery show in another way, and those of the last rounds have no time
    // to show.
    let from = program.medium.trace().ops.len();
    let mut until = from;
    for round in 0..7 {
        for key in 0..2 {
            program.write(key, round == 3);
        }
        program.clean();
        program.commit();
        program.medium.reach_all();
        program.poll();
        if round == 4 {
            until = program.medium.trace().ops.len();
        }
    }
    let events = program.events;
    let trace = program.medium.into_trace();
    let judge = |medium: &mut Recorder, marks: &[u64]| judge(&events, medium, marks);
    let mut mutants = trace.mutants();
    mutants.retain(|mutant| (from..until).contains(&mutant.step()));
    mutants.retain(|mutant| match *mutant {
        // New payload may be stored as early as its buffer is free, which may be long
        // before the ticket that the mutant does not wait for.
        Mutant::NoWait { store, .. } => !matches!(trace.ops[store],
            Op::Store { at, .. } if at >= PLACE.buffers.offset),
        Mutant::NoFlush(step) => !flushes_cleared(&trace, step),
        Mutant::NoSeal(_) => true,
    });
    let missed = missed(&explorer, &trace, &mutants, judge);
    assert!(mutants.len() > 30, "{}", mutants.len());
    assert_eq!(missed, []);
}

/// As above, in the recovery of a program that died before what it had stored was
/// durable.
#[test]
fn every_bug_in_recovery_is_found() {
    let explorer = Explorer { seed: 4, exhaustive: 64, samples: 16, recovery_samples: 0 };
    let mut program = Program::new(1);
    let image = program.medium.image().to_vec();
    program.medium = Recorder::waiting(image);
    program.wal = recover(&mut program.medium).unwrap().0;
    make_ready(&mut program.wal, &mut program.medium);
    for reached in [true, true, true, true, false] {
        for key in 0..2 {
            program.write(key, false);
        }
        program.clean();
        program.commit();
        if reached {
            program.medium.reach_all();
        }
        program.poll();
    }
    program.medium.lose();
    let from = program.medium.trace().ops.len();
    let (wal, live) = recover(&mut program.medium).unwrap();
    program.wal = wal;
    claim(&mut program.medium, &live);
    make_ready(&mut program.wal, &mut program.medium);
    for (&key, live) in &live {
        program.event(Event::Promised { key, version: live.version });
    }
    let until = program.medium.trace().ops.len();
    program.free = release(&mut program.medium, &live);
    program.live = live;
    program.leaving.clear();
    program.waiting.clear();
    for _ in 0..3 {
        for key in 0..3 {
            program.write(key, false);
        }
        program.commit();
        program.medium.reach_all();
        program.poll();
    }
    let events = program.events;
    let trace = program.medium.into_trace();
    let judge = |medium: &mut Recorder, marks: &[u64]| judge(&events, medium, marks);
    let mut mutants = trace.mutants();
    // Nor is the last end of an epoch missed: what records without a header may do takes
    // a second crash and a record of the right length, which chance seldom finds.
    let last = trace.ops[..until].iter().rposition(|op| matches!(op, Op::Seal(_)));
    mutants.retain(|mutant| (from..until).contains(&mutant.step()));
    mutants.retain(|mutant| *mutant != Mutant::NoSeal(last.unwrap_or(0)));
    assert!(mutants.len() > 8, "{}", mutants.len());
    assert_eq!(missed(&explorer, &trace, &mutants, judge), []);
}
