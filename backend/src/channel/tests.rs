//! What an application may say, and what it hears.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use paste_abi::control::FlushDomain;
use paste_abi::slot::{KEEP, Opt};
use paste_abi::{Flow, Request};
use paste_pmem::Pool;
use paste_stack::{Tx, TxCsum};

use super::*;
use crate::durability::Durability;
use crate::engine::{Packet, PlainSink};
use crate::port::{Caps, PortError};

/// A stack port that remembers what it was asked and delivers what it is told to.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) asked: Vec<String>,
    pub(super) answer: Option<Reason>,
    pub(super) deliver: VecDeque<Slot>,
    pub(super) sent: Vec<u32>,
    pub(super) released: Vec<u32>,
    /// Buffers that shared sends are under way of.
    pub(super) sending: Vec<u32>,
}

impl Fake {
    fn outcome(&self) -> Result<(), Reason> {
        self.answer.map_or(Ok(()), Err)
    }
}

impl StackPort for Fake {
    fn receive(
        &mut self,
        _: Now,
        _: &mut RegionMemory,
        _: &mut dyn PlainSink,
    ) -> Result<usize, PortError> {
        Ok(0)
    }
    fn send_plain(&mut self, _: &mut RegionMemory, _: &[u8], _: Option<TxCsum>) -> bool {
        false
    }

