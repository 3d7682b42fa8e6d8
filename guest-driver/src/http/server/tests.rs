use super::*;
use crate::channel::Options;
use crate::transport::loopback::{self, BUFFERS, Handle};
use paste_abi::{Event as SlotEvent, Request, Slot};

const FLOW: Flow = Flow::new(2, 5);
const RESERVE: u32 = 16;
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

struct Rig {
    channel: Channel,
    server: Server,
    host: Handle,
}

impl Rig {
    fn new(options: ServerOptions) -> Rig {
        let (transport, host) = loopback::pair();
        let options_of_channel = Options { reserve: RESERVE, queue: 64, ..Options::default() };
        let mut channel = Channel::open_on(transport, options_of_channel).unwrap();
        let server = Server::new(&mut channel, &options).unwrap();
        let mut rig = Rig { channel, server, host };
        rig.turns(2);
        rig.host.lock().accept(FLOW);
        rig.turns(1);
        rig
    }

    fn fixed() -> Rig {
        Rig::new(ServerOptions { body_max: 1000, ..ServerOptions::default() })
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.server.turn(&mut self.channel, Timeout::Now).unwrap();
        }
    }

    fn feed(&mut self, payload: &[u8]) {
        self.host.lock().data(FLOW, payload);
        self.turns(2);
    }

    fn answer(&mut self) -> String {
        String::from_utf8(self.host.lock().sent(FLOW)).unwrap()
    }

    fn asked(&self, request: Request) -> bool {
        let host = self.host.lock();
        host.requests.iter().any(|slot| slot.flow == FLOW && slot.as_request() == Some(request))
    }

    /// Everything that the flow held has gone back.
    fn assert_nothing_held(&mut self) {
        self.turns(2);
        let granted = self.channel.stats().granted as usize;
        assert_eq!(self.channel.stats().held, 0);
        assert_eq!(self.host.lock().pool.len() + granted, BUFFERS as usize);
    }
}

/// Splits answers into (status, body), checking that the lengths add up.
fn answers(mut text: &str) -> Vec<(u16, String)> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let (head, rest) = text.split_once("\r\n\r\n").expect("a whole head");
        let status = head[9..12].parse().unwrap();
        let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let len = len.map_or(0, |len| len.parse().unwrap());
        found.push((status, rest[..len].to_owned()));
        text = &rest[len..];
    }
    found
}

fn statuses(text: &str) -> Vec<u16> {
    answers(text).iter().map(|(status, _)| *status).collect()
}

#[test]
fn it_listens_and_answers_from_the_buffer_of_the_request() {
    let mut rig = Rig::fixed();
    let listen = rig.host.lock().requests[0];
    assert_eq!((listen.as_request(), listen.offset), (Some(Request::Listen), 80));
    let buffer = rig.host.lock().data(FLOW, GET);
    rig.turns(2);
    let sent = *rig.host.lock().requests.back().unwrap();
    assert_eq!((sent.buf_idx, sent.offset), (buffer, loopback::HEADROOM));
    let found = answers(&rig.answer());
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0, found[0].1.len()), (200, 64));
    assert_eq!(rig.channel.stats().bytes_copied, 0);
    rig.assert_nothing_held();
}

/// A body is compared with the digest that came with it, whole or in pieces, in
/// chunks or not; and the next request is read after it all the same.
#[test]
fn a_body_with_another_digest_is_refused() {
    let plain = "Content-Length: 9\r\n\r\n123456789";
    let chunked = "Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n5\r\n56789\r\n0\r\n\r\n";
    let empty = "Content-Length: 0\r\n\r\n";
    for (digest, body, status) in [
        ("4waSgw==", plain, 200),
        ("4waSgw==", chunked, 200),
        ("4waSgQ==", plain, 400),
        ("4waSgQ==", chunked, 400),
        ("4waSgw==", empty, 400),
        ("AAAAAA==", empty, 200),
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Digest: crc32c=:{digest}:\r\n{body}\
             POST / HTTP/1.1\r\nHost: a\r\n{plain}"
        );
        for cut in 1..request.len() {
            let mut rig = Rig::fixed();
            rig.feed(&request.as_bytes()[..cut]);
            rig.feed(&request.as_bytes()[cut..]);
            assert_eq!(statuses(&rig.answer()), [status, 200], "cut at {cut}: {request}");
        }
    }
}

