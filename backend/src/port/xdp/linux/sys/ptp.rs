//! The clock of a network device (`linux/ptp_clock.h`): which one it is, by an ethtool ioctl
//! (`linux/ethtool.h`), and what it says beside ours.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::super::{DeviceClock, Pair};

/// Of `linux/sockios.h` and `linux/ethtool.h`.
const SIOCETHTOOL: u32 = 0x8946;
const ETHTOOL_GET_TS_INFO: u32 = 0x41;

/// Times that are read at once; the kernel takes 25 at most.
const SAMPLES: usize = 5;
const SAMPLES_MAX: usize = 25;
const NS_PER_S: i64 = 1_000_000_000;

/// What an ioctl on a clock is, `_IOWR('=', number, T)`.
const fn read_write<T>(number: u32) -> u32 {
    rustix::ioctl::opcode::read_write::<T>(b'=', number as u8) as u32
}

const PTP_SYS_OFFSET_PRECISE: u32 = read_write::<Precise>(8);
const PTP_SYS_OFFSET_EXTENDED: u32 = read_write::<Extended>(9);

/// `struct ethtool_ts_info`.
#[derive(Default, FromBytes, IntoBytes)]
#[repr(C)]
struct TimestampInfo {
    cmd: u32,
    so_timestamping: u32,
    phc_index: i32,
    tx_types: u32,
    tx_reserved: [u32; 3],
    rx_filters: u32,
    rx_reserved: [u32; 3],
}

/// `struct ptp_clock_time`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ClockTime {
    sec: i64,
    nsec: u32,
    reserved: u32,
}

/// `struct ptp_sys_offset_precise`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Precise {
    device: ClockTime,
    sys_realtime: ClockTime,
    sys_monoraw: ClockTime,
    reserved: [u32; 4],
}

/// `struct ptp_sys_offset_extended`: before, the device's, after.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Extended {
    samples: u32,
    /// CLOCK_REALTIME, and the only one of older kernels.
    clock: i32,
    reserved: [u32; 2],
    times: [[ClockTime; 3]; SAMPLES_MAX],
}

const _: () = assert!(size_of::<TimestampInfo>() == 44);
const _: () = assert!(size_of::<Precise>() == 64 && size_of::<Extended>() == 1216);

/// A device's clock, open.
#[derive(Debug)]
pub(in super::super) struct PtpClock {
    file: OwnedFd,
    /// It can be read at the very moment of ours, or could not when it was tried.
    is_precise: bool,
}

impl PtpClock {
    /// The clock of a network device; `None` if it has none.
    pub(in super::super) fn of(device: &str) -> Result<Option<PtpClock>, Errno> {
        let Some(index) = index(device)? else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(format!("/dev/ptp{index}"), flags, Mode::empty())?;
        Ok(Some(PtpClock { file, is_precise: true }))
    }
}

impl DeviceClock for PtpClock {
    fn compare(&mut self) -> Option<Pair> {
        if self.is_precise {
            let mut precise = Precise::new_zeroed();
            // SAFETY: the kernel reads and writes a structure of this form.
            match unsafe { ioctl(&self.file, PTP_SYS_OFFSET_PRECISE, &raw mut precise) } {
                Ok(()) => return precise.pair(),
                Err(_) => self.is_precise = false,
            }
        }
        let mut extended = Extended::new_zeroed();
        extended.samples = SAMPLES as u32;
        // SAFETY: as above; of its times it writes as many as it is asked for.
        unsafe { ioctl(&self.file, PTP_SYS_OFFSET_EXTENDED, &raw mut extended) }.ok()?;
        extended.pair()
    }
}

impl ClockTime {
    /// In ns; `None` before the epoch, or if it is none.
    fn ns(self) -> Option<u64> {
        let ns = self.sec.checked_mul(NS_PER_S)?.checked_add(self.nsec.into())?;
        u64::try_from(ns).ok().filter(|_| i64::from(self.nsec) < NS_PER_S)
    }
}

impl Precise {
    fn pair(&self) -> Option<Pair> {
        Some(Pair { device_ns: self.device.ns()?, real_ns: self.sys_realtime.ns()? })
    }
}

impl Extended {
    /// The time that was read with the least time around it.
    fn pair(&self) -> Option<Pair> {
        let times = self.times[..SAMPLES].iter().filter_map(|[before, device, after]| {
            let (before, after) = (before.ns()?, after.ns()?);
            let around = after.checked_sub(before)?;
            let real_ns = before + around / 2;
            Some((around, Pair { device_ns: device.ns()?, real_ns }))
        });
        times.min_by_key(|&(around, _)| around).map(|(_, pair)| pair)
    }
}

/// The number of a device's clock.
fn index(device: &str) -> Result<Option<u32>, Errno> {
    let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    let mut info = TimestampInfo { cmd: ETHTOOL_GET_TS_INFO, ..TimestampInfo::default() };
    // SAFETY: `ifreq` is made of integers, arrays of them, and pointers that may be null.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, whatever the name's length.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut info).cast();
    // SAFETY: the kernel reads the request, and writes what it is asked for into the
    // structure that it points to, an exclusive borrow.
    match unsafe { ioctl(&socket, SIOCETHTOOL, &raw mut request) } {
        Ok(()) => Ok(u32::try_from(info.phc_index).ok()),
        // What does not know of clocks has none.
        Err(Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// # Safety
/// `argument` is what the request reads and writes.
unsafe fn ioctl<T>(file: &OwnedFd, request: u32, argument: *mut T) -> Result<(), Errno> {
    let argument = argument.cast::<c_void>();
    // SAFETY: the caller's promise.
    let result: c_int =
        unsafe { libc::ioctl(file.as_raw_fd(), c_uint::from(request).into(), argument) };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(sec: i64, nsec: u32) -> ClockTime {
        ClockTime { sec, nsec, reserved: 0 }
    }

    #[test]
    fn requests_are_the_kernels() {
        assert_eq!((PTP_SYS_OFFSET_PRECISE, PTP_SYS_OFFSET_EXTENDED), (0xc040_3d08, 0xc4c0_3d09));
    }

    #[test]
    fn the_closest_of_several_readings_counts() {
        let mut extended = Extended::new_zeroed();
        assert_eq!(extended.pair(), Some(Pair { device_ns: 0, real_ns: 0 }));
        extended.times[..SAMPLES].copy_from_slice(&[
            [time(7, 0), time(50, 1), time(7, 900)],
            [time(8, 0), time(51, 2), time(8, 100)],
            [time(9, 0), time(52, 3), time(9, 101)],
            // What went back, and what is none.
            [time(10, 50), time(53, 4), time(10, 0)],
            [time(-1, 0), time(54, 5), time(0, 1_000_000_000)],
        ]);
        let pair = Pair { device_ns: 51_000_000_002, real_ns: 8_000_000_050 };
        assert_eq!(extended.pair(), Some(pair));
        extended.times[1][1] = time(i64::MAX, 0);
        assert_eq!(extended.pair().map(|pair| pair.device_ns), Some(52_000_000_003));
        let precise = Precise {
            device: time(1, 2),
            sys_realtime: time(3, 4),
            sys_monoraw: time(5, 6),
            reserved: [0; 4],
        };
        let pair = Pair { device_ns: 1_000_000_002, real_ns: 3_000_000_004 };
        assert_eq!(precise.pair(), Some(pair));
    }

    #[test]
    fn a_device_without_a_clock_has_none() {
        assert!(matches!(PtpClock::of("lo"), Ok(None)));
        assert_eq!(PtpClock::of("no-such-device").unwrap_err(), Errno::NODEV);
    }
}
