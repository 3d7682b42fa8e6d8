//! The slot: a 32-byte record that names a buffer and says what is in it.
//!
//! | offset | size | field | meaning |
//! | --- | --- | --- | --- |
//! | 0 | 4 | `buf_idx` | buffer index in the region, or [`NO_BUFFER`] |
//! | 4 | 2 | `len` | payload bytes |
//! | 6 | 2 | `offset` | where they start in the buffer |
//! | 8 | 2 | `flags` | low byte: [`Event`] or [`Request`]; high byte: modifiers |
//! | 10 | 2 | `csum` | to the guest: Internet checksum of the payload alone |
//! | 12 | 4 | `flow` | flow name |
//! | 16 | 8 | `cookie` | a word of the application's |
//! | 24 | 8 | `time` | to the guest: arrival, ns since the Unix epoch |
//!
//! Every event and request keeps `flags` and `flow` where they are; some give
//! the other fields another meaning, which the constructors and views below
//! embody.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::NO_BUFFER;
use crate::frame::RECORD_LEN;

/// A flow as the guest names it: an index and a generation, so that a stale
/// name is recognised. Listeners are named in the same way, in a space of
/// their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Flow(pub u32);

impl Flow {
    /// Bits of the index; the generation has the rest.
    pub const INDEX_BITS: u32 = 20;
    /// Flows that can be named at once.
    pub const INDEX_MAX: u32 = 1 << Flow::INDEX_BITS;
    /// Generations that an index goes through before one comes back.
    pub const GENERATIONS: u32 = 1 << (32 - Flow::INDEX_BITS);

    /// Names the flow at `index` in its `generation`; both are cut to their bits.
    pub const fn new(index: u32, generation: u32) -> Flow {
        Flow((generation << Flow::INDEX_BITS) | (index & (Flow::INDEX_MAX - 1)))
    }

    /// The index.
    pub const fn index(self) -> u32 {
        self.0 & (Flow::INDEX_MAX - 1)
    }

    /// The generation.
    pub const fn generation(self) -> u32 {
        self.0 >> Flow::INDEX_BITS
    }
}

/// What a slot tells the guest (low byte of `flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// In-order payload of `flow`. The guest now owns the buffer.
    Data = 0,
    /// A listener has a new flow; see [`Slot::accepted`].
    Accepted = 1,
    /// An active open succeeded; `cookie` is the request's.
    Connected = 2,
    /// The peer sends no more (FIN). The flow can still be sent on.
    Fin = 3,
    /// The flow is gone; `len` is a [`Reason`]. The name is dead from here on.
    Reset = 4,
    /// The peer has acknowledged the slot with this `cookie`; `len` is a
    /// [`Reason`], not `Ok` where the flow ended first. With [`KEEP`], `buf_idx`
    /// is the guest's again; with [`SHARE`], it has one send less under way.
    Acked = 5,
    /// The flow takes slots again after a refusal with [`Reason::FlowFull`].
    Writable = 6,
    /// The outcome of a LISTEN, UNLISTEN or CONNECT with this `cookie`: `len` is a
    /// [`Reason`] and `flow` names the listener or flow where it is `Ok`.
    Reply = 7,
    /// A request was refused: `len` is a [`Reason`], the rest is the request's.
    /// A buffer that the guest owned is still the guest's.
    Refused = 8,
    /// Both sides have closed and everything is acknowledged. The name is dead
    /// from here on.
    Closed = 9,
    /// The outcome of the SEAL with this `cookie`; `len` is a [`Reason`]. If it is
    /// `Ok`, every range that was named before that SEAL is durable.
    Flushed = 10,
    /// Only in INLINE frames: the beginning of a DATA that did not fit; see
    /// [`crate::inline`].
    Piece = 11,
}

/// What a slot asks of the host (low byte of `flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Request {
    /// Send `len` bytes at `offset` of `buf_idx` on `flow`. The buffer is the
    /// host's until it is acknowledged.
    Data = 0,
    /// Send FIN after everything sent so far.
    Close = 1,
    /// Send RST and forget the flow.
    Abort = 2,
    /// Accept flows; see [`Slot::listen`].
    Listen = 3,
    /// Stop accepting on the listener named by `flow`.
    Unlisten = 4,
    /// Open a flow; see [`Slot::connect`].
    Connect = 5,
    /// Set an option of `flow`: `len` is an [`Opt`], `cookie` its value.
    SetOpt = 6,
    /// Ask for `len` buffers to fill. Answered by GRANT frames as buffers become
    /// free, so to ask again is to ask for more: of at most [`WANTED_MAX`] in all.
    Want = 7,
    /// Names a range that the next SEAL makes durable; see [`Slot::flush`].
    Flush = 8,
    /// Makes the ranges named since the last SEAL durable. Answered by
    /// [`Event::Flushed`] with the same `cookie`.
    Seal = 9,
    /// The guest keeps durable data in `buf_idx`: the buffer no longer counts
    /// against the window of the flow that it came on.
    Store = 10,
    /// Only in INLINE frames: the beginning of a DATA that did not fit; see
    /// [`crate::inline`].
    Piece = 11,
}

