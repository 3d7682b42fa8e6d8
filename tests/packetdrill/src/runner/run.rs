//! Runs the events of a script, one after the other.

use core::net::{Ipv4Addr, SocketAddr};
use std::collections::HashMap;
use std::fmt::Debug;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::packet::{self, Ends, Sent};
use super::parse;
use super::script::{Action, Argument, Call, Event, Opt, Packet, Segment, When, flag};
use crate::errno::Errno;
use crate::ffi::caller::Table;

/// How far from its time a thing may happen, microseconds: packetdrill's.
const TOLERANCE: i64 = 4000;
/// Where the script's program binds and connects to.
const PORT: u16 = 8080;
/// The peer's port, where it opens.
const PEER_PORT: u16 = 40000;
const STACK: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Real time that a call may take to end once it can.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a script failed: the line, and what was wrong there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RunError(String);

/// Runs a script against a table, which nothing has used before.
pub fn run(text: &str, table: Table) -> Result<(), RunError> {
    let events = parse::script(text).map_err(RunError)?;
    let mut run = Run::new(table);
    for event in &events {
        run.event(event).map_err(|e| RunError(format!("line {}: {e}", event.line)))?;
    }
    run.end().map_err(RunError)
}

/// A call in progress on another thread.
struct Waiting {
    line: usize,
    call: Call,
    due: i64,
    outcome: Receiver<(Result<i64, Errno>, Vec<u8>, i64)>,
}

struct Run {
    table: Arc<Table>,
    /// When the script began, microseconds.
    start: i64,
    /// When the event before happened.
    before: i64,
    ends: Ends,
    /// The stack's initial sequence number: the script's and the wire's.
    stack_isn: (u32, u32),
    /// The peer's, once the stack has acknowledged it, and until then.
    peer_isn: u32,
    peer_isn_new: Option<u32>,
    /// The stack's timestamps, by the script's.
    timestamps: HashMap<u32, u32>,
    /// Descriptors, by the script's numbers.
    fds: HashMap<i64, i32>,
    /// Bytes that the program wrote and read on the connection.
    written: usize,
    read: usize,
    waiting: Option<Waiting>,
}

