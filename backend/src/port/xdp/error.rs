//! What is wrong with a device, or with what a guest wants of it, and what to do.

use std::io;

/// Why frames of a network device could not be had by AF_XDP.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The system has no such sockets.
    #[error("port xdp:{name}: there is no AF_XDP on this system: use another kind of port")]
    Unsupported {
        /// The device.
        name: String,
    },
    /// There is no such device.
    #[error(
        "port xdp:{name}: there is no such device: `ip link` shows those of this network namespace"
    )]
    NoDevice {
        /// The device.
        name: String,
    },
    /// The device is down.
    #[error("port xdp:{name}: the device is down: bring it up with `ip link set dev {name} up`")]
    Down {
        /// The device.
        name: String,
    },
    /// The device is not Ethernet.
    #[error("port xdp:{name}: the device has no Ethernet address: name another one")]
    NotEthernet {
        /// The device.
        name: String,
    },
    /// The guest would send frames that the device's link does not carry.
    #[error(
        "port xdp:{name}: its MTU is {mtu}, the guest's {wanted}: set `mtu = {mtu}` for the \
         guest, or `ip link set dev {name} mtu {wanted}`"
    )]
    Mtu {
        /// The device.
        name: String,
        /// The device's MTU, in bytes.
        mtu: u32,
        /// The guest's MTU, in bytes.
        wanted: u16,
    },
    /// A frame of the guest's MTU does not fit a buffer behind what the kernel keeps free, and
    /// cannot come in several.
    #[error(
        "port xdp:{name}: an MTU of {mtu} does not fit buffers of {buffer_size} bytes, of which \
         the kernel keeps the first {reserved} for itself, and frames in several buffers are not \
         to be had with this kernel and driver (Linux 6.6): set `mtu` to {max} at most{larger}"
    )]
    MtuOfBuffer {
        /// The device.
        name: String,
        /// The guest's MTU, in bytes.
        mtu: u16,
        /// Bytes of a buffer.
        buffer_size: u32,
        /// Bytes in front of a frame.
        reserved: u32,
        /// The largest MTU that fits.
        max: u32,
        /// What helps beside it, in words.
        larger: &'static str,
    },
    /// The kernel takes no buffers of this size.
    #[error(
        "port xdp:{name}: AF_XDP takes buffers of {min} to {max} bytes, and the region's have \
         {buffer_size}: make a region with another `buffer_size`"
    )]
    BufferSize {
        /// The device.
        name: String,
        /// Bytes of a buffer.
        buffer_size: u32,
        /// The smallest.
        min: u32,
        /// The largest: a page.
        max: u32,
    },
    /// The region's memory cannot be pinned for a device.
    #[error(
        "port xdp:{name}: the kernel cannot let the device use {region} ({source}): a region \
         for xdp is memory, a file on /dev/shm or hugetlbfs, or device DAX; what is to outlive \
         the machine goes to a mirror"
    )]
    Backing {
        /// The device.
        name: String,
        /// The region.
        region: String,
        /// What the system said.
        source: io::Error,
    },
    /// The region is more memory than the process may pin.
    #[error(
        "port xdp:{name}: the process may not pin the region's {bytes} bytes ({source}): raise \
         RLIMIT_MEMLOCK (`LimitMEMLOCK=` of systemd), or run with CAP_IPC_LOCK"
    )]
    Locked {
        /// The device.
        name: String,
        /// Bytes of it.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Not permitted.
    #[error(
        "port xdp:{name}: {call} is not permitted: run with CAP_NET_ADMIN, CAP_NET_RAW and \
         CAP_BPF"
    )]
    Permission {
        /// The device.
        name: String,
        /// What was tried.
        call: &'static str,
    },
    /// Somebody else's program has the device.
    #[error(
        "port xdp:{name}: the device has an XDP program already, of another pasted or of \
         something else (`ip link show dev {name}` tells its number, `bpftool prog` whose it \
         is): end that, or name another device"
    )]
    Busy {
        /// The device.
        name: String,
    },
    /// Somebody else's socket has the queue.
    #[error(
        "port xdp:{name}: another AF_XDP socket has queue {queue}: end its process, or name \
         another queue"
    )]
    QueueBusy {
        /// The device.
        name: String,
        /// The queue.
        queue: u32,
    },
    /// There is no such queue.
    #[error(
        "port xdp:{name}: the device has no queue {queue} (`ethtool -l {name}` tells how many it \
         has): name another one, or none for all of them"
    )]
    NoQueue {
        /// The device.
        name: String,
        /// The queue.
        queue: u32,
    },
    /// The device does not take the program.
    #[error(
        "port xdp:{name}: the device takes no program in {mode} mode ({source}): its MTU may be \
         too large for that or its queues too few; {help}"
    )]
    Mode {
        /// The device.
        name: String,
        /// The mode, or modes.
        mode: &'static str,
        /// What the system said.
        source: io::Error,
        /// What to try.
        help: &'static str,
    },
    /// A guest of this process has the device in another mode.
    #[error(
        "port xdp:{name}: another guest of this process has the device in {is} mode, and a device \
         has one: name {is} instead of {wanted}, or leave `mode` out"
    )]
    OtherMode {
        /// The device.
        name: String,
        /// The mode that was asked for.
        wanted: &'static str,
        /// The mode that it has.
        is: &'static str,
    },
    /// The kernel refuses the program.
    #[error("port xdp:{name}: the kernel refuses the filter ({source}): {log}")]
    Program {
        /// The device.
        name: String,
        /// What the system said.
        source: io::Error,
        /// What the verifier said.
        log: String,
    },
    /// A system call failed.
    #[error("port xdp:{name}: {call} failed: {source}")]
    Failed {
        /// The device.
        name: String,
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
