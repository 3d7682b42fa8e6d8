//! Captures in pcapng (draft-ietf-opsawg-pcapng), for Wireshark and its kin:
//! one section, an interface for each station, times in ns, and a comment for
//! each frame that has one.

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const LINK_ETHERNET: u16 = 1;

const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
/// `if_tsresol`: times count 10^-9 s.
const NANOSECONDS: u8 = 9;

/// A capture that is being written.
#[derive(Debug)]
pub struct Capture<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> Capture<W> {
    /// Begins a capture with interfaces of these names.
    pub fn new(out: W, interfaces: &[&str]) -> io::Result<Capture<W>> {
        let mut capture = Capture { out, block: Vec::new() };
        capture.block.extend(BYTE_ORDER.to_le_bytes());
        // Version 1.0, and a length that is not known.
        capture.block.extend([1, 0, 0, 0]);
        capture.block.extend(u64::MAX.to_le_bytes());
        capture.end_block(SECTION_HEADER)?;
        for name in interfaces {
            capture.block.extend(LINK_ETHERNET.to_le_bytes());
            // Reserved, then the length at which frames are cut: never.
            capture.block.extend([0; 6]);
            capture.option(IF_NAME, name.as_bytes());
            capture.option(IF_TSRESOL, &[NANOSECONDS]);
            capture.option(OPT_END, &[]);
            capture.end_block(INTERFACE)?;
        }
        Ok(capture)
    }

    /// Adds a frame.
    pub fn frame(
        &mut self,
        interface: u32,
        time_ns: u64,
        bytes: &[u8],
        comment: &str,
    ) -> io::Result<()> {
        let len = bytes.len() as u32;
        for field in [interface, (time_ns >> 32) as u32, time_ns as u32, len, len] {
            self.block.extend(field.to_le_bytes());
        }
        self.padded(bytes);
        if !comment.is_empty() {
            self.option(OPT_COMMENT, comment.as_bytes());
            self.option(OPT_END, &[]);
        }
        self.end_block(ENHANCED_PACKET)
    }

    /// Ends the capture.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.block.extend(code.to_le_bytes());
        self.block.extend((value.len() as u16).to_le_bytes());
        self.padded(value);
    }

    /// Every field begins at a multiple of four bytes.
    fn padded(&mut self, bytes: &[u8]) {
        self.block.extend(bytes);
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    /// A block's length stands before and behind it.
    fn end_block(&mut self, kind: u32) -> io::Result<()> {
        let len = (self.block.len() + 12) as u32;
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&len.to_le_bytes())?;
        self.out.write_all(&self.block)?;
        self.out.write_all(&len.to_le_bytes())?;
        self.block.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_laid_out_as_the_draft_says() {
        let mut out = Vec::new();
        let mut capture = Capture::new(&mut out, &["a"]).unwrap();
        capture.frame(0, 0x1_0000_0002, &[0xaa; 5], "lost").unwrap();
        capture.finish().unwrap();
        let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8)), (0x0a0d_0d0a, 28, 0x1a2b_3c4d));
        assert_eq!(word(24), 28);
        // Interface: its name takes 8 bytes, the resolution 8, the end 4.
        assert_eq!((word(28), word(32), word(36)), (1, 40, 1));
        assert_eq!(&out[44..49], [2, 0, 1, 0, b'a']);
        assert_eq!(&out[52..57], [9, 0, 1, 0, 9]);
        assert_eq!((word(60), word(64)), (0, 40));
        // Frame: 20 bytes of fields, 5 of frame and 3 behind, the comment.
        assert_eq!((word(68), word(72)), (6, 12 + 20 + 8 + 8 + 4));
        assert_eq!([word(76), word(80), word(84), word(88), word(92)], [0, 1, 2, 5, 5]);
        assert_eq!(&out[96..104], [0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0]);
        assert_eq!(&out[104..112], [1, 0, 4, 0, b'l', b'o', b's', b't']);
        assert_eq!((word(112), word(116)), (0, 52));
        assert_eq!(out.len(), 120);
    }
}
