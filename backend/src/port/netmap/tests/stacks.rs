//! Two user engines with the real stack, each on a port of the model's: 10 MiB each way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use paste_abi::net_hdr::NetHdr;
use paste_abi::{Event, Flow, Slot};
use paste_stack::config::Network;
use paste_stack::{Stack, Tx};

use super::*;
use crate::engine::{PlainSink, RegionMemory, StackPort, UserEngine};
use crate::port::wire::Faults;

const PORT: u16 = 8080;
const CHANNEL: u16 = 0;
const TOTAL: usize = 10 << 20;
/// Bytes of one send.
const PIECE: usize = 1400;
/// Where a guest's payload begins.
const HEADROOM: u16 = 128;

struct Nobody;

impl PlainSink for Nobody {
    fn takes_segments(&self, _: bool) -> bool {
        false
    }

    fn frame(&mut self, _header: NetHdr, _bytes: &mut [u8]) {}
}

fn byte(at: usize, side: u8) -> u8 {
    (at % 251) as u8 ^ (at >> 9) as u8 ^ side
}

/// A host with a guest that sends, and judges what it receives.
struct Talker {
    engine: UserEngine,
    memory: RegionMemory,
    side: u8,
    flow: Option<Flow>,
    sent: usize,
    received: usize,
}

impl Talker {
    fn new(model: &Model, opening: &Opening, side: u8) -> Talker {
        let mac = [2, 0, 0, 0, 0, side];
        let buffered = Buffered::new(2048, 2048);
        let port = Opening { macs: vec![mac], ..opening.clone() }.open(model, &buffered).unwrap();
        let mut config = paste_stack::Config::unaddressed(mac);
        let address = Ipv4Addr::new(10, 0, 0, side);
        config.ipv4 = Some(Network { address, prefix_len: 24, gateway: None });
        config.headroom = HEADROOM;
        config.header_in_buffer = !opening.spoof_check || !port.caps().gather;
        let stack = Stack::new(config, 2048, [side; 16]);
        let engine = UserEngine::new(stack, Box::new(port), mac, 2048);
        let memory = RegionMemory::new(buffered.pool);
        Talker { engine, memory, side, flow: None, sent: 0, received: 0 }
    }

    fn turn(&mut self, now: Now) {
        self.engine.receive(now, &mut self.memory, &mut Nobody).unwrap();
        let mut slots = [Slot::default(); 64];
        loop {
            let count = self.engine.poll_slots(&mut self.memory, CHANNEL, &mut slots);
            for slot in &slots[..count] {
                self.told(now, slot);
            }
            if count < slots.len() {
                break;
            }
        }
        self.fill(now);
        self.engine.advance(now, &mut self.memory);
        self.engine.transmit(now, &mut self.memory).unwrap();
    }

    fn told(&mut self, now: Now, slot: &Slot) {
        match slot.as_event().unwrap() {
            Event::Accepted | Event::Connected => self.flow = Some(slot.flow),
            Event::Data => {
                let mut bytes = vec![0; slot.len.into()];
                let pool = self.memory.pool_mut();
                pool.buffers().read(slot.buf_idx, slot.offset.into(), &mut bytes).unwrap();
                for (index, &found) in bytes.iter().enumerate() {
                    assert_eq!(found, byte(self.received + index, 3 - self.side));
                }
                self.received += bytes.len();
                pool.give(slot.buf_idx, Owner::Stack).unwrap();
                self.engine.release(now, slot.buf_idx);
            }
            Event::Writable | Event::Reply => {}
            other => panic!("{other:?}"),
        }
    }

    /// Sends as long as a good part of the pool is free.
    fn fill(&mut self, now: Now) {
        let Some(flow) = self.flow else { return };
        while self.sent < TOTAL && self.memory.pool().free() > 1024 {
            let pool = self.memory.pool_mut();
            let buf = pool.take(Owner::Stack).unwrap();
            let len = PIECE.min(TOTAL - self.sent);
            let bytes: Vec<u8> = (0..len).map(|i| byte(self.sent + i, self.side)).collect();
            pool.buffers().write(buf, HEADROOM.into(), &bytes).unwrap();
            let tx = Tx {
                buf,
                offset: HEADROOM,
                len: len as u16,
                cookie: 0,
                notify: false,
                keep: false,
                share: false,
            };
            if self.engine.send(now, &mut self.memory, CHANNEL, flow, &tx).is_err() {
                self.memory.pool_mut().give(buf, Owner::Stack).unwrap();
                return;
            }
            self.sent += len;
        }
    }
}

/// Lets two hosts talk until both have everything; panics where they do not come to it.
fn talk(which: &str, model: &Model, openings: [&Opening; 2]) {
    let mut a = Talker::new(model, openings[0], 1);
    let mut b = Talker::new(model, openings[1], 2);
    let mut now = Now { monotonic_ns: 1_000_000_000, real_ns: 1_000_000_000 };
    b.engine.listen(CHANNEL, PORT, 16).unwrap();
    let remote = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), PORT);
    a.engine.connect(now, CHANNEL, remote, 0, 0).unwrap();
    let end = now.monotonic_ns + 3_600_000_000_000;
    while a.received < TOTAL || b.received < TOTAL {
        model.set_now(now.monotonic_ns);
        let before = (a.received, b.received);
        a.turn(now);
        b.turn(now);
        let quiet = (a.received, b.received) == before;
        now.monotonic_ns += if quiet { 1_000_000 } else { 50_000 };
        now.real_ns = now.monotonic_ns;
        assert!(now.monotonic_ns < end, "{which}: {} and {}", a.received, b.received);
    }
    assert_eq!((a.received, b.received), (TOTAL, TOTAL));
    for talker in [&mut a, &mut b] {
        talker.engine.release_reserve(&mut talker.memory);
        assert_eq!(talker.memory.pool().count_of(Owner::Port), 0, "{which}");
    }
}

fn faulty(seed: u64) -> Faults {
    Faults {
        loss: 0.01 * (seed % 3) as f64,
        duplicate: 0.01,
        reorder: 0.01,
        corrupt: 0.005,
        delay_ns: 100_000 * (seed % 2),
        ..Faults::default()
    }
}

#[test]
fn ten_mebibytes_each_way_over_nics_with_faults() {
    let kind = NicKind { slots: 256, ..NicKind::default() };
    for (which, seed, kind, change) in [
        ("shared", 1, NicKind { lag: 1, ..kind }, (true, true, true)),
        ("shared, headers in buffers", 2, NicKind { joins: false, ..kind }, (true, false, false)),
        ("shared, headers copied", 3, NicKind { joins: false, ..kind }, (true, false, true)),
        (
            "in pieces, three rings",
            4,
            NicKind { slot_max: 512, rings: 3, ..kind },
            (true, true, true),
        ),
        ("copied", 5, kind, (false, false, true)),
    ] {
        let model = nics(NicKind { faults: faulty(seed), seed, ..kind });
        let (share, fragments, spoof_check) = change;
        let opening = |name| Opening { share, fragments, spoof_check, ..Opening::netmap(name) };
        talk(which, &model, [&opening("ix0"), &opening("ix1")]);
        assert_eq!(model.reinits("ix0") + model.reinits("ix1"), 0, "{which}");
    }
}

#[test]
fn ten_mebibytes_each_way_over_a_switch_and_a_pipe() {
    let model = nics(NicKind::default());
    talk("switch", &model, [&Opening::vale("a"), &Opening::vale("b")]);
    talk("pipe", &model, [&Opening::netmap("web{1"), &Opening::netmap("web}1")]);
}
