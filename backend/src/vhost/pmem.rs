//! The virtio-pmem device: one ring of requests to make stores durable.
//!
//! A request stays in the ring until the flush that answers it is done, and only
//! then is it taken, read and used. So nothing is ever in flight between ring and
//! device: a ring that is stopped, reset or moved meanwhile has lost nothing, and
//! whoever goes on finds the request where it was. What a request says, and what
//! it is answered, is [`paste_pmem::device`]'s.

use paste_abi::vhost_user::CONFIG_MAX;
use paste_pmem::device::{self, CONFIG_LEN, F_SHMEM_REGION, REQUEST_LEN, RESPONSE_LEN};
use vm_memory::GuestAddress;

use super::control::{Model, RegionFd, feature};
use super::device::Device;
use super::memory::GuestRam;
use super::queue::{Access, Fault, Ring, RingError};

/// Index of the only ring.
const REQUESTS: usize = 0;
/// Descriptors of the ring, at most: more requests at once than a guest has
/// reason for.
const QUEUE_SIZE_MAX: u16 = 256;

/// A virtio-pmem device's own part of a [`Device`].
#[derive(Debug)]
pub struct Pmem;

/// How requests were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Answered {
    /// With success.
    pub done: u64,
    /// With failure, or not at all for want of room for a response.
    pub failed: u64,
}

impl Device<Pmem> {
    /// A device that shows this region, without a front end.
    pub fn pmem(name: String, region: RegionFd) -> Device<Pmem> {
        let mut config = [0; CONFIG_MAX];
        config[..CONFIG_LEN].copy_from_slice(&device::Config::SHARED_MEMORY.bytes());
        Device::of(Model {
            name,
            rings: 1,
            features: feature(F_SHMEM_REGION),
            protocol: 0,
            config,
            mtu_max: 0,
            region: Some(region),
            queue_size_max: QUEUE_SIZE_MAX,
        })
    }

    /// How many requests wait for a flush that begins now.
    pub fn requests(&mut self) -> Result<u16, RingError> {
        let control = &mut self.control;
        let ring = &mut control.rings[REQUESTS];
        if !ring.is_ready() || !ring.enabled {
            return Ok(0);
        }
        ring.survey().map_err(|fault| control.broken(RingError { ring: 0, fault }))
    }

    /// Answers the first `count` requests, for which a flush was done that began
    /// after they were made; the driver sees it at [`Device::flush`].
    pub fn answer(&mut self, count: u16, durable: bool) -> Result<Answered, RingError> {
        let control = &mut self.control;
        let ring = &mut control.rings[REQUESTS];
        let mut answered = Answered::default();
        if !ring.is_ready() || !ring.enabled {
            return Ok(answered);
        }
        ring.feed();
        for _ in 0..count {
            match answer(ring, &control.mem, durable) {
                Ok(None) => break,
                Ok(Some(true)) => answered.done += 1,
                Ok(Some(false)) => answered.failed += 1,
                Err(fault) => return Err(control.broken(RingError { ring: REQUESTS, fault })),
            }
        }
        Ok(answered)
    }

    /// Asks the driver for kicks before the worker sleeps. True if there are
    /// requests that [`Device::requests`] has not counted.
    pub fn arm(&mut self) -> bool {
        let ring = &mut self.control.rings[REQUESTS];
        ring.enabled && ring.arm()
    }
}

/// Takes one request and answers it: whether with success, or `None` if there is
/// none. A response that has no room is not written, and its length says so.
fn answer(ring: &mut Ring, mem: &GuestRam, durable: bool) -> Result<Option<bool>, Fault> {
    let Some(chain) = ring.take(mem, Access::Read)? else {
        return Ok(None);
    };
    let head = chain.head();
    let mut chain = ring.walk(mem, &chain);
    let mut request = [0; REQUEST_LEN];
    let mut request_len = 0;
    // Where each byte of the response goes: descriptors may be cut anywhere.
    let mut room = [GuestAddress(0); RESPONSE_LEN];
    let mut room_len = 0;
    let mut behind_writable = false;
    while let Some(piece) = chain.next()? {
        let outside = Fault::Outside { addr: piece.addr.0, len: piece.len.into() };
        if piece.writable {
            behind_writable = true;
            for (byte, offset) in room[room_len..].iter_mut().zip(0..u64::from(piece.len)) {
                *byte = GuestAddress(piece.addr.0.checked_add(offset).ok_or(outside)?);
                room_len += 1;
            }
        } else if behind_writable {
            return Err(Fault::ReadableBehindWritable);
        } else {
            let len = (piece.len as usize).min(REQUEST_LEN - request_len);
            let to = &mut request[request_len..request_len + len];
            mem.copy_out(piece.addr, to).map_err(|_| outside)?;
            request_len += len;
        }
    }
    let outcome = device::handle(&request[..request_len], || durable);
    if room_len < RESPONSE_LEN {
        ring.put_used(head, 0);
        return Ok(Some(false));
    }
    for (byte, addr) in outcome.bytes().into_iter().zip(room) {
        mem.copy_in(addr, &[byte]).map_err(|_| Fault::Outside { addr: addr.0, len: 1 })?;
    }
    ring.put_used(head, RESPONSE_LEN as u32);
    Ok(Some(outcome == device::Outcome::Done))
}
