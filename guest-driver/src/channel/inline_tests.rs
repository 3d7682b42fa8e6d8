//! Channels without a mapped region: the same API, by copies in the frames.

use super::*;
use crate::SendOptions;
use crate::transport::loopback::{self, Handle, RX_PAYLOAD};
use paste_abi::{Event as SlotEvent, Flow, Kind, Slot};

const FLOW: Flow = Flow::new(1, 3);

fn open() -> (Channel, Handle) {
    let (transport, host) = loopback::pair();
    let options = Options { reserve: 8, queue: 16, inline: true, ..Options::default() };
    (Channel::open_on(transport, options).unwrap(), host)
}

fn poll(channel: &mut Channel) -> Vec<Event> {
    channel.poll(Timeout::Now).unwrap();
    std::iter::from_fn(|| channel.next_event()).collect()
}

#[test]
fn payload_arrives_and_leaves_by_copies_of_any_length() {
    let (mut channel, host) = open();
    assert!(channel.geometry().unwrap().inline);
    // Frames of the loopback have 1024 bytes: the longer ones are split.
    for len in [1usize, 18, 960, 961, 1460, 1900] {
        let payload: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
        host.lock().data(FLOW, &payload);
        let events = poll(&mut channel);
        let [Event::Data { data, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(channel.bytes(data), payload, "{len}");
        assert_eq!(data.offset(), usize::from(RX_PAYLOAD));
        let Some(Event::Data { mut data, .. }) = events.into_iter().next() else { return };
        // What the host has in its own memory is no longer what is read here.
        channel.bytes_mut(&mut data, 130..131)[0] ^= 0xff;
        channel.send(FLOW, data, SendOptions::default()).unwrap();
        channel.close(FLOW).unwrap();
        poll(&mut channel);
        let mut host = host.lock();
        let mut sent = host.sent(FLOW);
        sent[0] ^= 0xff;
        assert_eq!(sent, payload, "{len}");
        host.requests.clear();
    }
    assert_eq!(channel.stats().held, 0);
    assert_eq!(channel.stats().bytes_copied, 2 * (1 + 18 + 960 + 961 + 1460 + 1900));
}

#[test]
fn a_kept_buffer_still_holds_what_was_sent() {
    let (mut channel, host) = open();
    poll(&mut channel);
    let mut buffer = channel.take_buffer().unwrap();
    channel.bytes_mut(&mut buffer, 128..132).copy_from_slice(b"kept");
    buffer.set_range(128..132);
    let index = buffer.index();
    let options = SendOptions { keep: true, cookie: 5, ..SendOptions::default() };
    channel.send(FLOW, buffer, options).unwrap();
    poll(&mut channel);
    let acked = Slot {
        buf_idx: index,
        cookie: 5,
        modifiers: paste_abi::slot::KEEP,
        ..Slot::event(SlotEvent::Acked, FLOW)
    };
    host.lock().slots(&[acked]);
    let events = poll(&mut channel);
    let [Event::Acked { buffer: Some(buffer), cookie: 5, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(channel.bytes(buffer), b"kept");
}

#[test]
fn a_host_that_fills_what_is_the_applications_loses_the_channel() {
    let (mut channel, host) = open();
    host.lock().data(FLOW, b"mine");
    let events = poll(&mut channel);
    let [Event::Data { data, .. }] = &events[..] else { panic!("{events:?}") };
    let again = Slot {
        buf_idx: data.index(),
        offset: RX_PAYLOAD,
        len: 4,
        ..Slot::event(SlotEvent::Data, FLOW)
    };
    let at = data.index() as usize * loopback::BUFFER_SIZE + usize::from(RX_PAYLOAD);
    assert!(host.lock().memory.write_at(at, b"evil"));
    host.lock().slots(&[again]);
    let events = poll(&mut channel);
    assert!(
        matches!(events[..], [Event::Lost { cause: LostCause::Protocol(Reason::ForeignBuffer) }]),
        "{events:?}"
    );
}

#[test]
fn slots_without_payload_do_not_belong_here() {
    let (mut channel, host) = open();
    let mut record = [0; RECORD_LEN];
    Slot::event(SlotEvent::Fin, FLOW).write(&mut record);
    host.lock().frame(Kind::Slots, &record);
    let events = poll(&mut channel);
    assert!(
        matches!(events[..], [Event::Lost { cause: LostCause::Protocol(Reason::BadFrame) }]),
        "{events:?}"
    );
    // And the channel opens anew.
    std::thread::sleep(BACKOFF_FIRST * 2);
    let events = poll(&mut channel);
    assert!(matches!(events[..], [Event::Opened]), "{events:?}");
}
