//! Durable data on a channel, against a host that does what the test says.

use paste_abi::control::FlushDomain;
use paste_abi::slot::{DURABLE, NOTIFY, Opt, SHARE};
use paste_abi::{Event as SlotEvent, Flow, Request, Slot};
use paste_pmem::Medium;

use super::*;
use crate::transport::loopback::{self, BUFFER_SIZE, HEADROOM, Handle, RX_PAYLOAD};
use crate::{ResumeError, SendCause, SendOptions};

const FLOW: Flow = Flow::new(1, 3);
const DURABLY: SendOptions = SendOptions { cookie: 5, notify: false, keep: false, durable: true };

fn options() -> Options {
    Options { reserve: 8, queue: 16, answer_timeout: Duration::from_secs(60), ..Options::default() }
}

fn open(domain: FlushDomain) -> (Channel, Handle) {
    let (transport, host) = loopback::pair();
    host.lock().domain = domain;
    (Channel::open_on(transport, options()).unwrap(), host)
}

fn poll(channel: &mut Channel) -> Vec<Event> {
    channel.poll(Timeout::Now).unwrap();
    std::iter::from_fn(|| channel.next_event()).collect()
}

fn receive(channel: &mut Channel, host: &Handle, payload: &[u8]) -> crate::Buffer {
    host.lock().data(FLOW, payload);
    match poll(channel).pop() {
        Some(Event::Data { data, .. }) => data,
        other => panic!("{other:?}"),
    }
}

fn requests(host: &Handle) -> Vec<Slot> {
    host.lock().requests.drain(..).collect()
}

fn flushed(host: &Handle, ticket: u64, reason: Reason) {
    let slot = Slot::event(SlotEvent::Flushed, Flow::default());
    host.lock().slots(&[Slot { cookie: ticket, len: reason as u16, ..slot }]);
}

#[test]
fn a_durable_send_stands_behind_the_epoch_that_it_waits_for() {
    let (mut channel, host) = open(FlushDomain::Host);
    let data = receive(&mut channel, &host, b"put");
    let medium = channel.medium().unwrap();
    medium.store(4096, b"record");
    medium.flush(4096, 6);
    let ticket = medium.seal();
    channel.send(FLOW, data, DURABLY).unwrap();
    assert!(!channel.is_durable(ticket));
    poll(&mut channel);
    let slots = requests(&host);
    assert_eq!(slots[..2], [Slot::flush(4096, 6), Slot::seal(ticket.0, false)]);
    assert_eq!((slots[2].as_request(), slots[2].modifiers), (Some(Request::Data), DURABLE));
    let mut bytes = [0; 6];
    assert!(host.lock().memory.read_at(4096, &mut bytes));
    assert_eq!(&bytes, b"record");

    flushed(&host, ticket.0, Reason::Ok);
    let events = poll(&mut channel);
    assert!(matches!(events[..], [Event::Flushed { ticket: t, result: Ok(()) }] if t == ticket));
    assert!(channel.is_durable(ticket));
}

