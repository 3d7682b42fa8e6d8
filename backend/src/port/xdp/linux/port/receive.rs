//! The way in: what the kernel has filled, and what it gets to fill.

use paste_pmem::{Buffers, Owner, Pool};
use paste_stack::{RxCsum, RxFrame, TxCsum};
use rustix::net::xdp::{XdpDesc, XdpDescOptions};

use super::super::chain::{Chain, Piece};
use super::super::cut::{Arrival, Cutter, Refused};
use super::super::filter::TIME_LEN;
use super::super::level::Level;
use super::super::sys::rings::Insane;
use super::super::time::Times;
use super::super::unfilled;
use super::{Counters, XdpPort};
use crate::port::{ETHERNET_LEN, Now, PortCounters, Received, RxBatch};

/// So many frames before its turn, the head of one is fetched: who has thousands of buffers
/// filled finds few of them in its caches.
const AHEAD: u32 = 4;

/// One queue's share of the port.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Buffers that the kernel has, to fill or filled.
    filling: u32,
    /// How many it is to have.
    pub(super) level: Level,
    /// A frame of several buffers that is not all there, and when it arrived.
    chain: Chain,
    time: u64,
}

impl Receiving {
    /// Of a queue that is given buffers up to this level.
    pub(super) fn new(level: Level) -> Receiving {
        Receiving { filling: 0, level, chain: Chain::new(), time: 0 }
    }

    /// Nothing more comes: what is there of a frame goes to `spare`.
    pub(super) fn abandon(&mut self, spare: &mut Vec<u32>) {
        self.chain.give_up(spare);
    }
}

/// Where frames of several buffers go, and what is counted of them.
struct Long<'a> {
    cutter: &'a mut Cutter,
    buffers: &'a Buffers,
    arrival: Arrival,
    spare: &'a mut Vec<u32>,
    counters: &'a mut PortCounters,
    more: &'a mut Counters,
    out: &'a mut RxBatch,
}

impl Long<'_> {
    /// Takes the next piece of a frame, and what is made of the frame if it is the last
    /// one. Returns how many frames that were.
    fn piece(&mut self, chain: &mut Chain, piece: Piece, continues: bool) -> usize {
        if piece.len == 0 {
            self.more.ring_errors += 1;
            self.spare.push(piece.buf);
            chain.give_up(self.spare);
        } else if chain.add(piece, self.spare) {
            self.counters.drops.rx_oversize += 1;
        }
        if continues { 0 } else { self.end(chain) }
    }

    /// The frame is all there.
    fn end(&mut self, chain: &mut Chain) -> usize {
        let Self { cutter, buffers, arrival, spare, counters, more, out } = self;
        let pieces = chain.end();
        if pieces.is_empty() {
            return 0;
        }
        let (mut frames, mut bytes) = (0, 0);
        let cut = cutter.cut(buffers, pieces, *arrival, &mut |received| {
            bytes += u64::from(received.frame.len);
            frames += usize::from(out.push(received));
        });
        match cut {
            Ok(unfilled) => {
                spare.extend(pieces.iter().filter(|piece| piece.len == 0).map(|piece| piece.buf));
                counters.rx_frames += frames as u64;
                counters.rx_bytes += bytes;
                more.rx_cut += 1;
                more.rx_unfilled_taken += u64::from(unfilled);
            }
            Err(refused) => {
                spare.extend(pieces.iter().map(|piece| piece.buf));
                match refused {
                    Refused::Long => counters.drops.rx_oversize += 1,
                    Refused::Checksum => more.rx_bad_csum += 1,
                    Refused::Unfilled => more.rx_unfilled_refused += 1,
                    Refused::Place => more.ring_errors += 1,
                }
            }
        }
        chain.clear();
        frames
    }
}

