//! The far ends of all flows: who makes the requests' frames and judges the
//! responses. One implementation for every stack that is measured, and as cheap
//! as can be: a frame is a template in which a few words change, its payload
//! lies in the buffer already, and its checksum follows by arithmetic.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Payload bytes of a request.
pub const REQUEST_LEN: usize = 1400;
/// Payload bytes of a response.
pub const RESPONSE_LEN: usize = 64;
/// Ethernet, IPv4, TCP, and the timestamps option.
pub const HEADER_LEN: usize = 14 + 20 + 20 + 12;
/// The header of a SYN, with its options.
pub const SYN_LEN: usize = 54 + 20;
/// Where the TCP header starts.
const TCP: usize = 34;
/// The byte that requests are made of.
pub const REQUEST_BYTE: u8 = 0x51;
/// The port that is served.
pub const PORT: u16 = 80;
/// The address that is served, in a network that all peers are in.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Bits of that network's prefix.
pub const PREFIX_LEN: u8 = 8;
/// The Ethernet address that is served.
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The Ethernet address that all peers share.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The first peer's address.
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// Flows from one peer's address, from port [`PORT_FIRST`] on.
const PORTS: u32 = 50_000;
const PORT_FIRST: u16 = 1024;
/// Where peers begin to count.
const ISS: u32 = 0x7fff_0000;
/// The window that peers offer, not scaled.
const WINDOW: u16 = 60_000;

/// Control bits of the TCP header.
pub mod flag {
    /// The last segment.
    pub const FIN: u8 = 0x01;
    /// The first segment.
    pub const SYN: u8 = 0x02;
    /// End of a message.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// One peer's end of a flow.
#[derive(Clone, Copy, Debug)]
struct Peer {
    address: u32,
    port: u16,
    /// Its next sequence number.
    seq: u32,
    /// The next sequence number that it expects.
    ack: u32,
    /// The timestamp that it echoes.
    echo: u32,
}

/// All peers, in the order in which they send.
#[derive(Debug)]
pub struct Peers {
    peers: Box<[Peer]>,
    /// For the flow with this number, its place among the peers.
    places: Box<[u32]>,
    /// The peers' timestamp.
    time: u32,
    template: [u8; HEADER_LEN],
    /// The sum of the template and of the pseudo-header but for what changes.
    sum: u32,
    /// The sum of a request.
    request_sum: u32,
    /// Time that they took in turns that are measured.
    spent: Duration,
}

/// The order in which flows have their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they were opened.
    Sequential,
    /// One and the same random permutation, again and again.
    Random,
}

impl Order {
    /// Its name in tables and rows.
    pub fn name(self) -> &'static str {
        match self {
            Order::Sequential => "sequential",
            Order::Random => "random",
        }
    }

    /// The numbers below `count` in this order.
    fn numbers(self, count: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..count).collect();
        if self == Order::Random {
            // Fisher and Yates, with a xorshift generator: the same each time.
            let mut state = 0x9e37_79b9_7f4a_7c15u64;
            for last in (1..numbers.len()).rev() {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                numbers.swap(last, (state % (last as u64 + 1)) as usize);
            }
        }
        numbers
    }
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0))).sum()
}

fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

