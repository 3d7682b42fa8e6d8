//! The virtio-pmem device of a guest: its front end, its requests, and the
//! flushes that answer them.
//!
//! Requests that are found in one turn share one flush of the whole mapping: the
//! device is not told what its guest has stored to. The flush is an epoch like
//! those of the channels, so it shares a sync with whatever they sealed. One such
//! group is under way at a time; what comes meanwhile is the next one.

#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use crate::durability::Durability;
use crate::engine::Now;
use crate::sys::Token;
use crate::vhost::{Answered, Device, Endpoint, Pmem, RingError, SessionError, Watch};

/// Where front ends attach; the descriptors of the device follow.
const ENDPOINT: Token = 0;
const DEVICE: Token = 1;

/// Requests that wait for a flush.
#[derive(Debug)]
struct Group {
    count: u16,
    /// The batch that makes everything durable that was stored before them;
    /// `None` if the host can do nothing of the kind.
    batch: Option<u64>,
    /// The device's resets: another driver's requests are not those of before.
    resets: u64,
}

/// The device and its socket.
#[derive(Debug)]
pub struct PmemPort {
    endpoint: Endpoint,
    device: Device<Pmem>,
    waiting: Option<Group>,
    answered: Answered,
    ring_errors: u64,
}

impl PmemPort {
    /// A device that nobody has attached to.
    pub fn new(endpoint: Endpoint, device: Device<Pmem>) -> PmemPort {
        PmemPort { endpoint, device, waiting: None, answered: Answered::default(), ring_errors: 0 }
    }

    /// Takes note of the requests that wait, and asks for what was stored before
    /// them, in a mapping of `region_len` bytes, to be made durable.
    pub fn ask(&mut self, durability: &mut Durability, region_len: u64) {
        if self.device.is_poisoned() {
            self.lose("its memory was truncated under us");
        }
        if self.waiting.as_ref().is_some_and(|group| group.resets == self.device.resets()) {
            return;
        }
        self.waiting = None;
        match self.device.requests() {
            Ok(0) => {}
            Ok(count) => {
                let batch = durability.seal_everything(region_len);
                self.waiting = Some(Group { count, batch, resets: self.device.resets() });
            }
            Err(error) => self.ring_failed(&error),
        }
    }

    /// Answers the requests whose flush is done, given the last batch that was
    /// and its outcome. Returns how many.
    pub fn answer(&mut self, last: Option<(u64, bool)>) -> usize {
        let Some(Group { count, batch, resets }) = self.waiting else {
            return 0;
        };
        let durable = match (batch, last) {
            (None, _) => false,
            (Some(batch), Some((number, durable))) if number >= batch => durable,
            _ => return 0,
        };
        self.waiting = None;
        if resets != self.device.resets() {
            return 0;
        }
        match self.device.answer(count, durable) {
            Ok(answered) => {
                self.device.flush();
                self.answered.done += answered.done;
                self.answered.failed += answered.failed;
                usize::from(count)
            }
            Err(error) => {
                self.ring_failed(&error);
                0
            }
        }
    }

    /// Control messages: the session, then attachments, as for every device.
    pub fn control(&mut self, now: Now) {
        match self.device.handle_messages() {
            Ok(()) => {}
            Err(SessionError::Closed) => self.lose("the front end has gone"),
            Err(error) => {
                tracing::warn!(%error, "session of the virtio-pmem device ended");
                self.lose("the front end broke the protocol");
            }
        }
        match self.endpoint.poll(now.monotonic_ns, self.device.is_attached()) {
            Ok(Some(stream)) => match self.device.attach(stream) {
                Ok(()) => tracing::info!("front end attached to the virtio-pmem device"),
                Err(error) => tracing::warn!(%error, "front end could not be attached"),
            },
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "endpoint of the virtio-pmem device failed"),
        }
    }

    /// Asks for kicks before the worker sleeps; true if it must not. While a flush
    /// is under way its end wakes the worker, which then looks by itself.
    pub fn arm(&mut self) -> bool {
        self.waiting.is_none() && self.device.arm()
    }

    /// When [`PmemPort::control`] is due without a descriptor saying so, ns.
    pub fn next_attempt_ns(&self) -> Option<u64> {
        self.endpoint.next_attempt_ns()
    }

    /// Descriptors to be watched, with tokens from 0.
    pub fn watch(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Token)> {
        let endpoint = self.endpoint.fd().map(|fd| (fd, ENDPOINT));
        let device = self.device.watch().map(|(watch, fd)| (fd, DEVICE + watch.to_index()));
        endpoint.into_iter().chain(device)
    }

    /// Changes whenever [`PmemPort::watch`] would give another set.
    pub fn generation(&self) -> (u64, u64) {
        (self.device.watch_generation(), self.endpoint.watch_generation())
    }

    /// Clears what a readable descriptor says; true if it wants
    /// [`PmemPort::control`].
    pub fn dispatch(&mut self, token: Token) -> bool {
        match token.checked_sub(DEVICE).and_then(Watch::from_index) {
            Some(Watch::Kick(ring)) => {
                self.device.take_kick(ring);
                false
            }
            _ => true,
        }
    }

    /// Every counter with its name.
    pub fn each_counter(&self, mut visit: impl FnMut(&'static str, u64)) {
        let Answered { done, failed } = self.answered;
        visit("sessions", self.device.counters().sessions);
        visit("flushes", done);
        visit("failed", failed);
        visit("ring_errors", self.ring_errors);
    }

    /// The ring cannot be trusted: the device stops until the driver resets it.
    fn ring_failed(&mut self, error: &RingError) {
        self.ring_errors += 1;
        tracing::warn!(%error, "the driver broke the ring of its virtio-pmem device; it needs a reset");
        self.waiting = None;
    }

    fn lose(&mut self, why: &str) {
        tracing::info!(why, "front end detached from the virtio-pmem device");
        self.device.detach();
        self.waiting = None;
    }
}
