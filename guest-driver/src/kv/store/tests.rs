use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::kv::extent::Bytes;
use crate::kv::fake::Fake;
use crate::kv::region::Recovering;
use crate::kv::request::BULK_MAX;

const SIZE: u32 = 2048;
const SECRET: [u64; 2] = [1, 2];

type Model = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

struct Rig {
    region: Fake,
    store: Store,
    model: Model,
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(step).collect()
}

fn bulk(value: &[u8]) -> Vec<u8> {
    let mut out = format!("${}\r\n", value.len()).into_bytes();
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
    out
}

impl Rig {
    fn new(buffers: u32, limit: u32) -> Rig {
        let region = Fake::new(buffers, SIZE, 256);
        let store = Store::new(&region, limit, SECRET);
        Rig { region, store, model: Model::new() }
    }

    /// Sets a value that arrives in segments of `segment` bytes.
    fn set_more(
        &mut self,
        key: &[u8],
        value: &[u8],
        segment: usize,
        expires_ms: u64,
        more: bool,
    ) -> Result<(), Refused> {
        self.store.admit(&mut self.region, std::iter::once((key.len(), value.len())))?;
        if self.store.packs(value.len()) {
            self.store.set_packed(&mut self.region, key, value, expires_ms, more)?;
        } else {
            let mut arrived = Vec::new();
            for (number, part) in bulk(value).chunks(segment).enumerate() {
                let Some(extent) = self.region.arrive(number as u16 * 7 % 90, part) else {
                    break;
                };
                self.store.hold(extent.buffer);
                arrived.push(extent);
            }
            let whole = arrived.len() == bulk(value).len().div_ceil(segment);
            let parts: Vec<Part<'_>> = arrived.iter().map(|extent| Part::Range(*extent)).collect();
            let done = if whole {
                let (store, region) = (&mut self.store, &mut self.region);
                store.set_bulk(region, key, value.len(), &parts, expires_ms, more)
            } else {
                Err(Refused::Starved)
            };
            for extent in arrived {
                self.store.unhold(&mut self.region, extent.buffer);
            }
            done?;
        }
        self.model.insert(key.to_vec(), (value.to_vec(), expires_ms));
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refused> {
        self.set_more(key, value, 1448, 0, false)
    }

    fn delete(&mut self, key: &[u8]) -> Result<bool, Refused> {
        let was = self.store.delete(&mut self.region, 0, key, false)?;
        assert_eq!(self.model.remove(key).is_some(), was);
        Ok(was)
    }

    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u64)> {
        let found = self.store.find(&self.region, 0, key)?;
        let value = match found.packed() {
            Some(extent) => self.region.bytes(extent).to_vec(),
            None => {
                let mut extents = Vec::new();
                self.store.bulk(&self.region, &found, &mut extents);
                let raw: Vec<u8> =
                    extents.iter().flat_map(|e| self.region.bytes(*e)).copied().collect();
                let head = raw.iter().position(|&byte| byte == b'\n').unwrap() + 1;
                assert_eq!(raw[..head], bulk(&raw[head..raw.len() - 2])[..head]);
                raw[head..raw.len() - 2].to_vec()
            }
        };
        assert_eq!(value.len(), found.len());
        Some((value, found.expires_ms()))
    }

    /// All that the store holds.
    fn contents(&mut self) -> Model {
        let (mut keys, mut cursor) = (Vec::new(), 0);
        loop {
            let found = &mut keys;
            cursor = self.store.scan(&self.region, 0, cursor, |key| found.push(key.to_vec()));
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(keys.len(), self.store.len());
        keys.into_iter().map(|key| (key.clone(), self.get(&key).expect("a key"))).collect()
    }

    fn commit(&mut self) -> Option<Ticket> {
        self.store.commit(&mut self.region)
    }

    /// Commits until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.commit();
            if !self.store.is_unfinished() {
                return;
            }
            self.region.reach(usize::MAX);
        }
        panic!("it never settles");
    }

    fn recover(&mut self) -> Recovered {
        let limit = self.store.limit;
        let (store, report) = Store::recover(&mut self.region, limit, SECRET).unwrap();
        self.store = store;
        report
    }

    fn restart(&mut self) -> Recovered {
        self.region.crash(|| false);
        self.recover()
    }
}

