//! Frames that came in several buffers, made into frames that lie in one each, where they
//! are: what is behind this port knows no others.
//!
//! ```text
//!   as it came      |eth ip tcp payload|  |payload          |  |payload   |
//!   as it goes on   |eth ip tcp payload|  |eth ip tcp|payload|  |eth ip tcp|payload|
//! ```
//!
//! A TCP segment becomes several, as a sender would have made them; headers are written in
//! front of the payload of each further buffer, where the kernel leaves room. Its checksum
//! covers all of it, so it is verified here, and each new segment gets one of its own out
//! of the sums that are known then. Anything else becomes fragments (RFC 791 section 3.2,
//! RFC 8200 section 4.5), which whoever it is for puts together; bytes between two places
//! where a fragment may begin, seven at most, go to the next buffer.
//!
//! Headers are judged in a private copy.

use paste_pmem::{Buffers, RangeError};
use paste_stack::frame::HEAD_MAX;
use paste_stack::{RxCsum, RxFrame, TxCsum, checksum};

use super::announce::{self, SYN};
use super::chain::{PIECES_MAX, Piece};
use super::unfilled;
use crate::port::segments::{CSUM, FLAGS, Packet, Shape, add, be16};
use crate::port::{RX_OFFSET, Received};

/// Of an IPv4 header, in bytes from its start: its length, and where the length of the
/// packet, its name, flags with the place of a fragment, and the checksum are.
const V4_LEN: usize = 20;
const V4_TOTAL: usize = 2;
const V4_ID: usize = 4;
const V4_FRAGMENT: usize = 6;
const V4_PROTOCOL: usize = 9;
const V4_CSUM: usize = 10;
const V4_ADDRESSES: usize = 12;
/// Flags of a fragment, and its place in units of eight bytes.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const PLACE: u16 = 0x1fff;
/// Of an IPv6 header.
const V6_LEN: usize = 40;
const V6_PAYLOAD: usize = 4;
const V6_NEXT: usize = 6;
const V6_ADDRESSES: usize = 8;
/// A fragment's header (RFC 8200 section 4.5): its number, its length, and bits of the
/// word with its place.
const FRAGMENT: u8 = 44;
const FRAGMENT_LEN: usize = 8;
const V6_MORE: u16 = 1;
const V6_PLACE: u16 = 0xfff8;
/// Headers that every node on the way reads, or may: none may be behind a fragment's.
const V6_FOR_ALL: [u8; 3] = [0, 43, 60];

const TCP: u8 = 6;
/// Flags of TCP.
const RST: u8 = 0x04;
const URG: u8 = 0x20;

/// A fragment begins where the packet has a multiple of so many bytes before it.
const UNIT: u16 = 8;

/// Bytes of headers that a frame gets at most.
const HEAD: usize = 18 + V6_LEN + FRAGMENT_LEN;

/// Why a frame is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is longer than what is to be seen of it may be, or not of a kind that can be
    /// made into several.
    Long,
    /// A checksum in it is wrong.
    Checksum,
    /// Its sender has left its checksum to a device, and is not on this machine.
    Unfilled,
    /// Its buffers have no room for headers where the kernel leaves it, or lie elsewhere.
    Place,
}

impl From<RangeError> for Refused {
    fn from(_: RangeError) -> Refused {
        Refused::Place
    }
}

/// Where a frame comes from, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Its sender is on this machine.
    pub is_local: bool,
    /// In ns since the Unix epoch.
    pub time: u64,
}

/// Cuts frames.
#[derive(Debug)]
pub(super) struct Cutter {
    /// Bytes of the longest frame that goes on.
    frame_max: usize,
    /// Bytes of the longest frame on the link.
    link_max: usize,
    /// The name that fragments of the next packet get which has none.
    id: u32,
}

impl Cutter {
    /// For frames of at most `frame_max` bytes, made of such with at most `link_max`, but
    /// for joined segments of TCP.
    pub(super) fn new(frame_max: usize, link_max: usize) -> Cutter {
        Cutter { frame_max, link_max, id: 0 }
    }

