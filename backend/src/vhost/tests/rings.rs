//! Frames through rings, as well-behaved drivers lay them out.

use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use paste_abi::vhost_user::{F_PROTOCOL_FEATURES, VringState, request as id};
use zerocopy::{FromBytes, IntoBytes};

use super::*;

fn push(rig: &mut Rig, len: usize) -> bool {
    rig.device.push_rx(&[&body(len)], &NetHdr::default()).unwrap()
}

fn num_buffers(rig: &Rig, at: u64) -> u16 {
    NetHdr::read_from_bytes(&rig.read(at, NET_HDR_LEN)).unwrap().num_buffers.get()
}

#[test]
fn a_frame_each_way() {
    let mut rig = Rig::new(MODERN);
    rig.transmit(3, &frame(60));
    assert_eq!(rig.take().unwrap(), frame(60));
    assert_eq!(rig.take(), None);
    // Used is what was flushed, and the driver hears of it once.
    assert_eq!(rig.take_used(TX), None);
    rig.device.flush();
    assert_eq!(rig.take_used(TX), Some((3, 0)));
    assert_eq!(signals(&rig.ends[TX].call), 1);

    assert!(!rig.device.can_push());
    assert!(!push(&mut rig, 100));
    let at = rig.receive(5, 2048);
    assert!(rig.device.can_push());
    assert!(push(&mut rig, 100));
    assert!(!rig.device.can_push());
    rig.device.flush();
    assert_eq!(rig.take_used(RX), Some((5, 112)));
    assert_eq!(num_buffers(&rig, at), 1);
    assert_eq!(rig.read(at + 12, 100), body(100));
    assert_eq!(signals(&rig.ends[RX].call), 1);
    let counters = *rig.device.counters();
    assert_eq!((counters.tx_frames, counters.tx_bytes), (1, 60));
    assert_eq!((counters.rx_frames, counters.rx_bytes, counters.rx_no_room), (1, 100, 1));
    assert_eq!(counters.signals, 2);
}

#[test]
fn a_batch_costs_one_signal() {
    let mut rig = Rig::new(MODERN);
    for head in 0..8 {
        rig.transmit(head, &frame(60));
    }
    while rig.take().is_some() {}
    rig.device.flush();
    rig.device.flush();
    assert_eq!(signals(&rig.ends[TX].call), 1);
    assert_eq!(rig.used_idx(TX), 8);
    // A driver that polls is left alone.
    rig.set_avail_flags(TX, 1);
    rig.transmit(0, &frame(60));
    rig.take().unwrap();
    rig.device.flush();
    assert_eq!(rig.used_idx(TX), 9);
    assert_eq!(signals(&rig.ends[TX].call), 0);
    assert_eq!(rig.device.counters().signals_spared, 1);
}

#[test]
fn a_long_batch_is_shown_in_parts_and_costs_one_signal() {
    for features in [MODERN, MODERN | EVENT_IDX] {
        let mut rig = Rig::with(options(), features, 64);
        // The driver waits for an entry that is shown before the batch ends.
        rig.set_used_event(TX, 10);
        for head in 0..40 {
            rig.transmit(head, &frame(60));
            rig.receive(head, 100);
        }
        for _ in 0..40 {
            assert_eq!(rig.take().unwrap(), frame(60));
            assert!(push(&mut rig, 60));
        }
        assert_eq!((rig.used_idx(TX), rig.used_idx(RX)), (32, 32));
        assert_eq!(signals(&rig.ends[TX].call), 0);
        // And gives what was shown again, before the rest is.
        rig.transmit(0, &frame(70));
        assert_eq!(rig.take().unwrap(), frame(70));
        rig.device.flush();
        assert_eq!((rig.used_idx(TX), rig.used_idx(RX)), (41, 40));
        assert_eq!(signals(&rig.ends[TX].call), 1);
        rig.device.flush();
        assert_eq!(signals(&rig.ends[TX].call), 0);
        for head in (0..40).chain([0]) {
            assert_eq!(rig.take_used(TX), Some((head, 0)));
        }
    }
}

