//! Attachments: what an operator's text can tie a guest to.
//!
//! The text in a configuration's `port` names a kind and a device: `tap:tap0`. A
//! kind of device is either a NIC, whose frames our own stack serves (a [`Port`]), or
//! an endpoint that brings its own TCP (a [`StackPort`]). This room judges the text
//! ([`Spec`]), opens the device, and finds out whether this host can do a kind at all
//! ([`Kind::probe`]); it is the only one that knows all of them. What moves frames and
//! payload is in [`crate::port`] and [`crate::engine`], which know nothing of text.
//!
//! The kinds are the rows of [`KINDS`]. A further kind is a file and a row of that
//! table.

mod netmap;
mod paste;
mod pipe;
mod sockets;
mod spec;
mod tap;
mod vale;
mod xdp;

use std::borrow::Cow;
use std::fmt;

use paste_pmem::Region;

use crate::engine::StackPort;
use crate::engine::kernel::{PasteError, SocketsError};
use crate::port::netmap::NetmapError;
use crate::port::{PipeError, Port, Station, TapError, Wires, XdpDevices, XdpError};

pub use spec::{Spec, SpecError};

/// The kinds of device, by prefix.
pub const KINDS: &[Kind] =
    &[tap::KIND, xdp::KIND, netmap::KIND, vale::KIND, paste::KIND, pipe::KIND, sockets::KIND];

/// A kind of device: one row of [`KINDS`].
#[derive(Debug)]
pub struct Kind {
    /// What stands before the colon.
    pub prefix: &'static str,
    /// The whole form, for messages: `tap:NAME`.
    pub form: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// How many guests may name the same device, or the same part of one.
    pub guests_max: usize,
    /// Whether these share one opened device, by a [`crate::switch`]; otherwise each
    /// opens it for itself.
    pub shared: bool,
    /// Whether it has to know the guest's addresses to get what asks for them.
    pub needs_addresses: bool,
    /// Whether packets may arrive in it that are longer than a buffer.
    pub cuts_packets: bool,
    /// Judges what stands behind the colon.
    pub parse: fn(&str) -> Result<Box<dyn Device>, SpecError>,
    /// Tries whether this host can do it for this user. Leaves nothing behind. Says
    /// what it found, in a few words, or why not.
    pub probe: fn() -> Result<Cow<'static, str>, Unavailable>,
}

/// A device that a guest can be attached to: what one kind made of the text behind its
/// prefix.
pub trait Device: fmt::Debug + Send + Sync {
    /// The device's name, without parameters.
    fn name(&self) -> &str;

    /// The part of the device that is named, such as a queue; `None` if it is all of it.
    /// Guests on different parts of one device do not share what is opened.
    fn part(&self) -> Option<u32> {
        None
    }

    /// Whether the guest's addresses are the host's own. Then loopback is one, and guests
    /// can share one.
    fn has_hosts_addresses(&self) -> bool {
        false
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left open then.
    fn open(&self, context: &mut OpenContext<'_>) -> Result<Attachment, OpenError>;
}

/// A device that was opened for one guest.
pub enum Attachment {
    /// A NIC's frames, for our own stack.
    Port(Box<dyn Port>),
    /// An endpoint that brings its own TCP.
    StackPort(Box<dyn StackPort>),
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Attachment::Port(_) => "Port",
            Attachment::StackPort(_) => "StackPort",
        })
    }
}

/// What a device may need of its guest, or guests, and of the process to be opened, beside
/// its own text.
#[derive(Debug)]
pub struct OpenContext<'a> {
    /// Bytes of the largest packet that the guest is to see.
    pub mtu: u16,
    /// The guest, or those that share the device.
    pub stations: &'a [Station],
    /// Flows at once.
    pub flows_max: u32,
    /// Headers are to be kept where the guest cannot rewrite them.
    pub spoof_check: bool,
    /// The smallest offset that a guest sends from: what is received has to lie behind it.
    pub headroom: u16,
    /// Sends of buffers that stay the guest's, under way at once.
    pub shared_sends_max: u32,
    /// The region for its frames, the guest's or, of a device that is shared, the host's: the
    /// buffers, and the file that they lie in.
    pub region: &'a Region,
    /// What this process has open that devices have in common.
    pub common: &'a mut Common,
}

impl OpenContext<'_> {
    /// The guest, where a device is for one.
    fn station(&self) -> &Station {
        &self.stations[0]
    }
}

/// What several opened devices of a process have in common.
#[derive(Debug, Default)]
pub struct Common {
    /// The wires between guests.
    wires: Wires,
    /// The devices that AF_XDP ports are on.
    xdp: XdpDevices,
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A TAP device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A port of netmap's.
    #[error(transparent)]
    Netmap(#[from] NetmapError),
    /// A device by AF_XDP.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// A wire between two guests.
    #[error(transparent)]
    Pipe(#[from] PipeError),
    /// The host's TCP through PASTE.
    #[error(transparent)]
    Paste(#[from] PasteError),
    /// The host's TCP.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
}

/// Why this host cannot do a kind of device for this user, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}: {help}")]
pub struct Unavailable {
    /// What was found wanting.
    pub why: Cow<'static, str>,
    /// What to do about it.
    pub help: Cow<'static, str>,
}
