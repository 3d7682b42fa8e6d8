//! The virtio-pmem device of a guest through a real backend: what was answered is in
//! the mirror, and a driver that breaks its ring hurts only itself.

#![cfg(target_os = "linux")]

use std::os::unix::fs::FileExt;

use paste_abi::superblock::HOST_HEAD_LEN;
use paste_abi::vhost_user::{VringState, request};
use paste_tests::backend::{run_command, write_config};
use paste_tests::frontend::{Descriptor, PmemGuest, RawGuest, Ring, Session, flag};
use paste_tests::mirrored::Mirrored;
use paste_tests::require;
use paste_tests::require::Need;

/// Bytes of the guest's mapping.
const LEN: u64 = 14 << 20;

/// A guest with a virtio-pmem device on a region with a mirror.
fn bed() -> Mirrored {
    Mirrored::new(&[("pmem_socket", "pmem.sock")])
}

/// Stores as the guest does, who maps the region.
fn store(bed: &Mirrored, at: u64, bytes: &[u8]) {
    let region = std::fs::File::options().write(true).open(bed.file("region"));
    let region = region.expect("the region is there");
    region.write_all_at(bytes, HOST_HEAD_LEN + at).expect("the region is whole");
}

#[test]
fn a_flush_is_answered_when_the_mirror_holds_what_was_stored_anywhere() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let bed = bed();
    let backend = bed.start();
    let mut pmem = PmemGuest::attach_soon(&bed.file("pmem.sock"));
    for round in 0..300u64 {
        let bytes = format!("round {round:04}");
        let places = [LEN - 64, LEN / 2 + round * 64];
        for at in places {
            store(&bed, at, bytes.as_bytes());
            assert_ne!(bed.mirrored(at, bytes.len()), bytes.as_bytes(), "nobody asked for it yet");
        }
        assert_eq!(pmem.request(0), 0);
        for at in places {
            assert_eq!(bed.mirrored(at, bytes.len()), bytes.as_bytes());
        }
    }
    drop(pmem);
    let stats = backend.stop();
    assert_eq!(stats.get(&bed.guest, "pmem.flushes"), 300);
    assert!(!bed.file("pmem.sock").exists(), "the socket is left behind");
}

#[test]
fn requests_that_are_none_fail_and_short_ones_are_answered_as_far_as_there_is_room() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let bed = bed();
    let backend = bed.start();
    let mut pmem = PmemGuest::attach_soon(&bed.file("pmem.sock"));
    for kind in [1, 2, 0x0100_0000, u32::MAX] {
        assert_eq!(pmem.request(kind), -1);
    }
    // The type is cut off.
    for request_len in 1..4 {
        let chain = pmem.chain(0, request_len, 4);
        pmem.offer(&chain);
        assert_eq!((pmem.used(), pmem.response()), (4, -1));
    }
    let chain = pmem.chain(0, 4, 4);
    pmem.offer(&chain[1..]);
    assert_eq!((pmem.used(), pmem.response()), (4, -1));
    // The response has no room.
    let untouched = i32::from_le_bytes([0xee; 4]);
    for response_len in 1..4 {
        let chain = pmem.chain(0, 4, response_len);
        pmem.offer(&chain);
        assert_eq!((pmem.used(), pmem.response()), (0, untouched));
    }
    let chain = pmem.chain(0, 4, 4);
    pmem.offer(&chain[..1]);
    assert_eq!((pmem.used(), pmem.response()), (0, untouched));
    // More than is needed, and cut into single bytes.
    let chain = pmem.chain(0, 64, 8);
    pmem.offer(&chain);
    assert_eq!((pmem.used(), pmem.response()), (4, 0));
    let [request, response] = pmem.chain(0, 4, 4);
    let bytes = |whole: Descriptor| (0..4).map(move |i| (whole.addr + i, whole));
    let chain: Vec<_> = bytes(request)
        .chain(bytes(response))
        .map(|(addr, whole)| Descriptor { addr, len: 1, ..whole })
        .collect();
    pmem.offer(&chain);
    assert_eq!((pmem.used(), pmem.response()), (4, 0));
    let stats = backend.stop();
    assert_eq!(stats.get(&bed.guest, "pmem.flushes"), 2);
    assert_eq!(stats.get(&bed.guest, "pmem.ring_errors"), 0);
}

