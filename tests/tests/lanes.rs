//! One guest on several workers, with a queue pair on each: its flows are spread, each
//! stays on its pair, and what goes wrong on one pair is the guest's own affair.

#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use paste_abi::{Event, Flow, Frame, Kind, Reason, Request, Slot};
use paste_guest::log::{Log, LogError};
use paste_guest::{Channel, Endpoint, OpenError, Options, SendOptions, Timeout, TransportError};
use paste_tests::backend::{Backend, Guest, Stats};
use paste_tests::client;
use paste_tests::frontend::{Descriptor, RawGuest, StartOptions};
use paste_tests::netns::Namespace;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::wait;

const NEEDS: [Need; 2] = [Need::Namespaces, Need::Built("pasted")];
/// VIRTIO_NET_F_MQ and VIRTIO_NET_F_CTRL_VQ.
const MQ: u64 = 1 << 22 | 1 << 17;
/// Connections of a trial.
const CONNECTIONS: usize = 24;

/// A backend with one guest on two workers, and one on the first of them.
struct Scene {
    backend: Backend,
    guest: Guest,
    other: Guest,
    net: Namespace,
}

impl Scene {
    fn start() -> Scene {
        Scene::start_with("")
    }

    /// Likewise, with a further line for the guest on two workers.
    fn start_with(more: &str) -> Scene {
        let net = Namespace::new();
        let (mut guest, mut other) = (Guest::apart(1), Guest::apart(2));
        guest.more.push_str("worker = [0, 1]\n");
        guest.more.push_str(more);
        other.more.push_str("worker = 0\n");
        for guest in [&guest, &other] {
            net.tap_with(&guest.tap, &guest.near_address());
        }
        let backend = Backend::start_with(&net, "workers = 2", &[guest.clone(), other.clone()]);
        Scene { backend, guest, other, net }
    }

    /// Attaches with this many pairs.
    fn attach(&self, pairs: u32) -> Vec<Pair> {
        let socket = self.backend.socket(&self.guest);
        let attach = || RawGuest::attach_pairs(&socket, pairs, MQ, StartOptions::default()).ok();
        let guests = wait::until("the back end accepts a front end", attach);
        guests.into_iter().map(Pair::new).collect()
    }

    /// Lane `index` of the guest, as the statistics have it.
    fn lane(&self, index: usize) -> Guest {
        let name = if index == 0 { "web1".to_owned() } else { format!("web1/{index}") };
        Guest { name, ..self.guest.clone() }
    }

    fn stop(self) -> Stats {
        let lanes = [self.lane(0), self.lane(1)];
        let stats = self.backend.stop();
        lanes.iter().for_each(|lane| stats.assert_no_buffer_missing(lane));
        stats.assert_no_buffer_missing(&self.other);
        stats
    }
}

/// A queue pair, and the application that speaks on it: it sends back what it gets.
struct Pair {
    raw: RawGuest,
    accepted: HashMap<Flow, SocketAddr>,
    connected: Vec<(Flow, u32)>,
    bytes: u64,
}

impl Pair {
    fn new(mut raw: RawGuest) -> Pair {
        let buffers = raw.open(0, 16);
        assert_eq!(buffers.len(), 16);
        Pair { raw, accepted: HashMap::new(), connected: Vec::new(), bytes: 0 }
    }

    /// Does what has come; true if anything has.
    fn turn(&mut self) -> bool {
        let Some(bytes) = self.raw.try_receive() else { return false };
        let frame = Frame::parse(&bytes).expect("a well-formed frame");
        if frame.header.kind != Kind::Slots {
            return true;
        }
        let mut answers = Vec::new();
        for slot in frame.records().map(Slot::read) {
            match slot.as_event() {
                Some(Event::Accepted) => {
                    self.accepted.insert(slot.flow, slot.peer());
                }
                Some(Event::Connected) => self.connected.push((slot.flow, slot.cookie as u32)),
                Some(Event::Data) => {
                    self.bytes += u64::from(slot.len);
                    let Slot { flow, buf_idx, offset, len, .. } = slot;
                    let answer = Slot::request(Request::Data, flow);
                    answers.push(Slot { buf_idx, offset, len, ..answer });
                }
                Some(Event::Refused) => panic!("{slot:?}"),
                _ => {}
            }
        }
        if !answers.is_empty() {
            self.raw.request(0, &answers);
        }
        true
    }
}

