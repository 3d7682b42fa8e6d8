//! The port against the model of the kernel: opening, moving frames, hostile rings, and
//! whole stacks.

mod moving;
mod opening;
mod shared;
mod stacks;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use paste_pmem::{Buffers, Mapping, Owner, Pool};
use paste_stack::{Payload, TxBatch};

use super::model::{Host, Model, ModelDescriptor, NicKind};
use super::os::Link;
use super::*;

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Buffers of a region, in a file, and the pool of them.
struct Buffered {
    file: File,
    pool: Pool,
    count: u32,
    size: usize,
}

impl Buffered {
    fn new(count: u32, size: usize) -> Buffered {
        let file = tempfile::tempfile().unwrap();
        let len = count as usize * size;
        file.set_len(len as u64).unwrap();
        let mapping = Arc::new(Mapping::from_fd(file.as_fd(), 0, len, true).unwrap());
        let pool = Pool::new(Buffers::new(mapping, 0, size, count).unwrap());
        Buffered { file, pool, count, size }
    }

    fn shared(&self) -> Shared<'_> {
        let len = self.count as usize * self.size;
        Shared { fd: self.file.as_fd(), offset: 0, len, buffer_size: self.size }
    }
}

/// How a test opens a port.
#[derive(Clone)]
struct Opening {
    name: PortName,
    fragments: bool,
    spoof_check: bool,
    mtu: u16,
    macs: Vec<[u8; 6]>,
    share: bool,
    link: Option<Link>,
}

impl Opening {
    fn of(name: PortName) -> Opening {
        let (fragments, spoof_check, share) = (true, false, true);
        Opening { name, fragments, spoof_check, mtu: 1500, macs: vec![GUEST], share, link: None }
    }

    fn netmap(name: &str) -> Opening {
        Opening::of(PortName::netmap(name).unwrap())
    }

    fn vale(port: &str) -> Opening {
        Opening::of(PortName::vale("0", port).unwrap())
    }

    fn open(
        &self,
        model: &Model,
        buffered: &Buffered,
    ) -> Result<NetmapPort<ModelDescriptor>, NetmapError> {
        let Opening { name, fragments, spoof_check, mtu, macs, share, link } = self;
        let station = |&mac| Station { mac, vlan: None, addresses: Vec::new() };
        let stations: Vec<_> = macs.iter().map(station).collect();
        let port = match name.nature {
            Nature::Vale => name.kernel.clone(),
            _ => format!("netmap:{}", name.kernel),
        };
        let options = NetmapOptions {
            port: &port,
            name,
            fragments: *fragments,
            mtu: *mtu,
            stations: &stations,
            spoof_check: *spoof_check,
        };
        NetmapPort::open(model, &options, share.then(|| buffered.shared()), *link)
    }
}

/// A port that is open, with its buffers.
struct End {
    port: NetmapPort<ModelDescriptor>,
    buffered: Buffered,
    batch: TxBatch,
}

impl End {
    fn open(model: &Model, opening: &Opening) -> End {
        End::with(model, opening, 512, 2048)
    }

    fn with(model: &Model, opening: &Opening, count: u32, size: usize) -> End {
        let buffered = Buffered::new(count, size);
        let port = opening.open(model, &buffered).unwrap();
        End { port, buffered, batch: TxBatch::new(64) }
    }

    /// Queues a frame whose first `head` bytes are a head.
    fn push(&mut self, frame: &[u8], head: usize) -> Option<u32> {
        let Buffered { pool, .. } = &mut self.buffered;
        let out = self.batch.push(Origin::Stack).unwrap();
        out.head_mut(head).copy_from_slice(&frame[..head]);
        if head == frame.len() {
            return None;
        }
        let buf = pool.take(Owner::Stack).unwrap();
        pool.buffers().write(buf, 131, &frame[head..]).unwrap();
        out.payload = Some(Payload { buf, offset: 131, len: (frame.len() - head) as u16 });
        Some(buf)
    }

    /// Sends what is queued; returns the buffers that the port is done with, which go
    /// back to the pool.
    fn send(&mut self) -> Vec<u32> {
        let mut done = Vec::new();
        let Buffered { pool, .. } = &mut self.buffered;
        self.port
            .send(Now::default(), pool, &mut self.batch, &mut |_, buf| done.push(buf))
            .unwrap();
        for &buf in &done {
            pool.give(buf, Owner::Stack).unwrap();
        }
        done
    }

    /// Takes what has arrived; its buffers go back to the pool.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        self.try_receive().unwrap().into_iter().map(|(_, bytes)| bytes).collect()
    }

    fn try_receive(&mut self) -> Result<Vec<(crate::port::Received, Vec<u8>)>, PortError> {
        let mut batch = RxBatch::new(64);
        let pool = &mut self.buffered.pool;
        let result = self.port.receive(Now { monotonic_ns: 0, real_ns: 7 }, pool, &mut batch);
        let frames = batch.frames().iter().map(|&received| {
            let frame = received.frame;
            assert_eq!(pool.owner(frame.buf), Some(Owner::Port));
            let mut bytes = vec![0; frame.len.into()];
            pool.buffers().read(frame.buf, frame.offset.into(), &mut bytes).unwrap();
            pool.give(frame.buf, Owner::Port).unwrap();
            (received, bytes)
        });
        let frames: Vec<_> = frames.collect();
        let count = result?;
        assert_eq!(count, frames.len());
        Ok(frames)
    }

    /// Everything comes back when the port is let go of.
    fn close(mut self) {
        self.port.release(&mut self.buffered.pool);
        assert_eq!(self.buffered.pool.count_of(Owner::Port), 0);
    }
}

/// A frame to somebody.
fn frame(to: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(7) ^ seed).collect();
    frame[..6].copy_from_slice(&to);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 7, 8, 0]);
    frame
}

/// Two NICs on a wire.
fn nics(kind: NicKind) -> Model {
    let model = Model::new(Host::default());
    model.add_nic("ix0", kind);
    model.add_nic("ix1", NicKind { seed: kind.seed + 1, ..kind });
    model.join("ix0", "ix1");
    model
}
