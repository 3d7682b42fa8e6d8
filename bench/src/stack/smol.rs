//! smoltcp doing the same work: the same frames out of the same kind of buffers,
//! one socket for each flow, polled once for what arrives and once for what goes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use paste_stack::Memory;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use super::peer::{
    self, HEADER_LEN, PEER, PEER_MAC, PREFIX_LEN, Peers, REQUEST_BYTE, REQUEST_LEN, RESPONSE_LEN,
    SERVER, SERVER_MAC, SYN_LEN, flag,
};
use super::region::Region;
use super::server::{BATCH, Server};

/// Where a frame starts in its buffer.
const RX_OFFSET: usize = 64;
/// The byte that responses are made of.
const RESPONSE_BYTE: u8 = 0x72;
/// Room of a socket: for one request, and for one response. The least that
/// does this work.
const RX_ROOM: usize = 2048;
const TX_ROOM: usize = 128;
/// Room for a frame that goes out.
const FRAME_ROOM: usize = 256;
const NS_PER_US: u64 = 1_000;

/// The clock of the sockets' timestamps, in ms: smoltcp asks a plain function.
static TIMESTAMP: AtomicU32 = AtomicU32::new(0);

fn timestamp() -> u32 {
    TIMESTAMP.load(Ordering::Relaxed)
}

/// Frames on their way in and out.
struct Wire {
    mem: Region,
    arrived: VecDeque<(u32, usize)>,
    /// Buffers of frames that were taken.
    ring: Vec<u32>,
    sent: Vec<([u8; FRAME_ROOM], usize)>,
    offload: bool,
}

struct Arrival<'a>(&'a [u8]);

impl RxToken for Arrival<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Departure<'a>(&'a mut Vec<([u8; FRAME_ROOM], usize)>);

impl TxToken for Departure<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.push(([0; FRAME_ROOM], len));
        let (frame, len) = self.0.last_mut().expect("a frame was pushed");
        f(&mut frame[..*len])
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrival<'a>;
    type TxToken<'a> = Departure<'a>;

    #[inline]
    fn receive(&mut self, _: Instant) -> Option<(Arrival<'_>, Departure<'_>)> {
        let (buf, len) = self.arrived.pop_front()?;
        self.ring.push(buf);
        Some((Arrival(self.mem.bytes(buf, RX_OFFSET, len)), Departure(&mut self.sent)))
    }

    #[inline]
    fn transmit(&mut self, _: Instant) -> Option<Departure<'_>> {
        Some(Departure(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        if self.offload {
            capabilities.checksum = ChecksumCapabilities::ignored();
        }
        capabilities
    }
}

/// The interface, its sockets, and what is around them.
pub struct Smol {
    interface: Interface,
    sockets: SocketSet<'static>,
    /// The socket of the peer at each place.
    handles: Vec<SocketHandle>,
    wire: Wire,
    now_ns: u64,
    step_ns: u64,
}

fn socket() -> Socket<'static> {
    Socket::new(SocketBuffer::new(vec![0; RX_ROOM]), SocketBuffer::new(vec![0; TX_ROOM]))
}

/// `flows` sockets.
pub fn sockets(flows: usize) -> (SocketSet<'static>, Vec<SocketHandle>) {
    let mut sockets = SocketSet::new(Vec::with_capacity(flows));
    let handles = (0..flows).map(|_| sockets.add(socket())).collect();
    (sockets, handles)
}