    fn send_segments(&mut self, _: &mut RegionMemory, _: &mut Packet, _: &[u8]) -> usize {
        0
    }
    fn listen(&mut self, channel: u16, port: u16, backlog: u16) -> Result<Flow, Reason> {
        self.asked.push(format!("listen {channel} {port} {backlog}"));
        self.outcome().map(|()| Flow(9))
    }
    fn unlisten(&mut self, _: u16, listener: Flow) -> Result<(), Reason> {
        self.asked.push(format!("unlisten {}", listener.0));
        self.outcome()
    }
    fn connect(
        &mut self,
        _: Now,
        _: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason> {
        self.asked.push(format!("connect {remote} {local_port} {cookie}"));
        self.outcome().map(|()| Flow(11))
    }
    fn send(
        &mut self,
        _: Now,
        _: &mut RegionMemory,
        _: u16,
        flow: Flow,
        tx: &Tx,
    ) -> Result<(), Reason> {
        self.asked.push(format!("send {} {tx:?}", flow.0));
        self.outcome()?;
        if !tx.share {
            self.sent.push(tx.buf);
        }
        Ok(())
    }
    fn close(&mut self, _: Now, _: &mut RegionMemory, _: u16, flow: Flow) -> Result<(), Reason> {
        self.asked.push(format!("close {}", flow.0));
        self.outcome()
    }
    fn abort(&mut self, _: Now, _: &mut RegionMemory, _: u16, flow: Flow) -> Result<(), Reason> {
        self.asked.push(format!("abort {}", flow.0));
        self.outcome()
    }
    fn set_option(
        &mut self,
        _: Now,
        _: u16,
        _: Flow,
        option: Opt,
        value: u64,
    ) -> Result<(), Reason> {
        self.asked.push(format!("option {option:?} {value}"));
        self.outcome()
    }
    fn release(&mut self, _: Now, buf: u32) -> bool {
        self.released.push(buf);
        self.sending.contains(&buf)
    }
    fn retire(&mut self, buf: u32) {
        self.asked.push(format!("retire {buf}"));
    }
    fn close_channel(&mut self, _: Now, mem: &mut RegionMemory, channel: u16) {
        self.asked.push(format!("close_channel {channel}"));
        for buf in self.sent.drain(..) {
            mem.pool_mut().give(buf, Owner::Stack).unwrap();
        }
    }
    fn has_slots(&self, _: u16) -> bool {
        !self.deliver.is_empty()
    }
    fn poll_slots(&mut self, _: &mut RegionMemory, _: u16, out: &mut [Slot]) -> usize {
        let count = self.deliver.len().min(out.len());
        for (slot, out) in self.deliver.drain(..count).zip(out) {
            *out = slot;
        }
        count
    }
    fn advance(&mut self, _: Now, _: &mut RegionMemory) {}
    fn transmit(&mut self, _: Now, _: &mut RegionMemory) -> Result<usize, PortError> {
        Ok(0)
    }
    fn next_deadline(&self) -> Option<u64> {
        None
    }
    fn is_backlogged(&self) -> bool {
        false
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn caps(&self) -> Caps {
        Caps { mtu: 1500, tx_csum: false, rx_partial: false, gather: true }
    }
    fn release_reserve(&mut self, _: &mut RegionMemory) {}
    fn each_counter(&self, _: &mut dyn FnMut(&str, u64)) {}
}

pub(super) const CHANNEL: u16 = 3;
const BUFFERS_TOTAL: u32 = 512;

/// Channels over a fake stack port, and a guest that speaks in frames.
pub(super) struct Bench {
    pub(super) channels: Channels,
    pub(super) mem: RegionMemory,
    pub(super) engine: Fake,
    pub(super) seq: u32,
}

impl Bench {
    pub(super) fn new() -> Bench {
        let pool = Pool::new(crate::testing::buffers(BUFFERS_TOTAL));
        Bench::with(pool, Durability::without_host(FlushDomain::None))
    }

    /// A bench with this pool, whose stores become durable in this way.
    pub(super) fn with(pool: Pool, durability: Durability) -> Bench {
        Bench {
            channels: Channels::new(
                Terms {
                    region_uuid: [5; 16],
                    region_len: 1 << 20,
                    buffers_offset: 4096,
                    headroom: 128,
                    flows_max: 100,
                    address: [0; 16],
                    mtu: 1500,
                    mac: [2, 0, 0, 0, 0, 1],
                },
                durability,
            ),
            mem: RegionMemory::new(pool),
            engine: Fake::default(),
            seq: 0,
        }
    }

    /// A bench whose channel is open, with `granted` buffers asked for.
    pub(super) fn open(granted: u32) -> (Bench, Vec<u32>) {
        let mut bench = Bench::new();
        bench.hello(4096, 1000, granted);
        let welcome = bench.hear().expect("a WELCOME");
        assert_eq!(welcome.0.kind, Kind::Welcome);
        let mut buffers = Vec::new();
        while buffers.len() < granted as usize {
            let (header, records) = bench.hear().expect("a GRANT");
            assert_eq!(header.kind, Kind::Grant);
            buffers.extend(records.iter().flat_map(|r| frame::indices(r).collect::<Vec<_>>()));
        }
        (bench, buffers)
    }

    pub(super) fn say(&mut self, kind: Kind, seq: u32, limit: u32, body: &[u8]) {
        self.say_at(Now::default(), kind, seq, limit, body);
    }

    fn say_at(&mut self, now: Now, kind: Kind, seq: u32, limit: u32, body: &[u8]) {
        let header = Header {
            dst: [0; 6],
            src: [0; 6],
            kind,
            channel: CHANNEL,
            count: (body.len() / RECORD_LEN) as u16,
            seq,
            limit,
        };
        let mut bytes = vec![0; HEADER_LEN + body.len()];
        write(&mut bytes, &header, body);
        self.channels.take(now, &mut self.mem, &mut self.engine, &bytes);
    }

    /// Lets a second pass; whether that was noticed at all.
    fn watch(&mut self, second: u64, was_taken: bool) -> bool {
        let at = second * 1_000_000_000;
        let is_due = self.channels.next_look().is_some_and(|due| due <= at);
        if is_due {
            let now = Now { monotonic_ns: at, real_ns: 0 };
            self.channels.watch(now, &mut self.mem, &mut self.engine, was_taken);
        }
        is_due
    }

    pub(super) fn hello(&mut self, frame_size: u16, limit: u32, wanted: u32) {
        self.hello_with(frame_size, limit, wanted, 0);
    }

    pub(super) fn hello_with(&mut self, frame_size: u16, limit: u32, wanted: u32, features: u32) {
        let mut hello = Hello::new_zeroed();
        hello.version_min = 1;
        hello.version_max = 3;
        hello.frame_size_max.set(frame_size);
        hello.features.set(features);
        hello.nonce.set(77);
        hello.buffers_wanted.set(wanted);
        self.say(Kind::Hello, 0, limit, hello.as_bytes());
        self.seq = 0;
    }

    pub(super) fn slots(&mut self, slots: &[Slot]) {
        let mut body = vec![[0; RECORD_LEN]; slots.len()];
        for (slot, record) in slots.iter().zip(&mut body) {
            slot.write(record);
        }
        self.say(Kind::Slots, self.seq, 1000, body.as_flattened());
        self.seq += 1;
    }

    pub(super) fn give_back(&mut self, buffers: &[u32]) {
        let mut body = Vec::new();
        for chunk in buffers.chunks(INDICES_PER_RECORD) {
            let mut record = [0; RECORD_LEN];
            frame::write_indices(chunk, &mut record);
            body.extend(record);
        }
        self.say(Kind::Return, self.seq, 1000, &body);
        self.seq += 1;
    }

    pub(super) fn hear(&mut self) -> Option<(Header, Vec<[u8; RECORD_LEN]>)> {
        let mut out = vec![0; FRAME_SIZE];
        let len = self.channels.build(&mut self.mem, &mut self.engine, &mut out)?;
        let frame = Frame::parse(&out[..len]).unwrap();
        assert_eq!(frame.header.channel, CHANNEL);
        Some((frame.header, frame.records().copied().collect()))
    }

    /// The next frame, which must be slots.
    pub(super) fn hear_slots(&mut self) -> Vec<Slot> {
        let (header, records) = self.hear().expect("a frame of slots");
        assert_eq!(header.kind, Kind::Slots);
        records.iter().map(Slot::read).collect()
    }

    /// The next frame, which must be BYE.
    pub(super) fn hear_bye(&mut self) -> (Reason, u32, u32) {
        let (header, records) = self.hear().expect("a BYE");
        assert_eq!(header.kind, Kind::Bye);
        let bye = Bye::read(&records[0]).unwrap();
        (Reason::from_u16(bye.reason.get()).unwrap(), bye.expected.get(), bye.got.get())
    }

    pub(super) fn data(buf: u32, offset: u16, len: u16) -> Slot {
        Slot { buf_idx: buf, offset, len, ..Slot::request(Request::Data, Flow(1)) }
    }

    pub(super) fn owner(&self, buf: u32) -> Owner {
        self.mem.pool().owner(buf).unwrap()
    }
}

#[test]
fn hello_is_answered_with_the_terms() {
    let mut bench = Bench::new();
    bench.hello(4096, 10, 0);
    let (header, records) = bench.hear().unwrap();
    assert_eq!(header.kind, Kind::Welcome);
    assert_eq!(header.limit, WINDOW);
    let welcome = Welcome::read(records.as_flattened()).unwrap();
    assert_eq!(welcome.status.get(), Reason::Ok as u16);
    assert_eq!(welcome.nonce.get(), 77);
    assert_eq!(welcome.buffer_count.get(), BUFFERS_TOTAL);
    assert_eq!(welcome.buffer_size.get(), 2048);
    assert_eq!(welcome.frame_size_max.get(), 4096);
    assert_eq!(welcome.region_uuid, [5; 16]);
    assert!(bench.hear().is_none(), "nothing else to say");
}

#[test]
fn a_guest_without_a_common_version_or_room_for_a_frame_is_turned_away() {
    let mut bench = Bench::new();
    let mut hello = Hello::new_zeroed();
    hello.version_min = 2;
    hello.version_max = 9;
    hello.frame_size_max.set(4096);
    bench.say(Kind::Hello, 0, 10, hello.as_bytes());
    assert_eq!(bench.hear_bye().0, Reason::Version);
    bench.hello((FRAME_SIZE_MIN - 1) as u16, 10, 0);
    assert_eq!(bench.hear_bye().0, Reason::BadFrame);
    assert_eq!(bench.channels.open_count(), 0);
}

#[test]
fn listen_is_asked_for_and_answered() {
    let (mut bench, _) = Bench::open(0);
    bench.slots(&[Slot::listen(80, 64, 1234)]);
    assert_eq!(bench.engine.asked, ["close_channel 3", "listen 3 80 64"][1..]);
    let reply = bench.hear_slots()[0];
    assert_eq!(reply.as_event(), Some(Event::Reply));
    assert_eq!((reply.len, reply.flow, reply.cookie), (Reason::Ok as u16, Flow(9), 1234));

    bench.engine.answer = Some(Reason::PortInUse);
    bench.slots(&[Slot::listen(80, 64, 5)]);
    let reply = bench.hear_slots()[0];
    assert_eq!((reply.len, reply.cookie), (Reason::PortInUse as u16, 5));
}

#[test]
fn connect_is_asked_for_and_answered() {
    let (mut bench, _) = Bench::open(0);
    bench.slots(&[Slot::connect("10.0.0.9:8080".parse().unwrap(), 4000, 55)]);
    assert_eq!(bench.engine.asked, ["connect 10.0.0.9:8080 4000 55"]);
    let reply = bench.hear_slots()[0];
    assert_eq!((reply.len, reply.flow, reply.cookie), (0, Flow(11), 55));
}

#[test]
fn data_moves_the_buffer_with_the_slot() {
    let (mut bench, buffers) = Bench::open(2);
    let buf = buffers[0];
    assert_eq!(bench.owner(buf), Owner::Guest(CHANNEL));
    bench.slots(&[Slot { modifiers: KEEP, cookie: 8, ..Bench::data(buf, 128, 100) }]);
    assert_eq!(bench.owner(buf), Owner::Stack);
    assert_eq!(bench.engine.sent, [buf]);
    assert!(bench.engine.asked[0].contains("notify: true, keep: true"), "KEEP implies NOTIFY");
    assert!(bench.hear().is_none(), "nothing was refused");

    // Acknowledged, and kept: the guest's again.
    bench.engine.deliver.push_back(Slot {
        buf_idx: buf,
        cookie: 8,
        ..Slot::event(Event::Acked, Flow(1))
    });
    assert_eq!(bench.hear_slots()[0].buf_idx, buf);
    assert_eq!(bench.owner(buf), Owner::Guest(CHANNEL));
}

#[test]
fn a_buffer_that_is_not_the_guests_is_refused_whoever_has_it() {
    let (mut bench, buffers) = Bench::open(1);
    let in_pool = (0..BUFFERS_TOTAL).find(|b| !buffers.contains(b)).unwrap();
    let in_stack = bench.mem.pool_mut().take(Owner::Stack).unwrap();
    let others = bench.mem.pool_mut().take(Owner::Guest(CHANNEL + 1)).unwrap();
    for buf in [in_pool, in_stack, others, BUFFERS_TOTAL, NO_BUFFER] {
        let before = bench.mem.pool().owner(buf);
        bench.slots(&[Bench::data(buf, 128, 1)]);
        let refused = bench.hear_slots()[0];
        assert_eq!(refused.as_event(), Some(Event::Refused));
        assert_eq!(refused.len, Reason::ForeignBuffer as u16);
        assert_eq!(refused.buf_idx, buf);
        assert_eq!(bench.mem.pool().owner(buf), before);

        if buf != NO_BUFFER {
            bench.give_back(&[buf]);
            assert_eq!(bench.hear_slots()[0].len, Reason::ForeignBuffer as u16);
            assert_eq!(bench.mem.pool().owner(buf), before);
        }
    }
    assert!(bench.engine.sent.is_empty());
    assert_eq!(bench.channels.counters().foreign_buffer, 9);
}

#[test]
fn a_range_outside_headroom_and_buffer_is_refused_and_the_buffer_stays() {
    let (mut bench, buffers) = Bench::open(1);
    let buf = buffers[0];
    for (offset, len) in [(127, 1), (0, 10), (128, 0), (128, 1921), (2048, 1), (65535, 65535)] {
        bench.slots(&[Bench::data(buf, offset, len)]);
        assert_eq!(bench.hear_slots()[0].len, Reason::BadRange as u16, "{offset}+{len}");
        assert_eq!(bench.owner(buf), Owner::Guest(CHANNEL));
    }
    bench.slots(&[Bench::data(buf, 128, 1920)]);
    assert_eq!(bench.owner(buf), Owner::Stack, "the last byte of the buffer can be sent");
}

#[test]
fn what_the_stack_port_refuses_stays_the_guests() {
    let (mut bench, buffers) = Bench::open(1);
    let buf = buffers[0];
    for reason in [Reason::StaleFlow, Reason::FlowFull, Reason::Closed] {
        bench.engine.answer = Some(reason);
        bench.slots(&[Slot { cookie: 42, ..Bench::data(buf, 200, 5) }]);
        let refused = bench.hear_slots()[0];
        assert_eq!(refused.len, reason as u16);
        assert_eq!((refused.buf_idx, refused.offset, refused.cookie), (buf, 200, 42));
        assert_eq!(bench.owner(buf), Owner::Guest(CHANNEL));
    }
    let counters = bench.channels.counters();
    assert_eq!((counters.stale_flow, counters.flow_full, counters.refused), (1, 1, 1));
}

#[test]
fn unknown_requests_and_options_are_refused() {
    let (mut bench, _) = Bench::open(0);
    bench.slots(&[
        Slot { kind: 200, ..Slot::default() },
        Slot { len: 99, ..Slot::request(Request::SetOpt, Flow(1)) },
        Slot::listen(0, 1, 0),
    ]);
    let heard = bench.hear_slots();
    assert_eq!(heard[0].len, Reason::BadRequest as u16);
    assert_eq!(heard[1].len, Reason::BadRequest as u16);
    assert_eq!(heard[2].len, Reason::BadAddress as u16);
    assert!(bench.engine.asked.is_empty());
}

#[test]
fn returned_buffers_open_windows_and_go_to_the_pool() {
    let (mut bench, buffers) = Bench::open(20);
    let free = bench.mem.pool().free();
    bench.give_back(&buffers);
    assert_eq!(bench.mem.pool().free(), free + 20);
    assert_eq!(bench.engine.released, buffers);
    bench.give_back(&buffers[..1]);
    assert_eq!(bench.hear_slots()[0].len, Reason::ForeignBuffer as u16, "given back twice");
}

#[test]
fn delivered_payload_is_the_guests() {
    let (mut bench, _) = Bench::open(0);
    let buf = bench.mem.pool_mut().take(Owner::Stack).unwrap();
    bench.engine.deliver.push_back(Slot {
        buf_idx: buf,
        len: 100,
        offset: 130,
        ..Slot::event(Event::Data, Flow(7))
    });
    bench.engine.deliver.push_back(Slot::event(Event::Fin, Flow(7)));
    let heard = bench.hear_slots();
    assert_eq!(heard.len(), 2);
    assert_eq!(bench.owner(buf), Owner::Guest(CHANNEL));
    let counters = bench.channels.counters();
    assert_eq!((counters.slots_out, counters.data_out, counters.batches_out), (2, 1, 1));
}

#[test]
fn a_guest_without_room_hears_nothing_and_nothing_is_polled() {
    let mut bench = Bench::new();
    bench.hello(4096, 1, 0);
    bench.hear().unwrap();
    for _ in 0..300 {
        bench.engine.deliver.push_back(Slot::event(Event::Fin, Flow(1)));
    }
    assert_eq!(bench.hear_slots().len(), 127, "one frame of 4096 bytes");
    assert!(bench.hear().is_none());
    assert_eq!(bench.engine.deliver.len(), 173);
    bench.say(Kind::Credit, 0, 2, &[]);
    assert_eq!(bench.hear_slots().len(), 127);
    assert!(bench.hear().is_none());
}

#[test]
fn a_gap_closes_the_channel_and_its_buffers_return() {
    let (mut bench, _) = Bench::open(10);
    bench.seq = 5;
    bench.slots(&[]);
    assert_eq!(bench.hear_bye(), (Reason::SequenceGap, 0, 5));
    assert_eq!(bench.mem.pool().free(), BUFFERS_TOTAL);
    assert_eq!(bench.engine.asked, ["close_channel 3"]);
    assert!(bench.hear().is_none());

    // It may come back.
    bench.hello(4096, 10, 0);
    assert_eq!(bench.hear().unwrap().0.kind, Kind::Welcome);
}

#[test]
fn more_frames_than_allowed_close_the_channel() {
    let (mut bench, _) = Bench::open(0);
    for _ in 0..WINDOW {
        bench.slots(&[]);
    }
    assert_eq!(bench.channels.open_count(), 1);
    bench.slots(&[]);
    // What comes behind does not hide the reason.
    bench.slots(&[]);
    assert_eq!(bench.hear_bye(), (Reason::OverCredit, WINDOW, WINDOW));
}

#[test]
fn room_is_told_before_the_guest_runs_dry() {
    let (mut bench, _) = Bench::open(0);
    for _ in 0..WINDOW / 2 {
        bench.slots(&[]);
    }
    let (header, _) = bench.hear().expect("a CREDIT");
    assert_eq!((header.kind, header.limit), (Kind::Credit, WINDOW / 2 + WINDOW));
    assert!(bench.hear().is_none());
}

#[test]
fn who_has_ended_without_a_word_is_found_out_and_loses_its_channel() {
    let mut bench = Bench::new();
    bench.hello_with(4096, 10, 16, FEATURE_PROBE);
    let (_, welcome) = bench.hear().unwrap();
    let welcome = Welcome::read(welcome.as_flattened()).unwrap();
    assert_eq!(welcome.features.get(), FEATURE_PROBE);
    assert!(bench.hear().is_some_and(|(header, _)| header.kind == Kind::Grant));
    bench.slots(&[Slot::listen(80, 8, 0)]);
    bench.hear_slots();
    // It answers for a while, by one kind of frame or another.
    for second in 0..60 {
        bench.watch(second, true);
        if let Some((header, _)) = bench.hear() {
            assert_eq!((header.kind, header.seq), (Kind::Probe, 2), "it uses no number");
            let now = Now { monotonic_ns: second * 1_000_000_000, real_ns: 0 };
            if second % 2 == 0 {
                bench.say_at(now, Kind::Credit, bench.seq, 10, &[]);
            } else {
                bench.say_at(now, Kind::Return, bench.seq, 10, &[]);
                bench.seq += 1;
            }
        }
    }
    let asked = bench.channels.counters().probes_out;
    assert!((10..=12).contains(&asked), "{asked}");
    // And then no more.
    let mut second = 60;
    while bench.channels.open_count() > 0 {
        bench.watch(second, true);
        if bench.channels.open_count() > 0 {
            assert!(bench.hear().is_none_or(|(header, _)| header.kind == Kind::Probe));
        }
        second += 1;
        assert!(second < 110, "nobody has noticed");
    }
    assert!(second > 85, "it had no time to answer");
    assert_eq!(bench.mem.pool().free(), BUFFERS_TOTAL);
    assert_eq!(bench.engine.asked.last().map(String::as_str), Some("close_channel 3"));
    assert_eq!(bench.hear_bye().0, Reason::TimedOut);
    assert_eq!((bench.channels.counters().gone, bench.channels.next_look()), (1, None));
}

#[test]
fn nobody_is_asked_who_did_not_offer_to_answer() {
    let (mut bench, _) = Bench::open(10);
    assert!((0..1000).all(|second| !bench.watch(second, true)));
    assert_eq!(bench.channels.open_count(), 1);
}

#[test]
fn a_machine_that_stands_still_keeps_its_channels() {
    let mut bench = Bench::new();
    bench.hello_with(4096, 10, 0, FEATURE_PROBE);
    bench.hear().unwrap();
    // What it was sent last it has not taken; then its ring has no room, and nothing is
    // built for it.
    for second in 0..300 {
        bench.watch(second, false);
        if second < 150 {
            bench.hear();
        }
    }
    assert_eq!(bench.channels.open_count(), 1);
    assert_eq!(bench.channels.counters().probes_out, 1);
}

#[test]
fn a_guest_that_asks_whether_the_host_lives_breaks_the_protocol() {
    let (mut bench, _) = Bench::open(0);
    bench.say(Kind::Probe, 0, 1000, &[]);
    assert_eq!(bench.hear_bye().0, Reason::BadFrame);
}

#[test]
fn a_frame_for_a_closed_channel_is_answered_once_with_bye() {
    let mut bench = Bench::new();
    bench.slots(&[]);
    bench.slots(&[]);
    assert_eq!(bench.hear_bye().0, Reason::Closed);
    assert!(bench.hear().is_none());
}

#[test]
fn frames_that_only_a_host_sends_close_the_channel() {
    for kind in [Kind::Welcome, Kind::Grant] {
        let (mut bench, _) = Bench::open(0);
        bench.say(kind, 0, 10, &[]);
        assert_eq!(bench.hear_bye().0, Reason::BadFrame);
    }
}

#[test]
fn a_frame_that_does_not_parse_closes_the_channel_that_it_names() {
    let (mut bench, _) = Bench::open(0);
    let mut bytes = vec![0; HEADER_LEN];
    Header {
        dst: [0; 6],
        src: [0; 6],
        kind: Kind::Slots,
        channel: CHANNEL,
        count: 9,
        seq: 0,
        limit: 0,
    }
    .write(bytes.first_chunk_mut().unwrap());
    bench.channels.take(Now::default(), &mut bench.mem, &mut bench.engine, &bytes);
    assert_eq!(bench.hear_bye().0, Reason::BadFrame);
    bench.channels.take(Now::default(), &mut bench.mem, &mut bench.engine, &bytes);
    assert!(bench.hear().is_none(), "nobody is there to be told");
}

#[test]
fn a_guest_causes_a_bounded_number_of_log_lines() {
    let mut gate = LogGate::default();
    let at = |monotonic_ns| Now { monotonic_ns, real_ns: 0 };
    let lines = |gate: &mut LogGate, ns| (0..1000).filter(|_| gate.allows(at(ns))).count();
    assert_eq!(lines(&mut gate, 5), LOG_LINES_PER_SECOND as usize);
    assert_eq!(lines(&mut gate, 999_999_999), 0, "the same second");
    assert_eq!(lines(&mut gate, 1_000_000_000), LOG_LINES_PER_SECOND as usize);
}

#[test]
fn no_guest_is_granted_more_than_its_share() {
    let mut bench = Bench::new();
    bench.hello(4096, 1000, 0);
    bench.hear().unwrap();
    bench.slots(&[Slot { len: u16::MAX, ..Slot::request(Request::Want, Flow(0)) }]);
    let mut granted = 0;
    while let Some((header, records)) = bench.hear() {
        assert_eq!(header.kind, Kind::Grant);
        granted += records.iter().flat_map(frame::indices).count() as u32;
    }
    assert_eq!(granted, BUFFERS_TOTAL / 2);
    assert_eq!(bench.mem.pool().count_of(Owner::Guest(CHANNEL)), BUFFERS_TOTAL / 2);
}

#[test]
fn bye_and_the_guests_end_give_everything_back() {
    for end in [0, 1] {
        let (mut bench, buffers) = Bench::open(10);
        bench.slots(&[Bench::data(buffers[0], 128, 10)]);
        match end {
            0 => bench.say(Kind::Bye, 0, 0, Bye::new_zeroed().as_bytes()),
            _ => bench.channels.close_all(Now::default(), &mut bench.mem, &mut bench.engine),
        }
        assert_eq!(bench.mem.pool().free(), BUFFERS_TOTAL);
        assert!(bench.hear().is_none(), "nobody is there to hear");
    }
}

#[test]
fn a_shutdown_is_told() {
    let (mut bench, _) = Bench::open(10);
    bench.channels.shut_down(Now::default(), &mut bench.mem, &mut bench.engine);
    assert_eq!(bench.hear_bye().0, Reason::Shutdown);
    assert_eq!(bench.mem.pool().free(), BUFFERS_TOTAL);
}

#[test]
fn a_flood_of_refusals_is_bounded_by_the_window() {
    let (mut bench, _) = Bench::open(0);
    let bad = [Slot { kind: 200, ..Slot::default() }; 127];
    for _ in 0..WINDOW {
        bench.slots(&bad);
    }
    assert_eq!(bench.channels.open_count(), 1);
    bench.slots(&bad);
    assert_eq!(bench.hear_bye().0, Reason::OverCredit, "no limit while refusals wait");
}

proptest::proptest! {
    /// Whatever bytes a guest sends, nothing panics and no buffer is lost.
    #[test]
    fn any_bytes_leave_the_books_right(
        frames in proptest::collection::vec(
            (0u8..8, 0u32..3, proptest::collection::vec(proptest::num::u8::ANY, 0..200)), 0..40
        ),
    ) {
        let (mut bench, _) = Bench::open(5);
        for (kind, seq, body) in frames {
            let mut bytes = vec![0; HEADER_LEN];
            bytes[12..14].copy_from_slice(&paste_abi::ETHERTYPE.to_be_bytes());
            bytes[14] = VERSION;
            bytes[15] = kind;
            bytes[16] = CHANNEL as u8;
            bytes[18] = (body.len() / RECORD_LEN) as u8;
            bytes[20] = seq as u8;
            bytes.extend(body);
            bench.channels.take(Now::default(), &mut bench.mem, &mut bench.engine, &bytes);
            while bench.hear().is_some() {}
        }
        bench.channels.close_all(Now::default(), &mut bench.mem, &mut bench.engine);
        proptest::prop_assert_eq!(bench.mem.pool().free(), BUFFERS_TOTAL);
    }
}
