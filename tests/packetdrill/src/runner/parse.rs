//! From text to events.

use super::script::{Action, Argument, Call, Ecn, Event, Opt, Packet, Segment, When, flag};

type Parsed<T> = Result<T, String>;

/// Reads a script: an event on each line that is not empty or a comment.
pub(super) fn script(text: &str) -> Parsed<Vec<Event>> {
    let mut events = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let event = event(line).map_err(|e| format!("line {}: {e}", number + 1))?;
        events.push(Event { line: number + 1, ..event });
    }
    Ok(events)
}

fn event(line: &str) -> Parsed<Event> {
    let (time, rest) = line.split_once(char::is_whitespace).ok_or("no event after the time")?;
    let rest = rest.trim();
    let action = if let Some(packet) = rest.strip_prefix('<') {
        Action::In(self::packet(packet.trim())?)
    } else if let Some(packet) = rest.strip_prefix('>') {
        Action::Out(self::packet(packet.trim())?)
    } else {
        Action::Call(call(rest)?)
    };
    Ok(Event { line: 0, when: when(time)?, action })
}

/// Microseconds from decimal seconds.
fn microseconds(text: &str) -> Parsed<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 6 {
        return Err(format!("{text:?} is finer than a microsecond"));
    }
    let digits = format!("{whole}{part:0<6}");
    digits.parse().map_err(|_| format!("{text:?} is no time"))
}

fn when(text: &str) -> Parsed<When> {
    let (relative, body) = match text.strip_prefix('+') {
        Some(body) => (true, body),
        None => (false, text),
    };
    if let Some((start, end)) = body.split_once("...") {
        if !relative {
            return Err("a call that waits has its time after the event before".to_owned());
        }
        return Ok(When::During(microseconds(start)?, microseconds(end)?));
    }
    if let Some((start, end)) = body.split_once('~') {
        if !relative {
            return Err("a range of times is after the event before".to_owned());
        }
        let end = end.strip_prefix('+').unwrap_or(end);
        return Ok(When::Between(microseconds(start)?, microseconds(end)?));
    }
    let time = microseconds(body)?;
    Ok(if relative { When::After(time) } else { When::At(time) })
}

fn number<T: TryFrom<i64>>(text: &str) -> Parsed<T> {
    let text = text.trim();
    let value = match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    value.ok().and_then(|v| T::try_from(v).ok()).ok_or(format!("{text:?} is no number here"))
}

fn packet(text: &str) -> Parsed<Packet> {
    if let Some(rest) = text.strip_prefix("icmp unreachable frag_needed mtu ") {
        let (mtu, about) = rest.split_once('[').ok_or("no segment after the MTU")?;
        let (seq, _) = sequence(about.trim_end_matches(']'))?;
        return Ok(Packet::TooBig { mtu: number(mtu)?, seq });
    }
    let mut segment = Segment::default();
    let mut text = text;
    if let Some(rest) = text.strip_prefix('[') {
        let (name, rest) = rest.split_once(']').ok_or("no ] after the ECN codepoint")?;
        segment.ecn = Some(match name {
            "noecn" => Ecn::NotCapable,
            "ect0" => Ecn::Capable0,
            "ect1" => Ecn::Capable1,
            "ce" => Ecn::Congested,
            _ => return Err(format!("{name:?} is no ECN codepoint")),
        });
        text = rest.trim();
    }
    let (head, options) = match text.split_once('<') {
        Some((head, options)) => (head, Some(options.strip_suffix('>').ok_or("no > at the end")?)),
        None => (text, None),
    };
    let mut words = head.split_whitespace();
    segment.flags = flags(words.next().ok_or("no flags")?)?;
    (segment.seq, segment.len) = sequence(words.next().ok_or("no sequence numbers")?)?;
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("no number after {word:?}"))?;
        match word {
            "ack" => segment.ack = number(value)?,
            "win" => segment.window = Some(number(value)?),
            _ => return Err(format!("{word:?} is not understood")),
        }
    }
    segment.options = match options {
        Some("...") => None,
        Some(list) => Some(self::options(list)?),
        None => Some(Vec::new()),
    };
    Ok(Packet::Tcp(segment))
}

fn flags(text: &str) -> Parsed<u8> {
    text.chars().try_fold(0, |flags, letter| {
        let flag = match letter {
            'F' => flag::FIN,
            'S' => flag::SYN,
            'R' => flag::RST,
            'P' => flag::PSH,
            '.' => flag::ACK,
            'E' => flag::ECE,
            'W' => flag::CWR,
            _ => return Err(format!("{letter:?} is no flag")),
        };
        Ok(flags | flag)
    })
}

