//! The pool against a model: every buffer has exactly one owner, and the lists
//! and counters say the same as the table.

use std::os::fd::AsFd;
use std::sync::Arc;

use paste_abi::CHANNELS_MAX;
use paste_pmem::{
    Backing, Buffers, Geometry, HugePages, Identity, Mapping, Owner, OwnerError, Pool, Reclaimed,
    Region, SIZE_MIN, Uuid,
};
use proptest::prelude::*;

const COUNT: u32 = 12;
/// Buffers of the smallest region when they are as large as can be.
const REGION_COUNT: u32 = 29;

fn buffers(count: u32) -> Buffers {
    let geometry = Geometry::new(SIZE_MIN, 2048).unwrap();
    let identity = Identity { guest: "model", uuid: Uuid([1; 16]), created_ns: 0 };
    let region = Region::create(&Backing::Memory(HugePages::No), geometry, &identity).unwrap();
    let start = geometry.buffers().offset as usize;
    Buffers::new(Arc::clone(region.mapping()), start, 2048, count).unwrap()
}

#[test]
fn buffers_beyond_the_mapping_cannot_be_made() {
    let buffers = buffers(1);
    let geometry = Geometry::new(SIZE_MIN, 2048).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(geometry.file_len()).unwrap();
    let mapping = Arc::new(Mapping::from_fd(file.as_fd(), 0, 8192, true).unwrap());
    let new = |start, size, count| Buffers::new(Arc::clone(&mapping), start, size, count);
    assert!(new(0, 2048, 4).is_some());
    assert!(new(4096, 2048, 3).is_none());
    assert!(new(0, 2048, u32::MAX).is_none());
    assert!(new(0, usize::MAX, 2).is_none());
    assert!(new(usize::MAX, 2048, 1).is_none());
    assert!(new(0, 3000, 1).is_none());
    assert_eq!(buffers.size(), 2048);
}

#[derive(Clone, Debug)]
enum Step {
    Take(Owner),
    Give(u32, Owner),
    Transfer(u32, Owner, Owner),
    Reclaim(u16),
    /// The guest sets or clears a claim bit.
    Claim(u32, bool),
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        1 => Just(Owner::Pool),
        2 => Just(Owner::Port),
        2 => Just(Owner::Stack),
        2 => Just(Owner::Claimed),
        1 => Just(Owner::Elsewhere),
        4 => (0u16..3).prop_map(Owner::Guest),
        1 => prop_oneof![
            Just(CHANNELS_MAX - 1), Just(CHANNELS_MAX), Just(u16::MAX)
        ].prop_map(Owner::Guest),
    ]
}

fn index() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0..COUNT, 1 => Just(COUNT), 1 => Just(u32::MAX)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => owner().prop_map(Step::Take),
        2 => (index(), owner()).prop_map(|(b, o)| Step::Give(b, o)),
        6 => (index(), owner(), owner()).prop_map(|(b, f, t)| Step::Transfer(b, f, t)),
        1 => (0u16..4).prop_map(Step::Reclaim),
        3 => (0..COUNT, any::<bool>()).prop_map(|(b, set)| Step::Claim(b, set)),
    ]
}

fn valid(owner: Owner) -> bool {
    match owner {
        Owner::Guest(channel) => channel < CHANNELS_MAX,
        owner => owner != Owner::Elsewhere,
    }
}

/// What the pool should know of one buffer, and what the guest says of it.
#[derive(Clone, Copy, Debug)]
struct Model {
    owner: Owner,
    /// It has been a guest's since it was free.
    guests: bool,
    claimed: bool,
}

impl Model {
    fn go(&mut self, to: Owner) {
        let kept = to == Owner::Pool && self.guests && self.claimed;
        self.owner = if kept { Owner::Claimed } else { to };
        self.guests = match self.owner {
            Owner::Pool => false,
            Owner::Guest(_) | Owner::Claimed => true,
            Owner::Port | Owner::Stack | Owner::Elsewhere => self.guests,
        };
    }
}

