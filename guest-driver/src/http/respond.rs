//! Responses, written into bytes that the caller provides.

use std::io::Write;

/// Room that any response head, and any response without a file, fits into.
pub(super) const RESPONSE_MAX: usize = 512;
/// The fixed body, as in the measurements of the PASTE papers.
pub(super) const FIXED_BODY: &[u8; 64] =
    b"Served from a buffer that the NIC filled and nobody has copied.\n";
/// The interim response that invites a body (RFC 9110 section 15.2.1).
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The statuses that this server answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Status {
    Ok = 200,
    BadRequest = 400,
    NotFound = 404,
    MethodNotAllowed = 405,
    ContentTooLarge = 413,
    TargetTooLong = 414,
    ExpectationFailed = 417,
    HeadTooLarge = 431,
    NotImplemented = 501,
    Unavailable = 503,
    VersionNotSupported = 505,
}

impl Status {
    const fn phrase(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::BadRequest => "Bad Request",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::ContentTooLarge => "Content Too Large",
            Status::TargetTooLong => "URI Too Long",
            Status::ExpectationFailed => "Expectation Failed",
            Status::HeadTooLarge => "Request Header Fields Too Large",
            Status::NotImplemented => "Not Implemented",
            Status::Unavailable => "Service Unavailable",
            Status::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

/// What a response carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The fixed body.
    Fixed,
    /// So many bytes of a file, which follow the head.
    File { len: u64, media_type: &'static str },
    /// The status in words.
    Status,
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: Status,
    pub(super) content: Content,
    /// The head alone, as a HEAD request asks.
    pub(super) head_only: bool,
    pub(super) keep_alive: bool,
    /// The methods that are allowed, for a 405.
    pub(super) allow: &'static str,
}

impl Response {
    /// An error after which the connection closes.
    pub(super) fn fatal(status: Status) -> Response {
        Response {
            status,
            content: Content::Status,
            head_only: false,
            keep_alive: false,
            allow: "",
        }
    }

    /// Writes the response, without a file's bytes, and returns its length.
    /// `out` has room for [`RESPONSE_MAX`] bytes, which is always enough.
    pub(super) fn write(&self, date: &Date, out: &mut [u8]) -> usize {
        let room = out.len();
        let mut rest = out;
        // The only error of a slice is being full, which the constant excludes.
        let _ = self.write_to(date, &mut rest);
        room - rest.len()
    }

    fn write_to(&self, date: &Date, out: &mut &mut [u8]) -> std::io::Result<()> {
        let status = self.status as u16;
        let phrase = self.status.phrase();
        if self.status == Status::Ok {
            // The common case is spared the formatting machinery.
            out.write_all(b"HTTP/1.1 200 OK\r\nDate: ")?;
        } else {
            write!(out, "HTTP/1.1 {status} {phrase}\r\nDate: ")?;
        }
        out.write_all(&date.text)?;
        out.write_all(b"\r\n")?;
        if !self.keep_alive {
            out.write_all(b"Connection: close\r\n")?;
        }
        if self.status == Status::MethodNotAllowed {
            write!(out, "Allow: {}\r\n", self.allow)?;
        }
        match self.content {
            Content::Fixed => {
                out.write_all(b"Content-Type: text/plain\r\nContent-Length: 64\r\n\r\n")?;
                if !self.head_only {
                    out.write_all(FIXED_BODY)?;
                }
            }
            Content::File { len, media_type } => {
                write!(out, "Content-Type: {media_type}\r\nContent-Length: {len}\r\n\r\n")?;
            }
            Content::Status => {
                let len = phrase.len() + 5;
                write!(out, "Content-Type: text/plain\r\nContent-Length: {len}\r\n\r\n")?;
                if !self.head_only {
                    writeln!(out, "{status} {phrase}")?;
                }
            }
        }
        Ok(())
    }
}

/// The time as HTTP writes it (RFC 9110 section 5.6.7), renewed once a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    second: u64,
    text: [u8; 29],
}

impl Date {
    /// The date of a moment, in seconds since the Unix epoch.
    pub(super) fn new(second: u64) -> Date {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        // The largest year with four digits; a clock beyond it is broken.
        let shown = second.min(253_402_300_799);
        let days = shown / 86_400;
        let (year, month, day) = civil(days);
        let (hour, minute, rest) = (shown / 3600 % 24, shown / 60 % 60, shown % 60);
        let (name, month) = (DAYS[(days % 7) as usize], MONTHS[month as usize - 1]);
        let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
        let mut out = &mut text[..];
        // Fits exactly: every number has as many digits as the template.
        let _ =
            write!(out, "{name}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{rest:02} GMT");
        Date { second, text }
    }

    /// Renews the text if the second has changed.
    pub(super) fn renew(&mut self, second: u64) {
        if second != self.second {
            *self = Date::new(second);
        }
    }
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar.
/// Years are counted from March, so that the leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / DAYS_PER_ERA, shifted % DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_standard() {
        for (second, text) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_164_799, "Wed, 28 Feb 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(Date::new(second).text, text.as_bytes(), "{second}");
        }
    }

    #[test]
    fn every_response_fits_and_says_its_length() {
        let statuses = [
            Status::Ok,
            Status::BadRequest,
            Status::NotFound,
            Status::MethodNotAllowed,
            Status::ContentTooLarge,
            Status::TargetTooLong,
            Status::ExpectationFailed,
            Status::HeadTooLarge,
            Status::NotImplemented,
            Status::Unavailable,
            Status::VersionNotSupported,
        ];
        let file = Content::File { len: u64::MAX, media_type: "text/javascript; charset=utf-8" };
        for status in statuses {
            for content in [Content::Fixed, file, Content::Status] {
                let response = Response {
                    status,
                    content,
                    head_only: false,
                    keep_alive: false,
                    allow: "GET, HEAD, POST",
                };
                let mut out = [0; RESPONSE_MAX];
                let len = response.write(&Date::new(0), &mut out);
                assert!(len < RESPONSE_MAX);
                let text = String::from_utf8(out[..len].to_vec()).unwrap();
                let (head, body) = text.split_once("\r\n\r\n").unwrap();
                if content != file {
                    assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{text}");
                }
                let response = Response { head_only: true, ..response };
                let len = response.write(&Date::new(0), &mut out);
                assert_eq!(&out[..len], &text.as_bytes()[..head.len() + 4], "{text}");
            }
        }
    }
}
