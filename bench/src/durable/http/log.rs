//! The log of the epoll server: a ring in memory that requests are copied into, and
//! with a file the same ring on a disk, which is written and synced once per batch.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use paste_pmem::checksum;
use pasted::demo::epoll_server::RequestLog;

/// Bytes before a request: sequence number, length, checksum.
const HEAD_LEN: usize = 16;
/// Records begin at multiples of it.
const ALIGNMENT: usize = 8;

/// The ring.
#[derive(Debug)]
pub struct RingLog {
    ring: Box<[u8]>,
    file: Option<File>,
    sequence: u64,
    /// What the file does not have yet: from its beginning to where the next record
    /// goes, after what was before the ring's last end.
    fresh: Range<usize>,
    before_end: Range<usize>,
}

impl RingLog {
    /// A ring of `len` bytes, with a file that is written in full before it is used,
    /// so that a sync has nothing but data to write.
    pub fn new(len: usize, file: Option<&Path>) -> io::Result<RingLog> {
        // Not zero: pages that nobody has written to would be found when it is used.
        let ring: Box<[u8]> = vec![0xff; len].into();
        let create = |path| -> io::Result<File> {
            let mut file = File::create_new(path)?;
            file.write_all(&ring)?;
            file.sync_all()?;
            Ok(file)
        };
        let file = file.map(create).transpose()?;
        Ok(RingLog { ring, file, sequence: 0, fresh: 0..0, before_end: 0..0 })
    }

    fn put(&mut self, bytes: &[u8]) {
        let at = self.fresh.end;
        self.ring[at..at + bytes.len()].copy_from_slice(bytes);
        self.fresh.end = at + bytes.len();
    }
}

impl RequestLog for RingLog {
    fn append(&mut self, bytes: &[u8]) {
        let len = (HEAD_LEN + bytes.len()).next_multiple_of(ALIGNMENT);
        if self.fresh.end + len > self.ring.len() {
            self.before_end = self.fresh.clone();
            self.fresh = 0..0;
        }
        let end = self.fresh.end + len;
        self.sequence += 1;
        self.put(&self.sequence.to_le_bytes());
        self.put(&(bytes.len() as u32).to_le_bytes());
        self.put(&u32::from(checksum::of(bytes)).to_le_bytes());
        self.put(bytes);
        self.fresh.end = end;
    }

    fn commit(&mut self) -> io::Result<()> {
        let ranges = [std::mem::take(&mut self.before_end), self.fresh.clone()];
        self.fresh.start = self.fresh.end;
        let Some(file) = &self.file else {
            return Ok(());
        };
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            file.write_all_at(&self.ring[range.clone()], range.start as u64)?;
        }
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_ring_after_every_commit() {
        let path = std::env::temp_dir().join(format!("paste-bench-ring-{}", std::process::id()));
        let mut log = RingLog::new(1000, Some(&path)).unwrap();
        for number in 0..50 {
            log.append(&[number; 93]);
            if number % 3 == 0 {
                log.commit().unwrap();
                assert_eq!(std::fs::read(&path).unwrap(), *log.ring, "after record {number}");
            }
        }
        // Eight records of 112 bytes to a round: the last is the second of its round.
        let at = 112;
        assert_eq!(log.ring[at..at + 8], 50u64.to_le_bytes());
        assert_eq!(log.ring[at + HEAD_LEN..at + HEAD_LEN + 93], [49; 93]);
        std::fs::remove_file(path).unwrap();
    }
}
