//! A guest on two workers whose region has a mirror: what either lane answers is in the
//! mirror by then, and is the pair's own again after any crash.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paste_abi::Flow;
use paste_guest::{Buffer, Channel, Endpoint, Event, FlushDomain, Options, SendOptions, Timeout};
use paste_pmem::{Claims, Geometry, Medium};
use paste_tests::backend::{Backend, Guest};
use paste_tests::client;
use paste_tests::mirrored::Mirrored;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::wait;

const LANES: u64 = 2;
const CLIENTS: u64 = 8;
/// A record of the application: its number from 1, and where the payload lies.
const RECORD: u64 = 16;
/// A request, and its answer: a number that no other has, and its complement.
const REQUEST: usize = 16;
/// Where the application is told the socket.
const SOCKET: &str = "PASTE_TESTS_LANES_SOCKET";

fn request(number: u64) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&(!number).to_le_bytes());
    bytes
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("a word"))
}

/// Where a lane has its records: a part of the region's log, and how many bytes.
fn records_of(lane: u64, layout: &Geometry) -> (u64, u64) {
    let len = layout.log().len / LANES / RECORD * RECORD;
    (layout.log().offset + lane * len, len)
}

/// What one lane of the application keeps.
struct Keeper {
    claims: Claims,
    layout: Geometry,
    at: u64,
    /// The number of the next record.
    next: u64,
}

impl Keeper {
    /// Takes up what the lane kept before, which the host gives back to this pair, and
    /// listens.
    fn take_up(lane: u64, channel: &mut Channel) -> Option<Keeper> {
        let layout = *channel.layout()?;
        let (from, len) = records_of(lane, &layout);
        let mut kept = Vec::new();
        let mut at = from;
        while at < from + len {
            let mut record = [0; RECORD as usize];
            channel.medium()?.load(at, &mut record);
            if word(&record, 0) != kept.len() as u64 + 1 {
                break;
            }
            let into = word(&record, 8) - layout.buffers().offset;
            kept.push((into / u64::from(layout.buffer_size())) as u32);
            at += RECORD;
        }
        let claims = Claims::new(&layout);
        let held: Vec<_> =
            claims.iter(channel.medium()?).filter(|buf| kept.contains(buf)).collect();
        let refused = channel.resume(&held).ok()?;
        assert!(refused.is_empty(), "the host kept back {refused:?} of lane {lane}");
        channel.listen(80, 64).ok()?;
        Some(Keeper { claims, layout, at, next: kept.len() as u64 + 1 })
    }

    /// Keeps what came where it lies, and answers when that is durable. `None` if the channel
    /// was lost meanwhile.
    fn keep(&mut self, channel: &mut Channel, flow: Flow, data: Buffer) -> Option<()> {
        let bytes: [u8; REQUEST] = channel.bytes(&data).try_into().ok()?;
        let size = u64::from(self.layout.buffer_size());
        let place = self.layout.buffers().offset + u64::from(data.index()) * size;
        let place = place + data.offset() as u64;
        let mut answer = channel.take_buffer()?;
        let range = answer.offset()..answer.offset() + REQUEST;
        channel.bytes_mut(&mut answer, range.clone()).copy_from_slice(&bytes);
        answer.set_range(range);
        let medium = channel.medium()?;
        medium.flush(place, REQUEST as u64);
        self.claims.set(medium, data.index()).expect("a buffer of the region");
        medium.store(self.at, &[self.next, place].map(u64::to_le_bytes).concat());
        medium.flush(self.at, RECORD);
        medium.seal();
        self.at += RECORD;
        self.next += 1;
        channel.store(data).ok()?;
        let durably = SendOptions { durable: true, ..SendOptions::default() };
        channel.send(flow, answer, durably).ok()
    }
}

/// One lane of the application, until the process ends.
fn serve(lane: u64, mut channel: Channel) {
    assert_eq!(channel.geometry().map(|it| it.flush_domain), Some(FlushDomain::Host));
    let mut keeper = Keeper::take_up(lane, &mut channel);
    loop {
        channel.poll(Timeout::After(Duration::from_millis(100))).expect("it opens anew");
        while let Some(event) = channel.next_event() {
            match event {
                Event::Opened => keeper = Keeper::take_up(lane, &mut channel),
                Event::Data { flow, data } => {
                    let kept = keeper.as_mut().and_then(|it| it.keep(&mut channel, flow, data));
                    if kept.is_none() {
                        let _ = channel.abort(flow);
                    }
                }
                Event::Fin { flow } => drop(channel.close(flow)),
                _ => {}
            }
        }
    }
}

/// What the test beside it starts as a process of its own, to kill it.
#[test]
#[ignore = "the application of the other test"]
fn application() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let endpoint = Endpoint::vhost_user(socket);
    let open = || Channel::open_pairs(&endpoint, Options::default(), LANES as u16).ok();
    let channels = wait::until("the channels open", open);
    std::thread::scope(|scope| {
        for (lane, channel) in (0..).zip(channels) {
            scope.spawn(move || serve(lane, channel));
        }
    });
}