fn model_move(model: &mut [Model], buf: u32, from: Owner, to: Owner) -> bool {
    let ok = valid(from)
        && valid(to)
        && from != Owner::Pool
        && model.get(buf as usize).is_some_and(|is| is.owner == from);
    if ok {
        model[buf as usize].go(to);
    }
    ok
}

fn check(pool: &Pool, model: &[Model]) {
    let count = |owner: Owner| model.iter().filter(|is| is.owner == owner).count() as u32;
    for (buf, is) in model.iter().enumerate() {
        assert_eq!(pool.owner(buf as u32), Some(is.owner));
    }
    for owner in [Owner::Pool, Owner::Port, Owner::Stack, Owner::Claimed] {
        assert_eq!(pool.count_of(owner), count(owner));
    }
    assert_eq!(pool.free(), count(Owner::Pool));
    for channel in 0..CHANNELS_MAX {
        let mut held: Vec<u32> = pool.held(channel).collect();
        assert_eq!(held.len(), pool.held(channel).len());
        held.sort_unstable();
        let want: Vec<u32> =
            (0..COUNT).filter(|&b| model[b as usize].owner == Owner::Guest(channel)).collect();
        assert_eq!(held, want);
        assert_eq!(pool.count_of(Owner::Guest(channel)), want.len() as u32);
    }
}

fn region() -> Region {
    let geometry = Geometry::new(SIZE_MIN, 65536).unwrap();
    let identity = Identity { guest: "model", uuid: Uuid([1; 16]), created_ns: 0 };
    Region::create(&Backing::Memory(HugePages::No), geometry, &identity).unwrap()
}

/// Writes a claim bit as a guest that owns the memory can, at any moment.
fn claim(region: &Region, buf: u32, set: bool) {
    let at = region.geometry().claims().offset as usize + buf as usize / 8;
    let mut byte = [0];
    assert!(region.mapping().read_at(at, &mut byte));
    byte[0] = byte[0] & !(1 << (buf % 8)) | u8::from(set) << (buf % 8);
    assert!(region.mapping().write_at(at, &byte));
}

proptest! {
    #[test]
    fn every_buffer_has_one_owner(
        claimed in prop::collection::vec(any::<bool>(), REGION_COUNT as usize),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let region = region();
        prop_assert_eq!(region.geometry().buffer_count(), REGION_COUNT);
        // Beyond the model's, all are claimed and none is asked for.
        for buf in 0..REGION_COUNT {
            claim(&region, buf, buf >= COUNT || claimed[buf as usize]);
        }
        let mut pool = region.pool();
        prop_assert_eq!(pool.count_of(Owner::Claimed) + pool.free(), REGION_COUNT);
        for buf in COUNT..REGION_COUNT {
            pool.transfer(buf, Owner::Claimed, Owner::Port).unwrap();
        }
        let mut model: Vec<Model> = claimed[..COUNT as usize]
            .iter()
            .map(|&claimed| Model {
                owner: if claimed { Owner::Claimed } else { Owner::Pool },
                guests: claimed,
                claimed,
            })
            .collect();
        let others = REGION_COUNT - COUNT;
        let checked = |pool: &Pool, model: &[Model]| {
            let mut all = model.to_vec();
            let other = Model { owner: Owner::Port, guests: true, claimed: true };
            all.extend(vec![other; others as usize]);
            check(pool, &all);
        };
        checked(&pool, &model);
        for step in steps {
            match step {
                Step::Take(owner) => {
                    let taken = pool.take(owner);
                    let may = valid(owner)
                        && !matches!(owner, Owner::Pool | Owner::Claimed)
                        && model.iter().any(|is| is.owner == Owner::Pool);
                    prop_assert_eq!(taken.is_some(), may);
                    if let Some(buf) = taken {
                        prop_assert_eq!(model[buf as usize].owner, Owner::Pool);
                        model[buf as usize].go(owner);
                    }
                }
                Step::Give(buf, from) if buf < COUNT => {
                    let ok = model_move(&mut model, buf, from, Owner::Pool);
                    prop_assert_eq!(pool.give(buf, from).is_ok(), ok);
                }
                Step::Transfer(buf, from, to) if buf < COUNT => {
                    let ok = model_move(&mut model, buf, from, to);
                    prop_assert_eq!(pool.transfer(buf, from, to).is_ok(), ok);
                }
                Step::Give(_, owner) | Step::Transfer(_, owner, _) => {
                    let outside = pool.transfer(u32::MAX, owner, Owner::Pool);
                    prop_assert!(outside.is_err());
                }
                Step::Reclaim(channel) => {
                    let mut want = Reclaimed::default();
                    for is in &mut model {
                        if is.owner == Owner::Guest(channel) {
                            is.go(Owner::Pool);
                            if is.claimed { want.kept += 1 } else { want.freed += 1 }
                        }
                    }
                    prop_assert_eq!(pool.reclaim(channel), want);
                }
                Step::Claim(buf, set) => {
                    claim(&region, buf, set);
                    model[buf as usize].claimed = set;
                }
            }
            checked(&pool, &model);
        }
        // Whatever happened, the pool gives out what is free, each buffer once.
        while let Some(buf) = pool.take(Owner::Port) {
            prop_assert_eq!(model[buf as usize].owner, Owner::Pool);
            model[buf as usize].go(Owner::Port);
        }
        checked(&pool, &model);
        prop_assert_eq!(pool.free(), 0);
    }
}