/// Drives the pairs until all of these have ended, and hands back what they return.
fn drive<T: Send>(pairs: &mut [Pair], work: Vec<Box<dyn FnOnce() -> T + Send + '_>>) -> Vec<T> {
    std::thread::scope(|scope| {
        let working: Vec<_> = work.into_iter().map(|work| scope.spawn(work)).collect();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while working.iter().any(|thread| !thread.is_finished()) {
            assert!(std::time::Instant::now() < deadline, "clients are stuck");
            let moved = pairs.iter_mut().fold(false, |moved, pair| moved | pair.turn());
            if !moved {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        working.into_iter().map(|thread| thread.join().expect("a client is content")).collect()
    })
}

/// A connection whose every byte comes back.
fn converse(net: &Namespace, ip: &str, seed: usize) -> TcpStream {
    net.run(|| {
        let mut stream = client::connect(ip, 80).expect("a connection");
        talk(&mut stream, seed);
        stream
    })
}

fn talk(stream: &mut TcpStream, seed: usize) {
    for round in 0..20 {
        let sent: Vec<u8> = (0..1 + (seed * 97 + round * 131) % 1200)
            .map(|i| (i * 7 + seed + round) as u8)
            .collect();
        stream.write_all(&sent).expect("it goes");
        let mut got = vec![0; sent.len()];
        stream.read_exact(&mut got).expect("it comes");
        assert!(got == sent, "other bytes came back");
    }
}

/// Conversations at the same time; their connections stay open.
fn conversations(scene: &Scene, pairs: &mut [Pair]) -> Vec<TcpStream> {
    let one = |seed| -> Box<dyn FnOnce() -> TcpStream + Send + '_> {
        Box::new(move || converse(&scene.net, scene.guest.ip(), seed))
    };
    drive(pairs, (0..CONNECTIONS).map(one).collect())
}

#[test]
fn flows_are_spread_over_the_pairs_and_stay_there() {
    require!(NEEDS[0], NEEDS[1]);
    let scene = Scene::start();
    let mut pairs = scene.attach(2);
    pairs.iter_mut().for_each(|pair| pair.raw.listen(0, 80));
    let streams = conversations(&scene, &mut pairs);
    let shares: Vec<_> = pairs.iter().map(|pair| pair.accepted.len()).collect();
    assert_eq!(shares.iter().sum::<usize>(), CONNECTIONS, "{shares:?}");
    assert!(shares.iter().all(|&share| share >= 2), "{shares:?}");

    // Flows that the guest opens come back to the pair that opened them.
    let near = scene.guest.near_address();
    let near: SocketAddr = near.replace("/24", ":99").parse().expect("an address");
    let listener = scene.net.run(|| TcpListener::bind(near)).expect("a listener");
    for (index, pair) in pairs.iter_mut().enumerate() {
        for cookie in 0..5 {
            pair.raw.request(0, &[Slot::connect(near, 0, cookie)]);
            let (mut stream, from) = listener.accept().expect("a connection");
            wait::until("it is told", || {
                pair.turn();
                (pair.connected.len() > cookie as usize).then_some(())
            });
            assert_eq!(usize::from(from.port()) % 2, index, "{from}");
            let pair = std::slice::from_mut(pair);
            drive(pair, vec![Box::new(move || talk(&mut stream, 3))]);
        }
        // A port that the other pair would hear of is refused.
        let port = 50_000 + (1 - index as u16);
        pair.raw.request(0, &[Slot::connect(near, port, 9)]);
        let reply = wait::until("it is refused", || {
            let bytes = pair.raw.try_receive()?;
            let frame = Frame::parse(&bytes).expect("a well-formed frame");
            let mut slots = frame.records().map(Slot::read);
            slots.find(|slot| slot.as_event() == Some(Event::Reply))
        });
        assert_eq!(reply.len, Reason::PortInUse as u16);
    }
    drop(pairs);
    let stats = scene.stop();
    // Closed sooner, they would say so to flows that may have ended with their guest.
    drop(streams);
    for index in 0..2 {
        let lane = Guest { name: ["web1", "web1/1"][index].to_owned(), ..Guest::apart(1) };
        assert!(stats.get(&lane, "channel.data_out") > 20);
        assert_eq!(stats.get(&lane, "stack.drop_no_flow"), 0, "segments of the other lane came");
    }
    let served: Vec<_> = stats.workers("lost").into_iter().map(|(serves, _)| serves).collect();
    assert!(served[0].contains(&"web1".to_owned()) && served[1].contains(&"web1/1".to_owned()));
}

#[test]
fn one_pair_serves_until_the_driver_enables_another() {
    require!(NEEDS[0], NEEDS[1]);
    let scene = Scene::start();
    // A driver that knows of one pair.
    let mut pairs = scene.attach(1);
    pairs[0].raw.listen(0, 80);
    drop(conversations(&scene, &mut pairs));
    assert_eq!(pairs[0].accepted.len(), CONNECTIONS);
    drop(pairs);

    // One that stops the second for a while: what is open there waits.
    let mut pairs = scene.attach(2);
    pairs.iter_mut().for_each(|pair| pair.raw.listen(0, 80));
    let streams = conversations(&scene, &mut pairs);
    for _ in 0..3 {
        pairs[1].raw.enable(false).expect("it is disabled");
        pairs[1].raw.enable(true).expect("it is enabled");
        let again = |mut stream: TcpStream| -> Box<dyn FnOnce() + Send> {
            Box::new(move || talk(&mut stream, 5))
        };
        let streams = streams.iter().map(|stream| stream.try_clone().expect("a hand on it"));
        drive(&mut pairs, streams.map(again).collect());
    }
    drop(pairs);
    let stats = scene.stop();
    assert_eq!(stats.workers("lost").iter().map(|(_, lost)| lost).sum::<u64>(), 0);
}

#[test]
fn what_breaks_on_one_pair_costs_the_guest_its_device_alone() {
    require!(NEEDS[0], NEEDS[1]);
    let scene = Scene::start();
    let socket = scene.backend.socket(&scene.other);
    let mut honest = Pair::new(RawGuest::attach_soon(&socket));
    honest.raw.listen(0, 80);
    let honest = std::slice::from_mut(&mut honest);
    let ask = |seed| -> Box<dyn FnOnce() -> TcpStream + Send + '_> {
        let scene = &scene;
        Box::new(move || converse(&scene.net, scene.other.ip(), seed))
    };
    for broken in [1, 0, 1] {
        let mut pairs = scene.attach(2);
        pairs.iter_mut().for_each(|pair| pair.raw.listen(0, 80));
        let streams = conversations(&scene, &mut pairs);
        // A chain in memory that there is not.
        let raw = &mut pairs[broken].raw;
        raw.tx.set(9, Descriptor { addr: 1, len: 64, flags: 0, next: 0 });
        raw.tx.offer(9);
        raw.kick();
        // All that it had open is reset.
        for mut stream in streams {
            let end = stream.read(&mut [0; 16]);
            assert!(!matches!(end, Ok(1..)), "{end:?}");
        }
        drop(drive(honest, vec![ask(broken)]));
        // And it may come again, at once or after it has died.
        drop(pairs);
    }
    // It dies, again and again, at whatever moment.
    for round in 0..20u64 {
        let mut pairs = scene.attach(2);
        if round % 2 == 0 {
            pairs.iter_mut().for_each(|pair| pair.raw.listen(0, 80));
        }
        std::thread::sleep(Duration::from_millis(round % 7));
    }
    drop(drive(honest, vec![ask(7)]));
    let mut pairs = scene.attach(2);
    pairs.iter_mut().for_each(|pair| pair.raw.listen(0, 80));
    drop(conversations(&scene, &mut pairs));
    drop(pairs);
    let stats = scene.stop();
    assert_eq!(stats.get(&Guest::apart(2), "device.sessions"), 1, "the other noticed");
}

