//! The requests that the client sends, and its judgement of the responses:
//! HTTP/1.1 (RFC 9112), as much of it as a load generator needs.

/// Bytes of the shortest request that [`request`] can build.
pub const REQUEST_LEN_MIN: usize = 128;
/// Bytes of the longest.
pub const REQUEST_LEN_MAX: usize = 64 * 1024;
/// The body that the guest's server answers with, said here once more: what is
/// expected does not come from what is tested.
pub const BODY: &[u8; 64] = b"Served from a buffer that the NIC filled and nobody has copied.\n";
/// Bytes of the longest response head that is read before it counts as wrong.
const HEAD_LEN_MAX: usize = 4096;

/// A POST of exactly `len` bytes, head and body together, to `host`. The body
/// is printable and of no period that a power of two could hide. `len` is
/// brought within [`REQUEST_LEN_MIN`] and [`REQUEST_LEN_MAX`].
pub fn request(len: usize, host: std::net::SocketAddrV4) -> Vec<u8> {
    let len = len.clamp(REQUEST_LEN_MIN, REQUEST_LEN_MAX);
    let head = |body: usize| {
        format!("POST /demo HTTP/1.1\r\nHost: {host}\r\nContent-Length: {body}\r\n\r\n")
    };
    // The number of digits depends on the body's length, and that on the number
    // of digits: where one digit more leaves a byte over, zeros stand in front.
    let digits =
        (1..=5).find(|&d| len - (head(0).len() - 1 + d) < 10usize.pow(d as u32)).unwrap_or(5);
    let body = len - (head(0).len() - 1 + digits);
    let mut bytes =
        format!("POST /demo HTTP/1.1\r\nHost: {host}\r\nContent-Length: {body:0digits$}\r\n\r\n")
            .into_bytes();
    bytes.extend((0..body).map(|i| b'!' + (i % 89) as u8));
    bytes
}

/// A response with status 200 and `body`, with the fields and the length that
/// the guest's server gives it, so that both move the same bytes.
pub fn response(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
         Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// What the beginning of a byte stream is, as a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The right response, and this many bytes long.
    Right(usize),
    /// Right so far, and not yet whole.
    Unfinished,
    /// Not the response: what is wrong with it.
    Wrong(Fault),
}

/// What is wrong with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The status line is not `HTTP/1.1 200`.
    Status,
    /// The head has no end, or no length, or two.
    Head,
    /// The length is not that of the expected body.
    Length,
    /// A byte of the body differs.
    Body,
}

/// Judges `bytes` against a response with status 200 and exactly `body`.
pub fn judge(bytes: &[u8], body: &[u8]) -> Judgement {
    const STATUS: &[u8] = b"HTTP/1.1 200 ";
    let start = bytes.len().min(STATUS.len());
    if bytes[..start] != STATUS[..start] {
        return Judgement::Wrong(Fault::Status);
    }
    let Some(head_len) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_LEN_MAX {
            Judgement::Wrong(Fault::Head)
        } else {
            Judgement::Unfinished
        };
    };
    match content_length(&bytes[..head_len]) {
        None => return Judgement::Wrong(Fault::Head),
        Some(len) if len != body.len() => return Judgement::Wrong(Fault::Length),
        Some(_) => {}
    }
    let got = &bytes[head_len + 4..];
    let len = got.len().min(body.len());
    if got[..len] != body[..len] {
        return Judgement::Wrong(Fault::Body);
    }
    if got.len() < body.len() {
        return Judgement::Unfinished;
    }
    Judgement::Right(head_len + 4 + body.len())
}

/// The value of the one Content-Length of a head; `None` if there is not one.
fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut found = None;
    for line in head.split(|&b| b == b'\n').skip(1) {
        if line.len() < NAME.len() || !line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            continue;
        }
        let value = std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()?;
        if found.replace(value).is_some() {
            return None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;

    const HOST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 80);

    #[test]
    fn requests_of_every_length_are_exactly_that_long() {
        for len in (REQUEST_LEN_MIN..3000).chain([9_999, 10_000, 10_100, REQUEST_LEN_MAX]) {
            let bytes = request(len, HOST);
            assert_eq!(bytes.len(), len);
            let head_len = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            assert_eq!(content_length(&bytes[..head_len]), Some(len - head_len - 4));
        }
        assert_eq!(request(0, HOST).len(), REQUEST_LEN_MIN);
        assert_eq!(request(usize::MAX, HOST).len(), REQUEST_LEN_MAX);
    }

    #[test]
    fn a_request_is_one_to_a_parser_not_ours() {
        let bytes = request(1400, HOST);
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut parsed = httparse::Request::new(&mut headers);
        let head = parsed.parse(&bytes).unwrap().unwrap();
        assert_eq!((parsed.method, parsed.path), (Some("POST"), Some("/demo")));
        let length = parsed.headers.iter().find(|h| h.name == "Content-Length").unwrap();
        let length: usize = std::str::from_utf8(length.value).unwrap().parse().unwrap();
        assert_eq!(head + length, 1400);
    }

    #[test]
    fn the_right_response_is_right_and_its_beginnings_are_unfinished() {
        let whole = response(BODY);
        for end in 0..whole.len() {
            assert_eq!(judge(&whole[..end], BODY), Judgement::Unfinished, "first {end} bytes");
        }
        assert_eq!(judge(&whole, BODY), Judgement::Right(whole.len()));
        let two = [whole.clone(), whole.clone()].concat();
        assert_eq!(judge(&two, BODY), Judgement::Right(whole.len()));
    }

    #[test]
    fn any_wrong_byte_of_the_body_is_caught() {
        let right = response(BODY);
        for at in right.len() - 64..right.len() {
            for flip in [1u8, 0x20, 0x80, 0xff] {
                let mut wrong = right.clone();
                wrong[at] ^= flip;
                assert_eq!(judge(&wrong, BODY), Judgement::Wrong(Fault::Body), "byte {at}");
            }
        }
    }

    #[test]
    fn wrong_heads_are_caught() {
        let judge_text = |text: &str| judge(text.as_bytes(), BODY);
        for (text, fault) in [
            ("HTTP/1.1 500 no", Fault::Status),
            ("HTTP/1.0 200 OK", Fault::Status),
            ("x", Fault::Status),
            ("HTTP/1.1 200 OK\r\n\r\n", Fault::Head),
            ("HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", Fault::Head),
            ("HTTP/1.1 200 OK\r\nContent-Length: 64\r\nContent-Length: 64\r\n\r\n", Fault::Head),
            ("HTTP/1.1 200 OK\r\nContent-Length: 63\r\n\r\n", Fault::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 65\r\n\r\n", Fault::Length),
        ] {
            assert_eq!(judge_text(text), Judgement::Wrong(fault), "{text:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(HEAD_LEN_MAX));
        assert_eq!(judge_text(&endless), Judgement::Wrong(Fault::Head));
    }
}
