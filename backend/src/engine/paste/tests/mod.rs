//! The engine over the model of PASTE, whose NIC is loopback: sockets, TCP and epoll are
//! the kernel's, and the rings are the model's. Time is the tests' own.

mod anything;
mod flows;
mod pressure;
mod traps;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use paste_abi::Event;
use paste_abi::slot::{KEEP, SHARE};
use paste_pmem::{Owner, Pool};

use super::*;
use crate::port::netmap::model::{Host, Model, NicKind};
use crate::testing;

/// The channel that tests speak on.
const CHANNEL: u16 = 1;
const HEADROOM: u16 = 128;
const NIC: &str = "lo";
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longest wait for the kernel; not reached unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time that passes in a turn, ns.
const STEP: u64 = 100_000;

struct NoPlain;

impl PlainSink for NoPlain {
    fn takes_segments(&self, _: bool) -> bool {
        false
    }

    fn frame(&mut self, _: paste_abi::net_hdr::NetHdr, _: &mut [u8]) {
        panic!("the NIC is the host's");
    }
}

fn new_model() -> Model {
    let model = Model::new(Host::default());
    model.add_nic(NIC, NicKind::default());
    model
}

fn open(model: &Model, options: &Options<'_>) -> Result<PasteEngine, PasteError> {
    PasteEngine::with(options, |text, nic| PstPort::open_in(model, text, nic))
}

fn options(buffers: &Buffers) -> Options<'_> {
    Options {
        port: "paste:lo",
        nic: NIC,
        addresses: &[LOCAL],
        vlan: None,
        mtu: 1500,
        flows_max: 16,
        shared_sends_max: 16,
        headroom: HEADROOM,
        buffers,
    }
}

/// An engine, and a guest without a mind of its own.
struct Rig {
    engine: PasteEngine,
    model: Model,
    mem: RegionMemory,
    now: Now,
    /// What the guest was told and nobody has looked at.
    told: Vec<Slot>,
    buffers: u32,
}

impl Rig {
    fn new(buffers: u32, flows_max: u32) -> Rig {
        let pool = Pool::new(testing::buffers(buffers));
        let model = new_model();
        let engine = open(&model, &Options { flows_max, ..options(pool.buffers()) }).unwrap();
        let mem = RegionMemory::new(pool);
        let now = Now { monotonic_ns: 1_000_000_000, real_ns: 42 };
        Rig { engine, model, mem, now, told: Vec::new(), buffers }
    }

    /// One turn, after which the guest was told at most `slots` more.
    fn turn_with(&mut self, slots: usize) {
        self.now.monotonic_ns += STEP;
        self.engine.receive(self.now, &mut self.mem, &mut NoPlain).unwrap();
        self.engine.advance(self.now, &mut self.mem);
        self.publish(slots);
        self.engine.transmit(self.now, &mut self.mem).unwrap();
    }

    /// The guest is told at most `slots` more.
    fn publish(&mut self, slots: usize) {
        let mut out = vec![Slot::default(); slots];
        let count = self.engine.poll_slots(&mut self.mem, CHANNEL, &mut out);
        for slot in &out[..count] {
            let named = match slot.as_event().unwrap() {
                Event::Data => true,
                Event::Acked => slot.modifiers & KEEP != 0,
                _ => false,
            };
            if named {
                let pool = self.mem.pool_mut();
                pool.transfer(slot.buf_idx, Owner::Stack, Owner::Guest(CHANNEL)).unwrap();
            }
            self.told.push(*slot);
        }
    }

    fn turn(&mut self) {
        self.turn_with(64);
    }

