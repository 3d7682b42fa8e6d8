//! The region of an open channel, as the store uses it.

use std::time::Duration;

use paste_pmem::wal::WalError;
use paste_pmem::{Claims, Medium, Ticket};

use super::extent::{Bytes, Extent};
use super::journal::Journal;
use super::region::{Recovering, Region, Run};
use crate::buffer::Buffer;
use crate::channel::Channel;
use crate::error::{PollError, ResumeError};
use crate::event::Event;
use crate::sys;
use crate::transport::Timeout;

/// How long the host may take to give back what is still on its way out, and to
/// make the log's header durable.
const ATTACH_TIME: Duration = Duration::from_secs(10);
const ATTACH_STEP: Duration = Duration::from_millis(10);
/// How soon what could not be made durable is tried again.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Empty buffers to begin with.
const BUFFERS_MIN: u32 = 8;

/// Why there is no region to store in.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The host lets nobody store buffers.
    #[error("the host does not let buffers be stored")]
    Unsupported,
    /// The channel is not open any more.
    #[error("the channel was lost while its region was looked at")]
    Lost,
    /// The channel is gone for good.
    #[error(transparent)]
    Poll(#[from] PollError),
    /// The superblock is damaged, or of another region, or tells a layout that cannot
    /// be.
    #[error("the region does not begin with its superblock")]
    NoSuperblock,
    /// There is a log, and it cannot be read.
    #[error("the region's log cannot be used: {0}")]
    Log(#[from] WalError),
    /// The host does not say which buffers are still ours.
    #[error("the host does not give stored buffers back: {0}")]
    Resume(#[from] ResumeError),
    /// The host keeps buffers that are claimed.
    #[error("the host keeps back {0} claimed buffers: has another channel this region?")]
    KeptBack(usize),
    /// The host does not make the log's header durable.
    #[error("the host did not make the log's header durable in time")]
    NotDurable,
}

/// Who has a buffer.
#[derive(Debug, Default)]
enum Holder {
    /// The host.
    #[default]
    Host,
    /// We, and nothing durable is in it.
    Us(Buffer),
    /// We, as durable data.
    Stored,
}

/// What is known of the region while the channel is open.
#[derive(Debug)]
pub(super) struct Attached {
    journal: Journal,
    holders: Box<[Holder]>,
    headroom: u16,
    /// Claimed buffers that the host is still to be told of.
    unsaid: Vec<u32>,
}

/// The region and the channel that it is reached through.
pub(super) struct Live<'a> {
    pub(super) channel: &'a mut Channel,
    pub(super) attached: &'a mut Attached,
}

impl Attached {
    /// Finds claims and log of the channel's region, and takes back what is
    /// claimed. Waits for the host.
    pub(super) fn new(channel: &mut Channel) -> Result<Attached, AttachError> {
        let known = *channel.geometry().ok_or(AttachError::Lost)?;
        if !known.stores {
            return Err(AttachError::Unsupported);
        }
        let geometry = *channel.layout().ok_or(AttachError::NoSuperblock)?;
        let medium = channel.medium().ok_or(AttachError::Lost)?;
        let claimed: Vec<u32> = Claims::new(&geometry).iter(medium).collect();
        let refused = channel.resume_within(&claimed, ATTACH_TIME)?;
        if !refused.is_empty() {
            return Err(AttachError::KeptBack(refused.len()));
        }
        let medium = channel.medium().ok_or(AttachError::Lost)?;
        let journal = Journal::open(medium, geometry, sys::random_u64())?;
        let mut holders: Box<[Holder]> =
            (0..geometry.buffer_count()).map(|_| Holder::Host).collect();
        for buffer in claimed {
            holders[buffer as usize] = Holder::Stored;
        }
        let mut attached =
            Attached { journal, holders, headroom: known.headroom, unsaid: Vec::new() };
        attached.wait_ready(channel)?;
        Ok(attached)
    }

    /// Waits until the log takes records, its header being durable, and until there
    /// are buffers to write to. No flow is there yet, so no event matters but one.
    fn wait_ready(&mut self, channel: &mut Channel) -> Result<(), AttachError> {
        let deadline = sys::monotonic() + ATTACH_TIME;
        let (mut last, mut retry_at) = (None, None);
        loop {
            let granted = channel.stats().granted;
            let medium = channel.medium().ok_or(AttachError::Lost)?;
            // The log gets there by commits, each after the one before is durable, or
            // has failed.
            if retry_at.is_some_and(|at| sys::monotonic() >= at) {
                (last, retry_at) = (None, None);
            }
            while !self.journal.is_ready(medium) && last.is_none_or(|ticket| medium.reached(ticket))
            {
                last = Some(self.journal.seal(medium));
            }
            let ready = self.journal.is_ready(medium);
            if ready && granted >= BUFFERS_MIN {
                return Ok(());
            }
            if sys::monotonic() > deadline {
                // A full region can be read, and deleted from.
                return if ready { Ok(()) } else { Err(AttachError::NotDurable) };
            }
            channel.poll(Timeout::After(ATTACH_STEP))?;
            while let Some(event) = channel.next_event() {
                match event {
                    Event::Lost { .. } => return Err(AttachError::Lost),
                    Event::Data { data, .. } => channel.give_back(data),
                    Event::Flushed { ticket, result: Err(_) } if Some(ticket) == last => {
                        retry_at = Some(sys::monotonic() + RETRY_INTERVAL);
                    }
                    _ => {}
                }
            }
        }
    }

    /// A buffer has arrived.
    pub(super) fn arrived(&mut self, buffer: Buffer) -> Extent {
        let extent = Extent {
            buffer: buffer.index(),
            offset: buffer.offset() as u16,
            len: buffer.len() as u16,
        };
        self.holders[extent.buffer as usize] = Holder::Us(buffer);
        extent
    }

    /// The buffer, to write to, if nothing durable is in it.
    pub(super) fn ours(&mut self, index: u32) -> Option<&mut Buffer> {
        match self.holders.get_mut(index as usize) {
            Some(Holder::Us(buffer)) => Some(buffer),
            _ => None,
        }
    }

    /// Whether the host knows that the buffer is stored.
    pub(super) fn is_stored(&self, index: u32) -> bool {
        matches!(self.holders.get(index as usize), Some(Holder::Stored))
    }

    /// Tells the host of buffers that are stored by now, as far as there is room.
    pub(super) fn say_stored(&mut self, channel: &mut Channel) {
        while let Some(index) = self.unsaid.pop() {
            let Some(holder) = self.holders.get_mut(index as usize) else { continue };
            match std::mem::take(holder) {
                Holder::Us(buffer) => match channel.store(buffer) {
                    Ok(_) => *holder = Holder::Stored,
                    Err(refused) => {
                        *holder = Holder::Us(refused.buffer);
                        self.unsaid.push(index);
                        return;
                    }
                },
                other => *holder = other,
            }
        }
    }
}

impl Bytes for Live<'_> {
    fn bytes(&self, extent: Extent) -> &[u8] {
        let start = usize::from(extent.offset);
        let range = start..start + usize::from(extent.len);
        match self.attached.holders.get(extent.buffer as usize) {
            Some(Holder::Us(buffer)) => self.channel.range_bytes(buffer, range),
            Some(Holder::Stored) => self.channel.stored_bytes(extent.buffer, range),
            _ => &[],
        }
    }
}

