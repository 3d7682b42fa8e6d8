//! A switch between a NIC that is made up and guests whose workers are these tests.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard};

use paste_pmem::{Buffers, Mapping};
use paste_stack::{RxFrame, TxFrame};

use super::*;
use crate::port::prng::Prng;
use crate::port::{Caps, PortCounters, RX_OFFSET, Received};
use crate::sys::wake;
use crate::worker::{Stop, Worker};

const BUFFER_SIZE: usize = 2048;
const MTU: u16 = 1500;
const ALL: [u8; 6] = [0xff; 6];
const ABROAD: [u8; 6] = [2, 0, 0, 0, 0, 99];

/// What is on the NIC's wire.
#[derive(Debug, Default)]
struct Wire {
    arriving: VecDeque<Vec<u8>>,
    sent: Vec<(Vec<u8>, Option<TxCsum>, u16)>,
    full: bool,
    /// Buffers are read until the port is asked once more.
    lazy: bool,
    reading: Vec<(Origin, u32)>,
    /// Frames have to be in one piece.
    whole: bool,
}

#[derive(Clone, Debug, Default)]
struct Nic(Arc<Mutex<Wire>>, Arc<Mutex<Vec<Station>>>, PortCounters);

impl Nic {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap()
    }
}

impl Port for Nic {
    fn caps(&self) -> Caps {
        Caps { mtu: MTU, tx_csum: true, rx_partial: true, gather: !self.wire().whole }
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        let mut count = 0;
        while out.room() > 0
            && let Some(bytes) = self.wire().arriving.pop_front()
        {
            let buf = pool.take(Owner::Port).expect("the region has room for everything");
            pool.buffers().write(buf, usize::from(RX_OFFSET), &bytes).unwrap();
            let frame = RxFrame {
                buf,
                offset: RX_OFFSET,
                len: bytes.len() as u16,
                csum: RxCsum::Valid,
                time: now.real_ns,
            };
            out.push(Received { frame, partial: None });
            count += 1;
        }
        Ok(count)
    }

    fn send(
        &mut self,
        _now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        let mut wire = self.wire();
        wire.reading.drain(..).for_each(|(origin, buf)| done(origin, buf));
        if wire.full {
            return Ok(0);
        }
        let count = batch.frames().len();
        for frame in batch.frames() {
            assert!(!wire.whole || frame.head().is_empty() || frame.payload.is_none());
            wire.sent.push((bytes_of(frame, pool.buffers()), frame.csum, frame.mss));
            match frame.payload {
                Some(payload) if wire.lazy => wire.reading.push((frame.origin, payload.buf)),
                Some(payload) => done(frame.origin, payload.buf),
                None => {}
            }
        }
        batch.consume(count);
        Ok(count)
    }

    fn admit(&mut self, station: &Station) -> Result<(), PortError> {
        self.1.lock().unwrap().push(station.clone());
        Ok(())
    }

    fn is_sending(&self) -> bool {
        !self.wire().reading.is_empty()
    }

    fn release(&mut self, _pool: &mut Pool) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn next_deadline(&self) -> Option<u64> {
        None
    }

    fn counters(&self) -> &PortCounters {
        &self.2
    }
}

fn bytes_of(frame: &TxFrame, buffers: &Buffers) -> Vec<u8> {
    let mut bytes = frame.head().to_vec();
    if let Some(payload) = frame.payload {
        let mut rest = vec![0; usize::from(payload.len)];
        buffers.read(payload.buf, usize::from(payload.offset), &mut rest).unwrap();
        bytes.extend(rest);
    }
    bytes
}

fn pool(count: usize) -> Pool {
    let len = BUFFER_SIZE * count;
    let file = tempfile::tempfile().unwrap();
    file.set_len(len as u64).unwrap();
    let mapping = Mapping::from_fd(file.as_fd(), 0, len, true).unwrap();
    Pool::new(Buffers::new(Arc::new(mapping), 0, BUFFER_SIZE, count as u32).unwrap())
}

