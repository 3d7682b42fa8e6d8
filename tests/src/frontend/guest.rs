//! A guest that attached properly, opened a channel, and may now misbehave.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use paste_abi::control::{Bye, Hello, Welcome};
use paste_abi::frame::{HEADER_LEN, RECORD_LEN};
use paste_abi::net_hdr::NET_HDR_LEN;
use paste_abi::vhost_user::{MemRegion, MemTableHeader, VringAddr, VringState, protocol, request};
use paste_abi::{Event, Frame, Header, Kind, Reason, Slot, VERSION, frame};
use rustix::event::EventfdFlags;
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::{Descriptor, Memory, Ring, Session, flag};
use crate::wait;

/// Where the device finds our memory.
pub(super) const ADDRESS: u64 = 1 << 32;
/// Indices of rings, in their pair.
const RX: u32 = 0;
const TX: u32 = 1;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK (VIRTIO 1.2 section 2.1).
const STATUS_RUNNING: u64 = 1 | 2 | 8 | 4;

/// How a guest begins.
#[derive(Clone, Copy, Debug)]
pub struct StartOptions {
    /// Receive buffers that it offers.
    pub receive: u16,
}

impl Default for StartOptions {
    fn default() -> StartOptions {
        StartOptions { receive: Ring::SIZE }
    }
}

/// A guest with both rings running.
#[derive(Debug)]
pub struct RawGuest {
    /// The socket.
    pub session: Arc<Session>,
    /// The memory that the rings lie in.
    pub memory: Memory,
    /// The device writes here.
    pub rx: Ring,
    /// The device reads here.
    pub tx: Ring,
    /// Used receive buffers are offered again.
    pub refills: bool,
    rx_kick: OwnedFd,
    tx_kick: OwnedFd,
    _call: OwnedFd,
    tx_next: u16,
    /// The pair of rings that it drives.
    pair: u32,
    /// Next sequence number of the guest's, by channel.
    seq: [u32; 16],
}

impl RawGuest {
    /// Attaches with all receive buffers.
    pub fn attach(path: &Path) -> io::Result<RawGuest> {
        RawGuest::attach_with(path, StartOptions::default())
    }

    /// Attaches as soon as the back end lets it.
    pub fn attach_soon(path: &Path) -> RawGuest {
        wait::until("the back end accepts a front end", || RawGuest::attach(path).ok())
    }

    /// Attaches.
    pub fn attach_with(path: &Path, options: StartOptions) -> io::Result<RawGuest> {
        let mut guests = RawGuest::attach_pairs(path, 1, 0, options)?;
        Ok(guests.remove(0))
    }

