use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NONCE: u64 = 0x1122;

fn setup() -> Setup {
    Setup {
        channel: 3,
        mac: MAC,
        frame_size: 256,
        window: 8,
        buffers_wanted: 4,
        slots_max: 32,
        inline: false,
        probed: true,
        name: [0; 32],
    }
}

fn frame(kind: Kind, seq: u32, limit: u32, body: &[u8]) -> Vec<u8> {
    let count = (body.len() / RECORD_LEN) as u16;
    let header = Header { dst: MAC, src: HOST_MAC, kind, channel: 3, count, seq, limit };
    let mut bytes = vec![0; HEADER_LEN];
    header.write(bytes.first_chunk_mut().unwrap());
    bytes.extend_from_slice(body);
    bytes
}

fn welcome() -> Welcome {
    Welcome {
        status: 0.into(),
        version: 1.into(),
        features: 0.into(),
        region_uuid: [5; 16],
        region_size: (16 * 2048).into(),
        buffers_offset: 0.into(),
        buffer_size: 2048.into(),
        buffer_count: 16.into(),
        headroom: 128.into(),
        frame_size_max: 256.into(),
        granted: 4.into(),
        flows_max: 100.into(),
        flush_domain: 0.into(),
        address: std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets(),
        mtu: 1500.into(),
        mac: MAC,
        nonce: NONCE.into(),
        reserved: [0; 32],
    }
}

/// An open conversation whose host allows frames below `limit`.
fn open(limit: u32) -> Conversation {
    let mut conversation = Conversation::new(setup());
    assert!(conversation.hello(NONCE, &mut [0; 256]) > 0);
    let answer = frame(Kind::Welcome, 0, limit, welcome().as_bytes());
    assert!(matches!(conversation.receive(&answer, 1), Ok(Arrival::Opened(_))));
    conversation
}

/// All frames that are due.
fn output(conversation: &mut Conversation) -> Vec<(Header, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut out = [0xEE; 256];
    while conversation.has_output() {
        let len = conversation.build(&mut out, &mut |_, _| {});
        let frame = Frame::parse(&out[..len]).unwrap();
        frames.push((frame.header, frame.body.to_vec()));
    }
    assert_eq!(conversation.build(&mut out, &mut |_, _| {}), 0);
    frames
}

fn slots(slots: &[Slot]) -> Vec<u8> {
    let mut body = vec![0; slots.len() * RECORD_LEN];
    for (slot, record) in slots.iter().zip(body.as_chunks_mut().0) {
        slot.write(record);
    }
    body
}

fn event(conversation: &mut Conversation, slot: Slot) -> Result<Event, Broken> {
    let mut record = [0; RECORD_LEN];
    slot.write(&mut record);
    conversation.event(&record)
}

#[test]
fn hello_says_what_the_guest_can_do() {
    let mut conversation = Conversation::new(setup());
    let mut out = [0; 256];
    let len = conversation.hello(NONCE, &mut out);
    let frame = Frame::parse(&out[..len]).unwrap();
    assert_eq!((frame.header.kind, frame.header.channel), (Kind::Hello, 3));
    assert_eq!((frame.header.seq, frame.header.limit, frame.header.src), (0, 8, MAC));
    let hello = Hello::read(frame.body).unwrap();
    assert_eq!((hello.nonce.get(), hello.buffers_wanted.get()), (NONCE, 4));
    assert_eq!((hello.version_min, hello.version_max, hello.frame_size_max.get()), (1, 1, 256));
    assert_eq!(conversation.hello(NONCE, &mut [0; 95]), 0, "no room");
}

