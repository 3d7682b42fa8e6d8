//! Reading a log that may have been torn, or damaged.
//!
//! Records are walked from the header's head. Where none follows, either the log
//! ends, perhaps with records that were being written, or a record was damaged.
//! The two are told apart by what was known to be durable: each record and each
//! header says up to which number that was. A missing record that something
//! says was durable is damage, and the walk goes on at the next sound record.
//! Otherwise the log ends there: nobody was promised what was after.
//!
//! What lies beyond the end may look like records: those of the lap before have
//! other positions; those that an earlier generation wrote there and lost
//! have its number.

use std::collections::{HashMap, HashSet};

use crate::medium::Medium;
use crate::wal::format::{self, HEADER_LEN, HEADER_PAGE, Head, Header, Ring};
use crate::wal::{Damage, End, Loss, Piece, Place, Position, Record, VOID, WalError};

/// Damages that are named; more are counted.
const DAMAGES_MAX: usize = 1024;
/// Bytes looked through at once for the next sound record.
const SEARCH_LEN: usize = 64 << 10;

/// Both copies of the header, as they are.
pub(super) fn headers(
    medium: &(impl Medium + ?Sized),
    place: &Place,
) -> [Option<Result<Header, u32>>; 2] {
    [0, 1].map(|copy| {
        let mut bytes = [0; HEADER_LEN];
        medium.load(place.log.offset + copy * HEADER_PAGE, &mut bytes);
        Header::decode(&bytes)
    })
}

/// The newer of the sound copies of the header.
pub(super) fn header(medium: &(impl Medium + ?Sized), place: &Place) -> Result<Header, WalError> {
    let copies = headers(medium, place);
    let newest = copies.iter().flatten().flatten().max_by_key(|header| header.count);
    if let Some(header) = newest {
        return Ok(*header);
    }
    if let Some(Err(version)) = copies.iter().flatten().next() {
        return Err(WalError::Version(*version));
    }
    let blank = [0, 1].iter().all(|copy| {
        let mut bytes = [0; HEADER_LEN];
        medium.load(place.log.offset + copy * HEADER_PAGE, &mut bytes);
        bytes.iter().all(|&byte| byte == 0)
    });
    Err(if blank { WalError::Absent } else { WalError::Header })
}

/// A walk over the sound records of a log.
#[derive(Debug)]
pub(super) struct Walk {
    ring: Ring,
    header: Header,
    /// Where the next record is expected.
    at: Position,
    /// Where the walk ends at the latest.
    limit: u64,
    generation: u32,
    record: Vec<u8>,
}

impl Walk {
    pub(super) fn new(ring: Ring, header: Header, from: Position, limit: u64) -> Walk {
        Walk { ring, header, at: from, limit, generation: 0, record: Vec::new() }
    }

    pub(super) fn at(&self) -> Position {
        self.at
    }

    fn read(&mut self, medium: &(impl Medium + ?Sized), at: u64) -> Option<Head> {
        let head = self.ring.read(medium, self.header.salt, at, self.limit, &mut self.record)?;
        let Header { generation, generation_at, .. } = self.header;
        let present = match at >= generation_at {
            true => head.generation == generation,
            false => (self.generation..=generation).contains(&head.generation),
        };
        (present && head.position.sequence >= self.at.sequence).then_some(head)
    }

    fn accept(&mut self, head: &Head) {
        self.generation = head.generation;
        self.at = Position {
            at: head.position.at + head.len as u64,
            sequence: head.position.sequence + 1,
        };
    }

    /// The record that is expected next.
    fn step(&mut self, medium: &(impl Medium + ?Sized)) -> Option<Head> {
        let head = self.read(medium, self.at.at)?;
        if head.position.sequence != self.at.sequence {
            return None;
        }
        self.accept(&head);
        Some(head)
    }