    /// Attaches with so many pairs of rings, and further features if the device has them.
    /// Each pair is driven as a guest of its own is.
    pub fn attach_pairs(
        path: &Path,
        pairs: u32,
        features: u64,
        options: StartOptions,
    ) -> io::Result<Vec<RawGuest>> {
        let mut session = Session::connect(path)?;
        session.negotiate_with(features)?;
        let session = Arc::new(session);
        let len = u64::from(2 * pairs) * Ring::LEN;
        let memory = Memory::new(len);
        set_memory(&session, &memory, len)?;
        let notifier = || Ok::<_, io::Error>(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut guests = Vec::new();
        for pair in 0..pairs {
            let ring = |index: u32| {
                let base = u64::from(2 * pair + index) * Ring::LEN;
                Ring::new(memory.again(), base, ADDRESS + base)
            };
            let mut guest = RawGuest {
                rx: ring(RX),
                tx: ring(TX),
                refills: true,
                rx_kick: notifier()?,
                tx_kick: notifier()?,
                _call: notifier()?,
                tx_next: 0,
                seq: [0; 16],
                pair,
                session: Arc::clone(&session),
                memory: memory.again(),
            };
            for index in 0..options.receive {
                guest.offer_receive(index);
            }
            guest.start_ring(RX)?;
            guest.start_ring(TX)?;
            guests.push(guest);
        }
        if session.protocol & protocol::STATUS != 0 {
            session.tell(request::SET_STATUS, &U64::new(STATUS_RUNNING), &[])?;
        }
        guests.iter().for_each(RawGuest::kick);
        Ok(guests)
    }

    fn start_ring(&self, index: u32) -> io::Result<()> {
        let (ring, kick) = match index {
            RX => (&self.rx, &self.rx_kick),
            _ => (&self.tx, &self.tx_kick),
        };
        start_ring(&self.session, 2 * self.pair + index, ring, kick, &self._call)
    }

    /// Has the device use this pair, or not.
    pub fn enable(&self, enabled: bool) -> io::Result<()> {
        for index in [RX, TX] {
            let state = VringState {
                index: (2 * self.pair + index).into(),
                num: u32::from(enabled).into(),
            };
            self.session.tell(request::SET_VRING_ENABLE, &state, &[])?;
        }
        Ok(())
    }

    /// Offers a receive buffer.
    pub fn offer_receive(&mut self, index: u16) {
        let addr = self.rx.buffer(index);
        let flags = flag::WRITE;
        self.rx.set(index, Descriptor { addr, len: Ring::BUFFER, flags, next: 0 });
        self.rx.offer(index);
    }

    /// Wakes the device.
    pub fn kick(&self) {
        for kick in [&self.rx_kick, &self.tx_kick] {
            // An error means that it is awake.
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
    }

    /// Sends an Ethernet frame, whatever is in it.
    pub fn send(&mut self, bytes: &[u8]) {
        wait::until("the device takes frames", || {
            while self.tx.take().is_some() {}
            (self.tx.in_flight() < Ring::SIZE).then_some(())
        });
        let index = self.tx_next % Ring::SIZE;
        self.tx_next = self.tx_next.wrapping_add(1);
        let framed = [&[0; NET_HDR_LEN], bytes].concat();
        self.tx.fill(index, &framed);
        let addr = self.tx.buffer(index);
        self.tx.set(index, Descriptor { addr, len: framed.len() as u32, flags: 0, next: 0 });
        self.tx.offer(index);
        self.kick();
    }

    /// Waits until the device has taken every frame that was sent.
    pub fn drain(&mut self) {
        wait::until("the device takes what was sent", || {
            while self.tx.take().is_some() {}
            (self.tx.in_flight() == 0).then_some(())
        });
    }

    /// A PASTE frame that has come, if one has. Others are passed over.
    pub fn try_receive(&mut self) -> Option<Vec<u8>> {
        while let Some((index, len)) = self.rx.take() {
            let bytes = self.rx.contents(index, len as usize);
            if self.refills {
                self.offer_receive(index);
                self.kick();
            }
            if let Some(frame) = bytes.get(NET_HDR_LEN..).filter(|frame| frame::is_paste(frame)) {
                return Some(frame.to_vec());
            }
        }
        None
    }

    /// Waits for a PASTE frame of this kind, and returns it. Others are passed
    /// over.
    pub fn receive(&mut self, kind: Kind) -> Vec<u8> {
        wait::until(&format!("a frame of kind {kind:?} comes"), || {
            let bytes = self.try_receive()?;
            let found = Frame::parse(&bytes).expect("a well-formed frame").header.kind;
            (found == kind).then_some(bytes)
        })
    }

    /// Opens a channel, letting the host send `limit` frames, and returns what
    /// the host says.
    pub fn hello(&mut self, channel: u16, limit: u32, buffers_wanted: u32) -> Welcome {
        self.hello_with(channel, limit, buffers_wanted, 0)
    }

    /// Likewise, asking for features.
    pub fn hello_with(
        &mut self,
        channel: u16,
        limit: u32,
        buffers_wanted: u32,
        features: u32,
    ) -> Welcome {
        let mut hello = Hello::new_zeroed();
        hello.version_min = VERSION;
        hello.version_max = VERSION;
        hello.frame_size_max = 1500.into();
        hello.features = features.into();
        hello.nonce = 0x7061_7374_6564.into();
        hello.buffers_wanted = buffers_wanted.into();
        hello.name[..7].copy_from_slice(b"hostile");
        self.seq[usize::from(channel)] = 0;
        self.send(&paste_frame(Kind::Hello, channel, 0, limit, hello.as_bytes()));
        let bytes = self.receive(Kind::Welcome);
        let frame = Frame::parse(&bytes).expect("a well-formed frame");
        let welcome = Welcome::read(frame.body).expect("a WELCOME");
        assert_eq!(welcome.status.get(), Reason::Ok as u16);
        welcome
    }

    /// Next sequence number of the guest's on a channel.
    pub fn next_seq(&self, channel: u16) -> u32 {
        self.seq[usize::from(channel)]
    }

    /// Opens a channel and waits for the buffers that were granted.
    pub fn open(&mut self, channel: u16, buffers_wanted: u32) -> Vec<u32> {
        self.open_with(channel, buffers_wanted, 0)
    }

    /// Likewise, asking for features.
    pub fn open_with(&mut self, channel: u16, buffers_wanted: u32, features: u32) -> Vec<u32> {
        let granted = self.hello_with(channel, 1 << 20, buffers_wanted, features).granted.get();
        let mut buffers = Vec::new();
        while buffers.len() < granted as usize {
            let bytes = self.receive(Kind::Grant);
            let frame = Frame::parse(&bytes).expect("a well-formed frame");
            buffers.extend(frame.records().flat_map(frame::indices));
        }
        buffers
    }

    /// Sends a sequenced frame with these records.
    pub fn send_records(&mut self, kind: Kind, channel: u16, body: &[u8]) {
        let seq = &mut self.seq[usize::from(channel)];
        let bytes = paste_frame(kind, channel, *seq, 1 << 20, body);
        *seq += 1;
        self.send(&bytes);
    }

    /// Sends requests in one frame.
    pub fn request(&mut self, channel: u16, slots: &[Slot]) {
        let mut body = vec![0; slots.len() * RECORD_LEN];
        for (slot, record) in slots.iter().zip(body.as_chunks_mut().0) {
            slot.write(record);
        }
        self.send_records(Kind::Slots, channel, &body);
    }

    /// Waits for the next slots.
    pub fn slots(&mut self) -> Vec<Slot> {
        let bytes = self.receive(Kind::Slots);
        let frame = Frame::parse(&bytes).expect("a well-formed frame");
        frame.records().map(Slot::read).collect()
    }

    /// Waits until a refusal comes, and returns why. Other slots are passed over.
    pub fn refusal(&mut self) -> Reason {
        loop {
            let slots = self.slots();
            let refused = slots.iter().find(|slot| slot.as_event() == Some(Event::Refused));
            if let Some(slot) = refused {
                return Reason::from_u16(slot.len).expect("a reason");
            }
        }
    }

    /// Waits until the host closes the channel, and returns why.
    pub fn bye(&mut self) -> Reason {
        let bytes = self.receive(Kind::Bye);
        let frame = Frame::parse(&bytes).expect("a well-formed frame");
        let bye = Bye::read(frame.body).expect("a BYE");
        Reason::from_u16(bye.reason.get()).expect("a reason")
    }

    /// Listens on a port.
    pub fn listen(&mut self, channel: u16, port: u16) {
        self.request(channel, &[Slot::listen(port, 64, 1)]);
        let slots = self.slots();
        assert_eq!(slots[0].as_event(), Some(Event::Reply), "{slots:?}");
        assert_eq!(slots[0].len, Reason::Ok as u16);
    }
}

/// A PASTE frame, with whatever body.
pub fn paste_frame(kind: Kind, channel: u16, seq: u32, limit: u32, body: &[u8]) -> Vec<u8> {
    let header = Header {
        dst: *b"\x02PASTE",
        src: [2, 0, 0, 0, 0, 9],
        kind,
        channel,
        count: (body.len() / RECORD_LEN) as u16,
        seq,
        limit,
    };
    let mut bytes = [0; HEADER_LEN];
    header.write(&mut bytes);
    [&bytes, body].concat()
}

/// Sets a ring up and starts it.
pub(super) fn start_ring(
    session: &Session,
    index: u32,
    ring: &Ring,
    kick: &OwnedFd,
    call: &OwnedFd,
) -> io::Result<()> {
    let state = |num: u32| VringState { index: index.into(), num: num.into() };
    let address = VringAddr {
        index: index.into(),
        flags: 0.into(),
        descriptor: ring.address().into(),
        used: (ring.address() + Ring::USED).into(),
        available: (ring.address() + Ring::AVAIL).into(),
        log: 0.into(),
    };
    let number = U64::new(index.into());
    session.tell(request::SET_VRING_NUM, &state(Ring::SIZE.into()), &[])?;
    session.tell(request::SET_VRING_BASE, &state(0), &[])?;
    session.tell(request::SET_VRING_ADDR, &address, &[])?;
    session.tell(request::SET_VRING_CALL, &number, &[call.as_fd()])?;
    session.tell(request::SET_VRING_KICK, &number, &[kick.as_fd()])?;
    session.tell(request::SET_VRING_ENABLE, &state(1), &[])
}

/// Tells the back end where the guest's memory of `len` bytes is.
pub(super) fn set_memory(session: &Session, memory: &Memory, len: u64) -> io::Result<()> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Table {
        header: MemTableHeader,
        region: MemRegion,
    }
    let table = Table {
        header: MemTableHeader { count: 1.into(), padding: 0.into() },
        region: MemRegion {
            guest_addr: ADDRESS.into(),
            size: len.into(),
            user_addr: ADDRESS.into(),
            mmap_offset: 0.into(),
        },
    };
    session.tell(request::SET_MEM_TABLE, &table, &[memory.as_fd()])
}
