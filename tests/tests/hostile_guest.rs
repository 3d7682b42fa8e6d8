//! A guest that breaks every rule: it is refused, counted and told, it hurts
//! only itself, and its socket takes the next front end.

#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use paste_abi::control::Hello;
use paste_abi::frame::{HEADER_LEN, RECORD_LEN};
use paste_abi::vhost_user::{FLAG_NEED_REPLY, FLAG_VERSION, request};
use paste_abi::{Event, Flow, Kind, NO_BUFFER, Reason, Request, Slot, frame};
use paste_tests::backend::{Backend, FIXED_BODY, Guest, Stats, wait_serving};
use paste_tests::client;
use paste_tests::frontend::{
    Descriptor, RawGuest, Ring, Session, StartOptions, flag, message, paste_frame, shared_memory,
};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::wait;
use zerocopy::{FromZeros, IntoBytes};

const NEEDS: [Need; 3] = [Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http")];
/// Where the front end says that its memory is.
const ADDRESS: u64 = 1 << 32;

/// A backend with a hostile guest's socket, and a neighbour that is served by the same
/// worker.
struct Arena {
    neighbour: Process,
    backend: Backend,
    hostile: Guest,
    honest: Guest,
    net: Namespace,
}

impl Arena {
    fn start() -> Arena {
        let net = Namespace::new();
        let (hostile, honest) = (Guest::apart(1), Guest::apart(2));
        for guest in [&hostile, &honest] {
            net.tap_with(&guest.tap, &guest.near_address());
        }
        let guests = [hostile.clone(), honest.clone()];
        let backend = Backend::start_with(&net, "workers = 1", &guests);
        let neighbour = backend.example(&net, &honest, "http", &[]);
        wait_serving(&net, &honest);
        Arena { neighbour, backend, hostile, honest, net }
    }

    fn attach(&self) -> RawGuest {
        RawGuest::attach_soon(&self.backend.socket(&self.hostile))
    }

    fn session(&self) -> Session {
        let socket = self.backend.socket(&self.hostile);
        wait::until("the back end negotiates", || Session::negotiated(&socket).ok())
    }

    /// The process lives, and the neighbour is served as if nothing were.
    fn check(&mut self) {
        assert!(self.backend.process.is_alive(), "pasted ended");
        let response = self.net.run(|| client::get_once(self.honest.ip(), "/"));
        let response = response.expect("the neighbour answers");
        assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
    }

    /// The hostile guest's socket takes the next front end, which is served.
    fn check_next(&mut self) {
        let mut next = self.attach();
        assert!(!next.open(0, 16).is_empty());
        next.listen(0, 80);
        self.net.run(|| client::connect(self.hostile.ip(), 80)).expect("it is accepted");
        self.check();
    }

    /// Ends all of it; no buffer may be missing, the neighbour's neither.
    fn finish(mut self) -> (Stats, Guest) {
        self.check_next();
        self.neighbour.terminate();
        assert_eq!(self.neighbour.wait().code(), Some(0));
        let stats = self.backend.stop();
        stats.assert_no_buffer_missing(&self.hostile);
        stats.assert_no_buffer_missing(&self.honest);
        assert_eq!(stats.get(&self.honest, "device.sessions"), 1, "the neighbour noticed");
        (stats, self.hostile)
    }
}

#[test]
fn malformed_frames_close_the_channel() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut arena = Arena::start();
    let mut guest = arena.attach();
    let good = paste_frame(Kind::Slots, 0, 0, 64, &[0; RECORD_LEN]);
    let spoiled = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut hello = Hello::new_zeroed();
    hello.version_max = 1;
    hello.frame_size_max = 1500.into();
    let told = [
        spoiled(14, 0),
        spoiled(14, 2),
        spoiled(15, 0),
        spoiled(15, 8),
        spoiled(15, 255),
        spoiled(18, 2),
        spoiled(19, 0xff),
        spoiled(28, 1),
        spoiled(31, 0x80),
        paste_frame(Kind::Welcome, 0, 0, 64, &[0; 4 * RECORD_LEN]),
        paste_frame(Kind::Grant, 0, 0, 64, &[0; RECORD_LEN]),
        paste_frame(Kind::Hello, 0, 0, 64, &[0; RECORD_LEN]),
        paste_frame(Kind::Hello, 0, 0, 64, &hello.as_bytes().repeat(2)),
    ];
    for bytes in &told {
        guest.open(0, 4);
        guest.send(bytes);
        assert_eq!(guest.bye(), Reason::BadFrame, "{bytes:x?}");
    }
    // No conversation to tell: too short for a channel, or another's number.
    guest.open(0, 4);
    let untold = [&good[..14], &good[..HEADER_LEN - 1], &spoiled(16, 16), &spoiled(17, 1)];
    for bytes in untold {
        guest.send(bytes);
    }
    guest.drain();
    guest.listen(0, 80);
    arena.check();
    drop(guest);
    let (stats, hostile) = arena.finish();
    // A frame too short to be one of ours may be counted by the device instead.
    assert!(stats.get(&hostile, "channel.malformed") >= told.len() as u64 + 2);
}

