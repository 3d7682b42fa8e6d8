//! Devices that show a guest its region, in memory that their VMM has made.
//!
//! A VMM that cannot map memory of ours into its guest (bhyve) has the memory instead, and
//! gives a descriptor of it. An offer comes from the control socket and is answered by the
//! wiring, which puts the region there; then the link is the worker's, which answers its
//! FLUSH requests.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use paste_pmem::device::Outcome;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use zerocopy::IntoBytes;

use super::LinkError;
use super::wire::{self, FLUSHES_MAX, Flushed, HEAD_LEN, Kind, Segment, WireError};

/// What the segment of a guest has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentTerms {
    /// Bytes of all of it.
    pub len: u64,
    /// Where in it begins what the guest may see.
    pub guest_offset: u64,
    /// Bytes that the guest may see.
    pub guest_len: u64,
    /// Whether FLUSH makes stores durable.
    pub durable: bool,
}

/// A device that offers memory for its guest's region, or asks how much it has to be.
#[derive(Debug)]
pub struct RegionOffer {
    /// The connected socket.
    pub(super) socket: OwnedFd,
}

impl RegionOffer {
    /// Says what the segment has to be; and, where one was offered, that the region lies in
    /// it.
    pub fn accept(&self, terms: SegmentTerms) {
        self.answer(&Segment {
            len: terms.len.into(),
            guest_offset: terms.guest_offset.into(),
            guest_len: terms.guest_len.into(),
            status: 0.into(),
            durable: terms.durable.into(),
            reserved: [0; 5],
            text: [0; 160],
        });
    }

    /// Says why not; `status` says whether to try again.
    pub fn refuse(self, status: u16, why: &str) {
        self.answer(&Segment {
            len: 0.into(),
            guest_offset: 0.into(),
            guest_len: 0.into(),
            status: status.into(),
            durable: 0,
            reserved: [0; 5],
            text: wire::said(why),
        });
    }

    fn answer(&self, segment: &Segment) {
        let record: [u8; HEAD_LEN + size_of::<Segment>()] =
            wire::record(Kind::Segment, segment.as_bytes());
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Err(error) = send(&self.socket, &record, flags) {
            tracing::debug!(%error, "a VMM could not be answered");
        }
    }

    /// The link of the same device. `presence` lives as long as it does.
    ///
    /// # Errors
    /// Those of duplicating a descriptor.
    pub fn link(&self, presence: Arc<()>) -> std::io::Result<RegionLink> {
        let socket = self.socket.try_clone()?;
        Ok(RegionLink { socket, asked: [0; FLUSHES_MAX], count: 0, _presence: presence })
    }
}

/// The link of a device whose guest has its region in the device's segment.
#[derive(Debug)]
pub struct RegionLink {
    socket: OwnedFd,
    /// The numbers of FLUSHes that are under way, in order.
    asked: [u64; FLUSHES_MAX],
    count: usize,
    _presence: Arc<()>,
}

impl RegionLink {
    /// The descriptor to be watched, for becoming readable.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes in all requests that have come, and returns how many are under way. Never
    /// waits.
    ///
    /// # Errors
    /// [`LinkError`]: the link has ended.
    pub fn take(&mut self) -> Result<usize, LinkError> {
        loop {
            let mut record = [0; HEAD_LEN + size_of::<u64>() + 1];
            let len = match recv(&self.socket, &mut record, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(LinkError::Closed),
                Ok((_, len)) => len,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(self.count),
                Err(Errno::CONNRESET | Errno::PIPE) => return Err(LinkError::Closed),
                Err(errno) => return Err(LinkError::System(errno)),
            };
            let (kind, _, body) = wire::head(&record[..len])?;
            if kind != Kind::Flush {
                return Err(WireError::Kind(kind as u8).into());
            }
            let number = body.try_into().map_err(|_| WireError::Body(body.len(), kind as u8))?;
            let place = self.asked.get_mut(self.count).ok_or(WireError::Flushes)?;
            *place = u64::from_le_bytes(number);
            self.count += 1;
        }
    }

    /// Answers the first `count` requests.
    ///
    /// # Errors
    /// [`LinkError`]: the link has ended, also because nobody reads the answers.
    pub fn answer(&mut self, count: usize, outcome: Outcome) -> Result<(), LinkError> {
        let count = count.min(self.count);
        for &number in &self.asked[..count] {
            let flushed =
                Flushed { number: number.into(), outcome: outcome.bytes(), reserved: [0; 4] };
            let record: [u8; HEAD_LEN + size_of::<Flushed>()] =
                wire::record(Kind::Flushed, flushed.as_bytes());
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            loop {
                match send(&self.socket, &record, flags) {
                    Ok(_) => break,
                    Err(Errno::INTR) => {}
                    Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                    Err(errno) => return Err(LinkError::System(errno)),
                }
            }
        }
        self.asked.copy_within(count..self.count, 0);
        self.count -= count;
        Ok(())
    }
}
