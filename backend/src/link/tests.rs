//! Links against a VMM that speaks records by hand.

use std::os::fd::OwnedFd;

use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with, socketpair,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use paste_pmem::device::Outcome;

use super::wire::{
    FLUSHES_MAX, FRAME_MAX, Flushed, HEAD_LEN, Hello, Kind, RECORD_MAX, Region, Segment, Walk,
    Welcome, WireError,
};
use super::*;
use crate::sys::fds;

fn pair() -> (Link, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    size_buffers(&ours).unwrap();
    size_buffers(&theirs).unwrap();
    (Link::new(ours), theirs)
}

fn record(kind: Kind, count: u16, body: &[u8]) -> Vec<u8> {
    let mut head = [0; HEAD_LEN];
    wire::write_head(kind, count, &mut head);
    [&head, body].concat()
}

fn frames(lens: &[usize]) -> Vec<u8> {
    let mut body = Vec::new();
    for &len in lens {
        body.extend((len as u32).to_le_bytes());
        body.extend(vec![len as u8; len]);
        body.resize(body.len().next_multiple_of(ALIGN), 0);
    }
    record(Kind::Frames, lens.len() as u16, &body)
}

fn say(vmm: &OwnedFd, record: &[u8]) {
    assert_eq!(send(vmm, record, SendFlags::empty()).unwrap(), record.len());
}

fn hear(vmm: &OwnedFd) -> Vec<u8> {
    let mut record = vec![0; RECORD_MAX];
    let (_, len) = recv(vmm, &mut *record, RecvFlags::DONTWAIT).unwrap();
    record.truncate(len);
    record
}

#[test]
fn frames_of_many_records_come_in_order() {
    let (mut link, vmm) = pair();
    say(&vmm, &record(Kind::Features, 0, &5u64.to_le_bytes()));
    say(&vmm, &frames(&[26, 60, 1526]));
    say(&vmm, &frames(&[FRAME_MAX]));
    let mut out = vec![0; FRAME_MAX];
    assert_eq!(link.take(&mut out), Taken::Features(5));
    for len in [26, 60, 1526] {
        assert_eq!(link.take(&mut out), Taken::Frame(len));
        assert_eq!(out[..len], vec![len as u8; len]);
    }
    assert_eq!(link.take(&mut out[..2000]), Taken::Oversize);
    assert_eq!(link.take(&mut out), Taken::Nothing);
    assert_eq!(link.error(), None);
    drop(vmm);
    assert_eq!(link.take(&mut out), Taken::Nothing);
    assert_eq!(link.error(), Some(LinkError::Closed));
}

#[test]
fn what_was_put_goes_in_one_record_behind_the_echo() {
    let (mut link, vmm) = pair();
    let header = NetHdr::default();
    assert!(link.put(&header, &[&[1; 60]]), "for the driver before");
    say(&vmm, &record(Kind::Features, 0, &7u64.to_le_bytes()));
    assert_eq!(link.take(&mut [0; 100]), Taken::Features(7));
    assert!(link.put(&header, &[&[2; 20], &[3; 41]]));
    assert!(link.put(&header, &[&[4; 1514]]));
    link.flush();
    assert_eq!(hear(&vmm), record(Kind::Features, 0, &7u64.to_le_bytes()));
    let heard = hear(&vmm);
    let (Kind::Frames, 2, _) = wire::head(&heard).unwrap() else { panic!() };
    let mut walk = Walk::new(2);
    let first = walk.next(&heard).unwrap().unwrap();
    assert_eq!(first[..NET_HDR_LEN], [0; NET_HDR_LEN]);
    assert_eq!(first[NET_HDR_LEN..], [[2; 20].as_slice(), &[3; 41]].concat());
    assert_eq!(walk.next(&heard).unwrap().unwrap().len(), NET_HDR_LEN + 1514);
    assert!(walk.next(&heard).is_none());
    link.flush();
    assert!(recv(&vmm, &mut [0; 8][..], RecvFlags::DONTWAIT).is_err(), "nothing twice");
}

