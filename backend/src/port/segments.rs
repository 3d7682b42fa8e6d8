//! TCP segments of one flow as one packet that the kernel takes, or hands over, in
//! one piece (`gso_type` of virtio 1.2 section 5.1.6): a system call and a walk
//! through the kernel's network for all of them.
//!
//! ```text
//!   frames of the stack   head a|payload  head b|payload  head c|payload
//!   one packet            head a, with the whole length  |payload|payload|payload
//! ```
//!
//! Only the headers are looked at and rewritten, in private memory. Payload stays
//! where it is on the way out; on the way in, what does not fit the first frame's
//! buffer is copied from where the kernel has put it.
//!
//! Who cuts a packet makes segments of one size of it. That is only where the stack
//! has cut as well, or what is lost on the way would be half of one of its segments
//! and half of another, and both were sent again. But short ones, as a head and a body
//! in a buffer each, become one, as long as it is not longer than the flow allows.

use std::ops::Range;

use paste_abi::net_hdr::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHdr};
use paste_pmem::{Buffers, RangeError};
use paste_stack::frame::HEAD_MAX;
use paste_stack::{TxCsum, TxFrame, checksum};

/// Frames that one packet is made of, at most.
pub(crate) const JOINED_MAX: usize = 44;
/// Of how many frames the first segment of a packet is made, at most.
const FIRST_MAX: usize = 8;
/// Bytes of the largest packet: what an IPv4 header can tell, and an Ethernet header
/// with a tag.
pub(crate) const PACKET_MAX: usize = 0xffff + 18;

// Of a TCP header (RFC 9293 section 3.1), in bytes from its start.
const SEQ: usize = 4;
const DATA_OFFSET: usize = 12;
pub(crate) const FLAGS: usize = 13;
pub(crate) const CSUM: usize = 16;
const TCP_LEN: usize = 20;

const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

const PROTOCOL_TCP: u8 = 6;

/// Where the headers of a TCP segment lie in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// Where the IP header starts, in bytes.
    pub ip: usize,
    /// Where the TCP header starts.
    pub tcp: usize,
    /// Where the payload starts.
    pub len: usize,
}

impl Shape {
    /// Of a frame that begins with `head`, whose TCP header starts at `tcp`; `None`
    /// if it is anything but TCP right behind an IP header without options.
    pub fn of(head: &[u8], tcp: usize) -> Option<Shape> {
        let mut ip = 14;
        let mut ethertype = head.get(12..14)?;
        if ethertype == [0x81, 0] {
            ethertype = head.get(16..18)?;
            ip = 18;
        }
        let (v6, protocol, ip_len) = match ethertype {
            [8, 0] if *head.get(ip)? == 0x45 => (false, *head.get(ip + 9)?, 20),
            [0x86, 0xdd] => (true, *head.get(ip + 6)?, 40),
            _ => return None,
        };
        let len = tcp + usize::from(head.get(tcp + DATA_OFFSET)? >> 4) * 4;
        let is_right = protocol == PROTOCOL_TCP
            && tcp == ip + ip_len
            && len >= tcp + TCP_LEN
            && len <= head.len();
        is_right.then_some(Shape { v6, ip, tcp, len })
    }