/// Requests of every kind in a row, cut in two at every byte: always the same
/// answers.
#[test]
fn answers_do_not_depend_on_where_slots_begin() {
    let requests = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\
        POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
        POST /y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
        4;a=b\r\nabcd\r\nA\r\n0123456789\r\n0\r\nT: u\r\n\r\n\
        HEAD / HTTP/1.1\r\nHost: a\r\n\r\n\
        PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok\
        GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut rig = Rig::fixed();
    rig.feed(requests);
    let whole = rig.answer();
    assert_eq!(whole.matches("HTTP/1.1 200").count(), 5);
    assert_eq!(whole.matches("HTTP/1.1 405").count(), 1);
    for cut in 1..requests.len() {
        let mut rig = Rig::fixed();
        rig.server.shared.date.renew(0);
        rig.feed(&requests[..cut]);
        let early = rig.answer();
        rig.feed(&requests[cut..]);
        let text = early + &rig.answer();
        let shape = |text: &str| {
            text.lines().filter(|l| !l.starts_with("Date")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(shape(&text), shape(&whole), "cut at {cut}");
        assert!(rig.asked(Request::Close), "cut at {cut}");
        rig.assert_nothing_held();
    }
}

#[test]
fn a_head_in_single_bytes_is_put_together() {
    let mut rig = Rig::fixed();
    for byte in GET {
        rig.feed(&[*byte]);
    }
    assert_eq!(statuses(&rig.answer()), [200]);
    assert_eq!(rig.channel.stats().bytes_copied, GET.len() as u64);
    rig.feed(GET);
    assert_eq!(statuses(&rig.answer()), [200]);
    rig.assert_nothing_held();
}

#[test]
fn requests_of_one_slot_are_answered_in_one() {
    let mut rig = Rig::fixed();
    rig.feed(&GET.repeat(5));
    let data = |slot: &&Slot| slot.as_request() == Some(Request::Data);
    assert_eq!(rig.host.lock().requests.iter().filter(data).count(), 1);
    assert_eq!(statuses(&rig.answer()), [200; 5]);
    rig.assert_nothing_held();
}

#[test]
fn errors_are_answered_and_the_flow_closed() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(4200));
    let endless = "a".repeat(9000);
    for (request, status) in [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (&*long, 414),
        (&*endless, 431),
    ] {
        let mut rig = Rig::fixed();
        for piece in request.as_bytes().chunks(1400) {
            rig.feed(piece);
        }
        let text = rig.answer();
        assert_eq!(statuses(&text), [status], "{request}");
        assert!(text.contains("Connection: close"));
        assert!(rig.asked(Request::Close), "{request}");
        // What comes after is not read, and its buffers go back.
        rig.feed(GET);
        assert_eq!(rig.answer(), "");
        rig.assert_nothing_held();
    }
}

#[test]
fn a_body_is_invited() {
    let mut rig = Rig::fixed();
    rig.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(rig.answer(), "HTTP/1.1 100 Continue\r\n\r\n");
    rig.feed(b"body");
    assert_eq!(statuses(&rig.answer()), [200]);
    rig.assert_nothing_held();
}

