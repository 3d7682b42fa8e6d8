//! The front end against a back end that answers every frame with itself.

use super::*;
use crate::transport::virtqueue::{Layout, RX, TX};
use paste_abi::vhost_user::{
    FLAG_NEED_REPLY, FLAG_REPLY, SHMEM_WRITABLE, ShMemMap, backend_request, protocol, request,
};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

const REGION_LEN: u64 = 8192;
const LAYOUT: Layout = Layout::new(RING_SIZE, NET_HDR_LEN + 1024);
const DEVICE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What a back end leaves out or does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    NoShmem,
    RefusesMemory,
    NoRegion,
    GoesAway,
    /// Nothing, and it has two pairs, of which it uses the second.
    TwoPairs,
    /// Likewise, and it goes away.
    TwoPairsGoAway,
}

impl Fault {
    fn has_two_pairs(self) -> bool {
        matches!(self, Fault::TwoPairs | Fault::TwoPairsGoAway)
    }
}

fn answer(socket: &UnixStream, request: u32, payload: &[u8]) {
    message::send(socket, request, FLAG_REPLY, payload, &[]).unwrap();
}

/// Serves one session: its messages until the rings run, then one frame.
fn serve(socket: &UnixStream, fault: Fault) -> Result<(), TransportError> {
    let mut fds: [Option<OwnedFd>; 4] = [None, None, None, None];
    let mut backend = None;
    let mut features = 0;
    let (pair, mut offered) =
        (u16::from(fault.has_two_pairs()), 1 << 5 | 1 << 29 | 1 << 30 | 1 << 32);
    offered |= if fault.has_two_pairs() { 1 << 22 | 1 << 17 } else { 0 };
    loop {
        let mut message = message::receive(socket)?;
        let code = message.request;
        let mut status = 0u64;
        match code {
            request::GET_FEATURES => {
                answer(socket, code, U64::new(offered).as_bytes());
            }
            request::GET_PROTOCOL_FEATURES => {
                let all = protocol::MQ
                    | protocol::BACKEND_REQ
                    | protocol::BACKEND_SEND_FD
                    | protocol::CONFIG
                    | protocol::REPLY_ACK
                    | protocol::STATUS;
                let shmem = if fault == Fault::NoShmem { 0 } else { protocol::SHMEM };
                answer(socket, code, U64::new(all | shmem).as_bytes());
            }
            request::SET_FEATURES => features = message.read::<U64>()?.get(),
            request::GET_CONFIG => {
                let mut bytes = message.payload().to_vec();
                bytes[12..18].copy_from_slice(&DEVICE_MAC);
                bytes[20..22].copy_from_slice(&(1 + pair).to_le_bytes());
                answer(socket, code, &bytes);
            }
            request::SET_BACKEND_REQ_FD => {
                backend = message.fd.take().map(UnixStream::from);
            }
            request::SET_MEM_TABLE => {
                fds[0] = message.fd.take();
                status = u64::from(fault == Fault::RefusesMemory);
            }
            request::SET_VRING_KICK if message.payload()[0] == (2 * pair + TX) as u8 => {
                fds[1] = message.fd.take();
            }
            request::SET_VRING_CALL if message.payload()[0] == (2 * pair + RX) as u8 => {
                fds[2] = message.fd.take()
            }
            _ => {}
        }
        if message.flags & FLAG_NEED_REPLY != 0 {
            answer(socket, code, U64::new(status).as_bytes());
        }
        if code == request::SET_STATUS {
            break;
        }
    }
    assert_eq!(features, offered);
    let [Some(memory), Some(kick), Some(call), _] = &fds else {
        panic!("a descriptor is missing");
    };
    let backend = backend.expect("a back end's channel");
    if fault != Fault::NoRegion {
        offer(&backend);
    }
    // The front end's last act of the set-up is this kick.
    while sys::wait_readable([kick.as_fd()], None).unwrap() == [false] {}
    if matches!(fault, Fault::GoesAway | Fault::TwoPairsGoAway) {
        return Ok(());
    }
    // The frame may come a little later.
    let map = |ring: u64| {
        let at = (2 * u64::from(pair) + ring) * LAYOUT.len as u64;
        Mapping::from_fd(memory.as_fd(), at, LAYOUT.len, true).unwrap()
    };
    let (rx, tx) = (map(0), map(1));
    while u16_at(&tx, LAYOUT.avail + 2) == 0 {
        sys::wait_readable([kick.as_fd()], Some(Duration::from_millis(50))).unwrap();
    }
    let id = u16_at(&tx, LAYOUT.avail + 4);
    let mut desc = [0; 16];
    assert!(tx.read_at(usize::from(id) * 16, &mut desc));
    let len = u32::from_le_bytes([desc[8], desc[9], desc[10], desc[11]]);
    let mut frame = vec![0; len as usize];
    assert!(tx.read_at(LAYOUT.buffers + usize::from(id) * LAYOUT.buffer_len, &mut frame));
    used(&tx, id, 0);
    let id = u16_at(&rx, LAYOUT.avail + 4);
    assert!(rx.write_at(LAYOUT.buffers + usize::from(id) * LAYOUT.buffer_len, &frame));
    used(&rx, id, len);
    rustix::io::write(call, &1u64.to_ne_bytes()).unwrap();
    // Until the front end leaves.
    while message::receive(socket).is_ok() {}
    Ok(())
}

