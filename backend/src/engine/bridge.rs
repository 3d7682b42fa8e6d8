//! Frames that are the guest kernel's own: what the stack leaves alone on its way in,
//! and what the guest's kernel sends.
//!
//! Segments of one flow that follow each other go to a guest that takes them so as one
//! packet, and such a packet of the guest's is cut into segments: a ring's buffers and
//! a walk through the guest's network for all of them. What the port makes of segments
//! that follow each other is the port's business.
//!
//! Headers are judged from private copies, and payload is not looked at.

use paste_abi::net_hdr::{DATA_VALID, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHdr};
use paste_stack::frame::HEAD_MAX;
use paste_stack::{Memory, Origin, Payload, RxCsum, TxBatch, TxCsum};

use super::{PlainSink, RegionMemory};
use crate::port::segments::{CSUM, FLAGS, PACKET_MAX, PSH, Packet, Shape, follows, is_plain};
use crate::port::{RX_OFFSET, Received};

/// Places in a batch that plain frames leave to the stack.
const TX_RESERVE: usize = 256;

/// A packet that may still get longer.
#[derive(Clone, Copy, Debug)]
struct Open {
    shape: Shape,
    csum: TxCsum,
    /// Bytes of payload of the first segment, and so of each but the last.
    size: usize,
    /// Bytes of payload of all.
    payload: usize,
    segments: usize,
}

/// The way in: one frame or packet at a time, on its way to the guest's ring.
#[derive(Debug)]
pub(super) struct Bridge {
    mac: [u8; 6],
    bytes: Box<[u8]>,
    open: Option<Open>,
}

impl Bridge {
    /// For the guest with this Ethernet address and frames of at most `frame_max` bytes.
    pub(super) fn new(mac: [u8; 6], frame_max: usize) -> Bridge {
        Bridge { mac, bytes: vec![0; frame_max.max(PACKET_MAX)].into(), open: None }
    }

    /// Takes a frame that is not the stack's, if its destination concerns the guest.
    /// The last ones are passed on by [`Bridge::flush`].
    pub(super) fn take(
        &mut self,
        received: &Received,
        mem: &RegionMemory,
        plain: &mut dyn PlainSink,
    ) {
        let frame = &received.frame;
        let (offset, len) = (usize::from(frame.offset), usize::from(frame.len));
        if self.open.is_some() {
            let mut head = [0; HEAD_MAX];
            let head = &mut head[..len.min(HEAD_MAX)];
            mem.read(frame.buf, offset, head);
            if !self.concerns(head) || self.extend(received, head, mem, plain) {
                return;
            }
            self.flush(plain);
        }
        // Judged where the guest's bytes are copied from.
        mem.read(frame.buf, offset, &mut self.bytes[..len]);
        let bytes = &self.bytes[..len];
        if !self.concerns(bytes) {
            return;
        }
        let segment = segment_of(received, &bytes[..len.min(HEAD_MAX)], plain);
        let bytes = &mut self.bytes[..len];
        match segment {
            Some((shape, csum)) if bytes[shape.tcp + FLAGS] & PSH == 0 => {
                let size = len - shape.len;
                self.open = Some(Open { shape, csum, size, payload: size, segments: 1 });
            }
            _ => plain.frame(header_of(received), bytes),
        }
    }

    /// Whether the guest is to see a frame that begins so.
    fn concerns(&self, head: &[u8]) -> bool {
        head.starts_with(&self.mac) || head.first().is_some_and(|byte| byte & 1 != 0)
    }

    /// Appends a segment to the packet that may get longer, if it follows.
    fn extend(
        &mut self,
        received: &Received,
        head: &[u8],
        mem: &RegionMemory,
        plain: &mut dyn PlainSink,
    ) -> bool {
        let frame = &received.frame;
        let (offset, len) = (usize::from(frame.offset), usize::from(frame.len));
        let (Some(open), Some((shape, csum))) = (&mut self.open, segment_of(received, head, plain))
        else {
            return false;
        };
        let (end, payload) = (open.shape.len + open.payload, len - shape.len);
        let at = (open.segments, open.payload);
        let is_next = (shape, csum) == (open.shape, open.csum)
            && payload <= open.size
            && shape.len - shape.ip + open.payload + payload <= 0xffff
            && follows(&head[..shape.len], &self.bytes[..shape.len], &shape, at);
        if !is_next {
            return false;
        }
        let to = &mut self.bytes[end..end + payload];
        mem.read(frame.buf, offset + shape.len, to);
        open.payload += payload;
        open.segments += 1;
        let ends = head[shape.tcp + FLAGS] & PSH;
        self.bytes[shape.tcp + FLAGS] |= ends;
        if payload < open.size || ends != 0 {
            self.flush(plain);
        }
        true
    }

