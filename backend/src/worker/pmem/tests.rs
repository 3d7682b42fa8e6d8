//! Requests through a real ring, and flushes that succeed or fail as the test says.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use paste_abi::vhost_user::{
    CONFIG_MAX, ConfigHeader, F_PROTOCOL_FEATURES, ShMemConfig, VringState, protocol, request as id,
};
use paste_pmem::{FlushCounters, FlushError, FlushRange};
use rustix::io::{pread, pwrite};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::durability::MakeDurable;
use crate::sys::wake;
use crate::vhost::RegionFd;
use crate::vhost::tests::*;

const REGION_LEN: u64 = 1 << 20;
const FEATURES: u64 = 1 << 32 | F_PROTOCOL_FEATURES | 1;
/// Request and response of each chain.
const REQUESTS: u64 = BUFFERS;
const RESPONSES: u64 = BUFFERS + 0x1000;

/// Says what it was asked, and ends as the test says.
struct Scripted {
    asked: Sender<Vec<FlushRange>>,
    outcomes: Receiver<bool>,
}

impl MakeDurable for Scripted {
    fn make_durable(&mut self, ranges: &[FlushRange]) -> Result<(), FlushError> {
        self.asked.send(ranges.to_vec()).unwrap();
        match self.outcomes.recv().unwrap() {
            true => Ok(()),
            false => Err(FlushError::Sync { source: std::io::Error::from_raw_os_error(5) }),
        }
    }

    fn counters(&self) -> FlushCounters {
        FlushCounters::default()
    }
}

struct Bench {
    port: PmemPort,
    durability: Durability,
    asked: Receiver<Vec<FlushRange>>,
    outcomes: Sender<bool>,
    front: UnixStream,
    file: OwnedFd,
    ends: Ends,
    avail: u16,
    used: u16,
}

impl Bench {
    fn new() -> Bench {
        let (front, back) = UnixStream::pair().unwrap();
        let region = RegionFd { fd: memory_file(), offset: 0, len: REGION_LEN };
        let device = Device::pmem("test".to_owned(), region);
        let port = PmemPort::new(Endpoint::adopt(back.into()).unwrap(), device);
        let (asked, asks) = channel();
        let (outcomes, outcome) = channel();
        let scripted = Box::new(Scripted { asked, outcomes: outcome });
        let wakers = vec![wake::pair().unwrap().0];
        let durability = Durability::by_host("test", scripted, wakers).unwrap().remove(0);
        let (ring, ends) = ring_messages(0, 8);
        let (file, asked) = (memory_file(), asks);
        let mut bench =
            Bench { port, durability, asked, outcomes, front, file, ends, avail: 0, used: 0 };
        bench.port.control(Now { monotonic_ns: 0, real_ns: 0 });
        let protocol = protocol::REPLY_ACK | protocol::CONFIG | protocol::SHMEM;
        bench.tell(number(id::SET_PROTOCOL_FEATURES, protocol));
        bench.tell(number(id::SET_FEATURES, FEATURES));
        bench.tell(mem_table(&usual_regions(), &bench.file));
        for message in ring {
            bench.tell(message);
        }
        bench.tell(state(id::SET_VRING_ENABLE, 0, 1));
        signals(&bench.ends.call);
        bench
    }

    fn tell(&mut self, message: Outgoing) {
        send(&self.front, &message, 0);
        drop(message);
        self.port.control(Now { monotonic_ns: 0, real_ns: 0 });
    }

    fn ask(&mut self, message: Outgoing) -> Vec<u8> {
        self.tell(message);
        reply(&self.front).expect("an answer").1
    }

    fn write(&self, guest: u64, bytes: &[u8]) {
        assert_eq!(pwrite(&self.file, bytes, file_offset(guest)).unwrap(), bytes.len());
    }

    fn read<const N: usize>(&self, guest: u64) -> [u8; N] {
        let mut bytes = [0; N];
        pread(&self.file, &mut bytes, file_offset(guest)).unwrap();
        bytes
    }

