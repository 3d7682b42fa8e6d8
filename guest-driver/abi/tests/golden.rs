//! The bytes of the protocol, written down: every kind of frame, every slot
//! and the superblock, checked in both directions. A change that makes one of
//! these fail is a change of the protocol, and needs a new version of it.
//!
//! The conversation of `PROTOCOL.md`, section "A worked example", is the one
//! below, byte for byte; the last test sees to that.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use paste_abi::control::{
    Bye, FEATURE_FLUSH, FEATURE_INLINE, FEATURE_PROBE, FEATURE_STORE, FEATURES, FlushDomain, Hello,
    Welcome,
};
use paste_abi::frame::{HEADER_LEN, INDICES_PER_RECORD, RECORD_LEN, indices, write_indices};
use paste_abi::inline::{Progress, Reader, Writer};
use paste_abi::slot::{AGAIN, CSUM_VALID, DURABLE, KEEP, NOTIFY, Opt, SHARE};
use paste_abi::superblock::{Extent, LAYOUT_VERSION, MAGIC, STATE_OPEN, Superblock};
use paste_abi::{
    CHANNELS_MAX, Event, Flow, Frame, FrameError, Header, Kind, Reason, Request, Slot,
};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

/// The device's address.
const DEVICE: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// The address that a guest's PASTE frames are sent to.
const HOST: [u8; 6] = *b"\x02PASTE";
const UUID: [u8; 16] = 0x5268_e23e_971b_46f2_ad7e_9b73_38e5_5ca9_u128.to_be_bytes();
const NONCE: u64 = 0x1122_3344_5566_7788;
const FLOW: Flow = Flow::new(5, 3);
const LISTENER: Flow = Flow::new(0, 1);
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
const TIME: u64 = 1_700_000_000_123_456_789;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// Sixteen bytes a line, as in the document.
fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(16).map(line).collect::<Vec<_>>().join("\n")
}

fn from_guest(kind: Kind, seq: u32, limit: u32) -> Header {
    Header { dst: HOST, src: DEVICE, kind, channel: 0, count: 0, seq, limit }
}

fn from_host(kind: Kind, seq: u32, limit: u32) -> Header {
    Header { dst: DEVICE, ..from_guest(kind, seq, limit) }
}

/// A frame of these records.
fn frame(header: Header, body: &[u8]) -> Vec<u8> {
    assert!(body.len().is_multiple_of(RECORD_LEN));
    let header = Header { count: (body.len() / RECORD_LEN) as u16, ..header };
    let mut head = [0xee; HEADER_LEN];
    header.write(&mut head);
    [&head, body].concat()
}

fn slots(header: Header, slots: &[Slot]) -> Vec<u8> {
    frame(header, slots.iter().map(record).collect::<Vec<_>>().as_flattened())
}

fn record(slot: &Slot) -> [u8; RECORD_LEN] {
    let mut record = [0xee; RECORD_LEN];
    slot.write(&mut record);
    record
}

fn index_record(list: &[u32]) -> [u8; RECORD_LEN] {
    let mut record = [0xee; RECORD_LEN];
    write_indices(list, &mut record);
    record
}

/// The Internet checksum (RFC 1071), complemented as on the wire.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn hello() -> Hello {
    let mut name = [0; 32];
    name[..3].copy_from_slice(b"web");
    Hello {
        version_min: 1,
        version_max: 1,
        frame_size_max: 1514.into(),
        features: 0.into(),
        nonce: NONCE.into(),
        buffers_wanted: 4.into(),
        reserved: [0; 12],
        name,
    }
}

fn welcome() -> Welcome {
    Welcome {
        status: (Reason::Ok as u16).into(),
        version: 1.into(),
        features: 0.into(),
        region_uuid: UUID,
        region_size: (62 << 20).into(),
        buffers_offset: 0x3e_2000.into(),
        buffer_size: 2048.into(),
        buffer_count: 29_756.into(),
        headroom: 128.into(),
        frame_size_max: 1514.into(),
        granted: 4.into(),
        flows_max: 4096.into(),
        flush_domain: 0.into(),
        address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2],
        mtu: 1500.into(),
        mac: DEVICE,
        nonce: NONCE.into(),
        reserved: [0; 32],
    }
}

fn bye(reason: Reason) -> Bye {
    Bye {
        reason: (reason as u16).into(),
        reserved: [0; 2],
        expected: 0.into(),
        got: 0.into(),
        padding: [0; 20],
    }
}

