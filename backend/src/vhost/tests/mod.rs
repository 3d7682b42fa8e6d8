//! A front end and a driver in test code: messages through a real socket, rings
//! in a real shared file that the driver writes with `pwrite`.

mod hostile;
mod messages;
mod rings;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use paste_abi::vhost_user::{
    F_PROTOCOL_FEATURES, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, Header, MemRegion,
    MemTableHeader, VRING_NO_FD, VringAddr, VringState, protocol, request as id,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use rustix::pipe::{PipeFlags, pipe_with};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
};
use zerocopy::{FromBytes, IntoBytes};

use super::control::{RX, TX, feature};
use super::{Device, DeviceOptions, SessionError};
use crate::sys::fds;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Guest memory: two neighbours in the guest that are none in the file nor in
/// the front end, and a hole behind them.
pub const A: u64 = 0x1_0000;
pub const B: u64 = 0x2_0000;
pub const HOLE: u64 = 0x3_0000;
const USER_A: u64 = 0x7f00_0000_0000;
const USER_B: u64 = 0x7f00_1000_0000;
const OFFSET_B: u64 = 0x4_0000;
const FILE_LEN: u64 = 0x6_0000;

/// Buffers of chains start here, in `A`.
pub const BUFFERS: u64 = A + 0x8000;

pub const MODERN: u64 = F_PROTOCOL_FEATURES
    | feature(VIRTIO_F_VERSION_1)
    | feature(VIRTIO_NET_F_MRG_RXBUF)
    | feature(VIRTIO_RING_F_INDIRECT_DESC);
pub const EVENT_IDX: u64 = feature(VIRTIO_RING_F_EVENT_IDX);
pub const MERGEABLE: u64 = feature(VIRTIO_NET_F_MRG_RXBUF);

pub const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::MTU
    | protocol::CONFIG
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

/// Where the parts of a ring are, as guest addresses.
pub fn table_of(ring: usize) -> u64 {
    A + 0x3000 * ring as u64
}
pub fn avail_of(ring: usize) -> u64 {
    table_of(ring) + 0x1000
}
pub fn used_of(ring: usize) -> u64 {
    table_of(ring) + 0x2000
}