    /// Makes frames out of the pieces of one, each in the buffer of one of them, and tells
    /// `each`. Pieces that hold no frame have a length of 0 then. True if the frame was
    /// taken with a checksum that nobody had filled in.
    ///
    /// # Errors
    /// [`Refused`]; nothing was told.
    pub(super) fn cut(
        &mut self,
        buffers: &Buffers,
        pieces: &mut [Piece],
        arrival: Arrival,
        each: &mut dyn FnMut(Received),
    ) -> Result<bool, Refused> {
        let mut head = [0; HEAD_MAX];
        let Some(first) = pieces.first() else { return Err(Refused::Place) };
        let head = &mut head[..usize::from(first.len).min(HEAD_MAX)];
        buffers.read(first.buf, first.offset.into(), head)?;
        let ip = Ip::of(head)?;
        // What is behind the packet belongs to nobody.
        let pieces = trim(pieces, ip.end)?;
        if let Some(shape) = whole_segment(head, &ip) {
            return self.segments(buffers, pieces, &mut head[..shape.len], &shape, arrival, each);
        }
        if ip.end > self.link_max || pieces.len() < 2 {
            return Err(Refused::Long);
        }
        self.fragments(buffers, pieces, head, &ip, arrival, each)
    }

    /// Makes segments.
    fn segments(
        &self,
        buffers: &Buffers,
        pieces: &mut [Piece],
        head: &mut [u8],
        shape: &Shape,
        arrival: Arrival,
        each: &mut dyn FnMut(Received),
    ) -> Result<bool, Refused> {
        let (head_len, field) = (shape.len as u16, shape.tcp + CSUM);
        // Of the first one, what is behind the headers that are there.
        pieces[0].offset += head_len;
        pieces[0].len -= head_len;
        self.judge_room(pieces, shape.len)?;
        let payload: usize = pieces.iter().map(|piece| usize::from(piece.len)).sum();
        let mut sums = [0; PIECES_MAX];
        let rest = sum_each(buffers, pieces, &mut sums)?;
        let pseudo = pseudo(head, shape, payload);
        let sum = add(add(pseudo, checksum::sum(&head[shape.tcp..])), rest);
        let is_right = sum == 0xffff;
        if !is_right && be16(head, field) != pseudo {
            return Err(Refused::Checksum);
        }
        if !is_right && !arrival.is_local {
            return Err(Refused::Unfilled);
        }
        // From here on, nothing is refused.
        head[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        let mut packet = Packet::of(*shape, head, payload, payload, arrival.time);
        for (piece, sum) in pieces.iter().zip(sums).filter(|(piece, _)| piece.len > 0) {
            packet.advance_by(piece.len.into());
            head.copy_from_slice(packet.head());
            let (csum, partial) = if is_right {
                let sum = !add(checksum::sum(&head[shape.tcp..]), sum);
                head[field..field + 2].copy_from_slice(&sum.to_be_bytes());
                (RxCsum::Valid, None)
            } else {
                (RxCsum::Partial, Some(packet.csum))
            };
            tell(buffers, piece, head, (csum, partial), arrival.time, each);
        }
        Ok(!is_right)
    }

    /// Makes fragments.
    fn fragments(
        &mut self,
        buffers: &Buffers,
        pieces: &mut [Piece],
        head: &[u8],
        ip: &Ip,
        arrival: Arrival,
        each: &mut dyn FnMut(Received),
    ) -> Result<bool, Refused> {
        let mut template = Template::of(head, ip, self.id)?;
        let whole = pieces[0];
        pieces[0].offset += template.skipped as u16;
        pieces[0].len = whole.len.checked_sub(template.skipped as u16).ok_or(Refused::Long)?;
        let payload: usize = pieces.iter().map(|piece| usize::from(piece.len)).sum();
        if template.place + payload > 0xffff {
            return Err(Refused::Long);
        }
        // What the one before may leave over goes in front of a piece as well.
        self.judge_room(pieces, template.len + usize::from(UNIT - 1))?;
        let filled = fill_in(buffers, whole, &pieces[1..], head, arrival.is_local)?;

        // From here on, nothing is refused.
        self.id = self.id.wrapping_add(1);
        let (mut place, mut over) = (0, 0);
        let mut carried = [0; UNIT as usize - 1];
        let last = pieces.len() - 1;
        for (index, piece) in pieces.iter_mut().enumerate() {
            piece.offset -= over;
            piece.len += over;
            let put = buffers.write(piece.buf, piece.offset.into(), &carried[..over.into()]);
            debug_assert!(put.is_ok(), "there is room in front");
            over = if index == last { 0 } else { piece.len % UNIT };
            piece.len -= over;
            let end = usize::from(piece.offset + piece.len);
            let kept = buffers.read(piece.buf, end, &mut carried[..over.into()]);
            debug_assert!(kept.is_ok(), "it is the end of the piece");
            if piece.len > 0 {
                let header = template.header(place, piece.len.into(), index == last);
                tell(buffers, piece, header, (RxCsum::Unknown, None), arrival.time, each);
                place += usize::from(piece.len);
            }
        }
        Ok(filled)
    }

    /// Whether each piece has so many bytes of room in front, and is with them no longer
    /// than a frame may be.
    fn judge_room(&self, pieces: &[Piece], room: usize) -> Result<(), Refused> {
        for piece in pieces {
            if usize::from(piece.offset) < usize::from(RX_OFFSET) + room {
                return Err(Refused::Place);
            }
            if room + usize::from(piece.len) > self.frame_max {
                return Err(Refused::Long);
            }
        }
        Ok(())
    }
}

/// Writes headers in front of a piece, where there is room, and tells `each` of the frame.
fn tell(
    buffers: &Buffers,
    piece: &Piece,
    header: &[u8],
    (csum, partial): (RxCsum, Option<TxCsum>),
    time: u64,
    each: &mut dyn FnMut(Received),
) {
    let (offset, len) = (piece.offset - header.len() as u16, piece.len + header.len() as u16);
    let written = buffers.write(piece.buf, offset.into(), header);
    debug_assert!(written.is_ok(), "there is room in front");
    each(Received { frame: RxFrame { buf: piece.buf, offset, len, csum, time }, partial });
}

/// The packet in a frame.
#[derive(Clone, Copy, Debug)]
struct Ip {
    v6: bool,
    /// Where its header starts, and ends without what may follow it.
    start: usize,
    upper: usize,
    /// What follows its header.
    protocol: u8,
    /// Where it ends in the frame.
    end: usize,
}

impl Ip {
    /// Of a frame that begins with `head`.
    fn of(head: &[u8]) -> Result<Ip, Refused> {
        let start = if head.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
        let (Some(ethertype), Some(packet)) = (head.get(start - 2..start), head.get(start..))
        else {
            return Err(Refused::Long);
        };
        match ethertype {
            // One with options is rare enough to be dropped.
            [8, 0] if packet.len() >= V4_LEN && packet[0] == 0x45 => {
                if checksum::sum(&packet[..V4_LEN]) != 0xffff {
                    return Err(Refused::Checksum);
                }
                let end = start + usize::from(be16(packet, V4_TOTAL));
                let (upper, protocol) = (start + V4_LEN, packet[V4_PROTOCOL]);
                Ok(Ip { v6: false, start, upper, protocol, end })
            }
            [0x86, 0xdd] if packet.len() >= V6_LEN && packet[0] >> 4 == 6 => {
                let (upper, protocol) = (start + V6_LEN, packet[V6_NEXT]);
                let end = upper + usize::from(be16(packet, V6_PAYLOAD));
                Ok(Ip { v6: true, start, upper, protocol, end })
            }
            _ => Err(Refused::Long),
        }
    }
}

/// Cuts off what is behind `end`, or says that the frame does not reach there. The pieces
/// that are left; others have a length of 0.
fn trim(pieces: &mut [Piece], end: usize) -> Result<&mut [Piece], Refused> {
    let mut left = end;
    for piece in pieces.iter_mut() {
        piece.len = piece.len.min(u16::try_from(left).unwrap_or(u16::MAX));
        left -= usize::from(piece.len);
    }
    if left > 0 {
        return Err(Refused::Long);
    }
    let count = pieces.iter().take_while(|piece| piece.len > 0).count();
    Ok(&mut pieces[..count])
}

/// The headers of a frame that holds a segment of TCP which can be made into several.
fn whole_segment(head: &[u8], ip: &Ip) -> Option<Shape> {
    let is_fragment = !ip.v6 && be16(head, ip.start + V4_FRAGMENT) & !DONT_FRAGMENT != 0;
    let shape = announce::shape(head).filter(|_| !is_fragment)?;
    let is_plain = head[shape.tcp + FLAGS] & (SYN | RST | URG) == 0;
    (is_plain && ip.end > shape.len).then_some(shape)
}

/// The sum of the pseudo-header of a segment with so many bytes of payload.
fn pseudo(head: &[u8], shape: &Shape, payload: usize) -> u16 {
    let addresses = if shape.v6 { V6_ADDRESSES } else { V4_ADDRESSES };
    let sum = checksum::sum(&head[shape.ip + addresses..shape.tcp]);
    add(sum, add(TCP.into(), (shape.len - shape.tcp + payload) as u16))
}

/// Sums up each piece for itself, and all as what stands behind an even number of bytes.
fn sum_each(buffers: &Buffers, pieces: &[Piece], sums: &mut [u16]) -> Result<u16, Refused> {
    let (mut all, mut before) = (0, 0);
    for (piece, sum) in pieces.iter().zip(sums) {
        *sum = buffers.sum(piece.buf, piece.offset.into(), piece.len.into())?;
        // Behind an odd number of bytes, they pair the other way (RFC 1071 section 2B).
        all = add(all, if before % 2 == 0 { *sum } else { sum.swap_bytes() });
        before += usize::from(piece.len);
    }
    Ok(all)
}

/// Fills in the checksum that a sender on this machine has left to its device, in what is
/// to be fragments: nobody could do so later. `first` is the first piece with its headers,
/// and `head` what it begins with. True if there was one.
fn fill_in(
    buffers: &Buffers,
    first: Piece,
    others: &[Piece],
    head: &[u8],
    is_local: bool,
) -> Result<bool, Refused> {
    let Some(TxCsum { start, offset }) = unfilled::find(head) else { return Ok(false) };
    let from = Piece { offset: first.offset + start, len: first.len - start, ..first };
    let mut pieces = [from; PIECES_MAX];
    let count = 1 + others.len();
    pieces[1..count].copy_from_slice(others);
    let rest = sum_each(buffers, &pieces[..count], &mut [0; PIECES_MAX])?;
    let field = usize::from(start + offset);
    if unfilled::total(be16(head, field), rest) == 0xffff {
        return Ok(false);
    }
    if !is_local {
        return Err(Refused::Unfilled);
    }
    // Zero says of UDP that there is none (RFC 768), and all ones is the same sum.
    let csum = if rest == 0xffff { rest } else { !rest };
    buffers.write(first.buf, usize::from(first.offset) + field, &csum.to_be_bytes())?;
    Ok(true)
}

/// The headers of fragments.
#[derive(Debug)]
struct Template {
    bytes: [u8; HEAD],
    /// Bytes of them, and of those of the packet that they take the place of.
    len: usize,
    skipped: usize,
    v6: bool,
    /// Where the IP header starts.
    start: usize,
    /// The packet's own place, in bytes, and whether it is followed.
    place: usize,
    more: bool,
}

impl Template {
    /// For what was in a frame that begins with `head`. `id` is for a packet without a name
    /// of its own.
    fn of(head: &[u8], ip: &Ip, id: u32) -> Result<Template, Refused> {
        let mut bytes = [0; HEAD];
        bytes[..ip.upper].copy_from_slice(&head[..ip.upper]);
        let template = |len, skipped, place, more| {
            let (v6, start) = (ip.v6, ip.start);
            Template { bytes, len, skipped, v6, start, place, more }
        };
        if !ip.v6 {
            let word = be16(head, ip.start + V4_FRAGMENT);
            let (place, more) = (usize::from(word & PLACE) * 8, word & MORE_FRAGMENTS != 0);
            let mut template = template(ip.upper, ip.upper, place, more);
            // One that is not to be cut need not have a name (RFC 6864 section 4.1).
            if word & DONT_FRAGMENT != 0 && place == 0 && !more {
                let at = ip.start + V4_ID;
                template.bytes[at..at + 2].copy_from_slice(&(id as u16).to_be_bytes());
            }
            return Ok(template);
        }
        let len = ip.upper + FRAGMENT_LEN;
        if ip.protocol == FRAGMENT {
            let old = head.get(ip.upper..len).ok_or(Refused::Long)?;
            let word = be16(old, 2);
            let mut template = template(len, len, (word & V6_PLACE).into(), word & V6_MORE != 0);
            template.bytes[ip.upper..len].copy_from_slice(old);
            return Ok(template);
        }
        if V6_FOR_ALL.contains(&ip.protocol) {
            return Err(Refused::Long);
        }
        let mut template = template(len, ip.upper, 0, false);
        template.bytes[ip.start + V6_NEXT] = FRAGMENT;
        template.bytes[ip.upper] = ip.protocol;
        template.bytes[ip.upper + 4..len].copy_from_slice(&id.to_be_bytes());
        Ok(template)
    }

    /// Those of the fragment that is `at` bytes behind the packet's own place.
    fn header(&mut self, at: usize, len: usize, is_last: bool) -> &[u8] {
        let Template { bytes, v6, start, .. } = self;
        let (place, more) = ((self.place + at) as u16, !is_last || self.more);
        let mut put = |at: usize, word: u16| {
            bytes[*start + at..*start + at + 2].copy_from_slice(&word.to_be_bytes());
        };
        if *v6 {
            put(V6_PAYLOAD, (FRAGMENT_LEN + len) as u16);
            put(V6_LEN + 2, (place & V6_PLACE) | if more { V6_MORE } else { 0 });
        } else {
            put(V4_TOTAL, (V4_LEN + len) as u16);
            put(V4_FRAGMENT, (place / 8) | if more { MORE_FRAGMENTS } else { 0 });
            put(V4_CSUM, 0);
            let sum = !checksum::sum(&bytes[*start..*start + V4_LEN]);
            bytes[*start + V4_CSUM..*start + V4_CSUM + 2].copy_from_slice(&sum.to_be_bytes());
        }
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests;
