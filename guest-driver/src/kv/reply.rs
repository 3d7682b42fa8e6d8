//! Answers: RESP2 and RESP3 as bytes, and stored values by name.

use std::collections::VecDeque;

use super::extent::Extent;

/// What is to be sent on a flow: bytes that were written here, and between them
/// ranges of stored buffers, each with a name of its own.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// Bytes that were taken from the front.
    taken: usize,
    /// Ranges, and how many bytes stand before each.
    ranges: VecDeque<(usize, Extent)>,
    /// Whether the client speaks RESP3.
    pub(super) resp3: bool,
}

/// Memory for answers that a flow keeps between requests.
const KEPT: usize = 4096;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// Bytes to copy.
    Bytes(&'a [u8]),
    /// A range to send from where it is.
    Range(Extent),
}

impl Output {
    /// The first of what is to be sent.
    pub(super) fn next(&self) -> Option<Next<'_>> {
        let until = self.ranges.front().map_or(self.bytes.len(), |(before, _)| *before);
        if self.taken < until {
            return Some(Next::Bytes(&self.bytes[self.taken..until]));
        }
        self.ranges.front().map(|(_, extent)| Next::Range(*extent))
    }

    /// So many bytes of [`Next::Bytes`] are taken.
    pub(super) fn took_bytes(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.bytes.len() && self.ranges.is_empty() {
            self.forget_bytes();
        }
    }

    /// The range of [`Next::Range`] is taken.
    pub(super) fn took_range(&mut self) {
        self.ranges.pop_front();
        if self.taken == self.bytes.len() && self.ranges.is_empty() {
            self.forget_bytes();
        }
    }

    /// So many bytes of the range of [`Next::Range`] are taken. Answers whether that
    /// was the rest of it.
    pub(super) fn took_part(&mut self, count: usize) -> bool {
        let Some((_, extent)) = self.ranges.front_mut() else { return false };
        *extent = extent.skip(count);
        let all = extent.len == 0;
        if all {
            self.took_range();
        }
        all
    }

    fn forget_bytes(&mut self) {
        self.taken = 0;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
    }

    /// Bytes that wait to be copied, and ranges.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.bytes.len() - self.taken, self.ranges.len())
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(text);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn number(&mut self, kind: u8, number: i64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = number.unsigned_abs();
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            at -= 1;
            digits[at] = b'-';
        }
        self.line(kind, &digits[at..]);
    }

    /// A simple string.
    pub(super) fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// An error. Line ends in it would end it.
    pub(super) fn error(&mut self, text: &str) {
        let start = self.bytes.len() + 1;
        self.line(b'-', text.as_bytes());
        let end = self.bytes.len() - 2;
        for byte in &mut self.bytes[start..end] {
            if matches!(byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
    }

    /// An integer.
    pub(super) fn integer(&mut self, number: i64) {
        self.number(b':', number);
    }

    /// A bulk string.
    pub(super) fn bulk(&mut self, bytes: &[u8]) {
        self.bulk_with(bytes.len(), |out| out.copy_from_slice(bytes));
    }

    /// A bulk string of `len` bytes, which `fill` writes.
    pub(super) fn bulk_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) {
        self.number(b'$', len as i64);
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        fill(&mut self.bytes[start..]);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// A part of an answer that lies in a buffer. Its name goes with it.
    pub(super) fn range(&mut self, extent: Extent) {
        self.ranges.push_back((self.bytes.len(), extent));
    }

    /// Nothing.
    pub(super) fn nil(&mut self) {
        self.bytes.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// The beginning of an array.
    pub(super) fn array(&mut self, len: usize) {
        self.number(b'*', len as i64);
    }

    /// The beginning of a map, which RESP2 knows as an array.
    pub(super) fn map(&mut self, len: usize) {
        if self.resp3 { self.number(b'%', len as i64) } else { self.array(2 * len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(output: &mut Output) -> String {
        let mut all = Vec::new();
        while let Some(next) = output.next() {
            match next {
                Next::Bytes(bytes) => {
                    // In two pieces, as a small buffer would take them.
                    let half = bytes.len().div_ceil(2);
                    all.extend_from_slice(&bytes[..half]);
                    output.took_bytes(half);
                }
                Next::Range(extent) => {
                    all.extend_from_slice(format!("<{}>", extent.buffer).as_bytes());
                    output.took_range();
                }
            }
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn answers_are_spelled_as_in_both_versions() {
        let mut out = Output::default();
        out.simple("OK");
        out.error("ERR a\r\nb");
        out.range(Extent { buffer: 7, offset: 0, len: 1 });
        out.integer(i64::MIN);
        out.integer(0);
        out.range(Extent { buffer: 8, offset: 0, len: 1 });
        out.range(Extent { buffer: 9, offset: 0, len: 1 });
        out.bulk(b"");
        out.nil();
        out.map(1);
        assert_eq!(
            text(&mut out),
            "+OK\r\n-ERR a  b\r\n<7>:-9223372036854775808\r\n:0\r\n<8><9>$0\r\n\r\n$-1\r\n*2\r\n"
        );
        assert_eq!((out.next(), out.waiting()), (None, (0, 0)));
        out.resp3 = true;
        out.nil();
        out.map(1);
        out.array(3);
        assert_eq!(text(&mut out), "_\r\n%1\r\n*3\r\n");
    }
}
