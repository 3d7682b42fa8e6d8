//! A server on smoltcp over a TAP device, in one thread: one system call for each frame,
//! a socket for each connection, and all sockets looked at whenever anything has happened,
//! as smoltcp itself does. Checksums of TCP are left to the device, as everybody's are.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use paste_abi::net_hdr::{NEEDS_CSUM, NET_HDR_LEN, NetHdr};
use paste_pmem::checksum;
use pasted::demo::epoll_server::Served;
use pasted::demo::requests::Requests;
use pasted::sys::clock::monotonic_ns;
use pasted::sys::linux::demo::Tap;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};
use zerocopy::IntoBytes;

use crate::network::{MTU, PREFIX};
use crate::sys;

/// Sockets beyond those that are connected: for connections that are being opened, or that
/// are ending.
const SPARE: usize = 64;
/// Connections at once.
const CONNECTIONS_MAX: usize = 1024;
/// Room of a socket: for one request, and for a few responses.
const RX_ROOM: usize = 2048;
const TX_ROOM: usize = 1024;
/// Bytes of an Ethernet header, and of the largest frame with what stands before it.
const ETHERNET_LEN: usize = 14;
const FRAME_MAX: usize = NET_HDR_LEN + MTU as usize + ETHERNET_LEN;
/// Where IP addresses and the TCP header are in a frame without options of IP.
const IP_ADDRESSES: usize = 26;
const TCP: usize = 34;
const PROTOCOL: usize = 23;
const PROTOCOL_TCP: u8 = 6;
/// How often a server that sleeps looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// The clock of the sockets' timestamps, in ms: smoltcp asks a plain function.
static TIMESTAMP: AtomicU32 = AtomicU32::new(0);

fn timestamp() -> u32 {
    TIMESTAMP.load(Ordering::Relaxed)
}

/// The device, as smoltcp wants it.
struct Frames {
    tap: Tap,
    received: Box<[u8; FRAME_MAX]>,
    sending: Box<[u8; FRAME_MAX]>,
    error: Option<io::Error>,
}

struct Arrival<'a>(&'a [u8]);

impl RxToken for Arrival<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Departure<'a> {
    tap: &'a Tap,
    bytes: &'a mut [u8; FRAME_MAX],
    error: &'a mut Option<io::Error>,
}

impl TxToken for Departure<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let (head, rest) = self.bytes.split_at_mut(NET_HDR_LEN);
        let frame = &mut rest[..len.min(FRAME_MAX - NET_HDR_LEN)];
        let result = f(frame);
        let header = leave_checksum(frame);
        head.copy_from_slice(header.as_bytes());
        // A frame that the device does not take is lost, as on a wire.
        if let Err(error) = self.tap.send(&self.bytes[..NET_HDR_LEN + len]) {
            self.error.get_or_insert(error);
        }
        result
    }
}

/// Has the device complete the checksum of a TCP segment.
fn leave_checksum(frame: &mut [u8]) -> NetHdr {
    let mut header = NetHdr::default();
    if frame.len() < TCP + 20 || frame[PROTOCOL] != PROTOCOL_TCP || frame[12..14] != [8, 0] {
        return header;
    }
    let len = (frame.len() - TCP) as u32;
    let sum = u32::from(checksum::sum(&frame[IP_ADDRESSES..TCP])) + u32::from(PROTOCOL_TCP) + len;
    let sum = ((sum >> 16) + (sum & 0xffff)) as u16;
    frame[TCP + 16..TCP + 18].copy_from_slice(&sum.to_be_bytes());
    header.flags = NEEDS_CSUM;
    header.csum_start.set(TCP as u16);
    header.csum_offset.set(16);
    header
}

