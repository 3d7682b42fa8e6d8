//! What every engine on the host's TCP keeps to, whatever it moves payload by: tests that run
//! on each of them, over loopback, with the kernel on the other side. Time is the tests' own.
//!
//! An engine is a [`Subject`]. [`contract`] makes the tests of one; what only one engine does
//! is tested beside it, by the same [`Rig`].

pub mod anything;
pub mod flows;
pub mod pressure;

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use paste_abi::slot::{KEEP, SHARE};
use paste_abi::{Event, Flow, Reason, Slot};
use paste_pmem::{Buffers, Owner, Pool};
use paste_stack::Tx;

use crate::engine::{Now, PlainSink, RegionMemory, StackPort};
use crate::port::prng::Prng;
use crate::testing;

/// The channel that tests speak on.
pub const CHANNEL: u16 = 1;
pub const HEADROOM: u16 = 128;
pub const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longest wait for the kernel; not reached unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An engine under test.
pub(in crate::engine) trait Subject: StackPort + Sized {
    /// What stands in for the kernel, where something does.
    type Host;
    /// What it has counted.
    type Counters;
    /// Time that passes in a turn, ns.
    const STEP: u64;

    /// One at [`LOCAL`], with [`HEADROOM`] in buffers.
    fn open(buffers: &Buffers, flows_max: u32) -> (Self, Self::Host);

    /// Buffers that a flow's payload lies in, until the guest has been told.
    fn buffers_of(&self, flow: Flow) -> u32;

    /// Has what stands in for the kernel behave in some way of its own.
    fn vary(_host: &Self::Host, _random: &mut Prng) {}

    /// Has it behave as it does as a rule, and sees what it has to say of all that was done
    /// to it.
    fn settle(&self, _host: &Self::Host) {}

    /// The engine goes; sees whether anything is left behind that should not be. Returns
    /// what it had counted.
    fn end(self, host: Self::Host) -> Self::Counters;
}

/// The tests of the contract, for one engine.
macro_rules! contract {
    ($engine:ident) => {
        crate::engine::kernel::linux::contract::contract! { $engine,
            flows: payload_is_echoed_from_the_buffers_that_it_came_in_and_both_sides_close,
            flows: a_reset_comes_after_what_was_received,
            flows: an_abort_is_a_reset_for_the_peer,
            flows: the_guest_may_close_first,
            flows: flows_are_opened_and_refused,
            flows: what_is_sent_is_told_of_as_it_was_asked,
            flows: much_payload_comes_back_in_order,
            flows: what_a_guest_asks_for_is_judged,
            flows: a_guest_that_dies_leaves_nothing,
            pressure: single_bytes_do_not_take_a_buffer_each,
            pressure: connections_beyond_the_flows_wait,
            pressure: a_full_backlog_is_left_to_the_kernel,
            pressure: listeners_are_named_and_their_ports_are_free_at_once,
            anything: anything_may_happen_and_nothing_is_lost,
        }
    };
    ($engine:ident, $($room:ident: $test:ident,)*) => {
        mod contract {
            $(
                #[test]
                fn $test() {
                    crate::engine::kernel::linux::contract::$room::$test::<super::$engine>();
                }
            )*
        }
    };
}
pub(in crate::engine) use contract;

/// There is no NIC for a guest's own kernel.
pub struct NoPlain;

impl PlainSink for NoPlain {
    fn takes_segments(&self, _: bool) -> bool {
        false
    }

    fn frame(&mut self, _: paste_abi::net_hdr::NetHdr, _: &mut [u8]) {
        panic!("there is no NIC");
    }
}

/// An engine, and a guest without a mind of its own.
pub(in crate::engine) struct Rig<E: Subject> {
    pub engine: E,
    pub host: E::Host,
    pub mem: RegionMemory,
    pub now: Now,
    /// What the guest was told and nobody has looked at.
    pub told: Vec<Slot>,
    pub buffers: u32,
}

impl<E: Subject> Rig<E> {
    pub fn new(buffers: u32, flows_max: u32) -> Rig<E> {
        let pool = Pool::new(testing::buffers(buffers));
        let (engine, host) = E::open(pool.buffers(), flows_max);
        let mem = RegionMemory::new(pool);
        let now = Now { monotonic_ns: 1_000_000_000, real_ns: 42 };
        Rig { engine, host, mem, now, told: Vec::new(), buffers }
    }

