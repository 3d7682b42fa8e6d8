//! The port against the model of the kernel: opening, refusals, and slots that cannot be.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use paste_pmem::Buffers;

use super::super::abi::{PstPtr, Slot};
use super::super::model::{Host, Model, NicKind};
use super::*;
use crate::testing;

/// The NIC of the model's: real sockets, on loopback.
const NIC: &str = "lo";
const HEADERS: u16 = 66;
/// Set where a test that cannot run is a failure.
const REQUIRE_ALL: &str = "PASTED_REQUIRE_ALL";

fn model(host: Host, kind: NicKind) -> Model {
    let model = Model::new(host);
    model.add_nic(NIC, kind);
    model
}

fn open(model: &Model) -> Result<PstPort, PstError> {
    PstPort::open_in(model, "paste:lo", NIC)
}

/// A connection whose near end is received by the NIC alone; `None` where the system has
/// no such thing.
fn connection() -> Option<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (near, _) = listener.accept().unwrap();
    match os::bind(near.as_fd(), NIC) {
        Ok(()) => Some((far, near)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            assert!(std::env::var_os(REQUIRE_ALL).is_none(), "cannot run: {error}");
            eprintln!("skipped: no socket can be bound to a NIC here");
            None
        }
        Err(error) => panic!("binding to {NIC}: {error}"),
    }
}

/// Syncs until something has arrived.
fn arrival(port: &mut PstPort) -> Arrived {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        port.sync_rx().unwrap();
        if let Some(arrived) = port.peek() {
            port.consume();
            return arrived;
        }
        assert!(Instant::now() < end, "nothing arrives");
    }
}

fn read(port: &PstPort, buffers: &Buffers, arrived: Arrived) -> (i32, Vec<u8>) {
    let Arrived::Payload { fd, at, len } = arrived else { panic!("{arrived:?}") };
    port.copy_out(at, buffers, (0, 128), len.into()).unwrap();
    let mut bytes = vec![0; len.into()];
    buffers.read(0, 128, &mut bytes).unwrap();
    (fd, bytes)
}

fn fill(port: &mut PstPort, buffers: &Buffers, fd: i32, bytes: &[u8], word: u64) {
    buffers.write(1, 128, bytes).unwrap();
    let at = port.place(HEADERS).unwrap();
    port.copy_in(at, buffers, (1, 128), bytes.len()).unwrap();
    assert!(port.put(Segment { fd, headers: HEADERS, len: bytes.len() as u16 }, word));
}

#[test]
fn what_is_in_the_way_is_said_in_a_line() {
    let (host, kind) = (Host::default(), NicKind::default());
    for (host, kind, message) in [
        (
            Host { module: false, ..host },
            kind,
            "port paste:lo: netmap module not loaded (there is no /dev/netmap): build netmap for \
             this kernel and `modprobe netmap`; FreeBSD's GENERIC kernel has it",
        ),
        (
            Host { permitted: false, ..host },
            kind,
            "port paste:lo: this user may not open /dev/netmap: run as root, or `chgrp GROUP \
             /dev/netmap && chmod 660 /dev/netmap` for a group of this user's",
        ),
        (
            Host { api: 12, ..host },
            kind,
            "port paste:lo: the netmap module does not speak API 14, which came in 2019: update \
             netmap to this or a later one",
        ),
        (
            Host { paste: false, ..host },
            kind,
            "port paste:lo: the netmap module of this host was built without PASTE: build the one \
             of PASTE's branch (--enable-paste) for a kernel before Linux 6.5",
        ),
        (
            Host { private_rings: 1, ..host },
            kind,
            "port paste:lo: netmap has not enough rings or buffers for PASTE: load it with \
             priv_if_num=16 priv_ring_num=160 priv_ring_size=33024 priv_buf_num=65536, or more",
        ),
        (
            // Enough for the port, and not for the NIC that joins it.
            Host { private_rings: 5, ..host },
            kind,
            "port paste:lo: netmap has not enough rings or buffers for PASTE: load it with \
             priv_if_num=16 priv_ring_num=160 priv_ring_size=33024 priv_buf_num=65536, or more",
        ),
        (
            host,
            NicKind { tx_csum: false, ..kind },
            "port paste:lo: PASTE refuses lo as it is set up: `ethtool -K lo tx on tso off gso off \
             gro off lro off`",
        ),
    ] {
        let model = model(host, kind);
        let error = open(&model).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(model.users(NIC), 0, "{message}: the NIC is left alone");
        assert_eq!(model.users("pstlo:0"), 0, "{message}: the port is closed");
    }
    let model = model(host, kind);
    let error = PstPort::open_in(&model, "paste:nosuch0", "nosuch0").unwrap_err();
    assert_eq!(
        error.to_string(),
        "port paste:nosuch0: there is no interface nosuch0: `ip link` lists them"
    );
}