/// A guest's worker.
struct End {
    port: SwitchPort,
    pool: Pool,
    mac: [u8; 6],
    tx: TxBatch,
}

impl End {
    /// Sends a frame from here; false if there is no room for it.
    fn send(&mut self, to: [u8; 6], body: &[u8], csum: Option<TxCsum>) -> bool {
        let buf = self.pool.take(Owner::Stack).unwrap();
        let bytes = frame(to, self.mac, body);
        let head = bytes.len().min(40);
        self.pool.buffers().write(buf, 131, &bytes[head..]).unwrap();
        let tx = self.tx.push(Origin::Stack).unwrap();
        tx.head_mut(head).copy_from_slice(&bytes[..head]);
        (tx.csum, tx.mss) = (csum, 1448);
        let len = (bytes.len() - head) as u16;
        tx.payload = (len > 0).then_some(Payload { buf, offset: 131, len });
        let mut done = Vec::new();
        let sent = self
            .port
            .send(Now::default(), &self.pool, &mut self.tx, &mut |_, buf| done.push(buf))
            .unwrap();
        assert_eq!(done.len(), sent * usize::from(len > 0), "it is copied at once");
        if sent == 0 {
            self.tx.pop();
        }
        self.pool.give(buf, Owner::Stack).unwrap();
        sent == 1
    }

    /// All frames that wait.
    fn receive(&mut self) -> Vec<(Received, Vec<u8>)> {
        let mut batch = RxBatch::new(2 * RING);
        self.port.receive(Now::default(), &mut self.pool, &mut batch).unwrap();
        let mut frames = Vec::new();
        for &received in batch.frames() {
            let RxFrame { buf, offset, len, .. } = received.frame;
            let mut bytes = vec![0; usize::from(len)];
            self.pool.buffers().read(buf, usize::from(offset), &mut bytes).unwrap();
            self.pool.give(buf, Owner::Port).unwrap();
            frames.push((received, bytes));
        }
        frames
    }

    /// The bodies of all frames that wait.
    fn bodies(&mut self) -> Vec<Vec<u8>> {
        self.receive().into_iter().map(|(_, bytes)| bytes[14..].to_vec()).collect()
    }
}

fn frame(to: [u8; 6], from: [u8; 6], body: &[u8]) -> Vec<u8> {
    let mut bytes = to.to_vec();
    bytes.extend(from);
    bytes.extend([8, 0]);
    bytes.extend(body);
    bytes
}

struct Rig {
    switch: Switch,
    nic: Nic,
    guests: Vec<End>,
    count: usize,
}

impl Rig {
    fn new(guests: usize) -> Rig {
        Rig::with_room(guests, 0)
    }

    /// Likewise, with room for so many more.
    fn with_room(guests: usize, room: usize) -> Rig {
        let nic = Nic::default();
        let count = buffers_needed(guests + room);
        let (waker, wakeups) = wake::pair().unwrap();
        let mut switch = Switch::new(
            "tap:tap0".to_owned(),
            Box::new(nic.clone()),
            pool(count),
            0,
            (waker, wakeups),
        );
        let guests = (0..guests)
            .map(|index| {
                let mac = [0x52, 0x54, 0, 0, 0, index as u8];
                let station = Station { mac, vlan: None, addresses: Vec::new() };
                let name = format!("web{index}");
                let port = switch.join(&name, &station, MTU, wake::pair().unwrap());
                End { port, pool: pool(600), mac, tx: TxBatch::new(64) }
            })
            .collect();
        let mut rig = Rig { switch, nic, guests, count };
        rig.turn();
        rig
    }

    fn turn(&mut self) -> bool {
        self.switch.turn(Now { monotonic_ns: 1, real_ns: 2 })
    }

