//! What was given back need not reach the mirror: a log that goes round many times, on a
//! region whose power is lost again and again, never misses what it holds.

use std::collections::VecDeque;
use std::sync::Arc;

use paste_pmem::wal::{Entry, Piece, Place, Position, Wal};
use paste_pmem::{
    Backing, Claims, FlushRange, Flusher, Geometry, HugePages, Identity, Medium, Owner, Pool,
    Region, RegionMedium, Spec, Ticket, Uuid, checksum, provide,
};
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;
const BUFFER: u64 = 2048;
const PAYLOAD: u64 = 1300;
const GUEST: Owner = Owner::Guest(0);
/// Requests that are kept.
const KEEP: usize = 40;

/// The guest's memory, and a host that makes durable what it is told at once.
struct Durable {
    memory: RegionMedium,
    flusher: Flusher,
}

impl Medium for Durable {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        self.memory.load(at, out);
    }

    fn store(&mut self, at: u64, data: &[u8]) {
        self.memory.store(at, data);
    }

    fn flush(&mut self, offset: u64, len: u64) {
        self.flusher.add(FlushRange { offset, len }).unwrap();
    }

    fn seal(&mut self) -> Ticket {
        self.flusher.commit(0).unwrap();
        self.flusher.tidy();
        self.memory.seal()
    }

    fn reached(&self, ticket: Ticket) -> bool {
        self.memory.reached(ticket)
    }
}

/// The application, and what it has logged and not given up, the oldest first.
struct Log {
    medium: Durable,
    pool: Pool,
    region: Region,
    wal: Wal,
    held: VecDeque<(Position, u32, u64)>,
}

fn provided(dir: &TempDir) -> Region {
    let spec = Spec {
        backing: Backing::Memory(HugePages::No),
        mirror: Some(dir.path().join("log.mirror")),
        geometry: Geometry::new(SIZE, BUFFER as u32).unwrap(),
        identity: Identity { guest: "log", uuid: Uuid::random().unwrap(), created_ns: 1 },
    };
    provide(&spec, &mut |_, _| {}).unwrap().region
}

fn opened(region: &Region) -> (Durable, Pool) {
    let memory = RegionMedium::new(Arc::clone(region.mapping()), None);
    let flusher = region.flusher().unwrap().unwrap();
    (Durable { memory, flusher }, region.pool())
}

/// What a request with this number consists of.
fn payload(number: u64) -> Vec<u8> {
    (0..PAYLOAD / 4).flat_map(|at| (number as u32 ^ (at as u32) << 16).to_le_bytes()).collect()
}

impl Log {
    fn new(dir: &TempDir) -> Log {
        let region = provided(dir);
        let (mut medium, pool) = opened(&region);
        let wal = Wal::create(&mut medium, Place::from(region.geometry()), 7).unwrap();
        let mut log = Log { medium, pool, region, wal, held: VecDeque::new() };
        log.ready();
        log
    }

    fn ready(&mut self) {
        while !self.wal.is_ready(&self.medium) {
            self.wal.commit(&mut self.medium);
        }
    }

    fn claim(&mut self, buf: u32, claimed: bool) {
        let claims = Claims::new(self.region.geometry());
        match claimed {
            true => claims.set(&mut self.medium, buf).unwrap(),
            false => claims.clear(&mut self.medium, buf).unwrap(),
        }
    }

    fn at(&self, buf: u32) -> u64 {
        self.region.geometry().buffers().offset + u64::from(buf) * BUFFER + 100
    }

    /// A request arrives, and is logged where it lies.
    fn request(&mut self, number: u64) {
        let buf = self.pool.take(GUEST).expect("an empty buffer");
        let bytes = payload(number);
        let at = self.at(buf);
        self.medium.store(at, &bytes);
        self.claim(buf, true);
        let piece = Piece { buf, offset: 100, len: PAYLOAD as u16, csum: checksum::of(&bytes) };
        let entry = Entry { kind: 1, time: number, pieces: &[piece], ends: &[], tag: b"" };
        let position = self.wal.append(&mut self.medium, &entry).unwrap();
        self.held.push_back((position, buf, number));
    }

    /// The oldest are given up, and their buffers given back when that is durable. What
    /// arrives next is written over them.
    fn give_up(&mut self) {
        let Some(&(position, ..)) = self.held.get(self.held.len().saturating_sub(KEEP)) else {
            return;
        };
        self.wal.truncate(position);
        while self.wal.is_truncating() || self.wal.head() < position {
            self.wal.commit(&mut self.medium);
        }
        let mut given_up = Vec::new();
        while let Some((_, buf, _)) = self.held.pop_front_if(|(at, ..)| *at < position) {
            self.claim(buf, false);
            given_up.push(buf);
        }
        self.wal.commit(&mut self.medium);
        for &buf in &given_up {
            self.pool.give(buf, GUEST).unwrap();
        }
        for _ in 0..given_up.len() / 2 {
            let buf = self.pool.take(Owner::Port).expect("they were just given back");
            let at = self.at(buf);
            self.medium.store(at, &[0xee; PAYLOAD as usize]);
            self.pool.give(buf, Owner::Port).unwrap();
        }
    }

    /// Everything but the mirror is lost. All that was committed is found.
    fn lose_power(self, dir: &TempDir) -> Log {
        let Log { medium, pool, region, wal, held } = self;
        drop((medium, pool, region, wal));
        let region = provided(dir);
        let (mut medium, mut pool) = opened(&region);
        let claimed: Vec<u32> = Claims::new(region.geometry()).iter(&medium).collect();
        let place = Place::from(region.geometry());
        let mut found = Vec::new();
        let (wal, recovery) = Wal::recover(
            &mut medium,
            place,
            |buf| claimed.contains(&buf),
            |record| {
                found.extend(record.pieces().map(|piece| (piece, record.time())));
            },
        )
        .unwrap();
        assert_eq!((recovery.loss.count, recovery.dropped), (0, 0));
        let names: Vec<_> = found.iter().map(|(piece, number)| (piece.buf, *number)).collect();
        let wanted: Vec<_> = held.iter().map(|&(_, buf, number)| (buf, number)).collect();
        assert_eq!(names, wanted);
        for (piece, number) in found {
            let mut bytes = vec![0; PAYLOAD as usize];
            medium.load(place.locate(&piece).unwrap(), &mut bytes);
            assert!(bytes == payload(number), "request {number}");
            pool.transfer(piece.buf, Owner::Claimed, GUEST).unwrap();
        }
        let mut log = Log { medium, pool, region, wal, held };
        log.ready();
        log
    }
}

#[test]
fn a_log_that_goes_round_outlives_every_loss_of_power() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(&dir);
    let mut number = 0;
    let (mut written, mut journalled) = (0, 0);
    for life in 0..12 {
        // From a part of the journal's area to more than two of them.
        for _ in 0..25 + life * 20 {
            for _ in 0..8 {
                log.request(number);
                number += 1;
            }
            log.wal.commit(&mut log.medium);
            if log.held.len() > KEEP * 2 {
                log.give_up();
            }
        }
        let counters = log.medium.flusher.counters();
        written += counters.written_bytes;
        journalled += counters.journal_bytes;
        log = log.lose_power(&dir);
    }
    // The areas have room for some 640 requests each: all but a few are given up before
    // their checkpoint.
    let payload = number * PAYLOAD;
    assert!(journalled > 12 << 20, "{journalled}");
    assert!((written - journalled) * 5 < payload, "{written} - {journalled} of {payload}");
}