#[test]
fn foreign_buffers_and_bad_ranges_are_refused() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut arena = Arena::start();
    let mut guest = arena.attach();
    let ours = guest.open(0, 32);
    let theirs = guest.open(1, 8);
    guest.listen(0, 80);
    let _stream = arena.net.run(|| client::connect(arena.hostile.ip(), 80)).expect("accepted");
    let accepted = guest.slots();
    let flow =
        accepted.iter().find(|s| s.as_event() == Some(Event::Accepted)).expect("a flow").flow;

    let data =
        |buf_idx, offset, len| Slot { buf_idx, offset, len, ..Slot::request(Request::Data, flow) };
    let free = (0..).find(|buf| !ours.contains(buf) && !theirs.contains(buf)).expect("another");
    let cases = [
        (data(free, 128, 64), Reason::ForeignBuffer),
        (data(theirs[0], 128, 64), Reason::ForeignBuffer),
        (data(1 << 30, 128, 64), Reason::ForeignBuffer),
        (data(NO_BUFFER, 128, 64), Reason::ForeignBuffer),
        (data(ours[0], 0, 64), Reason::BadRange),
        (data(ours[0], 127, 64), Reason::BadRange),
        (data(ours[0], 128, 0), Reason::BadRange),
        (data(ours[0], 128, 2048), Reason::BadRange),
        (data(ours[0], u16::MAX, u16::MAX), Reason::BadRange),
    ];
    for (slot, reason) in cases {
        guest.request(0, &[slot]);
        assert_eq!(guest.refusal(), reason, "{slot:?}");
    }
    // A buffer that was returned is nobody's, and not the guest's twice.
    let mut record = [0; RECORD_LEN];
    frame::write_indices(&ours[..1], &mut record);
    guest.send_records(Kind::Return, 0, &record);
    guest.send_records(Kind::Return, 0, &record);
    assert_eq!(guest.refusal(), Reason::ForeignBuffer);
    guest.request(0, &[data(ours[0], 128, 64)]);
    assert_eq!(guest.refusal(), Reason::ForeignBuffer);
    // The same buffer twice in one frame: the first is sent, the second refused.
    guest.request(0, &[data(ours[1], 128, 64), data(ours[1], 128, 64)]);
    assert_eq!(guest.refusal(), Reason::ForeignBuffer);
    frame::write_indices(&[free, u32::MAX - 1, 1 << 30, theirs[0]], &mut record);
    guest.send_records(Kind::Return, 0, &record);
    assert_eq!(guest.refusal(), Reason::ForeignBuffer);
    // What is still the guest's still goes.
    let kept = Slot { modifiers: paste_abi::slot::NOTIFY, cookie: 77, ..data(ours[2], 128, 64) };
    guest.request(0, &[kept]);
    let acked = wait::until("an acknowledgement comes", || {
        guest.slots().into_iter().find(|slot| slot.as_event() == Some(Event::Acked))
    });
    assert_eq!((acked.cookie, acked.len), (77, Reason::Ok as u16));
    arena.check();
    drop(guest);
    let (stats, hostile) = arena.finish();
    assert_eq!(stats.get(&hostile, "channel.foreign_buffer"), 8);
    assert_eq!(stats.get(&hostile, "channel.bad_range"), 5);
}

