//! What a change costs in the log with a map in ordinary memory, and in the index:
//! time, bytes flushed, and the time to come back.
//!
//! ```text
//! cargo run --release -p paste-pmem --example log_or_index
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use paste_pmem::index::Index;
use paste_pmem::wal::{End, Entry, Piece, Place, Wal};
use paste_pmem::{
    Backing, Geometry, HugePages, Identity, Medium, Region, RegionMedium, Ticket, Uuid,
};

const KEYS: u64 = 50_000;

/// Counts what is flushed.
struct Counting {
    medium: RegionMedium,
    flushed: u64,
}

impl Medium for Counting {
    fn len(&self) -> u64 {
        self.medium.len()
    }
    fn load(&self, at: u64, out: &mut [u8]) {
        self.medium.load(at, out);
    }
    fn store(&mut self, at: u64, data: &[u8]) {
        self.medium.store(at, data);
    }
    fn flush(&mut self, at: u64, len: u64) {
        self.flushed += len;
        self.medium.flush(at, len);
    }
    fn seal(&mut self) -> Ticket {
        self.medium.seal()
    }
    fn reached(&self, ticket: Ticket) -> bool {
        self.medium.reached(ticket)
    }
}

/// The keys in an order that is not theirs.
fn key(number: u64) -> [u8; 16] {
    let mut key = *b"key-000000000000";
    key[8..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

fn report(name: &str, batch: u64, since: Instant, times: u64, flushed: u64) {
    let ns = since.elapsed().as_nanos() as u64 / times;
    println!("{name:<28} batch {batch:>4}: {ns:>7} ns, {:>6} bytes flushed", flushed / times);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let geometry = Geometry::new(1 << 30, 2048)?;
    let identity = Identity { guest: "bench", uuid: Uuid([1; 16]), created_ns: 0 };
    let place = Place::from(&geometry);
    let piece = |number: u64| Piece { buf: number as u32, offset: 0, len: 0, csum: 0xffff };
    for batch in [1, 64, 1024] {
        let region = Region::create(&Backing::Memory(HugePages::No), geometry, &identity)?;
        let medium = RegionMedium::new(Arc::clone(region.mapping()), None);
        let mut medium = Counting { medium, flushed: 0 };

        let mut wal = Wal::create(&mut medium, place, 7)?;
        let mut map = BTreeMap::new();
        let (since, before) = (Instant::now(), medium.flushed);
        for number in 0..KEYS {
            let (key, pieces) = (key(number), [piece(number)]);
            let old = map.get(&key).map(|&(sequence, _)| End::record(sequence));
            let ends = old.as_slice();
            let entry = Entry { kind: 1, time: number, pieces: &pieces, ends, tag: &key };
            let at = wal.append(&mut medium, &entry)?;
            map.insert(key, (at.sequence, pieces[0]));
            if number % batch == batch - 1 {
                wal.commit(&mut medium);
            }
        }
        report("log and map, set", batch, since, KEYS, medium.flushed - before);
        wal.commit(&mut medium);
        let since = Instant::now();
        let found: u64 = (0..KEYS).filter(|&n| map.contains_key(&key(n))).count() as u64;
        report("log and map, get", batch, since, found, 0);
        let since = Instant::now();
        let mut map = BTreeMap::new();
        Wal::recover(
            &mut medium,
            place,
            |_| true,
            |record| {
                map.insert(record.tag().to_vec(), record.pieces().next());
            },
        )?;
        report("log and map, recovery", batch, since, map.len() as u64, 0);

        let mut index = Index::create(&mut medium, geometry.index(), place)?;
        let (since, before) = (Instant::now(), medium.flushed);
        for number in 0..KEYS {
            index.insert(&mut medium, &key(number), &[piece(number)])?;
            if number % batch == batch - 1 {
                index.commit(&mut medium);
            }
        }
        report("index, set", batch, since, KEYS, medium.flushed - before);
        index.commit(&mut medium);
        let since = Instant::now();
        let mut found = 0;
        for number in 0..KEYS {
            found += u64::from(index.get(&medium, &key(number))?.is_some());
        }
        report("index, get", batch, since, found, 0);
        let since = Instant::now();
        let (index, _) = Index::recover(&mut medium, geometry.index(), place, |_| true)?;
        report("index, recovery", batch, since, index.len(), 0);
    }
    Ok(())
}