#[test]
fn a_vmm_that_does_not_read_blocks_its_own_link_and_loses_no_record() {
    let (mut link, vmm) = pair();
    let mut put = 0u32;
    while !link.is_blocked() {
        let mut frame = [0; 1514];
        frame[..4].copy_from_slice(&put.to_le_bytes());
        put += u32::from(link.put(&NetHdr::default(), &[&frame]));
        assert!(put < 1_000_000, "there is a limit");
    }
    assert!(!link.can_put());
    assert!(!link.put(&NetHdr::default(), &[&[0; 60]]));
    let mut heard = 0u32;
    loop {
        let mut bytes = vec![0; RECORD_MAX];
        let Ok((_, len)) = recv(&vmm, &mut *bytes, RecvFlags::DONTWAIT) else {
            if !link.is_blocked() {
                break;
            }
            link.flush();
            continue;
        };
        let (_, count, _) = wire::head(&bytes[..len]).unwrap();
        let mut walk = Walk::new(count);
        while let Some(frame) = walk.next(&bytes[..len]) {
            assert_eq!(frame.unwrap()[NET_HDR_LEN..][..4], heard.to_le_bytes());
            heard += 1;
        }
    }
    assert_eq!(heard, put);
    assert_eq!(link.error(), None);
}

#[test]
fn what_is_no_record_ends_the_link() {
    let long = vec![1; RECORD_MAX + 1];
    let mut cut = frames(&[60, 60]);
    cut.truncate(cut.len() - 4);
    for (bytes, error) in [
        (&b"\x01\x03"[..], WireError::Length(2)),
        (&long, WireError::Length(RECORD_MAX + 1)),
        (&cut, WireError::Frame(1)),
        (&record(Kind::Features, 0, &[0; 7]), WireError::Body(7, 4)),
        (&record(Kind::Hello, 0, &[0; 128]), WireError::Kind(1)),
        (&record(Kind::Welcome, 0, &[0; 192]), WireError::Kind(2)),
    ] {
        let (mut link, vmm) = pair();
        say(&vmm, bytes);
        let mut out = vec![0; FRAME_MAX];
        while link.take(&mut out) != Taken::Nothing {}
        assert_eq!(link.error(), Some(LinkError::Wire(error)));
        // Nothing of what comes behind it counts.
        let _ = send(&vmm, &frames(&[60]), SendFlags::NOSIGNAL);
        assert_eq!(link.take(&mut out), Taken::Nothing);
    }
}

#[test]
fn a_record_without_frames_is_nothing() {
    let (mut link, vmm) = pair();
    say(&vmm, &frames(&[]));
    say(&vmm, &frames(&[60]));
    let mut out = vec![0; 100];
    assert_eq!(link.take(&mut out), Taken::Nothing);
    assert_eq!(link.take(&mut out), Taken::Frame(60));
}

fn ask(path: &std::path::Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let vmm = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    connect(&vmm, &SocketAddrUnix::new(path).unwrap()).unwrap();
    vmm
}

fn hello(name: &str, interface: &str) -> Hello {
    let mut hello = Hello::new_zeroed();
    hello.name[..name.len()].copy_from_slice(name.as_bytes());
    hello.interface[..interface.len()].copy_from_slice(interface.as_bytes());
    hello
}

#[test]
fn a_vmm_asks_and_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let mut control = Control::bind(&path).unwrap();
    assert!(matches!(Control::bind(&path), Err(ControlError::InUse { .. })));
    let vmm = ask(&path);
    assert!(control.poll(0).is_empty(), "it has said nothing yet");
    assert_eq!(control.watch().count(), 2);
    say(&vmm, &record(Kind::Hello, 0, hello("web1", "ix0").as_bytes()));
    let Some(Asked::Guest(request)) = control.poll(1).pop() else { panic!() };
    assert_eq!((request.name.as_str(), request.interface.as_deref()), ("web1", Some("ix0")));
    request.offer.refuse(wire::STATUS_BUSY, "the guest is in use");
    let heard = hear(&vmm);
    let (Kind::Welcome, 0, body) = wire::head(&heard).unwrap() else { panic!() };
    let welcome = Welcome::read_from_bytes(body).unwrap();
    assert_eq!(welcome.status.get(), wire::STATUS_BUSY);
    assert!(welcome.text.starts_with(b"the guest is in use\0"));
    assert_eq!(recv(&vmm, &mut [0; 1][..], RecvFlags::DONTWAIT).unwrap().1, 0, "closed");
    drop(control);
    assert!(!path.exists());
}

