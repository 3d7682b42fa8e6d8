//! Frames of the guest's own kernel, to the port; and those for it, into its RX ring, but
//! none of those in which host and guest talk to each other, which nobody else may send
//! it.

use paste_abi::net_hdr::{NEEDS_CSUM, NetHdr};

use super::GuestCounters;
use crate::engine::{Now, Packet, PlainSink, RegionMemory, StackPort};
use crate::port::{Caps, FRAME_OVERHEAD};
use crate::vhost::{Device, HeaderError, Left, Offloads, RingError, judge_tx_header};

/// The longest Ethernet frame that the port takes, in bytes.
pub fn frame_max(caps: &Caps) -> usize {
    usize::from(caps.mtu) + usize::from(FRAME_OVERHEAD)
}

/// Why a frame of the guest's is not for the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// By its virtio-net header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Longer than the port carries.
    #[error("a frame of {len} bytes, where the link carries {max}: give its device this mtu")]
    Long {
        /// Bytes of the frame, or of its first segment.
        len: usize,
        /// Bytes of the longest frame.
        max: usize,
    },
    /// Segments are to be made of what is not TCP, or not laid out as such.
    #[error("a packet that cannot be cut into segments")]
    Uncut,
}

/// What is asked of every frame of the guest's; the same for a turn.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What the driver may leave to the device.
    pub allowed: Offloads,
    /// The longest frame that the port takes, bytes.
    pub frame_max: usize,
}

/// Queues a frame for the port, or the segments that are to be made of it, or drops and
/// counts it. Returns how many frames beside the first were queued.
///
/// # Errors
/// Why the port does not get it; it is counted.
pub fn send_out(
    now: Now,
    engine: &mut dyn StackPort,
    memory: &mut RegionMemory,
    counters: &mut GuestCounters,
    terms: Terms,
    header: &NetHdr,
    bytes: &[u8],
) -> Result<usize, Refused> {
    let Terms { allowed, frame_max: max } = terms;
    let fits = |len| if len <= max { Ok(()) } else { Err(Refused::Long { len, max }) };
    let judged = judge_tx_header(header, bytes.len(), allowed).map_err(Refused::from);
    let csum = match judged.inspect_err(|_| counters.plain_out_refused += 1)? {
        Left::Segments => {
            let packet = Packet::new(header, bytes, bytes.len(), 0).ok_or(Refused::Uncut);
            let packet = packet.and_then(|packet| fits(packet.first_len()).map(|()| packet));
            let mut packet = packet.inspect_err(|_| counters.plain_out_refused += 1)?;
            let queued = send_segments(now, engine, memory, &mut packet, bytes);
            counters.plain_out_segments += queued as u64;
            counters.bytes_copied += bytes.len() as u64;
            match packet.is_done() {
                true => counters.plain_out += 1,
                false => counters.plain_out_dropped += 1,
            }
            return Ok(queued.saturating_sub(1));
        }
        Left::Csum(csum) => Some(csum),
        Left::Nothing => None,
    };
    fits(bytes.len()).inspect_err(|_| counters.plain_out_refused += 1)?;
    // That the port has failed is found by the turn.
    let transmit =
        |engine: &mut dyn StackPort, memory: &mut _| engine.transmit(now, memory).unwrap_or(0);
    if engine.send_plain(memory, bytes, csum)
        || (transmit(engine, memory) > 0 && engine.send_plain(memory, bytes, csum))
    {
        counters.plain_out += 1;
        counters.bytes_copied += bytes.len() as u64;
    } else {
        counters.plain_out_dropped += 1;
    }
    Ok(0)
}

/// Queues the segments of a packet, as far as the port takes them. Returns how many.
fn send_segments(
    now: Now,
    engine: &mut dyn StackPort,
    memory: &mut RegionMemory,
    packet: &mut Packet,
    bytes: &[u8],
) -> usize {
    let mut all = engine.send_segments(memory, packet, bytes);
    // There may be less room than the packet has segments.
    while !packet.is_done() && engine.transmit(now, memory).unwrap_or(0) > 0 {
        all += engine.send_segments(memory, packet, bytes);
    }
    all
}