#[test]
fn stale_flows_and_unknown_requests_are_refused() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut arena = Arena::start();
    let mut guest = arena.attach();
    let ours = guest.open(0, 8);
    guest.open(1, 8);
    guest.listen(0, 80);
    let stream = arena.net.run(|| client::connect(arena.hostile.ip(), 80)).expect("accepted");
    let flow = guest.slots()[0].flow;

    // Another channel's flow, one that never was, and one of another generation.
    let strangers = [
        (1, flow),
        (0, Flow::new(flow.index() + 1, 0)),
        (0, Flow::new(Flow::INDEX_MAX - 1, 5)),
        (0, Flow::new(flow.index(), flow.generation() + 1)),
    ];
    for (channel, flow) in strangers {
        for kind in [Request::Close, Request::Abort] {
            guest.request(channel, &[Slot::request(kind, flow)]);
            assert_eq!(guest.refusal(), Reason::StaleFlow, "{flow:?}");
        }
        let option = Slot { len: 1, ..Slot::request(Request::SetOpt, flow) };
        guest.request(channel, &[option]);
        assert_eq!(guest.refusal(), Reason::StaleFlow, "{flow:?}");
    }
    let lost = Slot {
        buf_idx: ours[0],
        offset: 128,
        len: 64,
        ..Slot::request(Request::Data, Flow::new(9, 9))
    };
    guest.request(0, &[lost]);
    assert_eq!(guest.refusal(), Reason::StaleFlow);

    // The flow ends; its name is dead.
    drop(stream);
    guest.request(0, &[Slot::request(Request::Abort, flow)]);
    wait::until("the flow ends", || {
        guest.slots().into_iter().find(|slot| slot.as_event() == Some(Event::Reset))
    });
    guest.request(0, &[Slot::request(Request::Close, flow)]);
    assert_eq!(guest.refusal(), Reason::StaleFlow);

    for kind in [8, 9, 77, 255] {
        guest.request(0, &[Slot { kind, ..Slot::default() }]);
        assert_eq!(guest.refusal(), Reason::BadRequest, "kind {kind}");
    }
    arena.check();
    drop(guest);
    let (stats, hostile) = arena.finish();
    assert_eq!(stats.get(&hostile, "channel.stale_flow"), 14);
}

#[test]
fn gaps_and_frames_without_credit_close_the_channel() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut arena = Arena::start();
    let mut guest = arena.attach();
    let filler = [0xff; RECORD_LEN];
    for seq in [1, 2, 1 << 31, u32::MAX] {
        guest.open(0, 4);
        guest.send(&paste_frame(Kind::Return, 0, seq, 64, &filler));
        assert_eq!(guest.bye(), Reason::SequenceGap, "sequence number {seq}");
    }
    // The same number again.
    guest.open(0, 4);
    guest.send_records(Kind::Return, 0, &filler);
    guest.send(&paste_frame(Kind::Return, 0, 0, 64, &filler));
    assert_eq!(guest.bye(), Reason::SequenceGap);
    // A channel that is not open.
    guest.send(&paste_frame(Kind::Return, 3, 0, 64, &filler));
    assert_eq!(guest.bye(), Reason::Closed);
    drop(guest);

    // One receive buffer, which WELCOME takes: the host can tell no new limit,
    // and frames beyond the first one are too many.
    let socket = arena.backend.socket(&arena.hostile);
    let mut guest = wait::until("the back end accepts a front end", || {
        RawGuest::attach_with(&socket, StartOptions { receive: 1 }).ok()
    });
    guest.refills = false;
    guest.hello(0, 1 << 20, 0);
    for _ in 0..1000 {
        guest.send_records(Kind::Return, 0, &filler);
    }
    guest.drain();
    for index in 1..Ring::SIZE {
        guest.offer_receive(index);
    }
    guest.kick();
    assert_eq!(guest.bye(), Reason::OverCredit);
    arena.check();
    drop(guest);
    arena.finish();
}

