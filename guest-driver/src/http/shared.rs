//! What all flows of a server use.

use super::files::Root;
use super::log::Log;
use super::parse::HEAD_MAX;
use super::respond::Date;
use crate::buffer::Buffer;
use crate::channel::Channel;

/// No buffer, in the list of buffers that wait.
pub(super) const NONE: u32 = u32::MAX;

/// Buffers that are kept for the next responses, at most.
const SPARE_MAX: usize = 1024;

/// A buffer in a flow's list.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) buffer: Option<Buffer>,
    pub(super) next: u32,
}

/// What all flows use.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) root: Option<Root>,
    pub(super) date: Date,
    pub(super) body_max: u64,
    /// Bytes of a file that one slot carries: what fits a packet.
    pub(super) chunk: usize,
    /// What requests are logged in, if they are.
    pub(super) log: Option<Log>,
    pub(super) lists: Box<[Waiting]>,
    pub(super) heads: Heads,
    /// Empty buffers that have come back from the peer, the last one on top: what was
    /// written to before is still in the caches.
    spare: Vec<Buffer>,
}

/// Blocks for heads that span slots. Their memory is touched when used first.
#[derive(Debug)]
pub(super) struct Heads {
    pub(super) bytes: Box<[u8]>,
    pub(super) free: Vec<u32>,
}

impl Heads {
    pub(super) fn block(&mut self, block: u32) -> &mut [u8] {
        let start = block as usize * HEAD_MAX;
        &mut self.bytes[start..start + HEAD_MAX]
    }
}

impl Shared {
    pub(super) fn new(root: Option<Root>, body_max: u64, heads: u32) -> Shared {
        Shared {
            root,
            date: Date::new(0),
            body_max,
            chunk: 0,
            log: None,
            lists: Box::default(),
            spare: Vec::with_capacity(SPARE_MAX),
            heads: Heads {
                bytes: vec![0; heads as usize * HEAD_MAX].into(),
                free: (0..heads).rev().collect(),
            },
        }
    }

    /// Gives back a buffer that a flow has read, unless the log keeps it.
    pub(super) fn give_back(&mut self, channel: &mut Channel, buffer: Buffer) {
        match &mut self.log {
            Some(log) if log.uses(&buffer) => log.keep(buffer),
            _ => channel.give_back(buffer),
        }
    }

    /// A buffer to write a response to.
    pub(super) fn take_buffer(&mut self, channel: &mut Channel) -> Option<Buffer> {
        self.spare.pop().or_else(|| channel.take_buffer())
    }

    /// Takes a buffer back that a response was sent from.
    pub(super) fn take_back(&mut self, channel: &mut Channel, mut buffer: Buffer) {
        if self.spare.len() == SPARE_MAX {
            return channel.give_back(buffer);
        }
        let headroom = headroom(channel);
        buffer.set_range(headroom..headroom);
        self.spare.push(buffer);
    }

    /// Begins anew with a region of `buffers` buffers.
    pub(super) fn reset(&mut self, buffers: u32) {
        self.lists = (0..buffers).map(|_| Waiting { buffer: None, next: NONE }).collect();
        self.spare.clear();
        let heads = (self.heads.bytes.len() / HEAD_MAX) as u32;
        self.heads.free.clear();
        self.heads.free.extend((0..heads).rev());
    }
}

/// Where payload to be sent starts in a buffer, at least.
pub(super) fn headroom(channel: &Channel) -> usize {
    channel.geometry().map_or(0, |geometry| usize::from(geometry.headroom))
}
