//! Epochs, requests that wait for them, stored buffers and what is resumed.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use paste_abi::control::{FEATURE_FLUSH, FEATURE_STORE, FlushDomain};
use paste_abi::slot::{DURABLE, SHARE};
use paste_abi::{Flow, Request};
use paste_pmem::{Claims, FlushCounters, FlushError, FlushRange, Pool, RegionMedium};

use super::tests::{Bench, CHANNEL};
use super::*;
use crate::durability::MakeDurable;
use crate::sys::wake;

const REGION_LEN: u64 = 1 << 20;

/// Shows what it is asked, and does what the test says.
struct Puppet {
    asked: Sender<Vec<FlushRange>>,
    works: Receiver<bool>,
}

impl MakeDurable for Puppet {
    fn make_durable(&mut self, ranges: &[FlushRange]) -> Result<(), FlushError> {
        let _ = self.asked.send(ranges.to_vec());
        match self.works.recv() {
            Ok(true) => Ok(()),
            _ => Err(FlushError::Sync { source: std::io::Error::from_raw_os_error(5) }),
        }
    }

    fn counters(&self) -> FlushCounters {
        FlushCounters::default()
    }
}

/// A bench on a host that makes durable what it is asked, when the test says so.
struct Storage {
    /// Dropped first: a flusher that waits for it goes on.
    works: Sender<bool>,
    bench: Bench,
    asked: Receiver<Vec<FlushRange>>,
    buffers: Vec<u32>,
}

const fn range(offset: u64, len: u64) -> FlushRange {
    FlushRange { offset, len }
}

fn storage(granted: u32) -> Storage {
    let (asked, asks) = channel();
    let (works, work) = channel();
    let puppet = Box::new(Puppet { asked, works: work });
    let wakers = vec![wake::pair().unwrap().0];
    let durability = Durability::by_host("test", puppet, wakers).unwrap().remove(0);
    let pool = Pool::new(crate::testing::buffers(512));
    let (bench, buffers) = open(Bench::with(pool, durability), granted);
    Storage { bench, asked: asks, works, buffers }
}

/// Opens the channel with both features.
fn open(mut bench: Bench, granted: u32) -> (Bench, Vec<u32>) {
    bench.hello_with(4096, 1000, granted, FEATURE_FLUSH | FEATURE_STORE);
    assert_eq!(bench.hear().unwrap().0.kind, Kind::Welcome);
    let mut buffers = Vec::new();
    while buffers.len() < granted as usize {
        let (_, records) = bench.hear().expect("a GRANT");
        buffers.extend(records.iter().flat_map(|r| frame::indices(r).collect::<Vec<_>>()));
    }
    (bench, buffers)
}

impl Storage {
    fn settle(&mut self) -> usize {
        let Bench { channels, mem, engine, .. } = &mut self.bench;
        channels.settle(Now::default(), mem, engine)
    }

    /// One batch is asked for, and ends like this.
    fn sync(&mut self, works: bool) -> Vec<FlushRange> {
        self.settle();
        let ranges = self.asked.recv_timeout(Duration::from_secs(20)).expect("a batch");
        self.works.send(works).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while self.settle() == 0 {
            assert!(Instant::now() < end, "the batch is never answered");
            std::thread::yield_now();
        }
        ranges
    }

    fn hear_flushed(&mut self) -> Vec<(u64, Reason)> {
        let flushed = |slot: &Slot| {
            (slot.as_event() == Some(Event::Flushed))
                .then(|| (slot.cookie, Reason::from_u16(slot.len).unwrap()))
        };
        self.bench.hear_slots().iter().filter_map(flushed).collect()
    }

    fn durable(&self, index: usize) -> Slot {
        Slot { modifiers: DURABLE, ..Bench::data(self.buffers[index], 128, 10) }
    }
}

fn on(flow: u32, slot: Slot) -> Slot {
    Slot { flow: Flow(flow), ..slot }
}