/// `start:end(len)`.
fn sequence(text: &str) -> Parsed<(u32, u16)> {
    let wrong = || format!("{text:?} is no range of sequence numbers");
    let (start, rest) = text.split_once(':').ok_or_else(wrong)?;
    let (end, len) = rest.strip_suffix(')').and_then(|r| r.split_once('(')).ok_or_else(wrong)?;
    let (start, end, len): (u32, u32, u16) = (number(start)?, number(end)?, number(len)?);
    if end.wrapping_sub(start) != u32::from(len) {
        return Err(wrong());
    }
    Ok((start, len))
}

fn options(list: &str) -> Parsed<Vec<Opt>> {
    let mut options = Vec::new();
    for text in list.split(',').map(str::trim) {
        let words: Vec<&str> = text.split_whitespace().collect();
        options.push(match words[..] {
            ["nop"] => Opt::Nop,
            ["mss", mss] => Opt::Mss(number(mss)?),
            ["wscale", shift] => Opt::Scale(number(shift)?),
            ["sackOK"] => Opt::SackPermitted,
            ["sack", ref blocks @ ..] => {
                let block = |text: &&str| -> Parsed<(u32, u32)> {
                    let (start, end) = text.split_once(':').ok_or("a SACK block has a :")?;
                    Ok((number(start)?, number(end)?))
                };
                Opt::Sack(blocks.iter().map(block).collect::<Parsed<_>>()?)
            }
            ["TS", "val", value, "ecr", echo] => {
                Opt::Timestamps { value: number(value)?, echo: number(echo)? }
            }
            _ => return Err(format!("{text:?} is no option")),
        });
    }
    Ok(options)
}

fn call(text: &str) -> Parsed<Call> {
    let (name, rest) = text.split_once('(').ok_or(format!("{text:?} is no call"))?;
    let (inside, outcome) = rest.split_once(") =").ok_or("a call has arguments and a result")?;
    // What is in parentheses explains: -1 EAGAIN (Resource temporarily unavailable).
    let outcome = outcome.split('(').next().unwrap_or_default();
    let mut words = outcome.split_whitespace();
    let result = number(words.next().ok_or("a call has no result")?)?;
    Ok(Call {
        name: name.trim().to_owned(),
        arguments: arguments(inside)?,
        result,
        error: words.next().map(str::to_owned),
    })
}

fn arguments(text: &str) -> Parsed<Vec<Argument>> {
    let mut arguments = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = match rest.as_bytes()[0] {
            b'{' => rest.find('}').ok_or("no } after {")? + 1,
            _ => rest.find(',').unwrap_or(rest.len()),
        };
        arguments.push(argument(rest[..end].trim())?);
        rest = rest[end..].trim_start().trim_start_matches(',').trim_start();
    }
    Ok(arguments)
}

fn argument(text: &str) -> Parsed<Argument> {
    if text == "..." {
        return Ok(Argument::Any);
    }
    if let Some(inside) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return Ok(Argument::At(value(inside)?));
    }
    if let Some(inside) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        let field = |name: &str| -> Parsed<i32> {
            let mut fields = inside.split(',').filter_map(|f| f.split_once('='));
            let (_, text) = fields.find(|(n, _)| n.trim() == name).ok_or(format!("no {name}"))?;
            number(text)
        };
        return Ok(Argument::Linger(field("onoff")?, field("linger")?));
    }
    Ok(Argument::Number(value(text)?))
}

/// A number, a name of C's, or several with | between.
fn value(text: &str) -> Parsed<i64> {
    text.split('|').try_fold(0, |all, word| {
        let word = word.trim();
        let one = match constant(word) {
            Some(value) => value,
            None => number(word)?,
        };
        Ok(all | one)
    })
}

