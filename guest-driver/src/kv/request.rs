//! Requests as a client sends them: RESP arrays of bulk strings, and inline
//! commands. Read in place and bit by bit, from bytes that lie in many buffers.
//!
//! Knows the format and its limits, and neither commands nor values.

use super::chain::{Chain, Place};
use super::extent::{Bytes, Extent};

/// The longest bulk string.
pub(super) const BULK_MAX: usize = 512 * 1024;
/// The most arguments of a request.
pub(super) const ARGUMENTS_MAX: usize = 64 * 1024;
/// The longest inline command. Its line is read anew with each part of it that
/// arrives.
pub(super) const INLINE_MAX: usize = 4096;
/// The longest line that tells a number.
const NUMBER_LINE_MAX: usize = 24;
/// Room for arguments that a parser keeps between requests.
const ARGUMENTS_KEPT: usize = 64;

/// Why what a client sends is no request. The text is the answer, before the
/// flow is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("Protocol error: invalid multibulk length")]
    ArgumentCount,
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    NotBulk(u8),
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    #[error("Protocol error: too big mbulk count string")]
    CountLine,
    #[error("Protocol error: too big bulk count string")]
    LengthLine,
    #[error("Protocol error: too big inline request")]
    Inline,
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
    #[error("Protocol error: expected CRLF after a bulk string")]
    NoEnd,
}

/// An argument of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// A bulk string in the chain: `$LEN\r\n`, the bytes, `\r\n`.
    Bulk {
        /// Where the `$` is.
        start: Place,
        /// Where the bytes are.
        body: Place,
        /// How many there are.
        len: u32,
    },
    /// Bytes of an inline command, copied without quotes and escapes.
    Inline {
        /// Where they start in [`Parser::inline`].
        start: u32,
        /// How many there are.
        len: u32,
    },
}

/// What the parser has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not a whole request yet.
    More,
    /// A request; its arguments can be asked for until the next step.
    Request,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a request.
    Start,
    /// In a bulk string that begins at `start`, behind its line, with so many
    /// bytes of body and line end still to come.
    Body { start: Place, body: Place, len: u32, left: u32 },
    /// Before the `$` of an argument.
    Bulk,
}

/// What one flow's parser is in the middle of.
#[derive(Debug)]
pub(super) struct Parser {
    state: State,
    at: Place,
    /// Arguments that are still to come.
    missing: u32,
    arguments: Vec<Argument>,
    inline: Vec<u8>,
}

impl Parser {
    pub(super) fn new() -> Parser {
        Parser {
            state: State::Start,
            at: Place::default(),
            missing: 0,
            arguments: Vec::new(),
            inline: Vec::new(),
        }
    }

    /// Behind what has been used up.
    pub(super) fn place(&self) -> Place {
        self.at
    }

    /// The arguments of the request that was found.
    pub(super) fn arguments(&self) -> &[Argument] {
        &self.arguments
    }

    /// Bytes of inline arguments.
    pub(super) fn inline(&self) -> &[u8] {
        &self.inline
    }

