//! A host process as a guest: the front end of a vhost-user device.
//!
//! The process connects to the backend's Unix socket as a VMM would, shares
//! two rings and their frame buffers in sealed memory, and receives the region
//! through the device's shared-memory messages. From then on frames travel
//! through the rings, and the socket is looked at only for its end.
//!
//! A device may have several queue pairs. Each is a transport of its own, which a thread of
//! its own may have; they share the session, and nothing that a frame touches ([`front`]).

mod front;
mod message;
mod session;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use paste_abi::frame::{FRAME_SIZE_MAX, FRAME_SIZE_MIN};
use paste_abi::net_hdr::NET_HDR_LEN;

use super::virtqueue::{self, Kicks, Pair, Waiting};
use super::{Polling, Timeout, Transport, TransportError, TransportStats};
use crate::sys::{self, Mapping};
use front::{Front, Line};

/// Entries of each ring.
const RING_SIZE: u16 = 256;
/// Where the device finds our memory. The number means nothing to us; it is
/// not 0, so that a null address in a descriptor is an error to the device.
const ADDRESS: u64 = 1 << 32;
/// A thread that never sleeps looks at the socket once in so many looks at the
/// ring, or it would not notice the backend's end.
const LOOKS_PER_SERVICE: u32 = 1024;

/// A queue pair of the front end's.
#[derive(Debug)]
pub(crate) struct VhostUser {
    front: Arc<Front>,
    /// Which pair, from 0.
    index: usize,
    /// Another one after a reconnect.
    line: Line,
    looks: u32,
    stats: TransportStats,
}

impl VhostUser {
    /// Connects to the backend's socket at `path`, for PASTE frames of at most
    /// `frame_size` bytes, on this many queue pairs: 1 or more.
    pub(crate) fn connect(
        path: &Path,
        frame_size: u16,
        pairs: u16,
    ) -> Result<Vec<VhostUser>, TransportError> {
        let frame_size =
            frame_size.clamp(FRAME_SIZE_MIN as u16, (FRAME_SIZE_MAX - NET_HDR_LEN) as u16);
        let (front, lines) = Front::connect(path.to_owned(), frame_size, pairs)?;
        let pair = |(index, line)| VhostUser {
            front: Arc::clone(&front),
            index,
            line,
            looks: 0,
            stats: TransportStats::default(),
        };
        Ok(lines.into_iter().enumerate().map(pair).collect())
    }
}

impl Waiting for VhostUser {
    fn pair(&mut self) -> Result<&mut Pair, TransportError> {
        Ok(&mut self.line.pair)
    }

    fn service(&mut self) -> Result<(), TransportError> {
        self.looks += 1;
        if self.looks >= LOOKS_PER_SERVICE {
            self.looks = 0;
            self.line.connection.look()?;
        }
        Ok(())
    }

    fn sleep(
        &mut self,
        timeout: Option<Duration>,
        tx_was_full: bool,
    ) -> Result<(), TransportError> {
        let Line { connection, pair, call, .. } = &mut self.line;
        let [control, backend] = connection.sockets().as_fds();
        self.stats.waits += 1;
        let ready = sys::wait_readable([call.as_fd(), control, backend], timeout)
            .map_err(TransportError::system("waiting for the device"))?;
        if ready[0] {
            call.clear();
        }
        // Frames that came before the end are still to be read.
        if (ready[1] || ready[2]) && !pair.look(tx_was_full)? {
            connection.serve()?;
        }
        Ok(())
    }
}

impl Transport for VhostUser {
    fn mac(&self) -> [u8; 6] {
        self.line.connection.mac()
    }

    fn frame_size(&self) -> u16 {
        self.front.frame_size()
    }

    fn pairs(&self) -> u16 {
        self.front.pairs()
    }

    fn pair(&self) -> u16 {
        self.index as u16
    }

    fn capacity(&self) -> u32 {
        self.line.pair.capacity()
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<bool, TransportError> {
        self.line.pair.send(fill)
    }

    fn publish(&mut self) -> Result<(), TransportError> {
        let Kicks { rx, tx } = self.line.pair.publish();
        if tx {
            self.line.tx_kick.signal();
            self.stats.kicks += 1;
        }
        if rx {
            self.line.rx_kick.signal();
            self.stats.kicks += 1;
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<usize, TransportError> {
        self.line.pair.refresh()
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        self.line.pair.receive(out)
    }

    fn wait(&mut self, timeout: Timeout, polling: Polling) -> Result<(), TransportError> {
        virtqueue::wait(self, timeout, polling)
    }

    fn drain(&mut self, limit: Duration) -> Result<(), TransportError> {
        virtqueue::drain(self, limit)
    }

    fn map_region(&mut self, _: [u8; 16], len: u64) -> Result<Mapping, TransportError> {
        self.line.connection.map_region(len)
    }

    fn reconnect(&mut self) -> Result<(), TransportError> {
        self.line = self.front.renew(self.index, &self.line.connection)?;
        Ok(())
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

#[cfg(test)]
mod tests;