/// Names of C's that scripts use.
pub(super) fn constant(name: &str) -> Option<i64> {
    Some(i64::from(match name {
        "SOCK_STREAM" => libc::SOCK_STREAM,
        "IPPROTO_TCP" | "SOL_TCP" => libc::IPPROTO_TCP,
        "SOL_SOCKET" => libc::SOL_SOCKET,
        "SO_REUSEADDR" => libc::SO_REUSEADDR,
        "SO_KEEPALIVE" => libc::SO_KEEPALIVE,
        "SO_LINGER" => libc::SO_LINGER,
        "SO_ERROR" => libc::SO_ERROR,
        "SO_RCVBUF" => libc::SO_RCVBUF,
        "SO_SNDBUF" => libc::SO_SNDBUF,
        "TCP_NODELAY" => libc::TCP_NODELAY,
        "TCP_CORK" => libc::TCP_CORK,
        "TCP_MAXSEG" => libc::TCP_MAXSEG,
        "TCP_KEEPIDLE" => libc::TCP_KEEPIDLE,
        "TCP_KEEPINTVL" => libc::TCP_KEEPINTVL,
        "TCP_KEEPCNT" => libc::TCP_KEEPCNT,
        "TCP_USER_TIMEOUT" => libc::TCP_USER_TIMEOUT,
        "F_GETFL" => libc::F_GETFL,
        "F_SETFL" => libc::F_SETFL,
        "O_RDWR" => libc::O_RDWR,
        "O_NONBLOCK" => libc::O_NONBLOCK,
        "SHUT_RD" => libc::SHUT_RD,
        "SHUT_WR" => libc::SHUT_WR,
        "SHUT_RDWR" => libc::SHUT_RDWR,
        "MSG_DONTWAIT" => libc::MSG_DONTWAIT,
        "MSG_PEEK" => libc::MSG_PEEK,
        "MSG_MORE" => libc::MSG_MORE,
        "EAGAIN" => libc::EAGAIN,
        "EALREADY" => libc::EALREADY,
        "EBADF" => libc::EBADF,
        "ECONNREFUSED" => libc::ECONNREFUSED,
        "ECONNRESET" => libc::ECONNRESET,
        "EINPROGRESS" => libc::EINPROGRESS,
        "EINVAL" => libc::EINVAL,
        "EISCONN" => libc::EISCONN,
        "ENOTCONN" => libc::ENOTCONN,
        "EPIPE" => libc::EPIPE,
        "ETIMEDOUT" => libc::ETIMEDOUT,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        assert_eq!(when("0"), Ok(When::At(0)));
        assert_eq!(when("+.1"), Ok(When::After(100_000)));
        assert_eq!(when("+1.2~+1.250"), Ok(When::Between(1_200_000, 1_250_000)));
        assert_eq!(when("+0...0.3"), Ok(When::During(0, 300_000)));
        assert!(when("+x").is_err());
        assert!(when("+.0000001").is_err());
    }

    #[test]
    fn reads_packets() {
        let line = "+.2 < [ce] SEW 7:7(0) ack 9 win 257 <mss 1460,sackOK,TS val 1 ecr 2>";
        let event = &script(line).unwrap()[0];
        let Action::In(Packet::Tcp(segment)) = &event.action else {
            panic!("{event:?}");
        };
        assert_eq!(segment.ecn, Some(Ecn::Congested));
        assert_eq!(segment.flags, flag::SYN | flag::ECE | flag::CWR);
        assert_eq!((segment.seq, segment.len, segment.ack), (7, 0, 9));
        assert_eq!(segment.window, Some(257));
        let stamps = Opt::Timestamps { value: 1, echo: 2 };
        let options = vec![Opt::Mss(1460), Opt::SackPermitted, stamps];
        assert_eq!(segment.options, Some(options));
        let line = "+0 < icmp unreachable frag_needed mtu 600 [1:1461(1460)]";
        let action = Action::In(Packet::TooBig { mtu: 600, seq: 1 });
        assert_eq!(script(line).unwrap()[0].action, action);
    }

    #[test]
    fn reads_calls() {
        let line = "+0 setsockopt(3, SOL_SOCKET, SO_LINGER, {onoff=1, linger=0}, 8) = -1 EBADF (x)";
        let Action::Call(call) = &script(line).unwrap()[0].action else {
            panic!();
        };
        assert_eq!(call.arguments[0], Argument::Number(3));
        assert_eq!(call.arguments[3], Argument::Linger(1, 0));
        assert_eq!((call.result, call.error.as_deref()), (-1, Some("EBADF")));
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        let error = script("// a comment\n+0 > Q 1:1(0)").unwrap_err();
        assert!(error.starts_with("line 2:"), "{error}");
        assert!(script("+0 > . 1:2(3)").is_err());
        assert!(script("+0 > . 1:1(0) wim 3").is_err());
    }
}
