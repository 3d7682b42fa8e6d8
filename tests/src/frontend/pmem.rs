//! The driver of a virtio-pmem device, which may misbehave.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::EventfdFlags;

use super::guest::{ADDRESS, set_memory, start_ring};
use super::{Descriptor, Memory, Ring, Session, flag};
use crate::wait;

/// VIRTIO_PMEM_F_SHMEM_REGION.
const F_SHMEM_REGION: u64 = 1;

/// A driver with its ring running.
#[derive(Debug)]
pub struct PmemGuest {
    /// The socket.
    pub session: Session,
    /// Requests.
    pub ring: Ring,
    kick: OwnedFd,
    _call: OwnedFd,
}

impl PmemGuest {
    /// Attaches as soon as the back end lets it.
    pub fn attach_soon(path: &Path) -> PmemGuest {
        wait::until("the back end accepts a front end", || PmemGuest::attach(path).ok())
    }

    fn attach(path: &Path) -> io::Result<PmemGuest> {
        let mut session = Session::connect(path)?;
        session.negotiate_with(F_SHMEM_REGION)?;
        let memory = Memory::new(Ring::LEN);
        set_memory(&session, &memory, Ring::LEN)?;
        let notifier = || Ok::<_, io::Error>(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let (kick, call) = (notifier()?, notifier()?);
        let ring = Ring::new(memory, 0, ADDRESS);
        start_ring(&session, 0, &ring, &kick, &call)?;
        Ok(PmemGuest { session, ring, kick, _call: call })
    }

    /// Offers a chain of these descriptors, which are linked here.
    pub fn offer(&mut self, chain: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(chain) {
            let last = usize::from(index) + 1 == chain.len();
            let flags = descriptor.flags | if last { 0 } else { flag::NEXT };
            self.ring.set(index, Descriptor { flags, next: index + 1, ..*descriptor });
        }
        self.ring.offer(0);
        self.kick();
    }

    /// Wakes the device.
    pub fn kick(&self) {
        // An error means that it is awake.
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    /// Waits until the chain is used, and returns how much was written.
    pub fn used(&mut self) -> u32 {
        wait::until("the device answers", || self.ring.take()).1
    }

    /// A request of `request_len` bytes that begins with this type, and
    /// `response_len` bytes of room for its response.
    pub fn chain(&self, kind: u32, request_len: u32, response_len: u32) -> [Descriptor; 2] {
        self.ring.fill(0, &kind.to_le_bytes());
        self.ring.fill(1, &[0xee; 8]);
        let (request, response) = (self.ring.buffer(0), self.ring.buffer(1));
        [
            Descriptor { addr: request, len: request_len, ..Descriptor::default() },
            Descriptor { addr: response, len: response_len, flags: flag::WRITE, next: 0 },
        ]
    }

    /// Sends a request, and waits for its response.
    pub fn request(&mut self, kind: u32) -> i32 {
        let chain = self.chain(kind, 4, 4);
        self.offer(&chain);
        assert_eq!(self.used(), 4);
        self.response()
    }

    /// What stands where the response belongs.
    pub fn response(&self) -> i32 {
        let bytes = self.ring.contents(1, 4);
        i32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }
}
