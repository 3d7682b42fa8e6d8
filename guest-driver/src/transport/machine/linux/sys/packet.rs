//! Linux: a packet socket on one network device, whose frames pass through memory that
//! is shared with the kernel, and what sysfs tells of the device (packet(7),
//! `Documentation/networking/packet_mmap.rst`, `Documentation/ABI/testing/sysfs-class-net`).
//!
//! Each way has a ring of places of one size. A place begins with a header whose status
//! says whose it is: the kernel's or ours. Only the owner looks at or writes the rest.
//!
//! ```text
//!   received: kernel --(USER)--> ours --(KERNEL)--> kernel
//!   sent:     ours --(SEND_REQUEST, and one send() for all)--> kernel --(AVAILABLE)--> ours
//! ```

#![expect(unsafe_code, reason = "rings shared with the kernel, and options of packet sockets")]

use std::ffi::c_void;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

/// `struct sockaddr_ll` (`linux/if_packet.h`).
#[repr(C)]
struct LinkAddress {
    family: u16,
    /// In network byte order.
    protocol: u16,
    index: i32,
    hardware_type: u16,
    packet_type: u8,
    address_len: u8,
    address: [u8; 8],
}

const _: () = assert!(size_of::<LinkAddress>() == 20);

// SAFETY: a reference to this structure is a pointer to that many bytes of a valid
// address, for as long as `f` runs.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f((&raw const *self).cast(), size_of::<LinkAddress>() as SocketAddrLen)
    }
}

/// A network device, as sysfs has it.
#[derive(Debug)]
pub(crate) struct Device {
    index: i32,
    /// Its Ethernet address.
    pub(crate) mac: [u8; 6],
    /// The largest packet, in bytes; its frames have an Ethernet header more.
    pub(crate) mtu: u32,
}

impl Device {
    pub(crate) fn named(name: &str) -> io::Result<Device> {
        // A name is one component of a path.
        let dir = match name {
            "" | "." | ".." => return Err(io::ErrorKind::InvalidInput.into()),
            name if name.contains('/') => return Err(io::ErrorKind::InvalidInput.into()),
            name => PathBuf::from("/sys/class/net").join(name),
        };
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let read = |file: &str| fs::read_to_string(dir.join(file));
        let mut mac = [0; 6];
        let address = read("address")?;
        let mut digits = address.trim().split(':');
        for byte in &mut mac {
            let pair = digits.next().ok_or_else(wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Device {
            index: read("ifindex")?.trim().parse().map_err(|_| wrong())?,
            mac,
            mtu: read("mtu")?.trim().parse().map_err(|_| wrong())?,
        })
    }
}

/// `struct tpacket2_hdr` (`linux/if_packet.h`), by the offsets of its fields.
mod header {
    pub(super) const STATUS: usize = 0;
    pub(super) const LEN: usize = 4;
    pub(super) const SNAP_LEN: usize = 8;
    pub(super) const MAC: usize = 12;
    /// Where the frame starts in a place to send: behind the header.
    pub(super) const DATA: usize = 32;
    /// Bytes before a received frame, at most: the header, the sender's address, and
    /// what aligns the network header.
    pub(super) const ROOM: usize = 96;
}

/// What places are a multiple of, in bytes: TPACKET_ALIGNMENT.
const ALIGN: usize = 16;
/// Bytes of a block that the kernel makes rings of, unless one place is more.
const BLOCK: usize = 1 << 16;

// Values of a place's status. The same number is the kernel's in one ring, and ours in
// the other.
const KERNEL: u32 = 0;
const USER: u32 = 1;
const AVAILABLE: u32 = 0;
const SEND_REQUEST: u32 = 1;
const WRONG_FORMAT: u32 = 4;

/// `struct tpacket_req` (`linux/if_packet.h`).
#[repr(C)]
struct Request {
    block_size: u32,
    block_count: u32,
    place_size: u32,
    place_count: u32,
}

/// A ring of places, one after the other in blocks.
#[derive(Clone, Copy, Debug)]
struct Ring {
    /// Where its first block starts in the memory.
    start: usize,
    block: usize,
    place: usize,
    blocks: usize,
    /// The place that is next.
    next: usize,
}

impl Ring {
    /// At least `count` places for frames of `frame_size` bytes.
    fn of(count: usize, frame_size: usize, start: usize) -> Ring {
        let place = (header::ROOM + frame_size).next_multiple_of(ALIGN);
        let block = place.next_power_of_two().max(BLOCK);
        Ring { start, block, place, blocks: count.div_ceil(block / place), next: 0 }
    }