fn peer() -> SocketAddr {
    "192.0.2.7:49152".parse().unwrap()
}

fn received() -> Slot {
    Slot {
        buf_idx: 4711,
        len: REQUEST.len() as u16,
        offset: 130,
        modifiers: CSUM_VALID,
        csum: internet_checksum(REQUEST),
        time: TIME,
        ..Slot::event(Event::Data, FLOW)
    }
}

fn response() -> Slot {
    Slot {
        buf_idx: 100,
        len: 512,
        offset: 128,
        modifiers: NOTIFY,
        cookie: 9,
        ..Slot::request(Request::Data, FLOW)
    }
}

/// The log record that the second example makes durable: 64 bytes at 0x2000 of the
/// guest's mapping, and 18 bytes of payload in buffer 4711.
fn put() -> [Slot; 5] {
    let payload = 0x3e_2000 + 4711 * 2048 + 130;
    [
        Slot { buf_idx: 4711, ..Slot::request(Request::Store, Flow::default()) },
        Slot::flush(payload, 18),
        Slot::flush(0x2000, 64),
        Slot::seal(1, false),
        Slot { modifiers: DURABLE, cookie: 0, ..response() },
    ]
}

/// A buffer that is stored, sent and not given away.
fn shared() -> Slot {
    Slot { buf_idx: 4711, len: 18, offset: 130, modifiers: SHARE, cookie: 11, ..response() }
}

/// The conversation of the document's second example, in order.
fn durable_conversation() -> Vec<(&'static str, Vec<u8>)> {
    let flushed = Slot { cookie: 1, ..Slot::event(Event::Flushed, Flow::default()) };
    let acked =
        Slot { buf_idx: 4711, modifiers: SHARE, cookie: 11, ..Slot::event(Event::Acked, FLOW) };
    vec![
        ("put", slots(from_guest(Kind::Slots, 5, 72), &put())),
        ("flushed", slots(from_host(Kind::Slots, 8, 70), &[flushed])),
        ("get", slots(from_guest(Kind::Slots, 6, 73), &[shared()])),
        ("got", slots(from_host(Kind::Slots, 9, 71), &[acked])),
        ("resume", frame(from_guest(Kind::Resume, 0, 64), &index_record(&[4711, 9]))),
        ("resumed", frame(from_host(Kind::Resumed, 0, 65), &index_record(&[4711]))),
    ]
}

/// An INLINE frame of these slots, as far as they fit, with `fill` in every byte that they
/// bring; `brought` is of the first one, and then of the one that was split.
fn inline(header: Header, size: usize, slots: &[Slot], brought: &mut u16, fill: &[u8]) -> Vec<u8> {
    let mut body = vec![0; size - HEADER_LEN];
    let mut writer = Writer::new(&mut body);
    for slot in slots {
        writer.put(slot, brought, &mut |piece, out| {
            let at = usize::from(piece.offset - slot.offset);
            let bytes = fill.iter().cycle().skip(at % fill.len());
            out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
        });
    }
    let (count, len) = (writer.count(), writer.len());
    let mut bytes = vec![0; HEADER_LEN];
    Header { count, ..header }.write(bytes.first_chunk_mut().unwrap());
    bytes.extend_from_slice(&body[..len]);
    bytes
}

/// The conversation of the document's third example, in order.
fn inline_conversation() -> Vec<(&'static str, Vec<u8>)> {
    let mut brought = 0;
    let answer = Slot { len: 104, ..response() };
    let close = Slot::request(Request::Close, FLOW);
    let get = inline(from_host(Kind::Inline, 2, 65), 1514, &[received()], &mut brought, REQUEST);
    let piece = inline(from_guest(Kind::Inline, 1, 67), 160, &[answer], &mut brought, b"a");
    assert_eq!(brought, 96);
    let slots = [answer, close];
    let rest = inline(from_guest(Kind::Inline, 2, 67), 160, &slots, &mut brought, b"a");
    vec![("inline-get", get), ("inline-piece", piece), ("inline-rest", rest)]
}