    /// Passes on what may have got longer.
    pub(super) fn flush(&mut self, plain: &mut dyn PlainSink) {
        let Some(Open { shape, csum, size, payload, segments }) = self.open.take() else {
            return;
        };
        let bytes = &mut self.bytes[..shape.len + payload];
        let mut header = partial(csum);
        if segments > 1 {
            header.gso_type = if shape.v6 { GSO_TCPV6 } else { GSO_TCPV4 };
            header.hdr_len.set(shape.len as u16);
            header.gso_size.set(size as u16);
            shape.set_payload_len(&mut bytes[..shape.len], payload);
        }
        plain.frame(header, bytes);
    }
}

/// Whether a frame may be one segment of a packet that the guest takes, and of what
/// shape.
fn segment_of(received: &Received, head: &[u8], plain: &dyn PlainSink) -> Option<(Shape, TxCsum)> {
    let csum = received.partial.filter(|csum| usize::from(csum.offset) == CSUM)?;
    let shape = Shape::of(head, csum.start.into())?;
    let fits = plain.takes_segments(shape.v6)
        && is_plain(head, &shape)
        && usize::from(received.frame.len) > shape.len;
    fits.then_some((shape, csum))
}

fn partial(csum: TxCsum) -> NetHdr {
    NetHdr {
        flags: NEEDS_CSUM,
        csum_start: csum.start.into(),
        csum_offset: csum.offset.into(),
        ..NetHdr::default()
    }
}

fn header_of(received: &Received) -> NetHdr {
    match (received.partial, received.frame.csum) {
        (Some(csum), _) => partial(csum),
        (None, RxCsum::Valid) => NetHdr { flags: DATA_VALID, ..NetHdr::default() },
        (None, RxCsum::Unknown | RxCsum::Partial) => NetHdr::default(),
    }
}

/// The way out: queues a frame. False: there is no room, and it was not taken.
pub(super) fn queue(
    tx: &mut TxBatch,
    mem: &mut RegionMemory,
    frame: &[u8],
    csum: Option<TxCsum>,
) -> bool {
    // The head stays in private memory, as that of a stack frame does: what was judged
    // is what the NIC reads.
    let (head, rest) = frame.split_at(frame.len().min(HEAD_MAX));
    push(tx, mem, head, rest, csum, 0)
}

/// Queues segments of a packet whose payload is the end of `bytes`, as many as there
/// is room for. Returns how many.
pub(super) fn queue_segments(
    tx: &mut TxBatch,
    mem: &mut RegionMemory,
    packet: &mut Packet,
    bytes: &[u8],
) -> usize {
    let mut queued = 0;
    let payload = &bytes[packet.head_len()..];
    let (csum, mss) = (packet.csum, packet.size() as u16);
    while !packet.is_done() && tx.room() > TX_RESERVE && mem.free() > 0 {
        let range = packet.advance();
        if !push(tx, mem, packet.head(), &payload[range], Some(csum), mss) {
            break;
        }
        queued += 1;
    }
    queued
}

fn push(
    tx: &mut TxBatch,
    mem: &mut RegionMemory,
    head: &[u8],
    rest: &[u8],
    csum: Option<TxCsum>,
    mss: u16,
) -> bool {
    if tx.room() <= TX_RESERVE {
        return false;
    }
    let payload = if rest.is_empty() {
        None
    } else {
        let Some(buf) = mem.take() else { return false };
        mem.write(buf, usize::from(RX_OFFSET), rest);
        Some(Payload { buf, offset: RX_OFFSET, len: rest.len() as u16 })
    };
    if let Some(out) = tx.push(Origin::Bridge) {
        out.head_mut(head.len()).copy_from_slice(head);
        out.payload = payload;
        out.csum = csum;
        out.mss = mss;
    }
    true
}