#[test]
fn only_the_answer_to_this_hello_opens() {
    let mut conversation = Conversation::new(setup());
    let stray = frame(Kind::Slots, 7, 9, &slots(&[Slot::default()]));
    assert_eq!(conversation.receive(&stray, 1), Ok(Arrival::Nothing), "not even asked");
    conversation.hello(NONCE, &mut [0; 256]);
    assert_eq!(conversation.receive(&stray, 1), Ok(Arrival::Nothing), "of an earlier opening");
    let mut late = welcome();
    late.nonce = 1.into();
    let late = frame(Kind::Welcome, 0, 4, late.as_bytes());
    assert_eq!(conversation.receive(&late, 1), Ok(Arrival::Nothing));
    let mut other = frame(Kind::Welcome, 0, 4, welcome().as_bytes());
    other[16] = 4;
    assert_eq!(conversation.receive(&other, 1), Ok(Arrival::Nothing), "another channel's");
    assert_eq!(conversation.receive(&[0; 60], 1), Ok(Arrival::Nothing), "an ordinary frame");
    assert!(!conversation.is_open());
    let answer = frame(Kind::Welcome, 0, 4, welcome().as_bytes());
    let Ok(Arrival::Opened(geometry)) = conversation.receive(&answer, 1) else {
        panic!("not opened");
    };
    assert_eq!((geometry.headroom, geometry.flows_max, geometry.mtu), (128, 100, 1500));
    assert_eq!(geometry.address, std::net::Ipv4Addr::new(192, 0, 2, 1));
}

#[test]
fn a_refusal_is_told_and_nonsense_is_broken() {
    let judge = |change: &dyn Fn(&mut Welcome)| {
        let mut conversation = Conversation::new(setup());
        conversation.hello(NONCE, &mut [0; 256]);
        let mut answer = welcome();
        change(&mut answer);
        conversation.receive(&frame(Kind::Welcome, 0, 4, answer.as_bytes()), 1)
    };
    let refused = judge(&|w| w.status = (Reason::NoRoom as u16).into());
    assert_eq!(refused, Ok(Arrival::Refused(Reason::NoRoom)));
    let broken = |result: Result<Arrival, Broken>| result.unwrap_err().reason;
    assert_eq!(broken(judge(&|w| w.version = 2.into())), Reason::Version);
    let nonsense: [&dyn Fn(&mut Welcome); 8] = [
        &|w| w.region_size = (16 * 2048 - 1).into(),
        &|w| w.buffers_offset = u64::MAX.into(),
        &|w| w.buffer_size = 2047.into(),
        &|w| w.buffer_size = 131_072.into(),
        &|w| w.buffer_count = u32::MAX.into(),
        &|w| w.headroom = 2048.into(),
        &|w| w.frame_size_max = 257.into(),
        &|w| w.flows_max = u32::MAX.into(),
    ];
    for (i, change) in nonsense.into_iter().enumerate() {
        assert_eq!(broken(judge(change)), Reason::BadFrame, "case {i}");
    }
}

#[test]
fn slots_go_out_in_order_and_within_credit() {
    let mut conversation = open(2);
    for i in 0..20 {
        assert!(conversation.push(&Slot { flow: Flow(i), ..Slot::default() }));
    }
    // A frame of 256 bytes holds seven slots, and two frames are allowed.
    let frames = output(&mut conversation);
    let counts: Vec<_> = frames.iter().map(|(h, _)| (h.kind, h.seq, h.count)).collect();
    assert_eq!(counts, [(Kind::Slots, 0, 7), (Kind::Slots, 1, 7)]);
    assert_eq!((conversation.queued(), conversation.has_credit()), (6, false));
    let first = Slot::read(frames[1].1.first_chunk().unwrap());
    assert_eq!(first.flow, Flow(7));
    let credit = frame(Kind::Credit, 0, 3, &[]);
    assert_eq!(conversation.receive(&credit, 1), Ok(Arrival::Nothing));
    let frames = output(&mut conversation);
    assert_eq!((frames.len(), frames[0].0.seq, frames[0].0.count), (1, 2, 6));
}

#[test]
fn a_full_queue_refuses_and_a_limit_never_goes_back() {
    let mut conversation = open(5);
    let stale = frame(Kind::Credit, 0, 1, &[]);
    assert_eq!(conversation.receive(&stale, 1), Ok(Arrival::Nothing));
    for _ in 0..32 {
        assert!(conversation.push(&Slot::default()));
    }
    assert!(!conversation.push(&Slot::default()));
    assert_eq!(output(&mut conversation).len(), 5);
}

