//! What travels on a link, byte for byte: records of a Unix `SOCK_SEQPACKET` socket, which
//! keeps each one whole. `backend/bhyve/paste_wire.h` is the same in C, and a test holds
//! the two together.
//!
//! Every record begins with a head of 8 bytes; all numbers are little endian.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | kind |
//! | 2 | 2 | frames that follow, in FRAMES; else 0 |
//! | 4 | 4 | reserved, zero |
//!
//! | kind | name | from | body |
//! | --- | --- | --- | --- |
//! | 1 | HELLO | VMM | [`Hello`]: the first record, and the only one of its kind |
//! | 2 | WELCOME | pasted | [`Welcome`]: the answer |
//! | 3 | FRAMES | both | for each frame its length (4 bytes), the virtio-net header of 12 bytes and the Ethernet frame, both counted by the length, and zeros up to a multiple of 4 |
//! | 4 | FEATURES | both | 8 bytes: the offloads of virtio-net that a driver has accepted. A driver begins anew. The answer is the same record; what came before it was for an earlier driver |
//! | 5 | REGION | VMM | [`Region`]: the first record of a device that shows a guest its region |
//! | 6 | SEGMENT | pasted | [`Segment`]: the answer |
//! | 7 | FLUSH | VMM | 8 bytes, a number of the VMM's: all that the guest stored before is to be durable |
//! | 8 | FLUSHED | pasted | [`Flushed`]: the answer, in the order of asking |
//!
//! Frames never wait for a driver: before FEATURES there are none.
//!
//! A link has either HELLO or REGION, and goes on with the kinds that follow it. A device
//! that has no segment asks how long it has to be, by a REGION with the length 0, makes it,
//! and sends a second REGION with its length and a descriptor of it (`SCM_RIGHTS`). One that
//! has it already sends the second alone. From the answer on the region lies in the
//! segment, and FLUSH is answered; at most [`FLUSHES_MAX`] may be under way.

use paste_abi::net_hdr::NET_HDR_LEN;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version of all this.
pub const VERSION: u8 = 1;
/// Bytes of a record's head.
pub const HEAD_LEN: usize = 8;
/// Bytes of the longest record: one frame of the greatest length fits. Both sides ask for
/// socket buffers that hold several.
pub const RECORD_MAX: usize = 68 * 1024;
/// Bytes of the longest frame with its virtio-net header: a packet of several segments.
pub const FRAME_MAX: usize = NET_HDR_LEN + 14 + 65_535;
/// Bytes of the shortest one: the header, and Ethernet's.
pub const FRAME_MIN: usize = NET_HDR_LEN + 14;
/// Frames stand at multiples of this.
pub const ALIGN: usize = 4;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Asks for a guest.
    Hello = 1,
    /// The answer.
    Welcome = 2,
    /// Frames.
    Frames = 3,
    /// What the driver has accepted.
    Features = 4,
    /// Offers memory for a guest's region.
    Region = 5,
    /// The answer.
    Segment = 6,
    /// Stores are to be durable.
    Flush = 7,
    /// The answer.
    Flushed = 8,
}

/// The first record: who asks, and for what.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// Features that a driver is using, with `has_driver`.
    pub features: U64,
    /// The largest IP packet that the VMM was told of, or 0.
    pub mtu: U16,
    /// The device's address, or zeros where only the VMM's front end knows.
    pub mac: [u8; 6],
    /// Name of the guest, filled up with zeros.
    pub name: [u8; 64],
    /// Name of the interface, filled up with zeros.
    pub interface: [u8; 32],
    /// 1 if a driver has begun already, with a process before this one; else 0.
    pub has_driver: u8,
    /// Zeros.
    pub reserved: [u8; 15],
}

/// The answer to HELLO.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Welcome {
    /// Virtio-net features that may be offered to the driver.
    pub features: U64,
    /// 0 if the link is there; else `text` says why not, and the socket is closed.
    pub status: U16,
    /// The largest IP packet.
    pub mtu: U16,
    /// The address that the guest has on this side.
    pub mac: [u8; 6],
    /// Zeros.
    pub reserved: [u8; 14],
    /// Why not, for people, filled up with zeros.
    pub text: [u8; 160],
}

/// The first record of a device that shows a guest its region.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Region {
    /// Bytes of the segment whose descriptor comes with this; 0 without one.
    pub len: U64,
    /// Name of the guest, filled up with zeros.
    pub name: [u8; 64],
    /// Zeros.
    pub reserved: [u8; 24],
}

