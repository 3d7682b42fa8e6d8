//! What the tests of ports share: a pool over memory of its own, and frames.

use std::os::fd::AsFd;
use std::sync::Arc;

use paste_pmem::{Buffers, Mapping, Owner, Pool};
use paste_stack::{Origin, Payload, TxBatch, TxCsum, TxFrame};

use super::{Now, Port, Received, RxBatch};

/// Bytes of one buffer.
pub(super) const BUFFER_SIZE: usize = 2048;

/// A pool of `count` buffers.
pub(crate) fn pool(count: u32) -> Pool {
    let len = BUFFER_SIZE * count as usize;
    let file = tempfile::tempfile().unwrap();
    file.set_len(len as u64).unwrap();
    let mapping = Mapping::from_fd(file.as_fd(), 0, len, true).unwrap();
    Pool::new(Buffers::new(Arc::new(mapping), 0, BUFFER_SIZE, count).unwrap())
}

/// Appends a frame whose first bytes are its head and whose others lie in a
/// buffer at an offset that is not aligned; returns the buffer.
pub(super) fn push(
    batch: &mut TxBatch,
    pool: &mut Pool,
    frame: &[u8],
    head: usize,
    csum: Option<TxCsum>,
) -> u32 {
    let buf = pool.take(Owner::Stack).unwrap();
    pool.buffers().write(buf, 131, &frame[head..]).unwrap();
    let tx: &mut TxFrame = batch.push(Origin::Stack).unwrap();
    tx.head_mut(head).copy_from_slice(&frame[..head]);
    tx.payload = Some(Payload { buf, offset: 131, len: (frame.len() - head) as u16 });
    tx.csum = csum;
    buf
}

/// Sends everything in the batch, and gives the buffers back.
pub(super) fn send_all(port: &mut dyn Port, now: Now, pool: &mut Pool, batch: &mut TxBatch) {
    let mut sent = Vec::new();
    port.send(now, pool, batch, &mut |_, buf| sent.push(buf)).unwrap();
    assert!(batch.is_empty());
    for buf in sent {
        pool.give(buf, Owner::Stack).unwrap();
    }
}

/// Receives what waits, gives the buffers back, and returns the frames.
pub(super) fn receive_all(
    port: &mut dyn Port,
    now: Now,
    pool: &mut Pool,
) -> Vec<(Received, Vec<u8>)> {
    let mut batch = RxBatch::new(64);
    let count = port.receive(now, pool, &mut batch).unwrap();
    assert_eq!(count, batch.frames().len());
    let mut frames = Vec::new();
    for &received in batch.frames() {
        let frame = received.frame;
        assert_eq!(pool.owner(frame.buf), Some(Owner::Port));
        let mut bytes = vec![0; usize::from(frame.len)];
        pool.buffers().read(frame.buf, usize::from(frame.offset), &mut bytes).unwrap();
        pool.give(frame.buf, Owner::Port).unwrap();
        frames.push((received, bytes));
    }
    frames
}
