//! Frames through the port: into slots and out of them, lent and kept buffers, the host's
//! own stack, and rings that somebody else writes to.

use super::super::abi::{RING_CUR, RING_HEAD, RING_SLOTS, RING_TAIL, SLOT_LEN};
use super::super::attach::Sharing;
use super::*;
use crate::port::prng::Prng;
use crate::port::wire::Faults;
use crate::port::{RX_OFFSET, Received};

fn pair(model: &Model, a: &Opening, b: &Opening) -> [End; 2] {
    [End::open(model, a), End::open(model, &Opening { macs: vec![OTHER], ..b.clone() })]
}

/// Every way in which two ports can be connected, and whether frames are copied.
fn connections() -> Vec<(&'static str, Model, Opening, Opening)> {
    let netmap = |name| Opening::netmap(name);
    let plain = |name| Opening { fragments: false, ..netmap(name) };
    let copied = |name| Opening { share: false, ..netmap(name) };
    let kind = NicKind::default();
    let single = NicKind { joins: false, ..kind };
    vec![
        ("shared", nics(kind), netmap("ix0"), netmap("ix1")),
        ("shared, late", nics(NicKind { lag: 2, ..kind }), netmap("ix0"), netmap("ix1")),
        ("shared, in one slot", nics(single), plain("ix0"), plain("ix1")),
        (
            "shared, in pieces",
            nics(NicKind { slot_max: 256, ..kind }),
            netmap("ix0"),
            netmap("ix1"),
        ),
        ("several rings", nics(NicKind { rings: 3, ..kind }), netmap("ix0"), netmap("ix1")),
        ("one ring", nics(NicKind { rings: 3, ..kind }), netmap("ix0-1"), netmap("ix1-2")),
        ("copied", nics(kind), copied("ix0"), copied("ix1")),
        ("switch", nics(kind), Opening::vale("a"), Opening::vale("b")),
        ("pipe", nics(kind), netmap("ix0{1"), netmap("ix0}1")),
        ("pipe of nothing", nics(kind), netmap("web{1"), netmap("web}1")),
    ]
}

#[test]
fn frames_cross_whole_and_every_buffer_comes_back() {
    for (which, model, a, b) in connections() {
        let mut ends = pair(&model, &a, &b);
        let mut prng = Prng::new(3);
        for turn in 0..200_u32 {
            let [from, to] = &mut ends;
            let mut sent = Vec::new();
            for _ in 0..1 + prng.below(9) {
                let len = 14 + prng.below(1500) as usize;
                let bytes = frame(OTHER, len, turn as u8);
                let heads = if from.port.gather { 1 } else { 2 };
                let head = [54, 0, len][prng.below(3) as usize / heads].min(len).min(128);
                from.push(&bytes, if len <= 128 { head } else { head.min(54) });
                sent.push(bytes);
            }
            let mut got = Vec::new();
            for _ in 0..6 {
                from.send();
                got.extend(to.receive());
            }
            assert!(from.batch.is_empty(), "{which}");
            if which == "several rings" {
                // Rings are looked at in turn: the wire's order is theirs to keep.
                sent.sort();
                got.sort();
            }
            assert!(got == sent, "{which}, turn {turn}: {} of {}", got.len(), sent.len());
            assert!(!from.port.is_sending(), "{which}");
            assert_eq!(from.buffered.pool.count_of(Owner::Stack), 0, "{which}");
            ends.swap(0, 1);
        }
        let counters = *ends[0].port.counters();
        assert_eq!(counters.drops, Default::default(), "{which}");
        assert_eq!((model.reinits("ix0"), model.reinits("ix1")), (0, 0), "{which}");
        ends.into_iter().for_each(End::close);
        assert_eq!(model.users("ix0") + model.users("ix1"), 0, "{which}");
        assert_eq!(model.complaints(), 0, "{which}");
    }
}