#[test]
fn values_of_all_sizes_come_back_and_after_a_restart_too() {
    let mut rig = Rig::new(4096, 3000);
    for (number, len) in
        [0, 1, 20, 1000, 1023, 1024, 1448, 5000, 65_536, BULK_MAX].iter().enumerate()
    {
        for segment in [1448, 700, 1100] {
            let key = format!("key {len} {segment}").into_bytes();
            rig.set_more(&key, &pattern(number as u64, *len), segment, 0, false).unwrap();
        }
    }
    assert_eq!(rig.contents(), rig.model);
    rig.settle();
    let report = rig.restart();
    assert_eq!((report.torn, report.damaged_records), (0, 0));
    assert_eq!((report.keys, report.leaked), (30, 0));
    assert_eq!(rig.contents(), rig.model);
    rig.store.clear(&mut rig.region).unwrap();
    rig.model.clear();
    rig.settle();
    assert_eq!(rig.contents(), rig.model);
    assert_eq!(rig.restart().keys, 0);
    rig.settle();
    assert!(rig.region.claimed() <= rig.store.pages.count + 1, "{}", rig.region.claimed());
    assert!(rig.store.pages.count < 20, "{} pages", rig.store.pages.count);
}

#[test]
fn a_value_stays_where_it_arrived_and_a_small_one_does_not() {
    let mut rig = Rig::new(256, 200);
    rig.set(b"large", &pattern(1, 1400)).unwrap();
    assert!(rig.store.stats().copied < 16, "only the extent is written");
    let used = rig.region.claimed();
    for number in 0..60u32 {
        rig.set(&number.to_le_bytes(), &[7; 20]).unwrap();
    }
    rig.settle();
    // 60 entries of 48 bytes in 2048 bytes each.
    assert!(rig.region.claimed() <= used + 2, "{} after {used}", rig.region.claimed());
}

#[test]
fn overwriting_for_ever_neither_fills_the_log_nor_the_buffers() {
    let mut rig = Rig::new(512, 300);
    for key in 0..100u32 {
        rig.set(&key.to_le_bytes(), &pattern(key.into(), 100)).unwrap();
    }
    rig.set(b"cold", &pattern(9, 40_000)).unwrap();
    for round in 0..20_000u64 {
        let key = (round % 100) as u32;
        // From time to time a large one, and a deletion.
        match round % 37 {
            0 => rig.set(&key.to_le_bytes(), &pattern(round, 6000)).unwrap(),
            1 => drop(rig.delete(&key.to_le_bytes()).unwrap()),
            _ => rig.set(&key.to_le_bytes(), &pattern(round, 100)).unwrap(),
        }
        if round % 3 == 0 {
            rig.commit();
        }
    }
    rig.settle();
    assert_eq!(rig.contents(), rig.model);
    let taken = 512 - rig.region.free();
    assert!(taken < 300, "{taken} buffers are taken");
    let moved = rig.store.stats().moved;
    assert!(moved < 4 * 20_000 * 140, "{moved} bytes were moved");
    assert_eq!(rig.restart().keys, rig.model.len());
    assert_eq!(rig.contents(), rig.model);
}

#[test]
fn many_keys_of_one_batch_each_are_packed_together_in_the_log() {
    // Ten times as many keys as the log has records.
    let mut rig = Rig::new(1024, 900);
    for key in 0..2560u32 {
        rig.set(&key.to_le_bytes(), b"value").unwrap();
        rig.commit();
    }
    rig.settle();
    assert_eq!(rig.contents(), rig.model);
    assert_eq!(rig.restart().keys, 2560);
    assert_eq!(rig.contents(), rig.model);
}