/// Options of a flow, for [`Request::SetOpt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Opt {
    /// Seconds without traffic before keepalive probes; 0 turns them off
    /// (RFC 9293 section 3.8.4).
    KeepAlive = 1,
    /// Milliseconds that sent data may stay unacknowledged before the flow is
    /// reset; 0 for the default (RFC 9293 section 3.9.1, user timeout).
    UserTimeout = 2,
}

impl Opt {
    /// The option with this number.
    pub const fn from_u16(value: u16) -> Option<Opt> {
        Some(match value {
            1 => Opt::KeepAlive,
            2 => Opt::UserTimeout,
            _ => return None,
        })
    }
}

/// Outcomes and reasons, in `len` of replies, refusals and resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Reason {
    /// Done.
    Ok = 0,
    /// The peer sent RST.
    PeerReset = 1,
    /// Nothing acknowledged for too long.
    TimedOut = 2,
    /// The guest asked for it (ABORT), or its channel closed.
    Aborted = 3,
    /// The peer refused the connection (RST to our SYN).
    Refused = 4,
    /// No route, or no answer from the neighbour.
    Unreachable = 5,
    /// The name's flow or listener does not exist, or no longer, or is another channel's.
    StaleFlow = 16,
    /// The buffer is not the guest's, or does not exist.
    ForeignBuffer = 17,
    /// `offset` and `len` do not lie between the headroom and the buffer's end.
    BadRange = 18,
    /// The flow's send queue is full; wait for [`Event::Writable`].
    FlowFull = 19,
    /// The request's kind, option or value is unknown.
    BadRequest = 20,
    /// The local port is taken.
    PortInUse = 21,
    /// No flow, listener or buffer is left.
    NoRoom = 22,
    /// The flow was closed for sending.
    Closed = 23,
    /// An address of a family, or a port number, that cannot be used.
    BadAddress = 24,
    /// What was to be durable is not.
    NotDurable = 25,
    /// A frame was missing: the sequence has a gap.
    SequenceGap = 32,
    /// More frames than the limit allowed.
    OverCredit = 33,
    /// The peer's versions and ours have none in common.
    Version = 34,
    /// A frame that does not parse, or does not belong here.
    BadFrame = 35,
    /// The other side goes down in good order.
    Shutdown = 36,
}

impl Reason {
    /// The reason with this number.
    pub const fn from_u16(value: u16) -> Option<Reason> {
        Some(match value {
            0 => Reason::Ok,
            1 => Reason::PeerReset,
            2 => Reason::TimedOut,
            3 => Reason::Aborted,
            4 => Reason::Refused,
            5 => Reason::Unreachable,
            16 => Reason::StaleFlow,
            17 => Reason::ForeignBuffer,
            18 => Reason::BadRange,
            19 => Reason::FlowFull,
            20 => Reason::BadRequest,
            21 => Reason::PortInUse,
            22 => Reason::NoRoom,
            23 => Reason::Closed,
            24 => Reason::BadAddress,
            25 => Reason::NotDurable,
            32 => Reason::SequenceGap,
            33 => Reason::OverCredit,
            34 => Reason::Version,
            35 => Reason::BadFrame,
            36 => Reason::Shutdown,
            _ => return None,
        })
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Reason::Ok => "done",
            Reason::PeerReset => "the peer reset the connection",
            Reason::TimedOut => "the peer acknowledged nothing for too long",
            Reason::Aborted => "aborted by the guest",
            Reason::Refused => "the peer refused the connection",
            Reason::Unreachable => "no route to the peer, or no answer from the neighbour",
            Reason::StaleFlow => "no such flow or listener on this channel",
            Reason::ForeignBuffer => "the buffer is not the guest's",
            Reason::BadRange => "the range is not between the headroom and the buffer's end",
            Reason::FlowFull => "the flow's send queue is full",
            Reason::BadRequest => "unknown request, option or value",
            Reason::PortInUse => "the local port is in use",
            Reason::NoRoom => "no flow, listener or buffer is left",
            Reason::Closed => "the flow is closed for sending",
            Reason::BadAddress => "the address or port cannot be used",
            Reason::NotDurable => "what was to be durable could not be made so",
            Reason::SequenceGap => "a frame is missing from the sequence",
            Reason::OverCredit => "more frames than the limit allowed",
            Reason::Version => "no protocol version in common",
            Reason::BadFrame => "a malformed or misplaced frame",
            Reason::Shutdown => "orderly shutdown",
        })
    }
}