    /// Whether the chain ends between two requests, as far as it was read.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Start
    }

    /// The request has been dealt with: forgets its arguments.
    pub(super) fn done(&mut self) {
        self.arguments.clear();
        self.arguments.shrink_to(ARGUMENTS_KEPT);
        self.inline = Vec::new();
    }

    /// Reads on, up to the end of a request.
    pub(super) fn step(
        &mut self,
        chain: &Chain,
        memory: &impl Bytes,
    ) -> Result<Progress, ProtocolError> {
        loop {
            match self.state {
                State::Start => {
                    let mut place = self.at;
                    let Some(first) = chain.byte(memory, &mut place) else {
                        return Ok(Progress::More);
                    };
                    if first != b'*' {
                        if !self.inline_line(chain, memory)? {
                            return Ok(Progress::More);
                        }
                        if !self.arguments.is_empty() {
                            return Ok(Progress::Request);
                        }
                        continue;
                    }
                    let line = number_line(chain, memory, place, ProtocolError::CountLine)?;
                    let Some((number, behind)) = line else {
                        return Ok(Progress::More);
                    };
                    let count = number.ok_or(ProtocolError::ArgumentCount)?;
                    if count > ARGUMENTS_MAX as i64 {
                        return Err(ProtocolError::ArgumentCount);
                    }
                    self.at = behind;
                    if count > 0 {
                        self.missing = count as u32;
                        self.state = State::Bulk;
                    }
                }
                State::Bulk => {
                    let start = self.at;
                    let mut place = start;
                    let Some(first) = chain.byte(memory, &mut place) else {
                        return Ok(Progress::More);
                    };
                    if first != b'$' {
                        return Err(ProtocolError::NotBulk(first));
                    }
                    let line = number_line(chain, memory, place, ProtocolError::LengthLine)?;
                    let Some((number, behind)) = line else {
                        return Ok(Progress::More);
                    };
                    let len = number
                        .filter(|len| (0..=BULK_MAX as i64).contains(len))
                        .ok_or(ProtocolError::BulkLength)? as u32;
                    self.at = behind;
                    self.state = State::Body { start, body: behind, len, left: len + 2 };
                }
                State::Body { start, body, len, left } => {
                    let left = self.pass(chain, memory, left)?;
                    if left > 0 {
                        self.state = State::Body { start, body, len, left };
                        return Ok(Progress::More);
                    }
                    self.arguments.push(Argument::Bulk { start, body, len });
                    self.missing -= 1;
                    if self.missing == 0 {
                        self.state = State::Start;
                        return Ok(Progress::Request);
                    }
                    self.state = State::Bulk;
                }
            }
        }
    }

    /// Passes over a body, and looks at its line end. Returns what is left.
    fn pass(
        &mut self,
        chain: &Chain,
        memory: &impl Bytes,
        mut left: u32,
    ) -> Result<u32, ProtocolError> {
        while left > 2 {
            match chain.next(&mut self.at, left as usize - 2) {
                Some(extent) => left -= u32::from(extent.len),
                None => return Ok(left),
            }
        }
        while left > 0 {
            let expected = if left == 2 { b'\r' } else { b'\n' };
            match chain.byte(memory, &mut self.at) {
                Some(byte) if byte == expected => left -= 1,
                Some(_) => return Err(ProtocolError::NoEnd),
                None => return Ok(left),
            }
        }
        Ok(0)
    }

    /// Reads an inline command, if its line is whole.
    fn inline_line(&mut self, chain: &Chain, memory: &impl Bytes) -> Result<bool, ProtocolError> {
        let mut place = self.at;
        let mut line = Vec::new();
        let ended = loop {
            // The rest of a piece at a time.
            let before = place;
            let Some(extent) = chain.next(&mut place, usize::from(u16::MAX)) else {
                break false;
            };
            let bytes = memory.bytes(extent);
            let end = bytes.iter().position(|&byte| byte == b'\n');
            line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            if let Some(end) = end {
                place = before;
                let _ = chain.next(&mut place, end + 1);
                break true;
            }
            if line.len() > INLINE_MAX {
                break false;
            }
        };
        if line.len() > INLINE_MAX {
            return Err(ProtocolError::Inline);
        }
        if !ended {
            return Ok(false);
        }
        self.at = place;
        line.pop_if(|last| *last == b'\r');
        split(&line, &mut self.inline, &mut self.arguments)?;
        Ok(true)
    }
}

impl Argument {
    /// Bytes of the argument.
    pub(super) fn len(self) -> usize {
        match self {
            Argument::Bulk { len, .. } | Argument::Inline { len, .. } => len as usize,
        }
    }

