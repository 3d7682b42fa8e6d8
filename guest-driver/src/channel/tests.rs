use super::*;
use crate::transport::loopback::{self, BUFFERS, Handle, RX_PAYLOAD};
use crate::{Busy, ListenError, SendCause};
use paste_abi::{Event as SlotEvent, Flow, Request, Slot};

const FLOW: Flow = Flow::new(1, 3);

fn options() -> Options {
    Options { reserve: 8, queue: 16, answer_timeout: Duration::from_secs(60), ..Options::default() }
}

fn open() -> (Channel, Handle) {
    let (transport, host) = loopback::pair();
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

#[test]
fn payload_is_read_and_sent_where_it_lies() {
    let (mut channel, host) = open();
    let mut data = receive(&mut channel, &host, b"hello");
    assert_eq!((channel.bytes(&data), data.offset()), (&b"hello"[..], RX_PAYLOAD.into()));
    assert_eq!(channel.stats().held, 1);
    let index = data.index();
    channel.bytes_mut(&mut data, 130..131)[0] = b'J';
    channel
        .send(FLOW, data, SendOptions { cookie: 7, notify: true, ..SendOptions::default() })
        .unwrap();
    assert!(host.lock().requests.is_empty(), "nothing is published before a poll");
    poll(&mut channel);
    let mut host = host.lock();
    let slot = host.requests[0];
    assert_eq!((slot.buf_idx, slot.offset, slot.len, slot.cookie), (index, RX_PAYLOAD, 5, 7));
    assert_eq!(slot.modifiers, paste_abi::slot::NOTIFY);
    assert_eq!(host.sent(FLOW), b"Jello");
    assert_eq!((channel.stats().held, channel.stats().bytes_copied), (0, 0));
}

#[test]
fn a_bad_range_or_a_stale_name_is_refused_with_the_buffer() {
    let (mut channel, host) = open();
    poll(&mut channel);
    let empty = channel.take_buffer().unwrap();
    let error = channel.send(FLOW, empty, SendOptions::default()).unwrap_err();
    assert_eq!(error.cause, SendCause::Range);
    let mut early = error.buffer;
    early.set_range(127..130);
    let error = channel.send(FLOW, early, SendOptions::default()).unwrap_err();
    assert_eq!(error.cause, SendCause::Range);
    channel.give_back(error.buffer);

    let data = receive(&mut channel, &host, b"old");
    host.lock().bye(Reason::SequenceGap);
    let events = poll(&mut channel);
    assert!(matches!(events[..], [Event::Lost { cause: LostCause::Host(Reason::SequenceGap) }]));
    assert!(channel.bytes(&data).is_empty(), "the host may write to it now");
    let error = channel.send(FLOW, data, SendOptions::default()).unwrap_err();
    assert_eq!(error.cause, SendCause::Stale);
    channel.give_back(error.buffer);

    // Nor is another channel's buffer any good.
    let (mut other, host) = open();
    let foreign = receive(&mut other, &host, b"x");
    let (mut channel, _host) = open();
    assert!(channel.bytes(&foreign).is_empty());
    let error = channel.send(FLOW, foreign, SendOptions::default()).unwrap_err();
    assert_eq!(error.cause, SendCause::Stale);
    other.give_back(error.buffer);
}

#[test]
fn without_credit_the_queue_fills_and_says_so_and_nothing_is_lost() {
    let (mut channel, host) = open();
    // A guest may send what it was told of at WELCOME, and no more.
    host.lock().generous = false;
    let mut sent = 0;
    while channel.close(Flow(sent)).is_ok() {
        sent += 1;
        poll(&mut channel);
        assert!(sent < 1000, "there is a limit");
    }
    let held = receive(&mut channel, &host, b"kept");
    let error = channel.send(FLOW, held, SendOptions::default()).unwrap_err();
    assert_eq!(error.cause, SendCause::Busy(Busy));
    assert_eq!(channel.bytes(&error.buffer), b"kept");
    channel.give_back(error.buffer);
    {
        let mut host = host.lock();
        host.window = 1000;
        host.generous = true;
        host.frame(paste_abi::Kind::Credit, &[]);
    }
    // The frame is heard in one poll, and the next one sends.
    poll(&mut channel);
    poll(&mut channel);
    let host = host.lock();
    let flows: Vec<_> = host.requests.iter().map(|slot| slot.flow.0).collect();
    assert_eq!(flows, (0..sent).collect::<Vec<_>>());
}

#[test]
fn the_reserve_is_kept_full() {
    let (mut channel, host) = open();
    poll(&mut channel);
    assert_eq!(channel.stats().granted, 8);
    for _ in 0..4 {
        let buffer = channel.take_buffer().unwrap();
        assert_eq!((buffer.offset(), buffer.len()), (usize::from(loopback::HEADROOM), 0));
        channel.give_back(buffer);
    }
    poll(&mut channel);
    poll(&mut channel);
    assert_eq!(channel.stats().granted, 8);
    assert_eq!(host.lock().pool.len(), BUFFERS as usize - 8);
    // Emptied faster than a poll: the application is told, and waits.
    while let Some(buffer) = channel.take_buffer() {
        channel.give_back(buffer);
    }
    assert!(channel.take_buffer().is_none());
    channel.want(3).unwrap();
    poll(&mut channel);
    poll(&mut channel);
    assert!(channel.stats().granted >= 3);
}

#[test]
fn the_reserve_leaves_buffers_for_what_arrives() {
    let (transport, host) = loopback::pair();
    let mut channel =
        Channel::open_on(transport, Options { reserve: BUFFERS, ..options() }).unwrap();
    for _ in 0..4 {
        poll(&mut channel);
    }
    assert_eq!(channel.stats().granted, BUFFERS / 4);
    assert_eq!(host.lock().pool.len(), BUFFERS as usize * 3 / 4);
}

#[test]
fn buffers_are_asked_for_once_however_late_they_come() {
    let (mut channel, host) = open();
    poll(&mut channel);
    // The host has another use for all but two of its buffers.
    let mut pool = std::mem::take(&mut host.lock().pool);
    host.lock().pool.extend(pool.drain(..2));
    let taken: Vec<_> = std::iter::from_fn(|| channel.take_buffer()).collect();
    for _ in 0..10 {
        poll(&mut channel);
    }
    assert_eq!((taken.len(), channel.stats().granted), (8, 2));
    host.lock().pool.extend(pool);
    host.lock().grant(0);
    poll(&mut channel);
    poll(&mut channel);
    assert_eq!(channel.stats().granted, 8);
}

#[test]
fn listening_waits_for_its_answer_and_keeps_other_events() {
    let (mut channel, host) = open();
    host.lock().accept(FLOW);
    let cookie = u64::from(channel.next_cookie) + 1;
    let reply = |reason: Reason, flow| Slot {
        cookie,
        len: reason as u16,
        ..Slot::event(SlotEvent::Reply, flow)
    };
    host.lock().slots(&[reply(Reason::Ok, Flow(5))]);
    assert_eq!(channel.listen(80, 16), Ok(Flow(5)));
    let request = host.lock().requests[0];
    assert_eq!((request.as_request(), request.offset), (Some(Request::Listen), 80));
    assert!(matches!(poll(&mut channel)[..], [Event::Accepted { flow: FLOW, .. }]));
    let taken = Slot { cookie: cookie + 1, ..reply(Reason::PortInUse, Flow(0)) };
    host.lock().slots(&[taken]);
    assert_eq!(channel.listen(80, 16), Err(ListenError::Refused(Reason::PortInUse)));
    host.lock().bye(Reason::Shutdown);
    let lost = LostCause::Host(Reason::Shutdown);
    assert_eq!(channel.listen(80, 16), Err(ListenError::Lost(lost)));
    assert!(matches!(poll(&mut channel)[..], [Event::Lost { .. }]));
}

/// Polls until the next event; what is due by time comes with time.
fn next(channel: &mut Channel) -> Event {
    loop {
        if let Some(event) = poll(channel).into_iter().next() {
            return event;
        }
    }
}

#[test]
fn a_lost_channel_is_opened_anew() {
    let (mut channel, host) = open();
    host.lock().bye(Reason::SequenceGap);
    assert!(matches!(next(&mut channel), Event::Lost { .. }));
    assert_eq!(channel.close(FLOW), Err(Busy));
    assert!(matches!(next(&mut channel), Event::Opened));
    assert_eq!(receive(&mut channel, &host, b"new").len(), 3);
    assert_eq!((host.lock().hellos, channel.stats().lost), (2, 1));
}

#[test]
fn a_backend_that_restarts_is_found_again() {
    let (mut channel, host) = open();
    host.lock().broken = true;
    let event = next(&mut channel);
    assert!(matches!(event, Event::Lost { cause: LostCause::Transport }));
    assert!(matches!(channel.last_error(), Some(TransportError::Disconnected)));
    for _ in 0..10 {
        assert!(poll(&mut channel).is_empty());
    }
    host.lock().broken = false;
    assert!(matches!(next(&mut channel), Event::Opened));
}

#[test]
fn a_host_that_breaks_the_protocol_is_told() {
    let (mut channel, host) = open();
    host.lock().seq = 17;
    host.lock().accept(FLOW);
    let event = next(&mut channel);
    assert!(matches!(event, Event::Lost { cause: LostCause::Protocol(Reason::SequenceGap) }));
    assert_eq!(host.lock().byes, [Reason::SequenceGap]);
    assert!(matches!(next(&mut channel), Event::Opened));
    // Half a frame of ours, and an ordinary one, which is none of our business.
    host.lock().raw(&[0; 60]);
    let mut half = [0; 20];
    half[12..14].copy_from_slice(&paste_abi::ETHERTYPE.to_be_bytes());
    host.lock().raw(&half);
    let event = next(&mut channel);
    assert!(matches!(event, Event::Lost { cause: LostCause::Protocol(Reason::BadFrame) }));
}

#[test]
fn without_reopening_the_channel_ends() {
    let (transport, host) = loopback::pair();
    let mut channel = Channel::open_on(transport, Options { reopen: false, ..options() }).unwrap();
    host.lock().bye(Reason::Shutdown);
    assert!(matches!(poll(&mut channel)[..], [Event::Lost { .. }]));
    let error = channel.poll(Timeout::Never).unwrap_err();
    assert_eq!(error, PollError(LostCause::Host(Reason::Shutdown)));
    assert_eq!(host.lock().hellos, 1);
}

#[test]
fn a_host_that_does_not_answer_is_asked_again_until_the_time_is_over() {
    let (transport, host) = loopback::pair();
    host.lock().welcoming = false;
    let answer_timeout = HELLO_WAIT_FIRST * 2;
    let opened = Channel::open_on(transport, Options { answer_timeout, ..options() });
    assert!(matches!(opened, Err(OpenError::TimedOut)));
    assert!(host.lock().hellos >= 2);
}

#[test]
fn events_that_are_not_read_stay_and_stop_the_host() {
    let (mut channel, host) = open();
    for _ in 0..3 {
        host.lock().accept(FLOW);
    }
    channel.poll(Timeout::Now).unwrap();
    assert!(matches!(channel.next_event(), Some(Event::Accepted { .. })));
    host.lock().accept(Flow(9));
    // Nothing is lost, nothing is out of order, and nothing is waited for.
    channel.poll(Timeout::Never).unwrap();
    let rest: Vec<_> = std::iter::from_fn(|| channel.next_event()).collect();
    let flows = rest.iter().map(|event| match event {
        Event::Accepted { flow, .. } => *flow,
        other => panic!("{other:?}"),
    });
    assert_eq!(flows.collect::<Vec<_>>(), [FLOW, FLOW, Flow(9)]);
}

#[test]
fn a_batch_ends_so_that_answers_can_go_out() {
    let (mut channel, host) = open();
    host.lock().accept(FLOW);
    channel.poll(Timeout::Now).unwrap();
    host.lock().accept(Flow(9));
    assert_eq!(std::iter::from_fn(|| channel.next_event()).count(), 1);
    assert_eq!(poll(&mut channel).len(), 1);
}

#[test]
fn shutting_down_says_goodbye_after_what_was_queued() {
    let (mut channel, host) = open();
    channel.close(FLOW).unwrap();
    channel.shutdown().unwrap();
    let host = host.lock();
    assert_eq!(host.requests[0].as_request(), Some(Request::Close));
    assert_eq!(host.byes, [Reason::Shutdown]);
}

#[test]
fn no_pair_and_pairs_that_there_cannot_be_are_refused() {
    let nowhere = Endpoint::vhost_user("/nonexistent/socket");
    let error = Channel::open_pairs(&nowhere, options(), 0).unwrap_err();
    assert!(matches!(error, OpenError::NoPairs), "{error}");
    for machine in [Endpoint::packet_inline("eth0"), Endpoint::virtio_pci_inline("0000:00:05.0")] {
        let error = Channel::open_pairs(&machine, options(), 2).unwrap_err();
        assert!(matches!(error, OpenError::OnePair(2)), "{error}");
    }
}