    fn bytes(&self) -> usize {
        self.block * self.blocks
    }

    fn per_block(&self) -> usize {
        self.block / self.place
    }

    fn count(&self) -> usize {
        self.per_block() * self.blocks
    }

    /// Where the place `ahead` of the next one starts in the memory.
    fn at(&self, ahead: usize) -> usize {
        let index = (self.next + ahead) % self.count();
        let (block, within) = (index / self.per_block(), index % self.per_block());
        self.start + block * self.block + within * self.place
    }

    fn advance(&mut self) {
        self.next = (self.next + 1) % self.count();
    }

    fn request(&self) -> Request {
        Request {
            block_size: self.block as u32,
            block_count: self.blocks as u32,
            place_size: self.place as u32,
            place_count: self.count() as u32,
        }
    }
}

/// Memory shared with the kernel; unmapped when it is dropped.
#[derive(Debug)]
struct Shared {
    memory: NonNull<u8>,
    len: usize,
}

// SAFETY: it is plain memory, and whoever has this value may use it from any thread.
unsafe impl Send for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `Packets::on`, of this length, and no
        // reference into it is left: they borrow the `Packets` that this is part of.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.len) };
    }
}

impl Shared {
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.len, "a place lies in its ring");
        // SAFETY: the range was just found to lie within the mapping.
        unsafe { self.memory.as_ptr().add(offset) }
    }

    /// The status of the place that starts here.
    fn status(&self, place: usize) -> &AtomicU32 {
        let at = self.at(place + header::STATUS, 4).cast::<u32>();
        // SAFETY: places are aligned to 16 bytes within page-aligned memory that lives
        // as long as `self`, and all access to the status, by either side, is atomic.
        unsafe { AtomicU32::from_ptr(at) }
    }

    fn read<T: Copy>(&self, at: usize) -> T {
        let at = self.at(at, size_of::<T>()).cast::<T>();
        // SAFETY: within the mapping; callers ask for integers, in places that the
        // kernel has given to us and does not write to.
        unsafe { at.read_unaligned() }
    }
}

/// A packet socket that takes and gives the frames of one ethertype that a filter in
/// the kernel lets pass, and never waits.
#[derive(Debug)]
pub(crate) struct Packets {
    // Unmapped before the socket is closed.
    shared: Shared,
    fd: OwnedFd,
    received: Ring,
    sent: Ring,
    /// Places given to the kernel that it was not told of.
    unsent: usize,
}

/// What a socket is to take and keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Of frames: those of other kinds do not come.
    pub(crate) ethertype: u16,
    /// The 16 bits that frames have at this offset, in network byte order.
    pub(crate) word: (u32, u16),
    /// Bytes of the largest frame.
    pub(crate) frame_size: usize,
    /// Frames received that wait to be taken, at least.
    pub(crate) backlog: usize,
    /// Frames that wait to be sent, at least.
    pub(crate) unsent: usize,
}

