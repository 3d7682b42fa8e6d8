//! Guests that map no region: their payload comes and goes in frames.

use paste_abi::control::{FEATURE_FLUSH, FEATURE_INLINE, FEATURE_STORE};
use paste_abi::inline::{Progress, Put, Reader, Writer};
use paste_abi::{Event, Flow, Request};

use super::tests::{Bench, CHANNEL};
use super::*;

/// A bench whose channel has inline slots, with `granted` buffers.
fn open(granted: u32, frame_size: u16) -> (Bench, Vec<u32>) {
    let mut bench = Bench::new();
    let asked = FEATURE_INLINE | FEATURE_FLUSH | FEATURE_STORE;
    bench.hello_with(frame_size, 1000, granted, asked);
    let (_, records) = bench.hear().expect("a WELCOME");
    let welcome = Welcome::read(records.as_flattened()).unwrap();
    assert_eq!(welcome.features.get(), FEATURE_INLINE, "it excludes the others");
    let mut buffers = Vec::new();
    while buffers.len() < granted as usize {
        let (_, records) = bench.hear().expect("a GRANT");
        buffers.extend(records.iter().flat_map(|r| frame::indices(r).collect::<Vec<_>>()));
    }
    (bench, buffers)
}

/// Says slots with this payload, in as many frames of `size` bytes as it takes.
fn say(bench: &mut Bench, size: usize, slots: &[(Slot, &[u8])]) {
    let mut brought = 0;
    let mut next = 0;
    while let Some((first, _)) = slots.get(next) {
        let mut body = vec![0; size - HEADER_LEN];
        let mut writer = Writer::new(&mut body);
        while let Some((slot, payload)) = slots.get(next) {
            let put = writer.put(slot, &mut brought, &mut |piece, out| {
                let at = usize::from(piece.offset - slot.offset);
                out.copy_from_slice(&payload[at..at + out.len()]);
            });
            match put {
                Put::Whole => next += 1,
                Put::Split | Put::No => break,
            }
        }
        assert!(!writer.is_empty(), "no room for {first:?}");
        let (count, len) = (writer.count(), writer.len());
        body.truncate(len);
        raw(bench, count, &body);
    }
}

fn raw(bench: &mut Bench, count: u16, body: &[u8]) {
    let header = Header {
        dst: [0; 6],
        src: [0; 6],
        kind: Kind::Inline,
        channel: CHANNEL,
        count,
        seq: bench.seq,
        limit: 1000,
    };
    let mut bytes = vec![0; HEADER_LEN + body.len()];
    write(&mut bytes, &header, body);
    bench.channels.take(Now::default(), &mut bench.mem, &mut bench.engine, &bytes);
    bench.seq += 1;
}

/// All slots that the host has to say, with their payload.
fn hear(bench: &mut Bench) -> Vec<(Slot, Vec<u8>)> {
    let mut heard = Vec::new();
    let mut progress = Progress::default();
    let mut payload = Vec::new();
    let mut out = vec![0; FRAME_SIZE];
    while let Some(len) = bench.channels.build(&mut bench.mem, &mut bench.engine, &mut out) {
        let frame = Frame::parse(&out[..len]).unwrap();
        if frame.header.kind == Kind::Credit {
            continue;
        }
        assert_eq!(frame.header.kind, Kind::Inline);
        let mut reader = Reader::new(frame.body, frame.header.count);
        while let Some(next) = reader.next(&mut progress) {
            let (slot, _, bytes) = next.unwrap();
            payload.extend_from_slice(bytes);
            if slot.as_event() != Some(Event::Piece) {
                heard.push((slot, std::mem::take(&mut payload)));
            }
        }
        assert_eq!(reader.remaining(), 0);
    }
    heard
}

