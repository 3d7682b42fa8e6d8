//! A host in the same process, for tests: it answers HELLO, hands out buffers,
//! keeps credit, and otherwise does what the test says.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use paste_abi::control::FEATURE_INLINE;
use paste_abi::control::{Bye, FlushDomain, Hello, Welcome};
use paste_abi::frame::{HEADER_LEN, RECORD_LEN, indices, write_indices};
use paste_abi::inline::{Progress, Put, Reader, Writer};
use paste_abi::{Event, Flow, Frame, Header, Kind, Reason, Request, Slot};
use zerocopy::IntoBytes;

use super::{Polling, Timeout, Transport, TransportError, TransportStats};
use crate::sys::{self, Mapping};

pub(crate) const BUFFERS: u32 = 64;
pub(crate) const BUFFER_SIZE: usize = 2048;
pub(crate) const HEADROOM: u16 = 128;
/// Where the host puts payload: behind the headers of a frame.
pub(crate) const RX_PAYLOAD: u16 = 130;
const FRAME_SIZE: u16 = 1024;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The host's side.
#[derive(Debug)]
pub(crate) struct Host {
    region: OwnedFd,
    pub(crate) memory: Mapping,
    to_guest: VecDeque<Vec<u8>>,
    /// Requests received and not yet looked at.
    pub(crate) requests: VecDeque<Slot>,
    /// Buffers of the pool.
    pub(crate) pool: Vec<u32>,
    /// Buffers that the guest waits for.
    wanted: usize,
    /// Frames that the guest may send before it is told of more.
    pub(crate) window: u32,
    /// Whether to renew the guest's credit by itself.
    pub(crate) generous: bool,
    /// Whether to answer HELLO.
    pub(crate) welcoming: bool,
    /// Whether every operation of the transport fails.
    pub(crate) broken: bool,
    /// How the host says that stores become durable.
    pub(crate) domain: FlushDomain,
    /// Buffers that are claimed, and given to who resumes them.
    pub(crate) claimed: Vec<u32>,
    pub(crate) hellos: u32,
    pub(crate) byes: Vec<Reason>,
    pub(crate) seq: u32,
    /// The guest has inline slots: the host knows its bytes from frames alone.
    inline: bool,
    taken: Progress,
    expected: u32,
    peer_limit: u32,
}

/// The guest's side.
#[derive(Debug)]
pub(crate) struct Loopback {
    host: Arc<Mutex<Host>>,
    seen: usize,
}

/// What a test holds.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Mutex<Host>>);

pub(crate) fn pair() -> (Box<Loopback>, Handle) {
    let len = BUFFERS as usize * BUFFER_SIZE;
    let region = sys::shared_memory(len).unwrap();
    let memory = Mapping::from_fd(region.as_fd(), 0, len, true).unwrap();
    let host = Arc::new(Mutex::new(Host {
        region,
        memory,
        to_guest: VecDeque::new(),
        requests: VecDeque::new(),
        pool: (0..BUFFERS).collect(),
        wanted: 0,
        window: 64,
        generous: true,
        welcoming: true,
        broken: false,
        domain: FlushDomain::None,
        claimed: Vec::new(),
        hellos: 0,
        byes: Vec::new(),
        seq: 0,
        inline: false,
        taken: Progress::default(),
        expected: 0,
        peer_limit: 0,
    }));
    (Box::new(Loopback { host: host.clone(), seen: 0 }), Handle(host))
}

impl Handle {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap()
    }
}

impl Host {
    /// Sends a frame, with the next sequence number if its kind has one.
    pub(crate) fn frame(&mut self, kind: Kind, records: &[u8]) {
        let seq = self.seq;
        if kind.is_sequenced() {
            let credit = paste_abi::frame::credit(seq, self.peer_limit);
            assert!(credit > 0, "the host has no credit");
            self.seq += 1;
        }
        let limit = if self.generous { self.expected + self.window } else { self.window };
        let count = (records.len() / RECORD_LEN) as u16;
        let header = Header { dst: MAC, src: [2; 6], kind, channel: 0, count, seq, limit };
        let mut frame = vec![0; HEADER_LEN];
        header.write(frame.first_chunk_mut().unwrap());
        frame.extend_from_slice(records);
        self.to_guest.push_back(frame);
    }

    /// Sends any bytes as a frame.
    pub(crate) fn raw(&mut self, frame: &[u8]) {
        self.to_guest.push_back(frame.to_vec());
    }

    pub(crate) fn slots(&mut self, slots: &[Slot]) {
        if self.inline {
            return self.inline_slots(slots);
        }
        let mut records = vec![0; slots.len() * RECORD_LEN];
        for (slot, record) in slots.iter().zip(records.as_chunks_mut().0) {
            slot.write(record);
        }
        self.frame(Kind::Slots, &records);
    }

