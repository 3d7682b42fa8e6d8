//! Inline slots: what is written in frames of any size is read back whole, and nothing
//! that anybody writes makes the reader panic or take bytes twice.

use paste_abi::frame::RECORD_LEN;
use paste_abi::inline::{InlineError, Progress, Put, Reader, Writer};
use paste_abi::{Event, Flow, Slot};
use proptest::prelude::*;

fn byte(buf: u32, at: u16) -> u8 {
    (buf as u8).wrapping_mul(31).wrapping_add(at as u8).wrapping_add((at >> 8) as u8)
}

/// Slots into frames with bodies of this size.
fn frames(slots: &[Slot], size: usize) -> Vec<(u16, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut brought = 0;
    let mut next = 0;
    while next < slots.len() {
        let mut body = vec![0; size];
        let mut writer = Writer::new(&mut body);
        while let Some(slot) = slots.get(next) {
            let put = writer.put(slot, &mut brought, &mut |piece, out| {
                assert_eq!(usize::from(piece.len), out.len());
                for (at, out) in (piece.offset..).zip(out) {
                    *out = byte(piece.buf_idx, at);
                }
            });
            match put {
                Put::Whole => next += 1,
                Put::Split | Put::No => break,
            }
        }
        assert!(!writer.is_empty(), "every frame has room for something");
        let (count, len) = (writer.count(), writer.len());
        body.truncate(len);
        frames.push((count, body));
    }
    frames
}

fn any_slot() -> impl Strategy<Value = Slot> {
    let data = (0u32..4, 0u16..200, 1u16..3000).prop_map(|(buf_idx, offset, len)| Slot {
        buf_idx,
        offset,
        len,
        ..Slot::event(Event::Data, Flow(7))
    });
    prop_oneof![data, Just(Slot::event(Event::Fin, Flow(7)))]
}

proptest! {
    #[test]
    fn payload_arrives_whole_whatever_the_size_of_frames(
        slots in prop::collection::vec(any_slot(), 1..40),
        size in 96usize..9000,
    ) {
        let mut progress = Progress::default();
        let mut read = Vec::new();
        let mut bytes_of: Vec<(usize, u8)> = Vec::new();
        for (count, body) in frames(&slots, size) {
            let mut reader = Reader::new(&body, count);
            while let Some(next) = reader.next(&mut progress) {
                let (slot, piece, bytes) = next.unwrap();
                for (at, byte) in (usize::from(piece.offset)..).zip(bytes) {
                    bytes_of.push((at, *byte));
                }
                if slot.as_event() == Some(Event::Piece) {
                    continue;
                }
                let mut expected = Vec::new();
                if slot.as_event() == Some(Event::Data) {
                    for at in slot.offset..slot.offset + slot.len {
                        expected.push((usize::from(at), byte_of(&slot, at)));
                    }
                }
                prop_assert_eq!(std::mem::take(&mut bytes_of), expected);
                read.push(slot);
            }
            prop_assert_eq!(reader.remaining(), 0);
        }
        prop_assert_eq!(read, slots);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        body in prop::collection::vec(any::<u8>(), 0..400),
        kinds in prop::collection::vec(prop_oneof![Just(0u8), Just(11), Just(3)], 12),
        count in 0u16..20,
    ) {
        let mut body = body;
        for (record, kind) in body.chunks_mut(RECORD_LEN).zip(kinds) {
            if let Some(byte) = record.get_mut(8) {
                *byte = kind;
            }
        }
        let mut progress = Progress::default();
        let mut reader = Reader::new(&body, count);
        let mut taken = 0;
        while let Some(next) = reader.next(&mut progress) {
            let Ok((_, piece, bytes)) = next else { break };
            prop_assert_eq!(usize::from(piece.len), bytes.len());
            prop_assert!(piece.len == 0 || piece.end() <= 2 * usize::from(u16::MAX));
            taken += RECORD_LEN + bytes.len();
        }
        prop_assert!(taken <= body.len());
    }
}

fn byte_of(slot: &Slot, at: u16) -> u8 {
    byte(slot.buf_idx, at)
}

fn read_all(slots: &[(Slot, usize)]) -> Result<(), InlineError> {
    let mut body = Vec::new();
    for (slot, bytes) in slots {
        let mut record = [0; RECORD_LEN];
        slot.write(&mut record);
        body.extend(record);
        body.extend(vec![0; *bytes]);
    }
    let mut progress = Progress::default();
    let mut reader = Reader::new(&body, slots.len() as u16);
    while let Some(next) = reader.next(&mut progress) {
        next?;
    }
    Ok(())
}

#[test]
fn each_way_of_being_malformed_has_its_error() {
    let slot =
        |event, buf_idx, offset, len| Slot { buf_idx, offset, len, ..Slot::event(event, Flow(1)) };
    let piece = slot(Event::Piece, 1, 100, 10);
    assert_eq!(read_all(&[(piece, 10), (slot(Event::Data, 1, 100, 30), 20)]), Ok(()));
    assert_eq!(read_all(&[(slot(Event::Data, 1, 0, 10), 9)]), Err(InlineError::Short));
    assert_eq!(read_all(&[(slot(Event::Piece, 1, 0, 0), 0)]), Err(InlineError::Piece));
    assert_eq!(
        read_all(&[(slot(Event::Piece, 1, u16::MAX, 1), 1)]),
        Err(InlineError::Piece),
        "an end that is no offset"
    );
    for next in [
        slot(Event::Data, 2, 100, 30),
        slot(Event::Data, 1, 101, 30),
        slot(Event::Data, 1, 100, 10),
        slot(Event::Piece, 1, 111, 10),
        slot(Event::Piece, 2, 110, 10),
        slot(Event::Fin, 1, 0, 0),
    ] {
        assert_eq!(read_all(&[(piece, 10), (next, 100)]), Err(InlineError::Order), "{next:?}");
    }
}