/// The conversation of the document's example, in order.
fn conversation() -> Vec<(&'static str, Vec<u8>)> {
    let reply = Slot { len: Reason::Ok as u16, cookie: 7, ..Slot::event(Event::Reply, LISTENER) };
    let acked = Slot { cookie: 9, ..Slot::event(Event::Acked, FLOW) };
    vec![
        ("hello", frame(from_guest(Kind::Hello, 0, 64), hello().as_bytes())),
        ("welcome", frame(from_host(Kind::Welcome, 0, 64), welcome().as_bytes())),
        ("grant", frame(from_host(Kind::Grant, 0, 64), &index_record(&[100, 101, 102, 103]))),
        ("listen", slots(from_guest(Kind::Slots, 0, 65), &[Slot::listen(80, 128, 7)])),
        ("reply", slots(from_host(Kind::Slots, 1, 65), &[reply])),
        (
            "request",
            slots(
                from_host(Kind::Slots, 2, 65),
                &[Slot::accepted(FLOW, LISTENER, peer(), 80), received()],
            ),
        ),
        (
            "response",
            slots(
                from_guest(Kind::Slots, 1, 67),
                &[response(), Slot::request(Request::Close, FLOW)],
            ),
        ),
        ("return", frame(from_guest(Kind::Return, 2, 67), &index_record(&[4711]))),
        (
            "closed",
            slots(
                from_host(Kind::Slots, 3, 67),
                &[Slot::event(Event::Fin, FLOW), acked, Slot::event(Event::Closed, FLOW)],
            ),
        ),
        ("credit", frame(from_guest(Kind::Credit, 3, 68), &[])),
        ("bye", frame(from_guest(Kind::Bye, 3, 68), bye(Reason::Shutdown).as_bytes())),
    ]
}