    /// The next sound record, over whatever is between.
    fn search(&mut self, medium: &(impl Medium + ?Sized)) -> Option<Head> {
        let mut piece = vec![0; SEARCH_LEN];
        let mut from = self.at.at;
        while from < self.limit {
            let len = (self.limit - from).min(SEARCH_LEN as u64) as usize;
            self.ring.load(medium, from, &mut piece[..len]);
            // A record's position is its second word: only one that is right is
            // worth a closer look.
            let words = piece[..len].chunks_exact(8).enumerate();
            for (word, _) in words.filter(|(word, bytes)| {
                (from + *word as u64 * 8).wrapping_sub(8).to_le_bytes() == **bytes
            }) {
                let at = (from + word as u64 * 8).wrapping_sub(8);
                let head = if at >= self.at.at { self.read(medium, at) } else { None };
                if let Some(head) = head {
                    self.accept(&head);
                    return Some(head);
                }
            }
            from += len as u64;
        }
        None
    }

    /// The next sound record before the end of the walk.
    pub(super) fn next(&mut self, medium: &(impl Medium + ?Sized)) -> Option<Head> {
        self.step(medium).or_else(|| self.search(medium))
    }

    /// The record that was read last.
    pub(super) fn record(&self, head: &Head) -> Record<'_> {
        Record { head: *head, bytes: &self.record, damaged: &[] }
    }
}

/// What is known of a log after it was walked once.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) ring: Ring,
    pub(super) header: Header,
    /// Where the next record goes.
    pub(super) end: Position,
    /// The last number that was known to be durable.
    pub(super) durable: u64,
    /// Records that an earlier recovery has dropped.
    pub(super) voided: HashSet<u64>,
    pub(super) loss: Loss,
    pub(super) records: u64,
    pub(super) torn: bool,
}

pub(super) fn survey(medium: &(impl Medium + ?Sized), place: &Place) -> Result<Survey, WalError> {
    let ring = place.ring()?;
    let header = header(medium, place)?;
    let limit = header.head.at + ring.len();
    let mut walk = Walk::new(ring, header, header.head, limit);
    let mut survey = Survey {
        ring,
        header,
        end: header.head,
        durable: header.durable,
        voided: HashSet::new(),
        loss: Loss::default(),
        records: 0,
        torn: false,
    };
    // What any record beyond the first gap says.
    let mut beyond = None;
    loop {
        let expected = walk.at();
        let head = match walk.step(medium) {
            Some(head) => head,
            None => {
                let durable = *beyond.get_or_insert_with(|| {
                    let mut rest = Walk::new(ring, header, expected, limit);
                    rest.generation = walk.generation;
                    let mut durable = 0;
                    while let Some(head) = rest.next(medium) {
                        durable = durable.max(head.durable());
                        survey.torn = true;
                    }
                    durable
                });
                survey.durable = survey.durable.max(durable);
                if survey.durable < expected.sequence {
                    break;
                }
                let found = walk.search(medium);
                let next = found.map_or(survey.durable + 1, |head| head.position.sequence);
                survey.loss.add(Damage::Records {
                    first: expected.sequence,
                    last: next - 1,
                    at: expected.at % ring.len(),
                });
                let Some(head) = found else {
                    walk.at.sequence = next;
                    break;
                };
                head
            }
        };
        survey.records += 1;
        survey.durable = survey.durable.max(head.durable());
        if head.kind == VOID {
            let record = walk.record(&head);
            let numbers = record.tag().chunks_exact(8);
            survey.voided.extend(
                numbers
                    .map(|number| u64::from_le_bytes(number.try_into().expect("chunks of eight"))),
            );
        }
    }
    survey.end = walk.at();
    survey.torn |= {
        // A head without the rest leaves its position behind.
        let mut words = [0; 16];
        ring.load(medium, survey.end.at, &mut words);
        words[8..] == survey.end.at.to_le_bytes()
    } && survey.end.at < limit;
    Ok(survey)
}

/// Pieces that sound records say count no more.
#[derive(Debug, Default)]
struct Ended {
    /// All of these records and of those before.
    until: u64,
    pieces: HashMap<u64, Vec<std::ops::Range<u32>>>,
}

impl Ended {
    fn add(&mut self, end: End) {
        match end.range() {
            Some(pieces) => self.pieces.entry(end.sequence).or_default().push(pieces),
            None => self.until = self.until.max(end.sequence),
        }
    }

    fn contains(&self, sequence: u64, piece: usize) -> bool {
        let named = |ranges: &Vec<std::ops::Range<u32>>| {
            ranges.iter().any(|range| range.contains(&(piece as u32)))
        };
        sequence <= self.until || self.pieces.get(&sequence).is_some_and(named)
    }
}

