//! What frames are about to touch, brought into the cache.
//!
//! With many flows a request waits for the memory again and again: for its place
//! in the table, for the flow's state, its timer, and the record of the response
//! that it acknowledges, one after the other. Over a batch of frames the same
//! waits overlap, if everything is read once before anything is done.

use core::hint::black_box;
use core::net::Ipv4Addr;

use crate::bufs::NIL;
use crate::flow::{Key, Local};
use crate::frame::RxFrame;
use crate::memory::Memory;
use crate::stack::Stack;
use crate::wire::{be16, be32, ethernet, ipv4, ipv6};

/// Up to so many flows are in the cache anyway.
const FLOWS_CACHED: u32 = 1024;
/// Frames whose waits overlap.
const AHEAD: usize = 64;
/// Bytes of a frame that are looked at: Ethernet with a tag, IPv4 with all
/// options or IPv6 with none, and TCP's ports.
const GLANCE: usize = 18 + 60 + 4;

impl Stack {
    /// Says that these frames will be given to [`Stack::input`] next, so that it
    /// waits less for the memory. Changes nothing, and does nothing while there
    /// are few flows.
    pub fn warm<'a, M: Memory>(&self, mem: &M, frames: impl IntoIterator<Item = &'a RxFrame>) {
        if self.flows.used() <= FLOWS_CACHED {
            return;
        }
        let (mut hashes, mut count) = ([0; AHEAD], 0);
        for frame in frames {
            if let Some(key) = self.glance(mem, frame) {
                hashes[count] = self.key_hash(&key);
                count += 1;
            }
            if count == AHEAD {
                self.warm_flows(&hashes);
                count = 0;
            }
        }
        self.warm_flows(&hashes[..count]);
    }

    /// The key of the flow that a frame is for, if it is for any. A mistake costs
    /// a little time: whoever takes the frame in looks for himself.
    #[inline]
    fn glance<M: Memory>(&self, mem: &M, frame: &RxFrame) -> Option<Key> {
        let end = usize::from(frame.offset) + usize::from(frame.len);
        if frame.buf >= self.bufs.count() || end > mem.buffer_size() {
            return None;
        }
        let mut copy = [0; GLANCE];
        let bytes = &mut copy[..usize::from(frame.len).min(GLANCE)];
        mem.read(frame.buf, usize::from(frame.offset), bytes);
        let link = ethernet::parse(bytes)?;
        let ip = &bytes[link.len..];
        let (local, remote, ports) = match link.ethertype {
            ethernet::IPV4 => {
                let remote = Ipv4Addr::from_bits(be32(ip, 12)).to_ipv6_mapped();
                (Local::V4, remote, usize::from(ip.first()? & 0x0f) * 4)
            }
            ethernet::IPV6 => {
                let local = self.addresses.local_v6(ipv6::destination(ip)?)?;
                (local, ipv6::source(ip)?, ipv6::LEN)
            }
            _ => return None,
        };
        debug_assert!(ports >= ipv4::LEN || local == Local::V4);
        Some(Key::new(local, remote.octets(), be16(ip, ports), be16(ip, ports + 2)))
    }

    /// Reads what the timer after that of `id`, which rings now, will need: with many
    /// flows, each would wait for the memory alone.
    #[inline]
    pub(crate) fn warm_timer(&self, id: u32) {
        if let Some(next) = self.wheel.following(id)
            && next < self.config.flows_max
        {
            black_box(self.wheel.touch(next) ^ self.flows[next].touch());
        }
    }

    fn warm_flows(&self, hashes: &[u32]) {
        let mut read = 0;
        for &hash in hashes {
            read ^= self.table.touch(hash);
        }
        let mut indices = [NIL; AHEAD];
        for (index, &hash) in indices.iter_mut().zip(hashes) {
            // Another flow with the same hash is hardly ever the one.
            let Some(found) = self.table.find(hash, |_| true) else { continue };
            read ^= self.flows[found].touch() ^ self.wheel.touch(found);
            *index = found;
        }
        for &index in &indices[..hashes.len()] {
            if index != NIL {
                // What the frame will acknowledge.
                read ^= self.bufs.touch(self.flows[index].tx.head);
            }
        }
        black_box(read);
    }
}
