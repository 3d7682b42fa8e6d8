//! The control side of the front end: negotiation, memory, rings, and the
//! back end's own channel, on which the region arrives.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use paste_abi::vhost_user::{
    ConfigHeader, F_PROTOCOL_FEATURES, FLAG_NEED_REPLY, FLAG_REPLY, MemRegion, MemTableHeader,
    SHMEM_WRITABLE, ShMemMap, VringAddr, VringState, backend_request, protocol, request,
};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::message::{self, Message};
use crate::sys;
use crate::transport::TransportError;
use crate::transport::virtqueue::{F_EVENT_IDX, F_MAC, F_VERSION_1, Layout};

/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK (section 2.1).
const STATUS_RUNNING: u64 = 1 | 2 | 8 | 4;

/// The device has several queue pairs, and a queue to say so on, which is ours: we enable
/// rings by messages (VIRTIO 1.2 section 5.1.3).
const F_SEVERAL_PAIRS: u64 = 1 << 22 | 1 << 17;
/// Pairs of rings whose indices fit a message, at most.
const PAIRS_MAX: u16 = 128;

/// How long the backend may take to answer a message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A range of a file that holds the region.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) fd: OwnedFd,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What the device needs to know of one ring.
pub(super) struct RingSetup<'a> {
    pub(super) index: u16,
    pub(super) layout: Layout,
    pub(super) address: u64,
    pub(super) kick: BorrowedFd<'a>,
    pub(super) call: BorrowedFd<'a>,
}

/// The beginning of virtio-net's configuration space (VIRTIO 1.2 section 5.1.4). How many
/// pairs there are is there with [`F_SEVERAL_PAIRS`].
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct NetConfig {
    mac: [u8; 6],
    status: U16,
    pairs: U16,
}

/// The two ways between the ends: requests of ours, and requests of the back end.
#[derive(Debug)]
pub(super) struct Sockets {
    socket: UnixStream,
    backend: UnixStream,
}