fn start_application(socket: &Path) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
    command.args(["--ignored", "--exact", "application", "--nocapture"]).env(SOCKET, socket);
    Process::spawn("the application", &mut command)
}

/// Sends one request after the other, on another connection whenever that breaks, and notes
/// which were answered.
fn ask(ip: &str, client: u64, stop: &AtomicBool, answered: &Mutex<BTreeSet<u64>>) {
    let mut number = client << 32;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = client::connect(ip, 80) else { continue };
        // Another connection may be another lane's.
        for _ in 0..20 {
            number += 1;
            let mut answer = [0; REQUEST];
            let asked = stream.write_all(&request(number));
            if asked.and_then(|()| stream.read_exact(&mut answer)).is_err() {
                break;
            }
            assert_eq!(answer, request(number), "another's answer");
            answered.lock().expect("nobody panics").insert(number);
        }
    }
}

/// The requests that the mirror has, by lane, with all that belongs to each.
fn found(bed: &Mirrored, layout: &Geometry) -> [BTreeSet<u64>; LANES as usize] {
    let claims = layout.claims();
    let claims = bed.mirrored(claims.offset, claims.len as usize);
    let buffers = layout.buffers();
    let payload = bed.mirrored(buffers.offset, buffers.len as usize);
    std::array::from_fn(|lane| {
        let (from, len) = records_of(lane as u64, layout);
        let records = bed.mirrored(from, len as usize);
        let records = records.chunks_exact(RECORD as usize).zip(1..);
        let whole = records.take_while(|(record, number)| word(record, 0) == *number);
        let numbers = whole.filter_map(|(record, _)| {
            let at = (word(record, 8) - buffers.offset) as usize;
            let buf = at / layout.buffer_size() as usize;
            let bytes = &payload[at..at + REQUEST];
            let number = word(bytes, 0);
            let is_claimed = claims[buf / 8] >> (buf % 8) & 1 == 1;
            (is_claimed && *bytes == request(number)).then_some(number)
        });
        numbers.collect()
    })
}

#[test]
fn what_either_lane_answered_outlives_every_crash() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let mut bed = Mirrored::new(&[]);
    bed.guest.more.push_str("worker = [0, 1]\n");
    let head = "workers = 2";
    let guests = [bed.guest.clone()];
    let mut backend = Some(Backend::start_with(&bed.net, head, &guests));
    let socket = backend.as_ref().expect("it runs").socket(&bed.guest);
    let mut application = start_application(&socket);
    let layout = Geometry::new(16 << 20, 2048).expect("as the region has it");
    let (stop, answered) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    let count = || answered.lock().expect("nobody panics").len();
    std::thread::scope(|scope| {
        let _ending = wait::Ending(&stop);
        for client in 0..CLIENTS {
            let (net, ip, stop, answered) = (&bed.net, bed.guest.ip(), &stop, &answered);
            scope.spawn(move || net.run(|| ask(ip, client, stop, answered)));
        }
        // The application, the host, both, and both with the memory that they shared.
        for (kills_application, kills_host, loses_memory) in [
            (true, false, false),
            (false, true, false),
            (true, true, false),
            (true, true, true),
            (false, true, true),
        ] {
            let before = count();
            wait::until("requests are answered", || {
                assert!(application.is_alive(), "the application has ended");
                (count() >= before + 150).then_some(())
            });
            if kills_application {
                application.kill();
            }
            let dir = kills_host.then(|| backend.take().expect("it runs").crash());
            let answered = answered.lock().expect("nobody panics").clone();
            let found = found(&bed, &layout);
            let lost: Vec<_> =
                answered.iter().filter(|it| !found.iter().any(|lane| lane.contains(it))).collect();
            assert!(lost.is_empty(), "{lost:?} of {} were answered and are lost", answered.len());
            if loses_memory {
                std::fs::remove_file(bed.file("region")).expect("a region");
            }
            if let Some(dir) = dir {
                backend = Some(Backend::start_in_with(dir, &bed.net, head, &guests));
            }
            if kills_application {
                application = start_application(&socket);
            }
        }
        let before = count();
        wait::until("requests are answered in the end", || (count() >= before + 150).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    application.kill();
    let shares = found(&bed, &layout).map(|lane| lane.len());
    assert!(shares.iter().all(|&share| share > 50), "{shares:?}");
    let stats = backend.expect("it runs").stop();
    let further = Guest { name: format!("{}/1", bed.guest.name), ..bed.guest.clone() };
    let epochs = [&bed.guest, &further].map(|lane| stats.get(lane, "flush.epochs"));
    assert!(epochs.iter().all(|&epochs| epochs > 0), "{epochs:?}");
    // Counted once, and never more than were asked for.
    let commits = stats.get(&bed.guest, "flush.commits");
    assert!((1..=epochs.iter().sum()).contains(&commits), "{commits} of {epochs:?}");
    assert_eq!(stats.get(&further, "flush.commits"), 0);
}