/// Hands the region over and waits for the acknowledgement.
fn offer(backend: &UnixStream) {
    let region = sys::shared_memory(REGION_LEN as usize + 4096).unwrap();
    let map = ShMemMap {
        shmid: 0,
        padding: [0; 7],
        fd_offset: 4096.into(),
        shm_offset: 0.into(),
        len: REGION_LEN.into(),
        flags: SHMEM_WRITABLE.into(),
    };
    let code = backend_request::SHMEM_MAP;
    let fds = [region.as_fd()];
    message::send(backend, code, FLAG_NEED_REPLY, map.as_bytes(), &fds).unwrap();
}

fn u16_at(ring: &Mapping, at: usize) -> u16 {
    let mut bytes = [0; 2];
    assert!(ring.read_at(at, &mut bytes));
    u16::from_le_bytes(bytes)
}

fn used(ring: &Mapping, id: u16, len: u32) {
    assert!(ring.write_at(LAYOUT.used + 4, &u32::from(id).to_le_bytes()));
    assert!(ring.write_at(LAYOUT.used + 8, &len.to_le_bytes()));
    std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
    assert!(ring.write_at(LAYOUT.used + 2, &1u16.to_le_bytes()));
}

/// A backend that serves one session per fault.
fn backend(faults: &'static [Fault]) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        for fault in faults {
            let (socket, _) = listener.accept().unwrap();
            let _ = serve(&socket, *fault);
        }
    });
    (directory, path, thread)
}

fn connect_pairs(path: &Path, pairs: u16) -> Result<Vec<VhostUser>, TransportError> {
    VhostUser::connect(path, 1024, pairs)
}

fn connect(path: &Path) -> Result<VhostUser, TransportError> {
    Ok(connect_pairs(path, 1)?.pop().unwrap())
}

fn lost(front: &mut VhostUser, timeout: Timeout) -> TransportError {
    loop {
        if let Err(error) = front.wait(timeout, Polling::default()) {
            break error;
        }
    }
}

fn echo(front: &mut VhostUser) {
    let sent = front.send(&mut |out| {
        out[..4].copy_from_slice(b"ping");
        4
    });
    assert!(sent.unwrap());
    front.publish().unwrap();
    while front.refresh().unwrap() == 0 {
        front.wait(Timeout::Never, Polling::default()).unwrap();
    }
    let mut out = [0; 1024];
    assert_eq!(front.receive(&mut out).unwrap(), Some(4));
    assert_eq!(&out[..4], b"ping");
    assert_eq!(front.receive(&mut out).unwrap(), None);
}

#[test]
fn a_frame_goes_out_and_comes_back_and_the_region_is_mapped() {
    let (_directory, path, thread) = backend(&[Fault::None]);
    let mut front = connect(&path).unwrap();
    assert_eq!((front.mac(), front.frame_size()), (DEVICE_MAC, 1024));
    echo(&mut front);
    assert_eq!(front.map_region([0; 16], REGION_LEN).unwrap().len(), REGION_LEN as usize);
    assert!(matches!(front.map_region([0; 16], REGION_LEN + 1), Err(TransportError::Protocol(_))));
    front.drain(Duration::from_secs(10)).unwrap();
    assert_eq!(front.line.pair.unsent(), 0);
    drop(front);
    thread.join().unwrap();
}