#[test]
fn http_1_0_closes_unless_asked_to_stay() {
    let mut rig = Rig::fixed();
    rig.feed(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(!rig.asked(Request::Close));
    rig.feed(b"GET / HTTP/1.0\r\n\r\n");
    assert!(rig.asked(Request::Close));
    assert_eq!(statuses(&rig.answer()), [200, 200]);
    rig.assert_nothing_held();
}

#[test]
fn a_peer_that_ends_is_answered_first() {
    let mut rig = Rig::fixed();
    rig.host.lock().data(FLOW, GET);
    rig.host.lock().slots(&[Slot::event(SlotEvent::Fin, FLOW)]);
    rig.turns(2);
    assert_eq!(statuses(&rig.answer()), [200]);
    assert!(rig.asked(Request::Close));
}

#[test]
fn a_file_is_sent_whole_with_few_buffers_and_a_slow_peer() {
    let directory = tempfile::tempdir().unwrap();
    let content: String = ('a'..='z').cycle().take(200_000).collect();
    std::fs::write(directory.path().join("big.txt"), &content).unwrap();
    let root = Some(directory.path().to_owned());
    let mut rig = Rig::new(ServerOptions { root, ..ServerOptions::default() });
    rig.feed(b"GET /big.txt HTTP/1.1\r\nHost: a\r\n\r\nHEAD /big.txt HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut text = String::new();
    loop {
        // The peer acknowledges what the server asked to hear of.
        let asked: Vec<_> = {
            let host = rig.host.lock();
            let data = host.requests.iter().filter(|s| s.as_request() == Some(Request::Data));
            assert!(data.clone().count() <= 64);
            data.filter(|s| s.modifiers != 0).map(|s| s.cookie).collect()
        };
        let more = rig.answer();
        text += &more;
        for cookie in asked {
            let acked = Slot { cookie, ..Slot::event(SlotEvent::Acked, FLOW) };
            rig.host.lock().slots(&[acked]);
        }
        rig.turns(3);
        // Buffers that are asked for in vain are asked for again after a time.
        if more.is_empty() && text.matches("HTTP/1.1 200").count() == 2 {
            break;
        }
    }
    let (head, rest) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("Content-Type: text/plain") && head.contains("Content-Length: 200000"));
    assert!(rest[..200_000] == content);
    assert!(rest[200_000..].contains("Content-Length: 200000"));
    assert!(rest.ends_with("\r\n\r\n"), "HEAD has no body");
    rig.feed(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(statuses(&rig.answer()), [404, 405]);
}

#[test]
fn a_peer_that_does_not_read_is_not_served_on() {
    let mut rig = Rig::fixed();
    for _ in 0..200 {
        if rig.host.lock().pool.is_empty() {
            break;
        }
        rig.feed(GET);
        let host = rig.host.lock();
        // Sent, and never acknowledged; the buffers are tight for the host.
        let sent = host.requests.iter().filter(|s| s.as_request() == Some(Request::Data)).count();
        assert!(sent <= 64);
    }
    // The flow ends, and all that it held is given back.
    rig.host.lock().slots(&[Slot::event(SlotEvent::Reset, FLOW)]);
    rig.turns(2);
    assert_eq!(rig.channel.stats().held, 0);
    rig.host.lock().sent(FLOW);
    rig.assert_nothing_held();
}

#[test]
fn flows_wait_for_buffers_and_go_on_when_there_are_some() {
    let mut rig = Rig::fixed();
    // The application lacks buffers to fill: the pool is empty for it.
    let mut taken = Vec::new();
    while let Some(buffer) = rig.channel.take_buffer() {
        taken.push(buffer);
    }
    let pool = {
        let mut host = rig.host.lock();
        let keep = host.pool.pop().unwrap();
        let rest = std::mem::take(&mut host.pool);
        host.pool.push(keep);
        rest
    };
    rig.feed(&GET.repeat(3));
    assert_eq!(rig.answer(), "", "the first answer needs a buffer of its own");
    rig.host.lock().pool.extend(pool);
    for buffer in taken.drain(..) {
        rig.channel.give_back(buffer);
    }
    rig.channel.want(4).unwrap();
    rig.turns(4);
    assert_eq!(statuses(&rig.answer()), [200; 3]);
    rig.assert_nothing_held();
}

#[test]
fn data_that_was_refused_resets_the_flow() {
    let mut rig = Rig::fixed();
    rig.feed(GET);
    let sent = rig.host.lock().requests.pop_back().unwrap();
    let len = Reason::FlowFull as u16;
    let refused = Slot { len, ..Slot::event(SlotEvent::Refused, FLOW) };
    rig.host.lock().slots(&[Slot { buf_idx: sent.buf_idx, offset: sent.offset, ..refused }]);
    rig.turns(2);
    assert!(rig.asked(Request::Abort));
    rig.assert_nothing_held();
}

#[test]
fn names_of_other_generations_are_ignored() {
    let mut rig = Rig::fixed();
    let stale = Flow::new(FLOW.index(), FLOW.generation() + 1);
    rig.host.lock().data(stale, GET);
    rig.host.lock().slots(&[Slot::event(SlotEvent::Reset, stale)]);
    rig.turns(2);
    rig.feed(GET);
    assert_eq!(statuses(&rig.answer()), [200]);
    rig.assert_nothing_held();
}

#[test]
fn it_listens_again_on_a_channel_that_was_lost() {
    let mut rig = Rig::fixed();
    rig.feed(b"GET / HT");
    rig.host.lock().bye(Reason::Shutdown);
    let listening = |rig: &Rig| {
        rig.host.lock().requests.iter().any(|s| s.as_request() == Some(Request::Listen))
    };
    rig.turns(1);
    while rig.host.lock().hellos < 2 || !listening(&rig) {
        rig.turns(1);
    }
    rig.host.lock().accept(FLOW);
    rig.feed(GET);
    assert_eq!(statuses(&rig.answer()), [200]);
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let mut rig = Rig::fixed();
    let cookie = rig.host.lock().requests[0].cookie;
    let len = Reason::PortInUse as u16;
    let reply = Slot { len, cookie, ..Slot::event(SlotEvent::Reply, Flow(0)) };
    rig.host.lock().slots(&[reply]);
    let error = rig.server.turn(&mut rig.channel, Timeout::Now).unwrap_err();
    assert!(matches!(error, ServeError::Listen { port: 80, reason: Reason::PortInUse }));
}