impl Packets {
    /// A socket on `device`.
    pub(crate) fn on(device: &Device, wanted: Wanted) -> io::Result<Packets> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
        // Of no protocol until it is bound: before that it would hear every device.
        let fd = rustix::net::socket_with(family, kind, flags, None)?;
        set_option(
            &fd,
            libc::SOL_PACKET,
            libc::PACKET_VERSION,
            &libc::tpacket_versions::TPACKET_V2,
        )?;
        let received = Ring::of(wanted.backlog, wanted.frame_size, 0);
        let sent = Ring::of(wanted.unsent, wanted.frame_size, received.bytes());
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &received.request())?;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_TX_RING, &sent.request())?;
        let mut filter = filter(wanted.word);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        set_option(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        let len = received.bytes() + sent.bytes();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice takes no memory
        // from anybody.
        let memory = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }?;
        let memory = NonNull::new(memory.cast()).ok_or(Errno::NOMEM)?;
        let shared = Shared { memory, len };
        let address = LinkAddress {
            family: AddressFamily::PACKET.as_raw(),
            protocol: wanted.ethertype.to_be(),
            index: device.index,
            hardware_type: 0,
            packet_type: 0,
            address_len: 0,
            address: [0; 8],
        };
        rustix::net::bind(&fd, &address)?;
        Ok(Packets { shared, fd, received, sent, unsent: 0 })
    }

    /// How many frames have come and were not taken, of which `seen` are known of.
    pub(crate) fn waiting(&self, seen: usize) -> usize {
        let mut count = seen;
        while count < self.received.count()
            && self.shared.status(self.received.at(count)).load(Ordering::Acquire) & USER != 0
        {
            count += 1;
        }
        count
    }

    /// Copies the next frame out and gives its place back. `None` if there is none. Of
    /// one that is longer than `out`, the rest is lost.
    pub(crate) fn receive(&mut self, out: &mut [u8]) -> Option<usize> {
        let place = self.received.at(0);
        let status = self.shared.status(place);
        if status.load(Ordering::Acquire) & USER == 0 {
            return None;
        }
        let start = usize::from(self.shared.read::<u16>(place + header::MAC));
        let len = self.shared.read::<u32>(place + header::SNAP_LEN) as usize;
        let len = len.min(self.received.place.saturating_sub(start)).min(out.len());
        let from = self.shared.at(place + start, len);
        // SAFETY: the range lies within the mapping, in a place that is ours until its
        // status is changed below; `out` is memory of the caller's own.
        unsafe { from.copy_to_nonoverlapping(out.as_mut_ptr(), len) };
        status.store(KERNEL, Ordering::Release);
        self.received.advance();
        Some(len)
    }

    /// Lends a place for a frame to `fill`, which returns the bytes that it wrote; none
    /// sends nothing. False if there is no place now. The kernel learns of it by
    /// [`Packets::flush`].
    pub(crate) fn send(
        &mut self,
        frame_size: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> bool {
        let place = self.sent.at(0);
        let status = self.shared.status(place);
        // A frame that the kernel could not make out is lost; its place is ours again.
        if !matches!(status.load(Ordering::Acquire), AVAILABLE | WRONG_FORMAT) {
            return false;
        }
        let room = frame_size.min(self.sent.place - header::DATA);
        let data = self.shared.at(place + header::DATA, room);
        // SAFETY: the range lies within the mapping, in a place that is ours until its
        // status is changed below; `self` is borrowed for as long as the slice lives,
        // and nobody else makes one of it.
        let out = unsafe { std::slice::from_raw_parts_mut(data, room) };
        let len = fill(out).min(room);
        if len == 0 {
            return true;
        }
        let at = self.shared.at(place + header::LEN, 4).cast::<u32>();
        // SAFETY: an aligned integer in the same place.
        unsafe { at.write(len as u32) };
        self.shared.status(place).store(SEND_REQUEST, Ordering::Release);
        self.sent.advance();
        self.unsent += 1;
        true
    }

    /// Whether the kernel is to be told of frames.
    pub(crate) fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    /// Has the kernel send what it was given: one system call for all. True if it has
    /// taken all of it, and else the rest is for the next call.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        if self.unsent == 0 {
            return Ok(true);
        }
        match rustix::net::send(&self.fd, &[], SendFlags::DONTWAIT) {
            Ok(_) => {}
            // The device's queue is full: what was not taken is still asked for.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        while self.unsent > 0 {
            let count = self.sent.count();
            let place = self.sent.at(count - self.unsent);
            if self.shared.status(place).load(Ordering::Acquire) == SEND_REQUEST {
                return Ok(false);
            }
            self.unsent -= 1;
        }
        Ok(true)
    }

    /// Whether a place for a frame is free.
    pub(crate) fn has_room(&self) -> bool {
        let status = self.shared.status(self.sent.at(0)).load(Ordering::Acquire);
        matches!(status, AVAILABLE | WRONG_FORMAT)
    }

    /// Waits until a frame is there, or there is room for one if `room` is wanted;
    /// for at most `timeout` (`None`: for ever). A signal ends the wait.
    pub(crate) fn wait(&self, room: bool, timeout: Option<Duration>) -> io::Result<()> {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, room);
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut polled = [PollFd::new(&self.fd, flags)];
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // The rings do not say that the device is down, or gone.
        if polled[0].revents().contains(PollFlags::ERR) {
            sockopt::socket_error(&self.fd)??;
        }
        Ok(())
    }
}