#[test]
fn what_was_read_ahead_stays_as_it_was() {
    let mut rig = Rig::new(MODERN);
    for head in 0..3 {
        rig.transmit(head, &frame(60));
    }
    assert_eq!(rig.take().unwrap(), frame(60));
    // A driver that writes to its descriptors afterwards changes nothing.
    rig.desc(TX, 1, HOLE, 7, WRITE, 0);
    rig.write(avail_of(TX) + 4 + 4, &999u16.to_le_bytes());
    assert_eq!(rig.take().unwrap(), frame(60));
    assert_eq!(rig.take().unwrap(), frame(60));
    assert_eq!(rig.take(), None);
    assert!(rig.device.fault().is_none());
}

#[test]
fn what_was_read_ahead_is_not_taken_before_a_stop() {
    let mut rig = Rig::new(MODERN);
    for head in 0..4 {
        rig.transmit(head, &frame(60));
    }
    rig.take().unwrap();
    // One was taken, and the next device goes on with the second.
    let base = rig.ask(state(id::GET_VRING_BASE, TX as u32, 0));
    assert_eq!(VringState::read_from_bytes(&base).unwrap().num.get(), 1);
    assert_eq!(rig.used_idx(TX), 1);
}

#[test]
fn indices_wrap_around() {
    let mut rig = Rig::new(MODERN | EVENT_IDX);
    for turn in 0..70_000u32 {
        let head = (turn % 8) as u16;
        rig.desc(TX, head, BUFFERS, 72, 0, 0);
        rig.offer(TX, head);
        assert!(rig.take().is_some(), "turn {turn}");
        rig.device.flush();
        assert_eq!(rig.take_used(TX), Some((u32::from(head), 0)));
        if turn == 0 {
            // From here on only the indices are interesting.
            rig.set_used_event(TX, 40_000);
        }
    }
    // Once for the event index that the ring began with, once at each 40001.
    assert_eq!(signals(&rig.ends[TX].call), 2);
}

#[test]
fn chains_may_be_laid_out_anyhow() {
    let mut rig = Rig::new(MODERN);
    let bytes = frame(60);
    // Header and frame across three descriptors, none of them at a boundary.
    rig.write(BUFFERS, &bytes);
    rig.desc(TX, 0, BUFFERS, 5, NEXT, 4);
    rig.desc(TX, 4, BUFFERS + 5, 20, NEXT, 2);
    rig.desc(TX, 2, BUFFERS + 25, 47, 0, 0);
    rig.offer(TX, 0);
    assert_eq!(rig.take().unwrap(), bytes);
    // One descriptor across two ranges of memory.
    rig.write(B - 30, &bytes);
    rig.desc(TX, 1, B - 30, 72, 0, 0);
    rig.offer(TX, 1);
    assert_eq!(rig.take().unwrap(), bytes);
    // An indirect table alone, and one after a direct descriptor; the write
    // flag of the descriptor that refers to it means nothing.
    rig.write(BUFFERS, &bytes);
    let table = BUFFERS + 0x1000;
    rig.desc_at(table, 0, BUFFERS, 12, NEXT, 2);
    rig.desc_at(table, 2, BUFFERS + 12, 60, 0, 0);
    rig.desc(TX, 3, table, 48, INDIRECT | WRITE, 0);
    rig.offer(TX, 3);
    assert_eq!(rig.take().unwrap(), bytes);
    rig.desc_at(table, 0, BUFFERS + 12, 60, 0, 0);
    rig.desc(TX, 5, BUFFERS, 12, NEXT, 6);
    rig.desc(TX, 6, table, 16, INDIRECT, 0);
    rig.offer(TX, 5);
    assert_eq!(rig.take().unwrap(), bytes);
    rig.device.flush();
    let heads: Vec<_> = std::iter::from_fn(|| rig.take_used(TX)).collect();
    assert_eq!(heads, [(0, 0), (1, 0), (3, 0), (5, 0)]);
}

#[test]
fn what_is_no_frame_is_counted_and_skipped() {
    let mut rig = Rig::new(MODERN);
    rig.transmit(0, &frame(13));
    rig.transmit(1, &frame(2048));
    rig.transmit(2, &frame(14));
    assert_eq!(rig.take().unwrap(), frame(14));
    rig.device.flush();
    assert_eq!(rig.used_idx(TX), 3);
    let counters = rig.device.counters();
    assert_eq!((counters.tx_runt, counters.tx_oversize, counters.tx_frames), (1, 1, 1));
}

mod order {
    use proptest::prelude::*;

    use super::*;