impl Device for Frames {
    type RxToken<'a> = Arrival<'a>;
    type TxToken<'a> = Departure<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrival<'_>, Departure<'_>)> {
        let len = match self.tap.receive(&mut self.received[..]) {
            Ok(len) => len.filter(|len| *len > NET_HDR_LEN)?,
            Err(error) => {
                self.error.get_or_insert(error);
                return None;
            }
        };
        let Frames { tap, received, sending, error } = self;
        Some((Arrival(&received[NET_HDR_LEN..len]), Departure { tap, bytes: sending, error }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Departure<'_>> {
        let Frames { tap, sending, error, .. } = self;
        Some(Departure { tap, bytes: sending, error })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(MTU) + ETHERNET_LEN;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

/// A socket, and where it is in its stream.
struct Connection {
    handle: SocketHandle,
    requests: Requests,
}

/// The server.
pub struct SmolServer {
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    frames: Frames,
    port: u16,
    response: Vec<u8>,
    served: Served,
}

fn now() -> Instant {
    let us = monotonic_ns() / 1000;
    TIMESTAMP.store((us / 1000) as u32, Ordering::Relaxed);
    Instant::from_micros(us as i64)
}

impl SmolServer {
    /// A server on the TAP device of this name.
    pub fn open(
        device: &str,
        mac: [u8; 6],
        address: SocketAddrV4,
        response: Vec<u8>,
    ) -> io::Result<SmolServer> {
        let mut frames = Frames {
            tap: Tap::open(device)?,
            received: Box::new([0; FRAME_MAX]),
            sending: Box::new([0; FRAME_MAX]),
            error: None,
        };
        let config = Config::new(EthernetAddress(mac).into());
        let mut interface = Interface::new(config, &mut frames, now());
        interface.update_ip_addrs(|addresses| {
            // There is room for more than one.
            let _ = addresses.push(IpCidr::new((*address.ip()).into(), PREFIX));
        });
        let mut sockets = SocketSet::new(Vec::with_capacity(CONNECTIONS_MAX + SPARE));
        let connections = (0..CONNECTIONS_MAX + SPARE)
            .map(|_| {
                let (rx, tx) = (vec![0; RX_ROOM], vec![0; TX_ROOM]);
                let mut socket = Socket::new(SocketBuffer::new(rx), SocketBuffer::new(tx));
                socket.set_tsval_generator(Some(timestamp));
                socket.set_nagle_enabled(false);
                let handle = sockets.add(socket);
                Connection { handle, requests: Requests::default() }
            })
            .collect();
        let port = address.port();
        let served = Served::default();
        Ok(SmolServer { interface, sockets, connections, frames, port, response, served })
    }

    /// Serves until `stop`, polling for `poll` before it sleeps. Returns what it did.
    pub fn run(mut self, poll: Duration, stop: &AtomicBool) -> io::Result<Served> {
        let poll_ns = poll.as_nanos() as u64;
        let mut active_ns = monotonic_ns();
        let mut is_new = true;
        while !stop.load(Ordering::Relaxed) {
            let moved = self.interface.poll(now(), &mut self.frames, &mut self.sockets)
                != smoltcp::iface::PollResult::None;
            if let Some(error) = self.frames.error.take() {
                return Err(error);
            }
            let at = monotonic_ns();
            if std::mem::take(&mut is_new) || moved {
                active_ns = at;
                let before = self.served.requests;
                self.serve();
                self.served.batches += u64::from(self.served.requests > before);
                self.interface.poll(now(), &mut self.frames, &mut self.sockets);
            } else if at.saturating_sub(active_ns) < poll_ns {
                std::hint::spin_loop();
            } else {
                let due = self.interface.poll_delay(now(), &self.sockets);
                let due = due.map_or(STOP_INTERVAL, |due| due.into());
                sys::wait_readable(self.frames.tap.as_fd(), due.min(STOP_INTERVAL))?;
            }
        }
        Ok(self.served)
    }

    /// Answers what has come, on all sockets.
    fn serve(&mut self) {
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
            match socket.state() {
                State::Closed => {
                    connection.requests = Requests::default();
                    // Only a port of zero, or a socket that is open, is refused.
                    let _ = socket.listen(self.port);
                }
                State::Established | State::CloseWait => {
                    let (mut found, mut broken) = (0, false);
                    while socket.can_recv() {
                        let took = socket.recv(|bytes| {
                            let took = connection.requests.take(bytes);
                            (bytes.len(), took)
                        });
                        match took {
                            Ok(Ok(more)) => found += more.requests,
                            _ => {
                                broken = true;
                                break;
                            }
                        }
                    }
                    for _ in 0..found {
                        // Answers that do not fit are lost: nobody asks for so many at once.
                        let _ = socket.send_slice(&self.response);
                    }
                    self.served.requests += found;
                    if broken {
                        socket.abort();
                    } else if socket.state() == State::CloseWait {
                        socket.close();
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segments_checksum_is_left_to_the_device_and_nothing_elses() {
        let mut frame = [0u8; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[23] = 6;
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let header = leave_checksum(&mut frame);
        assert_eq!((header.flags, header.csum_start.get()), (NEEDS_CSUM, 34));
        let sum = 2 * 0x0a00 + 3 + 6 + 26;
        assert_eq!(u16::from_be_bytes([frame[50], frame[51]]), sum);
        frame[23] = 17;
        assert_eq!(leave_checksum(&mut frame).flags, 0);
        assert_eq!(leave_checksum(&mut [0; 20]).flags, 0);
    }
}