#[test]
fn sequence_and_credit_go_around_the_end_of_the_numbers() {
    let mut conversation = open(1);
    conversation.next_seq = u32::MAX;
    conversation.peer_limit = 1;
    conversation.expected = u32::MAX;
    conversation.told_limit = 7;
    for _ in 0..14 {
        assert!(conversation.push(&Slot::default()));
    }
    let frames = output(&mut conversation);
    assert_eq!(frames.iter().map(|(h, _)| h.seq).collect::<Vec<_>>(), [u32::MAX, 0]);
    for seq in [u32::MAX, 0] {
        let slots = frame(Kind::Slots, seq, 1, &slots(&[Slot::default()]));
        assert_eq!(conversation.receive(&slots, 1), Ok(Arrival::Slots(1)));
    }
}

#[test]
fn a_question_is_answered_once_by_whatever_there_is_to_say() {
    let mut conversation = open(100);
    let probe = frame(Kind::Probe, 0, 100, &[]);
    assert_eq!(conversation.receive(&probe, 1), Ok(Arrival::Nothing));
    assert_eq!(conversation.receive(&probe, 1), Ok(Arrival::Nothing));
    let frames = output(&mut conversation);
    assert_eq!(
        frames.iter().map(|(h, _)| (h.kind, h.seq)).collect::<Vec<_>>(),
        [(Kind::Credit, 0)]
    );
    assert_eq!(conversation.receive(&probe, 1), Ok(Arrival::Nothing));
    assert!(conversation.push(&Slot::default()));
    let frames = output(&mut conversation);
    assert_eq!(frames.iter().map(|(h, _)| h.kind).collect::<Vec<_>>(), [Kind::Slots]);
}

#[test]
fn who_is_seen_to_end_does_not_ask_to_be_asked() {
    for probed in [false, true] {
        let mut conversation = Conversation::new(Setup { probed, ..setup() });
        let mut out = [0; 256];
        let len = conversation.hello(1, &mut out);
        let hello = Hello::read(Frame::parse(&out[..len]).unwrap().body).unwrap();
        assert_eq!(hello.features.get() & FEATURE_PROBE != 0, probed);
    }
}

#[test]
fn credit_is_told_when_half_the_window_is_used() {
    let mut conversation = open(100);
    for seq in 0..4 {
        assert!(output(&mut conversation).is_empty(), "nothing to say at {seq}");
        let empty = frame(Kind::Grant, seq, 100, &[]);
        assert_eq!(conversation.receive(&empty, 1), Ok(Arrival::Granted));
    }
    let frames = output(&mut conversation);
    assert_eq!(frames.len(), 1);
    let header = frames[0].0;
    assert_eq!((header.kind, header.seq, header.limit), (Kind::Credit, 0, 12));
    // Any frame tells the limit: then no bare credit is needed.
    for seq in 4..8 {
        let empty = frame(Kind::Grant, seq, 100, &[]);
        assert_eq!(conversation.receive(&empty, 1), Ok(Arrival::Granted));
    }
    assert!(conversation.push(&Slot::default()));
    let frames = output(&mut conversation);
    assert_eq!((frames.len(), frames[0].0.kind, frames[0].0.limit), (1, Kind::Slots, 16));
}

#[test]
fn gaps_repeats_and_too_many_frames_break_the_conversation() {
    let empty = |seq| frame(Kind::Grant, seq, 100, &[]);
    let mut conversation = open(100);
    let broken = Broken { reason: Reason::SequenceGap, expected: 0, got: 1 };
    assert_eq!(conversation.receive(&empty(1), 1), Err(broken));
    conversation.receive(&empty(0), 1).unwrap();
    let broken = Broken { reason: Reason::SequenceGap, expected: 1, got: 0 };
    assert_eq!(conversation.receive(&empty(0), 1), Err(broken));
    for seq in 1..8 {
        conversation.receive(&empty(seq), 1).unwrap();
    }
    let broken = Broken { reason: Reason::OverCredit, expected: 8, got: 8 };
    assert_eq!(conversation.receive(&empty(8), 1), Err(broken));

    let mut out = [0; 256];
    let len = conversation.bye(broken, &mut out);
    let frame = Frame::parse(&out[..len]).unwrap();
    let bye = Bye::read(frame.body).unwrap();
    assert_eq!((frame.header.kind, bye.expected.get(), bye.got.get()), (Kind::Bye, 8, 8));
    assert_eq!(bye.reason.get(), Reason::OverCredit as u16);
    assert!(!conversation.is_open() && !conversation.push(&Slot::default()));
}