/// Modifier (to the guest, on DATA): `csum` holds the checksum of the payload
/// as the peer's TCP computed it. Without it, `csum` is zero.
pub const CSUM_VALID: u8 = 0x01;
/// Modifier (to the host, on DATA): send [`Event::Acked`] when the peer has
/// acknowledged this slot.
pub const NOTIFY: u8 = 0x02;
/// Modifier (to the host, on DATA, and back on ACKED): the buffer becomes the
/// guest's again, instead of the pool's, when acknowledged. Implies [`NOTIFY`].
pub const KEEP: u8 = 0x04;
/// Modifier (to the host, on DATA): wait for the last SEAL before this slot, and
/// do not send if it failed.
pub const DURABLE: u8 = 0x08;
/// Modifier (to the host, on DATA, and back on ACKED): the buffer stays the
/// guest's, who does not write to it, and may be sent many times at once.
/// Implies [`NOTIFY`].
pub const SHARE: u8 = 0x10;
/// Modifier (to the host, on SEAL): the guest knows of the failure of all
/// earlier SEALs that failed, and named again what it still needs.
pub const AGAIN: u8 = 0x20;

/// Buffers that one channel can have asked for ([`Request::Want`]) and not been
/// granted yet. The host forgets what is beyond.
pub const WANTED_MAX: u32 = 4096;

/// A slot, in host byte order.
///
/// Any 32 bytes are a slot; whether its names are good is for the host to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    /// Buffer index, or [`NO_BUFFER`].
    pub buf_idx: u32,
    /// Payload bytes, or a [`Reason`] where the kind says so.
    pub len: u16,
    /// Where the payload starts in the buffer.
    pub offset: u16,
    /// [`Event`] or [`Request`], as its number.
    pub kind: u8,
    /// [`CSUM_VALID`], [`NOTIFY`], [`KEEP`], [`DURABLE`], [`SHARE`], [`AGAIN`].
    pub modifiers: u8,
    /// Internet checksum (RFC 1071) of the payload, complemented as on the wire.
    pub csum: u16,
    /// The flow.
    pub flow: Flow,
    /// A word of the application's.
    pub cookie: u64,
    /// Arrival, ns since the Unix epoch.
    pub time: u64,
}

const _: () = assert!(size_of::<Slot>() == RECORD_LEN);

impl Default for Slot {
    fn default() -> Slot {
        Slot {
            buf_idx: NO_BUFFER,
            len: 0,
            offset: 0,
            kind: 0,
            modifiers: 0,
            csum: 0,
            flow: Flow(0),
            cookie: 0,
            time: 0,
        }
    }
}

impl Slot {
    /// Reads a slot from its record.
    pub fn read(b: &[u8; RECORD_LEN]) -> Slot {
        let u64_at = |i: usize| {
            u64::from_le_bytes([
                b[i],
                b[i + 1],
                b[i + 2],
                b[i + 3],
                b[i + 4],
                b[i + 5],
                b[i + 6],
                b[i + 7],
            ])
        };
        Slot {
            buf_idx: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            len: u16::from_le_bytes([b[4], b[5]]),
            offset: u16::from_le_bytes([b[6], b[7]]),
            kind: b[8],
            modifiers: b[9],
            csum: u16::from_le_bytes([b[10], b[11]]),
            flow: Flow(u32::from_le_bytes([b[12], b[13], b[14], b[15]])),
            cookie: u64_at(16),
            time: u64_at(24),
        }
    }

    /// Writes the slot as its record.
    pub fn write(&self, b: &mut [u8; RECORD_LEN]) {
        b[0..4].copy_from_slice(&self.buf_idx.to_le_bytes());
        b[4..6].copy_from_slice(&self.len.to_le_bytes());
        b[6..8].copy_from_slice(&self.offset.to_le_bytes());
        b[8] = self.kind;
        b[9] = self.modifiers;
        b[10..12].copy_from_slice(&self.csum.to_le_bytes());
        b[12..16].copy_from_slice(&self.flow.0.to_le_bytes());
        b[16..24].copy_from_slice(&self.cookie.to_le_bytes());
        b[24..32].copy_from_slice(&self.time.to_le_bytes());
    }