#[test]
fn a_nic_has_one_port_and_its_path_a_name_that_netmap_takes() {
    let model = model(Host::default(), NicKind::default());
    let first = open(&model).unwrap();
    assert_eq!((model.users(NIC), model.users("pstlo:0")), (1, 1));
    let error = open(&model).unwrap_err();
    assert_eq!(
        error.to_string(),
        "port paste:lo: lo is in use with netmap by another process, or a process that was killed \
         has left connections on it, which go within a minute: end that process, or wait"
    );
    drop(first);
    assert_eq!((model.users(NIC), model.users("pstlo:0")), (0, 0));
    drop(open(&model).unwrap());
    assert_eq!(path("ix0"), "pstix0");
    assert_eq!(path("eth0.7"), "psteth0_7");
    assert_eq!(path("enp0s31f6-long1"), "pst0s31f6_long1");
    assert!(path("a23456789012345").len() <= PATH_MAX);
}

#[test]
fn payload_of_a_socket_comes_and_goes_by_its_descriptor() {
    let model = model(Host::default(), NicKind::default());
    let mut port = open(&model).unwrap();
    let buffers = testing::buffers(4);
    let Some((mut far, near)) = connection() else { return };
    let fd = near.as_raw_fd();
    // What came before it was registered is there too.
    far.write_all(b"early").unwrap();
    port.register(near.as_fd()).unwrap();
    let arrived = arrival(&mut port);
    assert_eq!(read(&port, &buffers, arrived), (fd, b"early".to_vec()));

    fill(&mut port, &buffers, fd, b"one ", 1);
    fill(&mut port, &buffers, fd, b"two", 2);
    let mut taken = Vec::new();
    assert_eq!(port.sync_tx(&mut |word| taken.push(word)).unwrap(), None);
    assert_eq!(taken, [1, 2]);
    let mut got = [0; 7];
    far.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"one two");

    far.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(arrival(&mut port), Arrived::Fin { fd });
    drop(near);
    drop(port);
    assert_eq!(model.complaints(), 0, "the kernel's blocks are as they were");
}

#[test]
fn the_kernel_stops_behind_a_slot_when_it_can_keep_no_more() {
    let model = model(Host::default(), NicKind::default());
    let mut port = open(&model).unwrap();
    let buffers = testing::buffers(4);
    let Some((mut far, near)) = connection() else { return };
    port.register(near.as_fd()).unwrap();
    model.pst(NIC, |pst| pst.manner().keep_max = Some(2));
    for word in 0..20 {
        fill(&mut port, &buffers, near.as_raw_fd(), &[b'a' + word as u8], word);
    }
    let mut taken = Vec::new();
    while taken.len() < 20 {
        let before = taken.len();
        assert_eq!(port.sync_tx(&mut |word| taken.push(word)).unwrap(), None);
        assert!(taken.len() > before, "it goes on");
    }
    assert_eq!(taken, (0..20).collect::<Vec<_>>());
    let mut got = [0; 20];
    far.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"abcdefghijklmnopqrst");
}

#[test]
fn sockets_are_refused_as_paste_does() {
    let model = model(Host::default(), NicKind::default());
    let port = open(&model).unwrap();
    let Some((_far, near)) = connection() else { return };
    port.register(near.as_fd()).unwrap();
    assert_eq!(port.register(near.as_fd()), Err(Errno::BUSY), "twice");
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    assert_eq!(port.register(listener.as_fd()), Err(Errno::INVAL), "not connected");
    model.pst(NIC, |pst| pst.forget(near.as_raw_fd()));
    port.register(near.as_fd()).unwrap();
    let descriptor = model.open().unwrap();
    for (name, fd, errno) in [
        ("pstlo:0", 2, Errno::INVAL),
        ("pstlo:0", 65_536, Errno::NOMEM),
        ("pstlo:1", 5, Errno::NXIO),
        ("pst:0", 5, Errno::NXIO),
    ] {
        assert_eq!(register_fd(&descriptor, name, fd), Err(errno), "{name} {fd}");
    }
}

/// Why a slot is judged before the kernel sees it: it stops there, for all flows, for
/// ever, and says nothing.
#[test]
fn a_bad_slot_that_was_published_would_stop_all_flows() {
    let model = model(Host::default(), NicKind::default());
    let mut port = open(&model).unwrap();
    let buffers = testing::buffers(4);
    let Some((mut far, near)) = connection() else { return };
    let fd = near.as_raw_fd();
    port.register(near.as_fd()).unwrap();
    // Shorter than its headers; and over the kernel's own block.
    let ptr = |offset, data| PstPtr { offset, fd, data }.pack();
    for spoilt in [(10, ptr(64, 66)), (70, ptr(0, 66))] {
        let stops = model.pst(NIC, |pst| pst.counts().stops_bad);
        fill(&mut port, &buffers, fd, b"bad", 1);
        fill(&mut port, &buffers, fd, b"good", 2);
        // Behind the port's back.
        model.pst(NIC, |pst| pst.spoil(|slot| Slot { len: spoilt.0, ptr: spoilt.1, ..slot }));
        for _ in 0..3 {
            let mut none = |word| panic!("{word} was taken");
            assert_eq!(port.sync_tx(&mut none).unwrap(), Some(1));
        }
        assert!(model.pst(NIC, |pst| pst.counts().stops_bad) >= stops + 3);
        // Void, it is passed over.
        port.withdraw(|word| if word == 1 { Verdict::Void } else { Verdict::Keep });
        let mut taken = Vec::new();
        assert_eq!(port.sync_tx(&mut |word| taken.push(word)).unwrap(), None);
        assert_eq!(taken, [2]);
        let mut got = [0; 4];
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"good");
    }
}

