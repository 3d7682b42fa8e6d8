//! Request heads and chunked bodies (RFC 9112), from bytes that a stranger sent.

use super::respond::Status;

/// The longest request head, in bytes.
pub(super) const HEAD_MAX: usize = 8192;
/// The longest request target, in bytes.
const TARGET_MAX: usize = 4096;
/// Header fields in one request.
const FIELDS_MAX: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Other,
}

/// What follows the head (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes, perhaps none.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// A request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) method: Method,
    pub(super) target: &'a str,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) body: Body,
    /// CRC32C that the body has, says the peer.
    pub(super) digest: Option<u32>,
    /// Bytes of the head.
    pub(super) len: usize,
}

/// Parses the head at the front of `bytes`; `None` if it is not complete yet.
/// The error is the status to answer with before closing.
pub(super) fn head(bytes: &[u8]) -> Result<Option<Head<'_>>, Status> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Status::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(Status::VersionNotSupported),
        Err(_) => return Err(Status::BadRequest),
    };
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Status::BadRequest);
    };
    if target.len() > TARGET_MAX {
        return Err(Status::TargetTooLong);
    }
    let mut seen = Fields::default();
    for field in request.headers.iter() {
        seen.take(field.name, field.value)?;
    }
    let modern = version == 1;
    // RFC 9112 section 3.2: exactly one Host in HTTP/1.1.
    if seen.hosts > 1 || (modern && seen.hosts == 0) {
        return Err(Status::BadRequest);
    }
    let body = match (seen.encoding, seen.length) {
        (Encoding::None, length) => Body::Length(length.unwrap_or(0)),
        // Section 6.1: both together, or an encoding in HTTP/1.0, may be an
        // attempt at smuggling a request past somebody in between.
        (_, Some(_)) => return Err(Status::BadRequest),
        _ if !modern => return Err(Status::BadRequest),
        (Encoding::Chunked, None) => Body::Chunked,
        (Encoding::Other, None) => return Err(Status::NotImplemented),
    };
    Ok(Some(Head {
        method: match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            _ => Method::Other,
        },
        target,
        keep_alive: !seen.close && (modern || seen.keep_alive),
        // RFC 9110 section 10.1.1: ignored from an HTTP/1.0 client.
        expects_continue: modern && seen.expects_continue && body != Body::Length(0),
        body,
        digest: seen.digest,
        len,
    }))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Encoding {
    #[default]
    None,
    Chunked,
    Other,
}

/// The fields that matter.
#[derive(Default)]
struct Fields {
    hosts: usize,
    length: Option<u64>,
    encoding: Encoding,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    digest: Option<u32>,
}

impl Fields {
    fn take(&mut self, name: &str, value: &[u8]) -> Result<(), Status> {
        if name.eq_ignore_ascii_case("host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case("content-length") {
            let length = decimal(value).ok_or(Status::BadRequest)?;
            // Section 6.3: repeated, it must at least say the same.
            if self.length.is_some_and(|before| before != length) {
                return Err(Status::BadRequest);
            }
            self.length = Some(length);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            // Anything but one single `chunked` is more than this server knows.
            let chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            let first = self.encoding == Encoding::None;
            self.encoding = if chunked && first { Encoding::Chunked } else { Encoding::Other };
        } else if name.eq_ignore_ascii_case("connection") {
            for token in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                self.close |= token.eq_ignore_ascii_case(b"close");
                self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name.eq_ignore_ascii_case("expect") {
            if !value.trim_ascii().eq_ignore_ascii_case(b"100-continue") {
                return Err(Status::ExpectationFailed);
            }
            self.expects_continue = true;
        } else if name.eq_ignore_ascii_case("content-digest") {
            self.digest = digest(value)?.or(self.digest);
        }
        Ok(())
    }
}

/// The CRC32C among the digests of a body: `crc32c=:a2Wv9w==:` (RFC 9530 section
/// 2), four bytes in network order. The algorithms that resist an attacker are
/// left to those who can trust the answer.
fn digest(value: &[u8]) -> Result<Option<u32>, Status> {
    let mut members = value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
    let Some(text) = members.find_map(|member| member.strip_prefix(b"crc32c=")) else {
        return Ok(None);
    };
    let text = text.strip_prefix(b":").and_then(|text| text.strip_suffix(b"==:"));
    // Six digits of base64 (RFC 4648 section 4) are 36 bits, the last 4 unused.
    let text = text.filter(|text| text.len() == 6).ok_or(Status::BadRequest)?;
    let bits = text.iter().try_fold(0u64, |bits, &digit| {
        let digit = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        Some(bits << 6 | u64::from(digit))
    });
    bits.map(|bits| Some((bits >> 4) as u32)).ok_or(Status::BadRequest)
}

fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// Where in a chunked body the next byte is (RFC 9112 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
}

