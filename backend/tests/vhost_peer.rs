//! The device against a front end that is not ours: the `vhost` crate's.
//!
//! The device runs on a thread as a worker would run it, and returns each frame
//! that the guest sends. The driver's side of the rings is written with
//! `pwrite` into the file that is the guest's memory.

// The crate knows no other system.
#![cfg(target_os = "linux")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use pasted::vhost::{Device, DeviceCounters, DeviceOptions, MEM_SLOTS_MAX, RegionFd, SessionError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7f12_3450_0000;
const LEN: u64 = 0x10_0000;
const SIZE: u16 = 16;
const RX: usize = 0;
const TX: usize = 1;

/// VIRTIO_F_VERSION_1, EVENT_IDX, F_PROTOCOL_FEATURES, MRG_RXBUF.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 30 | 1 << 15;

fn memory(len: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

/// Serves a front end until it goes, returning every frame to its sender.
fn serve(stream: UnixStream) -> JoinHandle<DeviceCounters> {
    let mut device = Device::new(DeviceOptions {
        name: "peer".to_owned(),
        mac: [2, 0, 0, 0, 0, 9],
        mtu: 1500,
        csum: true,
        segments: true,
        region: Some(RegionFd { fd: memory(0x8000), offset: 0x1000, len: 0x4000 }),
        queue_size_max: 256,
        pairs: 1,
    });
    device.attach(stream).unwrap();
    std::thread::spawn(move || {
        let mut scratch = [0; 2048];
        loop {
            while let Some(len) = device.next_tx(&mut scratch).unwrap() {
                let (_, bytes) = scratch[..len].split_at(NET_HDR_LEN);
                assert!(device.push_rx(&[bytes], &NetHdr::default()).unwrap());
            }
            device.flush();
            if !device.arm() {
                let watched: Vec<_> = device.watch().collect();
                let mut fds: Vec<_> = watched
                    .iter()
                    .map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                    .collect();
                poll(&mut fds, None).unwrap();
            }
            for ring in [RX, TX] {
                device.take_kick(ring);
            }
            match device.handle_messages() {
                Ok(()) => {}
                Err(SessionError::Closed) => return *device.counters(),
                Err(error) => panic!("{error}"),
            }
        }
    })
}

/// The driver's side of one ring.
struct Driver {
    file: OwnedFd,
    base: u64,
    avail: u16,
    kick: EventFd,
    call: EventFd,
}

impl Driver {
    fn new(file: &OwnedFd, ring: usize) -> Driver {
        Driver {
            file: file.try_clone().unwrap(),
            base: 0x1_0000 * ring as u64,
            avail: 0,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
        }
    }

    fn config(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: 256,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER + self.base,
            used_ring_addr: USER + self.base + 0x2000,
            avail_ring_addr: USER + self.base + 0x1000,
            log_addr: None,
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.file, bytes, at).unwrap(), bytes.len());
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert_eq!(rustix::io::pread(&self.file, &mut bytes, at).unwrap(), N);
        bytes
    }

    /// Makes a buffer of one descriptor available, and asks to be told of it.
    fn offer(&mut self, at: u64, len: u32, flags: u16) {
        let slot = u64::from(self.avail % SIZE);
        let mut desc = (GUEST + at).to_le_bytes().to_vec();
        desc.extend(len.to_le_bytes());
        desc.extend(flags.to_le_bytes());
        desc.extend([0; 2]);
        self.write(self.base + 16 * slot, &desc);
        let used_event = self.base + 0x1004 + 2 * u64::from(SIZE);
        self.write(used_event, &self.avail.to_le_bytes());
        self.write(self.base + 0x1004 + 2 * slot, &(slot as u16).to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.write(self.base + 0x1002, &self.avail.to_le_bytes());
    }

    /// Waits, with no time limit, for the signal that was asked for. The device
    /// has made the descriptor non-blocking.
    fn wait(&self) {
        while self.call.read().is_err() {
            std::thread::yield_now();
        }
    }

    fn used_idx(&self) -> u16 {
        u16::from_le_bytes(self.read(self.base + 0x2002))
    }
}