impl Live<'_> {
    fn with_medium<T>(
        &mut self,
        act: impl FnOnce(&mut Journal, &mut crate::RegionMedium) -> T,
    ) -> Option<T> {
        let journal = &mut self.attached.journal;
        self.channel.medium().map(|medium| act(journal, medium))
    }
}

impl Region for Live<'_> {
    fn buffer_size(&self) -> u32 {
        self.attached.journal.geometry().buffer_size()
    }

    fn buffer_count(&self) -> u32 {
        self.attached.journal.geometry().buffer_count()
    }

    fn headroom(&self) -> u16 {
        self.attached.headroom
    }

    fn read(&self, buffer: u32, offset: u16, out: &mut [u8]) {
        self.channel.region().load(self.attached.journal.at(buffer, offset), out);
    }

    fn write(&mut self, buffer: u32, offset: u16, bytes: &[u8]) {
        self.with_medium(|journal, medium| medium.store(journal.at(buffer, offset), bytes));
    }

    fn checksum(&self, extent: Extent, seed: u32) -> u32 {
        crc32c::crc32c_append(seed, self.bytes(extent))
    }

    fn flush(&mut self, extent: Extent) {
        self.with_medium(|journal, medium| {
            medium.flush(journal.at(extent.buffer, extent.offset), extent.len.into());
        });
    }

    fn take(&mut self) -> Option<u32> {
        let buffer = self.channel.take_buffer()?;
        Some(self.attached.arrived(buffer).buffer)
    }

    fn give_back(&mut self, buffer: u32) {
        match self.attached.holders.get_mut(buffer as usize).map(std::mem::take) {
            Some(Holder::Us(buffer)) => self.channel.give_back(buffer),
            Some(Holder::Stored) => drop(self.channel.release(buffer)),
            _ => {}
        }
    }

    fn claim(&mut self, buffer: u32) {
        self.with_medium(|journal, medium| journal.set_claim(medium, buffer, true));
        self.attached.unsaid.push(buffer);
    }

    fn unclaim(&mut self, buffer: u32) {
        self.with_medium(|journal, medium| journal.set_claim(medium, buffer, false));
    }

    fn log_room(&self) -> u64 {
        self.attached.journal.room()
    }

    fn append(&mut self, run: &Run) -> Option<u64> {
        self.with_medium(|journal, medium| journal.append(medium, run)).flatten()
    }

    fn truncate(&mut self, first: u64) {
        self.attached.journal.truncate(first);
    }

    fn first(&self) -> u64 {
        self.attached.journal.first(self.channel.region())
    }

    fn seal(&mut self) -> Ticket {
        self.with_medium(|journal, medium| journal.seal(medium)).unwrap_or_default()
    }

    fn reached(&self, ticket: Ticket) -> bool {
        self.channel.region().reached(ticket)
    }
}

impl Recovering for Live<'_> {
    fn is_claimed(&self, buffer: u32) -> bool {
        self.attached.journal.is_claimed(self.channel.region(), buffer)
    }

    fn records(&mut self) -> Vec<(u64, Run)> {
        self.attached.journal.take_found()
    }

    fn log_damages(&self) -> u64 {
        self.attached.journal.lost()
    }
}