/// Lets frames pass whole that have these 16 bits at this offset, and no others
/// (`linux/filter.h`, classic BPF).
fn filter((offset, word): (u32, u16)) -> [libc::sock_filter; 4] {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, offset),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, u32::from(word)),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: a live borrow of `len` bytes, which the kernel only reads; callers pass
    // the structure that the option takes.
    let set = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast::<c_void>(), len)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of no protocol.
    const ETHERTYPE: u16 = 0x88b6;

    /// A socket on the loopback device, which gives back whatever it is given; `None`,
    /// and said so, without the privilege.
    fn socket(word: u16) -> Option<Packets> {
        let device = Device::named("lo").unwrap();
        let wanted = Wanted {
            ethertype: ETHERTYPE,
            word: (16, word),
            frame_size: 1514,
            backlog: 100,
            unsent: 50,
        };
        match Packets::on(&device, wanted) {
            Ok(packets) => Some(packets),
            Err(error) => {
                let all = std::env::var_os("PASTED_REQUIRE_ALL").is_some_and(|value| value == "1");
                assert!(!all, "PASTED_REQUIRE_ALL=1, and {error}");
                eprintln!("skipped: no packet socket: {error}");
                None
            }
        }
    }

    fn frame(out: &mut [u8], word: u16, number: u32, len: usize) -> usize {
        out[..len].fill(number as u8);
        out[..12].fill(0);
        out[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        out[14..16].fill(0);
        out[16..18].copy_from_slice(&word.to_be_bytes());
        out[18..22].copy_from_slice(&number.to_le_bytes());
        len
    }

    #[test]
    fn frames_of_one_word_come_in_order_and_no_others() {
        // Others may be at the same device with the same ethertype.
        let own = std::process::id() as u16;
        let (Some(mut packets), Some(mut other)) = (socket(own), socket(!own)) else { return };
        let mut out = [0; 1514];
        let (mut sent, mut taken) = (0u32, 0u32);
        // Around both rings, more than once, in batches of several sizes.
        while taken < 1000 {
            for _ in 0..=(sent % 7) {
                let len = 60 + (sent as usize * 37) % 1454;
                assert!(packets.send(1514, &mut |out| frame(out, own, sent, len)));
                let stray = sent;
                assert!(other.send(1514, &mut |out| frame(out, own ^ 1, stray, 60)));
                sent += 1;
            }
            assert!(packets.has_unsent());
            while !packets.flush().unwrap() || !other.flush().unwrap() {}
            assert!(!packets.has_unsent());
            packets.wait(false, Some(Duration::from_secs(10))).unwrap();
            let waiting = packets.waiting(0);
            assert_eq!(packets.waiting(waiting), waiting);
            for _ in 0..waiting {
                let len = packets.receive(&mut out).unwrap();
                assert_eq!(len, 60 + (taken as usize * 37) % 1454);
                let mut expected = [0; 1514];
                frame(&mut expected, own, taken, len);
                assert_eq!(out[..len], expected[..len]);
                taken += 1;
            }
        }
        assert_eq!(sent, taken);
        assert_eq!((packets.receive(&mut out), other.waiting(0)), (None, 0));
    }

    #[test]
    fn what_nobody_takes_is_kept_up_to_the_ring_and_then_lost() {
        let own = std::process::id() as u16 ^ 0x5555;
        let Some(mut packets) = socket(own) else { return };
        let count = packets.received.count();
        assert!(count >= 100);
        for number in 0..count as u32 + 20 {
            assert!(packets.send(1514, &mut |out| frame(out, own, number, 100)));
            assert!(packets.flush().unwrap());
        }
        assert_eq!(packets.waiting(0), count);
        let mut out = [0; 1514];
        for number in 0..count as u32 {
            assert_eq!(packets.receive(&mut out), Some(100));
            assert_eq!(out[18..22], number.to_le_bytes());
        }
        assert_eq!(packets.receive(&mut out), None);
        // And it goes on.
        assert!(packets.send(1514, &mut |_| 0), "nothing is sent, in a place that is there");
        assert!(packets.flush().unwrap() && packets.has_room());
        assert!(packets.send(1514, &mut |out| frame(out, own, 9, 60)));
        assert!(packets.flush().unwrap());
        assert_eq!(packets.receive(&mut out), Some(60));
    }
}