/// Sends a frame, and says whether anything came of it.
fn is_answered(guest: &mut RawGuest, frame: &[u8]) -> bool {
    guest.send(frame);
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        if guest.rx.take().is_some() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn broken_rings_stop_only_their_own_device() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut arena = Arena::start();
    let outside = ADDRESS + 2 * Ring::LEN;
    let at = |guest: &RawGuest| guest.tx.buffer(0);
    let plain = |addr, len| Descriptor { addr, len, flags: 0, next: 0 };
    type Break = Box<dyn Fn(&mut RawGuest)>;
    let offer = |descriptors: Vec<Descriptor>| -> Break {
        Box::new(move |guest| {
            for (index, descriptor) in descriptors.iter().enumerate() {
                guest.tx.set(index as u16, *descriptor);
            }
            guest.tx.offer(0);
        })
    };
    let next = |next| Descriptor { addr: ADDRESS, len: 64, flags: flag::NEXT, next };
    let with = |flags| Descriptor { addr: ADDRESS, len: 64, flags, next: 0 };
    let cases: Vec<(&str, Break)> = vec![
        ("outside the memory", offer(vec![plain(outside, 64)])),
        ("across its end", offer(vec![plain(outside - 32, 64)])),
        ("at null", offer(vec![plain(0, 64)])),
        ("at the last address", offer(vec![plain(u64::MAX - 8, 64)])),
        ("no bytes", offer(vec![plain(ADDRESS, 0)])),
        ("a circle of one", offer(vec![next(0)])),
        ("a circle of two", offer(vec![next(1), next(0)])),
        ("a next one that is not there", offer(vec![next(Ring::SIZE)])),
        ("far next", offer(vec![next(u16::MAX)])),
        ("a buffer to be written", offer(vec![with(flag::WRITE)])),
        ("an indirect one, not negotiated", offer(vec![with(flag::INDIRECT)])),
        ("a head that is not there", Box::new(|guest| guest.tx.offer(Ring::SIZE))),
        ("a far head", Box::new(|guest| guest.tx.offer(u16::MAX))),
        ("a jump of the index", Box::new(|guest| guest.tx.jump(Ring::SIZE + 1))),
        ("a far jump of the index", Box::new(|guest| guest.tx.jump(0x8000))),
        (
            "a receive buffer that may not be written",
            Box::new(move |guest| {
                let addr = at(guest);
                // The ring was offered in full. What the device has read of it stays as it
                // was; the next that it reads is spoiled.
                for index in 0..Ring::SIZE {
                    guest.rx.set(index, plain(addr, Ring::BUFFER));
                }
                let hello = {
                    let mut hello = Hello::new_zeroed();
                    hello.version_min = 1;
                    hello.version_max = 1;
                    hello.frame_size_max = 1500.into();
                    hello
                };
                let hello = paste_frame(Kind::Hello, 5, 0, 64, hello.as_bytes());
                let mut sent = 0;
                while sent < Ring::SIZE / 2 && is_answered(guest, &hello) {
                    sent += 1;
                }
            }),
        ),
    ];
    let count = cases.len() as u64;

    // A chain longer than any frame is thrown away, wherever it points.
    let mut guest = arena.attach();
    guest.open(0, 4);
    guest.tx.set(9, plain(ADDRESS, u32::MAX));
    guest.tx.offer(9);
    guest.kick();
    guest.drain();
    guest.listen(0, 80);
    drop(guest);

    for (number, (what, break_ring)) in cases.into_iter().enumerate() {
        let mut guest = arena.attach();
        guest.open(0, 4);
        guest.listen(0, 80);
        break_ring(&mut guest);
        guest.kick();
        wait::until(&format!("{what}: the ring is found broken"), || {
            let said = arena.backend.process.output();
            (said.matches("the driver broke its ring").count() > number).then_some(())
        });
        arena.check();
        // The flows of a guest that is out of order are reset.
        let ip = arena.hostile.ip();
        arena.net.run(|| {
            wait::until("the guest is cut off", || client::connect(ip, 80).is_err().then_some(()));
        });
    }
    let (stats, hostile) = arena.finish();
    assert_eq!(stats.get(&hostile, "worker.ring_errors"), count);
    assert_eq!(stats.get(&hostile, "device.tx_oversize"), 1);
}

