//! The TCP header (RFC 9293 section 3.1) and its options.

use super::{be16, be32};
use crate::tcp::seq::Seq;

/// Bytes of a header without options.
pub(crate) const LEN: usize = 20;
/// Where the checksum lies in the header.
pub(crate) const CSUM_OFFSET: usize = 16;
/// Bytes of the timestamps option, padded as everybody does (RFC 7323 appendix A).
pub(crate) const TIMESTAMPS_LEN: usize = 12;

/// Control bits.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    /// ECN echo (RFC 3168 section 6.1).
    pub(crate) const ECE: u8 = 0x40;
    /// Congestion window reduced (RFC 3168 section 6.1).
    pub(crate) const CWR: u8 = 0x80;
}

/// The timestamps option (RFC 7323 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamps {
    pub value: u32,
    pub echo: u32,
}

/// SACK blocks that fit into the options next to nothing else; with
/// timestamps it is one less (RFC 2018 section 3).
pub(crate) const SACK_BLOCKS_MAX: usize = 4;

/// How many SACK blocks `room` bytes of options hold, padding included.
pub(crate) const fn sack_blocks_within(room: usize) -> usize {
    room.saturating_sub(4) / 8
}

/// One block of a SACK option (RFC 2018 section 3): bytes that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct SackBlock {
    /// The first byte.
    pub start: Seq,
    /// After the last byte.
    pub end: Seq,
}

/// The blocks of a SACK option, the most recent first; empty without one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SackBlocks {
    blocks: [SackBlock; SACK_BLOCKS_MAX],
    len: u8,
}

impl SackBlocks {
    /// Adds a block; what has no room is left out.
    pub(crate) fn push(&mut self, block: SackBlock) {
        if let Some(place) = self.blocks.get_mut(usize::from(self.len)) {
            *place = block;
            self.len += 1;
        }
    }

    /// Leaves out all but the first `len` blocks.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u8);
    }

    /// Whether there are none.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl PartialEq for SackBlocks {
    fn eq(&self, other: &SackBlocks) -> bool {
        **self == **other
    }
}

impl Eq for SackBlocks {}

impl core::ops::Deref for SackBlocks {
    type Target = [SackBlock];

    #[inline]
    fn deref(&self) -> &[SackBlock] {
        &self.blocks[..usize::from(self.len)]
    }
}

/// Options that we understand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Maximum segment size (RFC 9293 section 3.7.1); on SYN only.
    pub mss: Option<u16>,
    /// Window scale shift (RFC 7323 section 2); on SYN only.
    pub scale: Option<u8>,
    pub timestamps: Option<Timestamps>,
    /// SACK may be sent (RFC 2018 section 2); on SYN only.
    pub sack_permitted: bool,
    pub sack: SackBlocks,
}

/// A parsed or to be written header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: Seq,
    pub ack: Seq,
    pub flags: u8,
    /// As on the wire, not scaled.
    pub window: u16,
    pub options: Options,
}

