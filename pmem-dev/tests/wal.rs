//! The log without crashes: what is written is read again, damage is named, a
//! full log loses nothing, and no image makes it panic.

use std::collections::VecDeque;

use paste_pmem::crash::Recorder;
use paste_pmem::wal::{
    AppendError, Damage, ENDS_MAX, End, Entry, PIECES_MAX, Piece, Place, Position, Recovery,
    Scratch, TAG_MAX, VOID, Wal, WalError, verify,
};
use paste_pmem::{Medium, Part, checksum};
use proptest::prelude::*;

const BUFFERS: u32 = 64;
const RING: u64 = 4096;

const fn place(ring: u64) -> Place {
    Place {
        log: Part { offset: 0, len: 8192 + ring },
        buffers: Part { offset: 8192 + ring, len: BUFFERS as u64 * 64 },
        buffer_size: 64,
    }
}

fn medium(ring: u64) -> Recorder {
    Recorder::prompt(vec![0; (8192 + ring) as usize + BUFFERS as usize * 64])
}

fn create(ring: u64) -> (Recorder, Wal) {
    let mut medium = medium(ring);
    let wal = Wal::create(&mut medium, place(ring), 0x1234_5678_9abc).unwrap();
    (medium, wal)
}

fn piece(medium: &mut Recorder, ring: u64, buf: u32, bytes: &[u8]) -> Piece {
    let piece = Piece { buf, offset: 3, len: bytes.len() as u16, csum: checksum::of(bytes) };
    medium.store(place(ring).locate(&piece).unwrap(), bytes);
    piece
}

#[derive(Clone, Debug, PartialEq)]
struct Read {
    position: Position,
    time: u64,
    kind: u16,
    pieces: Vec<Piece>,
    ends: Vec<End>,
    tag: Vec<u8>,
    damaged: Vec<u16>,
}

fn recover(medium: &mut Recorder, ring: u64) -> (Wal, Recovery, Vec<Read>) {
    let mut found = Vec::new();
    let (mut wal, recovery) = Wal::recover(
        medium,
        place(ring),
        |_| true,
        |record| {
            found.push(Read {
                position: record.position(),
                time: record.time(),
                kind: record.kind(),
                pieces: record.pieces().collect(),
                ends: record.ends().collect(),
                tag: record.tag().to_vec(),
                damaged: record.damaged().to_vec(),
            });
        },
    )
    .unwrap();
    while !wal.is_ready(medium) {
        wal.commit(medium);
    }
    (wal, recovery, found)
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u32>, Vec<u8>, u16),
    Commit,
    Truncate(usize),
    Recover,
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (
            prop::collection::vec(0..BUFFERS, 0..5),
            prop::collection::vec(any::<u8>(), 0..300),
            0..VOID,
        )
            .prop_map(|(bufs, tag, kind)| Step::Append(bufs, tag, kind)),
        4 => Just(Step::Commit),
        2 => (0usize..8).prop_map(Step::Truncate),
        1 => Just(Step::Recover),
        1 => Just(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn it_is_a_queue_of_records(steps in prop::collection::vec(step(), 1..150)) {
        let (mut medium, mut wal) = create(RING);
        let mut model: VecDeque<Read> = VecDeque::new();
        for (time, step) in (0u64..).zip(steps) {
            match step {
                Step::Append(bufs, tag, kind) => {
                    let pieces: Vec<Piece> = bufs
                        .into_iter()
                        .map(|buf| piece(&mut medium, RING, buf, &[buf as u8; 7]))
                        .collect();
                    let ends = [End::record(time), End::pieces(time, 1, 2)];
                    let ends = &ends[..time as usize % 3];
                    let entry = Entry { kind, time, pieces: &pieces, ends, tag: &tag };
                    let len = Wal::record_len(pieces.len(), ends.len(), tag.len());
                    let free = wal.free();
                    match wal.append(&mut medium, &entry) {
                        Ok(position) => model.push_back(Read {
                            position, time, kind, pieces, ends: ends.to_vec(), tag, damaged: vec![],
                        }),
                        Err(error) => {
                            prop_assert_eq!(error, AppendError::Full { needed: len, free });
                            prop_assert!(len > free);
                        }
                    }
                }
                Step::Commit => { wal.commit(&mut medium); }
                Step::Truncate(count) => {
                    let to = model.get(count).map_or(wal.tail(), |read| read.position);
                    model.drain(..count.min(model.len()));
                    wal.truncate(to);
                    for _ in 0..3 {
                        wal.commit(&mut medium);
                    }
                    prop_assert!(!wal.is_truncating());
                    prop_assert_eq!(wal.free(), RING - (wal.tail().at - to.at));
                }
                Step::Recover => {
                    let (again, recovery, found) = recover(&mut medium, RING);
                    prop_assert_eq!(&recovery.loss.named, &vec![]);
                    prop_assert_eq!(recovery.dropped, 0);
                    prop_assert_eq!(again.tail(), wal.tail());
                    prop_assert_eq!(found, Vec::from(model.clone()));
                    wal = again;
                }
                Step::Read => {
                    let mut at = wal.head();
                    let mut scratch = Scratch::default();
                    for read in &model {
                        let (record, next) = wal.read(&medium, at, &mut scratch).unwrap();
                        prop_assert_eq!(record.position(), read.position);
                        prop_assert_eq!(record.tag(), &read.tag[..]);
                        at = next;
                    }
                    prop_assert!(wal.read(&medium, at, &mut scratch).is_none());
                }
            }
        }
    }

    #[test]
    fn no_image_panics(
        bytes in prop::collection::vec((0usize..14_000, any::<u8>()), 1..80),
        records in 1u64..30,
    ) {
        let (mut medium, _) = filled(records);
        for (at, byte) in bytes {
            medium.store(at as u64, &[byte]);
        }
        let _ = verify(&medium, &place(RING), |_| true);
        let _ = Wal::recover(&mut medium, place(RING), |_| true, |record| {
            assert!(record.tag().len() <= TAG_MAX);
        });
    }
}