    /// A counter of the engine's, by its name.
    #[track_caller]
    pub fn count(&self, name: &str) -> u64 {
        let mut found = None;
        self.engine.each_counter(&mut |counter, value| {
            if counter == name {
                found = Some(value);
            }
        });
        found.unwrap_or_else(|| panic!("{name} is not counted"))
    }

    /// One turn, after which the guest was told at most `slots` more.
    pub fn turn_with(&mut self, slots: usize) {
        self.now.monotonic_ns += E::STEP;
        self.engine.receive(self.now, &mut self.mem, &mut NoPlain).unwrap();
        self.engine.advance(self.now, &mut self.mem);
        self.publish(slots);
        self.engine.transmit(self.now, &mut self.mem).unwrap();
    }

    /// The guest is told at most `slots` more.
    pub fn publish(&mut self, slots: usize) {
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

    pub fn turn(&mut self) {
        self.turn_with(64);
    }

    /// Turns until there is something to be had.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if let Some(found) = found(self) {
                return found;
            }
            if Instant::now() >= end {
                let mut counters = Vec::new();
                self.engine
                    .each_counter(&mut |name, value| counters.push(format!("{name} {value}")));
                panic!("{what}: not in time; told {:?}; {counters:?}", self.told);
            }
            std::thread::yield_now();
        }
    }

    /// The next thing of this kind that the guest is told, whatever else it is.
    #[track_caller]
    pub fn hear(&mut self, event: Event) -> Slot {
        self.until(&format!("{event:?}"), |rig| {
            let at = rig.told.iter().position(|slot| slot.as_event() == Some(event))?;
            Some(rig.told.remove(at))
        })
    }

    /// Listens on a port that is free, and returns it.
    pub fn listen(&mut self, backlog: u16) -> (Flow, u16) {
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
    pub fn accept(&mut self, port: u16) -> (TcpStream, Flow) {
        self.turn();
        let client = client(port);
        let slot = self.hear(Event::Accepted);
        assert_eq!(slot.peer(), client.local_addr().unwrap());
        assert_eq!(slot.offset, port);
        (client, slot.flow)
    }

    pub fn bytes(&self, slot: &Slot) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(slot.len)];
        self.mem.pool().buffers().read(slot.buf_idx, slot.offset.into(), &mut bytes).unwrap();
        bytes
    }

    /// The guest gives a buffer back.
    pub fn give_back(&mut self, buf: u32) {
        if self.engine.release(self.now, buf) {
            self.engine.retire(buf);
            let pool = self.mem.pool_mut();
            pool.transfer(buf, Owner::Guest(CHANNEL), Owner::Stack).unwrap();
        } else {
            self.mem.pool_mut().give(buf, Owner::Guest(CHANNEL)).unwrap();
        }
    }

    pub fn give_all_back(&mut self) {
        let held: Vec<_> = self.mem.pool().held(CHANNEL).collect();
        held.into_iter().for_each(|buf| self.give_back(buf));
    }

    /// The guest sends bytes from a buffer of its own.
    pub fn send(&mut self, flow: Flow, bytes: &[u8], cookie: u64, how: u8) -> Result<u32, Reason> {
        let buf = self.mem.pool_mut().take(Owner::Guest(CHANNEL)).expect("a buffer");
        self.mem.pool().buffers().write(buf, HEADROOM.into(), bytes).unwrap();
        self.send_from(flow, buf, HEADROOM, bytes.len() as u16, cookie, how).map(|()| buf)
    }

    pub fn send_from(
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

    pub fn close(&mut self, flow: Flow) -> Result<(), Reason> {
        self.engine.close(self.now, &mut self.mem, CHANNEL, flow)
    }

    pub fn abort(&mut self, flow: Flow) -> Result<(), Reason> {
        self.engine.abort(self.now, &mut self.mem, CHANNEL, flow)
    }

    /// The channel ends; every buffer must be back then, and whatever else was taken.
    pub fn end(mut self) -> E::Counters {
        self.engine.close_channel(self.now, &mut self.mem, CHANNEL);
        self.give_all_back();
        self.engine.release_reserve(&mut self.mem);
        assert_eq!(self.count("stack.flows"), 0, "flows are left");
        let pool = self.mem.pool();
        assert_eq!(pool.free(), self.buffers, "buffers are missing: {pool:?}");
        self.engine.end(self.host)
    }
}

pub fn client(port: u16) -> TcpStream {
    let client = TcpStream::connect((LOCAL, port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client.set_nodelay(true).unwrap();
    client
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}