#[test]
fn returned_buffers_share_records() {
    let mut conversation = open(100);
    let mut record = [0; 2 * RECORD_LEN];
    let (chunks, _) = record.as_chunks_mut();
    write_indices(&[0, 1, 2, 3, 4, 5, 6, 7], &mut chunks[0]);
    write_indices(&[8, 9], &mut chunks[1]);
    let grant = frame(Kind::Grant, 0, 100, &record);
    assert_eq!(conversation.receive(&grant, 1), Ok(Arrival::Granted));
    let ledger = conversation.ledger();
    while let Some(buffer) = ledger.take(128) {
        ledger.give_back(buffer);
    }
    let frames = output(&mut conversation);
    assert_eq!(frames.len(), 1);
    let (header, body) = &frames[0];
    assert_eq!((header.kind, header.seq, header.count), (Kind::Return, 0, 2));
    let mut returned: Vec<_> = body.as_chunks().0.iter().flat_map(indices).collect();
    returned.sort_unstable();
    assert_eq!(returned, (0..10).collect::<Vec<_>>());
    // The host has them again, and may hand them out again.
    let grant = frame(Kind::Grant, 1, 100, &record);
    assert_eq!(conversation.receive(&grant, 1), Ok(Arrival::Granted));
}

#[test]
fn a_buffer_named_twice_breaks_the_conversation() {
    let mut conversation = open(100);
    let data = Slot { buf_idx: 3, offset: 130, len: 5, ..Slot::default() };
    let Ok(Event::Data { data: buffer, .. }) = event(&mut conversation, data) else {
        panic!("not data");
    };
    assert_eq!((buffer.index(), buffer.offset(), buffer.len()), (3, 130, 5));
    assert_eq!(event(&mut conversation, data).unwrap_err().reason, Reason::ForeignBuffer);
    let mut record = [0; RECORD_LEN];
    write_indices(&[3], &mut record);
    let grant = frame(Kind::Grant, 0, 100, &record);
    assert_eq!(conversation.receive(&grant, 1).unwrap_err().reason, Reason::ForeignBuffer);
}

#[test]
fn data_brings_its_checksum_and_time() {
    let mut conversation = open(100);
    let slot = Slot { buf_idx: 1, offset: 130, len: 5, csum: 77, time: 99, ..Slot::default() };
    for (modifiers, csum) in [(CSUM_VALID, Some(77)), (0, None)] {
        let slot = Slot { modifiers, buf_idx: u32::from(modifiers), ..slot };
        let Ok(Event::Data { data, .. }) = event(&mut conversation, slot) else {
            panic!("not data");
        };
        assert_eq!((data.csum(), data.time_ns()), (csum, 99));
    }
}

#[test]
fn a_kept_buffer_comes_back_acknowledged_and_a_refused_one_with_its_range() {
    let mut conversation = open(100);
    let data = Slot { buf_idx: 3, offset: 130, len: 5, ..Slot::default() };
    let take = |conversation: &mut Conversation, slot| match event(conversation, slot) {
        Ok(Event::Data { data, .. }) => data,
        Ok(Event::Acked { buffer, .. } | Event::Refused { buffer, .. }) => buffer.unwrap(),
        other => panic!("{other:?}"),
    };
    let buffer = take(&mut conversation, data);
    conversation.ledger().sent(&buffer);
    let acked = Slot::event(SlotEvent::Acked, Flow(1));
    let acked = Slot { buf_idx: 3, offset: 130, modifiers: KEEP, ..acked };
    let buffer = take(&mut conversation, acked);
    assert_eq!((buffer.offset(), buffer.len()), (130, 5));
    assert_eq!(event(&mut conversation, acked).unwrap_err().reason, Reason::ForeignBuffer);
    conversation.ledger().sent(&buffer);
    let len = Reason::FlowFull as u16;
    let refused = Slot { len, ..Slot::event(SlotEvent::Refused, Flow(1)) };
    let buffer = take(&mut conversation, Slot { buf_idx: 3, offset: 130, ..refused });
    assert_eq!((buffer.offset(), buffer.len()), (130, 5));
    // A refused request without a buffer, and one whose buffer is not ours.
    for (buf_idx, len) in [(paste_abi::NO_BUFFER, len), (3, Reason::ForeignBuffer as u16)] {
        let slot = Slot { buf_idx, len, ..refused };
        let event = event(&mut conversation, slot);
        assert!(matches!(event, Ok(Event::Refused { buffer: None, .. })));
    }
}

