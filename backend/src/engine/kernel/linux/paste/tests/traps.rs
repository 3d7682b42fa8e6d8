//! What PASTE does that its users must know: each of these loses payload, mixes flows up
//! or stops them all where it is not minded.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use paste_abi::Event;
use paste_abi::slot::KEEP;

use super::super::*;
use super::{NIC, Rig};
use crate::engine::kernel::linux::contract::{CHANNEL, NoPlain, pattern};

/// A slot for PASTE, packed as it lies in a ring.
fn ptr(offset: u64, fd: i32, headers: u64) -> u64 {
    offset | u64::from(fd as u32) << 8 | headers << 40
}

#[test]
fn slots_that_cannot_be_are_counted_and_nobody_is_harmed() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    let fd = rig.engine.flows[flow.index()].fd;
    let strange = [
        (0, 20, ptr(64, fd, 66)),
        (0, 90, ptr(0, fd, 66)),
        (0, u16::MAX, ptr(64, fd, 66)),
        (1, 90, ptr(64, fd, 66)),
        (0, 90, ptr(64, -1, 66)),
    ];
    let nobodys = [(0, 90, ptr(64, fd + 1000, 66)), (0, 66, ptr(64, 65_534, 66))];
    rig.host.pst(NIC, |pst| {
        for (buf, len, ptr) in strange.into_iter().chain(nobodys) {
            pst.deliver(buf, len, ptr);
        }
    });
    stream.write_all(b"hello").unwrap();
    let slot = rig.hear(Event::Data);
    assert_eq!(rig.bytes(&slot), b"hello");
    let counters = rig.engine.counters;
    assert_eq!((counters.slots_bad, counters.slots_stale), (5, 2));
    assert!(rig.told.is_empty());
    rig.end();
}

/// A socket that was reset while its slots are in the ring fails each of them, at every
/// sync, and all flows wait behind it.
#[test]
fn a_dead_flow_in_the_ring_holds_nobody_up() {
    let mut rig = Rig::new(1024, 16);
    let (_, port) = rig.listen(16);
    let (dying, flow) = rig.accept(port);
    let (mut other, second) = rig.accept(port);
    rig.engine.receive(rig.now, &mut rig.mem, &mut NoPlain).unwrap();
    socket::reset_on_close(&dying);
    drop(dying);
    // The engine has not heard of it when these are queued.
    let kept = rig.send(flow, b"to nobody", 9, KEEP).unwrap();
    rig.send(second, b"hello", 0, 0).unwrap();
    rig.engine.transmit(rig.now, &mut rig.mem).unwrap();
    let mut got = [0; 5];
    other.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello", "in the same turn");
    assert!(rig.host.pst(NIC, |pst| pst.counts().stops_full) > 0);
    assert_eq!(rig.engine.counters.stuck, 1);
    let slot = rig.hear(Event::Reset);
    assert_eq!((slot.flow, slot.len), (flow, Reason::PeerReset as u16));
    let acked = rig.told.remove(0);
    assert_eq!((acked.as_event(), acked.buf_idx), (Some(Event::Acked), kept));
    assert_eq!(acked.len, Reason::PeerReset as u16, "the kernel never had it");
    rig.end();
}

/// A number that a closed socket had is not another's as long as the kernel may clear its
/// entry, or show what that socket received.
#[test]
fn numbers_of_descriptors_are_not_used_again_at_once() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (first, flow) = rig.accept(port);
    let fd = rig.engine.flows[flow.index()].fd;
    rig.engine.abort(rig.now, &mut rig.mem, CHANNEL, flow).unwrap();
    // Whoever opens something now does not get it.
    let opened: Vec<_> = (0..64).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    assert!(opened.iter().all(|file| file.as_raw_fd() != fd));
    drop((opened, first));
    // What the kernel still has under the number is nobody's.
    rig.host.pst(NIC, |pst| pst.deliver(0, 166, ptr(64, fd, 66)));
    let (mut second, next) = rig.accept(port);
    assert_eq!(rig.engine.counters.slots_stale, 1);
    rig.send(next, b"hello", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    second.read_exact(&mut got).unwrap();
    rig.end();
}

