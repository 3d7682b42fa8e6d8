//! What a sync does, by kind of port.

use std::ops::Range;

use rustix::io::Errno;

use super::super::abi::{BUF_CHANGED, MOREFRAG, RING_TIME, Slot};
use super::World;
use super::adapter::{Nature, Put, gather, refill, scatter, take_pending};

/// A slot takes whatever fits its buffer.
const WHOLE: usize = usize::MAX;

impl World {
    fn stopped(&self, index: usize) -> bool {
        matches!(&self.adapters[index].nature, Nature::Nic(nic) if nic.stopped)
    }

    fn wake(&self, adapter: usize) {
        let wakers = self.wakers.iter().filter(|(index, _)| *index == adapter);
        wakers.for_each(|(_, waker)| waker.wake());
    }

    /// `NIOCTXSYNC`.
    pub(super) fn txsync(&mut self, index: usize, rings: Range<usize>) -> Result<(), Errno> {
        if self.stopped(index) {
            return Err(Errno::IO);
        }
        let mem_id = self.adapters[index].mem;
        for place in rings {
            let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
            if !self.adapters[index].tx[place].prologue(mem) {
                continue;
            }
            match self.adapters[index].nature {
                _ if place >= self.adapters[index].tx_nic => self.host_tx(index, place),
                Nature::Nic(_) => self.nic_tx(index, place),
                Nature::Vale => self.vale_tx(index, place),
                Nature::Pst(_) => self.pst_tx(index),
                Nature::Pipe { peer } => self.pipe_tx(index, peer, place),
            }
            let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
            self.adapters[index].tx[place].finalize(mem);
        }
        Ok(())
    }

    /// `NIOCRXSYNC`.
    pub(super) fn rxsync(&mut self, index: usize, rings: Range<usize>) -> Result<(), Errno> {
        if self.stopped(index) {
            return Err(Errno::IO);
        }
        let mem_id = self.adapters[index].mem;
        let (now, rx_nic) = (self.now_ns, self.adapters[index].rx_nic);
        // What the wire brings is spread over the NIC's rings.
        if rings.start < rx_nic {
            self.nic_rx(index, rings.clone());
        }
        for place in rings {
            let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
            if self.adapters[index].rx[place].prologue(mem) {
                match self.adapters[index].nature {
                    Nature::Pst(_) => self.pst_rx(index),
                    Nature::Pipe { peer } => self.pipe_rx(index, peer, place),
                    _ if place >= rx_nic => self.host_rx(index, place),
                    _ => refill(&mut self.adapters[index].rx[place], mem),
                }
            }
            let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
            let ring = &mut self.adapters[index].rx[place];
            ring.finalize(mem);
            let at = ring.at.unwrap() + RING_TIME;
            mem.raw.write(at, &[now as i64 / 1_000_000_000, now as i64 / 1_000 % 1_000_000]);
        }
        Ok(())
    }

    /// A NIC's txsync: what is new is taken; what has waited long enough is read, put on
    /// the wire, and reported.
    fn nic_tx(&mut self, index: usize, place: usize) {
        let (now, mem_id) = (self.now_ns, self.adapters[index].mem);
        let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
        let adapter = &mut self.adapters[index];
        let Nature::Nic(nic) = &mut adapter.nature else { return };
        let ring = &mut adapter.tx[place];
        let old = ring.in_flight.len();
        let frames = take_pending(ring, mem, nic.joins);
        ring.in_flight.extend(frames);
        let due = if nic.lag == 0 { ring.in_flight.len() } else { old.min(nic.lag as usize * 8) };
        for _ in 0..due {
            let Some((first, slots)) = ring.in_flight.pop_front() else { break };
            let (bytes, _) = gather(ring, mem, first, slots, nic.joins);
            nic.out.push_with(now, bytes.len(), |out| out.copy_from_slice(&bytes));
        }
        let reached = ring.in_flight.front().map_or(ring.hwcur, |&(first, _)| first);
        ring.hwtail = ring.prev(reached);
        if let Some(peer) = nic.peer {
            self.wake(peer);
        }
    }

    /// What has come over the wire is received into the slots that the NIC was given.
    fn nic_rx(&mut self, index: usize, rings: Range<usize>) {
        let (now, mem_id) = (self.now_ns, self.adapters[index].mem);
        let Nature::Nic(nic) = &self.adapters[index].nature else { return };
        let (Some(peer), slot_max) = (nic.peer, nic.slot_max) else { return };
        let rings = rings.start..rings.end.min(self.adapters[index].rx_nic);
        loop {
            let Nature::Nic(other) = &mut self.adapters[peer].nature else { return };
            let Some(frame) = other.out.pop_with(now, <[u8]>::to_vec) else { return };
            let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
            let adapter = &mut self.adapters[index];
            adapter.turn += 1;
            let place = rings.start + adapter.turn % rings.len();
            // Without space it is lost, as on any wire.
            scatter(&mut adapter.rx[place], mem, &frame, slot_max, None);
        }
    }