/// Puts plain frames into the guest's RX ring, or drops and counts them: a
/// guest that gives no room loses frames, as on any NIC.
pub struct RingSink<'a> {
    /// The device.
    pub device: &'a mut Device,
    /// Where the outcome is counted.
    pub counters: &'a mut GuestCounters,
    /// The first error of the ring; nothing is pushed after it.
    pub error: Option<RingError>,
}

impl PlainSink for RingSink<'_> {
    fn takes_segments(&self, v6: bool) -> bool {
        self.device.takes_segments(v6)
    }

    fn frame(&mut self, mut header: NetHdr, bytes: &mut [u8]) {
        if self.error.is_some() || !self.device.is_running() {
            self.counters.plain_in_dropped += 1;
            return;
        }
        // What the guest takes for its host's word comes from its host alone.
        if paste_abi::frame::is_paste(bytes) {
            self.counters.plain_in_forged += 1;
            return;
        }
        if header.flags & NEEDS_CSUM != 0 && !self.device.takes_partial_csum() {
            complete_csum(&header, bytes);
            header = NetHdr::default();
            self.counters.plain_in_completed += 1;
        }
        match self.device.push_rx(&[bytes], &header) {
            Ok(true) => {
                self.counters.plain_in += 1;
                self.counters.bytes_copied += bytes.len() as u64;
            }
            Ok(false) => self.counters.plain_in_dropped += 1,
            Err(error) => self.error = Some(error),
        }
    }
}

/// Completes the checksum that the header asks for (virtio 1.2 section
/// 5.1.6.2), for a driver that did not negotiate to do it itself. A header that
/// points outside the frame changes nothing.
fn complete_csum(header: &NetHdr, bytes: &mut [u8]) {
    let start = usize::from(header.csum_start.get());
    let at = start + usize::from(header.csum_offset.get());
    if at + 2 > bytes.len() {
        return;
    }
    let mut sum: u32 = 0;
    for pair in bytes[start..].chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    // Zero means "none" to UDP (RFC 768); all ones is the same sum.
    let csum = match !(sum as u16) {
        0 => 0xffff,
        csum => csum,
    };
    bytes[at..at + 2].copy_from_slice(&csum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UDP from 10.0.0.1:1 to 10.0.0.2:2 with payload "abc": the field holds
    /// the pseudo-header's sum, as a kernel leaves it.
    #[test]
    fn completes_a_checksum_of_odd_length() {
        let pseudo: u32 = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 17 + 11;
        let mut bytes = vec![0xee; 34];
        bytes.extend([0, 1, 0, 2, 0, 11]);
        bytes.extend((pseudo as u16).to_be_bytes());
        bytes.extend(b"abc");
        let mut header = NetHdr { flags: NEEDS_CSUM, ..NetHdr::default() };
        header.csum_start.set(34);
        header.csum_offset.set(6);
        complete_csum(&header, &mut bytes);
        // Summing everything, pseudo-header included, now gives all ones.
        let words = bytes[34..]
            .chunks(2)
            .map(|p| u32::from(u16::from_be_bytes([p[0], p.get(1).copied().unwrap_or(0)])));
        let mut sum = pseudo + words.sum::<u32>();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        assert_eq!(sum, 0xffff);
    }

    #[test]
    fn a_header_that_points_outside_changes_nothing() {
        let mut bytes = [7; 40];
        let mut header = NetHdr { flags: NEEDS_CSUM, ..NetHdr::default() };
        header.csum_start.set(39);
        header.csum_offset.set(u16::MAX);
        complete_csum(&header, &mut bytes);
        assert_eq!(bytes, [7; 40]);
    }
}