fn differ<T: PartialEq + Debug>(what: &str, expected: T, actual: T) -> Result<(), String> {
    if expected == actual {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, and it is {actual:?}"))
}

/// The byte at a place in a stream, either way.
fn pattern(place: usize) -> u8 {
    (place % 251) as u8
}

fn fill(place: usize, len: usize) -> Vec<u8> {
    (place..place + len).map(pattern).collect()
}

impl Run {
    fn new(table: Table) -> Run {
        let start = table.now().unwrap_or(0);
        Run {
            table: Arc::new(table),
            start,
            before: 0,
            ends: Ends { peer: (PEER, PEER_PORT), stack: (STACK, PORT) },
            stack_isn: (0, 0),
            peer_isn: 0,
            peer_isn_new: None,
            timestamps: HashMap::new(),
            fds: HashMap::new(),
            written: 0,
            read: 0,
            waiting: None,
        }
    }

    fn now(&self) -> Result<i64, String> {
        Ok(self.table.now().map_err(|e| e.to_string())? - self.start)
    }

    fn event(&mut self, event: &Event) -> Result<(), String> {
        let (due, slack) = match event.when {
            When::At(time) => (time, 0),
            When::After(time) | When::During(time, _) => (self.before + time, 0),
            When::Between(first, last) => (self.before + first, last - first),
        };
        match &event.action {
            Action::In(packet) => {
                self.sleep_until(due)?;
                self.packet_in(packet)?;
                self.before = due;
            }
            Action::Out(Packet::Tcp(segment)) => {
                let time = self.packet_out(segment)?;
                if time < due - TOLERANCE || time > due + slack + TOLERANCE {
                    return Err(format!("sent at {time} us, and due at {due} us"));
                }
                self.before = time;
            }
            Action::Out(Packet::TooBig { .. }) => return Err("the stack routes nothing".to_owned()),
            Action::Call(call) => {
                self.sleep_until(due)?;
                self.await_call()?;
                if let When::During(_, end) = event.when {
                    self.start_call(event.line, call, self.before + end)?;
                } else {
                    let (outcome, bytes) = perform(&self.table, call, &self.fds, self.written);
                    self.judge(call, outcome, &bytes)?;
                }
                self.before = due.max(self.before);
            }
        }
        Ok(())
    }

    fn sleep_until(&self, due: i64) -> Result<(), String> {
        let left = due - self.now()?;
        if left > 0 {
            let left = u32::try_from(left).map_err(|_| "too long a time")?;
            self.table.usleep(left).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// What to add to the script's numbers of the stack's stream.
    fn shift(&self) -> u32 {
        self.stack_isn.1.wrapping_sub(self.stack_isn.0)
    }

    fn packet_in(&mut self, packet: &Packet) -> Result<(), String> {
        let shift = self.shift();
        let bytes = match packet {
            Packet::TooBig { mtu, seq } => {
                packet::build_too_big(&self.ends, *mtu, seq.wrapping_add(shift))
            }
            Packet::Tcp(segment) => {
                if segment.flags & flag::SYN != 0 {
                    self.peer_isn_new = Some(segment.seq);
                }
                let mut live = segment.clone();
                if segment.flags & flag::ACK != 0 {
                    live.ack = segment.ack.wrapping_add(shift);
                }
                for option in live.options.iter_mut().flatten() {
                    match option {
                        Opt::Sack(blocks) => {
                            for (start, end) in blocks {
                                *start = start.wrapping_add(shift);
                                *end = end.wrapping_add(shift);
                            }
                        }
                        Opt::Timestamps { echo, .. } => {
                            *echo = self.timestamps.get(echo).copied().unwrap_or(*echo);
                        }
                        _ => {}
                    }
                }
                let place = segment.seq.wrapping_sub(self.peer_isn.wrapping_add(1));
                let payload = fill(place as usize, usize::from(segment.len));
                packet::build(&self.ends, &live, &payload)
            }
        };
        self.table.netdev_send(&bytes).map_err(|e| e.to_string())
    }

    /// Waits for the stack's next packet, judges it, and returns when it went.
    fn packet_out(&mut self, expected: &Segment) -> Result<i64, String> {
        let received = self.table.netdev_receive().map_err(|e| e.to_string())?;
        let (bytes, time) = received.ok_or("the stack sends nothing more")?;
        let sent = packet::read(&bytes)?;
        if expected.flags & flag::SYN != 0 {
            self.opened(expected, &sent);
        }
        let time = time - self.start;
        self.judge_packet(expected, &sent)
            .map(|()| time)
            .map_err(|e| format!("{e}; at {time} us came {:?}", sent.segment))
    }

    /// The stack's SYN: its initial sequence number is known from here on.
    fn opened(&mut self, expected: &Segment, sent: &Sent) {
        if sent.segment.flags & flag::SYN == 0 || self.stack_isn.1 == sent.segment.seq {
            return;
        }
        self.ends = sent.ends;
        self.stack_isn = (expected.seq, sent.segment.seq);
        self.written = 0;
    }

    fn judge_packet(&mut self, expected: &Segment, sent: &Sent) -> Result<(), String> {
        let actual = &sent.segment;
        differ("flags", expected.flags, actual.flags)?;
        differ("sequence number", expected.seq, actual.seq.wrapping_sub(self.shift()))?;
        differ("payload length", expected.len, actual.len)?;
        if expected.flags & flag::ACK != 0 {
            differ("acknowledgement", expected.ack, actual.ack)?;
            if self.peer_isn_new.is_some_and(|isn| isn.wrapping_add(1) == actual.ack) {
                self.peer_isn = self.peer_isn_new.take().unwrap_or(self.peer_isn);
                self.read = 0;
            }
        }
        if expected.window.is_some() {
            differ("window", expected.window, actual.window)?;
        }
        if expected.ecn.is_some() {
            differ("ECN codepoint", expected.ecn, actual.ecn)?;
        }
        if let (Some(expected), Some(actual)) = (&expected.options, &actual.options) {
            self.judge_options(expected, actual)?;
        }
        let place = expected.seq.wrapping_sub(self.stack_isn.0.wrapping_add(1)) as usize;
        if sent.payload != fill(place, sent.payload.len()) {
            return Err("the payload is not what was written".to_owned());
        }
        Ok(())
    }

    fn judge_options(&mut self, expected: &[Opt], actual: &[Opt]) -> Result<(), String> {
        // The stack's own timestamps are what they are; their echoes are ours.
        let mut adapted = expected.to_vec();
        for (ours, theirs) in adapted.iter_mut().zip(actual) {
            if let (Opt::Timestamps { value, .. }, Opt::Timestamps { value: live, .. }) =
                (ours, theirs)
            {
                self.timestamps.insert(*value, *live);
                *value = *live;
            }
        }
        differ("options", &adapted[..], actual)
    }

    /// Starts a call that is to wait.
    fn start_call(&mut self, line: usize, call: &Call, due: i64) -> Result<(), String> {
        let (report, outcome) = channel();
        let (tell, thread_id) = channel();
        let (table, fds, written) = (Arc::clone(&self.table), self.fds.clone(), self.written);
        let (wanted, started) = (call.clone(), self.start);
        thread::spawn(move || {
            // The link that the kernel has for the thread that looks.
            let id = fs::read_link("/proc/thread-self").unwrap_or_default();
            let _ = tell.send(id);
            let (result, bytes) = perform(&table, &wanted, &fds, written);
            let time = table.now().unwrap_or(0) - started;
            let _ = report.send((result, bytes, time));
        });
        let id = thread_id.recv().map_err(|e| e.to_string())?;
        let stat = std::path::Path::new("/proc").join(id).join("stat");
        self.waiting = Some(Waiting { line, call: call.clone(), due, outcome });
        // Until the call sleeps, or has returned.
        loop {
            let text = fs::read_to_string(&stat).unwrap_or_default();
            let state = text.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
            if matches!(state, Some('S' | 'Z' | 'X') | None) {
                return Ok(());
            }
            thread::yield_now();
        }
    }

    /// A call that is still in progress can return by now.
    fn await_call(&mut self) -> Result<(), String> {
        let Some(waiting) = self.waiting.take() else {
            return Ok(());
        };
        let of_line = |e: String| format!("the call of line {}: {e}", waiting.line);
        let given_up = Instant::now() + PATIENCE;
        loop {
            match waiting.outcome.try_recv() {
                Ok((result, bytes, time)) => {
                    if (time - waiting.due).abs() > TOLERANCE {
                        let due = waiting.due;
                        return Err(of_line(format!("returned at {time} us, and due at {due} us")));
                    }
                    return self.judge(&waiting.call, result, &bytes).map_err(of_line);
                }
                Err(TryRecvError::Disconnected) => {
                    return Err(of_line("its thread has died".to_owned()));
                }
                Err(TryRecvError::Empty) if Instant::now() > given_up => {
                    return Err(of_line("it still waits".to_owned()));
                }
                Err(TryRecvError::Empty) => thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Compares a call's outcome, and takes in what it changed.
    fn judge(
        &mut self,
        call: &Call,
        outcome: Result<i64, Errno>,
        out: &[u8],
    ) -> Result<(), String> {
        let opens = matches!(call.name.as_str(), "socket" | "accept");
        match (outcome, call.error.as_deref()) {
            (Ok(live), None) if opens && call.result >= 0 => {
                self.fds.insert(call.result, live as i32);
            }
            (Ok(result), None) => differ("result", call.result, result)?,
            (Err(Errno(errno)), Some(name)) => {
                let expected = parse::constant(name).ok_or(format!("{name:?} is not known"))?;
                differ("errno", expected, i64::from(errno))?;
            }
            (Err(errno), None) => return Err(format!("failed with {errno}")),
            (Ok(result), Some(error)) => return Err(format!("{result}, and not {error}")),
        }
        match call.name.as_str() {
            "write" | "send" => self.written += call.result.max(0) as usize,
            "read" | "recv" => {
                if out != fill(self.read, out.len()) {
                    return Err("what was read is not what the peer sent".to_owned());
                }
                let peeks =
                    call.arguments.get(3) == Some(&Argument::Number(i64::from(libc::MSG_PEEK)));
                if !peeks {
                    self.read += out.len();
                }
            }
            "getsockopt" => {
                if let Some(Argument::At(expected)) = call.arguments.get(3) {
                    let value = out.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
                    differ("value", *expected, i64::from(value))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end(mut self) -> Result<(), String> {
        self.await_call()?;
        let now = self.now()?;
        match self.table.netdev_receive() {
            Ok(Some((bytes, time))) if time - self.start <= now => {
                Err(format!("a packet that no line expects: {:?}", packet::read(&bytes)))
            }
            _ => Ok(()),
        }
    }
}

/// Makes a call. Returns its result, and the bytes that it gave.
fn perform(
    table: &Table,
    call: &Call,
    fds: &HashMap<i64, i32>,
    written: usize,
) -> (Result<i64, Errno>, Vec<u8>) {
    let mut out = Vec::new();
    let result = perform_into(table, call, fds, written, &mut out);
    (result, out)
}

fn perform_into(
    table: &Table,
    call: &Call,
    fds: &HashMap<i64, i32>,
    written: usize,
    out: &mut Vec<u8>,
) -> Result<i64, Errno> {
    let wrong = || Errno(libc::ENOSYS);
    let number = |at: usize| match call.arguments.get(at) {
        Some(Argument::Number(n) | Argument::At(n)) => Ok(*n),
        _ => Err(wrong()),
    };
    let small = |at: usize| number(at).map(|n| n as i32);
    let fd = || number(0).map(|n| fds.get(&n).copied().unwrap_or(-1));
    let done = |result: Result<(), Errno>| result.map(|()| 0);
    match call.name.as_str() {
        "socket" => table.socket(libc::AF_INET, small(1)?, small(2)?).map(i64::from),
        "bind" => done(table.bind(fd()?, SocketAddr::new(STACK.into(), PORT))),
        "listen" => done(table.listen(fd()?, small(1)?)),
        "accept" => table.accept(fd()?).map(|(new, _)| i64::from(new)),
        "connect" => done(table.connect(fd()?, SocketAddr::new(PEER.into(), PORT))),
        "read" | "recv" => {
            out.resize(number(2)? as usize, 0);
            let read = match call.name.as_str() {
                "read" => table.read(fd()?, out),
                _ => table.recv(fd()?, out, small(3)?),
            };
            out.truncate(*read.as_ref().unwrap_or(&0));
            read.map(|n| n as i64)
        }
        "write" | "send" => {
            let bytes = fill(written, number(2)? as usize);
            let sent = match call.name.as_str() {
                "write" => table.write(fd()?, &bytes),
                _ => table.send(fd()?, &bytes, small(3)?),
            };
            sent.map(|n| n as i64)
        }
        "close" => done(table.close(fd()?)),
        "shutdown" => done(table.shutdown(fd()?, small(1)?)),
        "fcntl" => table.fcntl(fd()?, small(1)?, small(2).unwrap_or(0)).map(i64::from),
        "setsockopt" => {
            let value: Vec<u8> = match call.arguments.get(3) {
                Some(Argument::Linger(on, seconds)) => {
                    [*on, *seconds].iter().flat_map(|n| n.to_ne_bytes()).collect()
                }
                _ => small(3)?.to_ne_bytes().to_vec(),
            };
            done(table.setsockopt(fd()?, small(1)?, small(2)?, &value))
        }
        "getsockopt" => {
            out.resize(size_of::<i32>(), 0);
            table.getsockopt(fd()?, small(1)?, small(2)?, out).map(|_| 0)
        }
        _ => Err(wrong()),
    }
}