#[test]
fn other_events_say_what_their_slots_say() {
    let mut conversation = open(100);
    let flow = Flow::new(5, 2);
    let peer = "[2001:db8::7]:4711".parse().unwrap();
    let accepted = event(&mut conversation, Slot::accepted(flow, Flow(9), peer, 80));
    let Ok(Event::Accepted { flow: named, listener, peer: from, local_port }) = accepted else {
        panic!("not accepted");
    };
    assert_eq!((named, listener, from, local_port), (flow, Flow(9), peer, 80));
    let reply = Slot { cookie: 4, ..Slot::event(SlotEvent::Reply, flow) };
    let done = event(&mut conversation, reply);
    assert!(matches!(done, Ok(Event::Reply { cookie: 4, result: Ok(f) }) if f == flow));
    let refused = event(&mut conversation, Slot { len: Reason::PortInUse as u16, ..reply });
    assert!(matches!(refused, Ok(Event::Reply { result: Err(Reason::PortInUse), .. })));
    let reset = Slot { len: Reason::TimedOut as u16, ..Slot::event(SlotEvent::Reset, flow) };
    let reset = event(&mut conversation, reset);
    assert!(matches!(reset, Ok(Event::Reset { reason: Reason::TimedOut, .. })));
    let unknown = event(&mut conversation, Slot { kind: 99, ..Slot::default() });
    assert_eq!(unknown.unwrap_err().reason, Reason::BadRequest);
}

#[test]
fn a_goodbye_ends_the_opening() {
    let mut conversation = open(100);
    let bye = Bye {
        reason: (Reason::Shutdown as u16).into(),
        reserved: [0; 2],
        expected: 0.into(),
        got: 0.into(),
        padding: [0; 20],
    };
    let bye = frame(Kind::Bye, 0, 100, bye.as_bytes());
    assert_eq!(conversation.receive(&bye, 1), Ok(Arrival::Closed(Reason::Shutdown)));
    assert!(!conversation.is_open());
    assert_eq!(conversation.receive(&bye, 1), Ok(Arrival::Nothing));
}

proptest::proptest! {
    /// Whatever comes, in any state: an answer, and never a panic.
    #[test]
    fn no_bytes_hurt(
        opened in proptest::bool::ANY,
        kind in 0u8..10,
        seq in 0u32..2,
        body in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
    ) {
        let mut conversation = if opened { open(100) } else { Conversation::new(setup()) };
        if !opened {
            conversation.hello(NONCE, &mut [0; 256]);
        }
        let mut bytes = frame(Kind::Credit, seq, 100, &body);
        bytes[15] = kind;
        if let Ok(Arrival::Slots(count)) = conversation.receive(&bytes, 1) {
            for record in bytes[HEADER_LEN..].as_chunks().0.iter().take(count) {
                let _ = conversation.event(record);
            }
        }
        output(&mut conversation);
    }
}

#[test]
fn a_host_may_refuse_with_a_goodbye() {
    for (reason, arrival) in [
        (Reason::Version, Arrival::Refused(Reason::Version)),
        (Reason::NoRoom, Arrival::Refused(Reason::NoRoom)),
        // A late one, of an earlier conversation.
        (Reason::SequenceGap, Arrival::Nothing),
        (Reason::Closed, Arrival::Nothing),
    ] {
        let mut conversation = Conversation::new(setup());
        conversation.hello(NONCE, &mut [0; 256]);
        let mut body = [0; RECORD_LEN];
        body[..2].copy_from_slice(&(reason as u16).to_le_bytes());
        let bye = frame(Kind::Bye, 0, 0, &body);
        assert_eq!(conversation.receive(&bye, 1), Ok(arrival), "{reason:?}");
    }
}