impl Header {
    /// Whether the control bit is set.
    #[inline]
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Reads a header from `bytes`, the start of a segment, and gives it with its
/// length; `None` when it is cut short or its lengths lie. Malformed options
/// end the options: what came before counts (RFC 9293 section 3.1, MUST-7).
#[inline]
pub(crate) fn parse(bytes: &[u8]) -> Option<(Header, usize)> {
    let fixed: &[u8; LEN] = bytes.first_chunk()?;
    let len = usize::from(fixed[12] >> 4) * 4;
    let options = bytes.get(LEN..len)?;
    Some((
        Header {
            src_port: be16(fixed, 0),
            dst_port: be16(fixed, 2),
            seq: Seq(be32(fixed, 4)),
            ack: Seq(be32(fixed, 8)),
            flags: fixed[13],
            window: be16(fixed, 14),
            options: parse_options(options),
        },
        len,
    ))
}

#[inline]
fn parse_options(mut bytes: &[u8]) -> Options {
    let mut options = Options::default();
    // The layout of nearly every segment of a flow with timestamps.
    if bytes.len() == TIMESTAMPS_LEN && bytes[..4] == [1, 1, 8, 10] {
        options.timestamps = Some(Timestamps { value: be32(bytes, 4), echo: be32(bytes, 8) });
        return options;
    }
    while let Some((&kind, rest)) = bytes.split_first() {
        match kind {
            0 => break,
            1 => bytes = rest,
            _ => {
                let Some(&len) = rest.first() else { break };
                let len = usize::from(len);
                if len < 2 || len > bytes.len() {
                    break;
                }
                let (option, after) = bytes.split_at(len);
                match (kind, len) {
                    (2, 4) => options.mss = Some(be16(option, 2)),
                    // RFC 7323 section 2.3: a larger shift counts as 14.
                    (3, 3) => options.scale = Some(option[2].min(14)),
                    (4, 2) => options.sack_permitted = true,
                    (5, 10..) if len % 8 == 2 => {
                        for block in option[2..].as_chunks::<8>().0 {
                            options.sack.push(SackBlock {
                                start: Seq(be32(block, 0)),
                                end: Seq(be32(block, 4)),
                            });
                        }
                    }
                    (8, 10) => {
                        options.timestamps =
                            Some(Timestamps { value: be32(option, 2), echo: be32(option, 6) });
                    }
                    _ => {}
                }
                bytes = after;
            }
        }
    }
    options
}

/// Bytes of a header with these options.
#[inline]
pub(crate) fn header_len(options: &Options) -> usize {
    LEN + if options.mss.is_some() { 4 } else { 0 }
        + if options.scale.is_some() { 4 } else { 0 }
        + if options.timestamps.is_some() { TIMESTAMPS_LEN } else { 0 }
        // With timestamps it takes the place of their padding.
        + if options.sack_permitted && options.timestamps.is_none() { 4 } else { 0 }
        + if options.sack.is_empty() { 0 } else { 4 + 8 * options.sack.len() }
}

/// Writes the header at the start of `out`, which has room for it, with a
/// checksum of zero, and returns its length. Options come in the order in which
/// Linux has them, which conformance scripts expect; RFCs ask for none.
#[inline]
pub(crate) fn write(out: &mut [u8], header: &Header) -> usize {
    let len = header_len(&header.options);
    out[0..2].copy_from_slice(&header.src_port.to_be_bytes());
    out[2..4].copy_from_slice(&header.dst_port.to_be_bytes());
    out[4..8].copy_from_slice(&header.seq.0.to_be_bytes());
    out[8..12].copy_from_slice(&header.ack.0.to_be_bytes());
    out[12] = (len as u8 / 4) << 4;
    out[13] = header.flags;
    out[14..16].copy_from_slice(&header.window.to_be_bytes());
    out[16..20].copy_from_slice(&[0; 4]);
    let mut at = LEN;
    if let Some(mss) = header.options.mss {
        out[at..at + 2].copy_from_slice(&[2, 4]);
        out[at + 2..at + 4].copy_from_slice(&mss.to_be_bytes());
        at += 4;
    }
    if let Some(ts) = header.options.timestamps {
        let padding = if header.options.sack_permitted { [4, 2] } else { [1, 1] };
        out[at..at + 2].copy_from_slice(&padding);
        out[at + 2..at + 4].copy_from_slice(&[8, 10]);
        out[at + 4..at + 8].copy_from_slice(&ts.value.to_be_bytes());
        out[at + 8..at + 12].copy_from_slice(&ts.echo.to_be_bytes());
        at += TIMESTAMPS_LEN;
    } else if header.options.sack_permitted {
        out[at..at + 4].copy_from_slice(&[1, 1, 4, 2]);
        at += 4;
    }
    if let Some(scale) = header.options.scale {
        out[at..at + 4].copy_from_slice(&[1, 3, 3, scale]);
        at += 4;
    }
    if !header.options.sack.is_empty() {
        let len = 2 + 8 * header.options.sack.len() as u8;
        out[at..at + 4].copy_from_slice(&[1, 1, 5, len]);
        at += 4;
        for block in header.options.sack.iter() {
            out[at..at + 4].copy_from_slice(&block.start.0.to_be_bytes());
            out[at + 4..at + 8].copy_from_slice(&block.end.0.to_be_bytes());
            at += 8;
        }
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_parses() {
        let options = Options {
            mss: Some(1460),
            scale: Some(7),
            timestamps: Some(Timestamps { value: 1, echo: u32::MAX }),
            sack_permitted: true,
            ..Options::default()
        };
        let header = Header {
            src_port: 80,
            dst_port: 40000,
            seq: Seq(u32::MAX),
            ack: Seq(7),
            flags: flag::SYN | flag::ACK | flag::ECE | flag::CWR,
            window: 0xfedc,
            options,
        };
        let mut bytes = [0; 60];
        let len = write(&mut bytes, &header);
        let (read, read_len) = parse(&bytes[..len]).unwrap();
        assert_eq!(read_len, len);
        assert_eq!(read.options, options);
        assert_eq!((read.seq, read.ack, read.window), (header.seq, header.ack, header.window));
        assert_eq!(read.flags, header.flags);
    }

    #[test]
    fn sack_blocks_fill_the_options_and_no_more() {
        for timestamps in [None, Some(Timestamps { value: 1, echo: 2 })] {
            let room = if timestamps.is_some() { 3 } else { 4 };
            let mut options = Options { timestamps, ..Options::default() };
            for i in 0..9 {
                options.sack.push(SackBlock { start: Seq(i), end: Seq(u32::MAX - i) });
            }
            options.sack.truncate(room);
            let header = Header {
                src_port: 1,
                dst_port: 2,
                seq: Seq(3),
                ack: Seq(4),
                flags: flag::ACK,
                window: 5,
                options,
            };
            let mut bytes = [0; 60];
            let len = write(&mut bytes, &header);
            assert!(len <= 60);
            assert_eq!(parse(&bytes[..len]).unwrap().0.options, options);
            assert_eq!(options.sack.len(), room);
        }
        // A length that is not whole blocks is no SACK.
        assert!(parse_options(&[5, 11, 0, 0, 0, 1, 0, 0, 0, 2, 0]).sack.is_empty());
    }

    #[test]
    fn options_that_lie_end_the_options() {
        // MSS, then a length of one, then what would be a scale.
        let options = parse_options(&[2, 4, 5, 0xb4, 8, 1, 3, 3, 7]);
        assert_eq!(options, Options { mss: Some(1460), ..Options::default() });
        assert_eq!(parse_options(&[3, 30, 1]), Options::default());
        assert_eq!(parse_options(&[3]), Options::default());
    }

    #[test]
    fn refuses_a_data_offset_beyond_the_end() {
        let mut bytes = [0; 24];
        bytes[12] = 0x70;
        assert!(parse(&bytes).is_none());
        bytes[12] = 0x40;
        assert!(parse(&bytes).is_none());
        bytes[12] = 0x60;
        assert!(parse(&bytes).is_some());
    }
}