/// Sockets that live on after they were closed do not take their successors' entries.
#[test]
fn connections_that_come_and_go_keep_their_entries() {
    let mut rig = Rig::new(256, 64);
    let (_, port) = rig.listen(16);
    rig.host.pst(NIC, |pst| pst.manner().linger = 1);
    for round in 0..60_u8 {
        let (mut stream, flow) = rig.accept(port);
        stream.write_all(&[round]).unwrap();
        let slot = rig.hear(Event::Data);
        rig.send_from(flow, slot.buf_idx, slot.offset, slot.len, 0, 0).unwrap();
        rig.close(flow).unwrap();
        rig.turn();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, [round]);
        if round % 3 == 0 {
            socket::reset_on_close(&stream);
        }
        drop(stream);
        rig.until("the end", |rig| {
            let over = |slot: &Slot| matches!(slot.as_event(), Some(Event::Closed | Event::Reset));
            rig.told.iter().any(over).then_some(())
        });
        rig.told.clear();
    }
    assert_eq!(rig.host.pst(NIC, |pst| pst.counts().nobodys), 0, "no slot was lost");
    rig.host.pst(NIC, |pst| pst.manner().linger = 0);
    assert_eq!(rig.end().lost, 0);
}

/// PASTE takes a slot whose socket it has lost, and says nothing: the guest would be told
/// that it was sent, and the peer that it has everything.
#[test]
fn payload_that_the_kernel_lost_is_found_missing_before_fin() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    let fd = rig.engine.flows[flow.index()].fd;
    rig.host.pst(NIC, |pst| pst.forget(fd));
    rig.send(flow, &pattern(1000), 0, 0).unwrap();
    rig.close(flow).unwrap();
    let slot = rig.hear(Event::Reset);
    assert_eq!((slot.flow, slot.len), (flow, Reason::Aborted as u16));
    assert_eq!(rig.host.pst(NIC, |pst| pst.counts().nobodys), 1);
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "not an end in good order");
    assert_eq!(rig.end().lost, 1);
}

/// A send buffer without room takes a part of a slot, and PASTE drops the rest. The flow's
/// credit keeps it from that; where that fails, the stream is not passed off as whole.
#[test]
fn a_part_that_a_socket_did_not_take_is_found_missing() {
    let mut rig = Rig::new(4096, 16);
    let (_, port) = rig.listen(16);
    let (mut slow, flow) = rig.accept(port);
    let index = flow.index();
    let part = pattern(1900);
    let mut sent = 0;
    // As if the send buffer had room for ever.
    for _ in 0..2000 {
        rig.engine.flows[index].credit = u32::MAX;
        while rig.mem.pool().free() > 64 && rig.send(flow, &part, 0, 0).is_ok() {
            sent += 1;
        }
        rig.give_all_back();
        rig.turn();
        if rig.engine.counters.stuck > 0 {
            break;
        }
    }
    assert!(rig.engine.counters.stuck > 0, "{sent} buffers were sent");
    // The kernel stops at it, and another is served all the same.
    let (mut other, second) = rig.accept(port);
    rig.send(second, b"hello", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    other.read_exact(&mut got).unwrap();
    // Whether a part was lost depends on the kernel; both ways the client is not fooled.
    rig.close(flow).unwrap();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        let end = slow.read_to_end(&mut got).map(drop).map_err(|error| error.kind());
        (got, end)
    });
    rig.until("the client is done", |_| reader.is_finished().then_some(()));
    let (got, end) = reader.join().unwrap();
    let lost = rig.host.pst(NIC, |pst| pst.counts().lost);
    match end {
        Ok(()) => assert!(lost == 0 && got.len() == sent * 1900, "{lost} bytes are missing"),
        Err(kind) => {
            assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
            assert!(lost > 0, "reset for nothing");
            assert_eq!(rig.engine.counters.lost, 1);
        }
    }
    rig.end();
}