#[test]
fn a_refused_durable_send_comes_back_and_what_failed_is_said_again() {
    let (mut channel, host) = open(FlushDomain::Host);
    let data = receive(&mut channel, &host, b"put");
    let index = data.index();
    let first = channel.flush(&[4096..4102, 8192..8192]).unwrap();
    channel.send(FLOW, data, DURABLY).unwrap();
    poll(&mut channel);
    let sent = requests(&host).pop().unwrap();
    flushed(&host, first.0, Reason::NotDurable);
    host.lock().slots(&[Slot {
        kind: SlotEvent::Refused as u8,
        len: Reason::NotDurable as u16,
        ..sent
    }]);
    let mut events = poll(&mut channel);
    match events.pop() {
        Some(Event::Refused { reason: Reason::NotDurable, cookie: 5, buffer: Some(b), .. }) => {
            assert_eq!((b.index(), b.offset(), b.len()), (index, RX_PAYLOAD.into(), 3));
            channel.give_back(b);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(events[..], [Event::Flushed { result: Err(Reason::NotDurable), .. }]));
    let second = channel.flush(&[]).unwrap();
    poll(&mut channel);
    assert_eq!(requests(&host), [Slot::flush(4096, 6), Slot::seal(second.0, true)]);
    assert!(!channel.is_durable(first));
    flushed(&host, second.0, Reason::Ok);
    poll(&mut channel);
    assert!(channel.is_durable(first));
}

#[test]
fn a_host_that_flushes_nothing_is_asked_nothing() {
    for domain in [FlushDomain::None, FlushDomain::CpuCache] {
        let (mut channel, host) = open(domain);
        assert_eq!(channel.geometry().unwrap().flush_domain, domain);
        let data = receive(&mut channel, &host, b"put");
        let ticket = channel.flush(&[0..64, 4096..4160]).unwrap();
        assert!(channel.is_durable(ticket));
        channel.send(FLOW, data, DURABLY).unwrap();
        poll(&mut channel);
        assert_eq!(requests(&host).iter().map(|s| s.modifiers).collect::<Vec<_>>(), [0]);
    }
}

#[test]
fn a_durable_send_waits_until_its_epoch_finds_room() {
    let (mut channel, host) = open(FlushDomain::Host);
    let data = receive(&mut channel, &host, b"put");
    host.lock().generous = false;
    // Use up the credit, so that nothing leaves the queue.
    for _ in 0..64 {
        channel.set_option(FLOW, Opt::KeepAlive, 1).unwrap();
        channel.push_frames().unwrap();
    }
    let ranges: Vec<_> = (0..20).map(|i| i * 4096..i * 4096 + 8).collect();
    let ticket = channel.flush(&ranges).unwrap();
    let error = channel.send(FLOW, data, DURABLY).unwrap_err();
    assert_eq!(error.cause, SendCause::Busy(crate::Busy));
    channel.give_back(error.buffer);
    let mut host_ = host.lock();
    host_.generous = true;
    host_.frame(paste_abi::Kind::Credit, &[]);
    drop(host_);
    requests(&host);
    for _ in 0..3 {
        poll(&mut channel);
    }
    let slots = requests(&host);
    assert_eq!(slots.len(), 21);
    assert_eq!(slots.last(), Some(&Slot::seal(ticket.0, false)));
}

#[test]
fn an_answer_that_nobody_asked_for_is_the_hosts_error() {
    let (mut channel, host) = open(FlushDomain::Host);
    flushed(&host, 9, Reason::Ok);
    assert!(matches!(poll(&mut channel)[..], [Event::Lost { cause: LostCause::Protocol(_) }]));
    assert_eq!(host.lock().byes, [Reason::BadRequest]);
}

#[test]
fn a_lost_channel_says_its_epochs_again_when_it_is_open() {
    let (mut channel, host) = open(FlushDomain::Host);
    let ticket = channel.flush(&[4096..4100, 4100..4104]).unwrap();
    poll(&mut channel);
    host.lock().bye(Reason::SequenceGap);
    poll(&mut channel);
    assert!(channel.medium().is_none() && channel.flush(&[]).is_err());
    requests(&host);
    while !channel.is_open() {
        let _ = channel.poll(Timeout::After(Duration::from_millis(50))).unwrap();
        while channel.next_event().is_some() {}
    }
    poll(&mut channel);
    assert_eq!(requests(&host), [Slot::flush(4096, 8), Slot::seal(ticket.0, false)]);
    flushed(&host, ticket.0, Reason::Ok);
    poll(&mut channel);
    assert!(channel.is_durable(ticket));
}

#[test]
fn a_stored_buffer_is_sent_from_where_it_lies_on_many_flows() {
    let (mut channel, host) = open(FlushDomain::None);
    let data = receive(&mut channel, &host, b"value");
    let index = channel.store(data).unwrap();
    assert!(channel.is_stored(index));
    let range = usize::from(RX_PAYLOAD)..usize::from(RX_PAYLOAD) + 5;
    assert_eq!(channel.stored_bytes(index, range.clone()), b"value");
    assert!(channel.stored_bytes(index, 0..BUFFER_SIZE + 1).is_empty());
    assert!(channel.stored_bytes(index + 1, range.clone()).is_empty());
    let flows = [FLOW, Flow::new(2, 1)];
    for flow in flows {
        channel.send_stored(flow, index, range.clone(), SendOptions::default()).unwrap();
    }
    poll(&mut channel);
    let slots = requests(&host);
    assert_eq!((slots[0].as_request(), slots[0].buf_idx), (Some(Request::Store), index));
    for (slot, flow) in slots[1..].iter().zip(flows) {
        assert_eq!((slot.flow, slot.buf_idx, slot.len), (flow, index, 5));
        assert_eq!(slot.modifiers, SHARE | NOTIFY);
        assert_eq!(host.lock().payload(slot), b"value");
    }
    // Given up now, it goes back when both sends have ended: one is acknowledged,
    // one refused.
    assert!(channel.release(index));
    assert_eq!(
        channel.send_stored(FLOW, index, range, SendOptions::default()),
        Err(SendCause::NotStored)
    );
    let acked = Slot::event(SlotEvent::Acked, FLOW);
    host.lock().slots(&[Slot { buf_idx: index, modifiers: SHARE, ..acked }]);
    assert!(matches!(poll(&mut channel)[..], [Event::Acked { buffer: None, .. }]));
    poll(&mut channel);
    assert!(!host.lock().pool.contains(&index));
    let refused = Slot { kind: SlotEvent::Refused as u8, len: Reason::NoRoom as u16, ..slots[2] };
    host.lock().slots(&[refused]);
    let events = poll(&mut channel);
    assert!(matches!(events[..], [Event::Refused { reason: Reason::NoRoom, buffer: None, .. }]));
    poll(&mut channel);
    assert!(host.lock().pool.contains(&index));
}

#[test]
fn what_cannot_be_a_range_of_a_stored_buffer_is_refused() {
    let (mut channel, host) = open(FlushDomain::None);
    let data = receive(&mut channel, &host, b"value");
    let index = channel.store(data).unwrap();
    let headroom = usize::from(HEADROOM);
    for range in [headroom - 1..headroom + 1, headroom..headroom, 2000..BUFFER_SIZE + 1] {
        let sent = channel.send_stored(FLOW, index, range, SendOptions::default());
        assert_eq!(sent, Err(SendCause::Range));
    }
}

#[test]
fn claimed_buffers_are_resumed_at_a_start_and_after_a_loss() {
    let (transport, host) = loopback::pair();
    host.lock().claimed = vec![3, 4, 7, 20, 21, 22, 23, 24, 25, 26];
    let mut channel = Channel::open_on(transport, options()).unwrap();
    let asked = [3, 4, 5, 7, 20, 21, 22, 23, 24, 25, 26, 99];
    assert_eq!(channel.resume(&asked).unwrap(), [99, 5]);
    assert_eq!(channel.stats().stored, 10);
    assert!(channel.is_stored(26) && !channel.is_stored(5));
    assert_eq!(channel.resume(&[3]).unwrap(), [0; 0], "it is stored already");

    host.lock().bye(Reason::SequenceGap);
    poll(&mut channel);
    assert!(!channel.is_stored(3));
    assert_eq!(channel.request_resume(&[3]), Err(ResumeError::Lost));
    while !channel.is_open() {
        let _ = channel.poll(Timeout::After(Duration::from_millis(50))).unwrap();
        while channel.next_event().is_some() {}
    }
    channel.request_resume(&[3, 5]).unwrap();
    let events = poll(&mut channel);
    match &events[..] {
        [.., Event::Resumed { refused }] => assert_eq!(refused, &[5]),
        other => panic!("{other:?}"),
    }
    assert!(channel.is_stored(3) && channel.release(3));
    poll(&mut channel);
    assert!(host.lock().pool.contains(&3));
}

#[test]
fn buffers_on_their_way_out_are_asked_for_until_they_are_back() {
    let (transport, host) = loopback::pair();
    host.lock().claimed = vec![3];
    let mut channel = Channel::open_on(transport, options()).unwrap();
    let mut refused = channel.resume_within(&[3, 5, 6], Duration::ZERO).unwrap();
    refused.sort_unstable();
    assert_eq!(refused, [5, 6], "the host still has them");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            host.lock().claimed.extend([5, 6]);
        });
        let refused = channel.resume_within(&[5, 6], Duration::from_secs(60)).unwrap();
        assert_eq!(refused, [0; 0]);
    });
    assert!(channel.is_stored(5) && channel.is_stored(6));
}
