//! The few commands of bpf(2) that load a program and attach it to a device
//! (`linux/bpf.h`). The attributes are those parts of the kernel's union that each
//! command reads; the kernel takes what is missing as zero.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::super::Mode;
use super::super::program::Insn;

const MAP_CREATE: c_int = 0;
const MAP_UPDATE_ELEM: c_int = 2;
const PROG_LOAD: c_int = 5;
#[cfg(test)]
const PROG_TEST_RUN: c_int = 10;
const LINK_CREATE: c_int = 28;
const LINK_UPDATE: c_int = 29;

/// `BPF_MAP_TYPE_XSKMAP`.
const MAP_TYPE_XSKMAP: u32 = 17;
/// `BPF_PROG_TYPE_XDP`.
const PROG_TYPE_XDP: u32 = 6;
/// `BPF_XDP`, a type of attachment.
const ATTACH_XDP: u32 = 37;

/// `BPF_F_XDP_HAS_FRAGS`.
const XDP_HAS_FRAGS: u32 = 1 << 5;
/// `BPF_F_XDP_DEV_BOUND_ONLY`.
const XDP_DEV_BOUND_ONLY: u32 = 1 << 6;

/// Bytes of the verifier's log that are kept: its end, with the reason, may be cut off
/// in a longer one, but a program of this size does not make one.
const LOG_LEN: usize = 1 << 16;

/// Names of objects, as `bpftool` shows them: 16 bytes with the zero at the end.
const NAME: [u8; 16] = *b"pasted\0\0\0\0\0\0\0\0\0\0";

/// How a program is attached: `XDP_FLAGS_*` of `linux/if_link.h`.
const fn flags_of(mode: Mode) -> u32 {
    match mode {
        Mode::Generic => 1 << 1,
        Mode::Driver => 1 << 2,
    }
}

/// Makes a map of AF_XDP sockets, by queue.
pub(in super::super) fn create_socket_map(entries: u32) -> Result<OwnedFd, Errno> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
    }
    let attr = Attr {
        map_type: MAP_TYPE_XSKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: entries,
        map_flags: 0,
        inner_map_fd: 0,
        numa_node: 0,
        map_name: NAME,
    };
    // SAFETY: the attributes hold no pointer.
    unsafe { descriptor(MAP_CREATE, &attr) }
}

/// Has frames of a queue that the program hands over go to this socket.
pub(in super::super) fn set_socket(
    map: BorrowedFd<'_>,
    queue: u32,
    socket: BorrowedFd<'_>,
) -> Result<(), Errno> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let value = socket.as_raw_fd() as u32;
    let attr = Attr {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const queue).addr() as u64,
        value: (&raw const value).addr() as u64,
        flags: 0,
    };
    // SAFETY: key and value are four bytes each, as the map was made for, live until
    // the call returns, and are only read.
    unsafe { bpf(MAP_UPDATE_ELEM, &attr) }.map(drop)
}

/// What became of loading a program.
#[derive(Debug)]
pub(in super::super) enum LoadError {
    /// The verifier or the kernel refused it.
    Refused {
        /// The error.
        errno: Errno,
        /// What the verifier said; empty if it did not get that far.
        log: String,
    },
}

/// Of what kind a program is.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Traits {
    /// It is shown frames that lie in several places, of which it sees the first.
    pub has_pieces: bool,
    /// It is for the driver of this device alone, whose functions it calls.
    pub device: Option<u32>,
}

/// Loads an XDP program.
pub(in super::super) fn load(program: &[Insn], traits: Traits) -> Result<OwnedFd, LoadError> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    // The kernel's own functions are for programs that may be had under its own terms.
    let license = if traits.device.is_some() { c"Dual BSD/GPL" } else { c"BSD" };
    let mut flags = if traits.has_pieces { XDP_HAS_FRAGS } else { 0 };
    flags |= if traits.device.is_some() { XDP_DEV_BOUND_ONLY } else { 0 };
    let load = |log: &mut [u8]| {
        let attr = Attr {
            prog_type: PROG_TYPE_XDP,
            insn_cnt: program.len() as u32,
            insns: program.as_ptr().addr() as u64,
            license: license.as_ptr().addr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr().addr() as u64 },
            kern_version: 0,
            prog_flags: flags,
            prog_name: NAME,
            prog_ifindex: traits.device.unwrap_or(0),
            expected_attach_type: 0,
        };
        // SAFETY: `insns` are `insn_cnt` instructions of 8 bytes and `license` ends
        // with a zero; both are only read. `log` is an exclusive borrow of as many
        // bytes as are named. All live until the call returns.
        unsafe { descriptor(PROG_LOAD, &attr) }
    };
    // Without a log first: a kernel that has nothing to say need not be asked.
    match load(&mut []) {
        Ok(fd) => Ok(fd),
        Err(errno @ (Errno::PERM | Errno::NOSYS)) => {
            Err(LoadError::Refused { errno, log: String::new() })
        }
        Err(_) => {
            let mut log = vec![0; LOG_LEN];
            load(&mut log).map_err(|errno| {
                let len = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
                let log = String::from_utf8_lossy(&log[..len]).trim_end().to_owned();
                LoadError::Refused { errno, log }
            })
        }
    }
}

/// Attaches a program to a device for as long as the descriptor that is returned
/// lives: with the process it goes, however that ends.
pub(in super::super) fn attach(
    program: BorrowedFd<'_>,
    device: u32,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: device,
        attach_type: ATTACH_XDP,
        flags: flags_of(mode),
    };
    // SAFETY: the attributes hold no pointer.
    unsafe { descriptor(LINK_CREATE, &attr) }
}

/// Has another program take the place of the one that is attached, between two frames.
pub(in super::super) fn replace(
    attached: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), Errno> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let attr = Attr {
        link_fd: attached.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the attributes hold no pointer.
    unsafe { bpf(LINK_UPDATE, &attr) }.map(drop)
}

/// Runs a program on a frame, and returns its verdict.
#[cfg(test)]
pub(in super::super) fn run(program: BorrowedFd<'_>, frame: &[u8]) -> Result<u32, Errno> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: frame.len() as u32,
        data_size_out: 0,
        data_in: frame.as_ptr().addr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    let size = size_of::<Attr>();
    // SAFETY: the frame is only read. The kernel writes its results into `attr`, an
    // exclusive borrow of as many bytes as are named.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut attr, size) };
    if result < 0 { Err(last_errno()) } else { Ok(attr.retval) }
}

/// A command that gives a descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn descriptor<A: IntoBytes + Immutable>(command: c_int, attr: &A) -> Result<OwnedFd, Errno> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the kernel has just made it for us, and nobody else knows it. It is
    // closed on exec, as all descriptors of bpf(2).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A command of bpf(2).
///
/// # Safety
/// Every pointer in `attr` is valid for what the command does with it.
unsafe fn bpf<A: IntoBytes + Immutable>(command: c_int, attr: &A) -> Result<c_int, Errno> {
    let bytes = attr.as_bytes();
    // SAFETY: the kernel reads `attr` as long as it is, and does with its pointers what
    // the caller has promised that they are valid for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, bytes.as_ptr(), bytes.len()) };
    c_int::try_from(result).ok().filter(|&result| result >= 0).ok_or_else(last_errno)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