#[test]
fn bad_messages_end_only_their_own_session() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut arena = Arena::start();
    let before = arena.backend.descriptors();
    let null = File::open("/dev/null").expect("it exists");
    let fds = |count: usize| -> Vec<BorrowedFd<'_>> { vec![null.as_fd(); count] };
    let number = |value: u64| value.to_le_bytes().to_vec();
    let pair = |index: u32, num: u32| [index.to_le_bytes(), num.to_le_bytes()].concat();
    let version = FLAG_VERSION;

    // Not a message that could be refused: the session ends.
    let fatal: Vec<(&str, Vec<u8>, usize)> = vec![
        ("no version", message(request::GET_FEATURES, 0, &[]), 0),
        ("another version", message(request::GET_FEATURES, 2, &[]), 0),
        ("a reply", message(request::GET_FEATURES, version | 4, &[]), 0),
        ("too long", message(request::SET_FEATURES, version, &[0; 5000]), 0),
        ("short", message(request::SET_FEATURES, version, &[0; 7]), 0),
        ("long", message(request::SET_FEATURES, version, &[0; 9]), 0),
        ("payload where there is none", message(request::GET_FEATURES, version, &[0; 8]), 0),
        ("a table without its regions", message(request::SET_MEM_TABLE, version, &pair(4, 0)), 4),
        ("a table of too many", message(request::SET_MEM_TABLE, version, &pair(1 << 31, 0)), 1),
        ("descriptors for nothing", message(request::GET_FEATURES, version, &[]), 1),
        ("a flood of descriptors", message(request::SET_FEATURES, version, &number(0)), 200),
        ("two kicks", message(request::SET_VRING_KICK, version, &number(0)), 2),
        ("no kick", message(request::SET_VRING_KICK, version, &number(0)), 0),
        ("noise", (0..512u32).map(|at| ((at * 167) >> 2) as u8).collect(), 0),
    ];
    for (what, bytes, descriptors) in fatal {
        eprintln!("{what}");
        let session = arena.session();
        // It may have ended before all is said.
        let _ = session.send_raw(&bytes, &fds(descriptors));
        assert!(session.is_closed(), "{what}: the session goes on");
        arena.check();
    }

    // Refused, and the session goes on.
    let refused: Vec<(&str, u32, Vec<u8>, usize)> = vec![
        ("unknown", 7777, vec![], 0),
        ("unknown with much", u32::MAX, vec![1; 4000], 3),
        ("features never offered", request::SET_FEATURES, number(u64::MAX), 0),
        ("a ring that is not there", request::SET_VRING_NUM, pair(2, 256), 0),
        ("a far ring", request::SET_VRING_BASE, pair(u32::MAX, 0), 0),
        ("a size that is no power of two", request::SET_VRING_NUM, pair(0, 100), 0),
        ("no size", request::SET_VRING_NUM, pair(0, 0), 0),
        ("a large size", request::SET_VRING_NUM, pair(0, 1 << 20), 0),
        ("a large base", request::SET_VRING_BASE, pair(0, 1 << 16), 0),
        ("half enabled", request::SET_VRING_ENABLE, pair(0, 2), 0),
        ("a kick that never rings", request::SET_VRING_KICK, number(0), 1),
        ("memory of no bytes", request::SET_MEM_TABLE, table(&[[0x1000, 0, 0x1000, 0]]), 1),
        ("memory past the end", request::SET_MEM_TABLE, table(&[[!0 - 0xfff, 0x2000, 0, 0]]), 1),
        ("memory that is none", request::SET_MEM_TABLE, table(&[[0, 0x1000, 0, 0]]), 1),
        ("a status of many bits", request::SET_STATUS, number(1 << 40), 0),
        ("memory that was never added", request::REM_MEM_REG, region([0, 0x1000, 0, 0]), 0),
    ];
    let session = arena.session();
    for (what, number, payload, descriptors) in &refused {
        let (payload, fds) = (payload, fds(*descriptors));
        session.send(*number, FLAG_NEED_REPLY, payload, &fds).expect("the session lives");
        let reply = session.receive().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(reply.request, *number, "{what}");
        assert_ne!(reply.payload, [0; 8], "{what} was granted");
    }
    // Memory that is real, but twice in the same place.
    let memory = shared_memory(0x2000);
    let twice = table(&[[0x1000, 0x2000, 0x1000, 0], [0x2000, 0x2000, 0x2000, 0]]);
    let both = [memory.as_fd(), memory.as_fd()];
    session.send(request::SET_MEM_TABLE, FLAG_NEED_REPLY, &twice, &both).expect("it lives");
    assert_ne!(session.receive().expect("an answer").payload, [0; 8], "overlap was granted");
    assert!(session.ask(request::GET_FEATURES).is_ok(), "the session goes on");
    drop(session);

    // A message that never ends, and one that ends in the middle.
    let session = arena.session();
    session.send_raw(&message(request::SET_FEATURES, version, &[0; 8])[..13], &[]).expect("room");
    arena.check();
    drop(session);
    // A front end that asks and asks, and never reads an answer.
    let socket = arena.backend.socket(&arena.hostile);
    let mut deaf = wait::until("a connection", || UnixStream::connect(&socket).ok());
    deaf.set_write_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let questions = message(request::GET_CONFIG, version, &config_question()).repeat(64);
    for _ in 0..2000 {
        if deaf.write_all(&questions).is_err() {
            break;
        }
    }
    arena.check();
    drop(deaf);
    arena.check_next();
    wait::until("descriptors are closed", || {
        (arena.backend.descriptors() <= before + 2).then_some(())
    });
    let (stats, hostile) = arena.finish();
    assert!(stats.get(&hostile, "device.messages_refused") >= refused.len() as u64 - 2);
    assert_eq!(stats.get(&hostile, "device.messages_unknown"), 2);
}