#[test]
fn a_backend_that_goes_away_is_noticed_and_found_again() {
    let (_directory, path, thread) = backend(&[Fault::GoesAway, Fault::None]);
    let mut front = connect(&path).unwrap();
    let error = lost(&mut front, Timeout::Never);
    assert!(matches!(error, TransportError::Disconnected), "{error}");
    front.reconnect().unwrap();
    echo(&mut front);
    drop(front);
    thread.join().unwrap();
}

#[test]
fn a_spinning_guest_notices_the_end_too() {
    let (_directory, path, thread) = backend(&[Fault::GoesAway]);
    let mut front = connect(&path).unwrap();
    thread.join().unwrap();
    let error = lost(&mut front, Timeout::Now);
    assert!(matches!(error, TransportError::Disconnected), "{error}");
}

#[test]
fn each_pair_has_its_rings_and_all_have_one_session() {
    let sessions = &[Fault::TwoPairs, Fault::TwoPairsGoAway, Fault::TwoPairs];
    let (_directory, path, thread) = backend(sessions);
    let mut pairs = connect_pairs(&path, 2).unwrap();
    let [first, second] = &mut pairs[..] else { panic!("two pairs") };
    assert_eq!([first.mac(), second.mac()], [DEVICE_MAC; 2]);
    assert_eq!([first.pairs(), second.pairs()], [2; 2]);
    echo(second);
    assert_eq!(first.refresh().unwrap(), 0, "a frame of the other's");
    for pair in [&mut *first, &mut *second] {
        assert_eq!(pair.map_region([0; 16], REGION_LEN).unwrap().len(), REGION_LEN as usize);
    }
    // One of them wants another session, which ends this one for the other.
    first.reconnect().unwrap();
    assert!(matches!(lost(second, Timeout::Never), TransportError::Disconnected));
    // That one ends before the second pair has joined it.
    assert!(matches!(lost(first, Timeout::Now), TransportError::Disconnected));
    second.reconnect().unwrap();
    assert!(matches!(lost(second, Timeout::Never), TransportError::Disconnected));
    // Whoever comes first makes a session, and the other has its part of the same one.
    second.reconnect().unwrap();
    first.reconnect().unwrap();
    echo(second);
    assert!(Arc::ptr_eq(&first.line.connection, &second.line.connection));
    drop(pairs);
    thread.join().unwrap();
}

#[test]
fn more_pairs_than_there_are_are_refused() {
    let (_directory, path, thread) = backend(&[Fault::None, Fault::TwoPairs]);
    for (asked, said) in [(2, "has 1 queue pair, 2 were"), (3, "has 2 queue pairs, 3 were")] {
        let error = connect_pairs(&path, asked).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    thread.join().unwrap();
}

#[test]
fn what_a_device_lacks_is_named() {
    let (_directory, path, thread) = backend(&[Fault::NoShmem, Fault::RefusesMemory]);
    let error = connect(&path).unwrap_err();
    assert!(error.to_string().contains("SHMEM"), "{error}");
    let error = connect(&path).unwrap_err();
    assert!(matches!(error, TransportError::Protocol(_)), "{error}");
    thread.join().unwrap();
    let error = connect(Path::new("/nonexistent/socket")).unwrap_err();
    assert!(matches!(error, TransportError::System { .. }), "{error}");
}

#[test]
fn a_backend_that_leaves_without_offering_the_region_ends_the_wait_for_it() {
    let (_directory, path, thread) = backend(&[Fault::NoRegion]);
    let mut front = connect(&path).unwrap();
    echo(&mut front);
    rustix::net::shutdown(front.line.connection.sockets().as_fds()[0], rustix::net::Shutdown::Both)
        .unwrap();
    assert!(matches!(front.map_region([0; 16], REGION_LEN), Err(TransportError::Disconnected)));
    drop(front);
    thread.join().unwrap();
}