#[test]
fn who_asks_badly_is_told_or_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    // A stale socket is replaced, anything else left alone.
    drop(std::os::unix::net::UnixDatagram::bind(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"precious").unwrap();
    assert!(matches!(Control::bind(&path), Err(ControlError::NotASocket { .. })));
    std::fs::remove_file(&path).unwrap();
    let mut control = Control::bind(&path).unwrap();
    let mut odd = hello("web1", "ix0");
    odd.reserved[14] = 1;
    for bytes in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &record(Kind::Hello, 0, &[0; 127]),
        &record(Kind::Hello, 0, hello("web 1", "ix0").as_bytes()),
        &record(Kind::Hello, 0, hello("", "ix0").as_bytes()),
        &record(Kind::Hello, 0, odd.as_bytes()),
        &frames(&[60]),
    ] {
        let vmm = ask(&path);
        say(&vmm, bytes);
        assert!(control.poll(0).is_empty());
        let heard = hear(&vmm);
        let (Kind::Welcome, 0, body) = wire::head(&heard).unwrap() else { panic!() };
        let welcome = Welcome::read_from_bytes(body).unwrap();
        assert_eq!(welcome.status.get(), wire::STATUS_REFUSED);
    }
    // Who says nothing has its time, and is one of a few.
    let silent: Vec<_> = (0..40)
        .map(|_| {
            let vmm = ask(&path);
            assert!(control.poll(0).is_empty());
            vmm
        })
        .collect();
    assert!(control.watch().count() <= 17);
    let until = control.deadline().unwrap();
    assert!(control.poll(until).is_empty());
    assert_eq!(control.watch().count(), 1);
    drop(silent);
}

fn region(name: &str, len: u64) -> Region {
    let mut region = Region::new_zeroed();
    region.name[..name.len()].copy_from_slice(name.as_bytes());
    region.len = len.into();
    region
}

fn answered(vmm: &OwnedFd) -> Segment {
    let heard = hear(vmm);
    let (Kind::Segment, 0, body) = wire::head(&heard).unwrap() else { panic!() };
    Segment::read_from_bytes(body).unwrap()
}

const TERMS: SegmentTerms =
    SegmentTerms { len: 16 << 20, guest_offset: 2 << 20, guest_len: 14 << 20, durable: true };

#[test]
fn a_device_asks_how_much_memory_is_needed_and_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let mut control = Control::bind(&path).unwrap();
    let vmm = ask(&path);
    say(&vmm, &record(Kind::Region, 0, region("web1", 0).as_bytes()));
    let Some(Asked::Region(request)) = control.poll(1).pop() else { panic!() };
    assert_eq!(request.name, "web1");
    assert!(request.segment.is_none());
    request.offer.accept(TERMS);
    control.keep(request.offer, 1);
    let segment = answered(&vmm);
    assert_eq!((segment.status.get(), segment.durable), (0, 1));
    assert_eq!((segment.len.get(), segment.guest_len.get()), (16 << 20, 14 << 20));

    let (memory, other) = rustix::pipe::pipe().unwrap();
    let second = record(Kind::Region, 0, region("web1", 16 << 20).as_bytes());
    fds::send(&vmm, &second, &[memory.as_fd()]).unwrap();
    let Some(Asked::Region(request)) = control.poll(2).pop() else { panic!() };
    let (fd, len) = request.segment.unwrap();
    assert_eq!(len, 16 << 20);
    rustix::io::write(&other, b"x").unwrap();
    assert_eq!(rustix::io::read(&fd, &mut [0; 2][..]).unwrap(), 1, "it is the same");
    request.offer.refuse(wire::STATUS_REFUSED, "no");
    let segment = answered(&vmm);
    assert_eq!(segment.status.get(), wire::STATUS_REFUSED);
    assert!(segment.text.starts_with(b"no\0"));
}