impl Smol {
    /// `flows` sockets that listen; the clock goes on by `step_ns` each turn.
    /// With `offload` no checksum is verified or computed.
    pub fn new(flows: usize, step_ns: u64, offload: bool) -> Smol {
        let mut mem = Region::new(2 * BATCH as u32);
        let mut ring = Vec::new();
        while let Some(buf) = mem.take() {
            mem.bytes_mut(buf, RX_OFFSET + HEADER_LEN, REQUEST_LEN).fill(REQUEST_BYTE);
            ring.push(buf);
        }
        let mut wire = Wire { mem, arrived: VecDeque::new(), ring, sent: Vec::new(), offload };
        let config = Config::new(EthernetAddress(SERVER_MAC).into());
        let now_ns = 1_000_000_000;
        let mut interface = Interface::new(config, &mut wire, instant(now_ns));
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(SERVER.into(), PREFIX_LEN);
            addresses.push(address).expect("room for one address");
        });
        let (sockets, handles) = sockets(flows);
        let mut smol = Smol { interface, sockets, handles, wire, now_ns, step_ns };
        for place in 0..flows {
            smol.listen(place);
        }
        smol.resolve();
        smol
    }

    fn listen(&mut self, place: usize) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handles[place]);
        socket.listen(peer::PORT).expect("a closed socket listens");
        socket.set_tsval_generator(Some(timestamp));
    }

    /// The peers' address becomes known to the interface as it does on a wire:
    /// by an ARP request.
    fn resolve(&mut self) {
        let mut frame = [0; 42];
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&PEER_MAC);
        frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame[22..28].copy_from_slice(&PEER_MAC);
        frame[28..32].copy_from_slice(&PEER.octets());
        frame[38..42].copy_from_slice(&SERVER.octets());
        let buf = self.wire.ring.pop().expect("a buffer in the ring");
        self.wire.mem.bytes_mut(buf, RX_OFFSET, frame.len()).copy_from_slice(&frame);
        self.wire.arrived.push_back((buf, frame.len()));
        self.poll();
        assert_eq!(self.wire.sent.len(), 1, "an ARP reply");
        self.wire.sent.clear();
    }

    fn tick(&mut self, peers: &mut Peers) {
        self.now_ns += self.step_ns;
        let ms = self.now_ns / 1_000_000;
        TIMESTAMP.store(ms as u32, Ordering::Relaxed);
        peers.set_time(ms);
    }

    #[inline]
    fn poll(&mut self) {
        self.interface.poll(instant(self.now_ns), &mut self.wire, &mut self.sockets);
    }

    #[inline]
    fn segment(&mut self, peers: &mut Peers, place: usize, flags: u8, len: usize) {
        let buf = self.wire.ring.pop().expect("a buffer in the ring");
        let head = self.wire.mem.bytes_mut(buf, RX_OFFSET, HEADER_LEN);
        peers.segment(place, flags, len, head);
        self.wire.arrived.push_back((buf, HEADER_LEN + len));
    }

    /// The peers take what was sent. With `offload` no checksum is in it.
    #[inline]
    fn take(&mut self, peers: &mut Peers) -> usize {
        let count = self.wire.sent.len();
        peers.timed(|peers| {
            for (frame, len) in &self.wire.sent {
                let head = 34 + usize::from(frame[46] >> 4) * 4;
                peers.take(&frame[..head], len - head);
            }
        });
        self.wire.sent.clear();
        count
    }
}

fn instant(ns: u64) -> Instant {
    Instant::from_micros((ns / NS_PER_US) as i64)
}

impl Server for Smol {
    fn open(&mut self, peers: &mut Peers, places: &[usize]) {
        self.tick(peers);
        for &place in places {
            let buf = self.wire.ring.pop().expect("a buffer in the ring");
            peers.syn(place, self.wire.mem.bytes_mut(buf, RX_OFFSET, SYN_LEN));
            self.wire.arrived.push_back((buf, SYN_LEN));
        }
        self.poll();
        // The header of a SYN is longer; what it spoiled is mended.
        for &buf in &self.wire.ring {
            let spoiled = SYN_LEN - HEADER_LEN;
            self.wire.mem.bytes_mut(buf, RX_OFFSET + HEADER_LEN, spoiled).fill(REQUEST_BYTE);
        }
        assert_eq!(self.take(peers), places.len(), "SYN,ACKs");
        for &place in places {
            self.segment(peers, place, flag::ACK, 0);
        }
        self.poll();
    }

    fn opened(&mut self, peers: &Peers) {
        // A SYN goes to the first socket that listens, whichever that is.
        for (handle, socket) in self.sockets.iter() {
            let smoltcp::socket::Socket::Tcp(socket) = socket;
            let remote = socket.remote_endpoint().expect("a socket that is connected");
            let smoltcp::wire::IpAddress::Ipv4(address) = remote.addr;
            let number = Peers::number(u32::from(address), remote.port);
            self.handles[peers.place(number)] = handle;
        }
    }

    #[inline]
    fn exchange(&mut self, peers: &mut Peers, places: Range<usize>) {
        self.tick(peers);
        let count = places.len();
        peers.timed(|peers| {
            for place in places.clone() {
                self.segment(peers, place, flag::ACK | flag::PSH, REQUEST_LEN);
            }
        });
        self.poll();
        // The application knows whom to ask: nothing of this is linear.
        for place in places {
            let socket = self.sockets.get_mut::<Socket<'_>>(self.handles[place]);
            let mut len = 0;
            while socket.can_recv() {
                // In two pieces when it lies around the end of the socket's buffer.
                len += socket.recv(|data| (data.len(), data.len())).expect("a request");
            }
            assert_eq!(len, REQUEST_LEN);
            let sent = socket.send_slice(&[RESPONSE_BYTE; RESPONSE_LEN]).expect("a flow to send");
            assert_eq!(sent, RESPONSE_LEN);
        }
        self.poll();
        assert_eq!(self.take(peers), count, "responses");
    }

    fn close(&mut self, peers: &mut Peers, places: Range<usize>) {
        self.tick(peers);
        let count = places.len();
        for place in places.clone() {
            self.segment(peers, place, flag::ACK | flag::FIN, 0);
        }
        self.poll();
        for place in places.clone() {
            self.sockets.get_mut::<Socket<'_>>(self.handles[place]).close();
        }
        self.poll();
        self.take(peers);
        for place in places.clone() {
            self.segment(peers, place, flag::ACK, 0);
        }
        self.poll();
        assert_eq!(count, places.len());
        for place in places {
            let socket = self.sockets.get::<Socket<'_>>(self.handles[place]);
            assert_eq!(socket.state(), State::Closed);
            self.listen(place);
            peers.restart(place);
        }
    }
}
