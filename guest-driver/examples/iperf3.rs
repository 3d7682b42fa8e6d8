//! An iperf3 server on a `pasted` device: `iperf3 -c ADDRESS`, also with `-R`
//! and `-P`, against a guest.
//!
//! ```text
//! iperf3 (--socket PATH | --interface NAME | --device ADDRESS) [--region DEVICE | --inline]
//!      [--port 5201] [--channel N] [--poll-us N] [--yield]
//! ```
//!
//! It shows how to send from buffers that are kept: each is filled once, comes
//! back when the peer has acknowledged it, and is sent again. What arrives is
//! counted and given back. One test at a time, over TCP, in one direction, as
//! iperf3 itself has it; anything else is refused.
//!
//! A client opens a control connection and begins it with a cookie of its own;
//! the connections that carry data begin with the same cookie. On the control
//! connection each side tells of the test's states by single bytes; parameters
//! and results are JSON behind a length of four bytes, in network order.

mod common;

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use paste_guest::{Buffer, Channel, Event, Flow, SendOptions, Timeout};
use serde_json::{Value, json};

/// Bytes of the cookie: 36 characters and a terminator.
const COOKIE_LEN: usize = 37;
/// Bytes of the longest JSON that is read.
const JSON_LEN_MAX: usize = 1 << 16;
/// Connections of one test, as iperf3 limits them.
const STREAMS_MAX: usize = 128;
/// Connections that have not said their cookie yet.
const GREETINGS_MAX: usize = 256;
/// Buffers of all streams of a test on their way to the peer.
const IN_FLIGHT_MAX: usize = 1024;
/// Buffers of one stream, below the host's own limit.
const IN_FLIGHT_STREAM_MAX: usize = 512;

/// The states that the two sides tell each other, as iperf3 numbers them.
mod state {
    pub const TEST_START: u8 = 1;
    pub const TEST_RUNNING: u8 = 2;
    pub const TEST_END: u8 = 4;
    pub const PARAM_EXCHANGE: u8 = 9;
    pub const CREATE_STREAMS: u8 = 10;
    pub const EXCHANGE_RESULTS: u8 = 13;
    pub const DISPLAY_RESULTS: u8 = 14;
    pub const ACCESS_DENIED: u8 = 0xff;
    pub const SERVER_ERROR: u8 = 0xfe;
}
/// iperf3's error for what a server does not do.
const NOT_IMPLEMENTED: u32 = 13;

/// What a connection is for.
enum Role {
    /// Its cookie has come so far.
    Greeting(Vec<u8>),
    /// It controls the test.
    Control,
    /// It carries data of the test: the stream of this number.
    Stream(usize),
    /// It is to end; what it still says is not read.
    Ending,
}

/// What the control connection waits for.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Parameters,
    Streams,
    Running,
    Results,
    Done,
}

/// A connection that carries data.
struct Stream {
    flow: Flow,
    bytes: u64,
    in_flight: usize,
}

/// The test.
struct Test {
    control: Flow,
    cookie: Vec<u8>,
    phase: Phase,
    /// What the client said on the control connection, not yet understood.
    said: Vec<u8>,
    /// We send.
    reverse: bool,
    parallel: usize,
    streams: Vec<Stream>,
    started: Instant,
    seconds: f64,
}

/// What is to be done on a flow as soon as the channel takes it.
enum Deed {
    Say(Vec<u8>),
    Close,
    Abort,
}

struct Service {
    port: u16,
    /// Payload of a full segment.
    segment: usize,
    roles: HashMap<Flow, Role>,
    test: Option<Test>,
    due: VecDeque<(Flow, Deed)>,
    /// Filled buffers that are not on their way.
    spare: Vec<Buffer>,
}