    /// Appends the argument's bytes to `out`.
    pub(super) fn copy(self, inline: &[u8], chain: &Chain, memory: &impl Bytes, out: &mut Vec<u8>) {
        match self {
            Argument::Bulk { mut body, len, .. } => {
                let mut left = len as usize;
                while left > 0
                    && let Some(extent) = chain.next(&mut body, left)
                {
                    out.extend_from_slice(memory.bytes(extent));
                    left -= usize::from(extent.len);
                }
            }
            Argument::Inline { start, len } => {
                out.extend_from_slice(&inline[start as usize..][..len as usize]);
            }
        }
    }

    /// The whole bulk string, as it would be answered: line, bytes and line
    /// end. Nothing for an inline argument.
    pub(super) fn raw(self, chain: &Chain, out: &mut Vec<Extent>) {
        if let Argument::Bulk { start, len, .. } = self {
            let mut place = start;
            let mut left = bulk_len(len as usize);
            while left > 0
                && let Some(extent) = chain.next(&mut place, left)
            {
                out.push(extent);
                left -= usize::from(extent.len);
            }
        }
    }
}

/// Bytes of a bulk string with its line and line end. A length has one spelling.
pub(super) fn bulk_len(len: usize) -> usize {
    let digits = len.checked_ilog10().unwrap_or(0) as usize + 1;
    1 + digits + 2 + len + 2
}

/// A number and what lies behind its line; `None` if the line is not whole. The
/// number is `None` if it is none.
type NumberLine = Option<(Option<i64>, Place)>;

fn number_line(
    chain: &Chain,
    memory: &impl Bytes,
    mut place: Place,
    too_long: ProtocolError,
) -> Result<NumberLine, ProtocolError> {
    let mut line = [0; NUMBER_LINE_MAX];
    let mut len = 0;
    while let Some(byte) = chain.byte(memory, &mut place) {
        if byte == b'\n' {
            let number = line[..len].strip_suffix(b"\r").and_then(integer);
            return Ok(Some((number, place)));
        }
        *line.get_mut(len).ok_or(too_long)? = byte;
        len += 1;
    }
    Ok(None)
}

/// An integer in its one spelling: no sign but a minus, no leading zeros, no
/// spaces.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let spelled = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    spelled.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// Splits an inline command into arguments: white space between them, `"` with
/// escapes, `'` without.
fn split(
    line: &[u8],
    bytes: &mut Vec<u8>,
    arguments: &mut Vec<Argument>,
) -> Result<(), ProtocolError> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Ok(());
        }
        let start = bytes.len();
        rest = word(rest, bytes).ok_or(ProtocolError::Quotes)?;
        let len = bytes.len() - start;
        arguments.push(Argument::Inline { start: start as u32, len: len as u32 });
    }
}

/// Takes one argument from the front; `None` if its quotes do not end, or end
/// before something that is no space.
fn word<'a>(mut rest: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let mut quote = None;
    loop {
        match (quote, rest) {
            (None, []) => return Some(rest),
            (None, [space, ..]) if space.is_ascii_whitespace() => return Some(rest),
            (None, [byte @ (b'"' | b'\''), after @ ..]) => {
                quote = Some(*byte);
                rest = after;
            }
            (Some(_), []) => return None,
            (Some(end), [byte, after @ ..]) if *byte == end => {
                let ends = after.first().is_none_or(u8::is_ascii_whitespace);
                return ends.then_some(after);
            }
            (Some(b'"'), [b'\\', b'x', high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                out.push(hex(*high) << 4 | hex(*low));
                rest = after;
            }
            (Some(b'"'), [b'\\', escaped, after @ ..]) => {
                out.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = after;
            }
            (Some(b'\''), [b'\\', b'\'', after @ ..]) => {
                out.push(b'\'');
                rest = after;
            }
            (_, [byte, after @ ..]) => {
                out.push(*byte);
                rest = after;
            }
        }
    }
}

fn hex(digit: u8) -> u8 {
    char::from(digit).to_digit(16).unwrap_or(0) as u8
}

#[cfg(test)]
mod tests;