/// What the records say of each other.
#[derive(Debug)]
pub(super) struct Verdict {
    ended: Ended,
    /// Numbers of the records that are left out, as their payload is not whole and
    /// nobody was promised them.
    pub(super) dropped: Vec<u64>,
    /// Where the first record is that is not known to be durable, or the end.
    pub(super) unknown: u64,
}

impl Survey {
    /// Finds out which pieces count. A record that nobody was promised does so only if
    /// its payload is whole, save what later records have ended, whose buffers
    /// may hold something else by now: so the newest is judged first.
    pub(super) fn judge(
        &self,
        medium: &(impl Medium + ?Sized),
        place: &Place,
        claimed: impl Fn(u32) -> bool,
    ) -> Verdict {
        let mut ended = Ended::default();
        let mut unknown = self.end.at;
        let mut open = Vec::new();
        let mut walk = Walk::new(self.ring, self.header, self.header.head, self.end.at);
        while let Some(head) = walk.next(medium) {
            let sequence = head.position.sequence;
            let record = walk.record(&head);
            if sequence > self.durable {
                unknown = unknown.min(head.position.at);
                if !self.is_void(&head) {
                    let pieces: Vec<Piece> = record.pieces().collect();
                    open.push((sequence, pieces, record.ends().collect::<Vec<End>>()));
                }
            } else if !self.is_void(&head) {
                record.ends().for_each(|end| ended.add(end));
            }
        }
        let mut dropped = Vec::new();
        for (sequence, pieces, ends) in open.into_iter().rev() {
            let whole = pieces.iter().enumerate().all(|(index, piece)| {
                ended.contains(sequence, index)
                    || (claimed(piece.buf) && place.holds(medium, piece))
            });
            if whole {
                ends.into_iter().for_each(|end| ended.add(end));
            } else {
                dropped.push(sequence);
            }
        }
        Verdict { ended, dropped, unknown }
    }

    /// Whether the record is the log's own, or was dropped by an earlier recovery.
    fn is_void(&self, head: &Head) -> bool {
        head.kind == VOID || self.voided.contains(&head.position.sequence)
    }

    /// Goes through the records that hold, oldest first, and adds what is
    /// damaged of their payload to the loss.
    pub(super) fn visit(
        &mut self,
        medium: &(impl Medium + ?Sized),
        place: &Place,
        verdict: &Verdict,
        claimed: impl Fn(u32) -> bool,
        mut visit: impl FnMut(Record<'_>, &[Piece]),
    ) {
        let dropped: HashSet<u64> = verdict.dropped.iter().copied().collect();
        let (mut damaged, mut pieces) = (Vec::new(), Vec::new());
        let mut walk = Walk::new(self.ring, self.header, self.header.head, self.end.at);
        while let Some(head) = walk.next(medium) {
            let sequence = head.position.sequence;
            if self.is_void(&head) || dropped.contains(&sequence) {
                continue;
            }
            damaged.clear();
            pieces.clear();
            let record = walk.record(&head);
            for (index, piece) in record.pieces().enumerate() {
                if verdict.ended.contains(sequence, index) {
                    continue;
                }
                pieces.push(piece);
                if !claimed(piece.buf) {
                    self.loss.add(Damage::Claim { sequence, buf: piece.buf });
                } else if !place.holds(medium, &piece) {
                    self.loss.add(Damage::Payload { sequence, piece });
                } else {
                    continue;
                }
                damaged.push(index as u16);
            }
            visit(Record { damaged: &damaged, ..record }, &pieces);
        }
    }
}

impl Loss {
    fn add(&mut self, damage: Damage) {
        self.count += 1;
        if self.named.len() < DAMAGES_MAX {
            self.named.push(damage);
        }
    }
}

/// What a log holds, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Sound records.
    pub records: u64,
    /// Number of the oldest record, and of the next that would be written.
    pub sequence: std::ops::Range<u64>,
    /// Bytes of the ring in use.
    pub used: u64,
    /// Bytes of the ring.
    pub capacity: u64,
    /// Last number known to have been durable before the crash; 0 for none.
    pub durable: u64,
    /// Whether records that were being written were cut off.
    pub torn: bool,
    /// Records that nobody was promised and whose payload is not whole.
    pub dropped: u64,
    /// How often the log was created or recovered.
    pub generation: u32,
    /// Payload that counts, in bytes.
    pub payload: u64,
    /// What was promised and is not there.
    pub loss: Loss,
}

