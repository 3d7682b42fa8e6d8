//! Durable data through a real backend: what was answered is in the mirror, what
//! a guest claimed is its own again after any crash, and a guest that lies about
//! either gets nothing.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::time::Duration;

use paste_abi::control::{FEATURE_FLUSH, FEATURE_STORE};
use paste_abi::frame::{self, RECORD_LEN};
use paste_abi::slot::{DURABLE, SHARE};
use paste_abi::{Event as SlotEvent, Flow, Frame, Kind, NO_BUFFER, Reason, Request, Slot};
use paste_guest::{Channel, Endpoint, Event, FlushDomain, Options, SendOptions, Timeout};
use paste_pmem::{Claims, Medium, Ticket};
use paste_tests::backend::{Backend, Guest};
use paste_tests::client;
use paste_tests::frontend::RawGuest;
use paste_tests::mirrored::Mirrored;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::wait;

fn open(backend: &Backend, guest: &Guest) -> Channel {
    let endpoint = Endpoint::vhost_user(backend.socket(guest));
    let channel =
        wait::until("the channel opens", || Channel::open(&endpoint, Options::default()).ok());
    assert_eq!(channel.geometry().unwrap().flush_domain, FlushDomain::Host);
    channel
}

/// Polls until `take` makes something of an event.
fn until<T>(channel: &mut Channel, mut take: impl FnMut(&mut Channel, Event) -> Option<T>) -> T {
    wait::until("the guest is told", || {
        channel.poll(Timeout::After(Duration::from_millis(20))).expect("it opens anew");
        while let Some(event) = channel.next_event() {
            if let Some(found) = take(channel, event) {
                return Some(found);
            }
        }
        None
    })
}

fn flushed(channel: &mut Channel, wanted: Ticket) {
    until(channel, |_, event| match event {
        Event::Flushed { ticket, result } if ticket == wanted => {
            assert_eq!(result, Ok(()));
            Some(())
        }
        _ => None,
    });
    assert!(channel.is_durable(wanted));
}

fn store(channel: &mut Channel, at: u64, bytes: &[u8]) {
    let medium = channel.medium().expect("the channel is open");
    medium.store(at, bytes);
    medium.flush(at, bytes.len() as u64);
}

#[test]
fn an_epoch_is_answered_when_the_mirror_holds_it() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let bed = Mirrored::new(&[]);
    let backend = bed.start();
    let mut channel = open(&backend, &bed.guest);
    let index = channel.layout().expect("a superblock").index().offset;
    for round in 0..50u64 {
        let at = index + round * 4096;
        let bytes = format!("round {round:04}");
        store(&mut channel, at, bytes.as_bytes());
        assert_ne!(bed.mirrored(at, bytes.len()), bytes.as_bytes(), "nobody asked for it yet");
        let ticket = channel.medium().unwrap().seal();
        flushed(&mut channel, ticket);
        assert_eq!(bed.mirrored(at, bytes.len()), bytes.as_bytes());
    }
    channel.shutdown().unwrap();
    let stats = backend.stop();
    assert_eq!(stats.get(&bed.guest, "channel.flushed"), 50);
    assert!(stats.get(&bed.guest, "flush.commits") >= 50);
    stats.assert_no_buffer_missing(&bed.guest);
}