    /// The same with their payload, in as many frames as it takes.
    fn inline_slots(&mut self, slots: &[Slot]) {
        let mut brought = 0;
        let mut next = 0;
        while next < slots.len() {
            let mut body = vec![0; usize::from(FRAME_SIZE) - HEADER_LEN];
            let mut writer = Writer::new(&mut body);
            while let Some(slot) = slots.get(next) {
                let put = writer.put(slot, &mut brought, &mut |piece, out| {
                    let at = piece.buf_idx as usize * BUFFER_SIZE + usize::from(piece.offset);
                    assert!(self.memory.read_at(at, out));
                });
                match put {
                    Put::Whole => next += 1,
                    Put::Split | Put::No => break,
                }
            }
            let (count, len) = (writer.count(), writer.len());
            self.frame(Kind::Inline, &body[..len]);
            let frame = self.to_guest.back_mut().unwrap();
            frame[18..20].copy_from_slice(&count.to_le_bytes());
        }
    }

    pub(crate) fn accept(&mut self, flow: Flow) {
        let peer = "192.0.2.7:4711".parse().unwrap();
        self.slots(&[Slot::accepted(flow, Flow(0), peer, 80)]);
    }

    /// Puts payload into a buffer of the pool and hands it to the guest.
    pub(crate) fn data(&mut self, flow: Flow, payload: &[u8]) -> u32 {
        let buf_idx = self.pool.pop().expect("the pool is not empty");
        let at = buf_idx as usize * BUFFER_SIZE + usize::from(RX_PAYLOAD);
        assert!(self.memory.write_at(at, payload));
        let len = payload.len() as u16;
        let offset = RX_PAYLOAD;
        self.slots(&[Slot { buf_idx, len, offset, ..Slot::event(Event::Data, flow) }]);
        buf_idx
    }

    /// The bytes that a slot names.
    pub(crate) fn payload(&self, slot: &Slot) -> Vec<u8> {
        let at = slot.buf_idx as usize * BUFFER_SIZE + usize::from(slot.offset);
        assert!(usize::from(slot.offset) + usize::from(slot.len) <= BUFFER_SIZE);
        let mut bytes = vec![0; slot.len.into()];
        assert!(self.memory.read_at(at, &mut bytes));
        bytes
    }

    /// Grants `count` buffers more: those that the pool has, the others when it has
    /// them.
    pub(crate) fn grant(&mut self, count: usize) {
        self.wanted += count;
        let count = self.wanted.min(self.pool.len());
        self.wanted -= count;
        let granted = self.pool.split_off(self.pool.len() - count);
        for chunk in granted.chunks(8) {
            let mut record = [0; RECORD_LEN];
            write_indices(chunk, &mut record);
            self.frame(Kind::Grant, &record);
        }
    }

    pub(crate) fn bye(&mut self, reason: Reason) {
        let bye = Bye {
            reason: (reason as u16).into(),
            reserved: [0; 2],
            expected: 0.into(),
            got: 0.into(),
            padding: [0; 20],
        };
        self.frame(Kind::Bye, bye.as_bytes());
    }