    fn arrives(&self, to: [u8; 6], body: &[u8]) {
        self.nic.wire().arriving.push_back(frame(to, ABROAD, body));
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.nic.wire().sent).into_iter().map(|sent| sent.0).collect()
    }

    /// No buffer is missing: all but the free ones of the guests are in the pool.
    #[track_caller]
    fn check(&mut self) {
        for _ in 0..3 {
            self.turn();
            self.guests.iter_mut().for_each(|guest| drop(guest.receive()));
        }
        self.turn();
        assert_eq!(self.switch.pool.free() as usize, self.count - self.guests.len() * RING);
        assert!(self.switch.holders.iter().all(|&holders| holders == 0));
    }
}

#[test]
fn a_frame_from_the_nic_reaches_its_guest_alone_and_whole() {
    let mut rig = Rig::new(2);
    let long: Vec<u8> = (0..1500u32).map(|i| i as u8).collect();
    rig.arrives(rig.guests[1].mac, b"short");
    rig.arrives(rig.guests[1].mac, &long);
    rig.arrives(ABROAD, b"for nobody here");
    assert!(rig.turn());
    assert!(rig.guests[0].receive().is_empty());
    let frames = rig.guests[1].receive();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[1].1, frame(rig.guests[1].mac, ABROAD, &long));
    assert_eq!((frames[0].0.frame.csum, frames[0].0.frame.time), (RxCsum::Valid, 2));
    assert_eq!(rig.switch.counters.unknown, 1);
    assert!(rig.sent().is_empty(), "nothing goes back");
    rig.check();
}

#[test]
fn a_frame_for_all_reaches_everybody_but_its_sender() {
    let mut rig = Rig::new(3);
    rig.arrives(ALL, b"from outside");
    rig.turn();
    for guest in &mut rig.guests {
        assert_eq!(guest.bodies(), [b"from outside"]);
    }
    assert!(rig.guests[0].send(ALL, b"from a guest", None));
    rig.turn();
    assert!(rig.guests[0].bodies().is_empty());
    assert_eq!(rig.guests[1].bodies(), [b"from a guest"]);
    assert_eq!(rig.guests[2].bodies(), [b"from a guest"]);
    assert_eq!(rig.sent(), [frame(ALL, rig.guests[0].mac, b"from a guest")]);
    rig.check();
}

#[test]
fn guests_come_while_others_are_served_until_there_is_no_room() {
    let mut rig = Rig::with_room(2, 2);
    let mut joiner = rig.switch.joiner(2);
    let station = |index: u8| Station {
        mac: [0x52, 0x54, 0, 0, 1, index],
        vlan: None,
        addresses: vec![[10, 7, 0, index].into()],
    };
    let join = |joiner: &mut Joiner, index: u8, mtu| {
        let pair = wake::pair().unwrap();
        joiner.join(&format!("late{index}"), &station(index), mtu, pair)
    };
    let refused = join(&mut joiner, 1, MTU + 1).unwrap_err();
    assert_eq!(refused, JoinError::Mtu { asked: MTU + 1, mtu: MTU });
    for index in [1, 2] {
        let port = join(&mut joiner, index, MTU).unwrap();
        assert!(rig.switch.wakeups.drain(), "it is woken");
        let mac = station(index).mac;
        rig.guests.push(End { port, pool: pool(600), mac, tx: TxBatch::new(64) });
        // It may send before the switch has looked, as far as it has buffers: with none.
        assert!(!rig.guests.last_mut().unwrap().send(ALL, b"early", None));
        rig.arrives(mac, b"too early");
        rig.turn();
        assert!(rig.guests.last_mut().unwrap().receive().is_empty());
        rig.switch.control(Now::default());
        rig.turn();
        // From the NIC, from others, to all, and to others.
        rig.arrives(mac, b"from outside");
        assert!(rig.guests[0].send(mac, b"from a guest", None));
        rig.turn();
        let last = rig.guests.last_mut().unwrap();
        assert_eq!(last.bodies(), [&b"from outside"[..], b"from a guest"]);
        assert!(last.send(ALL, b"to all", None));
        rig.turn();
        assert!(rig.guests.last_mut().unwrap().bodies().is_empty());
        assert_eq!(rig.guests[1].bodies(), [b"to all"]);
        assert_eq!(rig.sent().len(), 1);
    }
    assert_eq!(*rig.nic.1.lock().unwrap(), [station(1), station(2)], "the NIC lets them in");
    assert_eq!(join(&mut joiner, 3, MTU).unwrap_err(), JoinError::Full);
    rig.check();
    // Whoever comes when it has ended is told.
    let mut rig = Rig::with_room(1, 1);
    let mut joiner = rig.switch.joiner(1);
    drop(rig.switch);
    assert_eq!(join(&mut joiner, 1, MTU).unwrap_err(), JoinError::Gone);
}