/// Finds the end of a chunked body, however it is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    part: Part,
    /// Size of the chunk, while it is read; bytes left of it afterwards.
    left: u64,
    /// Digits of the size, bytes of the extension, or bytes of all trailers.
    count: u32,
    total: u64,
}

impl Chunks {
    /// Before the first byte.
    pub(super) const fn start() -> Chunks {
        Chunks { part: Part::Size, left: 0, count: 0, total: 0 }
    }
    /// Bytes of extension to a chunk's size, and of the trailer section.
    const EXTRA_MAX: u32 = 1024;

    /// Passes over body bytes, showing `content` what lies in the chunks: returns
    /// how many of `bytes` belong to the body, and whether it ends there. `max`
    /// bounds the body, in bytes.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        max: u64,
        mut content: impl FnMut(&[u8]),
    ) -> Result<(usize, bool), Status> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.part == Part::Data {
                let step = self.left.min((bytes.len() - at) as u64);
                content(&bytes[at..at + step as usize]);
                self.left -= step;
                at += step as usize;
                if self.left == 0 {
                    self.part = Part::DataCr;
                }
                continue;
            }
            at += 1;
            self.part = self.step(byte, max)?;
            if self.part == Part::LastLf && byte == b'\n' {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    fn step(&mut self, byte: u8, max: u64) -> Result<Part, Status> {
        let expect = |wanted: u8, next: Part| {
            if byte == wanted { Ok(next) } else { Err(Status::BadRequest) }
        };
        match self.part {
            Part::Size => match (char::from(byte).to_digit(16), byte) {
                // Sixteen digits fill 64 bits.
                (Some(digit), _) if self.count < 16 => {
                    self.count += 1;
                    self.left = self.left << 4 | u64::from(digit);
                    Ok(Part::Size)
                }
                (None, b'\r') if self.count > 0 => Ok(Part::SizeLf),
                (None, b';' | b' ' | b'\t') if self.count > 0 => {
                    self.count = 0;
                    Ok(Part::Extension)
                }
                _ => Err(Status::BadRequest),
            },
            Part::Extension if byte == b'\r' => Ok(Part::SizeLf),
            Part::Extension if byte == b'\n' => Err(Status::BadRequest),
            Part::Extension => self.extra().map(|()| Part::Extension),
            Part::SizeLf => {
                self.count = 0;
                self.total = self.total.saturating_add(self.left);
                if self.total > max {
                    return Err(Status::ContentTooLarge);
                }
                expect(b'\n', if self.left == 0 { Part::TrailerStart } else { Part::Data })
            }
            Part::DataCr => expect(b'\r', Part::DataLf),
            Part::DataLf => expect(b'\n', Part::Size),
            Part::TrailerStart if byte == b'\r' => Ok(Part::LastLf),
            Part::TrailerStart | Part::Trailer if byte == b'\r' => Ok(Part::TrailerLf),
            Part::TrailerStart | Part::Trailer if byte == b'\n' => Err(Status::BadRequest),
            Part::TrailerStart | Part::Trailer => self.extra().map(|()| Part::Trailer),
            Part::TrailerLf => expect(b'\n', Part::TrailerStart),
            Part::LastLf => expect(b'\n', Part::LastLf),
            Part::Data => Ok(Part::Data),
        }
    }

    fn extra(&mut self) -> Result<(), Status> {
        self.count += 1;
        if self.count > Chunks::EXTRA_MAX { Err(Status::HeadTooLarge) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Head<'_>>, Status> {
        head(text.as_bytes())
    }

    #[test]
    fn a_plain_request() {
        let text = "GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET";
        let head = parse(text).unwrap().unwrap();
        assert_eq!((head.method, head.target, head.len), (Method::Get, "/x", text.len() - 3));
        assert!(head.keep_alive && !head.expects_continue);
        assert_eq!(head.body, Body::Length(0));
    }

    #[test]
    fn every_prefix_is_incomplete() {
        let text = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(parse(&text[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(parse(text).unwrap().unwrap().body, Body::Length(5));
    }

    #[test]
    fn how_a_connection_persists() {
        for (version, connection, keeps) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
            assert_eq!(parse(&text).unwrap().unwrap().keep_alive, keeps, "{text}");
        }
    }

    #[test]
    fn a_digest_is_found_among_others() {
        // The check value of CRC32C, over "123456789": 0xe3069283.
        for (value, digest) in [
            ("crc32c=:4waSgw==:", Ok(Some(0xe306_9283))),
            ("sha-256=:AAAA:, crc32c=:4waSgw==:", Ok(Some(0xe306_9283))),
            ("crc32c=://///w==:", Ok(Some(u32::MAX))),
            ("sha-256=:AAAA:", Ok(None)),
            ("", Ok(None)),
            ("crc32c=4waSgw==", Err(Status::BadRequest)),
            ("crc32c=:4waSg===:", Err(Status::BadRequest)),
            ("crc32c=:4waSgwA==:", Err(Status::BadRequest)),
            ("crc32c=:4wa-gw==:", Err(Status::BadRequest)),
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Digest: {value}\r\n\r\n");
            let found = parse(&text).map(|head| head.unwrap().digest);
            assert_eq!(found, digest, "{value}");
        }
    }

    #[test]
    fn what_must_be_refused() {
        let long = "a".repeat(TARGET_MAX);
        let many = "X: y\r\n".repeat(FIELDS_MAX + 1);
        let endless = "a".repeat(HEAD_MAX);
        for (text, status) in [
            ("GET / HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Status::BadRequest),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Status::VersionNotSupported),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Status::BadRequest),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", Status::BadRequest),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", Status::BadRequest),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
                Status::BadRequest,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                Status::BadRequest,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\
                 Transfer-Encoding: chunked\r\n\r\n",
                Status::BadRequest,
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Status::BadRequest),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                Status::NotImplemented,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", Status::ExpectationFailed),
            (&format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), Status::TargetTooLong),
            (&format!("GET / HTTP/1.1\r\n{many}\r\n"), Status::HeadTooLarge),
            (&format!("GET /{endless}"), Status::HeadTooLarge),
        ] {
            assert_eq!(parse(text), Err(status), "{text}");
        }
    }

    #[test]
    fn a_chunked_body_ends_where_it_ends_however_it_is_cut() {
        let body = b"5\r\nhello\r\n0A;x=y\r\n0123456789\r\n0\r\nTrailer: v\r\n\r\nGET /";
        let end = body.len() - 5;
        for cut in 0..=body.len() {
            let mut chunks = Chunks::start();
            let mut content = Vec::new();
            let (first, done) =
                chunks.feed(&body[..cut], 100, |part| content.extend_from_slice(part)).unwrap();
            assert_eq!((first, done), (cut.min(end), cut >= end), "cut at {cut}");
            if !done {
                let rest = chunks.feed(&body[cut..], 100, |part| content.extend_from_slice(part));
                assert_eq!(rest, Ok((end - cut, true)), "cut at {cut}");
            }
            assert_eq!(content, b"hello0123456789", "cut at {cut}");
        }
        let mut chunks = Chunks::start();
        for (i, byte) in body[..end].iter().enumerate() {
            assert_eq!(chunks.feed(&[*byte], 15, |_| ()), Ok((1, i + 1 == end)));
        }
        assert_eq!(Chunks::start().feed(body, 14, |_| ()), Err(Status::ContentTooLarge));
    }

    #[test]
    fn broken_chunks_are_refused() {
        for body in [
            "\r\n",
            "g\r\n",
            ";x\r\n",
            "5\n",
            "1\r\nab",
            "1\r\na\rb",
            "0\r\n\rx",
            "0\r\n\n",
            "11111111111111111\r\n",
            "5 ;\n",
        ] {
            let result = Chunks::start().feed(body.as_bytes(), u64::MAX, |_| ());
            assert_eq!(result, Err(Status::BadRequest), "{body:?}");
        }
        let long = format!("5;{}\r\n", "x".repeat(2000));
        assert_eq!(Chunks::start().feed(long.as_bytes(), 100, |_| ()), Err(Status::HeadTooLarge));
    }
}
