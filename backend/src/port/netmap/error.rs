//! Why a netmap port could not be opened: what, why, and what to do, in one line each.

use std::io;

/// Why a port of netmap's could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum NetmapError {
    /// There is no `/dev/netmap`.
    #[error(
        "port {port}: netmap module not loaded (there is no /dev/netmap): build netmap for this \
         kernel and `modprobe netmap`; FreeBSD's GENERIC kernel has it"
    )]
    NoModule {
        /// The port, as configured.
        port: String,
    },
    /// This user may not open it.
    #[error(
        "port {port}: this user may not open /dev/netmap: run as root, or `chgrp GROUP \
         /dev/netmap && chmod 660 /dev/netmap` for a group of this user's"
    )]
    Permission {
        /// The port, as configured.
        port: String,
    },
    /// The module speaks another API.
    #[error(
        "port {port}: the netmap module does not speak API 14, which came in 2019: update netmap \
         to this or a later one"
    )]
    Version {
        /// The port, as configured.
        port: String,
    },
    /// There is no such interface or port.
    #[error(
        "port {port}: netmap knows no interface {name}: `ip link` lists them; a switch's port is \
         written vale0:NAME"
    )]
    NotFound {
        /// The port, as configured.
        port: String,
        /// The name that was asked for.
        name: String,
    },
    /// Somebody else has it.
    #[error(
        "port {port}: its rings are in use by another process, or by a VALE switch that it is \
         attached to: end that process, or `vale-ctl -d` it, or name the switch's port"
    )]
    Busy {
        /// The port, as configured.
        port: String,
    },
    /// Netmap has no memory for it.
    #[error(
        "port {port}: netmap has not enough rings or buffers: raise its parameters ring_num and \
         buf_num, or for a VALE port and a pipe priv_ring_num and priv_buf_num (sysctl \
         dev.netmap on FreeBSD, /sys/module/netmap/parameters on Linux)"
    )]
    NoMemory {
        /// The port, as configured.
        port: String,
    },
    /// The interface cannot be used with netmap.
    #[error(
        "port {port}: netmap does not support {name} as it was asked for: name no rings that it \
         lacks, leave out the `*` where it has no host rings, and set parameter admode to 0"
    )]
    Unsupported {
        /// The port, as configured.
        port: String,
        /// The name that was asked for.
        name: String,
    },
    /// The kernel refused what it was asked.
    #[error(
        "port {port}: netmap refused the rings that were asked for: see the kernel's log; an MTU \
         of {name} above netmap's buf_size is one reason, a ring that it does not have another"
    )]
    Refused {
        /// The port, as configured.
        port: String,
        /// The name that was asked for.
        name: String,
    },
    /// Frames are longer than the slots that carry them.
    #[error(
        "port {port}: netmap's buffers have {buffer} bytes, and the guest's MTU needs {frame}: \
         raise netmap's buf_size, or set `mtu = {mtu_max}` for the guest"
    )]
    BufferSize {
        /// The port, as configured.
        port: String,
        /// Bytes of one of netmap's buffers.
        buffer: u32,
        /// Bytes of the guest's longest frame.
        frame: u32,
        /// The largest MTU that fits.
        mtu_max: u32,
    },
    /// The memory is not laid out as the kernel says it is.
    #[error(
        "port {port}: {what} in netmap's memory cannot be: the module and API 14 do not agree; \
         update netmap"
    )]
    Layout {
        /// The port, as configured.
        port: String,
        /// What was looked at.
        what: &'static str,
    },
    /// The kernel's own network stack lets longer frames through than the guest takes.
    #[error(
        "port {port}: its MTU is {mtu}, the guest's {wanted}: set `mtu = {mtu}` for the guest, or \
         `ip link set dev {name} mtu {wanted}`"
    )]
    Mtu {
        /// The port, as configured.
        port: String,
        /// The interface.
        name: String,
        /// Its MTU, in bytes.
        mtu: u32,
        /// The guest's MTU, in bytes.
        wanted: u16,
    },
    /// A system call failed.
    #[error("port {port}: {call} failed: {source}")]
    Failed {
        /// The port, as configured.
        port: String,
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
