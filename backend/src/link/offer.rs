//! From the control plane to a guest's worker: links that wait to be taken.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use paste_abi::net_hdr::NET_HDR_LEN;
use zerocopy::IntoBytes;

use super::wire::{self, HEAD_LEN, Hello, Kind, Welcome};
use crate::sys::wake::Waker;

const _: () = assert!(NET_HDR_LEN == 12, "the link's frames have this header");

/// A VMM that asks for a guest: its socket, and what it said.
#[derive(Debug)]
pub struct Offer {
    /// The connected socket.
    pub socket: OwnedFd,
    /// Its first record.
    pub hello: Hello,
}

impl Offer {
    /// Says that the VMM has its guest, and gives the socket. A VMM that is gone already
    /// is found out by the link.
    pub fn accept(self, features: u64, mtu: u16, mac: [u8; 6]) -> OwnedFd {
        answer(&self.socket, features, 0, mtu, mac, "");
        self.socket
    }

    /// Says why the VMM does not have it; `status` says whether to try again.
    pub fn refuse(self, status: u16, why: &str) {
        answer(&self.socket, 0, status, 0, [0; 6], why);
    }
}

fn answer(socket: &OwnedFd, features: u64, status: u16, mtu: u16, mac: [u8; 6], why: &str) {
    let welcome = Welcome {
        features: features.into(),
        status: status.into(),
        mtu: mtu.into(),
        mac,
        reserved: [0; 14],
        text: wire::said(why),
    };
    let record: [u8; HEAD_LEN + size_of::<Welcome>()] =
        wire::record(Kind::Welcome, welcome.as_bytes());
    let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
    if let Err(error) = rustix::net::send(socket, &record, flags) {
        tracing::debug!(%error, "a VMM could not be answered");
    }
}

/// The end that offers are sent to, and the worker woken by.
#[derive(Clone, Debug)]
pub struct Post {
    sender: Sender<Offer>,
    waker: Waker,
}

impl Post {
    /// Offers a link to the guest; gives it back if the guest is no longer served.
    pub fn send(&self, offer: Offer) -> Result<(), Box<Offer>> {
        self.sender.send(offer).map_err(|unsent| Box::new(unsent.0))?;
        self.waker.wake();
        Ok(())
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct Mailbox {
    receiver: Receiver<Offer>,
    /// The oldest offer, once it was looked for.
    seen: Option<Offer>,
}

impl Mailbox {
    /// Looks whether there is an offer: when the worker was woken, and not in its turns.
    pub fn look(&mut self) -> bool {
        if self.seen.is_none() {
            self.seen = self.receiver.try_recv().ok();
        }
        self.seen.is_some()
    }

    /// The next offer.
    pub fn take(&mut self) -> Option<Offer> {
        self.look();
        self.seen.take()
    }
}

/// Both ends, for the guest whose worker `waker` wakes.
pub fn mailbox(waker: Waker) -> (Post, Mailbox) {
    let (sender, receiver) = channel();
    (Post { sender, waker }, Mailbox { receiver, seen: None })
}