/// SET_MEM_TABLE of regions: guest address, size, front-end address, offset.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut bytes = [(regions.len() as u32).to_le_bytes(), [0; 4]].concat();
    for word in regions.iter().flatten() {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// ADD_MEM_REG or REM_MEM_REG.
fn region(words: [u64; 4]) -> Vec<u8> {
    let words = [[0].as_slice(), &words].concat();
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// GET_CONFIG of the whole configuration space.
fn config_question() -> Vec<u8> {
    let header = [0u32, 256, 0].iter().flat_map(|word| word.to_le_bytes());
    header.chain([0; 256]).collect()
}

#[test]
fn memory_cut_off_under_the_device_costs_only_the_session() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut arena = Arena::start();
    for turn in 0..3 {
        let mut guest = arena.attach();
        guest.open(0, 16);
        guest.listen(0, 80);
        guest.memory.truncate();
        guest.kick();
        if turn > 0 {
            // Traffic from the wire meets the hole as well.
            let ip = arena.hostile.ip();
            arena.net.run(|| drop(client::connect(ip, 80)));
        }
        arena.check();
        assert!(guest.session.is_closed(), "the session goes on without its memory");
        arena.check_next();
    }
    arena.finish();
}

#[test]
fn a_guest_that_never_reads_closes_its_windows_and_nobody_elses() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    let mut arena = Arena::start();
    let mut guest = arena.attach();
    guest.open(0, 64);
    guest.listen(0, 80);
    let before_kb = arena.backend.private_kb();

    // Clients that send as long as they can; buffers are never returned.
    let ip = arena.hostile.ip();
    let sent: Vec<u64> = arena.net.run(|| {
        std::thread::scope(|scope| {
            let senders: Vec<_> = (0..8).map(|_| scope.spawn(|| fill(ip))).collect();
            senders.into_iter().map(|sender| sender.join().expect("a sender")).collect()
        })
    });
    let region = 16 << 20;
    let taken: u64 = sent.iter().sum();
    // What the guest was shown, and what the senders' kernels hold back.
    assert!(taken < 2 * region + 8 * (8 << 20), "{taken} bytes went into a region of {region}");

    // The neighbour does not notice: many requests, promptly.
    let started = Instant::now();
    arena.net.run(|| {
        let mut stream = client::connect(arena.honest.ip(), 80).expect("a connection");
        for _ in 0..500 {
            let response = client::get(&mut stream, "/").expect("an answer");
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
        }
    });
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "the neighbour was slowed: {took:?}");
    let grown_kb = arena.backend.private_kb().saturating_sub(before_kb);
    assert!(grown_kb < 4096, "the backend grew by {grown_kb} kB");

    // A guest that takes nothing at all from its ring.
    guest.refills = false;
    while guest.try_receive().is_some() {}
    arena.check();
    drop(guest);
    arena.finish();
}

/// Sends until nothing more goes, and returns how many bytes went.
fn fill(ip: &str) -> u64 {
    let mut stream = client::connect(ip, 80).expect("a connection");
    stream.set_write_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let part = [b'x'; 16 * 1024];
    let mut sent = 0;
    while let Ok(len) = stream.write(&part) {
        sent += len as u64;
        assert!(sent < 1 << 30, "the window never closes");
    }
    sent
}

#[test]
fn a_flood_of_plain_frames_and_noise_is_survived() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    let mut arena = Arena::start();
    let mut guest = arena.attach();
    guest.open(0, 4);
    for round in 0..5_000u64 {
        let len = paste_tests::sim::pattern(1, round) as usize * 6;
        let bytes: Vec<u8> =
            (0..len as u64).map(|at| paste_tests::sim::pattern(round, at)).collect();
        guest.send(&bytes);
    }
    guest.drain();
    guest.listen(0, 80);
    arena.check();
    drop(guest);
    arena.finish();
}