    /// Turns until there is something to be had.
    #[track_caller]
    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Rig) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if let Some(found) = found(self) {
                return found;
            }
            assert!(
                Instant::now() < end,
                "{what}: not in time; told {:?}; {:?}",
                self.told,
                self.engine.counters
            );
            std::thread::yield_now();
        }
    }

    /// The next thing of this kind that the guest is told, whatever else it is.
    #[track_caller]
    fn hear(&mut self, event: Event) -> Slot {
        self.until(&format!("{event:?}"), |rig| {
            let at = rig.told.iter().position(|slot| slot.as_event() == Some(event))?;
            Some(rig.told.remove(at))
        })
    }

    /// Listens on a port that is free, and returns it.
    fn listen(&mut self, backlog: u16) -> (Flow, u16) {
        loop {
            let port = TcpListener::bind((LOCAL, 0)).unwrap().local_addr().unwrap().port();
            match self.engine.listen(CHANNEL, port, backlog) {
                Ok(listener) => return (listener, port),
                Err(reason) => assert_eq!(reason, Reason::PortInUse),
            }
        }
    }

    /// A client, and the flow that it is for the guest.
    #[track_caller]
    fn accept(&mut self, port: u16) -> (TcpStream, Flow) {
        self.turn();
        let client = client(port);
        let slot = self.hear(Event::Accepted);
        assert_eq!(slot.peer(), client.local_addr().unwrap());
        assert_eq!(slot.offset, port);
        (client, slot.flow)
    }

    fn bytes(&self, slot: &Slot) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(slot.len)];
        self.mem.pool().buffers().read(slot.buf_idx, slot.offset.into(), &mut bytes).unwrap();
        bytes
    }

    /// The guest gives a buffer back.
    fn give_back(&mut self, buf: u32) {
        if self.engine.release(self.now, buf) {
            self.engine.retire(buf);
            let pool = self.mem.pool_mut();
            pool.transfer(buf, Owner::Guest(CHANNEL), Owner::Stack).unwrap();
        } else {
            self.mem.pool_mut().give(buf, Owner::Guest(CHANNEL)).unwrap();
        }
    }

    fn give_all_back(&mut self) {
        let held: Vec<_> = self.mem.pool().held(CHANNEL).collect();
        held.into_iter().for_each(|buf| self.give_back(buf));
    }

    /// The guest sends bytes from a buffer of its own.
    fn send(&mut self, flow: Flow, bytes: &[u8], cookie: u64, how: u8) -> Result<u32, Reason> {
        let buf = self.mem.pool_mut().take(Owner::Guest(CHANNEL)).expect("a buffer");
        self.mem.pool().buffers().write(buf, HEADROOM.into(), bytes).unwrap();
        self.send_from(flow, buf, HEADROOM, bytes.len() as u16, cookie, how).map(|()| buf)
    }

    fn send_from(
        &mut self,
        flow: Flow,
        buf: u32,
        offset: u16,
        len: u16,
        cookie: u64,
        how: u8,
    ) -> Result<(), Reason> {
        let share = how & SHARE != 0;
        let tx = Tx { buf, offset, len, cookie, notify: how != 0, keep: how & KEEP != 0, share };
        if !share {
            let pool = self.mem.pool_mut();
            pool.transfer(buf, Owner::Guest(CHANNEL), Owner::Stack).unwrap();
        }
        let sent = self.engine.send(self.now, &mut self.mem, CHANNEL, flow, &tx);
        if sent.is_err() && !share {
            let pool = self.mem.pool_mut();
            pool.transfer(buf, Owner::Stack, Owner::Guest(CHANNEL)).unwrap();
        }
        sent
    }

    fn close(&mut self, flow: Flow) -> Result<(), Reason> {
        self.engine.close(self.now, &mut self.mem, CHANNEL, flow)
    }

    /// The channel ends; every buffer and the NIC must be back then.
    fn end(mut self) -> Counters {
        self.engine.close_channel(self.now, &mut self.mem, CHANNEL);
        self.give_all_back();
        self.engine.release_reserve(&mut self.mem);
        assert_eq!(self.engine.flows.used(), 0, "flows are left");
        let pool = self.mem.pool();
        assert_eq!(pool.free(), self.buffers, "buffers are missing: {pool:?}");
        let counters = self.engine.counters;
        drop(self.engine);
        assert_eq!(self.model.users(NIC), 0, "the kernel still waits for sockets");
        assert_eq!(self.model.complaints(), 0, "somebody wrote into the kernel's blocks");
        counters
    }
}

fn client(port: u16) -> TcpStream {
    let client = TcpStream::connect((LOCAL, port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client.set_nodelay(true).unwrap();
    client
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn what_is_in_the_way_is_said_and_nothing_is_left() {
    let pool = Pool::new(testing::buffers(64));
    let good = options(pool.buffers());
    let model = new_model();
    let v6: IpAddr = "fe80::1".parse().unwrap();
    let far: IpAddr = "192.0.2.7".parse().unwrap();
    for (options, message) in [
        (
            Options { addresses: &[LOCAL, v6], ..good },
            "port paste:lo: fe80::1 is an IPv6 address, and PASTE knows IPv4 alone: give the guest \
             an IPv4 address of lo, or use port netmap:lo",
        ),
        (
            Options { vlan: Some(7), ..good },
            "port paste:lo: PASTE knows no VLANs: remove `vlan`, or use port netmap:lo",
        ),
        (
            Options { addresses: &[far], ..good },
            "port paste:lo: 192.0.2.7 cannot be bound on lo (Cannot assign requested address (os \
             error 99)): give the guest an address that lo has, as in `ip addr add 192.0.2.7/24 \
             dev lo`",
        ),
    ] {
        let error = open(&model, &options).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(model.users(NIC), 0, "{message}");
    }
    let none = Model::new(Host { module: false, ..Host::default() });
    let error = open(&none, &good).unwrap_err().to_string();
    assert!(error.starts_with("port paste:lo: netmap module not loaded"), "{error}");
    open(&model, &good).expect("nothing is in the way");
}