    /// Writes the length of a frame with `payload` bytes into its headers, where
    /// another length stands, and what follows from it.
    pub fn set_payload_len(&self, head: &mut [u8], payload: usize) {
        let segment = (self.len - self.tcp + payload) as u16;
        let (at, old, new) = if self.v6 {
            (self.ip + 4, be16(head, self.ip + 4), segment)
        } else {
            let total = segment + (self.tcp - self.ip) as u16;
            (self.ip + 2, be16(head, self.ip + 2), total)
        };
        head[at..at + 2].copy_from_slice(&new.to_be_bytes());
        if !self.v6 {
            head[self.ip + 10..self.ip + 12].fill(0);
            let sum = !checksum::sum(&head[self.ip..self.tcp]);
            head[self.ip + 10..self.ip + 12].copy_from_slice(&sum.to_be_bytes());
        }
        // The sum of the pseudo-header has the length too.
        let field = self.tcp + CSUM;
        let sum = add(add(be16(head, field), !old), new);
        head[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The ones' complement sum (RFC 1071).
pub(crate) fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

// --- out -------------------------------------------------------------------

/// Frames that go as one packet.
#[derive(Debug)]
pub(crate) struct Joined {
    /// How many.
    pub count: usize,
    /// What goes before the packet.
    pub header: NetHdr,
    head: [u8; HEAD_MAX],
    head_len: usize,
}

impl Joined {
    /// The packet's head; the frames' payloads follow.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }
}

/// How many of these frames, from the first on, are segments of one flow that may go
/// as one packet; that packet, if there are two or more.
pub(crate) fn join(frames: &[TxFrame]) -> Option<Joined> {
    let [first, second, ..] = frames else { return None };
    let (csum, len) = joinable(first)?;
    let shape = Shape::of(first.head(), usize::from(csum.start))?;
    if shape.len != first.head().len() || !is_plain(first.head(), &shape) {
        return None;
    }
    // Most frames are alone, and that is seen soonest by the ports.
    if second.head().get(shape.tcp..shape.tcp + SEQ)? != &first.head()[shape.tcp..][..SEQ] {
        return None;
    }
    let (mut lens, mut count, mut payload) = ([len; JOINED_MAX], 1, len);
    for frame in frames[1..].iter().take(JOINED_MAX - 1) {
        let Some((other, len)) = joinable(frame) else { break };
        let is_alike = (other, frame.mss) == (csum, first.mss);
        let fits = shape.len - shape.ip + payload + len <= 0xffff;
        let at = (count, payload);
        if !is_alike || !fits || !follows(frame.head(), first.head(), &shape, at) {
            break;
        }
        lens[count] = len;
        payload += len;
        count += 1;
    }
    let (size, count) = best_size(&lens[..count], first.mss.into());
    if count < 2 {
        return None;
    }
    let payload: usize = lens[..count].iter().sum();
    // What is pushed is so with its last byte, and what is behind it as well.
    let flags = frames[..count].iter().fold(0, |all, f| all | f.head()[shape.tcp + FLAGS]);
    let gso_type = match (payload > size, shape.v6) {
        (false, _) => GSO_NONE,
        (true, false) => GSO_TCPV4,
        (true, true) => GSO_TCPV6,
    };
    let is_cut = gso_type != GSO_NONE;
    let mut joined = Joined {
        count,
        header: NetHdr {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: if is_cut { shape.len as u16 } else { 0 }.into(),
            gso_size: if is_cut { size as u16 } else { 0 }.into(),
            csum_start: csum.start.into(),
            csum_offset: csum.offset.into(),
            ..NetHdr::default()
        },
        head: [0; HEAD_MAX],
        head_len: shape.len,
    };
    let head = &mut joined.head[..shape.len];
    head.copy_from_slice(first.head());
    head[shape.tcp + FLAGS] = flags;
    shape.set_payload_len(head, payload);
    Some(joined)
}

/// In which size a packet of segments of these lengths is cut where they begin and
/// end, and none is longer than `mss`; and how many of them are in that packet.
fn best_size(lens: &[usize], mss: usize) -> (usize, usize) {
    let mut best = (lens[0], 1);
    let mut size = 0;
    for len in lens.iter().take(FIRST_MAX) {
        size += len;
        if size > mss {
            break;
        }
        let (mut count, mut filled) = (0, 0);
        for len in lens {
            if filled + len > size {
                break;
            }
            filled = (filled + len) % size;
            count += 1;
        }
        if count >= best.1 {
            best = (size, count);
        }
    }
    best
}

/// The checksum and the payload's length of a frame that may be joined.
fn joinable(frame: &TxFrame) -> Option<(TxCsum, usize)> {
    let csum = frame.csum.filter(|csum| usize::from(csum.offset) == CSUM)?;
    let payload = frame.payload?;
    // One that is longer tries whether the path carries it.
    (1..=frame.mss).contains(&payload.len).then_some((csum, payload.len.into()))
}

/// Whether the flags are those of payload and nothing else.
pub(crate) fn is_plain(head: &[u8], shape: &Shape) -> bool {
    head[shape.tcp + FLAGS] & !PSH == ACK
}

/// Whether a head is that of the segment after `number` others with `ahead` bytes, of
/// which `first` is the first one's head, and the same in all that every segment of a
/// packet repeats.
pub(crate) fn follows(
    head: &[u8],
    first: &[u8],
    shape: &Shape,
    (number, ahead): (usize, usize),
) -> bool {
    if head.len() != first.len() || !is_plain(head, shape) {
        return false;
    }
    let same = |from: usize, to: usize| head[from..to] == first[from..to];
    let Shape { v6, ip, tcp, len } = *shape;
    let ip_same = if v6 {
        same(0, ip + 4) && same(ip + 6, tcp)
    } else {
        // Neither the length nor the checksum. The identification is always zero from
        // our stack, and counts up from a kernel.
        let count = be16(head, ip + 4).wrapping_sub(be16(first, ip + 4));
        let id_follows = count == 0 || usize::from(count) == number;
        id_follows && same(0, ip + 2) && same(ip + 6, ip + 10) && same(ip + 12, tcp)
    };
    ip_same
        && same(tcp, tcp + SEQ)
        && be32(head, tcp + SEQ) == be32(first, tcp + SEQ).wrapping_add(ahead as u32)
        && same(tcp + SEQ + 4, tcp + FLAGS)
        && same(tcp + FLAGS + 1, tcp + CSUM)
        && same(tcp + CSUM + 2, len)
}

// --- in --------------------------------------------------------------------

/// A packet that was read, of which frames are still to be made.
#[derive(Debug)]
pub struct Packet {
    shape: Shape,
    head: [u8; HEAD_MAX],
    /// What the kernel says of the checksum.
    pub csum: TxCsum,
    /// When it came, in ns since the Unix epoch.
    pub time: u64,
    /// Bytes of payload of each segment, and of all.
    size: usize,
    payload: usize,
    /// How much of it has been made into frames, and into how many.
    done: usize,
    number: u16,
    flags: u8,
    seq: u32,
    id: u16,
}

impl Packet {
    /// Judges a packet of `len` bytes with its header, which begins with `head`:
    /// as many bytes of it as were copied from where it lies. `None` if it is not TCP
    /// that can be cut.
    pub(crate) fn new(header: &NetHdr, head: &[u8], len: usize, time: u64) -> Option<Packet> {
        let wanted = match header.gso_type & !GSO_ECN {
            GSO_TCPV4 => false,
            GSO_TCPV6 => true,
            _ => return None,
        };
        let csum = TxCsum { start: header.csum_start.get(), offset: header.csum_offset.get() };
        let shape = Shape::of(head, csum.start.into())?;
        let size = usize::from(header.gso_size.get());
        let payload = len.checked_sub(shape.len)?;
        let is_right = header.flags & NEEDS_CSUM != 0
            && usize::from(csum.offset) == CSUM
            && shape.v6 == wanted
            && shape.len <= HEAD_MAX
            && size > 0
            && payload > 0
            && shape.len - shape.ip + payload <= 0xffff;
        is_right.then(|| Packet::of(shape, head, size, payload, time))
    }

    /// Of a packet with headers of this shape, no longer than [`HEAD_MAX`], and `payload`
    /// bytes behind them. The checksum's field holds the pseudo-header's sum.
    pub(crate) fn of(shape: Shape, head: &[u8], size: usize, payload: usize, time: u64) -> Packet {
        let mut copy = [0; HEAD_MAX];
        copy[..shape.len].copy_from_slice(&head[..shape.len]);
        Packet {
            shape,
            head: copy,
            csum: TxCsum { start: shape.tcp as u16, offset: CSUM as u16 },
            time,
            size,
            payload,
            done: 0,
            number: 0,
            flags: head[shape.tcp + FLAGS],
            seq: be32(head, shape.tcp + SEQ),
            id: be16(head, shape.ip + 4),
        }
    }

    /// Bytes of the first frame.
    pub(crate) fn first_len(&self) -> usize {
        self.shape.len + self.size.min(self.payload)
    }

    /// Whether all of it has been made into frames.
    pub(crate) fn is_done(&self) -> bool {
        self.done == self.payload
    }

    /// The headers of the frame that [`Packet::advance`] went on to.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head[..self.shape.len]
    }

    /// Bytes of the headers of each frame.
    pub(crate) fn head_len(&self) -> usize {
        self.shape.len
    }

    /// Bytes of payload of each frame but the last, which may have less.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Goes on to the next frame, and returns where in the packet's payload its own
    /// lies, in bytes.
    pub(crate) fn advance(&mut self) -> Range<usize> {
        self.advance_by(self.size)
    }

    /// Likewise, to a frame with `size` bytes of payload, or what is left.
    pub(crate) fn advance_by(&mut self, size: usize) -> Range<usize> {
        let Shape { v6, ip, tcp, len: head_len } = self.shape;
        let start = self.done;
        let end = self.payload.min(start + size);
        let head = &mut self.head[..head_len];
        // Of a packet's flags, the first segment alone has CWR, and the last what
        // ends something.
        let mut flags = self.flags;
        flags &= if start == 0 { 0xff } else { !CWR };
        flags &= if end == self.payload { 0xff } else { !(FIN | PSH) };
        head[tcp + FLAGS] = flags;
        let seq = self.seq.wrapping_add(start as u32);
        head[tcp + SEQ..tcp + SEQ + 4].copy_from_slice(&seq.to_be_bytes());
        if !v6 {
            let id = self.id.wrapping_add(self.number);
            head[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
        }
        self.number = self.number.wrapping_add(1);
        self.shape.set_payload_len(head, end - start);
        self.done = end;
        start..end
    }

    /// Makes the next frame in a buffer: its head, and its payload out of `rest`,
    /// which is that of all frames but the first; that of the first lies behind its
    /// head already. Returns the frame's length.
    pub(crate) fn cut(
        &mut self,
        buffers: &Buffers,
        buf: u32,
        offset: usize,
        rest: &[u8],
    ) -> Result<usize, RangeError> {
        let range = self.advance();
        let head_len = self.shape.len;
        buffers.write(buf, offset, self.head())?;
        if let Some(start) = range.start.checked_sub(self.size) {
            let len = range.len();
            buffers.write(buf, offset + head_len, &rest[start..start + len])?;
        }
        Ok(head_len + range.len())
    }
}

/// Whether what was read is a packet of several segments.
pub(crate) fn is_packet(header: &NetHdr) -> bool {
    header.gso_type != GSO_NONE
}

#[cfg(test)]
mod tests {
    use paste_stack::{Origin, Payload, TxBatch};
    use proptest::prelude::*;

    use super::super::testing::pool;
    use super::*;

    /// What the segments of a flow have in common.
    #[derive(Clone, Copy, Debug)]
    struct Kind {
        v6: bool,
        tagged: bool,
        timestamps: bool,
    }

    /// A segment of `len` bytes as the stack writes it, its checksum left to the device.
    fn segment(kind: Kind, seq: u32, flags: u8, len: usize) -> (Vec<u8>, TxCsum) {
        let mut head = vec![2; 12];
        if kind.tagged {
            head.extend([0x81, 0, 0, 7]);
        }
        let tcp_len = if kind.timestamps { 32 } else { 20 };
        let ip = head.len() + 2;
        let pseudo = if kind.v6 {
            head.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            head.extend(((tcp_len + len) as u16).to_be_bytes());
            head.extend([6, 64]);
            head.extend([0xfd; 32]);
            checksum::sum(&head[ip + 8..])
        } else {
            head.extend([8, 0, 0x45, 0]);
            head.extend(((20 + tcp_len + len) as u16).to_be_bytes());
            head.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = !checksum::sum(&head[ip..]);
            head[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
            checksum::sum(&head[ip + 12..])
        };
        let tcp = head.len();
        head.extend([0, 80, 0x9c, 0x40]);
        head.extend(seq.to_be_bytes());
        head.extend([0, 0, 9, 9, (tcp_len as u8) << 2, flags, 0x10, 0]);
        head.extend(add(add(pseudo, 6), (tcp_len + len) as u16).to_be_bytes());
        head.extend([0, 0]);
        if kind.timestamps {
            head.extend([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6]);
        }
        (head, TxCsum { start: tcp as u16, offset: CSUM as u16 })
    }

    /// A head, its checksum, and bytes of payload.
    type Segment = (Vec<u8>, TxCsum, usize);

    fn batch(segments: &[Segment], mss: u16) -> TxBatch {
        let mut batch = TxBatch::new(segments.len());
        for (head, csum, len) in segments {
            let frame = batch.push(Origin::Stack).unwrap();
            frame.head_mut(head.len()).copy_from_slice(head);
            let payload = Payload { buf: 0, offset: 0, len: *len as u16 };
            frame.payload = (*len > 0).then_some(payload);
            frame.csum = Some(*csum);
            frame.mss = mss;
        }
        batch
    }

    fn run(kind: Kind, seq: u32, lens: &[usize]) -> Vec<Segment> {
        let mut at = seq;
        let mut segments = Vec::new();
        for (place, &len) in lens.iter().enumerate() {
            let push = if place + 1 == lens.len() { PSH } else { 0 };
            let (head, csum) = segment(kind, at, ACK | push, len);
            segments.push((head, csum, len));
            at = at.wrapping_add(len as u32);
        }
        segments
    }

    proptest! {
        #[test]
        fn cutting_a_packet_gives_the_bytes_of_the_segments_that_were_joined(
            v6: bool,
            tagged: bool,
            timestamps: bool,
            seq: u32,
            mss in 1usize..1448,
            lens in prop::collection::vec(prop_oneof![Just(usize::MAX), 1usize..1448], 2..60),
        ) {
            let kind = Kind { v6, tagged, timestamps };
            let lens: Vec<usize> = lens.into_iter().map(|len| len.min(mss)).collect();
            let segments = run(kind, seq, &lens);
            let Some(joined) = join(batch(&segments, mss as u16).frames()) else {
                prop_assert!(lens[0] + lens[1] > mss && lens[0] < lens[1]);
                return Ok(());
            };
            let payload: usize = lens[..joined.count].iter().sum();
            let size = match joined.header.gso_type {
                GSO_NONE => payload,
                _ => joined.header.gso_size.get().into(),
            };
            prop_assert!(size <= mss);
            let bytes: Vec<u8> = (0..payload).map(|at| (at % 251) as u8).collect();
            let push = if joined.count == lens.len() { PSH } else { 0 };
            if joined.header.gso_type == GSO_NONE {
                let (wanted, csum) = segment(kind, seq, ACK | push, payload);
                prop_assert_eq!(joined.head(), &wanted[..]);
                prop_assert_eq!(joined.header.csum_start.get(), csum.start);
                return Ok(());
            }

            // As the port does it with what it reads.
            let mut pool = pool(2);
            let buf = pool.take(paste_pmem::Owner::Port).unwrap();
            let packet = [joined.head(), &bytes].concat();
            let start = &packet[..packet.len().min(HEAD_MAX)];
            let mut made = Packet::new(&joined.header, start, packet.len(), 3).unwrap();
            let first = made.first_len();
            pool.buffers().write(buf, 0, &packet[..first]).unwrap();
            let begins: Vec<usize> = (0..=joined.count).map(|n| lens[..n].iter().sum()).collect();
            for (place, part) in bytes.chunks(size).enumerate() {
                prop_assert!(!made.is_done());
                prop_assert!(begins.contains(&(place * size)), "cut within a segment");
                let cut = made.cut(pool.buffers(), buf, 0, &packet[first..]).unwrap();
                let mut frame = vec![0; cut];
                pool.buffers().read(buf, 0, &mut frame).unwrap();
                let at = place * size;
                let push = if at + part.len() == payload { push } else { 0 };
                let (mut wanted, csum) =
                    segment(kind, seq.wrapping_add(at as u32), ACK | push, part.len());
                if !v6 {
                    // The kernel counts up what we leave at zero.
                    let ip = if tagged { 18 } else { 14 };
                    wanted[ip + 4..ip + 6].copy_from_slice(&(place as u16).to_be_bytes());
                    wanted[ip + 10..ip + 12].fill(0);
                    let sum = !checksum::sum(&wanted[ip..ip + 20]);
                    wanted[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
                }
                // The sum of the pseudo-header has two zeros.
                let field = usize::from(csum.start) + CSUM;
                let sum = |head: &[u8]| u32::from(be16(head, field)) % 0xffff;
                prop_assert_eq!(sum(&frame), sum(&wanted));
                frame[field..field + 2].copy_from_slice(&wanted[field..field + 2]);
                let head_len = wanted.len();
                prop_assert_eq!(&frame[..head_len], &wanted[..]);
                prop_assert_eq!(&frame[head_len..], part);
            }
            prop_assert!(made.is_done());
        }

        #[test]
        fn no_packet_that_is_read_is_cut_beyond_itself(
            head in prop::collection::vec(any::<u8>(), 0..160),
            like in any::<(bool, bool, bool)>(),
            fields: (u8, u8, u16, u16, u16, u16),
            change in prop::collection::vec((0usize..120, any::<u8>()), 0..4),
            len in 0usize..70_000,
            real: bool,
        ) {
            let kind = Kind { v6: like.0, tagged: like.1, timestamps: like.2 };
            let (mut bytes, csum) = segment(kind, 1, ACK, 1000);
            let (flags, gso_type, hdr_len, gso_size, start, offset) = fields;
            let mut header = NetHdr {
                flags,
                gso_type,
                hdr_len: hdr_len.into(),
                gso_size: gso_size.into(),
                csum_start: start.into(),
                csum_offset: offset.into(),
                ..NetHdr::default()
            };
            if real {
                header.flags = NEEDS_CSUM;
                header.gso_type = if kind.v6 { GSO_TCPV6 } else { GSO_TCPV4 };
                header.csum_start = csum.start.into();
                header.csum_offset = csum.offset.into();
                for (at, byte) in change {
                    if let Some(place) = bytes.get_mut(at) {
                        *place = byte;
                    }
                }
            } else {
                bytes = head;
            }
            bytes.truncate(len.min(HEAD_MAX));
            let Some(mut packet) = Packet::new(&header, &bytes, len, 0) else { return Ok(()) };
            prop_assert!(packet.first_len() <= len);
            let rest = vec![0; len - packet.first_len()];
            let mut pool = pool(1);
            let buf = pool.take(paste_pmem::Owner::Port).unwrap();
            let (mut frames, mut payload) = (0, 0);
            while !packet.is_done() && frames < 100 {
                match packet.cut(pool.buffers(), buf, 0, &rest) {
                    Ok(frame) => payload += frame - packet.shape.len,
                    // Longer than a buffer: the port looks at the first one's length.
                    Err(_) => return Ok(()),
                }
                frames += 1;
            }
            prop_assert!(!packet.is_done() || payload == packet.payload);
        }
    }

    #[test]
    fn a_packet_is_cut_where_the_stack_has_cut() {
        let best = |lens: &[usize]| best_size(lens, 1448);
        // A head and a body each time; a body in pieces; and all at once.
        assert_eq!(best(&[8, 1026, 8, 1026, 8, 1026]), (1034, 6));
        assert_eq!(best(&[1448, 1448, 1448, 900, 8]), (1448, 5));
        assert_eq!(best(&[8, 1408, 1448, 1448]), (1416, 2));
        assert_eq!(best(&[20, 30, 40]), (90, 3));
        assert_eq!(best(&[100, 1448, 1448]), (100, 1));
        assert_eq!(best(&[900, 1448]), (900, 1));
        assert_eq!(best(&[1448]), (1448, 1));
    }

    #[test]
    fn what_is_not_the_same_but_for_its_place_is_not_joined() {
        let kind = Kind { v6: false, tagged: false, timestamps: true };
        let whole = run(kind, 7, &[100, 100, 50]);
        assert_eq!(join(batch(&whole, 100).frames()).unwrap().count, 3);
        let count = |change: &dyn Fn(&mut Vec<Segment>)| {
            let mut segments = whole.clone();
            change(&mut segments);
            join(batch(&segments, 100).frames()).map_or(1, |joined| joined.count)
        };
        // Another service, address, port, number, acknowledgement, window, or time.
        for at in [14 + 1, 14 + 16, 34, 34 + 7, 34 + 11, 34 + 14, 34 + 31] {
            assert_eq!(count(&|segments| segments[1].0[at] ^= 1), 1, "{at}");
            assert_eq!(count(&|segments| segments[2].0[at] ^= 1), 2, "{at}");
        }
        assert_eq!(count(&|segments| segments[0].0[47] |= FIN), 1);
        assert_eq!(count(&|segments| segments[1].0[47] |= CWR), 1);
        assert_eq!(count(&|segments| segments[1].0[47] |= PSH), 3);
        // Longer than the flow allows, without payload, or with its checksum done.
        assert_eq!(count(&|segments| segments[0].2 = 101), 1);
        assert_eq!(count(&|segments| segments[1].2 = 0), 1);
        assert_eq!(count(&|segments| segments[1].1.start += 1), 1);
        assert_eq!(count(&|segments| segments.truncate(1)), 1);
        assert_eq!(count(&|segments| segments[0].0.clear()), 1);
        assert!(join(batch(&whole, 0).frames()).is_none());
    }
}
