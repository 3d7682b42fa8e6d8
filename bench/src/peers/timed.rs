//! Port and engine of the backend with a clock around them, so that it can be told where its
//! time goes: in the port, in the stack above it, or in what is left, which is the rings
//! and the turn itself.
//!
//! The clock is that of the thread's CPU time, so that it stands still while another
//! process has the core; what reading it costs is found out beforehand and left out.
//! Calls that move batches are all timed. Calls for one buffer are so short that the clock
//! would cost as much as they do: one in [`SAMPLED`] is timed, and counts for all of them.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use paste_abi::slot::Opt;
use paste_abi::{Flow, Reason, Slot};
use paste_pmem::Pool;
use paste_stack::{Origin, Tx, TxBatch, TxCsum};
use pasted::engine::{Now, Packet, PlainSink, RegionMemory, StackPort};
use pasted::port::{Caps, Port, PortCounters, PortError, RxBatch};
use pasted::wiring::Fittings;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Of so many calls for one buffer, one is timed.
pub const SAMPLED: u64 = 16;

/// Readings that find out what one costs.
const TRIALS: u32 = 1000;

/// CPU time of the calling thread, in ns.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Time spent since the start, in ns, of all guests.
#[derive(Debug)]
pub struct Times {
    port: AtomicU64,
    engine: AtomicU64,
    /// What a reading of the clock costs, in ns.
    reading: u64,
}

impl Default for Times {
    fn default() -> Times {
        let start = cpu_ns();
        for _ in 0..TRIALS {
            std::hint::black_box(cpu_ns());
        }
        let reading = (cpu_ns() - start) / u64::from(TRIALS + 1);
        Times { port: AtomicU64::new(0), engine: AtomicU64::new(0), reading }
    }
}

/// What [`Times`] are at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// In the port, ns.
    pub port_ns: u64,
    /// In the engine with its port, ns.
    pub engine_ns: u64,
}

impl Times {
    /// As they are now.
    pub fn spent(&self) -> Spent {
        let read = |time: &AtomicU64| time.load(Ordering::Relaxed);
        Spent { port_ns: read(&self.port), engine_ns: read(&self.engine) }
    }
}

/// Puts clocks between the parts of guests.
#[derive(Debug, Default)]
pub struct Clocks(pub Arc<Times>);

impl Fittings for Clocks {
    fn port(&self, port: Box<dyn Port>) -> Box<dyn Port> {
        Box::new(TimedPort { port, times: self.0.clone() })
    }

    fn engine(&self, engine: Box<dyn StackPort>) -> Box<dyn StackPort> {
        Box::new(TimedEngine { engine, times: self.0.clone(), calls: 0, asked: Cell::new(0) })
    }
}

/// Which of the times.
#[derive(Clone, Copy, Debug)]
enum Part {
    Port,
    Engine,
}

impl Times {
    /// Adds what a call takes, so many times.
    fn timed<R>(&self, part: Part, weight: u64, call: impl FnOnce() -> R) -> R {
        let start = cpu_ns();
        let result = call();
        let spent = (cpu_ns() - start).saturating_sub(self.reading);
        let time = match part {
            Part::Port => {
                // The engine's clock was running while this one was read, twice.
                let most = self.engine.load(Ordering::Relaxed);
                self.engine.fetch_sub(most.min(2 * self.reading), Ordering::Relaxed);
                &self.port
            }
            Part::Engine => &self.engine,
        };
        time.fetch_add(weight * spent, Ordering::Relaxed);
        result
    }
}

struct TimedPort {
    port: Box<dyn Port>,
    times: Arc<Times>,
}

impl Port for TimedPort {
    fn caps(&self) -> Caps {
        self.port.caps()
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        self.times.timed(Part::Port, 1, || self.port.receive(now, pool, out))
    }

    fn send(
        &mut self,
        now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        self.times.timed(Part::Port, 1, || self.port.send(now, pool, batch, done))
    }

    fn is_sending(&self) -> bool {
        self.port.is_sending()
    }

    fn release(&mut self, pool: &mut Pool) {
        self.port.release(pool);
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }

    fn next_deadline(&self) -> Option<u64> {
        self.port.next_deadline()
    }

    fn counters(&self) -> &PortCounters {
        self.port.counters()
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        self.port.each_counter(visit);
    }
}

struct TimedEngine {
    engine: Box<dyn StackPort>,
    times: Arc<Times>,
    /// Calls for one buffer.
    calls: u64,
    /// Questions whether there are slots.
    asked: Cell<u64>,
}

