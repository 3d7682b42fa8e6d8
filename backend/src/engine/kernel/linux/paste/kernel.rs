//! What the kernel says of one socket, and is told of it, where no library has the call.
//! All that is `unsafe` about this engine is here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How a connection stands (`TCP_INFO`, `SIOCOUTQ`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// It has ended, and nothing of it is left (`TCP_CLOSE`).
    pub(super) closed: bool,
    /// Bytes that the peer has not acknowledged, FIN included.
    pub(super) queued: u32,
    /// Bytes of payload in the longest segment.
    pub(super) segment: u32,
    /// Segments carry timestamps.
    pub(super) timestamps: bool,
    /// Bytes that the kernel was given to send since the connection began: those that the
    /// peer has acknowledged, and those that it has not. May count a SYN.
    pub(super) given: u64,
}

/// Room in a send buffer (`SO_MEMINFO`), in the kernel's own counting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) size: u32,
    pub(super) used: u32,
}

/// `struct tcp_info` (`linux/tcp.h`), as far as `tcpi_bytes_acked`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct TcpInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    scales: u8,
    limits: u8,
    rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    // From `tcpi_unacked` to `tcpi_total_retrans`.
    others: [u32; 20],
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
}

const _: () = {
    assert!(std::mem::offset_of!(TcpInfo, snd_mss) == 16);
    assert!(std::mem::offset_of!(TcpInfo, pacing_rate) == 104);
    assert!(std::mem::offset_of!(TcpInfo, bytes_acked) == 120);
    assert!(size_of::<TcpInfo>() == 128);
};

/// `TCP_CLOSE` (`net/tcp_states.h`).
const TCP_CLOSE: u8 = 7;
/// `TCPI_OPT_TIMESTAMPS`.
const OPT_TIMESTAMPS: u8 = 1;
/// Words of `SO_MEMINFO` and two of its places (`SK_MEMINFO_*` of `linux/sock_diag.h`).
const MEMINFO_WORDS: usize = 9;
const MEMINFO_SNDBUF: usize = 3;
const MEMINFO_WMEM_QUEUED: usize = 5;

/// A value that any bytes may be, of an option of the socket's.
///
/// # Safety
/// Any bytes are a valid `T`.
unsafe fn option<T: Default>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: an open socket, and exclusive room for as many bytes as `len` says.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // Bytes that an older kernel does not know stay what they were.
    Ok(value)
}

/// Bytes that the peer has not acknowledged, FIN included (`SIOCOUTQ`, which is
/// `TIOCOUTQ`).
fn queued(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut queued: libc::c_int = 0;
    // SAFETY: writes one integer.
    let got = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut queued) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(queued.unsigned_abs()) }
}

/// How the connection stands.
pub(super) fn standing(socket: BorrowedFd<'_>) -> io::Result<Standing> {
    let mut before = queued(socket)?;
    loop {
        // SAFETY: integers.
        let info: TcpInfo = unsafe { option(socket, libc::IPPROTO_TCP, libc::TCP_INFO) }?;
        let after = queued(socket)?;
        // What was acknowledged in between would be missing. With PASTE nothing is, as
        // that takes a sync.
        if after != before {
            before = after;
            continue;
        }
        return Ok(Standing {
            closed: info.state == TCP_CLOSE,
            queued: after,
            segment: info.snd_mss,
            timestamps: info.options & OPT_TIMESTAMPS != 0,
            given: info.bytes_acked + u64::from(after),
        });
    }
}

/// The room in the send buffer.
pub(super) fn room(socket: BorrowedFd<'_>) -> io::Result<Room> {
    // SAFETY: integers.
    let words: [u32; MEMINFO_WORDS] =
        unsafe { option(socket, libc::SOL_SOCKET, libc::SO_MEMINFO) }?;
    Ok(Room { size: words[MEMINFO_SNDBUF], used: words[MEMINFO_WMEM_QUEUED] })
}

fn set<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &[T],
) -> io::Result<()> {
    // SAFETY: an open socket, and as many bytes as are said.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            size_of_val(value) as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the socket receive and send by one interface alone.
pub(super) fn bind_to_device(socket: BorrowedFd<'_>, nic: &str) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, nic.as_bytes())
}

/// The most that the socket promises its peer to take at once; the kernel takes no less
/// than a kilobyte or two for it (`tcp_set_window_clamp`).
pub(super) fn clamp_window(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, &[bytes])
}

/// Lets the send buffer be limited by its own size alone.
pub(super) fn no_low_watermark(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &[u32::MAX >> 1])
}
