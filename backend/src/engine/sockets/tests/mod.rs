//! The engine over loopback, with the kernel on the other side. Time is the tests' own.

mod anything;
mod flows;
mod pressure;

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use paste_abi::Event;
use paste_abi::slot::{KEEP, SHARE};
use paste_pmem::Pool;

use super::*;
use crate::testing;

/// The channel that tests speak on.
const CHANNEL: u16 = 1;
const HEADROOM: u16 = 128;
const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// Longest wait for the kernel; not reached unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct NoPlain;

impl PlainSink for NoPlain {
    fn takes_segments(&self, _: bool) -> bool {
        false
    }

    fn frame(&mut self, _: paste_abi::net_hdr::NetHdr, _: &mut [u8]) {
        panic!("there is no NIC");
    }
}

/// An engine, and a guest without a mind of its own.
struct Rig {
    engine: SocketsEngine,
    mem: RegionMemory,
    now: Now,
    /// What the guest was told and nobody has looked at.
    told: Vec<Slot>,
    buffers: u32,
}

impl Rig {
    fn new(buffers: u32, flows_max: u32) -> Rig {
        let pool = Pool::new(testing::buffers(buffers));
        let engine = SocketsEngine::new(&Options {
            addresses: &[LOCAL],
            mtu: 1500,
            flows_max,
            shared_sends_max: 16,
            headroom: HEADROOM,
            buffers: pool.buffers(),
        });
        let mem = RegionMemory::new(pool);
        let now = Now { monotonic_ns: 1_000_000_000, real_ns: 42 };
        Rig { engine: engine.unwrap(), mem, now, told: Vec::new(), buffers }
    }

    /// One turn, after which the guest was told at most `slots` more.
    fn turn_with(&mut self, slots: usize) {
        self.engine.receive(self.now, &mut self.mem, &mut NoPlain).unwrap();
        self.engine.advance(self.now, &mut self.mem);
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
        self.engine.transmit(self.now, &mut self.mem).unwrap();
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
            assert!(Instant::now() < end, "{what}: not in time; told {:?}", self.told);
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

    /// The channel ends; every buffer must be back then.
    fn end(mut self) -> SocketsEngine {
        self.engine.close_channel(self.now, &mut self.mem, CHANNEL);
        let held: Vec<_> = self.mem.pool().held(CHANNEL).collect();
        held.into_iter().for_each(|buf| self.give_back(buf));
        self.engine.release_reserve(&mut self.mem);
        assert_eq!(self.engine.flows.used(), 0, "flows are left");
        let pool = self.mem.pool();
        assert_eq!(pool.free(), self.buffers, "buffers are missing: {pool:?}");
        assert_eq!(self.engine.counters.strange, 0);
        self.engine
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
fn what_is_in_the_way_of_a_ring_is_said() {
    for (errno, message) in [
        (
            libc::ENOSYS,
            "port sockets: there is no io_uring on this system: use another kind of port",
        ),
        (
            libc::EINVAL,
            "port sockets: this kernel's io_uring cannot do what is needed (io_uring_setup: Invalid \
             argument (os error 22)): use Linux 6.1 or later, or another kind of port",
        ),
        (
            libc::ENOMEM,
            "port sockets: io_uring_setup has no memory (Cannot allocate memory (os error 12)): \
             raise the limit of locked memory (`ulimit -l`), or lower the guest's flows_max",
        ),
    ] {
        let source = io::Error::from_raw_os_error(errno);
        let error = judge(SetupError { call: "io_uring_setup", source });
        assert_eq!(error.to_string(), message);
    }
    // Which of the two it is depends on this machine.
    let source = io::Error::from_raw_os_error(libc::EPERM);
    let error = judge(SetupError { call: "io_uring_setup", source });
    assert!(matches!(error, SocketsError::Filtered | SocketsError::TurnedOff(_)), "{error}");
}