    /// Everything sent on `flow` so far; the buffers go back to the pool.
    pub(crate) fn sent(&mut self, flow: Flow) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = VecDeque::new();
        while let Some(slot) = self.requests.pop_front() {
            if slot.flow == flow && slot.as_request() == Some(Request::Data) {
                bytes.extend(self.payload(&slot));
                self.pool.push(slot.buf_idx);
            } else {
                rest.push_back(slot);
            }
        }
        self.requests = rest;
        bytes
    }

    fn take(&mut self, frame: &[u8]) {
        let frame = Frame::parse(frame).expect("the guest sends good frames");
        let header = frame.header;
        self.peer_limit = header.limit;
        if header.kind.is_sequenced() {
            assert_eq!(header.seq, self.expected, "no gap");
            assert!(header.seq < self.window || self.generous, "within credit");
            self.expected += 1;
        }
        match header.kind {
            Kind::Hello => {
                self.hellos += 1;
                let hello = Hello::read(frame.body).unwrap();
                if self.welcoming {
                    self.welcome(&hello, Reason::Ok);
                }
            }
            Kind::Slots => {
                for slot in frame.records().map(Slot::read) {
                    if slot.as_request() == Some(Request::Want) {
                        self.grant(slot.len.into());
                    } else {
                        self.requests.push_back(slot);
                    }
                }
            }
            Kind::Inline => {
                assert!(self.inline);
                let mut reader = Reader::new(frame.body, header.count);
                while let Some(next) = reader.next(&mut self.taken) {
                    let (slot, piece, bytes) = next.expect("the guest sends good frames");
                    let at = piece.buf_idx as usize * BUFFER_SIZE + usize::from(piece.offset);
                    assert!(bytes.is_empty() || self.memory.write_at(at, bytes));
                    match slot.as_request() {
                        Some(Request::Piece) => {}
                        Some(Request::Want) => self.grant(slot.len.into()),
                        _ => self.requests.push_back(slot),
                    }
                }
            }
            Kind::Return => {
                self.pool.extend(frame.records().flat_map(indices));
                self.grant(0);
            }
            Kind::Bye => {
                let bye = Bye::read(frame.body).unwrap();
                self.byes.push(Reason::from_u16(bye.reason.get()).unwrap());
            }
            Kind::Resume => {
                let claimed = &self.claimed;
                let mut body = Vec::new();
                for record in frame.records() {
                    let kept = indices(record).filter(|index| claimed.contains(index));
                    let mut answer = [0; RECORD_LEN];
                    write_indices(&kept.collect::<Vec<_>>(), &mut answer);
                    body.extend(answer);
                }
                self.frame(Kind::Resumed, &body);
            }
            Kind::Credit => {}
            Kind::Welcome | Kind::Grant | Kind::Resumed | Kind::Probe => {
                panic!("not a guest's frame")
            }
        }
        if self.generous && header.kind.is_sequenced() {
            self.frame(Kind::Credit, &[]);
        }
    }

    fn welcome(&mut self, hello: &Hello, status: Reason) {
        self.seq = 0;
        self.inline = hello.features.get() == FEATURE_INLINE;
        self.taken = Progress::default();
        self.expected = 0;
        self.requests.clear();
        self.wanted = 0;
        self.pool = (0..BUFFERS).filter(|index| !self.claimed.contains(index)).collect();
        let address = std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets();
        let granted = hello.buffers_wanted.get().min(BUFFERS / 4);
        let welcome = Welcome {
            status: (status as u16).into(),
            version: 1.into(),
            features: hello.features,
            region_uuid: [9; 16],
            region_size: (u64::from(BUFFERS) * BUFFER_SIZE as u64).into(),
            buffers_offset: 0.into(),
            buffer_size: (BUFFER_SIZE as u32).into(),
            buffer_count: BUFFERS.into(),
            headroom: HEADROOM.into(),
            frame_size_max: hello.frame_size_max,
            granted: granted.into(),
            flows_max: 8.into(),
            flush_domain: (self.domain as u32).into(),
            address,
            mtu: 1500.into(),
            mac: MAC,
            nonce: hello.nonce,
            reserved: [0; 32],
        };
        self.frame(Kind::Welcome, welcome.as_bytes());
        self.grant(granted as usize);
    }
}

impl Loopback {
    fn host(&self) -> Result<MutexGuard<'_, Host>, TransportError> {
        let host = self.host.lock().unwrap();
        if host.broken { Err(TransportError::Disconnected) } else { Ok(host) }
    }
}

impl Transport for Loopback {
    fn mac(&self) -> [u8; 6] {
        MAC
    }

    fn frame_size(&self) -> u16 {
        FRAME_SIZE
    }

    fn capacity(&self) -> u32 {
        32
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<bool, TransportError> {
        let mut host = self.host()?;
        let mut frame = vec![0; FRAME_SIZE.into()];
        match fill(&mut frame) {
            0 => {}
            len => host.take(&frame[..len]),
        }
        Ok(true)
    }

    fn publish(&mut self) -> Result<(), TransportError> {
        self.host().map(|_| ())
    }

    fn refresh(&mut self) -> Result<usize, TransportError> {
        let seen = self.host()?.to_guest.len();
        self.seen = seen;
        Ok(self.seen)
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        if self.seen == 0 {
            return Ok(None);
        }
        self.seen -= 1;
        let frame = self.host()?.to_guest.pop_front();
        Ok(frame.map(|frame| {
            out[..frame.len()].copy_from_slice(&frame);
            frame.len()
        }))
    }

    fn wait(&mut self, _: Timeout, _: Polling) -> Result<(), TransportError> {
        self.host().map(|_| ())
    }

    fn drain(&mut self, _: Duration) -> Result<(), TransportError> {
        self.host().map(|_| ())
    }

    fn map_region(&mut self, _: [u8; 16], len: u64) -> Result<Mapping, TransportError> {
        Ok(Mapping::from_fd(self.host()?.region.as_fd(), 0, len as usize, true).unwrap())
    }

    fn reconnect(&mut self) -> Result<(), TransportError> {
        self.host()?.to_guest.clear();
        self.seen = 0;
        Ok(())
    }

    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }
}