/// The answer to REGION.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Segment {
    /// Bytes that the segment has to have.
    pub len: U64,
    /// Where in it begins what the guest may see; what is before that is the host's.
    pub guest_offset: U64,
    /// Bytes that the guest may see.
    pub guest_len: U64,
    /// 0 if the device has its guest; else `text` says why not, and the socket is closed.
    pub status: U16,
    /// 1 if FLUSH makes stores durable; 0 if it always fails, as nothing does.
    pub durable: u8,
    /// Zeros.
    pub reserved: [u8; 5],
    /// Why not, for people, filled up with zeros.
    pub text: [u8; 160],
}

/// The answer to FLUSH.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Flushed {
    /// That of the FLUSH.
    pub number: U64,
    /// As a virtio-pmem device answers (virtio 1.2 section 5.19.7): 0 if it is durable, else
    /// -1.
    pub outcome: [u8; 4],
    /// Zeros.
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<Hello>() == 128 && size_of::<Welcome>() == 192);
const _: () = assert!(size_of::<Region>() == 96 && size_of::<Segment>() == 192);
const _: () = assert!(size_of::<Flushed>() == 16);

/// FLUSHes that may be under way at once.
pub const FLUSHES_MAX: usize = 64;

/// `status` of a VMM that is refused and may try again: somebody else is attached.
pub const STATUS_BUSY: u16 = 1;
/// `status` of a VMM that is refused for good.
pub const STATUS_REFUSED: u16 = 2;

/// Why a record is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Less than a head, or more than any record.
    #[error("a record of {0} bytes")]
    Length(usize),
    /// Another version.
    #[error("version {0} of the link, where this is {VERSION}")]
    Version(u8),
    /// A kind that is unknown, or does not belong here.
    #[error("a record of kind {0} does not belong here")]
    Kind(u8),
    /// Reserved bytes that are not zero.
    #[error("reserved bytes that are not zero")]
    Reserved,
    /// A body of another length than its kind has.
    #[error("a body of {0} bytes does not belong to kind {1}")]
    Body(usize, u8),
    /// The frames of a record do not fill it.
    #[error("frame {0} of the record has a length that is not possible")]
    Frame(u16),
    /// Descriptors where none belong, or none where one does.
    #[error("{0} descriptors came with a record of kind {1}")]
    Descriptors(usize, u8),
    /// More at once than may be.
    #[error("more than {FLUSHES_MAX} FLUSHes under way")]
    Flushes,
}

/// Reads a record's head. Returns kind, frames, and the body.
pub fn head(record: &[u8]) -> Result<(Kind, u16, &[u8]), WireError> {
    let Some((head, body)) = record.split_first_chunk::<HEAD_LEN>() else {
        return Err(WireError::Length(record.len()));
    };
    if head[0] != VERSION {
        return Err(WireError::Version(head[0]));
    }
    let kind = match head[1] {
        1 => Kind::Hello,
        2 => Kind::Welcome,
        3 => Kind::Frames,
        4 => Kind::Features,
        5 => Kind::Region,
        6 => Kind::Segment,
        7 => Kind::Flush,
        8 => Kind::Flushed,
        other => return Err(WireError::Kind(other)),
    };
    let count = u16::from_le_bytes([head[2], head[3]]);
    if head[4..] != [0; 4] || (kind != Kind::Frames && count != 0) {
        return Err(WireError::Reserved);
    }
    Ok((kind, count, body))
}

/// A record of one body.
pub fn record<const N: usize>(kind: Kind, body: &[u8]) -> [u8; N] {
    let mut record = [0; N];
    if let Some((head, rest)) = record.split_first_chunk_mut::<HEAD_LEN>() {
        write_head(kind, 0, head);
        rest.copy_from_slice(body);
    }
    record
}

/// What is said to people, as far as there is room for it.
pub fn said(text: &str) -> [u8; 160] {
    let mut field = [0; 160];
    for (out, byte) in field.iter_mut().zip(text.bytes()) {
        *out = byte;
    }
    field
}

/// Writes a record's head.
pub fn write_head(kind: Kind, count: u16, out: &mut [u8; HEAD_LEN]) {
    let [low, high] = count.to_le_bytes();
    *out = [VERSION, kind as u8, low, high, 0, 0, 0, 0];
}