/// A log of which everything is promised.
fn filled(records: u64) -> (Recorder, Vec<Position>) {
    let (mut medium, mut wal) = create(RING);
    let mut positions = Vec::new();
    for number in 0..records {
        let piece = piece(&mut medium, RING, number as u32, &number.to_be_bytes());
        let entry = Entry { kind: 1, time: number, pieces: &[piece], ends: &[], tag: b"key" };
        positions.push(wal.append(&mut medium, &entry).unwrap());
        wal.commit(&mut medium);
    }
    // A header that says so.
    let (mut wal, ..) = recover(&mut medium, RING);
    let last = Entry { kind: 2, time: 0, pieces: &[], ends: &[], tag: b"" };
    wal.append(&mut medium, &last).unwrap();
    wal.commit(&mut medium);
    (medium, positions)
}

#[test]
fn damage_of_what_was_promised_is_named_and_not_passed_over() {
    let (clean, positions) = filled(20);
    let flipped = |at: u64| {
        let mut medium = Recorder::prompt(clean.image().to_vec());
        let mut byte = [0];
        medium.load(at, &mut byte);
        medium.store(at, &[byte[0] ^ 0x10]);
        medium
    };
    for (number, position) in positions.iter().enumerate() {
        // A bit of the record, wherever it is.
        for byte in [0, 4, 9, 17, 25, 30, 41, 45, 50, 60] {
            let mut medium = flipped(8192 + position.at + byte);
            let report = verify(&medium, &place(RING), |_| true).unwrap();
            let sequence = position.sequence;
            let damage = Damage::Records { first: sequence, last: sequence, at: position.at };
            assert_eq!(report.loss.named, [damage], "byte {byte}");
            let (_, recovery, found) = recover(&mut medium, RING);
            assert_eq!(recovery.loss.named, [damage]);
            assert_eq!(found.len(), 20);
            assert!(found.iter().all(|read| read.position != *position));
        }
        // A bit of the payload.
        let payload = place(RING).buffers.offset + number as u64 * 64 + 3 + 7;
        let mut medium = flipped(payload);
        let (_, recovery, found) = recover(&mut medium, RING);
        assert_eq!(found[number].damaged, [0]);
        assert_eq!(found.iter().filter(|read| !read.damaged.is_empty()).count(), 1);
        let sequence = position.sequence;
        let named = Damage::Payload { sequence, piece: found[number].pieces[0] };
        assert_eq!(recovery.loss.named, [named]);
    }
    // A claim that is gone.
    let report = verify(&clean, &place(RING), |buf| buf != 7).unwrap();
    assert_eq!(report.loss.named, [Damage::Claim { sequence: 8, buf: 7 }]);
    assert_eq!(report.payload, 20 * 8);
    assert_eq!((report.records, report.sequence.clone()), (21, 1..22));
}