    fn desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table_of(0) + 16 * u64::from(index), &bytes);
    }

    fn offer(&mut self, head: u16) {
        self.write(avail_of(0) + 4 + 2 * u64::from(self.avail % 8), &head.to_le_bytes());
        self.avail += 1;
        self.write(avail_of(0) + 2, &self.avail.to_le_bytes());
    }

    /// Offers a request with its response in descriptors `head` and the next.
    fn request(&mut self, head: u16, kind: u32) {
        let at = 16 * u64::from(head);
        self.write(REQUESTS + at, &kind.to_le_bytes());
        self.write(RESPONSES + at, &[0xee; 4]);
        self.desc(head, REQUESTS + at, 4, NEXT, head + 1);
        self.desc(head + 1, RESPONSES + at, 4, WRITE, 0);
        self.offer(head);
    }

    fn response(&self, head: u16) -> [u8; 4] {
        self.read(RESPONSES + 16 * u64::from(head))
    }

    fn take_used(&mut self) -> Option<(u32, u32)> {
        if u16::from_le_bytes(self.read(used_of(0) + 2)) == self.used {
            return None;
        }
        let entry: [u8; 8] = self.read(used_of(0) + 4 + 8 * u64::from(self.used % 8));
        self.used += 1;
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    /// What a worker does in a turn. Returns how many requests were answered.
    fn turn(&mut self) -> usize {
        self.port.ask(&mut self.durability, REGION_LEN);
        self.durability.completed();
        self.durability.begin();
        self.port.answer(self.durability.last_completed())
    }

    /// Turns until requests are answered.
    fn turns(&mut self) -> usize {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match self.turn() {
                0 => assert!(Instant::now() < end, "nothing is ever answered"),
                answered => return answered,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets the flush that is asked for end.
    fn flush(&mut self, durable: bool) {
        let whole = FlushRange { offset: 0, len: REGION_LEN };
        let asked = self.asked.recv_timeout(Duration::from_secs(20)).expect("a flush is asked for");
        assert_eq!(asked, [whole]);
        assert_eq!(self.turn(), 0, "answered before it was durable");
        assert_eq!(self.take_used(), None);
        self.outcomes.send(durable).unwrap();
    }

    fn counter(&self, name: &str) -> u64 {
        let mut found = None;
        self.port.each_counter(|n, value| {
            if n == name {
                found = Some(value);
            }
        });
        found.expect("a counter of this name")
    }
}

#[test]
fn offers_one_ring_and_the_region_as_shared_memory_zero() {
    let mut bench = Bench::new();
    let offered = bench.ask(message(id::GET_FEATURES, &[]));
    let ring = 1 << 28 | 1 << 29;
    assert_eq!(offered, (FEATURES | ring).to_le_bytes());
    let header = ConfigHeader { offset: 0.into(), size: 16.into(), flags: 0.into() };
    let ask = [header.as_bytes(), &[0xee; 16]].concat();
    let config = bench.ask(message(id::GET_CONFIG, &ask));
    assert_eq!(config[size_of::<ConfigHeader>()..], [0; 16]);
    assert!(config.len() < CONFIG_MAX);
    let shared = bench.ask(message(id::GET_SHMEM_CONFIG, &[]));
    let shared = ShMemConfig::read_from_bytes(&shared).unwrap();
    assert_eq!((shared.nregions.get(), shared.memory_sizes[0].get()), (1, REGION_LEN));
    assert!(bench.port.device.is_attached());
    // There is no second ring: this cannot be told, and ends the session.
    bench.tell(state(id::GET_VRING_BASE, 1, 0));
    assert!(!bench.port.device.is_attached());
}

#[test]
fn a_flush_is_answered_when_it_is_durable_and_with_failure_when_it_is_not() {
    let mut bench = Bench::new();
    for (durable, response) in [(true, [0; 4]), (false, [0xff; 4]), (true, [0; 4])] {
        bench.request(2, 0);
        assert_eq!(bench.turn(), 0);
        bench.flush(durable);
        assert_eq!(bench.turns(), 1);
        assert_eq!(bench.take_used(), Some((2, 4)));
        assert_eq!(bench.response(2), response);
        assert_eq!(signals(&bench.ends.call), 1);
    }
    assert_eq!((bench.counter("flushes"), bench.counter("failed")), (2, 1));
}

#[test]
fn what_comes_during_a_flush_has_one_of_its_own() {
    let mut bench = Bench::new();
    bench.request(0, 0);
    bench.request(2, 0);
    bench.turn();
    bench.request(4, 0);
    bench.flush(true);
    assert_eq!(bench.turns(), 2);
    assert_eq!((bench.take_used(), bench.take_used()), (Some((0, 4)), Some((2, 4))));
    assert_eq!(bench.take_used(), None);
    bench.turn();
    bench.flush(false);
    assert_eq!(bench.turns(), 1);
    assert_eq!(bench.take_used(), Some((4, 4)));
    assert_eq!(bench.response(4), [0xff; 4]);
}

#[test]
fn kicks_are_asked_for_while_nothing_waits() {
    let mut bench = Bench::new();
    bench.turn();
    assert!(!bench.port.arm());
    bench.request(0, 0);
    assert!(bench.port.arm(), "it came after the turn looked");
    bench.turn();
    assert!(!bench.port.arm(), "the end of the flush wakes the worker");
    bench.flush(true);
    bench.turns();
    bench.turn();
    assert!(!bench.port.arm());
}

#[test]
fn a_ring_that_is_stopped_during_a_flush_has_its_requests_still() {
    let mut bench = Bench::new();
    bench.request(0, 0);
    bench.turn();
    let asked = bench.ask(state(id::GET_VRING_BASE, 0, 0));
    assert_eq!(VringState::read_from_bytes(&asked).unwrap().num.get(), 0);
    bench.flush(true);
    while bench.durability.last_completed().is_none() {
        bench.turn();
    }
    assert_eq!(bench.take_used(), None);
    // It goes on, and the request is found where it was.
    let (ring, ends) = ring_messages(0, 8);
    for message in ring {
        bench.tell(message);
    }
    bench.ends = ends;
    bench.turn();
    bench.flush(true);
    assert_eq!(bench.turns(), 1);
    assert_eq!(bench.take_used(), Some((0, 4)));
}

#[test]
fn what_was_flushed_for_one_driver_is_not_answered_to_the_next() {
    let mut bench = Bench::new();
    bench.request(0, 0);
    bench.turn();
    // Another driver on the same ring: its request is not the one that waits.
    bench.ask(state(id::GET_VRING_BASE, 0, 0));
    let (ring, ends) = ring_messages(0, 8);
    for message in ring {
        bench.tell(message);
    }
    bench.ends = ends;
    bench.flush(true);
    // A second flush is asked for, and only that one counts.
    let end = Instant::now() + Duration::from_secs(20);
    let asked = loop {
        assert_eq!(bench.turn(), 0);
        if let Ok(asked) = bench.asked.try_recv() {
            break asked;
        }
        assert!(Instant::now() < end, "no second flush");
    };
    assert_eq!(asked.len(), 1);
    bench.outcomes.send(false).unwrap();
    assert_eq!(bench.turns(), 1);
    assert_eq!(bench.response(0), [0xff; 4]);
}

#[test]
fn without_a_host_that_flushes_every_request_fails() {
    let mut bench = Bench::new();
    let mut none = Durability::without_host(paste_abi::control::FlushDomain::None);
    bench.request(0, 0);
    bench.port.ask(&mut none, REGION_LEN);
    assert_eq!(bench.port.answer(none.last_completed()), 1);
    assert_eq!(bench.response(0), [0xff; 4]);
}