impl TimedEngine {
    /// A call that moves a batch.
    fn batch<R>(&mut self, call: impl FnOnce(&mut dyn StackPort) -> R) -> R {
        self.times.timed(Part::Engine, 1, || call(self.engine.as_mut()))
    }

    /// A call for one buffer.
    fn single<R>(&mut self, call: impl FnOnce(&mut dyn StackPort) -> R) -> R {
        self.calls += 1;
        if self.calls.is_multiple_of(SAMPLED) {
            return self.times.timed(Part::Engine, SAMPLED, || call(self.engine.as_mut()));
        }
        call(self.engine.as_mut())
    }
}

impl StackPort for TimedEngine {
    fn receive(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        plain: &mut dyn PlainSink,
    ) -> Result<usize, PortError> {
        self.batch(|engine| engine.receive(now, mem, plain))
    }

    fn send_plain(&mut self, mem: &mut RegionMemory, frame: &[u8], csum: Option<TxCsum>) -> bool {
        self.single(|engine| engine.send_plain(mem, frame, csum))
    }

    fn send_segments(
        &mut self,
        mem: &mut RegionMemory,
        packet: &mut Packet,
        bytes: &[u8],
    ) -> usize {
        self.single(|engine| engine.send_segments(mem, packet, bytes))
    }

    fn listen(&mut self, channel: u16, port: u16, backlog: u16) -> Result<Flow, Reason> {
        self.engine.listen(channel, port, backlog)
    }

    fn unlisten(&mut self, channel: u16, listener: Flow) -> Result<(), Reason> {
        self.engine.unlisten(channel, listener)
    }

    fn connect(
        &mut self,
        now: Now,
        channel: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason> {
        self.engine.connect(now, channel, remote, local_port, cookie)
    }

    fn send(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
        tx: &Tx,
    ) -> Result<(), Reason> {
        self.single(|engine| engine.send(now, mem, channel, flow, tx))
    }

    fn close(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.engine.close(now, mem, channel, flow)
    }

    fn abort(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.engine.abort(now, mem, channel, flow)
    }

    fn set_option(
        &mut self,
        now: Now,
        channel: u16,
        flow: Flow,
        option: Opt,
        value: u64,
    ) -> Result<(), Reason> {
        self.engine.set_option(now, channel, flow, option, value)
    }

    fn release(&mut self, now: Now, buf: u32) -> bool {
        self.single(|engine| engine.release(now, buf))
    }

    fn retire(&mut self, buf: u32) {
        self.single(|engine| engine.retire(buf));
    }

    fn close_channel(&mut self, now: Now, mem: &mut RegionMemory, channel: u16) {
        self.engine.close_channel(now, mem, channel);
    }

    fn address(&self) -> Option<IpAddr> {
        self.engine.address()
    }

    fn has_slots(&self, channel: u16) -> bool {
        let asked = self.asked.get() + 1;
        self.asked.set(asked);
        if asked.is_multiple_of(SAMPLED) {
            return self.times.timed(Part::Engine, SAMPLED, || self.engine.has_slots(channel));
        }
        self.engine.has_slots(channel)
    }

    fn poll_slots(&mut self, mem: &mut RegionMemory, channel: u16, out: &mut [Slot]) -> usize {
        self.batch(|engine| engine.poll_slots(mem, channel, out))
    }

    fn advance(&mut self, now: Now, mem: &mut RegionMemory) {
        self.batch(|engine| engine.advance(now, mem));
    }

    fn transmit(&mut self, now: Now, mem: &mut RegionMemory) -> Result<usize, PortError> {
        self.batch(|engine| engine.transmit(now, mem))
    }

    fn next_deadline(&self) -> Option<u64> {
        self.engine.next_deadline()
    }

    fn is_backlogged(&self) -> bool {
        self.engine.is_backlogged()
    }

    fn arm(&mut self) -> bool {
        self.engine.arm()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.fd()
    }

    fn caps(&self) -> Caps {
        self.engine.caps()
    }

    fn release_reserve(&mut self, mem: &mut RegionMemory) {
        self.engine.release_reserve(mem);
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        self.engine.each_counter(visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_calls_count_for_all_of_them_and_sleep_does_not_count() {
        let times = Times::default();
        let work = || {
            let start = cpu_ns();
            while cpu_ns() < start + 100_000 {
                std::hint::spin_loop();
            }
        };
        times.timed(Part::Engine, SAMPLED, work);
        let worked = times.spent().engine_ns;
        assert!(worked >= SAMPLED * 90_000, "{worked} ns");
        let sleep = || std::thread::sleep(std::time::Duration::from_millis(20));
        times.timed(Part::Port, 1, sleep);
        assert!(times.spent().port_ns < 10_000_000, "{:?}", times.spent());
    }
}