/// Walks over the frames of a FRAMES record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    at: usize,
    index: u16,
    count: u16,
}

impl Walk {
    /// The frames of a record, of which the head announced `count`.
    pub fn new(count: u16) -> Walk {
        Walk { at: HEAD_LEN, index: 0, count }
    }

    /// Whether all frames have been walked over.
    pub fn is_done(&self) -> bool {
        self.index == self.count
    }

    /// The next frame of the record, with its virtio-net header; `None` behind the last.
    pub fn next<'r>(&mut self, record: &'r [u8]) -> Option<Result<&'r [u8], WireError>> {
        (!self.is_done()).then(|| self.read(record))
    }

    fn read<'r>(&mut self, record: &'r [u8]) -> Result<&'r [u8], WireError> {
        let wrong = WireError::Frame(self.index);
        let rest = record.get(self.at..).ok_or(wrong)?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(wrong)?;
        let len = u32::from_le_bytes(*len) as usize;
        if !(FRAME_MIN..=FRAME_MAX).contains(&len) {
            return Err(wrong);
        }
        let frame = rest.get(..len).ok_or(wrong)?;
        self.at += 4 + len.next_multiple_of(ALIGN);
        self.index += 1;
        if self.is_done() && self.at != record.len() {
            return Err(wrong);
        }
        Ok(frame)
    }
}

/// Text of a field that is filled up with zeros; `None` if it is empty, or not ASCII that
/// can be printed.
pub fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let good = end > 0
        && field[..end].iter().all(u8::is_ascii_graphic)
        && field[end..].iter().all(|&b| b == 0);
    std::str::from_utf8(&field[..end]).ok().filter(|_| good)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut head = [0; HEAD_LEN];
        write_head(Kind::Frames, frames.len() as u16, &mut head);
        let mut record = head.to_vec();
        for frame in frames {
            record.extend((frame.len() as u32).to_le_bytes());
            record.extend(frame);
            record.resize(record.len().next_multiple_of(ALIGN), 0);
        }
        record
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let frames: Vec<_> = [26, 27, 1526, FRAME_MAX].map(|len| vec![len as u8; len]).into();
        for frames in [&frames[..3], &frames[3..]] {
            let record = record(frames);
            assert!(record.len() <= RECORD_MAX);
            let (Kind::Frames, count, _) = head(&record).unwrap() else { panic!() };
            let mut walk = Walk::new(count);
            for frame in frames {
                assert_eq!(walk.next(&record).unwrap().unwrap(), frame);
            }
            assert!(walk.next(&record).is_none());
        }
    }

    #[test]
    fn each_way_of_being_wrong_has_its_error() {
        let good = record(&[vec![0; 60], vec![0; 60]]);
        let with = |at: usize, byte: u8| {
            let mut record = good.clone();
            record[at] = byte;
            let (_, count, _) = head(&record)?;
            let mut walk = Walk::new(count);
            while let Some(frame) = walk.next(&record) {
                frame?;
            }
            Ok(())
        };
        assert_eq!(with(8, 60), Ok(()));
        assert_eq!(with(0, 2), Err(WireError::Version(2)));
        assert_eq!(with(1, 9), Err(WireError::Kind(9)));
        assert_eq!(with(7, 1), Err(WireError::Reserved));
        assert_eq!(with(2, 1), Err(WireError::Frame(0)), "bytes behind the last");
        assert_eq!(with(2, 3), Err(WireError::Frame(2)));
        assert_eq!(with(8, 25), Err(WireError::Frame(0)));
        assert_eq!(with(10, 1), Err(WireError::Frame(0)));
        assert_eq!(head(&good[..7]).unwrap_err(), WireError::Length(7));
        let mut hello = good.clone();
        hello[1] = Kind::Hello as u8;
        assert_eq!(head(&hello).unwrap_err(), WireError::Reserved, "it has no frames");
    }

    #[test]
    fn names_are_plain_text() {
        assert_eq!(text(b"web1\0\0"), Some("web1"));
        assert_eq!(text(b"web1"), Some("web1"));
        for bad in [&b"\0\0"[..], b"", b"a\0b", b"a b\0", b"\xff\0", b"a\x1b"] {
            assert_eq!(text(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), count in 0u16..9) {
            let _ = head(&bytes);
            let mut walk = Walk::new(count);
            while let Some(Ok(_)) = walk.next(&bytes) {}
        }
    }
}