#[test]
fn an_answer_that_waits_for_its_record_comes_after_it_and_both_lie_in_the_mirror() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let bed = Mirrored::new(&[]);
    let backend = bed.start();
    let mut channel = open(&backend, &bed.guest);
    channel.listen(80, 16).unwrap();
    let layout = *channel.layout().unwrap();
    let (log, buffers) = (layout.log().offset, layout.buffers().offset);
    let size = u64::from(layout.buffer_size());
    let mut stream = bed.net.run(|| client::connect(bed.guest.ip(), 80)).unwrap();
    let durably = SendOptions { durable: true, ..SendOptions::default() };
    for round in 0..50u64 {
        let request = format!("put {round:04}");
        stream.write_all(request.as_bytes()).unwrap();
        let (flow, data) = until(&mut channel, |_, event| match event {
            Event::Data { flow, data } => Some((flow, data)),
            _ => None,
        });
        // The payload where it lies, and a record of it.
        let place = buffers + u64::from(data.index()) * size + data.offset() as u64;
        let medium = channel.medium().unwrap();
        medium.flush(place, data.len() as u64);
        let record = [place, round].map(u64::to_le_bytes).concat();
        medium.store(log + round * 16, &record);
        medium.flush(log + round * 16, 16);
        medium.seal();
        channel.send(flow, data, durably).unwrap();
        channel.poll(Timeout::Now).unwrap();
        let mut answer = vec![0; request.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, request.as_bytes());
        assert_eq!(bed.mirrored(log + round * 16, 16), record);
        assert_eq!(bed.mirrored(place, request.len()), request.as_bytes());
    }
    drop(channel);
    let stats = backend.stop();
    assert!(stats.get(&bed.guest, "channel.held") > 0, "nothing ever waited");
    stats.assert_no_buffer_missing(&bed.guest);
}

#[test]
fn claimed_buffers_outlive_the_backend_and_the_guest_and_are_sent_from_where_they_lie() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let bed = Mirrored::new(&[]);
    let mut backend = bed.start();
    let mut channel = open(&backend, &bed.guest);
    channel.listen(80, 16).unwrap();
    let claims = Claims::new(channel.layout().unwrap());
    let mut stream = bed.net.run(|| client::connect(bed.guest.ip(), 80)).unwrap();
    let mut values = Vec::new();
    for round in 0..20 {
        let value = format!("value {round:04}");
        stream.write_all(value.as_bytes()).unwrap();
        let data = until(&mut channel, |_, event| match event {
            Event::Data { data, .. } => Some(data),
            _ => None,
        });
        let range = data.offset()..data.offset() + data.len();
        claims.set(channel.medium().unwrap(), data.index()).unwrap();
        values.push((channel.store(data).unwrap(), range, value));
    }
    let ticket = channel.medium().unwrap().seal();
    flushed(&mut channel, ticket);
    let indices: Vec<_> = values.iter().map(|(index, ..)| *index).collect();
    for kill in 0..4 {
        match kill {
            // The backend: the guest's channel opens anew by itself.
            0 | 1 => {
                let dir = backend.crash();
                backend = bed.restart(dir);
                until(&mut channel, |_, event| matches!(event, Event::Opened).then_some(()));
                assert!(!channel.is_stored(indices[0]));
            }
            // The guest, without a word.
            2 => {
                drop(channel);
                channel = open(&backend, &bed.guest);
            }
            // Both.
            _ => {
                drop(channel);
                let dir = backend.crash();
                backend = bed.restart(dir);
                channel = open(&backend, &bed.guest);
            }
        }
        let found: Vec<_> = claims.iter(&*channel.medium().unwrap()).collect();
        let mut wanted = indices.clone();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
        assert_eq!(channel.resume(&found).unwrap(), [0; 0]);
        channel.listen(80, 16).unwrap();
        // Every value, from where it lies, to two clients at once.
        let mut streams =
            [0; 2].map(|_| bed.net.run(|| client::connect(bed.guest.ip(), 80)).unwrap());
        let mut flows = Vec::new();
        while flows.len() < 2 {
            flows.push(until(&mut channel, |_, event| match event {
                Event::Accepted { flow, .. } => Some(flow),
                _ => None,
            }));
        }
        for (index, range, _) in &values {
            for flow in &flows {
                let options = SendOptions::default();
                channel.send_stored(*flow, *index, range.clone(), options).unwrap();
            }
        }
        channel.poll(Timeout::Now).unwrap();
        let expected: String = values.iter().map(|(_, _, value)| value.as_str()).collect();
        for stream in &mut streams {
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(String::from_utf8(got).unwrap(), expected);
        }
        for (index, range, value) in &values {
            assert_eq!(channel.stored_bytes(*index, range.clone()), value.as_bytes());
        }
    }
    // Given up: the claim first, then the buffer.
    for index in &indices {
        claims.clear(channel.medium().unwrap(), *index).unwrap();
    }
    let ticket = channel.medium().unwrap().seal();
    flushed(&mut channel, ticket);
    assert!(indices.iter().all(|index| channel.release(*index)));
    channel.poll(Timeout::Now).unwrap();
    channel.shutdown().unwrap();
    let stats = backend.stop();
    assert_eq!(stats.get(&bed.guest, "pool.claimed"), 0);
    stats.assert_no_buffer_missing(&bed.guest);
}