#[test]
fn a_slot_that_the_kernel_would_stop_at_is_not_filled() {
    let model = model(Host::default(), NicKind::default());
    let mut port = open(&model).unwrap();
    let Some((_far, near)) = connection() else { return };
    let fd = near.as_raw_fd();
    let good = Segment { fd, headers: HEADERS, len: 100 };
    let room = port.room();
    for bad in [
        Segment { fd: 2, ..good },
        Segment { fd: -1, ..good },
        Segment { fd: FD_MAX + 1, ..good },
        Segment { headers: 1024, ..good },
        Segment { len: 0, ..good },
        Segment { len: port.payload_max(HEADERS) as u16 + 1, ..good },
        Segment { len: u16::MAX, headers: 1023, ..good },
    ] {
        assert!(!port.put(bad, 1), "{bad:?}");
    }
    assert!(!port.put(good, u64::MAX), "no word");
    assert_eq!(port.room(), room);
    for word in 0..u64::from(room) {
        assert!(port.put(good, word));
    }
    assert!(!port.put(good, 0), "the ring is full");
}

#[test]
fn slots_of_the_kernels_that_cannot_be_are_bad_and_the_next_are_good() {
    let model = model(Host::default(), NicKind::default());
    let mut port = open(&model).unwrap();
    let ptr = |offset, fd, data| PstPtr { offset, fd, data }.pack();
    let good = (0, 100, ptr(64, 9, 66));
    let bad = [
        (0, 50, ptr(64, 9, 66)),
        (0, 100, ptr(63, 9, 66)),
        (0, 100, ptr(64, 2, 66)),
        (0, 100, ptr(64, -7, 66)),
        (0, 100, ptr(64, 65_535, 66)),
        (0, 2048, ptr(64, 9, 66)),
        (0, u16::MAX, ptr(255, 9, 1023)),
        (1, 100, ptr(64, 9, 66)),
        (u32::MAX, 100, ptr(64, 9, 66)),
        (1 << 20, 100, ptr(64, 9, 66)),
    ];
    model.pst(NIC, |pst| {
        for (buf, len, ptr) in bad.into_iter().chain([good]) {
            pst.deliver(buf, len, ptr);
        }
    });
    for slot in bad {
        assert_eq!(arrival(&mut port), Arrived::Bad, "{slot:x?}");
    }
    assert!(matches!(arrival(&mut port), Arrived::Payload { fd: 9, len: 34, .. }));
    model.pst(NIC, |pst| pst.deliver(0, 66, ptr(64, 9, 66)));
    assert_eq!(arrival(&mut port), Arrived::Fin { fd: 9 });
}

#[test]
fn a_port_closed_before_its_sockets_is_kept_by_the_kernel() {
    let model = model(Host::default(), NicKind::default());
    let port = open(&model).unwrap();
    let Some((_far, near)) = connection() else { return };
    port.register(near.as_fd()).unwrap();
    drop(port);
    assert_eq!(model.users(NIC), 1, "the kernel waits for the socket");
    assert!(matches!(open(&model), Err(PstError::Busy { .. })));
    drop(near);
    open(&model).expect("the socket has gone, and then the port");
}

#[test]
fn a_nic_that_goes_is_missed_and_joins_again() {
    let model = model(Host::default(), NicKind::default());
    let mut port = open(&model).unwrap();
    port.check().unwrap();
    model.pst(NIC, |pst| pst.detach());
    assert!(matches!(port.check(), Err(PortError::Gone { .. })));
    // Syncs say nothing of it.
    port.sync_rx().unwrap();
    port.rejoin().unwrap();
    port.check().unwrap();
    assert!(matches!(port.rejoin(), Err(PortError::Failed { .. })), "it is there");
}

#[test]
fn indices_that_cannot_be_are_an_error_of_the_port() {
    let model = model(Host::default(), NicKind::default());
    let mut port = open(&model).unwrap();
    // Where `tail` lies.
    model.scribble("pstlo:0", true, 0, 28, 77);
    port.sync_rx().unwrap();
    let Some((_far, near)) = connection() else { return };
    port.register(near.as_fd()).unwrap();
    let buffers = testing::buffers(4);
    fill(&mut port, &buffers, near.as_raw_fd(), b"x", 0);
    port.sync_tx(&mut |_| {}).expect("the kernel writes it anew");
}