#[test]
fn a_durable_send_goes_when_its_epoch_is_durable_and_not_before() {
    let mut s = storage(2);
    let (durable, plain) = (s.durable(0), on(2, Bench::data(s.buffers[1], 128, 10)));
    s.bench.slots(&[Slot::flush(64, 8), Slot::flush(4096, 100), Slot::seal(7, false), durable]);
    assert_eq!(s.bench.owner(s.buffers[0]), Owner::Stack, "the guest has given it away");
    s.settle();
    assert!(s.bench.engine.sent.is_empty());
    // Another flow does not wait.
    s.bench.slots(&[plain]);
    assert_eq!(s.bench.engine.sent, [s.buffers[1]]);
    assert!(s.bench.hear().is_none());
    assert_eq!(s.sync(true), [range(64, 8), range(4096, 100)]);
    assert_eq!(s.bench.engine.sent, [s.buffers[1], s.buffers[0]]);
    assert_eq!(s.hear_flushed(), [(7, Reason::Ok)]);
    let counters = s.bench.channels.counters();
    assert_eq!((counters.held, counters.flushed, counters.data_in), (1, 1, 2));
    // Everything is durable: nothing waits.
    s.buffers[0] = s.bench.mem.pool_mut().take(Owner::Guest(CHANNEL)).unwrap();
    let next = s.durable(0);
    s.bench.slots(&[next]);
    assert_eq!(s.bench.engine.sent.len(), 3);
}

#[test]
fn a_flow_keeps_its_order_behind_what_waits() {
    let mut s = storage(2);
    let slots = [
        Slot::flush(0, 8),
        Slot::seal(1, false),
        s.durable(0),
        Bench::data(s.buffers[1], 128, 10),
        Slot { len: 1, cookie: 5, ..Slot::request(Request::SetOpt, Flow(1)) },
        Slot::request(Request::Close, Flow(1)),
        Slot::request(Request::Close, Flow(2)),
    ];
    s.bench.slots(&slots);
    assert_eq!(s.bench.engine.asked, ["close 2"]);
    s.sync(true);
    let asked: Vec<_> =
        s.bench.engine.asked.iter().map(|what| what.split(' ').next().unwrap()).collect();
    assert_eq!(asked, ["close", "send", "send", "option", "close"]);
    s.bench.slots(&[Slot::request(Request::Abort, Flow(1))]);
    assert_eq!(s.bench.engine.asked.last().unwrap(), "abort 1", "nothing waits any more");
}

#[test]
fn epochs_of_one_turn_and_of_all_channels_share_a_batch() {
    let mut s = storage(3);
    let slots = [
        Slot::flush(0, 8),
        Slot::seal(1, false),
        s.durable(0),
        Slot::flush(64, 8),
        Slot::seal(2, false),
        s.durable(1),
    ];
    s.bench.slots(&slots);
    assert_eq!(s.sync(true), [range(0, 8), range(64, 8)]);
    assert_eq!(s.hear_flushed(), [(1, Reason::Ok), (2, Reason::Ok)]);
    assert_eq!(s.bench.engine.sent, s.buffers[..2]);
}

#[test]
fn a_failed_epoch_refuses_what_waits_for_it_and_the_host_goes_on() {
    let mut s = storage(4);
    let behind = Bench::data(s.buffers[1], 128, 10);
    let slots = [Slot::flush(0, 8), Slot::seal(1, false), s.durable(0), behind];
    s.bench.slots(&slots);
    s.sync(false);
    let heard = s.bench.hear_slots();
    assert_eq!((heard[0].as_event(), heard[0].len), (Some(Event::Flushed), 25));
    assert_eq!((heard[1].as_event(), heard[1].len), (Some(Event::Refused), 25));
    assert_eq!(heard[1].buf_idx, s.buffers[0]);
    assert_eq!(s.bench.owner(s.buffers[0]), Owner::Guest(CHANNEL));
    assert_eq!(s.bench.engine.sent, [s.buffers[1]], "what did not ask to be durable goes");

    // The guest does not know yet: its next epoch fails whatever the disk says.
    let late = s.durable(2);
    s.bench.slots(&[late, Slot::flush(64, 8), Slot::seal(2, false), s.durable(3)]);
    assert_eq!(s.bench.hear_slots()[0].len, Reason::NotDurable as u16);
    s.sync(true);
    let heard = s.bench.hear_slots();
    assert_eq!((heard[0].cookie, heard[0].len, heard[1].len), (2, 25, 25));
    assert_eq!(s.bench.channels.counters().not_durable, 3);

    // Now it does.
    let slots = [Slot::flush(0, 128), Slot::seal(3, true), s.durable(2)];
    s.bench.slots(&slots);
    s.sync(true);
    assert_eq!(s.hear_flushed(), [(3, Reason::Ok)]);
    assert_eq!(s.bench.engine.sent.last(), Some(&s.buffers[2]));
}

