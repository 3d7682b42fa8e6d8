//! The TCP header (RFC 9293 section 3.1) and its options.

use super::{be16, be32};
use crate::checksum;
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
    /// All zeros, and no options.
    pub(crate) const EMPTY: Header = Header {
        src_port: 0,
        dst_port: 0,
        seq: Seq(0),
        ack: Seq(0),
        flags: 0,
        window: 0,
        options: Options {
            mss: None,
            scale: None,
            timestamps: None,
            sack_permitted: false,
            sack: SackBlocks { blocks: [SackBlock { start: Seq(0), end: Seq(0) }; 4], len: 0 },
        },
    };

    /// Whether the control bit is set.
    #[inline]
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Reads a header from `bytes`, the start of a segment, into `header`, which is
/// [`Header::EMPTY`], and gives its length; `None` when it is cut short or its
/// lengths lie. Malformed options end the options: what came before counts (RFC
/// 9293 section 3.1, MUST-7).
///
/// Read where it stays: a header that is moved is read back in other widths than
/// it was just written in, and waits for that.
#[inline]
pub(crate) fn parse(bytes: &[u8], header: &mut Header) -> Option<usize> {
    let fixed: &[u8; LEN] = bytes.first_chunk()?;
    let len = usize::from(fixed[12] >> 4) * 4;
    let options = bytes.get(LEN..len)?;
    header.src_port = be16(fixed, 0);
    header.dst_port = be16(fixed, 2);
    header.seq = Seq(be32(fixed, 4));
    header.ack = Seq(be32(fixed, 8));
    header.flags = fixed[13];
    header.window = be16(fixed, 14);
    // The layout of nearly every segment of a flow with timestamps.
    if options.len() == TIMESTAMPS_LEN && options[..4] == [1, 1, 8, 10] {
        let (value, echo) = (be32(options, 4), be32(options, 8));
        header.options.timestamps = Some(Timestamps { value, echo });
    } else if !options.is_empty() {
        header.options = parse_options(options);
    }
    Some(len)
}

fn parse_options(mut bytes: &[u8]) -> Options {
    let mut options = Options::default();
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

/// Writes words one behind the other, and adds them up on the way: to sum what was
/// just stored, in other widths, would wait for the stores.
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    sum: u32,
}

impl Writer<'_> {
    #[inline]
    fn u16(&mut self, word: u16) {
        self.out[self.at..self.at + 2].copy_from_slice(&word.to_be_bytes());
        self.at += 2;
        self.sum += u32::from(word);
    }

    #[inline]
    fn u32(&mut self, words: u32) {
        self.out[self.at..self.at + 4].copy_from_slice(&words.to_be_bytes());
        self.at += 4;
        self.sum += (words >> 16) + (words & 0xffff);
    }
}

/// Writes the header at the start of `out`, which has room for it, with a
/// checksum of zero, and returns its sum. Options come in the order in which
/// Linux has them, which conformance scripts expect; RFCs ask for none.
#[inline]
pub(crate) fn write(out: &mut [u8], header: &Header) -> u16 {
    let options = &header.options;
    let mut to = Writer { out, at: 0, sum: 0 };
    to.u16(header.src_port);
    to.u16(header.dst_port);
    to.u32(header.seq.0);
    to.u32(header.ack.0);
    to.u16((header_len(options) as u16 / 4) << 12 | u16::from(header.flags));
    to.u16(header.window);
    to.u32(0);
    if let Some(mss) = options.mss {
        to.u16(0x0204);
        to.u16(mss);
    }
    if let Some(ts) = options.timestamps {
        to.u16(if options.sack_permitted { 0x0402 } else { 0x0101 });
        to.u16(0x080a);
        to.u32(ts.value);
        to.u32(ts.echo);
    } else if options.sack_permitted {
        to.u32(0x0101_0402);
    }
    if let Some(scale) = options.scale {
        to.u32(0x0103_0300 | u32::from(scale));
    }
    if !options.sack.is_empty() {
        to.u32(0x0101_0500 | (2 + 8 * options.sack.len() as u32));
        for block in options.sack.iter() {
            to.u32(block.start.0);
            to.u32(block.end.0);
        }
    }
    checksum::fold(to.sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Option<(Header, usize)> {
        let mut header = Header::EMPTY;
        let len = parse(bytes, &mut header)?;
        Some((header, len))
    }

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
        let sum = write(&mut bytes, &header);
        let (read, len) = read(&bytes).unwrap();
        assert_eq!(len, header_len(&options));
        assert_eq!(sum, checksum::sum(&bytes[..len]));
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
            let sum = write(&mut bytes, &header);
            assert_eq!(sum, checksum::sum(&bytes));
            assert_eq!(read(&bytes).unwrap().0.options, options);
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
        assert!(read(&bytes).is_none());
        bytes[12] = 0x40;
        assert!(read(&bytes).is_none());
        bytes[12] = 0x60;
        assert!(read(&bytes).is_some());
    }
}