#[test]
fn what_was_ended_may_be_anything() {
    let (mut medium, mut wal) = create(RING);
    let old = piece(&mut medium, RING, 1, b"old");
    let both = [old, piece(&mut medium, RING, 2, b"stays")];
    let entry = Entry { kind: 1, time: 0, pieces: &both, ends: &[], tag: b"" };
    let first = wal.append(&mut medium, &entry).unwrap();
    wal.commit(&mut medium);
    let ends = [End::pieces(first.sequence, 0, 1)];
    wal.append(&mut medium, &Entry { ends: &ends, pieces: &[], ..entry }).unwrap();
    wal.commit(&mut medium);
    // The buffer was given back, and a NIC wrote to it.
    piece(&mut medium, RING, 1, b"new request");
    let report = verify(&medium, &place(RING), |_| true).unwrap();
    assert_eq!((report.loss.count, report.payload, report.dropped), (0, 5, 0));
    // The other one still counts; nobody proved that it was promised.
    piece(&mut medium, RING, 2, b"torn");
    assert_eq!(verify(&medium, &place(RING), |_| true).unwrap().dropped, 0);
    let (_, recovery, found) = recover(&mut medium, RING);
    assert_eq!((recovery.loss.count, found[0].damaged.clone()), (1, vec![1]));
    // Everything so far is void.
    let (mut wal, ..) = recover(&mut medium, RING);
    let ends = [End::until(wal.tail().sequence - 1)];
    wal.append(&mut medium, &Entry { ends: &ends, pieces: &[], ..entry }).unwrap();
    wal.commit(&mut medium);
    assert_eq!(verify(&medium, &place(RING), |_| true).unwrap().loss.count, 0);
}

#[test]
fn each_fault_has_its_error() {
    let fault = |ring: u64, medium: &mut Recorder| {
        Wal::recover(medium, place(ring), |_| true, |_| ()).map(|_| ()).unwrap_err()
    };
    assert_eq!(fault(RING, &mut medium(RING)), WalError::Absent);
    assert_eq!(fault(64, &mut medium(64)), WalError::Small { len: 8256 });
    let (mut medium, mut wal) = create(RING);
    let entry = Entry { kind: 1, time: 0, pieces: &[], ends: &[], tag: b"" };
    let mut refused = |entry: Entry<'_>| wal.append(&mut medium, &entry).unwrap_err();
    assert_eq!(refused(Entry { kind: VOID, ..entry }), AppendError::Kind);
    let outside = Piece { buf: BUFFERS, offset: 0, len: 1, csum: 0 };
    assert_eq!(refused(Entry { pieces: &[outside], ..entry }), AppendError::Piece(outside));
    let long = [0; TAG_MAX + 1];
    for tag in [&long[..], &long[..RING as usize]] {
        let error = refused(Entry { tag, ..entry });
        assert!(matches!(error, AppendError::TooLong { .. }), "{error}");
    }
    let inside = Piece { buf: 0, ..outside };
    let pieces = vec![inside; PIECES_MAX + 1];
    assert!(matches!(refused(Entry { pieces: &pieces, ..entry }), AppendError::TooLong { .. }));
    let ends = vec![End::record(1); ENDS_MAX + 1];
    assert!(matches!(refused(Entry { ends: &ends, ..entry }), AppendError::TooLong { .. }));
    medium.store(0, &[1; 68]);
    medium.store(4096, &[1; 68]);
    assert_eq!(fault(RING, &mut medium), WalError::Header);

    let mut waiting = Recorder::waiting(vec![0; 20_000]);
    let mut wal = Wal::create(&mut waiting, place(RING), 1).unwrap();
    assert_eq!(wal.append(&mut waiting, &entry).unwrap_err(), AppendError::NotReady);
    waiting.reach_all();
    wal.commit(&mut waiting);
    waiting.reach_all();
    wal.append(&mut waiting, &entry).unwrap();
}

#[test]
fn a_value_of_512_kib_is_one_record() {
    let (mut medium, mut wal) = create(64 << 10);
    let pieces: Vec<Piece> =
        (0..400).map(|n| piece(&mut medium, 64 << 10, n % BUFFERS, &[n as u8; 40])).collect();
    let pieces: Vec<Piece> = pieces[336..].iter().cycle().take(400).copied().collect();
    let tag = [9; 1024];
    let entry = Entry { kind: 1, time: 5, pieces: &pieces, ends: &[], tag: &tag };
    wal.append(&mut medium, &entry).unwrap();
    wal.commit(&mut medium);
    let (_, recovery, found) = recover(&mut medium, 64 << 10);
    assert_eq!((recovery.loss.count, recovery.dropped), (0, 0));
    assert_eq!((&found[0].pieces, &found[0].tag[..]), (&pieces, &tag[..]));
}

#[test]
fn another_log_may_take_its_place_and_its_records_are_gone() {
    let (mut medium, _) = filled(10);
    let mut wal = Wal::create(&mut medium, place(RING), 99).unwrap();
    assert!(wal.is_ready(&medium));
    let entry = Entry { kind: 3, time: 0, pieces: &[], ends: &[], tag: b"first" };
    wal.append(&mut medium, &entry).unwrap();
    wal.commit(&mut medium);
    let (_, recovery, found) = recover(&mut medium, RING);
    assert_eq!((found.len(), recovery.loss.count), (1, 0));
    assert_eq!(found[0].tag, b"first");
}