    /// What driver and worker do.
    #[derive(Clone, Debug)]
    enum Act {
        /// A chain to be sent, of this many bytes behind the header.
        Send(usize),
        /// A buffer to receive into.
        Give(usize),
        Take,
        Push(usize),
        Flush,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        // Runts, frames, and what is longer than the worker takes; frames for one buffer,
        // for several, and for more than there can be.
        let act = prop_oneof![
            (0..2400_usize).prop_map(Act::Send),
            (30..400_usize).prop_map(Act::Give),
            Just(Act::Take),
            (14..2400_usize).prop_map(Act::Push),
            Just(Act::Flush),
        ];
        prop::collection::vec(act, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// VIRTIO_F_IN_ORDER (virtio 1.2 section 2.7.9), whatever becomes of a chain.
        #[test]
        fn chains_are_used_in_the_order_in_which_they_came(acts in acts()) {
            let mut rig = Rig::new(MODERN);
            let (mut given, mut used) = ([0_u32; 2], [0_u32; 2]);
            let size = u32::from(rig.size);
            for act in acts.into_iter().chain([Act::Take, Act::Flush]) {
                match act {
                    Act::Send(len) if given[TX] - used[TX] < size => {
                        rig.transmit((given[TX] % size) as u16, &frame(len));
                        given[TX] += 1;
                    }
                    Act::Give(len) if given[RX] - used[RX] < size => {
                        rig.receive((given[RX] % size) as u16, len);
                        given[RX] += 1;
                    }
                    Act::Send(_) | Act::Give(_) => {}
                    Act::Take => while rig.take().is_some() {},
                    Act::Push(len) => drop(push(&mut rig, len)),
                    Act::Flush => rig.device.flush(),
                }
                for ring in [RX, TX] {
                    while let Some((head, _)) = rig.take_used(ring) {
                        prop_assert_eq!(head, used[ring] % size);
                        used[ring] += 1;
                    }
                }
            }
            prop_assert_eq!(used[TX], given[TX]);
        }
    }
}

#[test]
fn a_copy_is_not_changed_afterwards() {
    let mut rig = Rig::new(MODERN);
    rig.write(BUFFERS, &frame(60));
    rig.desc(TX, 0, BUFFERS, 72, 0, 0);
    rig.offer(TX, 0);
    let mut out = [0; 100];
    let len = rig.device.next_tx(&mut out).unwrap().unwrap();
    rig.write(BUFFERS, &[0xff; 72]);
    assert_eq!(out[..len], frame(60));
}

#[test]
fn a_frame_spreads_over_mergeable_buffers() {
    let mut rig = Rig::new(MODERN);
    let at = [rig.receive(0, 100), rig.receive(1, 50), rig.receive(2, 100)];
    // Given in parts that meet no boundary.
    let bytes = body(200);
    let parts = [&bytes[..7], &[], &bytes[7..150], &bytes[150..]];
    assert!(rig.device.push_rx(&parts, &NetHdr::default()).unwrap());
    // Nothing shows before all of it does.
    assert_eq!(rig.used_idx(RX), 0);
    rig.device.flush();
    assert_eq!(rig.take_used(RX), Some((0, 100)));
    assert_eq!(rig.take_used(RX), Some((1, 50)));
    assert_eq!(rig.take_used(RX), Some((2, 62)));
    assert_eq!(num_buffers(&rig, at[0]), 3);
    let got = [rig.read(at[0] + 12, 88), rig.read(at[1], 50), rig.read(at[2], 62)].concat();
    assert_eq!(got, bytes);
    assert_eq!(rig.device.counters().rx_chains, 3);
}

#[test]
fn the_header_may_be_spread_over_descriptors() {
    let mut rig = Rig::new(MODERN);
    // The two bytes of num_buffers lie in different descriptors.
    rig.desc(RX, 0, B, 11, WRITE | NEXT, 1);
    rig.desc(RX, 1, B + 0x100, 10, WRITE, 0);
    rig.offer(RX, 0);
    let at = rig.receive(2, 100);
    assert!(push(&mut rig, 60));
    rig.device.flush();
    assert_eq!(rig.read(B + 10, 1), [2]);
    assert_eq!(rig.read(B + 0x100, 10), [&[0], &body(9)[..]].concat());
    assert_eq!(rig.read(at, 51), body(60)[9..]);
}

#[test]
fn too_little_room_changes_nothing() {
    let mut rig = Rig::new(MODERN);
    rig.receive(0, 100);
    rig.receive(1, 100);
    assert!(!push(&mut rig, 300));
    rig.device.flush();
    assert_eq!(rig.used_idx(RX), 0);
    assert_eq!(signals(&rig.ends[RX].call), 0);
    rig.receive(2, 200);
    assert!(push(&mut rig, 300));
    rig.device.flush();
    assert_eq!(rig.used_idx(RX), 3);
}

#[test]
fn what_can_never_fit_is_thrown_away() {
    // All buffers of the ring together are too small.
    let mut rig = Rig::new(MODERN);
    for head in 0..8 {
        rig.receive(head, 100);
    }
    assert!(push(&mut rig, 1000));
    assert!(push(&mut rig, 80));
    // Without mergeable buffers, one is all there is.
    let mut single = Rig::new(MODERN & !MERGEABLE);
    single.receive(0, 100);
    single.receive(1, 100);
    assert!(push(&mut single, 89));
    assert!(push(&mut single, 88));
    for (rig, frames) in [(&mut rig, 1), (&mut single, 1)] {
        rig.device.flush();
        assert_eq!(rig.used_idx(RX), frames);
        let counters = rig.device.counters();
        assert_eq!((counters.rx_unfit, counters.rx_frames), (1, 1));
    }
}

#[test]
fn a_legacy_driver_has_a_shorter_header() {
    let mut rig = Rig::new(F_PROTOCOL_FEATURES);
    rig.transmit(0, &[&frame(0)[..10], &body(60)].concat());
    assert_eq!(rig.take().unwrap(), frame(60));
    // In pieces that end within the header and behind it.
    rig.write(BUFFERS, &[&[7; 10], &body(20)[..]].concat());
    rig.desc(TX, 1, BUFFERS, 4, NEXT, 2);
    rig.desc(TX, 2, BUFFERS + 4, 8, NEXT, 3);
    rig.desc(TX, 3, BUFFERS + 12, 18, 0, 0);
    rig.offer(TX, 1);
    assert_eq!(rig.take().unwrap(), [&[7; 10][..], &[0; 2], &body(20)].concat());
    let at = rig.receive(0, 100);
    assert!(push(&mut rig, 60));
    rig.device.flush();
    assert_eq!(rig.take_used(RX), Some((0, 70)));
    assert_eq!(rig.read(at + 10, 60), body(60));
}

#[test]
fn event_idx_asks_for_signals_at_any_index() {
    // (used_event, entries published at once from 0, signal wanted)
    for (event, entries, wanted) in [
        (0, 1, true),
        (0, 5, true),
        (4, 5, true),
        (5, 5, false),
        (6, 5, false),
        (u16::MAX, 5, false),
        (0x8000, 8, false),
    ] {
        let mut rig = Rig::new(MODERN | EVENT_IDX);
        rig.set_used_event(TX, event);
        for head in 0..entries {
            rig.transmit(head, &frame(60));
            rig.take().unwrap();
        }
        rig.device.flush();
        assert_eq!(signals(&rig.ends[TX].call), usize::from(wanted), "event {event}");
    }
}

#[test]
fn kicks_are_asked_for_before_sleeping() {
    for features in [MODERN, MODERN | EVENT_IDX] {
        let event_idx = features & EVENT_IDX != 0;
        let mut rig = Rig::new(features);
        rig.device.disarm();
        assert_eq!(rig.used_flags(TX), u16::from(!event_idx));
        rig.transmit(0, &frame(60));
        // There is work: the worker must look again.
        assert!(rig.device.arm());
        rig.device.disarm();
        rig.take().unwrap();
        assert!(!rig.device.arm());
        assert_eq!(rig.used_flags(TX), 0);
        if event_idx {
            assert_eq!(rig.avail_event(TX), 1);
        }
    }
}

#[test]
fn a_starved_receiver_waits_for_buffers_that_it_has_not_seen() {
    for features in [MODERN, MODERN | EVENT_IDX] {
        let event_idx = features & EVENT_IDX != 0;
        let mut rig = Rig::new(features);
        rig.receive(0, 100);
        // Buffers alone are no work.
        assert!(!rig.device.arm());
        assert_eq!(rig.used_flags(RX), u16::from(!event_idx));
        assert!(!push(&mut rig, 150));
        assert!(!rig.device.arm());
        assert_eq!(rig.used_flags(RX), 0);
        if event_idx {
            // The driver kicks for the buffer after the one that was too little.
            assert_eq!(rig.avail_event(RX), 1);
        }
        rig.receive(1, 100);
        assert!(rig.device.arm());
        assert!(push(&mut rig, 150));
        assert!(!rig.device.arm());
    }
}

#[test]
fn a_disabled_ring_discards_and_gives_nothing() {
    let mut rig = Rig::new(MODERN);
    rig.send(state(id::SET_VRING_ENABLE, TX as u32, 0)).unwrap();
    rig.send(state(id::SET_VRING_ENABLE, RX as u32, 0)).unwrap();
    assert!(!rig.device.is_running());
    rig.transmit(0, &frame(60));
    assert_eq!(rig.take(), None);
    rig.receive(0, 100);
    assert!(!rig.device.can_push());
    assert!(!push(&mut rig, 60));
    rig.device.flush();
    assert_eq!(rig.take_used(TX), Some((0, 0)));
    assert_eq!(rig.take_used(RX), None);
    assert_eq!(rig.device.counters().tx_disabled, 1);
    rig.send(state(id::SET_VRING_ENABLE, RX as u32, 1)).unwrap();
    assert!(push(&mut rig, 60));
}

#[test]
fn stopping_publishes_and_starting_resumes() {
    let mut rig = Rig::new(MODERN);
    for head in 0..3 {
        rig.transmit(head, &frame(60));
    }
    rig.take().unwrap();
    rig.take().unwrap();
    // Two are used and unpublished, one is not taken.
    let base = rig.ask(state(id::GET_VRING_BASE, TX as u32, 0));
    let base = VringState::read_from_bytes(&base).unwrap();
    assert_eq!((base.index.get(), base.num.get()), (TX as u32, 2));
    assert_eq!(rig.used_idx(TX), 2);
    assert_eq!(rig.take(), None);
    assert!(!rig.device.is_running());

    let (kick_read, kick) = pipe();
    rig.ends[TX].kick = kick;
    rig.send(state(id::SET_VRING_BASE, TX as u32, 2)).unwrap();
    rig.send(number(id::SET_VRING_KICK, TX as u64).with(kick_read)).unwrap();
    assert_eq!(rig.take().unwrap(), frame(60));
    rig.device.flush();
    // The used position was taken over from the ring.
    assert_eq!(rig.used_idx(TX), 3);
    let heads: Vec<_> = std::iter::from_fn(|| rig.take_used(TX)).collect();
    assert_eq!(heads, [(0, 0), (1, 0), (2, 0)]);
}

#[test]
fn a_new_session_takes_over_the_used_position() {
    let mut rig = Rig::new(MODERN);
    for head in 0..2 {
        rig.transmit(head, &frame(60));
        rig.take().unwrap();
    }
    rig.device.flush();
    // The session is lost; the driver notices nothing and goes on.
    rig.device.detach();
    let (front, back) = UnixStream::pair().unwrap();
    rig.front = front;
    rig.device.attach(back).unwrap();
    let (messages, _ends) = transcript(MODERN, 8, &rig.file);
    for mut message in messages {
        if message.id == id::SET_VRING_BASE && message.payload[0] == TX as u8 {
            message = state(id::SET_VRING_BASE, TX as u32, 2);
        }
        rig.send(message).unwrap();
    }
    rig.transmit(2, &frame(61));
    assert_eq!(rig.take().unwrap(), frame(61));
    rig.device.flush();
    let heads: Vec<_> = std::iter::from_fn(|| rig.take_used(TX)).collect();
    assert_eq!(heads, [(0, 0), (1, 0), (2, 0)]);
}

#[test]
fn memory_may_change_under_running_rings() {
    let mut rig = Rig::new(MODERN);
    rig.transmit(0, &frame(60));
    rig.take().unwrap();
    // The same memory in another order and at another place of ours.
    let mut regions = usual_regions();
    regions.reverse();
    let table = mem_table(&regions, &rig.file);
    assert_eq!(rig.ack(table), 0);
    assert_eq!(rig.used_idx(TX), 1, "published before the memory went");
    rig.transmit(1, &frame(61));
    assert_eq!(rig.take().unwrap(), frame(61));
    // Without the ring's own memory it stands still, and goes on when it is back.
    let only_b = mem_table(&usual_regions()[..1], &rig.file);
    assert_eq!(rig.ack(only_b), 0);
    assert!(!rig.device.is_running());
    rig.transmit(2, &frame(62));
    assert_eq!(rig.take(), None);
    let table = mem_table(&usual_regions(), &rig.file);
    assert_eq!(rig.ack(table), 0);
    assert_eq!(rig.take().unwrap(), frame(62));
    rig.device.flush();
    assert_eq!(rig.used_idx(TX), 3);
}

#[test]
fn memory_comes_and_goes_in_slots() {
    use paste_abi::vhost_user::SingleMemRegion;
    let mut rig = Rig::new(MODERN);
    let single = |region| SingleMemRegion { padding: 0.into(), region }.as_bytes().to_vec();
    let region_b = usual_regions()[0];
    // Some front ends send a descriptor here; it is closed unused.
    let (read, write) = pipe();
    let remove = message(id::REM_MEM_REG, &single(region_b)).with(write);
    assert_eq!(rig.ack(remove), 0);
    assert!(is_closed(&read));
    assert!(rig.device.is_running());
    let remove = message(id::REM_MEM_REG, &single(region_b));
    assert_eq!(rig.ack(remove), 1);
    let file = rig.file.try_clone().unwrap();
    let add = message(id::ADD_MEM_REG, &single(region_b)).with(file);
    assert_eq!(rig.ack(add), 0);
    rig.write(B, &frame(60));
    rig.desc(TX, 0, B, 72, 0, 0);
    rig.offer(TX, 0);
    assert_eq!(rig.take().unwrap(), frame(60));
}

#[test]
fn without_protocol_features_rings_start_enabled() {
    let file = memory_file();
    let (mut device, front) = attached(options());
    let (messages, _ends) = transcript(MODERN & !F_PROTOCOL_FEATURES, 8, &file);
    let unknown_then = [id::SET_PROTOCOL_FEATURES, id::SET_VRING_ENABLE, id::GET_QUEUE_NUM];
    for message in messages.into_iter().filter(|m| !unknown_then.contains(&m.id)) {
        send(&front, &message, 0);
        device.handle_messages().unwrap();
    }
    assert!(device.is_running());
}

#[test]
fn a_kick_storm_and_a_closed_kick_end() {
    let mut rig = Rig::new(MODERN);
    let kick = rig.ends[TX].kick.try_clone().unwrap();
    while rustix::io::write(&kick, &[0; 4096]).is_ok() {}
    drop(kick);
    let generation = rig.device.watch_generation();
    for _ in 0..200 {
        rig.device.take_kick(TX);
    }
    assert_eq!(rig.device.watch_generation(), generation);
    assert_eq!(rig.device.watch().count(), 3);
    // A closed pipe is readable for ever, so it is no longer watched.
    rig.ends[TX].kick = pipe().1;
    rig.device.take_kick(TX);
    assert_ne!(rig.device.watch_generation(), generation);
    assert_eq!(rig.device.watch().count(), 2);
    rig.device.take_kick(TX);
    rig.device.take_kick(99);
    assert!(rig.device.is_running());
    assert_eq!(rig.device.counters().kicks_lost, 1);
}

#[test]
fn only_the_kick_that_starts_a_ring_may_be_for_nothing() {
    let mut rig = Rig::new(MODERN);
    let in_vain = |rig: &mut Rig| {
        rig.device.take_kick(TX);
        rig.device.counters().kicks_in_vain
    };
    assert_eq!((in_vain(&mut rig), in_vain(&mut rig)), (0, 1));
    rig.transmit(0, &frame(60));
    assert_eq!(in_vain(&mut rig), 1);

    let mut rig = Rig::new(MODERN);
    rig.transmit(0, &frame(60));
    assert_eq!((in_vain(&mut rig), in_vain(&mut rig)), (0, 0));
}

#[test]
fn watches_have_numbers() {
    use super::super::Watch;
    for watch in [Watch::Session, Watch::Backend, Watch::Kick(RX), Watch::Kick(TX), Watch::Link] {
        assert_eq!(Watch::from_index(watch.to_index()), Some(watch));
    }
    assert_eq!(Watch::from_index(3 + 2 * crate::vhost::PAIRS_MAX as u32), None);
    assert_eq!(Watch::from_index(u32::MAX), None);
}