#[test]
fn what_was_claimed_is_handed_out_to_nobody_until_it_is_named() {
    let region = region();
    for buf in [0, 2] {
        claim(&region, buf, true);
    }
    let mut pool = region.pool();
    let taken: Vec<u32> = std::iter::from_fn(|| pool.take(Owner::Port)).collect();
    assert_eq!(taken[..3], [1, 3, 4]);
    assert_eq!(taken.len() as u32, REGION_COUNT - 2);
    assert_eq!(pool.take(Owner::Claimed), None);

    pool.transfer(2, Owner::Claimed, Owner::Guest(1)).unwrap();
    assert!(pool.held(1).eq([2]));
    // Released: the bit is cleared, then the buffer given back.
    claim(&region, 2, false);
    pool.give(2, Owner::Guest(1)).unwrap();
    assert_eq!(pool.take(Owner::Stack), Some(2));
}

#[test]
fn a_stored_value_outlives_its_channel_while_it_is_being_sent() {
    let region = region();
    let mut pool = region.pool();
    let [value, plain, arrived] =
        [Owner::Guest(0), Owner::Guest(0), Owner::Stack].map(|owner| pool.take(owner).unwrap());
    for buf in [value, arrived] {
        claim(&region, buf, true);
    }
    for buf in [value, plain] {
        pool.transfer(buf, Owner::Guest(0), Owner::Stack).unwrap();
    }
    assert_eq!(pool.reclaim(0), Reclaimed { freed: 0, kept: 0 });
    for buf in [value, plain, arrived] {
        pool.give(buf, Owner::Stack).unwrap();
    }
    assert_eq!(pool.owner(value), Some(Owner::Claimed));
    assert_eq!(pool.owner(plain), Some(Owner::Pool));
    // A guest cannot withhold what it never had.
    assert_eq!(pool.owner(arrived), Some(Owner::Pool));
}

#[test]
fn the_buffer_given_back_last_is_taken_first() {
    let mut pool = Pool::new(buffers(COUNT));
    let first: Vec<_> = (0..3).filter_map(|_| pool.take(Owner::Stack)).collect();
    assert_eq!(first, [0, 1, 2]);
    pool.give(1, Owner::Stack).unwrap();
    pool.give(0, Owner::Stack).unwrap();
    assert_eq!(pool.take(Owner::Port), Some(0));
    assert_eq!(pool.take(Owner::Port), Some(1));
    assert_eq!(pool.take(Owner::Port), Some(3));
}