#[test]
fn nothing_is_copied_once_the_region_is_in_the_rings() {
    let model = nics(NicKind::default());
    let [mut a, mut b] = pair(&model, &Opening::netmap("ix0"), &Opening::netmap("ix1"));
    let bytes = frame(OTHER, 1000, 1);
    let mut pass = |count| {
        for _ in 0..count {
            a.push(&bytes, 54);
            a.push(&bytes, 0);
            a.send();
            assert!(b.receive() == [&bytes[..], &bytes[..]]);
        }
        (a.port.counters().tx_bytes_copied, b.port.counters().rx_bytes_copied)
    };
    // One time round the ring.
    let (sent, received) = pass(40);
    assert_eq!((sent, received), (0, 64 * 1000));
    assert_eq!(pass(100), (0, received));
    let attached = b.port.attached.as_ref().unwrap();
    assert!(matches!(attached.memory.sharing, Sharing::Region(_)));
}

/// A switch passes slots on as they are, and its port to the host's stack joins none.
#[test]
fn on_a_switch_a_frame_is_one_slot() {
    let model = nics(NicKind::default());
    let plain = |port| Opening { fragments: false, ..Opening::vale(port) };
    let [mut a, mut b] = pair(&model, &plain("a"), &plain("b"));
    let bytes = frame(OTHER, 1000, 1);
    a.push(&bytes, 54);
    a.send();
    assert_eq!(a.port.counters().tx_bytes_copied, 1000);
    assert!(b.receive() == [bytes]);
}

#[test]
fn a_frame_begins_where_the_guest_expects_it_and_has_the_kernels_time() {
    let model = nics(NicKind::default());
    model.set_now(5_000_001_000);
    let [mut a, mut b] = pair(&model, &Opening::netmap("ix0"), &Opening::netmap("ix1"));
    for _ in 0..100 {
        a.push(&frame(OTHER, 60, 1), 14);
        a.send();
        let got = b.try_receive().unwrap();
        let [(Received { frame, partial: None }, _)] = &got[..] else { panic!("{got:?}") };
        assert_eq!((frame.offset, frame.time), (RX_OFFSET, 5_000_001_000));
    }
}

#[test]
fn a_buffer_is_lent_until_the_frame_has_gone() {
    let model = nics(NicKind { lag: 1, ..NicKind::default() });
    let [mut a, mut b] = pair(&model, &Opening::netmap("ix0"), &Opening::netmap("ix1"));
    let bytes = frame(OTHER, 600, 1);
    let buf = a.push(&bytes, 54).unwrap();
    // The NIC has not read it yet.
    assert!(a.send().is_empty());
    assert!(a.port.is_sending() && a.port.next_deadline().is_some());
    assert_eq!(a.buffered.pool.owner(buf), Some(Owner::Stack));
    // Asked again without a frame, the port says so.
    assert_eq!(a.send(), [buf]);
    assert!(!a.port.is_sending() && a.port.next_deadline().is_none());
    assert_eq!(b.receive(), [bytes]);
}

#[test]
fn a_full_ring_takes_the_rest_later() {
    // Whether frames are lent or copied: then nothing but the ring is waited for.
    for share in [true, false] {
        a_full_ring(share);
    }
}

fn a_full_ring(share: bool) {
    let model = nics(NicKind { slots: 16, lag: 1, ..NicKind::default() });
    let opening = |name| Opening { share, ..Opening::netmap(name) };
    let [mut a, mut b] = pair(&model, &opening("ix0"), &opening("ix1"));
    for seed in 0..30 {
        a.push(&frame(OTHER, 300, seed), 54);
    }
    a.send();
    assert_eq!(a.batch.frames().len(), 30 - if share { 7 } else { 15 });
    assert_eq!(a.port.counters().tx_full, 1);
    let mut got = Vec::new();
    for _ in 0..20 {
        a.send();
        got.extend(b.receive());
    }
    let sent: Vec<_> = (0..30).map(|seed| frame(OTHER, 300, seed)).collect();
    assert!(got == sent);
    assert!(!a.port.is_sending() && a.port.next_deadline().is_none());
}