#[test]
fn a_buffer_belongs_to_one_pair() {
    require!(NEEDS[0], NEEDS[1]);
    let scene = Scene::start();
    let socket = scene.backend.socket(&scene.guest);
    let attach = || RawGuest::attach_pairs(&socket, 2, MQ, StartOptions::default()).ok();
    let mut raw = wait::until("the back end accepts a front end", attach);
    let [first, second] = [0, 1].map(|index: usize| raw[index].open(0, 16));
    assert!(first.iter().all(|buf| !second.contains(buf)));
    for (index, foreign) in [(0, second[0]), (1, first[0])] {
        let slot = Slot { buf_idx: foreign, offset: 128, len: 1, ..Slot::default() };
        let request = Slot { kind: Request::Data as u8, ..slot };
        raw[index].request(0, &[request]);
        assert_eq!(raw[index].refusal(), Reason::ForeignBuffer);
    }
    drop(raw);
    scene.stop();
}

/// Asks for a file again and again, a few times on a connection, and opens another one
/// whenever that breaks. An answer that comes must be right.
fn ask(ip: &str, body: &[u8], stop: &AtomicBool, answers: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = client::connect(ip, 80) else { continue };
        for _ in 0..5 {
            let Ok(response) = client::get(&mut stream, "/file") else { break };
            assert_eq!(response.status, 200);
            assert!(response.body == body, "other bytes came");
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The guest driver on both pairs: a thread for each, and either side dies under load.
#[test]
fn an_application_serves_on_both_pairs_and_outlives_the_backend() {
    require!(NEEDS[0], NEEDS[1], Need::Built("examples/http"));
    let _turn = wait::turn();
    let root = tempfile::tempdir().expect("a directory");
    let body: Vec<u8> = (0..50_000u32).map(|i| ((i * i) >> 7) as u8).collect();
    std::fs::write(root.path().join("file"), &body).expect("a file");
    let root = root.path().to_str().expect("a path in UTF-8");
    let arguments = ["--pairs", "2", "--root", root];
    let scene = Scene::start();
    let lanes = [scene.lane(0), scene.lane(1)];
    let Scene { mut backend, guest, other, net } = scene;
    let mut application = backend.example(&net, &guest, "http", &arguments);
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let more = || {
        let before = answers.load(Ordering::Relaxed);
        wait::until("the guest answers", || {
            (answers.load(Ordering::Relaxed) > before + 200).then_some(())
        });
    };
    let stats = std::thread::scope(|scope| {
        let _ending = wait::Ending(&stop);
        for _ in 0..8 {
            scope.spawn(|| net.run(|| ask(guest.ip(), &body, &stop, &answers)));
        }
        more();
        for _ in 0..3 {
            application.kill();
            application = backend.example(&net, &guest, "http", &arguments);
            more();
        }
        // The application stays, and finds the next backend on both pairs.
        let dir = backend.crash();
        backend = Backend::start_in_with(dir, &net, "workers = 2", &[guest.clone(), other.clone()]);
        more();
        let dir = backend.crash();
        backend = Backend::start_in_with(dir, &net, "workers = 2", &[guest.clone(), other.clone()]);
        more();
        stop.store(true, Ordering::Relaxed);
        application.terminate();
        assert_eq!(application.wait().code(), Some(0), "the application's exit");
        backend.stop()
    });
    assert_eq!(stats.get(&lanes[0], "device.sessions"), 1, "of both pairs together");
    for lane in &lanes {
        stats.assert_no_buffer_missing(lane);
        assert_eq!(stats.get(lane, "channel.opened"), 1, "{}", lane.name);
        assert!(stats.get(lane, "channel.data_out") > 20, "{} serves its share", lane.name);
        assert_eq!(stats.get(lane, "worker.ring_errors"), 0);
    }
}

/// What the lanes send together is what the guest may send.
#[test]
fn lanes_have_one_limit_together() {
    require!(NEEDS[0], NEEDS[1], Need::Built("examples/http"));
    let root = tempfile::tempdir().expect("a directory");
    let body: Vec<u8> = (0..20_000u32).map(|i| ((i * i) >> 7) as u8).collect();
    std::fs::write(root.path().join("file"), &body).expect("a file");
    let root = root.path().to_str().expect("a path in UTF-8");
    let scene = Scene::start_with("rate_limit = { tx_bytes = \"1MiB\", rx_packets = 5000 }\n");
    let arguments = ["--pairs", "2", "--root", root];
    let mut http = scene.backend.example(&scene.net, &scene.guest, "http", &arguments);
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = std::time::Instant::now();
    let bytes = std::thread::scope(|scope| {
        let _ending = wait::Ending(&stop);
        for _ in 0..8 {
            let (net, ip) = (&scene.net, scene.guest.ip());
            scope.spawn(|| net.run(|| ask(ip, &body, &stop, &answers)));
        }
        wait::until("160 answers", || {
            let answers = answers.load(Ordering::Relaxed);
            (answers >= 160).then_some(answers * body.len() as u64)
        })
    });
    // A burst is at least 128 KiB.
    let least = Duration::from_secs_f64((bytes - (128 << 10)) as f64 / f64::from(1 << 20));
    assert!(begun.elapsed() >= least, "{bytes} bytes in {:?}", begun.elapsed());
    http.terminate();
    assert_eq!(http.wait().code(), Some(0), "the application's exit");
    let lanes = [scene.lane(0), scene.lane(1)];
    let stats = scene.stop();
    for lane in lanes {
        assert!(stats.get(&lane, "channel.data_out") > 0);
        assert!(stats.get(&lane, "port.tx_limited") > 0, "{} was limited", lane.name);
    }
}

#[test]
fn pairs_that_there_are_not_are_refused_and_nothing_is_taken() {
    require!(NEEDS[0], NEEDS[1], Need::Built("examples/http"));
    let scene = Scene::start();
    for (guest, pairs, said) in [
        (&scene.guest, "3", "the device has 2 queue pairs, 3 were asked for"),
        (&scene.other, "2", "the device has 1 queue pair, 2 were asked for"),
        (&scene.guest, "0", "0 queue pairs were asked for"),
        (&scene.guest, "-1", "--pairs -1: not a valid value"),
    ] {
        let mut http = scene.backend.example(&scene.net, guest, "http", &["--pairs", pairs]);
        assert_eq!(http.wait().code(), Some(1));
        assert!(http.output().contains(said), "{}", http.output());
    }
    let endpoint = Endpoint::vhost_user(scene.backend.socket(&scene.other));
    let error = Channel::open_pairs(&endpoint, Options::default(), 2).expect_err("it has one");
    let OpenError::Transport(TransportError::Pairs { have, asked }) = error else {
        panic!("{error}")
    };
    assert_eq!((have, asked), (1, 2));
    drop(conversations(&scene, &mut {
        let mut pairs = scene.attach(2);
        pairs.iter_mut().for_each(|pair| pair.raw.listen(0, 80));
        pairs
    }));
    scene.stop();
}

/// Sends back what comes, until it is told to stop.
fn echo(channel: &mut Channel, stop: &AtomicBool) -> usize {
    let mut accepted = 0;
    while !stop.load(Ordering::Relaxed) {
        channel.poll(Timeout::After(Duration::from_millis(5))).expect("it is open");
        while let Some(event) = channel.next_event() {
            match event {
                paste_guest::Event::Accepted { .. } => accepted += 1,
                paste_guest::Event::Data { flow, data } => {
                    channel.send(flow, data, SendOptions::default()).expect("there is room");
                }
                paste_guest::Event::Fin { flow } => channel.close(flow).expect("there is room"),
                _ => {}
            }
        }
    }
    accepted
}

#[test]
fn a_channel_that_is_dropped_leaves_its_flows_to_the_other_pair() {
    require!(NEEDS[0], NEEDS[1]);
    let scene = Scene::start();
    let endpoint = Endpoint::vhost_user(scene.backend.socket(&scene.guest));
    let open = || Channel::open_pairs(&endpoint, Options::default(), 2);
    let mut channels = open().expect("two channels");
    for channel in &mut channels {
        channel.listen(80, 64).expect("it listens");
    }
    // Which pair accepted how many, and how many clients were not content.
    let (net, ip) = (&scene.net, scene.guest.ip());
    let converse_all = |channels: &mut [Channel]| -> (Vec<usize>, usize) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _ending = wait::Ending(&stop);
            let serving = channels.iter_mut().map(|channel| scope.spawn(|| echo(channel, &stop)));
            let serving: Vec<_> = serving.collect();
            let one = |seed| scope.spawn(move || converse(net, ip, seed));
            let talking: Vec<_> = (0..CONNECTIONS).map(one).collect();
            let failed = talking.into_iter().filter_map(|client| client.join().err()).count();
            stop.store(true, Ordering::Relaxed);
            let accepted = serving.into_iter().map(|server| server.join().expect("it served"));
            (accepted.collect(), failed)
        })
    };
    let (accepted, failed) = converse_all(&mut channels);
    assert_eq!((accepted.iter().sum::<usize>(), failed), (CONNECTIONS, 0));
    assert!(accepted.iter().all(|&share| share >= 2), "{accepted:?}");
    let refused = Log::open(&mut channels[1], |_| ()).expect_err("it is the first pair's");
    assert!(matches!(refused, LogError::FurtherPair(1)), "{refused}");
    // Neither did it say good-bye, nor did the device end. Who comes before the host knows
    // is reset.
    drop(channels.pop());
    wait::until("the other pair has them all", || {
        (converse_all(&mut channels) == (vec![CONNECTIONS], 0)).then_some(())
    });
    // When the last one has gone, the device is free.
    drop(channels);
    drop(wait::until("two channels are open again", || open().ok()));
    let lanes = [scene.lane(0), scene.lane(1)];
    let stats = scene.stop();
    assert_eq!(lanes.map(|lane| stats.get(&lane, "channel.opened")), [2, 2]);
}