#[test]
fn each_refusal_names_its_reason() {
    let mut pool = Pool::new(buffers(COUNT));
    let buf = pool.take(Owner::Guest(2)).unwrap();
    assert_eq!(
        pool.transfer(COUNT, Owner::Guest(2), Owner::Stack),
        Err(OwnerError::OutOfRange { buf: COUNT, count: COUNT })
    );
    assert_eq!(
        pool.transfer(buf, Owner::Guest(3), Owner::Stack),
        Err(OwnerError::Foreign { buf, is: Owner::Guest(2), named: Owner::Guest(3) })
    );
    assert_eq!(
        pool.transfer(buf, Owner::Guest(2), Owner::Guest(CHANNELS_MAX)),
        Err(OwnerError::NoChannel { channel: CHANNELS_MAX })
    );
    assert_eq!(
        pool.transfer(buf + 1, Owner::Pool, Owner::Stack),
        Err(OwnerError::FromPool { buf: buf + 1 })
    );
    // Given twice: the second time it is the pool's.
    pool.give(buf, Owner::Guest(2)).unwrap();
    assert_eq!(
        pool.give(buf, Owner::Guest(2)),
        Err(OwnerError::Foreign { buf, is: Owner::Pool, named: Owner::Guest(2) })
    );
}

#[test]
fn the_parts_of_a_pool_have_every_buffer_once() {
    let geometry = Geometry::new(SIZE_MIN, 65_536).unwrap();
    let identity = Identity { guest: "model", uuid: Uuid([1; 16]), created_ns: 0 };
    let region = Region::create(&Backing::Memory(HugePages::No), geometry, &identity).unwrap();
    for claimed in [3, 20] {
        claim(&region, claimed, true);
    }
    let total = region.pool().buffers().count();
    for parts in [1, 2, 3, 8, 1000] {
        let mut pools = region.pool().split(parts);
        assert_eq!(pools.len() as u32, parts.min(total));
        assert_eq!(pools.iter().map(Pool::count).sum::<u32>(), total);
        let [least, most] = [0, 1].map(|more| total / pools.len() as u32 + more);
        assert!(pools.iter().all(|pool| (least..=most).contains(&pool.count())), "{parts}");
        let mut seen = vec![false; total as usize];
        for pool in &mut pools {
            while let Some(buf) = pool.take(Owner::Guest(1)) {
                assert!(!std::mem::replace(&mut seen[buf as usize], true), "{buf} in two parts");
            }
            assert_eq!(pool.take(Owner::Elsewhere), None);
        }
        let left: Vec<_> = (0..total).filter(|&buf| !seen[buf as usize]).collect();
        assert_eq!(left, [3, 20], "claimed, and handed out by nobody");
        for buf in 0..total {
            let owners: Vec<_> = pools.iter().map(|pool| pool.owner(buf).unwrap()).collect();
            let here = owners.iter().filter(|&&owner| owner != Owner::Elsewhere).count();
            assert_eq!(here, 1, "buffer {buf} of {parts}: {owners:?}");
            // Nobody moves what is another's, whatever it is said to be.
            for (pool, owner) in pools.iter_mut().zip(owners) {
                if owner == Owner::Elsewhere {
                    for from in [Owner::Guest(1), Owner::Claimed, Owner::Elsewhere, Owner::Pool] {
                        assert!(pool.transfer(buf, from, Owner::Stack).is_err());
                    }
                }
            }
        }
        // All that was taken comes back to where it was.
        for pool in &mut pools {
            let before = pool.count_of(Owner::Guest(1));
            assert_eq!(pool.reclaim(1), Reclaimed { freed: before, kept: 0 });
            assert_eq!(pool.free() + pool.count_of(Owner::Claimed), pool.count());
        }
    }
}