#[test]
fn an_empty_pool_leaves_frames_in_the_ring() {
    let model = nics(NicKind::default());
    let [mut a, mut b] = pair(&model, &Opening::netmap("ix0"), &Opening::netmap("ix1"));
    a.push(&frame(OTHER, 300, 1), 54);
    a.send();
    let mut taken = Vec::new();
    while let Some(buf) = b.buffered.pool.take(Owner::Stack) {
        taken.push(buf);
    }
    assert!(b.receive().is_empty());
    assert_eq!(b.port.counters().rx_no_buffer, 1);
    b.buffered.pool.give(taken.pop().unwrap(), Owner::Stack).unwrap();
    assert_eq!(b.receive(), [frame(OTHER, 300, 1)]);
}

#[test]
fn what_is_no_frame_is_dropped_and_counted() {
    let model = nics(NicKind::default());
    let mut end = End::open(&model, &Opening { mtu: 1000, ..Opening::netmap("ix0") });
    model.nic("ix0", |nic| {
        nic.arrives(&[1; 13]);
        nic.arrives(&frame(GUEST, 1019, 1));
        nic.arrives(&frame(GUEST, 1018, 2));
    });
    assert_eq!(end.receive(), [frame(GUEST, 1018, 2)]);
    assert_eq!((end.port.counters().drops.rx_runt, end.port.counters().drops.rx_oversize), (1, 1));
    end.push(&frame(OTHER, 1019, 1), 54);
    end.push(&[0; 13], 13);
    assert_eq!(end.send().len(), 1);
    assert_eq!(end.port.counters().drops.tx_malformed, 2);
    end.close();
}

#[test]
fn frames_longer_than_netmaps_buffers_take_several() {
    let model = nics(NicKind::default());
    let opening = |name| Opening { mtu: 3900, ..Opening::netmap(name) };
    let mut a = End::with(&model, &opening("web{1"), 256, 4096);
    let mut b = End::with(&model, &opening("web}1"), 256, 4096);
    for len in [2047, 2048, 2049, 3918] {
        for head in [0, 54] {
            a.push(&frame(OTHER, len, 1), head);
            a.send();
            assert!(b.receive() == [frame(OTHER, len, 1)], "{len} {head}");
        }
    }
}

#[test]
fn the_host_keeps_its_network() {
    let model = nics(NicKind::default());
    let link = Link { mtu: 1500, up: true, promiscuous: true, mac: HOST, index: 7 };
    let mut guest = End::open(&model, &Opening { link: Some(link), ..Opening::netmap("ix0*") });
    let mut far = End::open(&model, &Opening { macs: vec![OTHER], ..Opening::netmap("ix1") });
    let all = [0xff; 6];
    for turn in 0..300 {
        let f = |to, len| frame(to, len, turn as u8);
        // From the wire: for the guest, for the host, for both.
        for to in [GUEST, HOST, all] {
            far.push(&f(to, 700), 54);
        }
        far.send();
        assert_eq!(guest.receive(), [f(GUEST, 700), f(all, 700)]);
        guest.send();
        assert_eq!(model.nic("ix0", |nic| nic.host_received()), [f(HOST, 700), f(all, 700)]);
        // From the host: to the wire, to the guest, to both.
        model.nic("ix0", |nic| [OTHER, GUEST, all].map(|to| nic.host_sends(&f(to, 90))));
        assert_eq!(guest.receive(), [f(GUEST, 90), f(all, 90)]);
        assert!(guest.port.is_sending());
        guest.send();
        assert_eq!(far.receive(), [f(OTHER, 90), f(all, 90)]);
        // From the guest: to the host, to the wire, to both.
        for to in [HOST, OTHER, all] {
            guest.push(&f(to, 400), 54);
        }
        assert_eq!(guest.send().len(), 3);
        assert_eq!(model.nic("ix0", |nic| nic.host_received()), [f(HOST, 400), f(all, 400)]);
        assert_eq!(far.receive(), [f(OTHER, 400), f(all, 400)]);
    }
    let counters = guest.port.counters();
    assert_eq!((counters.to_host_frames, counters.from_host_frames), (300 * 4, 300 * 2));
    assert_eq!((counters.drops, model.reinits("ix0")), (Default::default(), 0));
    guest.close();
}

