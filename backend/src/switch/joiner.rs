//! How a guest comes to a switch that is already served: by whoever makes guests, on a
//! thread of its own. What it gets is a port as any other; the switch finds the other end
//! in its next turn for control messages, and is woken for it.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use paste_pmem::Buffers;

use super::bell::Bell;
use super::member::{self, Member};
use super::port::SwitchPort;
use crate::port::{Caps, Station};
use crate::sys::wake::{Waker, Wakeups};

/// A guest on its way to the switch.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub station: Station,
    pub member: Member,
}

/// Why a guest cannot come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// There are buffers for so many guests and no more.
    #[error("the port has no room for another guest: raise guests_max of the template")]
    Full,
    /// The port was opened for smaller packets.
    #[error(
        "mtu {asked} is more than the {mtu} that the port was opened with: give mtu={mtu} or less"
    )]
    Mtu {
        /// What the guest is to have.
        asked: u16,
        /// What the port carries.
        mtu: u16,
    },
    /// The switch has ended.
    #[error("the port is no longer served; pasted's log says why")]
    Gone,
}

/// Takes guests to a switch.
#[derive(Debug)]
pub struct Joiner {
    pub(super) sender: Sender<Newcomer>,
    pub(super) waker: Waker,
    pub(super) caps: Caps,
    /// Bytes of the largest packet that may arrive.
    pub(super) rx_mtu: u16,
    pub(super) buffers: Buffers,
    pub(super) bell: Arc<Bell>,
    /// Guests that may still come.
    pub(super) room: usize,
}

/// The rings between a joiner and its switch.
pub(super) fn channel() -> (Sender<Newcomer>, Receiver<Newcomer>) {
    mpsc::channel()
}

impl Joiner {
    /// Adds the guest of this name, whose packets have at most `mtu` bytes. Its worker gets
    /// what is returned; `waker` is the other end of `wakeups`.
    ///
    /// # Errors
    /// [`JoinError`]; nothing has changed.
    pub fn join(
        &mut self,
        name: &str,
        station: &Station,
        mtu: u16,
        pair: (Waker, Wakeups),
    ) -> Result<SwitchPort, JoinError> {
        if mtu > self.rx_mtu {
            return Err(JoinError::Mtu { asked: mtu, mtu: self.rx_mtu });
        }
        let room = self.room.checked_sub(1).ok_or(JoinError::Full)?;
        let caps = Caps { mtu: mtu.min(self.caps.mtu), gather: true, ..self.caps };
        let (buffers, bell) = (self.buffers.clone(), Arc::clone(&self.bell));
        // Which guest it is, the switch knows.
        let (member, port) = member::pair(name, 0, caps, buffers, bell, pair);
        let newcomer = Newcomer { station: station.clone(), member };
        self.sender.send(newcomer).map_err(|_| JoinError::Gone)?;
        self.room = room;
        self.waker.wake();
        Ok(port)
    }
}