    /// `netmap_txsync_to_host`.
    fn host_tx(&mut self, index: usize, place: usize) {
        let mem_id = self.adapters[index].mem;
        let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
        let adapter = &mut self.adapters[index];
        let ring = &mut adapter.tx[place];
        for (first, slots) in take_pending(ring, mem, true) {
            let (bytes, _) = gather(ring, mem, first, slots, true);
            if let Nature::Nic(nic) = &mut adapter.nature {
                nic.to_host.push(bytes);
            }
        }
        ring.hwtail = ring.prev(ring.hwcur);
    }

    /// `netmap_rxsync_from_host`.
    fn host_rx(&mut self, index: usize, place: usize) {
        let mem_id = self.adapters[index].mem;
        let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
        let adapter = &mut self.adapters[index];
        let ring = &mut adapter.rx[place];
        // Host rings are no NIC's: nothing is remembered of their slots.
        ring.programmed.clear();
        let Nature::Nic(nic) = &mut adapter.nature else { return };
        while let Some(frame) = nic.from_host.front() {
            if scatter(ring, mem, frame, WHOLE, None) == Put::NoSpace {
                break;
            }
            nic.from_host.pop_front();
        }
        refill(ring, mem);
    }

    /// `netmap_vale_vp_txsync`: frames are copied to every other port of the switch. It
    /// learns nothing here: each port takes what it is sent.
    fn vale_tx(&mut self, index: usize, place: usize) {
        let mem_id = self.adapters[index].mem;
        let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
        let ring = &mut self.adapters[index].tx[place];
        let mut frames = Vec::new();
        for (first, slots) in take_pending(ring, mem, true) {
            let lead = ring.offset(&ring.slot(mem, first));
            frames.push((gather(ring, mem, first, slots, true).0, lead));
        }
        ring.hwtail = ring.prev(ring.hwcur);
        let switch = |name: &str| name.split_once(':').map(|(switch, _)| switch.to_owned());
        let own = switch(&self.adapters[index].name);
        for other in 0..self.adapters.len() {
            let adapter = &mut self.adapters[other];
            let same = matches!(adapter.nature, Nature::Vale) && switch(&adapter.name) == own;
            if other == index || !same || adapter.rx[0].at.is_none() {
                continue;
            }
            let mem = self.mems.iter().find(|mem| mem.id == adapter.mem).unwrap();
            for (frame, lead) in &frames {
                // A frame that finds no space is dropped.
                let aligned = (adapter.rx[0].offset_mask != 0).then_some(*lead);
                scatter(&mut adapter.rx[0], mem, frame, WHOLE, aligned);
            }
            self.wake(other);
        }
    }

    /// `netmap_pipe_txsync`: slots cross over, with the buffers that they name.
    fn pipe_tx(&mut self, index: usize, peer: usize, place: usize) {
        let mem_id = self.adapters[index].mem;
        let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
        let [here, there] = self.adapters.get_disjoint_mut([index, peer]).unwrap();
        let (tx, rx) = (&mut here.tx[place], &mut there.rx[place]);
        tx.hwtail = tx.pipe_tail;
        if rx.at.is_none() {
            return;
        }
        let mut complete = rx.pipe_tail;
        while tx.hwcur != tx.rhead {
            let index = tx.hwcur;
            let slot = tx.slot(mem, index);
            rx.set_slot(mem, index, slot);
            tx.set_slot(mem, index, Slot { flags: slot.flags & !BUF_CHANGED, ..slot });
            tx.hwcur = tx.next(index);
            if slot.flags & MOREFRAG == 0 {
                complete = tx.hwcur;
            }
        }
        rx.pipe_tail = complete;
        self.wake(peer);
    }

    /// `netmap_pipe_rxsync`.
    fn pipe_rx(&mut self, index: usize, peer: usize, place: usize) {
        let mem_id = self.adapters[index].mem;
        let mem = self.mems.iter().find(|mem| mem.id == mem_id).unwrap();
        let [here, there] = self.adapters.get_disjoint_mut([index, peer]).unwrap();
        let (rx, tx) = (&mut here.rx[place], &mut there.tx[place]);
        rx.hwtail = rx.pipe_tail;
        if rx.hwcur == rx.rhead || tx.at.is_none() {
            return;
        }
        while rx.hwcur != rx.rhead {
            let index = rx.hwcur;
            let slot = rx.slot(mem, index);
            tx.set_slot(mem, index, slot);
            rx.set_slot(mem, index, Slot { flags: slot.flags & !BUF_CHANGED, ..slot });
            rx.hwcur = rx.next(index);
        }
        tx.pipe_tail = tx.prev(rx.hwcur);
        self.wake(peer);
    }
}