/// What the conversation's frames are, without the code that writes them.
const CONVERSATION: &[(&str, &str)] = &[
    (
        "hello",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 01
         00 00 02 00 00 00 00 00 40 00 00 00 00 00 00 00
         01 01 ea 05 00 00 00 00 88 77 66 55 44 33 22 11
         04 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         77 65 62 00 00 00 00 00 00 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "welcome",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 02
         00 00 04 00 00 00 00 00 40 00 00 00 00 00 00 00
         00 00 01 00 00 00 00 00 52 68 e2 3e 97 1b 46 f2
         ad 7e 9b 73 38 e5 5c a9 00 00 e0 03 00 00 00 00
         00 20 3e 00 00 00 00 00 00 08 00 00 3c 74 00 00
         80 00 ea 05 04 00 00 00 00 10 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 ff ff 0a 00 00 02
         dc 05 52 54 00 12 34 56 88 77 66 55 44 33 22 11
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "grant",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 06
         00 00 01 00 00 00 00 00 40 00 00 00 00 00 00 00
         64 00 00 00 65 00 00 00 66 00 00 00 67 00 00 00
         ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff",
    ),
    (
        "listen",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 04
         00 00 01 00 00 00 00 00 41 00 00 00 00 00 00 00
         ff ff ff ff 80 00 50 00 03 00 00 00 00 00 00 00
         07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "reply",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 04
         00 00 01 00 01 00 00 00 41 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 07 00 00 00 00 00 10 00
         07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "request",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 04
         00 00 02 00 02 00 00 00 41 00 00 00 00 00 00 00
         00 00 10 00 00 c0 50 00 01 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 ff ff c0 00 02 07
         67 12 00 00 12 00 82 00 00 01 60 21 05 00 30 00
         00 00 00 00 00 00 00 00 15 cd 85 3d fe 9c 97 17",
    ),
    (
        "response",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 04
         00 00 02 00 01 00 00 00 43 00 00 00 00 00 00 00
         64 00 00 00 00 02 80 00 00 02 00 00 05 00 30 00
         09 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 01 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "return",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 05
         00 00 01 00 02 00 00 00 43 00 00 00 00 00 00 00
         67 12 00 00 ff ff ff ff ff ff ff ff ff ff ff ff
         ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff",
    ),
    (
        "closed",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 04
         00 00 03 00 03 00 00 00 43 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 03 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 05 00 00 00 05 00 30 00
         09 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 09 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "credit",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 07
         00 00 00 00 03 00 00 00 44 00 00 00 00 00 00 00",
    ),
    (
        "bye",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 03
         00 00 01 00 03 00 00 00 44 00 00 00 00 00 00 00
         24 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "put",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 04
         00 00 05 00 05 00 00 00 48 00 00 00 00 00 00 00
         67 12 00 00 00 00 00 00 0a 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 08 00 00 00 00 00 00 00
         82 58 d1 00 00 00 00 00 12 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 08 00 00 00 00 00 00 00
         00 20 00 00 00 00 00 00 40 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 09 00 00 00 00 00 00 00
         01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         64 00 00 00 00 02 80 00 00 08 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "flushed",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 04
         00 00 01 00 08 00 00 00 46 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 0a 00 00 00 00 00 00 00
         01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "get",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 04
         00 00 01 00 06 00 00 00 49 00 00 00 00 00 00 00
         67 12 00 00 12 00 82 00 00 10 00 00 05 00 30 00
         0b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "got",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 04
         00 00 01 00 09 00 00 00 47 00 00 00 00 00 00 00
         67 12 00 00 00 00 00 00 05 10 00 00 05 00 30 00
         0b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "resume",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 08
         00 00 01 00 00 00 00 00 40 00 00 00 00 00 00 00
         67 12 00 00 09 00 00 00 ff ff ff ff ff ff ff ff
         ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff",
    ),
    (
        "resumed",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 09
         00 00 01 00 00 00 00 00 41 00 00 00 00 00 00 00
         67 12 00 00 ff ff ff ff ff ff ff ff ff ff ff ff
         ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff",
    ),
    (
        "inline-get",
        "52 54 00 12 34 56 52 54 00 12 34 56 88 b5 01 0a
         00 00 01 00 02 00 00 00 41 00 00 00 00 00 00 00
         67 12 00 00 12 00 82 00 00 01 60 21 05 00 30 00
         00 00 00 00 00 00 00 00 15 cd 85 3d fe 9c 97 17
         47 45 54 20 2f 20 48 54 54 50 2f 31 2e 30 0d 0a
         0d 0a",
    ),
    (
        "inline-piece",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 0a
         00 00 01 00 01 00 00 00 43 00 00 00 00 00 00 00
         64 00 00 00 60 00 80 00 0b 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         61 61 61 61 61 61 61 61 61 61 61 61 61 61 61 61
         61 61 61 61 61 61 61 61 61 61 61 61 61 61 61 61
         61 61 61 61 61 61 61 61 61 61 61 61 61 61 61 61
         61 61 61 61 61 61 61 61 61 61 61 61 61 61 61 61
         61 61 61 61 61 61 61 61 61 61 61 61 61 61 61 61
         61 61 61 61 61 61 61 61 61 61 61 61 61 61 61 61",
    ),
    (
        "inline-rest",
        "02 50 41 53 54 45 52 54 00 12 34 56 88 b5 01 0a
         00 00 02 00 02 00 00 00 43 00 00 00 00 00 00 00
         64 00 00 00 68 00 80 00 00 02 00 00 05 00 30 00
         09 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         61 61 61 61 61 61 61 61
         ff ff ff ff 00 00 00 00 01 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
];

/// All conversations.
fn conversations() -> Vec<(&'static str, Vec<u8>)> {
    [conversation(), durable_conversation(), inline_conversation()].concat()
}

#[test]
fn the_conversation_is_written_as_it_is_recorded() {
    let recorded: BTreeMap<_, _> = CONVERSATION.iter().copied().collect();
    assert_eq!(recorded.len(), conversations().len());
    for (name, bytes) in conversations() {
        assert_eq!(hex(&bytes), hex(&unhex(recorded[name])), "{name}");
    }
}

#[test]
fn every_kind_of_frame_is_read_back() {
    let mut kinds = Vec::new();
    let mut split = Progress::default();
    for (name, text) in CONVERSATION {
        let bytes = unhex(text);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(HEADER_LEN + frame.body.len(), bytes.len(), "{name}");
        let mut head = [0xee; HEADER_LEN];
        frame.header.write(&mut head);
        assert_eq!(head, bytes[..HEADER_LEN], "{name}");
        kinds.push(frame.header.kind as u8);
        match frame.header.kind {
            Kind::Hello => {
                let read = Hello::read(frame.body).unwrap();
                assert_eq!(read.as_bytes(), hello().as_bytes());
                assert_eq!((read.nonce.get(), read.buffers_wanted.get()), (NONCE, 4));
            }
            Kind::Welcome => {
                let read = Welcome::read(frame.body).unwrap();
                assert_eq!(read.as_bytes(), welcome().as_bytes());
                assert_eq!((read.nonce.get(), read.buffer_count.get()), (NONCE, 29_756));
            }
            Kind::Bye => {
                let read = Bye::read(frame.body).unwrap();
                assert_eq!(Reason::from_u16(read.reason.get()), Some(Reason::Shutdown));
            }
            Kind::Slots => {
                for bytes in frame.records() {
                    assert_eq!(record(&Slot::read(bytes)), *bytes, "{name}");
                }
            }
            Kind::Return | Kind::Grant | Kind::Resume | Kind::Resumed => {
                for bytes in frame.records() {
                    let list: Vec<u32> = indices(bytes).collect();
                    assert_eq!(index_record(&list), *bytes, "{name}");
                }
            }
            Kind::Credit | Kind::Probe => assert!(frame.body.is_empty()),
            Kind::Inline => {
                let mut reader = Reader::new(frame.body, frame.header.count);
                // The second half of a payload that was split comes with the first.
                let mut progress = match *name {
                    "inline-rest" => split,
                    _ => Progress::default(),
                };
                while let Some(slot) = reader.next(&mut progress) {
                    slot.unwrap();
                }
                assert_eq!(reader.remaining(), 0, "{name}");
                split = progress;
            }
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "every kind is in the conversation");
}

/// Every constructor of slots, and every event and request, with its record.
const SLOTS: &[(&str, &str)] = &[
    (
        "data to the guest",
        "67 12 00 00 12 00 82 00 00 01 60 21 05 00 30 00
         00 00 00 00 00 00 00 00 15 cd 85 3d fe 9c 97 17",
    ),
    (
        "accepted, IPv4",
        "00 00 10 00 00 c0 50 00 01 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 ff ff c0 00 02 07",
    ),
    (
        "accepted, IPv6",
        "00 00 10 00 bb 01 90 1f 01 00 00 00 05 00 30 00
         20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 07",
    ),
    (
        "connected",
        "ff ff ff ff 00 00 00 00 02 00 00 00 05 00 30 00
         ef be ad de 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "fin",
        "ff ff ff ff 00 00 00 00 03 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "reset",
        "ff ff ff ff 01 00 00 00 04 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "acked",
        "ff ff ff ff 00 00 00 00 05 00 00 00 05 00 30 00
         09 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "acked, kept",
        "64 00 00 00 00 00 00 00 05 04 00 00 05 00 30 00
         09 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "writable",
        "ff ff ff ff 00 00 00 00 06 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "reply",
        "ff ff ff ff 00 00 00 00 07 00 00 00 00 00 10 00
         07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "reply, no listener",
        "ff ff ff ff 15 00 00 00 07 00 00 00 00 00 00 00
         07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "refused",
        "64 00 00 00 13 00 80 00 08 02 00 00 05 00 30 00
         09 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "closed",
        "ff ff ff ff 00 00 00 00 09 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "acked, shared",
        "67 12 00 00 00 00 00 00 05 10 00 00 05 00 30 00
         0b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "flushed",
        "ff ff ff ff 00 00 00 00 0a 00 00 00 00 00 00 00
         01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "not flushed",
        "ff ff ff ff 19 00 00 00 0a 00 00 00 00 00 00 00
         01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "data to the host",
        "64 00 00 00 00 02 80 00 00 02 00 00 05 00 30 00
         09 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "close",
        "ff ff ff ff 00 00 00 00 01 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "abort",
        "ff ff ff ff 00 00 00 00 02 00 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "listen",
        "ff ff ff ff 80 00 50 00 03 00 00 00 00 00 00 00
         07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "unlisten",
        "ff ff ff ff 00 00 00 00 04 00 00 00 00 00 10 00
         08 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "connect, IPv4",
        "ef be ad de 00 c0 00 00 05 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 ff ff c0 00 02 07",
    ),
    (
        "connect, IPv6",
        "01 00 00 00 bb 01 d2 04 05 00 00 00 00 00 00 00
         20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 07",
    ),
    (
        "setopt",
        "ff ff ff ff 01 00 00 00 06 00 00 00 05 00 30 00
         3c 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "want",
        "ff ff ff ff 40 00 00 00 07 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "flush",
        "ff ff ff ff 00 00 00 00 08 00 00 00 00 00 00 00
         82 58 d1 00 00 00 00 00 12 00 00 00 00 00 00 00",
    ),
    (
        "seal",
        "ff ff ff ff 00 00 00 00 09 00 00 00 00 00 00 00
         01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "seal, again",
        "ff ff ff ff 00 00 00 00 09 20 00 00 00 00 00 00
         02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "store",
        "67 12 00 00 00 00 00 00 0a 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "data to the host, durable",
        "64 00 00 00 00 02 80 00 00 08 00 00 05 00 30 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
    (
        "data to the host, shared",
        "67 12 00 00 12 00 82 00 00 10 00 00 05 00 30 00
         0b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
    ),
];

fn every_slot() -> Vec<(&'static str, Slot)> {
    let v6: SocketAddr = "[2001:db8::7]:443".parse().unwrap();
    let cookie = |cookie: u64, slot: Slot| Slot { cookie, ..slot };
    let reason = |reason: Reason, slot: Slot| Slot { len: reason as u16, ..slot };
    let acked = cookie(9, Slot::event(Event::Acked, FLOW));
    let refused = Slot { kind: Event::Refused as u8, ..response() };
    let no_reply = cookie(7, Slot::event(Event::Reply, Flow::default()));
    let keep_alive = cookie(60, Slot::request(Request::SetOpt, FLOW));
    let flushed = cookie(1, Slot::event(Event::Flushed, Flow::default()));
    let [store, range, _, seal, durable] = put();
    vec![
        ("data to the guest", received()),
        ("accepted, IPv4", Slot::accepted(FLOW, LISTENER, peer(), 80)),
        ("accepted, IPv6", Slot::accepted(FLOW, LISTENER, v6, 8080)),
        ("connected", cookie(0xdead_beef, Slot::event(Event::Connected, FLOW))),
        ("fin", Slot::event(Event::Fin, FLOW)),
        ("reset", reason(Reason::PeerReset, Slot::event(Event::Reset, FLOW))),
        ("acked", acked),
        ("acked, kept", Slot { buf_idx: 100, modifiers: KEEP, ..acked }),
        ("writable", Slot::event(Event::Writable, FLOW)),
        ("reply", cookie(7, Slot::event(Event::Reply, LISTENER))),
        ("reply, no listener", reason(Reason::PortInUse, no_reply)),
        ("refused", reason(Reason::FlowFull, refused)),
        ("closed", Slot::event(Event::Closed, FLOW)),
        ("acked, shared", Slot { buf_idx: 4711, modifiers: SHARE, ..cookie(11, acked) }),
        ("flushed", flushed),
        ("not flushed", reason(Reason::NotDurable, flushed)),
        ("data to the host", response()),
        ("close", Slot::request(Request::Close, FLOW)),
        ("abort", Slot::request(Request::Abort, FLOW)),
        ("listen", Slot::listen(80, 128, 7)),
        ("unlisten", cookie(8, Slot::request(Request::Unlisten, LISTENER))),
        ("connect, IPv4", Slot::connect(peer(), 0, 0xdead_beef)),
        ("connect, IPv6", Slot::connect(v6, 1234, 1)),
        ("setopt", Slot { len: Opt::KeepAlive as u16, ..keep_alive }),
        ("want", Slot { len: 64, ..Slot::request(Request::Want, Flow::default()) }),
        ("flush", range),
        ("seal", seal),
        ("seal, again", Slot::seal(2, true)),
        ("store", store),
        ("data to the host, durable", durable),
        ("data to the host, shared", shared()),
    ]
}

#[test]
fn every_slot_is_written_and_read_as_recorded() {
    let recorded: BTreeMap<_, _> = SLOTS.iter().copied().collect();
    assert_eq!(recorded.len(), every_slot().len());
    for (name, slot) in every_slot() {
        let bytes = unhex(recorded[name]);
        assert_eq!(hex(&record(&slot)), hex(&bytes), "{name}");
        assert_eq!(Slot::read(bytes.first_chunk().unwrap()), slot, "{name}");
    }
    // Events come first in the list, and none of either is missing but PIECE, which is in
    // the third conversation.
    let kinds: Vec<u8> = every_slot().iter().map(|(_, slot)| slot.kind).collect();
    let (events, requests) = kinds.split_at(16);
    assert!((0..=10).all(|kind| events.contains(&kind)));
    assert!((0..=10).all(|kind| requests.contains(&kind)));
}

#[test]
fn kinds_have_their_numbers_and_others_have_none() {
    let slot = |kind: u8| Slot { kind, ..Slot::default() };
    for kind in 0..=u8::MAX {
        let event = slot(kind).as_event().map(|event| event as u8);
        assert_eq!(event, (kind <= 11).then_some(kind));
        let request = slot(kind).as_request().map(|request| request as u8);
        assert_eq!(request, (kind <= 11).then_some(kind));
    }
    for number in 0..=u16::MAX {
        if let Some(reason) = Reason::from_u16(number) {
            assert_eq!(reason as u16, number);
        }
        if let Some(option) = Opt::from_u16(number) {
            assert_eq!(option as u16, number);
        }
    }
}

#[test]
fn the_views_of_a_slot_show_what_went_in() {
    let v6: SocketAddr = "[2001:db8::7]:443".parse().unwrap();
    for address in [peer(), v6] {
        let slot = Slot::accepted(FLOW, LISTENER, address, 80);
        assert_eq!((slot.listener(), slot.peer(), slot.offset), (LISTENER, address, 80));
        assert_eq!(Slot::connect(address, 0, 1).peer(), address);
    }
    assert_eq!((FLOW.index(), FLOW.generation()), (5, 3));
    assert_eq!(Slot::flush(0x1234, u64::MAX).range(), (0x1234, u64::MAX));
    assert_eq!(Slot::seal(7, true).modifiers, AGAIN);
}

#[test]
fn features_and_domains_have_their_numbers() {
    assert_eq!((FEATURE_FLUSH, FEATURE_STORE, FEATURE_INLINE), (1, 2, 4));
    assert_eq!((FEATURE_PROBE, FEATURES), (8, 15));
    for number in 0..8 {
        let domain = FlushDomain::from_u32(number).map(|domain| domain as u32);
        assert_eq!(domain, (number <= 2).then_some(number));
    }
}

/// A region of 64 MiB.
fn superblock() -> Superblock {
    let extent = |offset: u64, len: u64| Extent { offset: offset.into(), len: len.into() };
    let mut guest = [0; 64];
    guest[..4].copy_from_slice(b"web1");
    Superblock {
        magic: MAGIC,
        version: LAYOUT_VERSION.into(),
        state: STATE_OPEN.into(),
        uuid: UUID,
        sequence: 3.into(),
        created_ns: TIME.into(),
        file_len: (64 << 20).into(),
        guest_len: (62 << 20).into(),
        buffer_size: 2048.into(),
        buffer_count: 29_756.into(),
        claims: extent(0x1000, 0x1000),
        log: extent(0x2000, 0x1f_0000),
        index: extent(0x1f_2000, 0xf_8000),
        rings: extent(0x2e_a000, 0xf_8000),
        buffers: extent(0x3e_2000, 29_756 * 2048),
        guest,
        boot: [0xb0; 16],
        journal_area: (4 << 20).into(),
        reserved: [0; 268],
        crc: 0x89ab_cdef.into(),
    }
}

/// The superblock up to its reserved bytes, and its last four.
const SUPERBLOCK: (&str, &str) = (
    "50 41 53 54 45 52 47 4e 01 00 00 00 01 00 00 00
     52 68 e2 3e 97 1b 46 f2 ad 7e 9b 73 38 e5 5c a9
     03 00 00 00 00 00 00 00 15 cd 85 3d fe 9c 97 17
     00 00 00 04 00 00 00 00 00 00 e0 03 00 00 00 00
     00 08 00 00 3c 74 00 00 00 10 00 00 00 00 00 00
     00 10 00 00 00 00 00 00 00 20 00 00 00 00 00 00
     00 00 1f 00 00 00 00 00 00 20 1f 00 00 00 00 00
     00 80 0f 00 00 00 00 00 00 a0 2e 00 00 00 00 00
     00 80 0f 00 00 00 00 00 00 20 3e 00 00 00 00 00
     00 e0 a1 03 00 00 00 00 77 65 62 31 00 00 00 00
     00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
     00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
     00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
     00 00 00 00 00 00 00 00 b0 b0 b0 b0 b0 b0 b0 b0
     b0 b0 b0 b0 b0 b0 b0 b0 00 00 40 00 00 00 00 00",
    "ef cd ab 89",
);

#[test]
fn the_superblock_is_written_and_read_as_recorded() {
    let mut bytes = unhex(SUPERBLOCK.0);
    bytes.extend([0; 268]);
    bytes.extend(unhex(SUPERBLOCK.1));
    assert_eq!(hex(superblock().as_bytes()), hex(&bytes));
    assert_eq!(Superblock::read_from_bytes(&bytes).unwrap(), superblock());
}

#[test]
fn each_way_of_not_being_a_frame_has_its_error() {
    let good = conversation().swap_remove(3).1;
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Frame::parse(&bytes).map(|_| ()).unwrap_err()
    };
    assert_eq!(Frame::parse(&good[..31]).map(|_| ()), Err(FrameError::Short));
    assert_eq!(with(12, 0x08), FrameError::NotPaste);
    assert_eq!(with(14, 2), FrameError::Version(2));
    assert_eq!(with(15, 0), FrameError::Kind(0));
    assert_eq!(with(15, 12), FrameError::Kind(12));
    assert_eq!(with(16, 16), FrameError::Channel(CHANNELS_MAX));
    assert_eq!(with(28, 1), FrameError::Reserved);
    assert_eq!(with(18, 2), FrameError::Count { announced: 2, present: 1 });
    // Padding after the last record is not part of the frame.
    let padded = [&good[..], &[0xaa; 31]].concat();
    assert_eq!(Frame::parse(&padded).unwrap().body, &good[HEADER_LEN..]);
}

fn any_header() -> impl Strategy<Value = Header> {
    let kind = prop::sample::select(vec![
        Kind::Hello,
        Kind::Welcome,
        Kind::Bye,
        Kind::Slots,
        Kind::Return,
        Kind::Grant,
        Kind::Credit,
        Kind::Probe,
        Kind::Resume,
        Kind::Resumed,
    ]);
    let addresses = any::<([u8; 6], [u8; 6])>();
    (addresses, kind, 0..CHANNELS_MAX, any::<u32>(), any::<u32>()).prop_map(
        |((dst, src), kind, channel, seq, limit)| Header {
            dst,
            src,
            kind,
            channel,
            count: 0,
            seq,
            limit,
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(frame) = Frame::parse(&bytes) {
            prop_assert_eq!(frame.records().len(), usize::from(frame.header.count));
        }
    }

    /// As above, but past the first checks: the header is nearly right.
    #[test]
    fn no_nearly_good_frame_makes_it_panic(
        header in any_header(),
        damage in prop::collection::vec((14usize..HEADER_LEN, any::<u8>()), 0..4),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut head = [0; HEADER_LEN];
        header.write(&mut head);
        for (at, byte) in damage {
            head[at] = byte;
        }
        let bytes = [&head, &body[..]].concat();
        if let Ok(frame) = Frame::parse(&bytes) {
            let _ = (Hello::read(frame.body), Welcome::read(frame.body), Bye::read(frame.body));
            for record in frame.records() {
                let slot = Slot::read(record);
                let _ = (slot.as_event(), slot.as_request(), slot.peer(), slot.listener());
                prop_assert!(indices(record).count() <= INDICES_PER_RECORD);
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        header in any_header(),
        records in prop::collection::vec(any::<[u8; RECORD_LEN]>(), 0..8),
    ) {
        let bytes = frame(header, records.as_flattened());
        let parsed = Frame::parse(&bytes).unwrap();
        prop_assert_eq!(parsed.header, Header { count: records.len() as u16, ..header });
        prop_assert!(parsed.records().eq(&records));
    }

    #[test]
    fn any_record_is_a_slot_and_survives(bytes: [u8; RECORD_LEN]) {
        prop_assert_eq!(record(&Slot::read(&bytes)), bytes);
    }
}

/// The blocks of the document that are marked `hex NAME`.
fn document_blocks() -> BTreeMap<&'static str, Vec<u8>> {
    let blocks = include_str!("../PROTOCOL.md").split("```hex ").skip(1);
    blocks
        .map(|block| {
            let (name, rest) = block.split_once('\n').unwrap();
            let (body, _) = rest.split_once("```").unwrap();
            // What stands behind a bar explains the line.
            let bytes = body.lines().flat_map(|line| unhex(line.split('|').next().unwrap()));
            (name.trim(), bytes.collect())
        })
        .collect()
}

#[test]
fn the_document_shows_the_same_bytes() {
    let blocks = document_blocks();
    let want: BTreeMap<_, _> = conversations().into_iter().collect();
    assert!(blocks.keys().eq(want.keys()), "the document has {:?}", blocks.keys());
    for (name, bytes) in want {
        assert_eq!(hex(&blocks[name]), hex(&bytes), "{name}");
        assert!(Frame::parse(&blocks[name]).is_ok(), "{name}");
    }
}
