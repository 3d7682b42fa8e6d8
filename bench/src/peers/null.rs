//! A server that remembers nothing: it answers every segment with payload by the response,
//! and every SYN and FIN by what goes on, with numbers that it takes from the segment
//! itself. It has no flows, no timers and no application. What it reaches is the ceiling of
//! device and client, and what it costs is what the port costs.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paste_pmem::{Owner, Pool, Region, checksum};
use paste_stack::{Origin, Payload, TxBatch, TxCsum, TxFrame};
use pasted::demo::epoll_server::Served;
use pasted::port::{Now, Port, PortError, RxBatch};
use pasted::sys::clock::monotonic_ns;

use crate::device::{self, Device, DeviceError};
use crate::sys;

/// Bytes of the region.
const REGION_SIZE: u64 = 16 << 20;
/// Frames taken in one turn.
const RX_BUDGET: usize = 256;
/// How often a server that sleeps looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of Ethernet, IPv4 and TCP headers without options.
const HEAD_LEN: usize = 54;
/// The same with the one option of a SYN.
const SYN_LEN: usize = HEAD_LEN + 4;
/// Where the IPv4 and the TCP header start.
const IP: usize = 14;
const TCP: usize = 34;
/// Bytes of an ARP packet with its Ethernet header.
const ARP_LEN: usize = 42;
/// Bytes of a frame that are looked at: all headers, with all options.
const LOOK_LEN: usize = 14 + 60 + 60;
/// Where it begins to count.
const ISS: u32 = 0x1000;
/// The segment size that it offers, and the window.
const MSS: u16 = 1460;
const WINDOW: u16 = 0xffff;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Why there is no server, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum NullError {
    /// No device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device went.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The wait.
    #[error("the server cannot wait: {0}")]
    Wait(#[from] io::Error),
    /// The response is longer than a segment.
    #[error("the response does not fit a buffer")]
    Response,
}

/// The server.
pub struct Null {
    port: Box<dyn Port>,
    pool: Pool,
    _region: Region,
    rx: RxBatch,
    tx: TxBatch,
    answers: Answers,
    served: Served,
}

impl Null {
    /// A server on this device with this response.
    pub fn open(
        device: &Device,
        mac: [u8; 6],
        address: SocketAddrV4,
        response: &[u8],
    ) -> Result<Null, NullError> {
        let region = device::region("null", REGION_SIZE)?;
        let port = device::open(device, mac, *address.ip(), &region)?;
        let mut pool = region.pool();
        let buf = pool.take(Owner::Stack).ok_or(NullError::Response)?;
        let offset = paste_stack::HEAD_MAX as u16;
        pool.buffers()
            .write(buf, usize::from(offset), response)
            .map_err(|_| NullError::Response)?;
        let answers = Answers {
            mac,
            ip: *address.ip(),
            port: address.port(),
            response: Payload { buf, offset, len: response.len() as u16 },
            response_sum: checksum::sum(response),
            offload: port.caps().tx_csum,
        };
        Ok(Null {
            port,
            pool,
            _region: region,
            rx: RxBatch::new(RX_BUDGET),
            tx: TxBatch::new(RX_BUDGET),
            answers,
            served: Served::default(),
        })
    }

    /// Serves until `stop`, polling for `poll` before it sleeps. Returns what it did.
    pub fn run(mut self, poll: Duration, stop: &AtomicBool) -> Result<Served, NullError> {
        let poll_ns = poll.as_nanos() as u64;
        let mut active_ns = monotonic_ns();
        while !stop.load(Ordering::Relaxed) {
            let now = monotonic_ns();
            if self.turn(now)? {
                active_ns = now;
            } else if now.saturating_sub(active_ns) < poll_ns {
                std::hint::spin_loop();
            } else if !self.port.arm()
                && let Some(fd) = self.port.fd()
            {
                sleep(fd)?;
            }
        }
        self.port.release(&mut self.pool);
        Ok(self.served)
    }

    fn turn(&mut self, monotonic_ns: u64) -> Result<bool, NullError> {
        let now = Now { monotonic_ns, real_ns: 0 };
        let before = self.served.requests;
        if self.tx.is_empty() {
            self.port.receive(now, &mut self.pool, &mut self.rx)?;
        }
        let any = !self.rx.is_empty();
        for received in self.rx.frames() {
            let frame = &received.frame;
            let mut bytes = [0; LOOK_LEN];
            let len = LOOK_LEN.min(usize::from(frame.len));
            // The port says no more than the buffer holds.
            let read = self.pool.buffers().read(frame.buf, frame.offset.into(), &mut bytes[..len]);
            let given = self.pool.give(frame.buf, Owner::Port);
            debug_assert!(given.is_ok() && read.is_ok());
            if let Some(out) = self.tx.push(Origin::Bridge) {
                match self.answers.answer(&bytes[..len], out) {
                    None => self.tx.pop(),
                    Some(is_request) => self.served.requests += u64::from(is_request),
                }
            }
        }
        self.rx.clear();
        self.served.batches += u64::from(self.served.requests > before);
        if !self.tx.is_empty() || self.port.is_sending() {
            self.port.send(now, &self.pool, &mut self.tx, &mut |_, _| {})?;
        }
        Ok(any || !self.tx.is_empty())
    }
}

fn sleep(fd: BorrowedFd<'_>) -> io::Result<()> {
    sys::wait_readable(fd, STOP_INTERVAL)
}

/// How frames are answered.
struct Answers {
    mac: [u8; 6],
    ip: Ipv4Addr,
    port: u16,
    response: Payload,
    response_sum: u16,
    offload: bool,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

impl Answers {
    /// Writes the answer to a frame; whether it answers a request. `None`: there is none.
    fn answer(&self, frame: &[u8], out: &mut TxFrame) -> Option<bool> {
        match frame.get(12..14)? {
            [8, 6] => self.arp(frame, out).then_some(false),
            [8, 0] => self.segment(frame, out),
            _ => None,
        }
    }

    /// Who has the address?
    fn arp(&self, frame: &[u8], out: &mut TxFrame) -> bool {
        let asks = frame.len() >= ARP_LEN
            && frame[14..22] == [0, 1, 8, 0, 6, 4, 0, 1]
            && frame[38..42] == self.ip.octets();
        if asks {
            let head = out.head_mut(ARP_LEN);
            head[..6].copy_from_slice(&frame[22..28]);
            head[6..12].copy_from_slice(&self.mac);
            head[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
            head[22..28].copy_from_slice(&self.mac);
            head[28..32].copy_from_slice(&self.ip.octets());
            head[32..42].copy_from_slice(&frame[22..32]);
        }
        asks
    }

    fn segment(&self, frame: &[u8], out: &mut TxFrame) -> Option<bool> {
        let is_ours = frame.len() >= HEAD_LEN
            && frame[IP] == 0x45
            && frame[IP + 9] == 6
            && frame[IP + 16..IP + 20] == self.ip.octets()
            && be16(frame, TCP + 2) == self.port;
        let headers = 20 + usize::from(*frame.get(TCP + 12)? >> 4) * 4;
        let len = usize::from(be16(frame, IP + 2)).checked_sub(headers).filter(|_| is_ours)?;
        let flags = frame[TCP + 13];
        let (seq, ack) = (be32(frame, TCP + 4), be32(frame, TCP + 8));
        let next = seq.wrapping_add(len as u32 + u32::from(flags & (SYN | FIN) != 0));
        if flags & RST != 0 {
            return None;
        }
        let (seq, answer, is_request) = match flags & (SYN | FIN) {
            SYN => (ISS, SYN | ACK, false),
            _ if len > 0 => (ack, ACK | PSH, true),
            FIN => (ack, FIN | ACK, false),
            _ => return None,
        };
        let head_len = if answer & SYN != 0 { SYN_LEN } else { HEAD_LEN };
        let (payload, sum) = if is_request {
            out.payload = Some(self.response);
            (self.response.len, self.response_sum)
        } else {
            (0, 0)
        };
        let head = out.head_mut(head_len);
        head[..6].copy_from_slice(&frame[6..12]);
        head[6..12].copy_from_slice(&self.mac);
        head[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        let total = (head_len - IP) as u16 + payload;
        head[16..18].copy_from_slice(&total.to_be_bytes());
        // Don't fragment; time to live, and the protocol.
        head[18..26].copy_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0]);
        head[26..30].copy_from_slice(&self.ip.octets());
        head[30..34].copy_from_slice(&frame[26..30]);
        let ip_sum = !checksum::sum(&head[IP..TCP]);
        head[24..26].copy_from_slice(&ip_sum.to_be_bytes());
        head[34..36].copy_from_slice(&self.port.to_be_bytes());
        head[36..38].copy_from_slice(&frame[TCP..TCP + 2]);
        head[38..42].copy_from_slice(&seq.to_be_bytes());
        head[42..46].copy_from_slice(&next.to_be_bytes());
        head[46] = (((head_len - TCP) / 4) << 4) as u8;
        head[47] = answer;
        head[48..50].copy_from_slice(&WINDOW.to_be_bytes());
        head[50..54].fill(0);
        if answer & SYN != 0 {
            let [high, low] = MSS.to_be_bytes();
            head[54..58].copy_from_slice(&[2, 4, high, low]);
        }
        let pseudo = u32::from(checksum::sum(&head[26..34])) + 6 + u32::from(total - 20);
        let field = if self.offload {
            out.csum = Some(TxCsum { start: TCP as u16, offset: 16 });
            fold(pseudo)
        } else {
            !fold(pseudo + u32::from(checksum::sum(&head[TCP..])) + u32::from(sum))
        };
        out.head_mut(head_len)[50..52].copy_from_slice(&field.to_be_bytes());
        Some(is_request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(offload: bool) -> Answers {
        Answers {
            mac: [2, 0, 0, 0, 0, 9],
            ip: Ipv4Addr::new(10, 0, 0, 9),
            port: 80,
            response: Payload { buf: 3, offset: 128, len: 5 },
            response_sum: checksum::sum(b"hello"),
            offload,
        }
    }

    /// A segment to the server; its checksums are not looked at.
    fn segment(flags: u8, len: u16, seq: u32, ack: u32) -> Vec<u8> {
        let mut frame = vec![0; HEAD_LEN];
        frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0]);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&(40 + len).to_be_bytes());
        frame[23] = 6;
        frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
        frame[30..34].copy_from_slice(&[10, 0, 0, 9]);
        frame[34..38].copy_from_slice(&[0x30, 0x39, 0, 80]);
        frame[38..42].copy_from_slice(&seq.to_be_bytes());
        frame[42..46].copy_from_slice(&ack.to_be_bytes());
        frame[46..48].copy_from_slice(&[0x50, flags]);
        frame
    }

    /// The answer's flags, numbers and payload; its checksums are right.
    fn answer(frame: &[u8]) -> Option<(u8, u32, u32, u16)> {
        let mut out = TxFrame::EMPTY;
        answers(false).answer(frame, &mut out)?;
        let head = out.head();
        let payload: &[u8] = if out.payload.is_some() { b"hello" } else { b"" };
        let segment = [&head[TCP..], payload].concat();
        let pseudo = u32::from(checksum::sum(&head[26..34])) + 6 + segment.len() as u32;
        assert_eq!(fold(pseudo + u32::from(checksum::sum(&segment))), 0xffff);
        assert_eq!(checksum::sum(&head[IP..TCP]), 0xffff);
        assert_eq!(be16(head, 16) as usize, 20 + segment.len());
        Some((head[47], be32(head, 38), be32(head, 42), payload.len() as u16))
    }

    #[test]
    fn a_connection_goes_by_what_it_says_itself() {
        assert_eq!(answer(&segment(SYN, 0, 7, 0)), Some((SYN | ACK, ISS, 8, 0)));
        assert_eq!(answer(&segment(ACK, 0, 8, ISS + 1)), None);
        let request = segment(ACK | PSH, 1400, 8, ISS + 1);
        assert_eq!(answer(&request), Some((ACK | PSH, ISS + 1, 1408, 5)));
        assert_eq!(answer(&segment(ACK | FIN, 0, 1408, 99)), Some((FIN | ACK, 99, 1409, 0)));
        assert_eq!(answer(&segment(RST, 0, 1, 1)), None);
    }

    #[test]
    fn nobody_else_is_answered_and_nothing_short() {
        let mut other = segment(ACK, 5, 1, 1);
        other[33] ^= 1;
        assert_eq!(answer(&other), None);
        let whole = segment(ACK, 5, 1, 1);
        for len in 0..whole.len() {
            assert_eq!(answer(&whole[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn a_device_is_told_what_to_complete() {
        let mut out = TxFrame::EMPTY;
        assert_eq!(answers(true).answer(&segment(ACK, 9, 1, 1), &mut out), Some(true));
        assert_eq!(out.csum, Some(TxCsum { start: 34, offset: 16 }));
        let pseudo = u32::from(checksum::sum(&out.head()[26..34])) + 6 + 25;
        assert_eq!(be16(out.head(), 50), fold(pseudo));
    }

    #[test]
    fn who_asks_for_the_address_is_told() {
        let mut ask = vec![0xff; 6];
        ask.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        ask.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9]);
        let mut out = TxFrame::EMPTY;
        assert_eq!(answers(true).answer(&ask, &mut out), Some(false));
        assert_eq!(out.head()[20..32], [0, 2, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9]);
        ask[41] = 8;
        assert_eq!(answers(true).answer(&ask, &mut out), None);
    }
}