#[test]
fn a_region_that_cannot_be_made_durable_has_no_such_device() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let mut bed = bed();
    let (dir, socket) = (bed.file(""), bed.file("pmem.sock"));
    bed.guest.more =
        format!("region = {{ size = \"16MiB\", pmem_socket = \"{}\" }}\n", socket.display());
    let config = write_config(&dir, std::slice::from_ref(&bed.guest));
    let output = run_command(&bed.net, &config).output().expect("it can be started");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("pmem_socket") && said.contains("mirror"), "{said}");
    assert!(!socket.exists());
}

/// Something that no driver may do.
type Break = fn(&mut PmemGuest);

#[test]
fn a_broken_ring_stops_the_device_and_nothing_else() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let bed = bed();
    let backend = bed.start();
    let mut net = RawGuest::attach_soon(&backend.socket(&bed.guest));
    net.open(0, 8);
    let breaks: [Break; 7] = [
        // Memory that is not there, to read and to write.
        |pmem| {
            let mut chain = pmem.chain(0, 4, 4);
            chain[0].addr = 8;
            pmem.offer(&chain);
        },
        |pmem| {
            let mut chain = pmem.chain(0, 4, 4);
            chain[1].addr = u64::MAX - 1;
            pmem.offer(&chain);
        },
        |pmem| {
            let mut chain = pmem.chain(0, 4, 4);
            chain[1].addr += Ring::LEN;
            pmem.offer(&chain);
        },
        // A circle.
        |pmem| {
            let [request, _] = pmem.chain(0, 4, 4);
            pmem.ring.set(0, Descriptor { flags: flag::NEXT, next: 0, ..request });
            pmem.ring.offer(0);
            pmem.kick();
        },
        // The wrong way round.
        |pmem| {
            let [request, response] = pmem.chain(0, 4, 4);
            pmem.offer(&[response, request]);
        },
        // A head and an index that cannot be.
        |pmem| {
            pmem.ring.offer(Ring::SIZE);
            pmem.kick();
        },
        |pmem| {
            pmem.ring.jump(Ring::SIZE + 1);
            pmem.kick();
        },
    ];
    for (count, break_it) in (1..).zip(breaks) {
        let mut pmem = PmemGuest::attach_soon(&bed.file("pmem.sock"));
        assert_eq!(pmem.request(0), 0);
        break_it(&mut pmem);
        // DEVICE_NEEDS_RESET (VIRTIO 1.2 section 2.1) is seen, and nothing more is
        // answered.
        paste_tests::wait::until("the device wants a reset", || {
            (pmem.session.ask(request::GET_STATUS).expect("the session goes on") & 64 != 0)
                .then_some(())
        });
        assert_eq!(pmem.ring.take(), None, "break {count}");
        // The guest's other device goes on.
        net.request(0, &[paste_abi::Slot::listen(1000 + count, 1, 1)]);
        assert_eq!(net.slots()[0].len, 0, "break {count}");
    }
    let stats = backend.stop();
    assert_eq!(stats.get(&bed.guest, "pmem.ring_errors"), 7);
    assert_eq!(stats.get(&bed.guest, "worker.ring_errors"), 0);
}

#[test]
fn there_is_one_front_end_at_a_time_and_the_next_one_is_served() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let bed = bed();
    let backend = bed.start();
    let mut first = PmemGuest::attach_soon(&bed.file("pmem.sock"));
    assert_eq!(first.request(0), 0);
    let second = Session::connect(&bed.file("pmem.sock")).expect("the socket listens");
    assert!(second.is_closed());
    assert_eq!(first.request(0), 0);
    // It goes with a request under way.
    let chain = first.chain(0, 4, 4);
    first.offer(&chain);
    drop(first);
    let mut third = PmemGuest::attach_soon(&bed.file("pmem.sock"));
    assert_eq!(third.request(0), 0);
    // Nor does a message about a ring that is not there hurt anybody.
    let state = VringState { index: 1.into(), num: 0.into() };
    assert!(third.session.tell(request::SET_VRING_NUM, &state, &[]).is_err());
    assert_eq!(third.request(0), 0);
    backend.stop();
}