impl Service {
    fn new(port: u16) -> Service {
        Service {
            port,
            segment: 0,
            roles: HashMap::new(),
            test: None,
            due: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Begins anew with the geometry of an opening.
    fn reset(&mut self, channel: &Channel) {
        *self = Service::new(self.port);
        if let Some(geometry) = channel.geometry() {
            // IP and TCP headers with timestamps (RFC 7323).
            let headers = if geometry.address.is_ipv4() { 52 } else { 72 };
            self.segment = usize::from(geometry.mtu).saturating_sub(headers).max(512);
        }
    }

    fn say(&mut self, flow: Flow, bytes: impl Into<Vec<u8>>) {
        self.due.push_back((flow, Deed::Say(bytes.into())));
    }

    /// Takes an event.
    fn handle(&mut self, channel: &mut Channel, event: Event) {
        match event {
            Event::Accepted { flow, .. } => {
                let greetings = self.roles.values().filter(|r| matches!(r, Role::Greeting(_)));
                if greetings.count() < GREETINGS_MAX {
                    self.roles.insert(flow, Role::Greeting(Vec::new()));
                } else {
                    self.roles.insert(flow, Role::Ending);
                    self.due.push_back((flow, Deed::Abort));
                }
            }
            Event::Data { flow, data } => {
                if let (Some(Role::Stream(number)), Some(test)) =
                    (self.roles.get(&flow), &mut self.test)
                {
                    if test.phase == Phase::Running {
                        test.streams[*number].bytes += data.len() as u64;
                    }
                } else {
                    let bytes = channel.bytes(&data).to_vec();
                    self.hear(flow, &bytes);
                }
                channel.give_back(data);
            }
            Event::Acked { flow, buffer, .. } => {
                self.spare.extend(buffer);
                if let (Some(Role::Stream(number)), Some(test)) =
                    (self.roles.get(&flow), &mut self.test)
                {
                    test.streams[*number].in_flight -= 1;
                }
            }
            Event::Refused { buffer, flow, .. } => {
                // Data is missing from the flow now.
                if let Some(buffer) = buffer {
                    channel.give_back(buffer);
                    self.due.push_back((flow, Deed::Abort));
                }
            }
            Event::Fin { flow } => {
                self.due.push_back((flow, Deed::Close));
                if matches!(self.roles.get(&flow), Some(Role::Control)) {
                    self.end_test();
                }
            }
            Event::Reset { flow, .. } | Event::Closed { flow } => {
                if let Some(Role::Control) = self.roles.remove(&flow) {
                    self.end_test();
                }
            }
            Event::Lost { cause } => eprintln!("{cause}"),
            Event::Opened => {
                self.reset(channel);
                let _ = channel.request_listen(self.port, 128);
            }
            Event::Reply { .. } | Event::Connected { .. } | Event::Writable { .. } => {}
            // Of what is not asked for.
            Event::Flushed { .. } | Event::Resumed { .. } => {}
        }
    }

    /// Hears what came on a connection that carries no data.
    fn hear(&mut self, flow: Flow, mut bytes: &[u8]) {
        match self.roles.get_mut(&flow) {
            Some(Role::Greeting(cookie)) => {
                let len = bytes.len().min(COOKIE_LEN - cookie.len());
                cookie.extend_from_slice(&bytes[..len]);
                bytes = &bytes[len..];
                if cookie.len() < COOKIE_LEN {
                    return;
                }
                let cookie = std::mem::take(cookie);
                self.greet(flow, cookie);
                if bytes.is_empty() {
                    return;
                }
            }
            Some(Role::Control) => {}
            _ => return,
        }
        let Some(test) = self.test.as_mut().filter(|test| test.control == flow) else {
            return;
        };
        test.said.extend_from_slice(bytes);
        while let Some(wanted) = self.understand() {
            if !wanted {
                // Not iperf3, or more of it than this server speaks.
                self.due.push_back((flow, Deed::Abort));
                self.end_test();
            }
        }
    }

    /// A connection has said its cookie.
    fn greet(&mut self, flow: Flow, cookie: Vec<u8>) {
        match &mut self.test {
            None => {
                self.roles.insert(flow, Role::Control);
                self.test = Some(Test {
                    control: flow,
                    cookie,
                    phase: Phase::Parameters,
                    said: Vec::new(),
                    reverse: false,
                    parallel: 0,
                    streams: Vec::new(),
                    started: Instant::now(),
                    seconds: 0.0,
                });
                self.say(flow, [state::PARAM_EXCHANGE]);
            }
            Some(test) if test.phase == Phase::Streams && test.cookie == cookie => {
                self.roles.insert(flow, Role::Stream(test.streams.len()));
                test.streams.push(Stream { flow, bytes: 0, in_flight: 0 });
                if test.streams.len() == test.parallel {
                    test.phase = Phase::Running;
                    test.started = Instant::now();
                    let control = test.control;
                    self.say(control, [state::TEST_START, state::TEST_RUNNING]);
                }
            }
            Some(_) => {
                self.roles.insert(flow, Role::Ending);
                self.say(flow, [state::ACCESS_DENIED]);
                self.due.push_back((flow, Deed::Close));
            }
        }
    }

    /// Understands one thing that the client said: `Some(false)` if it makes no
    /// sense, `None` if it is not whole yet.
    fn understand(&mut self) -> Option<bool> {
        let test = self.test.as_mut()?;
        let control = test.control;
        match test.phase {
            Phase::Parameters => {
                let Some(parameters) = take_json(&mut test.said)? else {
                    return Some(false);
                };
                let flag = |name: &str| parameters[name].as_bool().unwrap_or(false);
                test.reverse = flag("reverse");
                test.parallel = parameters["parallel"].as_u64().unwrap_or(1) as usize;
                let possible = flag("tcp") && !flag("bidirectional");
                if !possible || !(1..=STREAMS_MAX).contains(&test.parallel) {
                    let mut error = vec![state::SERVER_ERROR];
                    error.extend(NOT_IMPLEMENTED.to_be_bytes());
                    error.extend(0u32.to_be_bytes());
                    test.phase = Phase::Done;
                    self.say(control, error);
                    self.due.push_back((control, Deed::Close));
                } else {
                    test.phase = Phase::Streams;
                    self.say(control, [state::CREATE_STREAMS]);
                }
            }
            Phase::Running if test.said.first() == Some(&state::TEST_END) => {
                test.said.remove(0);
                test.phase = Phase::Results;
                test.seconds = test.started.elapsed().as_secs_f64();
                self.say(control, [state::EXCHANGE_RESULTS]);
                // The client reads whole blocks again, and may be within one: it sees
                // nothing else until its stream has ended.
                self.close_streams();
            }
            Phase::Results => {
                // The client's results are its own affair.
                if take_json(&mut test.said)?.is_none() {
                    return Some(false);
                }
                let results = test.results().to_string();
                test.phase = Phase::Done;
                let mut answer = (results.len() as u32).to_be_bytes().to_vec();
                answer.extend(results.bytes());
                answer.push(state::DISPLAY_RESULTS);
                self.say(control, answer);
            }
            // The client says that it is done, and closes.
            Phase::Done => test.said.clear(),
            Phase::Running | Phase::Streams if !test.said.is_empty() => return Some(false),
            Phase::Running | Phase::Streams => {}
        }
        let more = self.test.as_ref().is_some_and(|test| !test.said.is_empty());
        more.then_some(true)
    }

    /// Closes the streams of the test.
    fn close_streams(&mut self) {
        for stream in self.test.iter().flat_map(|test| &test.streams) {
            if let Some(role @ Role::Stream(_)) = self.roles.get_mut(&stream.flow) {
                *role = Role::Ending;
                self.due.push_back((stream.flow, Deed::Close));
            }
        }
    }

    /// Ends the test and its streams.
    fn end_test(&mut self) {
        self.close_streams();
        self.test = None;
    }

    /// Does what is due, as far as that goes now.
    fn act(&mut self, channel: &mut Channel) {
        while let Some((flow, deed)) = self.due.front() {
            let flow = *flow;
            let done = match deed {
                Deed::Close => channel.close(flow).is_ok(),
                Deed::Abort => channel.abort(flow).is_ok(),
                Deed::Say(bytes) => {
                    let Some(mut buffer) = channel.take_buffer() else {
                        return;
                    };
                    let start = buffer.offset();
                    let len = bytes.len().min(self.segment);
                    channel
                        .bytes_mut(&mut buffer, start..start + len)
                        .copy_from_slice(&bytes[..len]);
                    buffer.set_range(start..start + len);
                    match channel.send(flow, buffer, SendOptions::default()) {
                        Ok(()) if len < bytes.len() => {
                            let rest = bytes[len..].to_vec();
                            self.due[0].1 = Deed::Say(rest);
                            continue;
                        }
                        Ok(()) => true,
                        Err(error) => {
                            channel.give_back(error.buffer);
                            false
                        }
                    }
                }
            };
            if !done {
                return;
            }
            self.due.pop_front();
        }
        self.send_data(channel);
    }

    /// Keeps the streams of a test that we send in going.
    fn send_data(&mut self, channel: &mut Channel) {
        let sends = |test: &&mut Test| test.reverse && test.phase == Phase::Running;
        let Some(test) = self.test.as_mut().filter(sends) else {
            for buffer in self.spare.drain(..) {
                channel.give_back(buffer);
            }
            return;
        };
        let share = (IN_FLIGHT_MAX / test.parallel.max(1)).clamp(1, IN_FLIGHT_STREAM_MAX);
        let options = SendOptions { notify: true, keep: true, ..SendOptions::default() };
        for stream in &mut test.streams {
            while stream.in_flight < share {
                let buffer = self.spare.pop().or_else(|| fill(channel, self.segment));
                let Some(mut buffer) = buffer else {
                    return;
                };
                buffer.set_range(buffer.offset()..buffer.offset() + self.segment);
                if let Err(error) = channel.send(stream.flow, buffer, options) {
                    self.spare.push(error.buffer);
                    return;
                }
                stream.in_flight += 1;
                stream.bytes += self.segment as u64;
            }
        }
    }
}

impl Test {
    /// Our results, as iperf3 writes them.
    fn results(&self) -> Value {
        // iperf3 numbers its streams 1, 3, 4, 5 and so on.
        let number = |at: usize| if at == 0 { 1 } else { at + 2 };
        let streams = self.streams.iter().enumerate().map(|(at, stream)| {
            json!({
                "id": number(at), "bytes": stream.bytes, "retransmits": -1, "jitter": 0,
                "errors": 0, "packets": 0, "start_time": 0, "end_time": self.seconds,
            })
        });
        json!({
            "cpu_util_total": 0, "cpu_util_user": 0, "cpu_util_system": 0,
            // The host counts them, and does not tell its guests.
            "sender_has_retransmits": 0,
            "streams": streams.collect::<Vec<_>>(),
        })
    }
}

/// Takes JSON with its length off the front. `None` if it is not whole yet,
/// `Some(None)` if it is none.
fn take_json(said: &mut Vec<u8>) -> Option<Option<Value>> {
    let (len, rest) = said.split_first_chunk()?;
    let len = u32::from_be_bytes(*len) as usize;
    if len > JSON_LEN_MAX {
        return Some(None);
    }
    let value = serde_json::from_slice(rest.get(..len)?).ok();
    said.drain(..4 + len);
    Some(value)
}

/// A buffer with a segment of bytes that mean nothing, and that are no stranger's.
fn fill(channel: &mut Channel, segment: usize) -> Option<Buffer> {
    let mut buffer = channel.take_buffer()?;
    let start = buffer.offset();
    let end = (start + segment).min(buffer.capacity());
    channel.bytes_mut(&mut buffer, start..end).fill(b'.');
    buffer.set_range(start..end);
    Some(buffer)
}

fn main() -> ExitCode {
    common::report(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = common::Arguments::parse(&["port"])?;
    let stop = common::stop_flag()?;
    let mut channel = arguments.open("iperf3")?;
    let mut service = Service::new(arguments.get("port")?.unwrap_or(5201));
    service.reset(&channel);
    channel.listen(service.port, 128)?;
    while !stop.load(Ordering::Relaxed) {
        channel.poll(Timeout::After(Duration::from_millis(500)))?;
        while let Some(event) = channel.next_event() {
            service.handle(&mut channel, event);
        }
        service.act(&mut channel);
    }
    channel.shutdown()?;
    Ok(())
}