#[test]
fn ranges_outside_the_region_and_too_many_of_them_fail_their_epoch_alone() {
    let mut s = storage(1);
    let bad = [
        (REGION_LEN - 7, 8),
        (REGION_LEN, 1),
        (u64::MAX, 1),
        (0, u64::MAX),
        (1, u64::MAX),
        (u64::MAX, u64::MAX),
    ];
    for (ticket, (start, len)) in (1..).zip(bad) {
        s.bench.slots(&[
            Slot::flush(0, 8),
            Slot::flush(start, len),
            Slot::flush(8, 8),
            Slot::seal(ticket, true),
        ]);
        assert_eq!(s.settle(), 1);
        assert_eq!(s.hear_flushed(), [(ticket, Reason::BadRange)]);
    }
    s.bench.channels.settle(Now::default(), &mut s.bench.mem, &mut s.bench.engine);
    assert!(s.asked.try_recv().is_err(), "nothing of it was attempted");
    // The last byte, and nothing at all, are ranges.
    s.bench.slots(&[
        Slot::flush(REGION_LEN - 1, 1),
        Slot::flush(REGION_LEN, 0),
        Slot::seal(10, true),
    ]);
    assert_eq!(s.sync(true), [range(REGION_LEN - 1, 1)]);
    assert_eq!(s.hear_flushed(), [(10, Reason::Ok)]);
    let many = vec![Slot::flush(0, 8); 64];
    for _ in 0..sealing::RANGES_MAX / 64 {
        s.bench.slots(&many);
        while s.bench.hear().is_some() {}
    }
    s.bench.slots(&[Slot::flush(0, 8), Slot::seal(11, false)]);
    s.settle();
    assert_eq!(s.hear_flushed(), [(11, Reason::BadRange)]);
}

#[test]
fn a_channel_that_ends_takes_what_waits_with_it() {
    let mut s = storage(3);
    let shared = Slot { modifiers: SHARE | DURABLE, ..Bench::data(s.buffers[2], 128, 10) };
    let free = s.bench.mem.pool().free();
    let slots = [Slot::flush(0, 8), Slot::seal(1, false), s.durable(0), s.durable(1), shared];
    s.bench.slots(&slots);
    s.settle();
    s.bench.say(Kind::Bye, 0, 0, &[0; RECORD_LEN]);
    assert_eq!(s.bench.mem.pool().free(), free + 3);
    assert_eq!(s.bench.engine.released.len(), 3, "their flows forget them");
    // The batch ends, and nobody is told; the next opening starts anew.
    s.works.send(false).unwrap();
    let Storage { bench, asked, works, .. } = s;
    let (bench, buffers) = open(bench, 1);
    let mut s = Storage { bench, asked, works, buffers };
    while s.asked.recv_timeout(Duration::from_millis(50)).is_ok() {}
    let slots = [Slot::flush(64, 8), Slot::seal(1, false), s.durable(0)];
    s.bench.slots(&slots);
    assert_eq!(s.sync(true), [range(64, 8)]);
    assert_eq!(s.hear_flushed(), [(1, Reason::Ok)]);
}