#[test]
fn guests_reach_each_other_without_the_nic() {
    let mut rig = Rig::new(2);
    let csum = Some(TxCsum { start: 34, offset: 16 });
    let to = rig.guests[1].mac;
    let body: Vec<u8> = (0..1400u32).map(|i| (i * 7) as u8).collect();
    assert!(rig.guests[0].send(to, &body, csum));
    let own = rig.guests[0].mac;
    assert!(rig.guests[0].send(own, b"to itself", None));
    rig.turn();
    let frames = rig.guests[1].receive();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].1[14..], body);
    assert_eq!((frames[0].0.frame.csum, frames[0].0.partial), (RxCsum::Partial, csum));
    assert!(rig.sent().is_empty() && rig.guests[0].receive().is_empty());
    rig.check();
}

#[test]
fn what_the_device_is_to_do_goes_with_the_frame() {
    let mut rig = Rig::new(1);
    let csum = Some(TxCsum { start: 34, offset: 16 });
    assert!(rig.guests[0].send(ABROAD, &[5; 1400], csum));
    rig.turn();
    let sent = std::mem::take(&mut rig.nic.wire().sent);
    assert_eq!(sent, [(frame(ABROAD, rig.guests[0].mac, &[5; 1400]), csum, 1448)]);
    rig.check();
}

#[test]
fn a_guest_that_reads_nothing_costs_the_others_nothing() {
    let mut rig = Rig::new(3);
    let deaf = rig.guests[2].mac;
    for round in 0..10 * RING as u32 {
        rig.arrives(deaf, &round.to_be_bytes());
        assert!(rig.guests[0].send(deaf, &round.to_be_bytes(), None), "{round}");
        assert!(rig.guests[0].send(ABROAD, &round.to_be_bytes(), None), "{round}");
        rig.arrives(rig.guests[1].mac, &round.to_be_bytes());
        rig.turn();
        assert_eq!(rig.guests[1].bodies(), [round.to_be_bytes()]);
        assert_eq!(rig.sent().len(), 1);
    }
    assert_eq!(rig.guests[2].receive().len(), RING);
    assert_eq!(rig.switch.members[2].dropped(), 19 * RING as u64);
    rig.check();
}

#[test]
fn one_that_sends_without_end_is_served_as_often_as_the_others() {
    let mut rig = Rig::new(2);
    while rig.guests[0].send(ABROAD, &[1; 64], None) {}
    assert!(rig.guests[1].send(ABROAD, &[2; 64], None));
    rig.turn();
    let sent = rig.sent();
    assert_eq!(sent.len(), QUANTUM + 1);
    assert!(sent.contains(&frame(ABROAD, rig.guests[1].mac, &[2; 64])));
    // It gets back what was taken, and may go on.
    assert!((0..QUANTUM).all(|_| rig.guests[0].send(ABROAD, &[1; 64], None)));
    assert!(!rig.guests[0].send(ABROAD, &[1; 64], None));
    while rig.turn() {}
    rig.check();
}

#[test]
fn a_nic_that_is_full_holds_frames_back_and_loses_none() {
    let mut rig = Rig::new(2);
    rig.nic.wire().full = true;
    let mut accepted = 0u32;
    for _ in 0..100 {
        for guest in &mut rig.guests {
            while guest.send(ABROAD, &[7; 1000], None) {
                accepted += 1;
            }
        }
        rig.turn();
    }
    assert_eq!(accepted as usize, TX_BUDGET + 2 * RING);
    // Guests still hear of the NIC and of each other.
    rig.arrives(rig.guests[0].mac, b"in");
    rig.turn();
    assert_eq!(rig.guests[0].bodies(), [b"in"]);
    rig.nic.wire().full = false;
    while rig.turn() {}
    assert_eq!(rig.sent().len(), accepted as usize);
    rig.check();
}