#[test]
fn a_full_store_refuses_loses_nothing_and_takes_deletions() {
    let mut rig = Rig::new(256, 100);
    let mut number = 0u32;
    let refused = loop {
        let done = rig.set(&number.to_le_bytes(), &pattern(number.into(), 3000));
        rig.settle();
        match done {
            Ok(()) => number += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::Full);
    assert!(number > 20, "{number} values in 100 buffers");
    assert_eq!(rig.contents(), rig.model);
    while rig.set(b"small", &pattern(number.into(), 30)).is_ok() {
        rig.commit();
        number += 1;
        assert!(number < 10_000 || rig.model.len() < 100, "a packed value may fit for ever");
        if number > 20_000 {
            break;
        }
    }
    let keys: Vec<_> = rig.model.keys().cloned().collect();
    for key in keys {
        rig.delete(&key).unwrap();
        rig.commit();
    }
    rig.settle();
    rig.set(b"again", &pattern(1, 50_000)).unwrap();
    rig.settle();
    assert_eq!(rig.contents(), rig.model);
}

#[test]
fn keys_end_and_are_swept_up() {
    let mut rig = Rig::new(128, 100);
    for key in 0..50u32 {
        rig.set_more(&key.to_le_bytes(), &pattern(1, 2000), 1448, 100 + u64::from(key), false)
            .unwrap();
    }
    assert_eq!(rig.store.mortal(), 50);
    assert!(rig.store.find(&rig.region, 99, &0u32.to_le_bytes()).is_some());
    assert!(rig.store.find(&rig.region, 100, &0u32.to_le_bytes()).is_none());
    for _ in 0..10 {
        rig.store.sweep(&mut rig.region, 124, 20);
    }
    rig.settle();
    assert_eq!((rig.store.len(), rig.store.stats().expired), (25, 25));
    let found = rig.store.find(&rig.region, 124, &30u32.to_le_bytes()).unwrap();
    rig.store.set_expiry(&mut rig.region, &found, 0).unwrap();
    rig.settle();
    rig.restart();
    assert_eq!((rig.store.len(), rig.store.mortal()), (25, 24));
    let found = rig.store.find(&rig.region, 1000, &30u32.to_le_bytes()).unwrap();
    assert_eq!(found.len(), 2000);
}

#[test]
fn damage_is_reported_and_not_served() {
    let mut rig = Rig::new(256, 200);
    rig.set(b"damaged", &pattern(1, 5000)).unwrap();
    rig.set(b"good", &pattern(2, 5000)).unwrap();
    rig.settle();
    // Said to be durable by a later run.
    rig.set(b"last", b"x").unwrap();
    rig.settle();
    let found = rig.store.find(&rig.region, 0, b"damaged").unwrap();
    let mut extents = Vec::new();
    rig.store.bulk(&rig.region, &found, &mut extents);
    rig.region.damage(extents[1].skip(100).first(1));
    let report = rig.restart();
    assert_eq!(report.damaged_keys, [b"damaged".to_vec()]);
    assert_eq!((report.torn, report.damaged_records, report.keys), (0, 0, 2));
    rig.model.remove(&b"damaged"[..]);
    assert_eq!(rig.contents(), rig.model);
    rig.settle();
    assert_eq!(rig.restart().damaged_keys, Vec::<Vec<u8>>::new());
    // A page: all of its keys are gone, and nothing is made up.
    let run = rig.region.records()[0].1.extent;
    rig.region.damage(run.skip(40).first(1));
    let report = rig.restart();
    assert_eq!(report.damaged_records, 1);
    assert_eq!(rig.get(b"damaged"), None);
}

/// One step of a random life.
#[derive(Clone, Debug)]
enum Step {
    Set { key: u8, len: usize, segment: usize },
    SetTwo { keys: [u8; 2], len: usize },
    Delete(u8),
    Persist(u8),
    Clear,
    Commit,
    Reach(usize),
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0u8..12;
    let len = prop_oneof![4 => 0usize..200, 2 => 1000usize..6000, 1 => 200_000usize..300_000];
    let segment = prop_oneof![Just(1448usize), 300usize..1448];
    let small = prop_oneof![0usize..200, 1024usize..3000];
    let step = prop_oneof![
        12 => (key.clone(), len, segment)
            .prop_map(|(key, len, segment)| Step::Set { key, len, segment }),
        3 => ([key.clone(), key.clone()], small).prop_map(|(keys, len)| Step::SetTwo { keys, len }),
        4 => key.clone().prop_map(Step::Delete),
        2 => key.prop_map(Step::Persist),
        1 => Just(Step::Clear),
        8 => Just(Step::Commit),
        6 => (1usize..4).prop_map(Step::Reach),
        3 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..120)
}

/// Lives the steps; whatever the crashes, what was acknowledged is there, nothing
/// is half, and nothing is made up.
fn live(steps: Vec<Step>, mut random: impl FnMut() -> u64) -> Result<(), TestCaseError> {
    let mut rig = Rig::new(1600, 1100);
    rig.region.at_once = false;
    // What the store held after each request since the last one acknowledged.
    let mut history = vec![rig.model.clone()];
    // For each epoch on its way, the length of the history when it ended.
    let mut epochs: Vec<usize> = Vec::new();
    let mut seed = 0;
    for step in steps {
        seed += 1;
        match step {
            Step::Set { key, len, segment } => {
                let value = pattern(seed, len);
                let _ = rig.set_more(&[b'k', key], &value, segment, seed, false);
            }
            Step::SetTwo { keys, len } => {
                let before = rig.model.clone();
                let value = pattern(seed, len);
                let both = std::iter::repeat_n((2, len), 2);
                if rig.store.admit(&mut rig.region, both).is_ok() {
                    let first = rig.set_more(&[b'k', keys[0]], &value, 1448, 0, true);
                    let second = rig.set_more(&[b'k', keys[1]], &value, 1448, 0, false);
                    prop_assert_eq!((first, second), (Ok(()), Ok(())));
                } else {
                    prop_assert_eq!(&rig.model, &before);
                }
            }
            Step::Delete(key) => drop(rig.delete(&[b'k', key])),
            Step::Persist(key) => {
                let key = [b'k', key];
                if let Some(found) = rig.store.find(&rig.region, 0, &key)
                    && rig.store.set_expiry(&mut rig.region, &found, 0).is_ok()
                {
                    rig.model.get_mut(&key[..]).unwrap().1 = 0;
                }
            }
            Step::Clear => {
                if rig.store.clear(&mut rig.region).is_ok() {
                    rig.model.clear();
                }
            }
            Step::Commit => {
                if rig.commit().is_some() {
                    epochs.push(history.len());
                }
            }
            Step::Reach(count) => {
                let count = count.min(rig.region.under_way());
                rig.region.reach(count);
                let end = epochs.drain(..count).next_back();
                if let Some(end) = end {
                    // Acknowledged up to here.
                    let gone = end - 1;
                    history.drain(..gone);
                    epochs.iter_mut().for_each(|end| *end -= gone);
                }
            }
            Step::Crash => {
                let sparse = random() % 4;
                rig.region.crash(|| match sparse {
                    0 => false,
                    1 => true,
                    2 => random().is_multiple_of(16),
                    _ => !random().is_multiple_of(16),
                });
                let report = rig.recover();
                prop_assert_eq!(report.damaged_records, 0);
                prop_assert_eq!(&report.damaged_keys, &Vec::<Vec<u8>>::new());
                let found = rig.contents();
                let known = history.iter().position(|state| *state == found);
                prop_assert!(
                    known.is_some(),
                    "found {:?}, which it never was",
                    found.iter().map(|(k, (v, e))| (k, v.len(), e)).collect::<Vec<_>>()
                );
                rig.model = found.clone();
                history = vec![found];
                epochs.clear();
                continue;
            }
        }
        if history.last() != Some(&rig.model) {
            history.push(rig.model.clone());
        }
    }
    prop_assert_eq!(&rig.contents(), &rig.model);
    // Nothing has leaked.
    rig.region.reach(usize::MAX);
    rig.settle();
    rig.store.clear(&mut rig.region).unwrap();
    rig.settle();
    // The page, the scrap buffer, and pages whose records are in the log.
    let spares = rig.store.pages.spares();
    let pages = rig.store.pages.count;
    prop_assert!(
        rig.region.free() + spares + pages + 1 >= 1600,
        "{} free, {spares} spare, {pages} pages",
        rig.region.free()
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_crash_what_was_acknowledged_is_there(steps in steps(), seed in 1u64..) {
        let mut state = seed;
        live(steps, move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })?;
    }
}