#[test]
fn no_two_parts_of_a_pool_have_claims_in_one_word() {
    let geometry = Geometry::new(SIZE_MIN, 2048).unwrap();
    let identity = Identity { guest: "model", uuid: Uuid([1; 16]), created_ns: 0 };
    let region = Region::create(&Backing::Memory(HugePages::No), geometry, &identity).unwrap();
    let total = region.pool().buffers().count();
    for parts in [2, 3, 7, 8] {
        let pools = region.pool().split(parts);
        assert!(total / parts >= 64);
        for word in 0..total.div_ceil(64) {
            let bufs = (word * 64..total.min((word + 1) * 64)).collect::<Vec<_>>();
            let has =
                |pool: &&Pool| bufs.iter().any(|&buf| pool.owner(buf) != Some(Owner::Elsewhere));
            assert_eq!(pools.iter().filter(has).count(), 1, "word {word} of {parts}");
        }
        let counts: Vec<_> = pools.iter().map(Pool::count).collect();
        let fair = total / parts;
        assert!(counts.iter().all(|count| count.abs_diff(fair) <= 128), "{counts:?}");
    }
}

#[test]
fn an_empty_pool_gives_nothing() {
    let mut pool = Pool::new(buffers(0));
    assert_eq!(pool.take(Owner::Port), None);
    assert_eq!(pool.free(), 0);
    assert_eq!(pool.owner(0), None);
}

/// The sum as RFC 1071 section 4.1 computes it, byte by byte.
fn reference_sum(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

proptest! {
    #[test]
    fn the_sum_is_that_of_rfc_1071(
        bytes in prop::collection::vec(any::<u8>(), 0..=2048),
        offset in 0usize..2048,
    ) {
        let buffers = buffers(1);
        let bytes = &bytes[..bytes.len().min(2048 - offset)];
        buffers.write(0, offset, bytes).unwrap();
        prop_assert_eq!(buffers.sum(0, offset, bytes.len()), Ok(reference_sum(bytes)));
    }
}

#[test]
fn sums_at_their_edges() {
    let buffers = buffers(2);
    assert_eq!(buffers.sum(0, 0, 2048), Ok(0));
    assert_eq!(buffers.sum(0, 2048, 0), Ok(0));
    buffers.write(1, 0, &[0xff; 2048]).unwrap();
    assert_eq!(buffers.sum(1, 0, 2048), Ok(0xffff));
    // RFC 1071 section 3's example, whose sum is ddf2.
    buffers.write(0, 1, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).unwrap();
    assert_eq!(buffers.sum(0, 1, 8), Ok(0xddf2));
}

#[test]
fn a_copy_moves_bytes_between_buffers_and_within_one() {
    let buffers = buffers(2);
    buffers.write(0, 2040, b"01234567").unwrap();
    buffers.copy(0, 2042, 1, 5, 6).unwrap();
    buffers.copy(1, 5, 1, 7, 6).unwrap();
    let mut bytes = [0; 8];
    buffers.read(1, 5, &mut bytes).unwrap();
    assert_eq!(&bytes, b"23234567");
}

#[test]
fn nothing_outside_a_buffer_is_reached() {
    let buffers = buffers(COUNT);
    let huge = [0, 1, 2047, 2048, 2049, usize::MAX - 1, usize::MAX];
    for buf in [0, COUNT - 1, COUNT, u32::MAX] {
        for offset in huge {
            for len in huge {
                let inside = buf < COUNT && offset.checked_add(len).is_some_and(|end| end <= 2048);
                assert_eq!(buffers.as_ptr(buf, offset, len).is_ok(), inside);
                assert_eq!(buffers.sum(buf, offset, len).is_ok(), inside);
                assert_eq!(buffers.copy(buf, offset, 0, 0, len).is_ok(), inside);
                assert_eq!(buffers.copy(0, 0, buf, offset, len).is_ok(), inside);
            }
        }
    }
    assert!(buffers.read(COUNT - 1, 2000, &mut [0; 49]).is_err());
    assert!(buffers.write(COUNT, 0, &[0]).is_err());
}
