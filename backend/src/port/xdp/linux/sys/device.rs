//! What a network device is asked to let in beside its own Ethernet address
//! (packet(7)). It goes with the socket that asked.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::option;

/// Kinds of address, of `linux/if_packet.h`.
const MR_MULTICAST: u16 = 0;
const MR_UNICAST: u16 = 3;

/// Addresses that a device takes as long as this lives.
#[derive(Debug)]
pub(in super::super) struct Membership(OwnedFd);

impl Membership {
    /// A socket that receives nothing itself.
    pub(in super::super) fn new() -> Result<Membership, Errno> {
        // Protocol 0: no frame is given to it.
        let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Membership(socket))
    }

    /// Has the device take frames to `address`, of one station or of a group. Where
    /// its filter cannot be told or has no room, the kernel makes the device
    /// promiscuous.
    pub(in super::super) fn add(&self, device: u32, address: [u8; 6]) -> Result<(), Errno> {
        let is_group = address[0] & 1 != 0;
        let kind = if is_group { MR_MULTICAST } else { MR_UNICAST };
        // struct packet_mreq: the device, the kind, the length, and room for 8 bytes.
        let mut request = [0; 16];
        request[..4].copy_from_slice(&device.to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&6u16.to_ne_bytes());
        request[8..14].copy_from_slice(&address);
        option::set(&self.0, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
    }
}