#[test]
fn a_device_that_asks_badly_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let mut control = Control::bind(&path).unwrap();
    let mut odd = region("web1", 0);
    odd.reserved[23] = 1;
    let (memory, _other) = rustix::pipe::pipe().unwrap();
    let one = [memory.as_fd()];
    let two = [memory.as_fd(), memory.as_fd()];
    for (body, fds) in [
        (&[0; 95][..], &[][..]),
        (odd.as_bytes(), &[]),
        (region("web 1", 0).as_bytes(), &[]),
        (region("", 0).as_bytes(), &[]),
        // Memory without a length, a length without memory, and too much.
        (region("web1", 0).as_bytes(), &one),
        (region("web1", 4096).as_bytes(), &[]),
        (region("web1", 4096).as_bytes(), &two),
    ] {
        let vmm = ask(&path);
        fds::send(&vmm, &record(Kind::Region, 0, body), fds).unwrap();
        assert!(control.poll(0).is_empty());
        assert_eq!(answered(&vmm).status.get(), wire::STATUS_REFUSED);
    }
    let vmm = ask(&path);
    fds::send(&vmm, &record(Kind::Hello, 0, hello("web1", "ix0").as_bytes()), &one).unwrap();
    assert!(control.poll(0).is_empty());
    let heard = hear(&vmm);
    assert_eq!(wire::head(&heard).unwrap().0, Kind::Welcome);
}

fn region_link() -> (RegionLink, OwnedFd, std::sync::Weak<()>) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let presence = std::sync::Arc::new(());
    let shown = std::sync::Arc::downgrade(&presence);
    (RegionOffer { socket }.link(presence).unwrap(), theirs, shown)
}

fn flush(vmm: &OwnedFd, number: u64) {
    say(vmm, &record(Kind::Flush, 0, &number.to_le_bytes()));
}

fn flushed(vmm: &OwnedFd) -> (u64, i32) {
    let heard = hear(vmm);
    let (Kind::Flushed, 0, body) = wire::head(&heard).unwrap() else { panic!() };
    let flushed = Flushed::read_from_bytes(body).unwrap();
    (flushed.number.get(), i32::from_le_bytes(flushed.outcome))
}

#[test]
fn flushes_are_answered_in_order_and_those_that_came_later_wait() {
    let (mut link, vmm, shown) = region_link();
    assert_eq!(link.take(), Ok(0));
    flush(&vmm, 7);
    flush(&vmm, 8);
    assert_eq!(link.take(), Ok(2));
    flush(&vmm, 9);
    assert_eq!(link.take(), Ok(3));
    link.answer(2, Outcome::Done).unwrap();
    assert_eq!((flushed(&vmm), flushed(&vmm)), ((7, 0), (8, 0)));
    assert_eq!(link.take(), Ok(1));
    link.answer(1, Outcome::Failed).unwrap();
    assert_eq!(flushed(&vmm), (9, -1));
    assert_eq!(link.take(), Ok(0));
    assert_eq!(shown.strong_count(), 1);
    drop(vmm);
    assert_eq!(link.take(), Err(LinkError::Closed));
    drop(link);
    assert_eq!(shown.strong_count(), 0);
}

#[test]
fn a_device_that_breaks_the_protocol_ends_its_link() {
    for (bytes, error) in [
        (record(Kind::Flush, 0, &[0; 7]), WireError::Body(7, 7)),
        (record(Kind::Flush, 0, &[0; 9]), WireError::Body(9, 7)),
        (record(Kind::Flushed, 0, &[0; 9]), WireError::Kind(8)),
        (record(Kind::Flush, 1, &[0; 8]), WireError::Reserved),
        (b"\x01\x07".to_vec(), WireError::Length(2)),
    ] {
        let (mut link, vmm, _) = region_link();
        say(&vmm, &bytes);
        assert_eq!(link.take(), Err(LinkError::Wire(error)));
    }
    let (mut link, vmm, _) = region_link();
    for number in 0..FLUSHES_MAX as u64 {
        flush(&vmm, number);
    }
    assert_eq!(link.take(), Ok(FLUSHES_MAX));
    flush(&vmm, 0);
    assert_eq!(link.take(), Err(LinkError::Wire(WireError::Flushes)));
}