#[test]
fn frames_that_do_not_fit_are_dropped() {
    let mut rig = Rig::new(1);
    rig.nic.wire().arriving.push_back(frame(rig.guests[0].mac, ABROAD, &[0; 1600]));
    rig.nic.wire().arriving.push_back(vec![0xff; 5]);
    rig.turn();
    assert!(rig.guests[0].receive().is_empty());
    assert_eq!((rig.switch.members[0].dropped(), rig.switch.counters.unknown), (1, 1));
    rig.check();
}

#[test]
fn any_exchange_leaves_the_books_right() {
    for seed in 0..50 {
        let mut rng = Prng::new(seed);
        let mut rig = Rig::new(4);
        for _ in 0..2_000 {
            let guest = rng.below(4) as usize;
            let to = match rng.below(6) {
                4 => ALL,
                5 => ABROAD,
                other => rig.guests[other as usize].mac,
            };
            match rng.below(8) {
                0 => drop(rig.guests[guest].receive()),
                1 => drop(rig.turn()),
                2 => rig.nic.wire().full ^= true,
                3 | 4 => rig.arrives(to, &[3; 100]),
                _ => drop(rig.guests[guest].send(to, &vec![4; rng.below(1400) as usize], None)),
            }
        }
        rig.nic.wire().full = false;
        while rig.turn() {}
        rig.check();
    }
}

#[test]
fn buffers_stay_with_a_port_that_reads_them_still() {
    for whole in [false, true] {
        let mut rig = Rig::new(2);
        {
            let mut wire = rig.nic.wire();
            (wire.lazy, wire.whole) = (true, whole);
        }
        let body: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        assert!(rig.guests[0].send(ABROAD, &body, None));
        assert!(rig.guests[0].send(ALL, &body, None));
        rig.turn();
        assert_eq!(rig.nic.wire().reading.len(), 2);
        let from = rig.guests[0].mac;
        assert_eq!(rig.sent(), [frame(ABROAD, from, &body), frame(ALL, from, &body)]);
        assert_eq!(rig.guests[1].bodies(), [body]);
        let held = rig.switch.holders.iter().filter(|&&holders| holders > 0).count();
        assert_eq!(held, 2, "the port has them, and one was given back by a guest alone");
        // Nothing is to be sent, and it is asked all the same.
        rig.check();
    }
}

/// A segment from somewhere abroad to a local port, as the lanes of a guest are told apart
/// by.
fn segment(to: [u8; 6], from: [u8; 6], ports: [u16; 2]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 6, 0, 0, 10, 8, 0, 1, 10, 7, 0, 2];
    packet.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame(to, from, &packet)
}