/// Reads a log and everything that it names, and changes nothing. `claimed` is
/// asked of buffers.
///
/// # Errors
/// [`WalError`] where there is no log to read.
pub fn verify(
    medium: &(impl Medium + ?Sized),
    place: &Place,
    claimed: impl Fn(u32) -> bool,
) -> Result<Report, WalError> {
    inspect(medium, place, claimed, |_, _| ())
}

/// As [`verify`], and hands out the records that hold, oldest first, each with those
/// of its pieces that count yet, damaged ones included.
///
/// # Errors
/// [`WalError`] where there is no log to read.
pub fn inspect(
    medium: &(impl Medium + ?Sized),
    place: &Place,
    claimed: impl Fn(u32) -> bool,
    mut visit: impl FnMut(Record<'_>, &[Piece]),
) -> Result<Report, WalError> {
    let mut survey = survey(medium, place)?;
    let verdict = survey.judge(medium, place, &claimed);
    let mut payload = 0;
    survey.visit(medium, place, &verdict, claimed, |record, pieces| {
        payload += pieces.iter().map(|piece| u64::from(piece.len)).sum::<u64>();
        visit(record, pieces);
    });
    Ok(Report {
        records: survey.records,
        sequence: survey.header.head.sequence..survey.end.sequence,
        used: survey.end.at - survey.header.head.at,
        capacity: survey.ring.len(),
        durable: survey.durable,
        torn: survey.torn,
        dropped: verdict.dropped.len() as u64,
        generation: survey.header.generation,
        payload,
        loss: survey.loss,
    })
}

impl Place {
    pub(super) fn ring(&self) -> Result<Ring, WalError> {
        Ring::new(self.log).ok_or(WalError::Small { len: self.log.len })
    }

    /// Where a piece lies in the guest's mapping, if it lies in a buffer.
    pub fn locate(&self, piece: &Piece) -> Option<u64> {
        let size = u64::from(self.buffer_size);
        let inside = u64::from(piece.offset) + u64::from(piece.len) <= size;
        let start = u64::from(piece.buf) * size;
        let exists = start + size <= self.buffers.len;
        (inside && exists).then(|| self.buffers.offset + start + u64::from(piece.offset))
    }

    /// Whether the bytes that `piece` names are those that were recorded.
    pub fn holds(&self, medium: &(impl Medium + ?Sized), piece: &Piece) -> bool {
        self.sum(medium, piece).is_some_and(|csum| crate::checksum::equal(csum, piece.csum))
    }

    /// The checksum of what `piece` names now, if it lies in a buffer.
    pub fn sum(&self, medium: &(impl Medium + ?Sized), piece: &Piece) -> Option<u16> {
        let start = self.locate(piece)?;
        Some(crate::checksum::of_loaded(piece.len.into(), |at, out| {
            medium.load(start + at as u64, out);
        }))
    }
}

impl<'a> Record<'a> {
    /// Where it is.
    pub fn position(&self) -> Position {
        self.head.position
    }

    /// Its sequence number.
    pub fn sequence(&self) -> u64 {
        self.head.position.sequence
    }

    /// When its request arrived.
    pub fn time(&self) -> u64 {
        self.head.time
    }

    /// The application's word.
    pub fn kind(&self) -> u16 {
        self.head.kind
    }

    /// The application's bytes.
    pub fn tag(&self) -> &'a [u8] {
        format::tag(self.bytes, &self.head)
    }

    /// What the record names, in order.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = Piece> + use<'a> {
        let bytes = self.bytes;
        (0..self.head.pieces).map(move |index| format::piece(bytes, index))
    }

    /// What it has ended.
    pub fn ends(&self) -> impl ExactSizeIterator<Item = End> + use<'a> {
        let (bytes, head) = (self.bytes, self.head);
        (0..head.ends).map(move |index| format::end(bytes, &head, index))
    }

    /// Which of its pieces, by their place in [`Record::pieces`], were promised and
    /// are lost or damaged. They must not be served.
    pub fn damaged(&self) -> &[u16] {
        self.damaged
    }
}
