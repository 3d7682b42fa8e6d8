//! Which flows are applications', by their addresses and ports: asked for where a port
//! alone does not say it, because no application listens on it.
//!
//! A flow is noted when the guest is told of it, and never taken out: another one with its
//! index takes its place. Whether it still lives is the stack's to say.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};

use paste_abi::Flow;

const NONE: u32 = u32::MAX;

/// A flow as it was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    pub flow: Flow,
    pub channel: u16,
    remote: SocketAddr,
    local_port: u16,
    /// When the guest was told that both sides have closed, ns.
    pub closed_at: Option<u64>,
    /// The next one with the same hash.
    next: u32,
}

/// All of them: O(1), and allocated once.
pub(super) struct FlowTable {
    /// By index of the flow.
    entries: Box<[Option<Noted>]>,
    /// The first entry of each hash.
    heads: Box<[u32]>,
    /// Keyed, so that peers cannot choose flows with the same hash.
    hasher: RandomState,
}

impl std::fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowTable").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl FlowTable {
    pub(super) fn new(flows_max: u32) -> FlowTable {
        let count = flows_max as usize;
        FlowTable {
            entries: vec![None; count].into_boxed_slice(),
            heads: vec![NONE; count.next_power_of_two()].into_boxed_slice(),
            hasher: RandomState::new(),
        }
    }

    fn bucket(&self, remote: &SocketAddr, local_port: u16) -> usize {
        let address = match remote.ip() {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let ports = u32::from(remote.port()) << 16 | u32::from(local_port);
        self.hasher.hash_one((address, ports)) as usize & (self.heads.len() - 1)
    }

    /// Notes a flow, in place of whichever had its index.
    pub(super) fn note(&mut self, flow: Flow, channel: u16, remote: SocketAddr, local_port: u16) {
        let index = flow.index();
        if self.entries.len() <= index as usize {
            return;
        }
        self.take_out(index);
        let bucket = self.bucket(&remote, local_port);
        let next = self.heads[bucket];
        self.entries[index as usize] =
            Some(Noted { flow, channel, remote, local_port, closed_at: None, next });
        self.heads[bucket] = index;
    }

    fn take_out(&mut self, index: u32) {
        let Some(old) = self.entries[index as usize].take() else { return };
        let bucket = self.bucket(&old.remote, old.local_port);
        if self.heads[bucket] == index {
            self.heads[bucket] = old.next;
            return;
        }
        let mut at = self.heads[bucket];
        while let Some(entry) = self.entries.get_mut(at as usize).and_then(Option::as_mut) {
            if entry.next == index {
                entry.next = old.next;
                return;
            }
            at = entry.next;
        }
    }

    /// Both sides of a flow have closed.
    pub(super) fn close(&mut self, flow: Flow, now: u64) {
        let entry = self.entries.get_mut(flow.index() as usize).and_then(Option::as_mut);
        if let Some(entry) = entry.filter(|entry| entry.flow == flow) {
            entry.closed_at = Some(now);
        }
    }

    /// The last flow that was noted with this remote end and local port.
    pub(super) fn find(&self, remote: &SocketAddr, local_port: u16) -> Option<&Noted> {
        let mut at = self.heads[self.bucket(remote, local_port)];
        while let Some(entry) = self.entries.get(at as usize).and_then(Option::as_ref) {
            if entry.remote == *remote && entry.local_port == local_port {
                return Some(entry);
            }
            at = entry.next;
        }
        None
    }

    /// None is noted any more: their stack is gone.
    pub(super) fn clear(&mut self) {
        self.entries.fill(None);
        self.heads.fill(NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(n: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::from([10, 0, (n >> 8) as u8, n as u8]), 1000 + n)
    }

    #[test]
    fn flows_are_found_until_another_has_their_place() {
        let mut table = FlowTable::new(100);
        for n in 0..100u16 {
            table.note(Flow::new(n.into(), 3), n % 16, remote(n), 80);
        }
        for n in 0..100 {
            let found = table.find(&remote(n), 80).unwrap();
            assert_eq!((found.flow, found.channel), (Flow::new(n.into(), 3), n % 16));
            assert_eq!(table.find(&remote(n), 81), None);
        }
        // Every second place is another's, in an order that takes out heads and others.
        for n in (0..100u16).rev().step_by(2) {
            table.note(Flow::new(n.into(), 4), 1, remote(1000 + n), 81);
        }
        for n in 0..100 {
            assert_eq!(table.find(&remote(n), 80).is_some(), n % 2 == 0, "{n}");
            assert_eq!(table.find(&remote(1000 + n), 81).is_some(), n % 2 == 1, "{n}");
        }
        table.clear();
        assert!((0..100).all(|n| table.find(&remote(n), 80).is_none()));
    }

    #[test]
    fn of_two_with_the_same_ends_the_later_counts() {
        let mut table = FlowTable::new(8);
        table.note(Flow::new(1, 0), 0, remote(1), 80);
        table.note(Flow::new(2, 0), 0, remote(1), 80);
        assert_eq!(table.find(&remote(1), 80).unwrap().flow, Flow::new(2, 0));
        table.close(Flow::new(2, 1), 5);
        assert_eq!(table.find(&remote(1), 80).unwrap().closed_at, None, "another generation");
        table.close(Flow::new(2, 0), 5);
        assert_eq!(table.find(&remote(1), 80).unwrap().closed_at, Some(5));
        // One that the table has no place for is not noted.
        table.note(Flow::new(8, 0), 0, remote(9), 80);
        assert_eq!(table.find(&remote(9), 80), None);
    }
}