fn read(bench: &Bench, buf: u32, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bench.mem.pool().buffers().read(buf, offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn payload_is_put_where_the_slot_says_before_it_is_sent() {
    let (mut bench, buffers) = open(2, 1514);
    let payload: Vec<u8> = (0..1800u32).map(|i| (i % 251) as u8).collect();
    let slot = Bench::data(buffers[0], 200, 1800);
    let close = Slot::request(Request::Close, Flow(1));
    say(&mut bench, 1514, &[(slot, &payload), (close, &[])]);
    assert_eq!(bench.seq, 2, "it takes two frames");
    assert_eq!(bench.engine.asked.len(), 2);
    assert!(bench.engine.asked[0].starts_with("send 1"));
    assert_eq!(bench.engine.asked[1], "close 1");
    assert_eq!(read(&bench, buffers[0], 200, 1800), payload);
    assert_eq!(bench.owner(buffers[0]), Owner::Stack);
    assert!(hear(&mut bench).is_empty(), "nothing was refused");
}

#[test]
fn payload_comes_with_its_slot_in_frames_of_any_size() {
    for size in [160, 1514, 4096] {
        let (mut bench, _) = open(0, size);
        let mut bufs = Vec::new();
        for (index, len) in [1u16, 200, 1460, 2000].into_iter().enumerate() {
            let buf = bench.mem.pool_mut().take(Owner::Stack).unwrap();
            let bytes = vec![index as u8 + 1; len.into()];
            bench.mem.pool().buffers().write(buf, 40, &bytes).unwrap();
            bench.engine.deliver.push_back(Slot {
                buf_idx: buf,
                offset: 40,
                len,
                ..Slot::event(Event::Data, Flow(1))
            });
            bufs.push((buf, bytes));
        }
        bench.engine.deliver.push_back(Slot::event(Event::Fin, Flow(1)));
        // A reply does not come between the pieces of a payload.
        say(&mut bench, 1514, &[(Slot::listen(80, 1, 7), &[])]);
        let heard = hear(&mut bench);
        assert_eq!(heard[0].0.as_event(), Some(Event::Reply));
        for ((slot, payload), (buf, bytes)) in heard[1..].iter().zip(&bufs) {
            assert_eq!((slot.buf_idx, payload), (*buf, bytes), "frames of {size}");
            assert_eq!(bench.owner(*buf), Owner::Guest(CHANNEL));
        }
        assert_eq!(heard.last().unwrap().0.as_event(), Some(Event::Fin));
        assert_eq!(heard.len(), 6);
    }
}

#[test]
fn bytes_for_a_buffer_that_is_not_the_guests_go_nowhere() {
    let (mut bench, buffers) = open(1, 1514);
    let theirs = bench.mem.pool_mut().take(Owner::Stack).unwrap();
    say(&mut bench, 1514, &[(Bench::data(theirs, 128, 4), b"evil")]);
    assert_eq!(read(&bench, theirs, 128, 4), [0; 4]);
    // Nor beyond the end of one that is.
    say(&mut bench, 1514, &[(Bench::data(buffers[0], 2047, 4), b"evil")]);
    assert!(bench.engine.asked.is_empty());
    let reasons: Vec<_> =
        hear(&mut bench).iter().map(|(slot, _)| Reason::from_u16(slot.len)).collect();
    assert_eq!(reasons, [Some(Reason::ForeignBuffer), Some(Reason::BadRange)]);
    let huge = Bench::data(u32::MAX, u16::MAX, u16::MAX);
    say(&mut bench, 8000, &[(huge, &[1; u16::MAX as usize])]);
    // Its pieces would end beyond any buffer.
    assert_eq!(bench.hear_bye().0, Reason::BadFrame);
    assert_eq!(bench.engine.asked, ["close_channel 3"]);
}

#[test]
fn a_refused_buffer_is_still_the_guests() {
    let (mut bench, buffers) = open(1, 1514);
    bench.engine.answer = Some(Reason::FlowFull);
    say(&mut bench, 1514, &[(Bench::data(buffers[0], 128, 4), b"data")]);
    let heard = hear(&mut bench);
    assert_eq!(heard[0].0.as_event(), Some(Event::Refused));
    assert!(heard[0].1.is_empty(), "a refusal brings no payload");
    assert_eq!(bench.owner(buffers[0]), Owner::Guest(CHANNEL));
}

#[test]
fn a_malformed_frame_is_not_acted_on_and_closes_the_channel() {
    let piece = |buf_idx, offset, len| {
        let slot = Slot { buf_idx, offset, len, ..Slot::request(Request::Piece, Flow(1)) };
        let mut record = [0; RECORD_LEN];
        slot.write(&mut record);
        record
    };
    let mut close = [0; RECORD_LEN];
    Slot::request(Request::Close, Flow(1)).write(&mut close);
    let short = [&close[..], &piece(0, 128, 100)[..], &[0; 99]].concat();
    let order = [&close[..], &piece(0, 128, 1)[..], &[0], &close[..]].concat();
    for (count, body) in [(2, short), (3, order)] {
        let (mut bench, _) = open(0, 1514);
        raw(&mut bench, count, &body);
        let asked: Vec<_> =
            bench.engine.asked.iter().filter(|asked| asked.starts_with("close ")).collect();
        assert!(asked.is_empty(), "{asked:?}");
        assert_eq!(bench.hear_bye().0, Reason::BadFrame);
    }
}

#[test]
fn each_kind_of_frame_is_for_one_kind_of_guest() {
    let (mut bench, _) = open(0, 1514);
    bench.slots(&[Slot::listen(80, 1, 7)]);
    assert_eq!(bench.hear_bye().0, Reason::BadFrame);
    let (mut bench, _) = Bench::open(0);
    let mut record = [0; RECORD_LEN];
    Slot::listen(80, 1, 7).write(&mut record);
    raw(&mut bench, 1, &record);
    assert_eq!(bench.hear_bye().0, Reason::BadFrame);
    // A piece has no meaning where payload lies in the region.
    let (mut bench, buffers) = Bench::open(1);
    let piece = Slot { buf_idx: buffers[0], len: 1, ..Slot::request(Request::Piece, Flow(1)) };
    bench.slots(&[piece]);
    let refused = bench.hear_slots();
    assert_eq!(Reason::from_u16(refused[0].len), Some(Reason::BadRequest));
}
