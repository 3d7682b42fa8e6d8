//! The log of a region that nobody serves, and what it says of the claims.

use paste_pmem::index::{self, IndexError};
use paste_pmem::wal::{self, Piece, Place, Record, WalError};
use paste_pmem::{Claims, Geometry, Medium};
use serde::Serialize;

/// Faults that are listed; more are counted.
const FAULTS_MAX: usize = 100;

/// What there is to say of a log.
#[derive(Serialize)]
pub(super) struct Log {
    /// `none`, `sound` or `damaged`.
    pub(super) state: &'static str,
    /// Records that hold.
    pub(super) records: u64,
    /// Number of the oldest record, and of the next one.
    pub(super) first: u64,
    pub(super) next: u64,
    /// Bytes of the log in use, and of all of it.
    pub(super) used: u64,
    pub(super) capacity: u64,
    /// Payload that counts, in bytes, and the buffers that hold it.
    pub(super) payload: u64,
    pub(super) buffers: u32,
    /// Records that were being written and nobody was promised.
    pub(super) torn: bool,
    pub(super) dropped: u64,
    /// Claims without a record; `None` where the log does not tell.
    pub(super) leaked: Option<u32>,
    #[serde(skip)]
    pub(super) faults: Vec<String>,
    /// Bit `b % 64` of word `b / 64`: payload that counts is in buffer `b`.
    #[serde(skip)]
    pub(super) live: Vec<u64>,
}

impl Log {
    /// Reads the log and everything that it names.
    pub(super) fn read(
        medium: &(impl Medium + ?Sized),
        geometry: &Geometry,
        mut visit: impl FnMut(Record<'_>, &[Piece]),
    ) -> Log {
        let claims = Claims::new(geometry);
        let mut live = vec![0u64; geometry.buffer_count().div_ceil(64) as usize];
        let claimed = |buf| claims.contains(medium, buf);
        let report = match geometry.log().len {
            0 => Err(WalError::Absent),
            _ => wal::inspect(medium, &Place::from(geometry), claimed, |record, pieces| {
                for piece in pieces {
                    if let Some(word) = live.get_mut(piece.buf as usize / 64) {
                        *word |= 1 << (piece.buf % 64);
                    }
                }
                visit(record, pieces);
            }),
        };
        let mut log = Log {
            state: "none",
            records: 0,
            first: 0,
            next: 0,
            used: 0,
            capacity: 0,
            payload: 0,
            buffers: live.iter().map(|word| word.count_ones()).sum(),
            torn: false,
            dropped: 0,
            leaked: None,
            faults: Vec::new(),
            live,
        };
        let report = match report {
            Ok(report) => report,
            Err(WalError::Absent) => return log,
            Err(error) => {
                log.state = "damaged";
                log.faults.push(error.to_string());
                return log;
            }
        };
        log.state = if report.loss.count == 0 { "sound" } else { "damaged" };
        log.faults.extend(report.loss.named.iter().take(FAULTS_MAX).map(ToString::to_string));
        if report.loss.count > FAULTS_MAX as u64 {
            log.faults.push(format!("and {} more", report.loss.count - FAULTS_MAX as u64));
        }
        log.records = report.records;
        (log.first, log.next) = (report.sequence.start, report.sequence.end);
        (log.used, log.capacity, log.payload) = (report.used, report.capacity, report.payload);
        (log.torn, log.dropped) = (report.torn, report.dropped);
        // An application with an index may hold buffers that only the index
        // names; and where records are lost, so may be what they named.
        if report.loss.count == 0 && !has_index(medium, geometry) {
            log.leaked = Some(log.leaks(medium, geometry).count() as u32);
        }
        log
    }

    /// Claimed buffers that no record names.
    pub(super) fn leaks(
        &self,
        medium: &(impl Medium + ?Sized),
        geometry: &Geometry,
    ) -> impl Iterator<Item = u32> {
        Claims::new(geometry)
            .iter(medium)
            .filter(|&buf| self.live[buf as usize / 64] >> (buf % 64) & 1 == 0)
    }

    pub(super) fn text(&self) -> String {
        let Log { records, first, next, used, capacity, payload, buffers, dropped, .. } = self;
        let mut text = match self.state {
            "none" => return "none".to_owned(),
            state => format!(
                "{state}, {records} records from {first} to {next}, {used} of {capacity} bytes, \
                 {payload} bytes of payload in {buffers} buffers"
            ),
        };
        if self.torn || *dropped > 0 {
            text.push_str(", an end that was being written and was never promised");
        }
        text
    }
}

/// What is wrong with the index, if there is one, and with what it names.
pub(super) fn index_faults(medium: &(impl Medium + ?Sized), geometry: &Geometry) -> Option<String> {
    if !has_index(medium, geometry) {
        return None;
    }
    let claims = Claims::new(geometry);
    let claimed = |buf| claims.contains(medium, buf);
    match index::verify(medium, geometry.index(), &Place::from(geometry), claimed) {
        Ok(report) if report.damaged == 0 => None,
        Ok(report) => Some(format!(
            "{} pieces of payload that the index names are damaged or not claimed",
            report.damaged
        )),
        Err(IndexError::Absent) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Whether anything was ever stored in the index.
fn has_index(medium: &(impl Medium + ?Sized), geometry: &Geometry) -> bool {
    let part = geometry.index();
    let mut page = [0; 4096];
    let head = &mut page[..part.len.min(4096) as usize];
    medium.load(part.offset, head);
    head.iter().any(|&byte| byte != 0)
}
