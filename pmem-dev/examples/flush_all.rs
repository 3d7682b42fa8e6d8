//! What a FLUSH of all of a region costs, as a virtio-pmem device is asked for it: where
//! nothing has changed, a hundredth of its pages, and all of them.
//!
//! ```text
//! TMPDIR=/on/a/disk cargo run --release -p paste-pmem --example flush_all
//! ```

use std::time::Instant;

use paste_pmem::{
    Backing, FlushRange, Geometry, HugePages, Identity, Mapping, Spec, Uuid, provide,
};

const SIZE: u64 = 256 << 20;
const PAGE: usize = 4096;
const ROUNDS: u64 = 5;

/// Changes every page of which there are `one_in`, at places that differ by round.
fn change(mapping: &Mapping, one_in: usize, round: u64) -> usize {
    let mut changed = 0;
    // The first page has the guest's superblock.
    for page in 1..mapping.len() / PAGE {
        let chance = (page as u64 ^ round << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        if (chance as usize).is_multiple_of(one_in) {
            let stored = mapping.write_at(page * PAGE + 8, &(round << 8 | 1).to_le_bytes());
            assert!(stored, "the page lies in the mapping");
            changed += 1;
        }
    }
    changed
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("flush_all-{}.mirror", std::process::id()));
    let spec = Spec {
        backing: Backing::Memory(HugePages::No),
        mirror: Some(path),
        geometry: Geometry::new(SIZE, 2048)?,
        identity: Identity { guest: "flush", uuid: Uuid::random()?, created_ns: 0 },
    };
    let provided = provide(&spec, &mut |_, _| {})?;
    let region = provided.region;
    let mut flusher = region.flusher()?.ok_or("a mirror has a flusher")?;
    let everything = FlushRange { offset: 0, len: region.guest_len() };
    let mut round = 0;
    for (name, one_in) in [("nothing", usize::MAX), ("one page of 100", 100), ("all pages", 1)] {
        let (mut times, mut written, mut changed) = (Vec::new(), 0, 0);
        for _ in 0..ROUNDS {
            round += 1;
            changed = change(region.mapping(), one_in, round);
            let before = flusher.counters().written_bytes;
            let start = Instant::now();
            flusher.add(everything)?;
            flusher.commit(0)?;
            times.push(start.elapsed());
            written = flusher.counters().written_bytes - before;
        }
        times.sort_unstable();
        println!(
            "{name:>16} changed ({changed} pages): {:.1} ms ({:.1}..{:.1}), {} KiB written",
            times[times.len() / 2].as_secs_f64() * 1e3,
            times[0].as_secs_f64() * 1e3,
            times[times.len() - 1].as_secs_f64() * 1e3,
            written >> 10,
        );
    }
    drop((flusher, region));
    for file in provided.made {
        std::fs::remove_file(file)?;
    }
    Ok(())
}