impl XdpPort {
    /// Takes what arrived on one queue.
    fn take(
        &mut self,
        index: usize,
        now: Now,
        pool: &Pool,
        out: &mut RxBatch,
    ) -> Result<usize, Insane> {
        let Self {
            live, receiving, ledger, umem, spare, counters, more, cutter, frame_max, ..
        } = self;
        let Some(live) = live else { return Ok(0) };
        let (is_local, times) = (live.is_local(), live.times.as_ref());
        let (queue, state) = (&mut live.queues[index], &mut receiving[index]);
        let waiting = queue.rx.available()?;
        state.level.saw(waiting);
        // Each piece may become a frame, those that are there already among them.
        let room = out.room().saturating_sub(state.chain.count());
        let available = waiting.min(room as u32);
        if available == 0 {
            return Ok(0);
        }
        let buffers = pool.buffers();
        let (shift, size) = (buffers.size().trailing_zeros(), buffers.size() as u64);
        let mut received = 0;
        for ahead in 0..available {
            let XdpDesc { addr, len, options } = queue.rx.read(ahead);
            let (at, len) = (addr.wrapping_sub(umem.buffers_at()), u64::from(len));
            let offset = at & (size - 1);
            let continues = options.contains(XdpDescOptions::XDP_PKT_CONTD);
            if ahead + AHEAD < available {
                let next = queue.rx.read(ahead + AHEAD).addr.wrapping_sub(umem.buffers_at());
                buffers.prefetch((next >> shift) as u32, (next & (size - 1)) as usize);
            }
            let Some(buf) = ledger.take(at >> shift) else {
                more.ring_errors += 1;
                state.chain.lose(continues, spare);
                continue;
            };
            state.filling -= 1;
            let is_first = !state.chain.is_open();
            let mut time = now.real_ns;
            if let Some(times) = times.filter(|_| is_first) {
                time = tell_time(buffers, buf, offset, times, now, more);
            }
            if continues || !is_first {
                // One that cannot be has no length, and so no frame.
                let len = if len > size - offset { 0 } else { len as u16 };
                let piece = Piece { buf, offset: offset as u16, len };
                if is_first {
                    state.time = time;
                }
                let arrival = Arrival { is_local, time: state.time };
                let (counters, more) = (&mut *counters, &mut *more);
                if !live.service.zero_copy {
                    counters.rx_bytes_copied += u64::from(len);
                }
                let mut long = Long { cutter, buffers, arrival, spare, counters, more, out };
                received += long.piece(&mut state.chain, piece, continues);
                continue;
            }
            if len > *frame_max as u64 {
                counters.drops.rx_oversize += 1;
            } else if len < ETHERNET_LEN as u64 {
                counters.drops.rx_runt += 1;
            } else if len > size - offset {
                more.ring_errors += 1;
            } else {
                let mut frame = RxFrame {
                    buf,
                    offset: offset as u16,
                    len: len as u16,
                    csum: RxCsum::Unknown,
                    time,
                };
                let partial = judge_csum(&frame, pool, is_local, more);
                if partial.is_some() {
                    frame.csum = RxCsum::Partial;
                }
                counters.rx_frames += 1;
                counters.rx_bytes += len;
                if !live.service.zero_copy {
                    counters.rx_bytes_copied += len;
                }
                out.push(Received { frame, partial });
                received += 1;
                continue;
            }
            spare.push(buf);
        }
        queue.rx.release(available);
        Ok(received)
    }

    /// Gives the kernel buffers to fill, as many as the queue lacks.
    fn fill(&mut self, index: usize, pool: &mut Pool) -> Result<(), Insane> {
        let Self { live, receiving, ledger, umem, spare, counters, .. } = self;
        let Some(live) = live else { return Ok(()) };
        let (queue, state) = (&mut live.queues[index], &mut receiving[index]);
        let level = state.level.get();
        let lacking = level.saturating_sub(state.filling);
        // A few at a time are not worth a store that the kernel has to fetch.
        if lacking > level / 4 {
            let lacking = lacking.min(queue.fill.room()?);
            let shift = pool.buffers().size().trailing_zeros();
            let mut given = 0;
            while given < lacking {
                let Some(buf) = spare.pop().or_else(|| pool.take(Owner::Port)) else {
                    counters.rx_no_buffer += 1;
                    break;
                };
                ledger.give(buf);
                queue.fill.write(given, umem.buffers_at() + (u64::from(buf) << shift));
                given += 1;
            }
            if given > 0 {
                state.filling += given;
                queue.fill.publish(given);
            }
        }
        if live.service.zero_copy && queue.fill.needs_wakeup() {
            counters.syscalls += 1;
            // What fails here is found when the device is looked at.
            let _ = queue.kick_rx();
        }
        Ok(())
    }

