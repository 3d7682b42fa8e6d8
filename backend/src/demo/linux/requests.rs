//! A stream of HTTP requests, as the servers over kernel sockets read it, however the
//! kernel cuts it: heads are parsed by the parser that the guest's server uses, bodies
//! are counted and passed over.

/// Bytes of the longest request head; a longer one ends its connection.
const HEAD_LEN_MAX: usize = 16 * 1024;
/// Headers of a request at most.
const HEADERS_MAX: usize = 32;

/// Where a connection is in its stream of requests.
#[derive(Debug, Default)]
pub struct Requests {
    /// The beginning of a head.
    partial: Vec<u8>,
    /// Bytes of a body that are still to come.
    body_left: Option<usize>,
}

/// What a piece of the stream contained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Requests that are whole now.
    pub requests: u64,
    /// The last of them asks for the connection to end.
    pub last: bool,
}

/// A stream that is not HTTP, or more than the server reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Requests {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// [`Malformed`]: the connection is to be ended.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Found, Malformed> {
        if self.partial.is_empty() {
            let rest = self.walk(bytes)?;
            self.partial.extend_from_slice(&bytes[bytes.len() - rest.1..]);
            return Ok(rest.0);
        }
        let mut joined = std::mem::take(&mut self.partial);
        joined.extend_from_slice(bytes);
        let (found, rest) = self.walk(&joined)?;
        joined.drain(..joined.len() - rest);
        self.partial = joined;
        Ok(found)
    }

    /// Walks over requests; returns what was found, and how many bytes at the
    /// end are the beginning of a head.
    fn walk(&mut self, mut bytes: &[u8]) -> Result<(Found, usize), Malformed> {
        let mut found = Found::default();
        loop {
            if let Some(left) = self.body_left {
                if bytes.len() < left {
                    self.body_left = Some(left - bytes.len());
                    return Ok((found, 0));
                }
                bytes = &bytes[left..];
                self.body_left = None;
                found.requests += 1;
            }
            if bytes.is_empty() || found.last {
                return Ok((found, 0));
            }
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut request = httparse::Request::new(&mut headers);
            let head_len = match request.parse(bytes) {
                Ok(httparse::Status::Complete(len)) => len,
                Ok(httparse::Status::Partial) if bytes.len() <= HEAD_LEN_MAX => {
                    return Ok((found, bytes.len()));
                }
                _ => return Err(Malformed),
            };
            found.last = request.version == Some(0);
            let mut body = 0;
            for header in request.headers.iter() {
                if header.name.eq_ignore_ascii_case("content-length") {
                    let text = std::str::from_utf8(header.value).map_err(|_| Malformed)?;
                    body = text.trim().parse().map_err(|_| Malformed)?;
                } else if header.name.eq_ignore_ascii_case("connection") {
                    found.last = header.value.eq_ignore_ascii_case(b"close");
                } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                    return Err(Malformed);
                }
            }
            bytes = &bytes[head_len..];
            self.body_left = Some(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(requests: u64, last: bool) -> Result<Found, Malformed> {
        Ok(Found { requests, last })
    }

    #[test]
    fn requests_are_found_however_the_stream_is_cut() {
        let stream = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello\
            GET / HTTP/1.1\r\n\r\nPOST /x HTTP/1.1\r\ncontent-length: 0\r\n\r\n";
        for cut in 1..stream.len() {
            let mut requests = Requests::default();
            let total: u64 =
                stream.chunks(cut).map(|piece| requests.take(piece).unwrap().requests).sum();
            assert_eq!(total, 3, "cut every {cut} bytes");
            assert!(requests.partial.is_empty() && requests.body_left.is_none());
        }
    }

    #[test]
    fn the_end_of_a_connection_is_the_requests_wish() {
        let take = |text: &str| Requests::default().take(text.as_bytes());
        assert_eq!(take("GET / HTTP/1.1\r\n\r\n"), found(1, false));
        assert_eq!(take("GET / HTTP/1.0\r\n\r\n"), found(1, true));
        assert_eq!(take("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), found(1, false));
        assert_eq!(take("GET / HTTP/1.1\r\nConnection: close\r\n\r\n"), found(1, true));
    }

    #[test]
    fn what_is_not_http_ends_the_connection() {
        let take = |text: &str| Requests::default().take(text.as_bytes());
        assert_eq!(take("\0\0\0"), Err(Malformed));
        assert_eq!(take("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), Err(Malformed));
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(take(chunked), Err(Malformed));
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(HEAD_LEN_MAX));
        assert_eq!(take(&endless), Err(Malformed));
    }
}