#[test]
fn lies_about_ranges_and_buffers_are_refused_and_hurt_nobody() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let bed = Mirrored::new(&[]);
    let backend = bed.start();
    let mut guest = RawGuest::attach_soon(&backend.socket(&bed.guest));
    let buffers = guest.open_with(0, 8, FEATURE_FLUSH | FEATURE_STORE);
    // Ranges outside what the guest maps, which is 14 MiB.
    let len = 14 << 20;
    let bad = [(len, 1), (len - 1, 2), (u64::MAX, 1), (1, u64::MAX), (0, len + 1)];
    for (ticket, (start, len)) in (1..).zip(bad) {
        let data = Slot {
            buf_idx: buffers[0],
            offset: 128,
            len: 1,
            modifiers: DURABLE,
            ..Slot::request(Request::Data, Flow(1))
        };
        guest.request(0, &[Slot::flush(start, len), Slot::seal(ticket, true), data]);
        let mut heard = Vec::new();
        while heard.len() < 2 {
            heard.extend(guest.slots());
        }
        assert_eq!(heard[0].as_event(), Some(SlotEvent::Flushed));
        assert_eq!((heard[0].cookie, heard[0].len), (ticket, Reason::BadRange as u16));
        assert_eq!(heard[1].len, Reason::NotDurable as u16);
    }
    // The whole of it is a range, and so is the last byte.
    guest.request(0, &[Slot::flush(0, len), Slot::flush(len - 1, 1), Slot::seal(9, true)]);
    let answer = guest.slots()[0];
    assert_eq!((answer.cookie, answer.len), (9, Reason::Ok as u16));

    // Buffers that are not its own are neither stored nor shared nor resumed.
    for buf_idx in [buffers[0] ^ 4096, 1 << 20, u32::MAX - 1, NO_BUFFER] {
        guest.request(0, &[Slot { buf_idx, ..Slot::request(Request::Store, Flow(0)) }]);
        assert_eq!(guest.refusal(), Reason::ForeignBuffer);
        let data = Slot {
            buf_idx,
            offset: 128,
            len: 1,
            modifiers: SHARE,
            ..Slot::request(Request::Data, Flow(1))
        };
        guest.request(0, &[data]);
        assert_eq!(guest.refusal(), Reason::ForeignBuffer);
    }
    let mut body = Vec::new();
    for first in (0..8 * 32).step_by(8) {
        let list: Vec<u32> = (first..first + 8).map(|i: u32| i.wrapping_mul(0x0101_0101)).collect();
        let mut record = [0; RECORD_LEN];
        frame::write_indices(&list, &mut record);
        body.extend(record);
    }
    guest.send_records(Kind::Resume, 0, &body);
    let bytes = guest.receive(Kind::Resumed);
    let frame = Frame::parse(&bytes).unwrap();
    assert_eq!(frame.records().len(), 32);
    let kept: Vec<u32> = frame.records().flat_map(frame::indices).collect();
    assert!(kept.iter().all(|buf| buffers.contains(buf)), "{kept:?}");

    // Without the feature the frame has no place.
    guest.open(1, 0);
    guest.send_records(Kind::Resume, 1, &body);
    assert_eq!(guest.bye(), Reason::BadFrame);
    drop(guest);
    let mut next = open(&backend, &bed.guest);
    let ticket = next.flush(&[0..8, 4096..4104]).unwrap();
    flushed(&mut next, ticket);
    next.shutdown().unwrap();
    backend.stop().assert_no_buffer_missing(&bed.guest);
}