#[test]
fn a_guest_that_seals_without_end_is_held_back_by_credit() {
    let mut s = storage(1);
    let seals: Vec<_> = (0..64).map(|ticket| Slot::seal(ticket, false)).collect();
    let mut frames = 0;
    // It goes on as long as it is let.
    while s.bench.channels.open_count() == 1 && frames < 1000 {
        s.bench.slots(&seals);
        s.settle();
        frames += 1;
        let _ = s.bench.channels.build(&mut s.bench.mem, &mut s.bench.engine, &mut [0; FRAME_SIZE]);
    }
    assert_eq!(s.bench.channels.open_count(), 0, "it went beyond what it was allowed");
    assert!(frames < 400, "{frames} frames of seals wait");
}

#[test]
fn what_was_not_asked_for_in_hello_is_not_there() {
    let (mut bench, buffers) = Bench::open(1);
    bench.slots(&[
        Slot::flush(0, 8),
        Slot::seal(1, false),
        Slot { buf_idx: buffers[0], ..Slot::request(Request::Store, Flow(0)) },
    ]);
    for slot in bench.hear_slots() {
        assert_eq!((slot.as_event(), slot.len), (Some(Event::Refused), 20));
    }
    // Modifiers that were not agreed are not looked at.
    bench.slots(&[Slot { modifiers: DURABLE | SHARE, ..Bench::data(buffers[0], 128, 1) }]);
    assert_eq!(bench.engine.sent, buffers);
    bench.say(Kind::Resume, bench.seq, 1000, &[0; RECORD_LEN]);
    assert_eq!(bench.hear_bye().0, Reason::BadFrame);
}

#[test]
fn a_region_without_a_domain_says_so_and_one_of_the_processors_needs_nothing() {
    let outcome = |domain| {
        let pool = Pool::new(crate::testing::buffers(64));
        let mut bench = Bench::with(pool, Durability::without_host(domain));
        bench.hello_with(4096, 1000, 0, FEATURE_FLUSH);
        let welcome = Welcome::read(bench.hear().unwrap().1.as_flattened()).unwrap();
        assert_eq!(welcome.features.get(), FEATURE_FLUSH);
        assert_eq!(FlushDomain::from_u32(welcome.flush_domain.get()), Some(domain));
        bench.slots(&[Slot::flush(0, 8), Slot::seal(1, false)]);
        let Bench { channels, mem, engine, .. } = &mut bench;
        channels.settle(Now::default(), mem, engine);
        bench.hear_slots()[0].len
    };
    assert_eq!(outcome(FlushDomain::None), Reason::NotDurable as u16);
    assert_eq!(outcome(FlushDomain::CpuCache), Reason::Ok as u16);
}

#[test]
fn a_stored_buffer_opens_its_window_and_is_shared_while_it_stays_the_guests() {
    let mut s = storage(2);
    let [stored, other] = [s.buffers[0], s.buffers[1]];
    let store = |buf_idx| Slot { buf_idx, ..Slot::request(Request::Store, Flow(0)) };
    let shared = |buf| Slot { modifiers: SHARE, ..Bench::data(buf, 128, 10) };
    s.bench.slots(&[store(stored), shared(stored), on(2, shared(stored))]);
    assert_eq!(s.bench.engine.released, [stored]);
    assert_eq!(s.bench.owner(stored), Owner::Guest(CHANNEL));
    assert_eq!(s.bench.channels.counters().data_in, 2);
    assert!(s.bench.engine.asked[1].contains("share: true"));
    // Acknowledged: the owner is the same.
    let acked = Slot::event(Event::Acked, Flow(1));
    s.bench.engine.deliver.push_back(Slot { buf_idx: stored, modifiers: SHARE, ..acked });
    assert_eq!(s.bench.hear_slots()[0].buf_idx, stored);
    assert_eq!(s.bench.owner(stored), Owner::Guest(CHANNEL));

    s.bench.slots(&[store(600), store(NO_BUFFER), shared(600), shared(NO_BUFFER)]);
    for slot in s.bench.hear_slots() {
        assert_eq!(slot.len, Reason::ForeignBuffer as u16);
    }
    // Given back while under way, it is the stack's until that has ended.
    s.bench.engine.sending.push(stored);
    s.bench.give_back(&[stored, other]);
    assert_eq!(s.bench.owner(stored), Owner::Stack);
    assert_eq!(s.bench.owner(other), Owner::Pool);
    assert_eq!(s.bench.engine.asked.last().unwrap(), &format!("retire {stored}"));
}