#[cfg(test)]
mod tests {
    use paste_abi::net_hdr::GSO_NONE;
    use paste_pmem::Owner;
    use paste_stack::{RxFrame, checksum};

    use super::*;
    use crate::port::segments::join;
    use crate::port::testing::pool;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const ACK: u8 = 0x10;
    const SIZE: usize = 1000;

    /// A guest's kernel, and what it got.
    struct Kernel {
        takes: [bool; 2],
        got: Vec<(NetHdr, Vec<u8>)>,
    }

    impl PlainSink for Kernel {
        fn takes_segments(&self, v6: bool) -> bool {
            self.takes[usize::from(v6)]
        }

        fn frame(&mut self, header: NetHdr, bytes: &mut [u8]) {
            self.got.push((header, bytes.to_vec()));
        }
    }

    fn kernel(takes: bool) -> Kernel {
        Kernel { takes: [takes; 2], got: Vec::new() }
    }

    /// A segment as a kernel sends it to a device that completes checksums.
    fn segment(v6: bool, port: u16, number: u16, flags: u8, len: usize) -> Vec<u8> {
        let mut frame = MAC.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        let tcp = (20 + len) as u16;
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(tcp.to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0xfd; 32]);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + tcp).to_be_bytes());
            frame.extend((77 + number).to_be_bytes());
            frame.extend([0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = !checksum::sum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let addresses = if v6 { &frame[22..54] } else { &frame[26..34] };
        let pseudo = checksum::sum(&[addresses, &[0, 6, (tcp >> 8) as u8, tcp as u8]].concat());
        frame.extend(port.to_be_bytes());
        frame.extend([0x9c, 0x40]);
        frame.extend((u32::from(number) * SIZE as u32).to_be_bytes());
        frame.extend([0, 0, 9, 9, 5 << 4, flags, 1, 0]);
        frame.extend(pseudo.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend((0..len).map(|at| (at + usize::from(number)) as u8));
        frame
    }

    fn start_of_tcp(v6: bool) -> u16 {
        if v6 { 54 } else { 34 }
    }

    /// Passes frames through a bridge.
    fn pass(kernel: &mut Kernel, v6: bool, frames: &[Vec<u8>]) {
        let mut mem = RegionMemory::new(pool(1));
        let buf = mem.pool_mut().take(Owner::Stack).unwrap();
        let mut bridge = Bridge::new(MAC, 2048);
        let partial = Some(TxCsum { start: start_of_tcp(v6), offset: CSUM as u16 });
        for bytes in frames {
            mem.write(buf, RX_OFFSET.into(), bytes);
            let len = bytes.len() as u16;
            let frame = RxFrame { buf, offset: RX_OFFSET, len, csum: RxCsum::Partial, time: 0 };
            bridge.take(&Received { frame, partial }, &mem, kernel);
        }
        bridge.flush(kernel);
    }

    fn flow(v6: bool) -> Vec<Vec<u8>> {
        let mut frames: Vec<_> = (0..4).map(|n| segment(v6, 80, n, ACK, SIZE)).collect();
        frames.push(segment(v6, 80, 4, ACK | PSH, 300));
        frames
    }

    #[test]
    fn segments_reach_a_kernel_as_one_packet_and_leave_it_as_segments() {
        for v6 in [false, true] {
            let frames = flow(v6);
            let mut taker = kernel(true);
            pass(&mut taker, v6, &frames);
            let [(header, bytes)] = &taker.got[..] else { panic!("{} packets", taker.got.len()) };
            assert_eq!(header.gso_type, if v6 { GSO_TCPV6 } else { GSO_TCPV4 });
            assert_eq!((header.flags, header.gso_size.get()), (NEEDS_CSUM, SIZE as u16));
            assert_eq!(header.csum_start.get(), start_of_tcp(v6));
            assert_eq!(usize::from(header.hdr_len.get()), frames[0].len() - SIZE);

            // The same packet, as the guest's kernel would send it: the same segments.
            let mut mem = RegionMemory::new(pool(8));
            let mut tx = TxBatch::new(TX_RESERVE + 8);
            let mut packet = Packet::new(header, bytes, bytes.len(), 0).unwrap();
            assert_eq!(queue_segments(&mut tx, &mut mem, &mut packet, bytes), frames.len());
            assert!(packet.is_done());
            for (out, frame) in tx.frames().iter().zip(&frames) {
                let payload = out.payload.unwrap();
                let mut sent = out.head().to_vec();
                let start = sent.len();
                sent.resize(start + usize::from(payload.len), 0);
                mem.read(payload.buf, payload.offset.into(), &mut sent[start..]);
                assert_eq!(&sent, frame);
            }
            // And the port makes one packet of them again.
            let joined = join(tx.frames()).unwrap();
            assert_eq!((joined.count, joined.header), (frames.len(), *header));
            assert_eq!(joined.head(), &bytes[..joined.head().len()]);
        }
    }

    #[test]
    fn what_does_not_belong_together_stays_apart_and_in_order() {
        let others = [
            segment(false, 81, 1, ACK, SIZE),
            segment(false, 80, 2, ACK, SIZE),
            segment(false, 80, 1, ACK | 1, SIZE),
            segment(false, 80, 1, ACK, SIZE + 1),
            segment(false, 80, 1, ACK, 0),
        ];
        for other in others {
            let frames = [segment(false, 80, 0, ACK, SIZE), other.clone()];
            let mut taker = kernel(true);
            pass(&mut taker, false, &frames);
            let got: Vec<_> = taker.got.iter().map(|(_, bytes)| bytes.clone()).collect();
            assert_eq!(got, frames);
            assert!(taker.got.iter().all(|(header, _)| header.gso_type == GSO_NONE));
        }
        // What is pushed is not kept waiting, and ends a packet.
        let mut frames = flow(false);
        frames.insert(2, segment(false, 80, 2, ACK | PSH, SIZE));
        frames.remove(3);
        let mut taker = kernel(true);
        pass(&mut taker, false, &frames);
        let lens: Vec<_> = taker.got.iter().map(|(_, bytes)| bytes.len() - 54).collect();
        assert_eq!(lens, [3 * SIZE, SIZE + 300]);
    }

    #[test]
    fn a_kernel_that_takes_no_packets_gets_every_segment() {
        let mut taker = kernel(false);
        pass(&mut taker, true, &flow(true));
        let got: Vec<_> = taker.got.iter().map(|(_, bytes)| bytes.clone()).collect();
        assert_eq!(got, flow(true));
        // And nobody gets what is another station's.
        let mut foreign = segment(false, 80, 0, ACK, SIZE);
        foreign[5] ^= 1;
        let mut taker = kernel(true);
        pass(&mut taker, false, &[foreign]);
        assert!(taker.got.is_empty());
    }

    #[test]
    fn a_packet_of_more_segments_than_there_is_room_goes_in_parts() {
        let mut taker = kernel(true);
        pass(&mut taker, false, &flow(false));
        let (header, bytes) = &taker.got[0];
        let mut mem = RegionMemory::new(pool(8));
        let mut tx = TxBatch::new(TX_RESERVE + 2);
        let mut packet = Packet::new(header, bytes, bytes.len(), 0).unwrap();
        let mut count = 0;
        while !packet.is_done() {
            let queued = queue_segments(&mut tx, &mut mem, &mut packet, bytes);
            assert!((1..=2).contains(&queued));
            count += queued;
            tx.consume(queued);
        }
        assert_eq!(count, 5);
        // None without a buffer; and none is lost for that.
        let mut packet = Packet::new(header, bytes, bytes.len(), 0).unwrap();
        assert_eq!(mem.free(), 3);
        let mut tx = TxBatch::new(TX_RESERVE + 8);
        assert_eq!(queue_segments(&mut tx, &mut mem, &mut packet, bytes), 3);
        assert_eq!(queue_segments(&mut tx, &mut mem, &mut packet, bytes), 0);
        assert!(!packet.is_done());
    }
}
