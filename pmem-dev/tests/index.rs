//! The index against a `BTreeMap`, with commits, a full index, and recovery between
//! any two steps.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use paste_pmem::crash::Recorder;
use paste_pmem::index::{Index, IndexError, KEY_MAX, PIECES_MAX, verify};
use paste_pmem::wal::{Piece, Place};
use paste_pmem::{Medium, Part, checksum};
use proptest::prelude::*;

const PLACE: Place = Place {
    log: Part { offset: 0, len: 0 },
    buffers: Part { offset: 0, len: 64 * 64 },
    buffer_size: 64,
};

const fn part(pages: u64) -> Part {
    Part { offset: 4096, len: pages * 4096 }
}

fn medium(pages: u64) -> Recorder {
    Recorder::prompt(vec![0; 4096 + pages as usize * 4096])
}

fn piece(buf: u32) -> Piece {
    Piece { buf: buf % 64, offset: 0, len: 8, csum: checksum::of(&[0; 8]) }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u8>, Vec<u32>),
    Remove(usize),
    Commit,
    Recover,
    Scan(Vec<u8>),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(0u8..4, 1..4),
        2 => prop::collection::vec(any::<u8>(), 1..40),
        3 => (any::<u8>(), 300..=KEY_MAX).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (key(), prop::collection::vec(any::<u32>(), 0..=PIECES_MAX))
            .prop_map(|(key, pieces)| Step::Insert(key, pieces)),
        6 => any::<usize>().prop_map(Step::Remove),
        3 => Just(Step::Commit),
        1 => Just(Step::Recover),
        1 => key().prop_map(Step::Scan),
    ]
}

type Model = BTreeMap<Vec<u8>, Vec<Piece>>;