fn fold(mut sum: u32) -> u16 {
    sum = halves(sum);
    halves(sum) as u16
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Peers {
    /// `count` peers that have sent nothing yet, and that will send in `order`.
    pub fn new(count: u32, order: Order) -> Peers {
        let mut template = [0; HEADER_LEN];
        template[..6].copy_from_slice(&SERVER_MAC);
        template[6..12].copy_from_slice(&PEER_MAC);
        template[12..14].copy_from_slice(&[8, 0]);
        template[14] = 0x45;
        // Don't fragment; time to live, and the protocol.
        template[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
        template[30..34].copy_from_slice(&SERVER.octets());
        template[36..38].copy_from_slice(&PORT.to_be_bytes());
        template[46] = 8 << 4;
        template[48..50].copy_from_slice(&WINDOW.to_be_bytes());
        template[54..58].copy_from_slice(&[1, 1, 8, 10]);
        let numbers = order.numbers(count);
        let mut places = vec![0; numbers.len()].into_boxed_slice();
        for (place, &number) in numbers.iter().enumerate() {
            places[number as usize] = place as u32;
        }
        let peer = |&number: &u32| Peer {
            address: u32::from(PEER) + number / PORTS,
            port: PORT_FIRST + (number % PORTS) as u16,
            seq: ISS,
            ack: 0,
            echo: 0,
        };
        Peers {
            peers: numbers.iter().map(peer).collect(),
            places,
            time: 1,
            sum: words(&template[TCP..]) + words(&SERVER.octets()) + 6,
            request_sum: words(&[REQUEST_BYTE; REQUEST_LEN]),
            spent: Duration::ZERO,
            template,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.peers.len()
    }

    /// Where the flow with this number comes in their order.
    pub fn place(&self, number: usize) -> usize {
        self.places[number] as usize
    }

    /// The number of the flow of this peer address and port.
    pub fn number(address: u32, port: u16) -> usize {
        let address = address.wrapping_sub(u32::from(PEER));
        (address.wrapping_mul(PORTS) + u32::from(port.wrapping_sub(PORT_FIRST))) as usize
    }

    /// What the peers do for a whole batch, where and when they do it in a turn: with
    /// many flows they wait for the memory as the stack does, and longer than alone.
    #[inline]
    pub fn timed<R>(&mut self, work: impl FnOnce(&mut Peers) -> R) -> R {
        let start = Instant::now();
        let result = work(self);
        self.spent += start.elapsed();
        result
    }

    /// Time that all of [`Peers::timed`] took since this was called last.
    pub fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }

    /// Sets the peers' clock, in ms.
    pub fn set_time(&mut self, ms: u64) {
        self.time = ms as u32 + 1;
    }

    /// What lies behind the header of a request, of [`REQUEST_LEN`] bytes.
    pub fn set_request(&mut self, bytes: &[u8]) {
        self.request_sum = words(bytes);
    }

    /// Starts the peer at `place` anew, for another connection.
    pub fn restart(&mut self, place: usize) {
        // Beyond whatever the last one used.
        self.peers[place].seq = self.peers[place].seq.wrapping_add(1 << 20);
        self.peers[place].ack = 0;
        self.peers[place].echo = 0;
    }

    /// Writes the header of the next segment of the peer at `place` to `out`, in
    /// front of `len` bytes that lie there: none, or a request.
    #[inline]
    pub fn segment(&mut self, place: usize, flags: u8, len: usize, out: &mut [u8]) {
        let peer = &mut self.peers[place];
        let out: &mut [u8; HEADER_LEN] = out.try_into().expect("room for just the header");
        *out = self.template;
        let total = (HEADER_LEN - 14 + len) as u16;
        out[16..18].copy_from_slice(&total.to_be_bytes());
        out[26..30].copy_from_slice(&peer.address.to_be_bytes());
        let address = halves(peer.address);
        let server = halves(u32::from(SERVER));
        let ip = 0x4500 + 0x4000 + 0x4006 + u32::from(total) + address + server;
        out[24..26].copy_from_slice(&(!fold(ip)).to_be_bytes());
        out[34..36].copy_from_slice(&peer.port.to_be_bytes());
        out[38..42].copy_from_slice(&peer.seq.to_be_bytes());
        out[42..46].copy_from_slice(&peer.ack.to_be_bytes());
        out[47] = flags;
        out[58..62].copy_from_slice(&self.time.to_be_bytes());
        out[62..66].copy_from_slice(&peer.echo.to_be_bytes());
        let payload = if len == 0 { 0 } else { self.request_sum };
        let sum = self.sum
            + halves(payload)
            + u32::from(total - 20)
            + address
            + u32::from(peer.port)
            + halves(peer.seq)
            + halves(peer.ack)
            + u32::from(flags)
            + halves(self.time)
            + halves(peer.echo);
        out[50..52].copy_from_slice(&(!fold(sum)).to_be_bytes());
        let fin = u32::from(flags & flag::FIN != 0);
        peer.seq = peer.seq.wrapping_add(len as u32 + fin);
    }

    /// Writes the SYN of the peer at `place` to `out`, of [`SYN_LEN`] bytes.
    pub fn syn(&mut self, place: usize, out: &mut [u8]) {
        self.segment(place, flag::SYN, 0, &mut out[..HEADER_LEN]);
        let peer = &mut self.peers[place];
        peer.seq = peer.seq.wrapping_add(1);
        // MSS 1460; SACK permitted and timestamps; a window scale of 7.
        out[54..60].copy_from_slice(&[2, 4, 5, 0xb4, 4, 2]);
        out[60..62].copy_from_slice(&[8, 10]);
        out[62..66].copy_from_slice(&self.time.to_be_bytes());
        out[66..70].copy_from_slice(&[0; 4]);
        out[70..74].copy_from_slice(&[1, 3, 3, 7]);
        out[46] = 10 << 4;
        let total = (SYN_LEN - 14) as u16;
        out[16..18].copy_from_slice(&total.to_be_bytes());
        out[24..26].fill(0);
        let sum = !fold(words(&out[14..TCP]));
        out[24..26].copy_from_slice(&sum.to_be_bytes());
        out[50..52].fill(0);
        let pseudo = words(&out[26..TCP]) + 6 + u32::from(total - 20);
        let sum = !fold(pseudo + words(&out[TCP..SYN_LEN]));
        out[50..52].copy_from_slice(&sum.to_be_bytes());
    }

    /// Takes a segment from the server, of which `head` is the header and `len`
    /// the payload's length, and judges it: it must be the next one. Gives the
    /// place of its peer and its control bits.
    #[inline]
    pub fn take(&mut self, head: &[u8], len: usize) -> (usize, u8) {
        self.accept(head, len).expect("the segment that the peer expects")
    }

    /// Whether a segment begins before what its peer expects: it was sent again.
    pub fn is_repeated(&self, head: &[u8]) -> bool {
        let port = u16::from_be_bytes([head[36], head[37]]);
        let place = self.places.get(Peers::number(be32(head, 30), port));
        place.is_some_and(|&place| {
            (be32(head, 38).wrapping_sub(self.peers[place as usize].ack) as i32) < 0
        })
    }

    /// As [`Peers::take`]; `None` if it is not the next one, or nobody's.
    #[inline]
    pub fn accept(&mut self, head: &[u8], len: usize) -> Option<(usize, u8)> {
        let port = u16::from_be_bytes([head[36], head[37]]);
        let place = *self.places.get(Peers::number(be32(head, 30), port))? as usize;
        let peer = &mut self.peers[place];
        let flags = head[47];
        if flags & flag::SYN != 0 {
            peer.ack = be32(head, 38);
        }
        if be32(head, 38) != peer.ack || be32(head, 42) != peer.seq {
            return None;
        }
        let control = u32::from(flags & (flag::SYN | flag::FIN) != 0);
        peer.ack = peer.ack.wrapping_add(len as u32 + control);
        peer.echo = be32(head, timestamp(head));
        Some((place, flags))
    }
}

/// Where our peer's timestamp lies in a segment.
#[inline]
fn timestamp(head: &[u8]) -> usize {
    // The usual place, or walk.
    if head[54..58] == [1, 1, 8, 10] {
        return 58;
    }
    let mut at = 54;
    loop {
        match head[at] {
            8 => return at + 2,
            0 | 1 => at += 1,
            _ => at += usize::from(head[at + 1]),
        }
    }
}