#[test]
fn a_ring_that_is_stopped_is_an_error_and_runs_again() {
    let model = nics(NicKind::default());
    let [mut a, mut b] = pair(&model, &Opening::netmap("ix0"), &Opening::netmap("ix1"));
    model.nic("ix0", |nic| nic.stop(true));
    let error = a.try_receive().unwrap_err();
    assert_eq!(
        error.to_string(),
        "port netmap:ix0: NIOCRXSYNC failed: Input/output error (os error 5)"
    );
    model.nic("ix0", |nic| nic.stop(false));
    a.push(&frame(OTHER, 100, 1), 54);
    a.send();
    assert_eq!(b.receive().len(), 1);
}

#[test]
fn what_others_write_into_a_ring_is_found() {
    for (tx, at, value) in [
        (false, RING_TAIL, 64),
        (false, RING_TAIL, u32::MAX),
        (false, RING_SLOTS, 1),
        (false, RING_SLOTS, u32::MAX),
    ] {
        let model = nics(NicKind::default());
        let mut end = End::open(&model, &Opening::netmap("ix0"));
        model.nic("ix0", |nic| nic.arrives(&frame(GUEST, 100, 1)));
        // The model stores the tail at each sync, so a bad one is put there after it.
        let attached = end.port.attached.as_mut().unwrap();
        attached.rx.rxsync().unwrap();
        model.scribble("ix0", tx, 0, at, value);
        let seen = attached.rx_rings[0].refresh();
        let seen = seen.and_then(|()| attached.rx_rings[0].peek(0).map(drop));
        assert!(seen.unwrap_err().to_string().ends_with("something else writes to the ring"));
        end.close();
    }
}

/// Netmap's memory may be other processes' too. Whatever they write there, the port does
/// not panic, and no buffer of the region is lost.
#[test]
fn random_words_in_shared_rings_cost_no_buffer() {
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let model = nics(NicKind { slots: 16, ..NicKind::default() });
        let opening = |name| Opening { share: seed % 2 == 0, ..Opening::netmap(name) };
        let mut a = End::open(&model, &opening("ix0"));
        let mut b = End::open(&model, &opening("ix1"));
        for _ in 0..200 {
            if prng.chance(0.3) {
                let at = match prng.below(4) {
                    0 => RING_HEAD,
                    1 => RING_CUR,
                    2 => RING_TAIL,
                    _ => RING_SLOTS + 4 * prng.below(16 * SLOT_LEN as u64 / 4) as usize,
                };
                let value = if prng.chance(0.5) { prng.below(20) } else { prng.next_u64() };
                model.scribble("ix0", prng.chance(0.5), 0, at, value as u32);
            }
            if a.batch.room() > 0 && a.buffered.pool.free() > 0 {
                a.push(&frame(OTHER, 14 + prng.below(900) as usize, 1), 14);
            }
            let pool = &mut a.buffered.pool;
            let mut done = Vec::new();
            let _ = a.port.send(Now::default(), pool, &mut a.batch, &mut |_, b| done.push(b));
            for buf in done {
                pool.give(buf, Owner::Stack).unwrap();
            }
            model.nic("ix0", |nic| nic.arrives(&frame(GUEST, 100, 2)));
            let _ = a.try_receive();
            let _ = b.try_receive();
        }
        a.close();
        b.close();
    }
}

#[test]
fn a_wire_with_faults_loses_no_buffer() {
    let faults =
        Faults { loss: 0.1, duplicate: 0.1, reorder: 0.1, corrupt: 0.1, ..Faults::default() };
    let model = nics(NicKind { faults, lag: 1, ..NicKind::default() });
    let [mut a, mut b] = pair(&model, &Opening::netmap("ix0"), &Opening::netmap("ix1"));
    let mut count = 0;
    for turn in 0..500_u64 {
        model.set_now(turn * 1_000_000);
        a.push(&frame(OTHER, 500, turn as u8), 54);
        a.send();
        count += b.receive().len();
    }
    assert!((400..600).contains(&count), "{count}");
    a.send();
    assert_eq!(a.buffered.pool.count_of(Owner::Stack), 0);
    a.close();
    b.close();
}