fn content(index: &Index, medium: &Recorder, from: &[u8]) -> Vec<(Vec<u8>, Vec<Piece>)> {
    let mut found = Vec::new();
    index
        .scan(medium, from, |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn same(index: &Index, medium: &Recorder, model: &Model) {
    assert_eq!(index.len(), model.len() as u64);
    let found = content(index, medium, b"");
    assert!(found.iter().map(|(k, v)| (k, v)).eq(model.iter()), "{found:?} {model:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_is_a_sorted_map(steps in prop::collection::vec(step(), 1..250), pages in 40u64..160) {
        let mut medium = medium(pages);
        let mut index = Index::create(&mut medium, part(pages), PLACE).unwrap();
        let mut model = Model::new();
        let mut committed = model.clone();
        for step in steps {
            match step {
                Step::Insert(key, bufs) => {
                    let value: Vec<Piece> = bufs.into_iter().map(piece).collect();
                    match index.insert(&mut medium, &key, &value) {
                        Ok(old) => prop_assert_eq!(old, model.insert(key, value)),
                        Err(IndexError::Full { .. }) => same(&index, &medium, &model),
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Step::Remove(at) => {
                    let key = model.keys().nth(at % (model.len() + 1)).cloned();
                    let key = key.unwrap_or(b"none".to_vec());
                    match index.remove(&medium, &key) {
                        Ok(old) => prop_assert_eq!(old, model.remove(&key)),
                        Err(IndexError::Full { .. }) => {}
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                    prop_assert_eq!(&index.get(&medium, &key).unwrap(), &model.get(&key).cloned());
                }
                Step::Commit => {
                    prop_assert!(index.commit(&mut medium).is_some());
                    committed.clone_from(&model);
                }
                Step::Recover => {
                    let part = part(pages);
                    let report = verify(&medium, part, &PLACE, |_| true).unwrap();
                    let opened = Index::recover(&mut medium, part, PLACE, |_| true).unwrap();
                    prop_assert_eq!(opened.1.torn, 0);
                    index = opened.0;
                    model.clone_from(&committed);
                    prop_assert_eq!(report.entries, model.len() as u64);
                    prop_assert_eq!((report.damaged, report.torn), (0, 0));
                    // Every page is in the tree or free.
                    prop_assert_eq!(report.used + index.free_pages() as u64, pages - 1);
                    same(&index, &medium, &model);
                }
                Step::Scan(from) => {
                    let found = content(&index, &medium, &from);
                    let right: Vec<_> =
                        model.range(from..).map(|(k, v)| (k.clone(), v.clone())).collect();
                    prop_assert_eq!(found, right);
                }
            }
        }
        same(&index, &medium, &model);
    }

    #[test]
    fn no_image_panics(
        at in prop::collection::vec((0usize..40 * 4096, any::<u8>()), 1..60),
        keys in 1u32..60,
    ) {
        let mut medium = filled(40, keys);
        for (at, byte) in at {
            medium.store(4096 + at as u64, &[byte]);
        }
        let _ = verify(&medium, part(40), &PLACE, |_| true);
        if let Ok((index, _)) = Index::recover(&mut medium, part(40), PLACE, |_| true) {
            index.scan(&medium, b"", |_, _| ControlFlow::Continue(())).unwrap();
        }
    }
}

fn filled(pages: u64, keys: u32) -> Recorder {
    let mut medium = medium(pages);
    let mut index = Index::create(&mut medium, part(pages), PLACE).unwrap();
    for number in 0..keys {
        let key = format!("{number:0100}");
        index.insert(&mut medium, key.as_bytes(), &[piece(number)]).unwrap();
    }
    index.commit(&mut medium).unwrap();
    medium
}

#[test]
fn a_full_index_keeps_what_it_has_and_gets_room_back() {
    let mut medium = medium(64);
    let mut index = Index::create(&mut medium, part(64), PLACE).unwrap();
    let mut model = Model::new();
    for number in 0u32.. {
        let key = number.to_be_bytes().repeat(60);
        match index.insert(&mut medium, &key, &[piece(number)]) {
            Ok(_) => drop(model.insert(key, vec![piece(number)])),
            Err(IndexError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        index.commit(&mut medium).unwrap();
    }
    assert!(model.len() > 200, "{}", model.len());
    same(&index, &medium, &model);
    // Every key can be removed from a full index.
    for key in model.keys() {
        assert!(index.remove(&medium, key).unwrap().is_some());
        index.commit(&mut medium).unwrap();
    }
    assert!(index.is_empty());
    index.commit(&mut medium).unwrap();
    assert_eq!(index.free_pages(), 63);
}

#[test]
fn each_fault_has_its_error() {
    let mut medium = medium(40);
    let recover = |medium: &mut Recorder, part| {
        Index::recover(medium, part, PLACE, |_| true).map(|_| ()).unwrap_err()
    };
    assert_eq!(recover(&mut medium, part(40)), IndexError::Absent);
    assert_eq!(recover(&mut medium, part(2)), IndexError::Small { len: 8192 });
    let mut index = Index::create(&mut medium, part(40), PLACE).unwrap();
    let mut insert = |key: &[u8], value: &[Piece]| {
        index.insert(&mut medium, key, value).map(|_| ()).unwrap_err()
    };
    assert_eq!(insert(b"", &[]), IndexError::Key(0));
    assert_eq!(insert(&[1; KEY_MAX + 1], &[]), IndexError::Key(KEY_MAX + 1));
    assert_eq!(insert(b"k", &[piece(1); PIECES_MAX + 1]), IndexError::Pieces(PIECES_MAX + 1));
    let outside = Piece { buf: 64, ..piece(0) };
    assert_eq!(insert(b"k", &[outside]), IndexError::Piece(outside));

    let mut medium = filled(40, 20);
    for slot in 0..4 {
        medium.store(4096 + slot * 64, &[7; 48]);
    }
    assert_eq!(recover(&mut medium, part(40)), IndexError::Roots);
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let clean = filled(40, 60);
    let used = verify(&clean, part(40), &PLACE, |_| true).unwrap();
    assert!(used.used > 2);
    let mut noticed = 0;
    for at in (4096 + 4096..4096 + 40 * 4096).step_by(97) {
        let mut medium = Recorder::prompt(clean.image().to_vec());
        let mut byte = [0];
        medium.load(at, &mut byte);
        medium.store(at, &[byte[0] ^ 4]);
        match verify(&medium, part(40), &PLACE, |_| true) {
            Ok(report) if report.torn == 0 => assert_eq!(report, used),
            // The only commit is the last one: nothing proves that it was promised.
            Ok(report) => {
                assert_eq!((report.torn, report.entries), (1, 0));
                noticed += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(noticed > 20, "{noticed}");
    // With a commit after it there is proof, and no way round.
    let mut medium = Recorder::prompt(clean.image().to_vec());
    let (mut index, _) = Index::recover(&mut medium, part(40), PLACE, |_| true).unwrap();
    index.commit(&mut medium).unwrap();
    let root = (1..40u64)
        .map(|page| 4096 + page * 4096)
        .find(|&at| {
            let mut kind = [0; 2];
            medium.load(at + 4, &mut kind);
            kind == [2, 0]
        })
        .unwrap();
    medium.store(root + 40, &[0xee]);
    let damage = verify(&medium, part(40), &PLACE, |_| true).unwrap_err();
    assert!(matches!(damage, IndexError::Damaged { .. }), "{damage}");
}
