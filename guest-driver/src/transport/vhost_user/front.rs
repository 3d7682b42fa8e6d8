//! The front end of a device, which the pairs that channels are opened on have in common.
//!
//! A pair has its rings and its descriptors for itself, and looks at the sockets of the
//! session without a lock. What it finds there is read under the session's lock, and a lost
//! session is made anew under that of the front end: by the first pair that misses it, for
//! all of them, and the others join it when they have found out. Both belong to control
//! messages; frames take neither.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use paste_abi::net_hdr::NET_HDR_LEN;

use super::session::{Offer, RingSetup, Session, Sockets};
use super::{ADDRESS, RING_SIZE};
use crate::sys::{self, Mapping, Notifier};
use crate::transport::TransportError;
use crate::transport::virtqueue::{Layout, Pair, RX, TX};

/// The front end of one device.
#[derive(Debug)]
pub(super) struct Front {
    path: PathBuf,
    frame_size: u16,
    pairs: u16,
    current: Mutex<Current>,
}

/// The session that is, or the last one that was, and what pairs have not taken of it.
#[derive(Debug)]
struct Current {
    connection: Arc<Connection>,
    lines: Box<[Option<Line>]>,
}

/// One session, as its pairs see it.
#[derive(Debug)]
pub(super) struct Connection {
    sockets: Arc<Sockets>,
    mac: [u8; 6],
    session: Mutex<Session>,
}

/// What one pair has of a session.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) connection: Arc<Connection>,
    pub(super) pair: Pair,
    pub(super) rx_kick: Notifier,
    pub(super) tx_kick: Notifier,
    pub(super) call: Notifier,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked has left a session that at worst is to be made anew.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Front {
    /// Connects to the backend's socket at `path`, for this many pairs, 1 or more.
    pub(super) fn connect(
        path: PathBuf,
        frame_size: u16,
        pairs: u16,
    ) -> Result<(Arc<Front>, Vec<Line>), TransportError> {
        let (connection, lines) = connect(&path, frame_size, pairs)?;
        let taken = lines.iter().map(|_| None).collect();
        let current = Mutex::new(Current { connection, lines: taken });
        Ok((Arc::new(Front { path, frame_size, pairs, current }), lines))
    }

    pub(super) fn frame_size(&self) -> u16 {
        self.frame_size
    }

    pub(super) fn pairs(&self) -> u16 {
        self.pairs
    }

    /// What pair `index` has of the session after `lost`, which ends for all pairs.
    pub(super) fn renew(
        &self,
        index: usize,
        lost: &Arc<Connection>,
    ) -> Result<Line, TransportError> {
        let mut current = lock(&self.current);
        if Arc::ptr_eq(&current.connection, lost) {
            lost.sockets.end();
            let (connection, lines) = connect(&self.path, self.frame_size, self.pairs)?;
            let lines = lines.into_iter().map(Some).collect();
            *current = Current { connection, lines };
        }
        // A pair takes its own once: it has lost the session when it asks again.
        let line = current.lines.get_mut(index).and_then(Option::take);
        line.ok_or(TransportError::Disconnected)
    }
}

/// One session, with the rings of all pairs running.
fn connect(
    path: &Path,
    frame_size: u16,
    pairs: u16,
) -> Result<(Arc<Connection>, Vec<Line>), TransportError> {
    let failed = TransportError::system;
    let mut session = Session::connect(path, pairs)?;
    let layout = Layout::new(RING_SIZE, NET_HDR_LEN + usize::from(frame_size));
    let len = 2 * layout.len * usize::from(pairs);
    let memory = sys::shared_memory(len).map_err(failed("making memory for the rings"))?;
    let notifier = || Notifier::new().map_err(failed("making a notifier"));
    let mut wired = Vec::with_capacity(usize::from(pairs));
    for index in 0..usize::from(pairs) {
        let offset = 2 * layout.len * index;
        let address = ADDRESS + offset as u64;
        let pair = Pair::new(memory.as_fd(), offset, layout, address, frame_size)?;
        wired.push((address, pair, [notifier()?, notifier()?, notifier()?]));
    }
    let rings: Vec<_> = (0..)
        .zip(&wired)
        .flat_map(|(index, (address, _, notifiers))| rings(index, layout, *address, notifiers))
        .collect();
    session.start(memory.as_fd(), ADDRESS, len as u64, &rings)?;
    drop(rings);
    let (sockets, mac) = (Arc::clone(session.sockets()), session.mac());
    let connection = Arc::new(Connection { sockets, mac, session: Mutex::new(session) });
    let line = |(_, pair, [rx_kick, tx_kick, call]): (_, _, [Notifier; 3])| {
        // A ring starts at its first kick.
        rx_kick.signal();
        tx_kick.signal();
        Line { connection: Arc::clone(&connection), pair, rx_kick, tx_kick, call }
    };
    let lines = wired.into_iter().map(line).collect();
    Ok((connection, lines))
}

/// What the device is told of the rings of pair `index`, which lie from `address` on and are
/// kicked and called by these.
fn rings(
    index: u16,
    layout: Layout,
    address: u64,
    [rx_kick, tx_kick, call]: &[Notifier; 3],
) -> [RingSetup<'_>; 2] {
    [(RX, address, rx_kick), (TX, address + layout.len as u64, tx_kick)].map(
        |(ring, address, kick)| RingSetup {
            index: 2 * index + ring,
            layout,
            address,
            kick: kick.as_fd(),
            call: call.as_fd(),
        },
    )
}

impl Connection {
    /// The device's address.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The ways to the back end, to be waited for.
    pub(super) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Serves what has arrived there, if anything has.
    pub(super) fn look(&self) -> Result<(), TransportError> {
        let ready = sys::wait_readable(self.sockets.as_fds(), Some(Duration::ZERO))
            .map_err(TransportError::system("looking at the sockets"))?;
        if ready == [false, false] { Ok(()) } else { self.serve() }
    }

    /// Serves what has arrived there. When the session cannot go on, the other pairs get to
    /// know it.
    pub(super) fn serve(&self) -> Result<(), TransportError> {
        lock(&self.session).serve().inspect_err(|_| self.sockets.end())
    }

    /// Maps the first `len` bytes of the region, as soon as the back end has offered it.
    pub(super) fn map_region(&self, len: u64) -> Result<Mapping, TransportError> {
        let mut session = lock(&self.session);
        let offer = session.wait_offer().inspect_err(|_| self.sockets.end())?;
        let Offer { fd, offset, len: offered } = offer;
        let whole = usize::try_from(len).ok().filter(|_| len <= *offered);
        let Some(len) = whole else {
            return Err(TransportError::Protocol("the region is smaller than WELCOME says"));
        };
        Mapping::from_fd(fd.as_fd(), *offset, len, true)
            .map_err(|error| TransportError::Map { what: "mapping the region", error })
    }
}