pub fn options() -> DeviceOptions {
    DeviceOptions {
        name: "test".to_owned(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        csum: true,
        segments: true,
        region: None,
        queue_size_max: 256,
        pairs: 1,
    }
}

/// A message as a front end sends it.
#[derive(Debug)]
pub struct Outgoing {
    pub id: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

pub fn message(id: u32, payload: &[u8]) -> Outgoing {
    Outgoing { id, payload: payload.to_vec(), fds: Vec::new() }
}

pub fn number(id: u32, value: u64) -> Outgoing {
    message(id, &value.to_le_bytes())
}

pub fn state(id: u32, index: u32, num: u32) -> Outgoing {
    message(id, VringState { index: index.into(), num: num.into() }.as_bytes())
}

impl Outgoing {
    pub fn with(mut self, fd: OwnedFd) -> Outgoing {
        self.fds.push(fd);
        self
    }

    pub fn bytes(&self, flags: u32) -> Vec<u8> {
        let header = Header {
            request: self.id.into(),
            flags: (FLAG_VERSION | flags).into(),
            size: (self.payload.len() as u32).into(),
        };
        [header.as_bytes(), &self.payload].concat()
    }
}

pub fn mem_region(guest: u64, user: u64, size: u64, offset: u64) -> MemRegion {
    MemRegion {
        guest_addr: guest.into(),
        size: size.into(),
        user_addr: user.into(),
        mmap_offset: offset.into(),
    }
}

pub fn mem_table(regions: &[MemRegion], file: &OwnedFd) -> Outgoing {
    let header = MemTableHeader { count: (regions.len() as u32).into(), padding: 0.into() };
    let mut table = message(id::SET_MEM_TABLE, header.as_bytes());
    for region in regions {
        table.payload.extend_from_slice(region.as_bytes());
        table.fds.push(file.try_clone().unwrap());
    }
    table
}

pub fn usual_regions() -> [MemRegion; 2] {
    [mem_region(B, USER_B, 0x1_0000, OFFSET_B), mem_region(A, USER_A, 0x1_0000, 0)]
}

pub fn addresses(ring: usize, table: u64, avail: u64, used: u64) -> Outgoing {
    let user = |guest: u64| {
        if guest >= B { guest - B + USER_B } else { guest - A + USER_A }
    };
    let addr = VringAddr {
        index: (ring as u32).into(),
        flags: 0.into(),
        descriptor: user(table).into(),
        used: user(used).into(),
        available: user(avail).into(),
        log: 0.into(),
    };
    message(id::SET_VRING_ADDR, addr.as_bytes())
}

/// The driver's and the front end's ends of what a ring signals through.
#[derive(Debug)]
pub struct Ends {
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub err: OwnedFd,
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
}

/// Signals that have come through a pipe.
pub fn signals(fd: &OwnedFd) -> usize {
    let mut bytes = [0; 4096];
    rustix::io::read(fd, &mut bytes).map_or(0, |n| n / 8)
}

/// Whether all writers of a pipe are closed.
pub fn is_closed(read: &OwnedFd) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match rustix::io::read(read, &mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// The messages that set a ring up and start it.
pub fn ring_messages(ring: usize, size: u32) -> ([Outgoing; 6], Ends) {
    let index = ring as u32;
    let (kick_read, kick) = pipe();
    let (call, call_write) = pipe();
    let (err, err_write) = pipe();
    let messages = [
        state(id::SET_VRING_NUM, index, size),
        state(id::SET_VRING_BASE, index, 0),
        addresses(ring, table_of(ring), avail_of(ring), used_of(ring)),
        number(id::SET_VRING_ERR, u64::from(index)).with(err_write),
        number(id::SET_VRING_CALL, u64::from(index)).with(call_write),
        number(id::SET_VRING_KICK, u64::from(index)).with(kick_read),
    ];
    (messages, Ends { kick, call, err })
}

/// The messages that set a device up as QEMU does: enabling comes first.
pub fn transcript(features: u64, size: u32, file: &OwnedFd) -> (Vec<Outgoing>, [Ends; 2]) {
    let mut messages = vec![
        message(id::GET_FEATURES, &[]),
        message(id::GET_PROTOCOL_FEATURES, &[]),
        number(id::SET_PROTOCOL_FEATURES, PROTOCOL),
        message(id::GET_QUEUE_NUM, &[]),
        message(id::SET_OWNER, &[]),
        state(id::SET_VRING_ENABLE, RX as u32, 1),
        state(id::SET_VRING_ENABLE, TX as u32, 1),
        number(id::SET_FEATURES, features),
        mem_table(&usual_regions(), file),
    ];
    let ends = [RX, TX].map(|ring| {
        let (more, ends) = ring_messages(ring, size);
        messages.extend(more);
        ends
    });
    (messages, ends)
}

/// A device with a front end and a driver.
pub struct Rig {
    pub device: Device,
    pub front: UnixStream,
    pub file: OwnedFd,
    pub ends: [Ends; 2],
    pub size: u16,
    avail: [u16; 2],
    used: [u16; 2],
    buffer: u64,
}

pub fn memory_file() -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, FILE_LEN).unwrap();
    file
}

pub fn attached(options: DeviceOptions) -> (Device, UnixStream) {
    let (front, back) = UnixStream::pair().unwrap();
    let mut device = Device::new(options);
    device.attach(back).unwrap();
    (device, front)
}

impl Rig {
    /// A device that runs, with rings of eight descriptors.
    pub fn new(features: u64) -> Rig {
        Rig::with(options(), features, 8)
    }

    pub fn with(options: DeviceOptions, features: u64, size: u16) -> Rig {
        let file = memory_file();
        let (device, front) = attached(options);
        let (messages, ends) = transcript(features, u32::from(size), &file);
        let mut rig =
            Rig { device, front, file, ends, size, avail: [0; 2], used: [0; 2], buffer: BUFFERS };
        for message in messages {
            rig.send(message).unwrap();
        }
        assert!(rig.device.is_running());
        rig.drain_replies();
        for ends in &rig.ends {
            // SET_VRING_CALL signals once, for what may have been missed.
            assert_eq!(signals(&ends.call), 1);
        }
        rig
    }

    /// Sends a message and lets the device handle it.
    pub fn send(&mut self, message: Outgoing) -> Result<(), SessionError> {
        self.send_with(message, 0)
    }

    pub fn send_with(&mut self, message: Outgoing, flags: u32) -> Result<(), SessionError> {
        send(&self.front, &message, flags);
        drop(message);
        self.device.handle_messages()
    }

    /// Sends a message with need_reply, and gives the answer.
    pub fn ack(&mut self, message: Outgoing) -> u64 {
        let id = message.id;
        self.send_with(message, FLAG_NEED_REPLY).unwrap();
        let (got, payload) = reply(&self.front).expect("an answer");
        assert_eq!(got, id);
        u64::from_le_bytes(payload.try_into().unwrap())
    }

    /// Sends a message that is always answered, and gives the answer.
    pub fn ask(&mut self, message: Outgoing) -> Vec<u8> {
        let id = message.id;
        self.send(message).unwrap();
        let (got, payload) = reply(&self.front).expect("an answer");
        assert_eq!(got, id);
        payload
    }

    pub fn drain_replies(&self) {
        while reply(&self.front).is_some() {}
    }

    pub fn write(&self, guest: u64, bytes: &[u8]) {
        for (at, byte) in (guest..).zip(bytes) {
            pwrite(&self.file, &[*byte], file_offset(at)).unwrap();
        }
    }

    pub fn read(&self, guest: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (at, byte) in (guest..).zip(&mut bytes) {
            pread(&self.file, std::slice::from_mut(byte), file_offset(at)).unwrap();
        }
        bytes
    }

    pub fn read_u16(&self, guest: u64) -> u16 {
        u16::from_le_bytes(self.read(guest, 2).try_into().unwrap())
    }

    /// Writes a descriptor into a ring's table.
    pub fn desc(&self, ring: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.desc_at(table_of(ring), index, addr, len, flags, next);
    }

    /// Writes a descriptor into any table.
    pub fn desc_at(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let slot = self.avail[ring] % self.size;
        self.write(avail_of(ring) + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        self.avail[ring] = self.avail[ring].wrapping_add(1);
        self.set_avail_idx(ring, self.avail[ring]);
    }

    pub fn set_avail_idx(&self, ring: usize, idx: u16) {
        self.write(avail_of(ring) + 2, &idx.to_le_bytes());
    }

    pub fn set_avail_flags(&self, ring: usize, flags: u16) {
        self.write(avail_of(ring), &flags.to_le_bytes());
    }

    pub fn set_used_event(&self, ring: usize, event: u16) {
        self.write(avail_of(ring) + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
    }

    pub fn avail_event(&self, ring: usize) -> u16 {
        self.read_u16(used_of(ring) + 4 + 8 * u64::from(self.size))
    }

    pub fn used_flags(&self, ring: usize) -> u16 {
        self.read_u16(used_of(ring))
    }

    pub fn used_idx(&self, ring: usize) -> u16 {
        self.read_u16(used_of(ring) + 2)
    }

    /// The next used entry that the device has published: head and length.
    pub fn take_used(&mut self, ring: usize) -> Option<(u32, u32)> {
        if self.used[ring] == self.used_idx(ring) {
            return None;
        }
        let slot = u64::from(self.used[ring] % self.size);
        let entry = self.read(used_of(ring) + 4 + 8 * slot, 8);
        self.used[ring] = self.used[ring].wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    /// Offers `bytes` as a TX chain of one descriptor.
    pub fn transmit(&mut self, head: u16, bytes: &[u8]) {
        let at = self.take_buffer(bytes.len());
        self.write(at, bytes);
        self.desc(TX, head, at, bytes.len() as u32, 0, 0);
        self.offer(TX, head);
    }

    /// Offers a receive buffer and says where it is.
    pub fn receive(&mut self, head: u16, len: usize) -> u64 {
        let at = self.take_buffer(len);
        self.desc(RX, head, at, len as u32, WRITE, 0);
        self.offer(RX, head);
        at
    }

    fn take_buffer(&mut self, len: usize) -> u64 {
        if self.buffer + len as u64 > B + 0x1_0000 {
            self.buffer = BUFFERS;
        }
        let at = self.buffer;
        self.buffer += len as u64;
        at
    }

    /// Takes the next TX frame.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let mut out = [0xee; 2048];
        self.device.next_tx(&mut out).unwrap().map(|len| out[..len].to_vec())
    }
}

pub fn file_offset(guest: u64) -> u64 {
    if guest >= B { guest - B + OFFSET_B } else { guest - A }
}

pub fn send(front: &UnixStream, message: &Outgoing, flags: u32) {
    let borrowed: Vec<BorrowedFd<'_>> = message.fds.iter().map(AsFd::as_fd).collect();
    let bytes = message.bytes(flags);
    assert_eq!(fds::send(front, &bytes, &borrowed).unwrap(), bytes.len());
}

/// The next reply, if one has come: the request's number and the payload.
pub fn reply(front: &UnixStream) -> Option<(u32, Vec<u8>)> {
    let mut none = Vec::new();
    let mut header = [0; size_of::<Header>()];
    let received = fds::receive(front, &mut header, &mut none).ok()?;
    assert_eq!(received.bytes, header.len());
    let header = Header::read_from_bytes(&header).unwrap();
    assert_eq!(header.flags.get(), FLAG_VERSION | FLAG_REPLY);
    let mut payload = vec![0; header.size.get() as usize];
    if !payload.is_empty() {
        let received = fds::receive(front, &mut payload, &mut none).unwrap();
        assert_eq!(received.bytes, payload.len());
    }
    assert!(none.is_empty());
    Some((header.request.get(), payload))
}

/// A virtio-net header and a frame of `len` bytes, each byte telling its place.
pub fn frame(len: usize) -> Vec<u8> {
    let header = NetHdr::default();
    header.as_bytes().iter().copied().chain((0..len).map(|i| (i % 251) as u8)).collect()
}

/// The frame of [`frame`] without the header.
pub fn body(len: usize) -> Vec<u8> {
    frame(len)[NET_HDR_LEN..].to_vec()
}

pub const NO_FD: u64 = VRING_NO_FD;