#[test]
fn the_lanes_of_a_guest_share_its_frames() {
    let mut rig = Rig::new(1);
    let mac = [0x52, 0x54, 0, 0, 0, 9];
    let addresses = vec!["10.7.0.2".parse().unwrap()];
    let ports = Arc::new(crate::lanes::Ports::new(2));
    let secret: Vec<u8> = {
        let mut rng = Prng::new(1);
        (0..crate::lanes::SECRET_LEN).map(|_| rng.below(256) as u8).collect()
    };
    let choice = Choice::new(Arc::clone(&ports), None, &addresses, &secret);
    let station = Station { mac, vlan: None, addresses };
    let lanes = ["web", "web/1"].map(|name| (name.to_owned(), wake::pair().unwrap()));
    let ends = rig.switch.join_lanes(lanes.into(), &station, MTU, choice);
    let end = |port| End { port, pool: pool(600), mac, tx: TxBatch::new(64) };
    rig.guests.extend(ends.into_iter().map(end));
    rig.count = rig.switch.pool.buffers().count() as usize;
    rig.turn();

    // Before anybody listens, by the port's number; then by flow, each always the same way.
    let mut got = [Vec::new(), Vec::new()];
    let mut arrive = |rig: &mut Rig, port| {
        let arriving = (1000..1100).map(|from| segment(mac, ABROAD, [from, port]));
        rig.nic.wire().arriving.extend(arriving);
        rig.turn();
        for (got, end) in got.iter_mut().zip(&mut rig.guests[1..]) {
            *got = end.receive().into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>();
        }
        got.each_ref().map(Vec::len)
    };
    assert_eq!((arrive(&mut rig, 80), arrive(&mut rig, 81)), ([100, 0], [0, 100]));
    ports.listen(1, 80);
    assert_eq!(arrive(&mut rig, 80), [0, 100]);
    ports.listen(0, 80);
    let shares = arrive(&mut rig, 80);
    assert!(shares[0] + shares[1] == 100 && shares.iter().all(|&n| n > 30), "{shares:?}");
    assert_eq!(arrive(&mut rig, 80), shares);

    // What all have to know, and what one does: a reply by ARP, and an echo.
    let mut reply = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9, 10, 7, 0, 9];
    reply.extend([0; 10]);
    let mut reply = frame(mac, ABROAD, &reply);
    reply[12..14].copy_from_slice(&[8, 6]);
    rig.nic.wire().arriving.push_back(reply);
    rig.arrives(mac, b"no segment");
    rig.turn();
    assert_eq!(
        rig.guests[1..].iter_mut().map(|end| end.receive().len()).collect::<Vec<_>>(),
        [2, 1]
    );

    // From any lane to another guest, and not to the others of its own.
    let other = rig.guests[0].mac;
    assert!(rig.guests[2].send(other, b"hello", None));
    assert!(rig.guests[2].send(mac, b"to itself", None));
    assert!(rig.guests[2].send(ALL, b"to all", None));
    rig.turn();
    assert_eq!(rig.guests[0].bodies(), [b"hello".to_vec(), b"to all".to_vec()]);
    assert!(rig.guests[1].bodies().is_empty());
    assert_eq!(rig.sent(), [frame(ALL, mac, b"to all")]);
    // A guest that sends to the lanes reaches the one that it means.
    let bytes = segment(mac, other, [7, 81]);
    assert!(rig.guests[0].send(mac, &bytes[14..], None));
    rig.turn();
    assert_eq!(rig.guests[2].bodies(), [bytes[14..].to_vec()]);
}

#[test]
fn nobody_sleeps_over_a_frame() {
    const ROUNDS: u32 = 20_000;
    let Rig { switch, nic: _, mut guests, .. } = Rig::new(2);
    let mut stop = Stop::default();
    let (told, ended) = std::sync::mpsc::channel();
    let mut worker = Worker::new(&mut stop, told).unwrap();
    worker.add(Box::new(switch));
    let thread = std::thread::spawn(move || worker.run());
    let mut far = guests.pop().unwrap();
    let (near_mac, far_mac) = (guests[0].mac, far.mac);
    // Each sleeps until the other has answered; a frame slept over ends it.
    let wait = |guest: &mut End| loop {
        if let Some(body) = guest.bodies().pop() {
            return body;
        }
        if !guest.port.arm() {
            let fd = guest.port.fd().unwrap();
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1, "slept over");
        }
    };
    let answering = std::thread::spawn(move || {
        for _ in 0..ROUNDS {
            let body = wait(&mut far);
            assert!(far.send(near_mac, &body, None));
        }
    });
    for round in 0..ROUNDS {
        assert!(guests[0].send(far_mac, &round.to_be_bytes(), None));
        assert_eq!(wait(&mut guests[0]), round.to_be_bytes());
    }
    answering.join().unwrap();
    stop.end_all();
    thread.join().unwrap();
    let counted = ended.recv().unwrap().counted.expect("it ended in good order");
    let count = |name| counted.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(count("switch.switched"), 2 * u64::from(ROUNDS));
    assert!(count("switch.sleeps") > 0);
}