/// When the NIC's ring is full, PASTE has given slots to their sockets and does not say
/// so: what is taken for stuck, and sent again, arrives twice.
#[test]
fn what_a_socket_has_is_not_sent_again_when_the_nic_is_full() {
    let mut rig = Rig::new(1024, 16);
    let (_, port) = rig.listen(16);
    let (mut first, flow) = rig.accept(port);
    let (mut second, other) = rig.accept(port);
    let (third, dying) = rig.accept(port);
    rig.host.pst(NIC, |pst| pst.manner().nic_full = true);
    for flow in [flow, other, dying] {
        rig.send(flow, b"once ", 1, KEEP).unwrap();
    }
    (0..20).for_each(|_| rig.turn());
    assert!(rig.told.is_empty(), "nothing is reported yet: {:?}", rig.told);
    rig.send(flow, b"and then this", 2, KEEP).unwrap();
    // One of them dies with its slot in the ring.
    socket::reset_on_close(&third);
    drop(third);
    rig.hear(Event::Reset);
    (0..20).for_each(|_| rig.turn());
    let counters = rig.engine.counters;
    assert!(counters.nic_full > 0);
    assert_eq!(counters.stuck, 0);
    rig.host.pst(NIC, |pst| pst.manner().nic_full = false);
    rig.told.clear();
    rig.close(flow).unwrap();
    rig.close(other).unwrap();
    (0..20).for_each(|_| rig.turn());
    let mut got = Vec::new();
    first.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"once and then this");
    got.clear();
    second.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"once ");
    drop((first, second));
    rig.hear(Event::Closed);
    assert_eq!(rig.end().lost, 0);
}

/// PASTE keeps what is sent until it is acknowledged, in buffers that it has put aside for
/// all sockets. Clients that do not read must not have them all.
#[test]
fn clients_that_do_not_read_leave_room_for_others() {
    let mut rig = Rig::new(8192, 64);
    rig.engine.kept_max = 512;
    let (_, port) = rig.listen(16);
    let slow: Vec<_> = (0..20).map(|_| rig.accept(port)).collect();
    // Nothing of it is read, and so, behind the client's own buffer, nothing acknowledged.
    let part = pattern(1900);
    let mut kept = 0;
    for _ in 0..100 {
        for (_, flow) in &slow {
            let _ = rig.send(*flow, &part, 0, 0);
        }
        (0..10).for_each(|_| rig.turn());
        rig.give_all_back();
        kept = kept.max(rig.engine.kept);
    }
    // As many as there may be, and the first of each; their send buffers hold 1280.
    assert!((320..=512 + 20 * 16).contains(&kept), "{kept} segments are kept");
    let (mut fast, flow) = rig.accept(port);
    rig.send(flow, b"hello", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    fast.read_exact(&mut got).unwrap();
    // What they kept is free when they go.
    drop(slow);
    rig.until("they have gone", |rig| (rig.engine.kept == 0).then_some(()));
    rig.end();
}

/// What connects from this host to the NIC's address comes by another interface, and
/// would end in a panic of the kernel. All sockets are bound to the NIC; the model panics
/// where one is not.
#[test]
fn every_socket_is_bound_to_the_nic() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, _) = rig.accept(port);
    stream.write_all(b"by the NIC").unwrap();
    rig.hear(Event::Data);
    let server = std::net::TcpListener::bind((super::LOCAL, 0)).unwrap();
    let to = server.local_addr().unwrap();
    rig.engine.connect(rig.now, CHANNEL, to, 0, 0).unwrap();
    rig.hear(Event::Connected);
    server.accept().unwrap().0.write_all(b"too").unwrap();
    rig.hear(Event::Data);
    rig.end();
}

#[test]
fn a_nic_that_goes_is_reported_and_flows_go_on_when_it_is_back() {
    let mut rig = Rig::new(1024, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    rig.host.pst(NIC, |pst| pst.detach());
    // The kernel takes nothing, and says nothing.
    rig.now.monotonic_ns += NIC_INTERVAL_STUCK;
    rig.send(flow, b"hello", 0, 0).unwrap();
    let Rig { engine, mem, now, .. } = &mut rig;
    let error = engine.transmit(*now, mem).unwrap_err();
    assert!(matches!(error, PortError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("paste:lo"), "{error}");
    assert_eq!(engine.transmit(*now, mem).unwrap(), 0, "nothing is tried before it is back");
    // It is asked for, and found.
    rig.turn();
    rig.until("the answer", |rig| (rig.engine.counters.bytes_out == 5).then_some(()));
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();

    // Idle, it is missed within a second.
    rig.host.pst(NIC, |pst| pst.detach());
    rig.now.monotonic_ns += NIC_INTERVAL;
    let Rig { engine, mem, now, .. } = &mut rig;
    let error = engine.receive(*now, mem, &mut NoPlain).unwrap_err();
    assert!(matches!(error, PortError::Gone { .. }), "{error}");
    stream.write_all(b"back").unwrap();
    let slot = rig.hear(Event::Data);
    assert_eq!(rig.bytes(&slot), b"back");
    rig.end();
}