impl Sockets {
    /// What to wait for besides the rings: see [`Session::serve`].
    pub(super) fn as_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.socket.as_fd(), self.backend.as_fd()]
    }

    /// Ends the session, and whoever waits for these sees it.
    pub(super) fn end(&self) {
        // One that has ended already cannot be shut down.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A negotiated session.
#[derive(Debug)]
pub(super) struct Session {
    sockets: Arc<Sockets>,
    protocol: u64,
    mac: [u8; 6],
    offer: Option<Offer>,
    withdrawn: bool,
}

impl Session {
    /// Connects and negotiates for so many queue pairs, up to the point where memory is
    /// shared.
    pub(super) fn connect(path: &Path, pairs: u16) -> Result<Session, TransportError> {
        let failed = TransportError::system;
        let socket = UnixStream::connect(path).map_err(failed("connecting to the socket"))?;
        let (backend, theirs) =
            UnixStream::pair().map_err(failed("making the back end's channel"))?;
        for socket in [&socket, &backend] {
            let timeout = Some(ANSWER_TIMEOUT);
            socket
                .set_read_timeout(timeout)
                .and_then(|()| socket.set_write_timeout(timeout))
                .map_err(failed("setting a socket's timeout"))?;
        }
        let sockets = Arc::new(Sockets { socket, backend });
        let mut session =
            Session { sockets, protocol: 0, mac: [0; 6], offer: None, withdrawn: false };
        session.negotiate(theirs.as_fd(), pairs)?;
        Ok(session)
    }

    fn negotiate(&mut self, theirs: BorrowedFd<'_>, pairs: u16) -> Result<(), TransportError> {
        let offered = self.ask_u64(request::GET_FEATURES)?;
        for (bit, name) in [
            (F_PROTOCOL_FEATURES, "vhost-user protocol features"),
            (F_VERSION_1, "VIRTIO_F_VERSION_1"),
            (F_EVENT_IDX, "VIRTIO_F_EVENT_IDX"),
            (F_MAC, "VIRTIO_NET_F_MAC"),
        ] {
            if offered & bit == 0 {
                return Err(TransportError::Unsupported(name));
            }
        }
        let available = self.ask_u64(request::GET_PROTOCOL_FEATURES)?;
        for (bit, name) in [
            (protocol::BACKEND_REQ, "a back end's channel (BACKEND_REQ)"),
            (protocol::BACKEND_SEND_FD, "descriptors from the back end (BACKEND_SEND_FD)"),
            (protocol::CONFIG, "its configuration space (CONFIG)"),
            (protocol::SHMEM, "a shared region (SHMEM)"),
        ] {
            if available & bit == 0 {
                return Err(TransportError::Unsupported(name));
            }
        }
        let wanted = protocol::MQ
            | protocol::BACKEND_REQ
            | protocol::BACKEND_SEND_FD
            | protocol::CONFIG
            | protocol::SHMEM
            | protocol::REPLY_ACK
            | protocol::STATUS;
        let accepted = available & wanted;
        self.tell(request::SET_PROTOCOL_FEATURES, &U64::new(accepted), &[])?;
        self.protocol = accepted;
        self.tell(request::SET_OWNER, &(), &[])?;
        self.tell(request::SET_BACKEND_REQ_FD, &(), &[theirs])?;
        let several = F_SEVERAL_PAIRS & if pairs > 1 { offered } else { 0 };
        let wanted = F_PROTOCOL_FEATURES | F_VERSION_1 | F_EVENT_IDX | F_MAC | several;
        self.tell(request::SET_FEATURES, &U64::new(wanted), &[])?;
        let config = self.read_config()?;
        self.mac = config.mac;
        let knows_several = several == F_SEVERAL_PAIRS && accepted & protocol::MQ != 0;
        let have = if knows_several { config.pairs.get().min(PAIRS_MAX) } else { 1 };
        if have < pairs {
            return Err(TransportError::Pairs { have, asked: pairs });
        }
        Ok(())
    }

    fn read_config(&mut self) -> Result<NetConfig, TransportError> {
        let size = size_of::<NetConfig>() as u32;
        let header = ConfigHeader { offset: 0.into(), size: size.into(), flags: 0.into() };
        let config = NetConfig { mac: [0; 6], status: 0.into(), pairs: 0.into() };
        let payload = [header.as_bytes(), config.as_bytes()].concat();
        self.send(request::GET_CONFIG, 0, &payload, &[])?;
        let answer = self.answer(request::GET_CONFIG)?;
        match NetConfig::read_from_suffix(answer.payload()) {
            Ok((_, config)) if answer.payload().len() == payload.len() => Ok(config),
            _ => Err(TransportError::Protocol("a message's payload has the wrong size")),
        }
    }

    /// Shares `len` bytes of memory, which the device finds at `address`, and
    /// starts the rings in it.
    pub(super) fn start(
        &mut self,
        memory: BorrowedFd<'_>,
        address: u64,
        len: u64,
        rings: &[RingSetup<'_>],
    ) -> Result<(), TransportError> {
        #[derive(IntoBytes, Immutable)]
        #[repr(C)]
        struct Table {
            header: MemTableHeader,
            region: MemRegion,
        }
        let table = Table {
            header: MemTableHeader { count: 1.into(), padding: 0.into() },
            region: MemRegion {
                guest_addr: address.into(),
                size: len.into(),
                user_addr: address.into(),
                mmap_offset: 0.into(),
            },
        };
        self.tell(request::SET_MEM_TABLE, &table, &[memory])?;
        for ring in rings {
            let index = u32::from(ring.index);
            let state = |num: u32| VringState { index: index.into(), num: num.into() };
            let part = |offset: usize| U64::new(ring.address + offset as u64);
            let addr = VringAddr {
                index: index.into(),
                flags: 0.into(),
                descriptor: part(0),
                used: part(ring.layout.used),
                available: part(ring.layout.avail),
                log: 0.into(),
            };
            let index = U64::new(index.into());
            self.tell(request::SET_VRING_NUM, &state(ring.layout.size.into()), &[])?;
            self.tell(request::SET_VRING_BASE, &state(0), &[])?;
            self.tell(request::SET_VRING_ADDR, &addr, &[])?;
            self.tell(request::SET_VRING_CALL, &index, &[ring.call])?;
            self.tell(request::SET_VRING_KICK, &index, &[ring.kick])?;
        }
        for ring in rings {
            let state = VringState { index: u32::from(ring.index).into(), num: 1.into() };
            self.tell(request::SET_VRING_ENABLE, &state, &[])?;
        }
        if self.protocol & protocol::STATUS != 0 {
            self.tell(request::SET_STATUS, &U64::new(STATUS_RUNNING), &[])?;
        }
        Ok(())
    }

    /// The device's address.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Where the region is. The back end may say so a little later than the
    /// WELCOME that made us ask.
    pub(super) fn wait_offer(&mut self) -> Result<&Offer, TransportError> {
        let deadline = sys::monotonic() + ANSWER_TIMEOUT;
        while self.offer.is_none() {
            let left = deadline.saturating_sub(sys::monotonic());
            if left.is_zero() {
                break;
            }
            sys::wait_readable(self.sockets.as_fds(), Some(left))
                .map_err(TransportError::system("waiting for the region"))?;
            self.serve()?;
        }
        self.offer.as_ref().ok_or(TransportError::Protocol("the back end offered no region"))
    }

    /// The ways to the back end.
    pub(super) fn sockets(&self) -> &Arc<Sockets> {
        &self.sockets
    }

    /// Serves what has arrived on the sockets without waiting: requests of the
    /// back end, or the end of the session.
    pub(super) fn serve(&mut self) -> Result<(), TransportError> {
        loop {
            let timeout = Some(Duration::ZERO);
            let ready = sys::wait_readable(self.sockets.as_fds(), timeout)
                .map_err(TransportError::system("looking at the sockets"))?;
            match ready {
                [false, false] => break,
                [_, true] => self.serve_backend()?,
                [true, false] => {
                    // Nothing was asked, so this can only be the end.
                    message::receive(&self.sockets.socket)?;
                    return Err(TransportError::Protocol("an answer that nobody asked for"));
                }
            }
        }
        if self.withdrawn {
            return Err(TransportError::Protocol("the region was withdrawn"));
        }
        Ok(())
    }

    fn serve_backend(&mut self) -> Result<(), TransportError> {
        let mut message = message::receive(&self.sockets.backend)?;
        let done = match message.request {
            backend_request::SHMEM_MAP => self.map(&mut message),
            backend_request::SHMEM_UNMAP => {
                self.withdrawn = self.offer.take().is_some();
                self.withdrawn
            }
            backend_request::CONFIG_CHANGE => true,
            _ => false,
        };
        if message.flags & FLAG_NEED_REPLY != 0 {
            let answer = U64::new(u64::from(!done));
            let bytes = answer.as_bytes();
            message::send(&self.sockets.backend, message.request, FLAG_REPLY, bytes, &[])?;
        }
        Ok(())
    }

    /// The region, if it comes in one piece and can be written.
    fn map(&mut self, message: &mut Message) -> bool {
        let (Ok(map), Some(fd)) = (message.read::<ShMemMap>(), message.fd.take()) else {
            return false;
        };
        let whole = map.shm_offset.get() == 0 && map.flags.get() & SHMEM_WRITABLE != 0;
        if !whole || self.offer.is_some() {
            return false;
        }
        self.offer = Some(Offer { fd, offset: map.fd_offset.get(), len: map.len.get() });
        true
    }

    fn send(
        &mut self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), TransportError> {
        message::send(&self.sockets.socket, request, flags, payload, fds)
    }

    /// Sends a message that has no answer of its own, and waits until the back
    /// end has acted on it, if it can say so.
    fn tell<T: IntoBytes + Immutable>(
        &mut self,
        request: u32,
        payload: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), TransportError> {
        let acknowledged = self.protocol & protocol::REPLY_ACK != 0;
        let flags = if acknowledged { FLAG_NEED_REPLY } else { 0 };
        self.send(request, flags, payload.as_bytes(), fds)?;
        if acknowledged && self.answer(request)?.read::<U64>()?.get() != 0 {
            return Err(TransportError::Protocol("the backend refused a message of the set-up"));
        }
        Ok(())
    }

    fn ask_u64(&mut self, request: u32) -> Result<u64, TransportError> {
        self.send(request, 0, &[], &[])?;
        Ok(self.answer(request)?.read::<U64>()?.get())
    }

    /// Waits for the answer to `request`, and serves the back end meanwhile: it
    /// may wait for us before it answers.
    fn answer(&mut self, request: u32) -> Result<Message, TransportError> {
        let deadline = sys::monotonic() + ANSWER_TIMEOUT;
        loop {
            let left = deadline.saturating_sub(sys::monotonic());
            let ready = sys::wait_readable(self.sockets.as_fds(), Some(left))
                .map_err(TransportError::system("waiting for an answer"))?;
            match ready {
                [_, true] => self.serve_backend()?,
                [true, false] => break,
                [false, false] if left.is_zero() => {
                    return Err(TransportError::Protocol("no answer to a message"));
                }
                [false, false] => {}
            }
        }
        let message = message::receive(&self.sockets.socket)?;
        if message.request != request || message.flags & FLAG_REPLY == 0 {
            return Err(TransportError::Protocol("an answer to another message"));
        }
        Ok(message)
    }
}