    /// A slot of this kind about `flow`, with no buffer.
    pub fn event(event: Event, flow: Flow) -> Slot {
        Slot { kind: event as u8, flow, ..Slot::default() }
    }

    /// A request of this kind about `flow`, with no buffer.
    pub fn request(request: Request, flow: Flow) -> Slot {
        Slot { kind: request as u8, flow, ..Slot::default() }
    }

    /// The event, if the number is one.
    pub const fn as_event(&self) -> Option<Event> {
        Some(match self.kind {
            0 => Event::Data,
            1 => Event::Accepted,
            2 => Event::Connected,
            3 => Event::Fin,
            4 => Event::Reset,
            5 => Event::Acked,
            6 => Event::Writable,
            7 => Event::Reply,
            8 => Event::Refused,
            9 => Event::Closed,
            10 => Event::Flushed,
            11 => Event::Piece,
            _ => return None,
        })
    }

    /// The request, if the number is one.
    pub const fn as_request(&self) -> Option<Request> {
        Some(match self.kind {
            0 => Request::Data,
            1 => Request::Close,
            2 => Request::Abort,
            3 => Request::Listen,
            4 => Request::Unlisten,
            5 => Request::Connect,
            6 => Request::SetOpt,
            7 => Request::Want,
            8 => Request::Flush,
            9 => Request::Seal,
            10 => Request::Store,
            11 => Request::Piece,
            _ => return None,
        })
    }

    /// ACCEPTED: `buf_idx` is the listener's name, `len` the peer's port,
    /// `offset` the local port, `cookie` and `time` the peer's address (IPv4
    /// as an IPv4-mapped IPv6 address, RFC 4291 section 2.5.5.2, in network
    /// order of bytes).
    pub fn accepted(flow: Flow, listener: Flow, peer: SocketAddr, local_port: u16) -> Slot {
        let mut slot = Slot::event(Event::Accepted, flow);
        slot.buf_idx = listener.0;
        slot.len = peer.port();
        slot.offset = local_port;
        slot.set_address(peer.ip());
        slot
    }

    /// The listener of an ACCEPTED slot.
    pub const fn listener(&self) -> Flow {
        Flow(self.buf_idx)
    }

    /// The peer of an ACCEPTED slot, or the remote address of a CONNECT.
    pub fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.address(), self.len)
    }

    /// LISTEN: `offset` is the local port, `len` the backlog (flows not yet
    /// established), and `cookie` comes back in the REPLY.
    pub fn listen(port: u16, backlog: u16, cookie: u64) -> Slot {
        Slot {
            len: backlog,
            offset: port,
            cookie,
            ..Slot::request(Request::Listen, Flow::default())
        }
    }

    /// CONNECT: `len` is the remote port, `offset` the local port or 0 for any,
    /// `cookie` and `time` the remote address as in ACCEPTED. `buf_idx` comes
    /// back as the `cookie` of the REPLY and of CONNECTED.
    pub fn connect(remote: SocketAddr, local_port: u16, cookie: u32) -> Slot {
        let mut slot = Slot::request(Request::Connect, Flow::default());
        slot.buf_idx = cookie;
        slot.len = remote.port();
        slot.offset = local_port;
        slot.set_address(remote.ip());
        slot
    }

    /// FLUSH: `cookie` is where the range starts in the guest's mapping, `time`
    /// its length, both in bytes.
    pub fn flush(start: u64, len: u64) -> Slot {
        Slot { cookie: start, time: len, ..Slot::request(Request::Flush, Flow::default()) }
    }

    /// The range of a FLUSH slot: its start and its length.
    pub const fn range(&self) -> (u64, u64) {
        (self.cookie, self.time)
    }

    /// SEAL: `cookie` is the ticket that FLUSHED brings back.
    pub fn seal(ticket: u64, again: bool) -> Slot {
        let modifiers = if again { AGAIN } else { 0 };
        Slot { cookie: ticket, modifiers, ..Slot::request(Request::Seal, Flow::default()) }
    }

    fn set_address(&mut self, ip: IpAddr) {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word = u128::from_le_bytes(octets);
        self.cookie = word as u64;
        self.time = (word >> 64) as u64;
    }

    fn address(&self) -> IpAddr {
        let word = u128::from(self.cookie) | (u128::from(self.time) << 64);
        let v6 = Ipv6Addr::from(word.to_le_bytes());
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4))
    }
}