    /// Takes and fills on all queues, beginning with another one each time.
    pub(super) fn receive_all(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, Insane> {
        let count = self.receiving.len();
        let mut received = 0;
        for step in 0..count {
            let index = (self.first + step) % count;
            received += self.take(index, now, pool, out)?;
            self.fill(index, pool)?;
        }
        self.first = (self.first + 1) % count.max(1);
        Ok(received)
    }
}

/// When a frame has arrived that begins at `offset` of a buffer, by what stands in front of
/// it, or when it was taken, ns since the Unix epoch.
fn tell_time(
    buffers: &Buffers,
    buf: u32,
    offset: u64,
    times: &Times,
    now: Now,
    more: &mut Counters,
) -> u64 {
    let mut time = [0; TIME_LEN];
    let at = (offset as usize).checked_sub(TIME_LEN);
    let read = at.and_then(|at| buffers.read(buf, at, &mut time).ok());
    let time = read.and_then(|()| times.real(u64::from_ne_bytes(time), now));
    match time {
        Some(_) => more.rx_time_device += 1,
        None => more.rx_time_host += 1,
    }
    time.unwrap_or(now.real_ns)
}

/// Judges the checksum of a frame that arrived: where it is, if its sender left it
/// unfilled and is on this machine. From elsewhere, only what is wrong is counted.
fn judge_csum(frame: &RxFrame, pool: &Pool, is_local: bool, more: &mut Counters) -> Option<TxCsum> {
    let (offset, len) = (usize::from(frame.offset), usize::from(frame.len));
    let mut head = [0; unfilled::HEAD];
    let head = &mut head[..len.min(unfilled::HEAD)];
    pool.buffers().read(frame.buf, offset, head).ok()?;
    let csum = unfilled::find(head)?;
    // One in 65536 right ones looks like that too.
    let (start, field) = (usize::from(csum.start), usize::from(csum.start + csum.offset));
    let pseudo = u16::from_be_bytes([head[field], head[field + 1]]);
    let rest = pool.buffers().sum(frame.buf, offset + start, len.checked_sub(start)?).ok()?;
    if unfilled::total(pseudo, rest) == 0xffff {
        return None;
    }
    if !is_local {
        more.rx_unfilled_refused += 1;
        return None;
    }
    more.rx_unfilled_taken += 1;
    Some(csum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::port::testing::pool;

    const BUFFERS: u32 = 256;

    proptest! {
        /// Whatever the ring says of pieces, each buffer is a frame's, free, or of a frame
        /// that is not all there; and what comes then is taken as if nothing had been.
        #[test]
        fn no_buffer_is_lost_or_given_twice(
            claims in proptest::collection::vec(
                (0u16..3, 1u16..1792, proptest::bool::weighted(0.9)),
                0..200,
            ),
        ) {
            let mut pool = pool(BUFFERS);
            let (mut cutter, mut chain) = (Cutter::new(1983, 9018), Chain::new());
            let (mut spare, mut out) = (Vec::new(), RxBatch::new(256));
            let (mut counters, mut more) = (PortCounters::default(), Counters::default());
            let mut take = |piece: Option<Piece>, continues, spare: &mut Vec<u32>, pool: &Pool| {
                let Some(piece) = piece else {
                    chain.lose(continues, spare);
                    return (0, chain.count());
                };
                let arrival = Arrival { is_local: true, time: 0 };
                let (cutter, buffers) = (&mut cutter, pool.buffers());
                let (counters, more, out) = (&mut counters, &mut more, &mut out);
                let mut long = Long { cutter, buffers, arrival, spare, counters, more, out };
                (long.piece(&mut chain, piece, continues), chain.count())
            };
            let (mut frames, mut given) = (0, 0);
            for (kind, len, continues) in claims {
                // One that the kernel never had, one without bytes, and some.
                let piece = (kind > 0).then(|| {
                    given += 1;
                    let buf = pool.take(Owner::Port).unwrap();
                    Piece { buf, offset: 256, len: if kind == 1 { 0 } else { len } }
                });
                let (new, open) = take(piece, continues, &mut spare, &pool);
                frames += new;
                prop_assert_eq!(spare.len() + frames + open, given);
            }
            // The last of whatever it was, and then two pieces of a datagram.
            take(None, false, &mut spare, &pool);
            let mut frame = vec![2; 12];
            frame.extend([8, 0, 0x45, 0, 0x0b, 0xb8, 0, 7, 0, 0, 64, 17]);
            frame.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = !paste_stack::checksum::sum(&frame[14..]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            frame.resize(14 + 3000, 0);
            let mut told = 0;
            for (part, continues) in [(&frame[..1792], true), (&frame[1792..], false)] {
                let buf = pool.take(Owner::Port).unwrap();
                pool.buffers().write(buf, 256, part).unwrap();
                let piece = Piece { buf, offset: 256, len: part.len() as u16 };
                told = take(Some(piece), continues, &mut spare, &pool).0;
            }
            prop_assert_eq!(told, 2);
        }
    }
}