#[test]
fn a_shared_buffer_that_is_given_back_while_its_send_waits_is_not_sent() {
    let mut s = storage(1);
    let shared = Slot { modifiers: SHARE | DURABLE, ..Bench::data(s.buffers[0], 128, 10) };
    s.bench.slots(&[Slot::flush(0, 8), Slot::seal(1, false), shared]);
    s.bench.give_back(&s.buffers.clone());
    s.sync(true);
    let heard = s.bench.hear_slots();
    assert_eq!(heard[1].len, Reason::ForeignBuffer as u16);
    assert!(s.bench.engine.asked.is_empty());
}

#[test]
fn claimed_buffers_are_resumed_by_one_channel_and_by_nobody_else() {
    let region = crate::testing::region(8 << 20);
    let claims = Claims::new(region.geometry());
    let mut medium = RegionMedium::new(region.mapping().clone(), None);
    for buf in [5, 6, 900] {
        claims.set(&mut medium, buf).unwrap();
    }
    let count = region.geometry().buffer_count();
    let bench = Bench::with(region.pool(), Durability::without_host(FlushDomain::None));
    let (mut bench, granted) = open(bench, 16);
    assert!(granted.iter().all(|buf| ![5, 6, 900].contains(buf)));
    let other = bench.mem.pool_mut().take(Owner::Guest(CHANNEL + 1)).unwrap();
    let resume = |bench: &mut Bench, list: &[u32]| {
        let mut body = Vec::new();
        for chunk in list.chunks(INDICES_PER_RECORD) {
            let mut record = [0; RECORD_LEN];
            frame::write_indices(chunk, &mut record);
            body.extend(record);
        }
        bench.say(Kind::Resume, bench.seq, 1000, &body);
        bench.seq += 1;
        let (header, records) = bench.hear().unwrap();
        assert_eq!((header.kind, records.len()), (Kind::Resumed, body.len() / RECORD_LEN));
        records.iter().map(|r| frame::indices(r).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let free = (0..count).find(|&buf| bench.owner(buf) == Owner::Pool).unwrap();
    let list = [5, 5, other, free, count, u32::MAX - 1, 6, 900, 900, granted[0]];
    assert_eq!(resume(&mut bench, &list), [vec![5, 5, 6, 900], vec![900, granted[0]]]);
    assert_eq!(bench.owner(5), Owner::Guest(CHANNEL));
    assert_eq!((bench.owner(other), bench.owner(free)), (Owner::Guest(CHANNEL + 1), Owner::Pool));

    // The channel ends: what is claimed is nobody's, even while it is under way.
    claims.clear(&mut medium, 6).unwrap();
    bench.engine.sending = vec![5, 6];
    bench.say(Kind::Bye, 0, 0, &[0; RECORD_LEN]);
    assert_eq!([5, 900].map(|buf| bench.owner(buf)), [Owner::Claimed; 2]);
    assert_eq!(bench.owner(6), Owner::Stack, "given up, and still under way");
    assert_eq!(bench.owner(granted[0]), Owner::Pool);
    bench.engine.sending.clear();
    let (mut bench, _) = open(bench, 0);
    assert_eq!(resume(&mut bench, &[5, 6, 900]), [[5, 900]]);
    // One that is given up with its claim is still not the pool's.
    bench.give_back(&[5]);
    assert_eq!(bench.owner(5), Owner::Claimed);
    claims.clear(&mut medium, 900).unwrap();
    bench.give_back(&[900]);
    assert_eq!(bench.owner(900), Owner::Pool);
}