#[test]
fn a_session_as_the_vhost_crate_sees_it() {
    let (front, back) = UnixStream::pair().unwrap();
    let worker = serve(back);
    let mut frontend = Frontend::from_stream(front, 2);
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert_eq!(offered & FEATURES, FEATURES);
    let protocol = frontend.get_protocol_features().unwrap();
    for feature in [
        VhostUserProtocolFeatures::MQ,
        VhostUserProtocolFeatures::REPLY_ACK,
        VhostUserProtocolFeatures::MTU,
        VhostUserProtocolFeatures::CONFIG,
        VhostUserProtocolFeatures::RESET_DEVICE,
        VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS,
        VhostUserProtocolFeatures::STATUS,
        VhostUserProtocolFeatures::SHMEM,
    ] {
        assert!(protocol.contains(feature), "{feature:?}");
    }
    // The crate asks for an answer to everything from here on.
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), MEM_SLOTS_MAX as u64);
    frontend.set_features(FEATURES).unwrap();
    let (_, mac) = frontend.get_config(0, 6, VhostUserConfigFlags::empty(), &[0; 6]).unwrap();
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);

    let file = memory(LEN);
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST,
        memory_size: LEN,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    // Once as a table and once as a slot.
    frontend.set_mem_table(&[region]).unwrap();
    frontend.remove_mem_region(&region).unwrap();
    assert!(frontend.remove_mem_region(&region).is_err());
    frontend.add_mem_region(&region).unwrap();

    let mut rings = [RX, TX].map(|ring| Driver::new(&file, ring));
    for (index, ring) in rings.iter().enumerate() {
        frontend.set_vring_num(index, SIZE).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        frontend.set_vring_addr(index, &ring.config()).unwrap();
        frontend.set_vring_call(index, &ring.call).unwrap();
        frontend.set_vring_kick(index, &ring.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }
    // SET_VRING_CALL signals for what may have been missed.
    for ring in &rings {
        ring.wait();
    }
    for round in 0..40u16 {
        let frame: Vec<u8> = (0..60 + round).map(|i| (i + round) as u8).collect();
        rings[RX].offer(0x4_0000, 2048, 2);
        rings[TX].write(0x5_0000, &[&[0; NET_HDR_LEN][..], &frame].concat());
        rings[TX].offer(0x5_0000, (NET_HDR_LEN + frame.len()) as u32, 0);
        rings[TX].kick.write(1).unwrap();
        rings[RX].wait();
        assert_eq!(rings[RX].used_idx(), round + 1);
        let mut got = vec![0; frame.len()];
        rustix::io::pread(&file, &mut got, 0x4_0000 + NET_HDR_LEN as u64).unwrap();
        assert_eq!(got, frame);
        rings[TX].wait();
        assert_eq!(rings[TX].used_idx(), round + 1);
    }
    assert_eq!(frontend.get_vring_base(TX).unwrap(), 40);
    frontend.reset_device().unwrap();
    drop(frontend);
    let counters = worker.join().unwrap();
    assert_eq!((counters.tx_frames, counters.rx_frames), (40, 40));
    assert_eq!((counters.messages_refused, counters.messages_unknown), (1, 0));
}

#[derive(Default)]
struct Window {
    mapped: Option<(u8, u64, u64, u64, u64)>,
}

impl VhostUserFrontendReqHandlerMut for Window {
    fn shmem_map(&mut self, map: &VhostUserMMap, _fd: &dyn AsRawFd) -> HandlerResult<u64> {
        let (fd_offset, shm_offset, len, flags) =
            (map.fd_offset, map.shm_offset, map.len, map.flags);
        self.mapped = Some((map.shmid, fd_offset, shm_offset, len, flags));
        Ok(0)
    }
}

#[test]
fn the_region_reaches_the_front_end() {
    let (front, back) = UnixStream::pair().unwrap();
    let worker = serve(back);
    let mut frontend = Frontend::from_stream(front, 2);
    frontend.get_features().unwrap();
    frontend.set_features(FEATURES).unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let config = frontend.get_shmem_config().unwrap();
    let (regions, size) = (config.nregions, config.memory_sizes[0]);
    assert_eq!((regions, size), (1, 0x4000));

    let window = Arc::new(Mutex::new(Window::default()));
    let mut handler = FrontendReqHandler::new(window.clone()).unwrap();
    handler.set_reply_ack_flag(true);
    // The crate keeps its end open; ours gets a copy of it.
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).unwrap();
    assert_eq!(handler.handle_request().unwrap(), 0);
    assert_eq!(window.lock().unwrap().mapped, Some((0, 0x1000, 0, 0x4000, 1)));
    drop(frontend);
    worker.join().unwrap();
}
