//! What the engines are told.

use std::net::IpAddr;

use paste_pmem::Buffers;

/// What an engine on PASTE is told.
#[derive(Clone, Copy, Debug)]
pub struct PasteOptions<'a> {
    /// The port, as configured, for messages.
    pub port: &'a str,
    /// The NIC.
    pub nic: &'a str,
    /// The address to listen on and to connect from: one of IPv4, which the NIC has.
    pub addresses: &'a [IpAddr],
    /// Whether the guest is to be on a VLAN.
    pub vlan: Option<u16>,
    /// Bytes of the largest packet, for what the guest is told of its device.
    pub mtu: u16,
    /// Flows at once.
    pub flows_max: u32,
    /// Sends of buffers that stay the guest's, under way at once.
    pub shared_sends_max: u32,
    /// The smallest offset that a guest sends from, which is where received payload
    /// starts.
    pub headroom: u16,
    /// The region's buffers.
    pub buffers: &'a Buffers,
}

/// What an engine on sockets is told.
#[derive(Clone, Copy, Debug)]
pub struct SocketsOptions<'a> {
    /// The addresses to listen on and to connect from: one of each family at most.
    pub addresses: &'a [IpAddr],
    /// Bytes of the largest packet, for what the guest is told of its device.
    pub mtu: u16,
    /// Flows at once.
    pub flows_max: u32,
    /// Sends of buffers that stay the guest's, under way at once.
    pub shared_sends_max: u32,
    /// The smallest offset that a guest sends from, which is where received payload
    /// starts.
    pub headroom: u16,
    /// The region's buffers.
    pub buffers: &'a Buffers,
}
