//! Drivers that break their rings. Each way of doing so has its name, stops
//! the device and nothing else, and a reset brings it back.

use paste_abi::net_hdr::NetHdr;
use paste_abi::vhost_user::request as id;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::super::Fault;
use super::*;

const TABLE: u64 = BUFFERS + 0x1000;

/// Runs one turn both ways and gives the fault that the device found.
fn turn(rig: &mut Rig) -> Option<Fault> {
    let mut out = [0; 2048];
    for _ in 0..1000 {
        match rig.device.next_tx(&mut out) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => return Some(error.fault),
        }
    }
    let pushed = rig.device.push_rx(&[&body(100)], &NetHdr::default());
    rig.device.flush();
    pushed.err().map(|error| error.fault)
}

/// A device on which `arrange` made a hostile chain must find `expected`, stop,
/// say so, and run again after a reset.
fn breaks(features: u64, ring: usize, expected: Fault, arrange: impl FnOnce(&mut Rig)) {
    let mut rig = Rig::new(features);
    arrange(&mut rig);
    assert_eq!(turn(&mut rig), Some(expected));
    assert!(!rig.device.is_running());
    assert_eq!(rig.device.fault().unwrap().ring, ring);
    // Found once, and nothing is done any more.
    assert_eq!(turn(&mut rig), None);
    assert!(!rig.device.arm());
    assert_eq!(signals(&rig.ends[ring].err), 1);
    let kind = expected.kind();
    assert_eq!(rig.device.counters().faults[kind], 1, "{}", Fault::KINDS[kind]);
    let status = rig.ask(message(id::GET_STATUS, &[]));
    assert_eq!(status[0], VIRTIO_CONFIG_S_NEEDS_RESET as u8);
    // A message that finds the rings anew does not revive it.
    let table = mem_table(&usual_regions(), &rig.file);
    assert_eq!(rig.ack(table), 0);
    assert!(!rig.device.is_running());

    assert_eq!(rig.ack(message(id::RESET_DEVICE, &[])), 0);
    assert_eq!(rig.ask(message(id::GET_STATUS, &[])), [0; 8]);
    rig.write(A, &[0; 0x6000]);
    let (messages, ends) = transcript(features, 8, &rig.file);
    for message in messages {
        rig.send(message).unwrap();
    }
    rig.drain_replies();
    (rig.ends, rig.avail, rig.used) = (ends, [0; 2], [0; 2]);
    rig.transmit(0, &frame(60));
    rig.receive(0, 200);
    assert_eq!(rig.take().unwrap(), frame(60));
    assert_eq!(turn(&mut rig), None);
    assert_eq!((rig.used_idx(TX), rig.used_idx(RX)), (1, 1));
}

#[test]
fn a_head_outside_the_table() {
    for ring in [RX, TX] {
        let fault = Fault::DescriptorIndex { index: 8, size: 8 };
        breaks(MODERN, ring, fault, |rig| rig.offer(ring, 8));
    }
}

#[test]
fn a_next_outside_the_table() {
    let fault = Fault::DescriptorIndex { index: u16::MAX, size: 8 };
    breaks(MODERN, TX, fault, |rig| {
        rig.desc(TX, 0, BUFFERS, 72, NEXT, u16::MAX);
        rig.offer(TX, 0);
    });
    let fault = Fault::DescriptorIndex { index: 2, size: 2 };
    breaks(MODERN, TX, fault, |rig| {
        rig.desc_at(TABLE, 0, BUFFERS, 72, NEXT, 2);
        rig.desc(TX, 0, TABLE, 32, INDIRECT, 0);
        rig.offer(TX, 0);
    });
}

#[test]
fn a_circle() {
    breaks(MODERN, TX, Fault::ChainTooLong, |rig| {
        rig.desc(TX, 0, BUFFERS, 1, NEXT, 1);
        rig.desc(TX, 1, BUFFERS, 1, NEXT, 0);
        rig.offer(TX, 0);
    });
    breaks(MODERN, RX, Fault::ChainTooLong, |rig| {
        rig.desc(RX, 0, BUFFERS, 2, WRITE | NEXT, 0);
        rig.offer(RX, 0);
    });
    breaks(MODERN, TX, Fault::ChainTooLong, |rig| {
        rig.desc_at(TABLE, 0, BUFFERS, 1, NEXT, 0);
        rig.desc(TX, 0, TABLE, 16, INDIRECT, 0);
        rig.offer(TX, 0);
    });
    // A table larger than any chain may be long.
    breaks(MODERN, TX, Fault::ChainTooLong, |rig| {
        rig.desc_at(TABLE, 0, BUFFERS, 1, NEXT, 0);
        rig.desc(TX, 0, TABLE, 0xffff_fff0, INDIRECT, 0);
        rig.offer(TX, 0);
    });
}

#[test]
fn nothing_in_a_descriptor() {
    breaks(MODERN, TX, Fault::ZeroLength, |rig| {
        rig.desc(TX, 0, BUFFERS, 0, 0, 0);
        rig.offer(TX, 0);
    });
    breaks(MODERN, RX, Fault::ZeroLength, |rig| {
        rig.desc(RX, 0, BUFFERS, 12, WRITE | NEXT, 1);
        rig.desc(RX, 1, BUFFERS, 0, WRITE, 0);
        rig.offer(RX, 0);
    });
}

#[test]
fn memory_that_is_not_there() {
    for (addr, len) in [
        // Into the hole, below all memory, at the end of the address space.
        (HOLE - 1, 72),
        (HOLE, 72),
        (0, 72),
        (A - 1, 72),
        (u64::MAX - 10, 72),
        (u64::MAX, 72),
    ] {
        let fault = Fault::Outside { addr, len };
        breaks(MODERN, TX, fault, |rig| {
            rig.desc(TX, 0, addr, len as u32, 0, 0);
            rig.offer(TX, 0);
        });
        // The header is written first, and by itself.
        if addr != HOLE - 1 {
            let fault = Fault::Outside { addr, len: 12 };
            breaks(MODERN, RX, fault, |rig| {
                rig.desc(RX, 0, addr, 200, WRITE, 0);
                rig.offer(RX, 0);
            });
        }
    }
    for addr in [HOLE, u64::MAX - 15, HOLE - 8] {
        breaks(MODERN, TX, Fault::Outside { addr, len: 16 }, |rig| {
            rig.desc(TX, 0, addr, 16, INDIRECT, 0);
            rig.offer(TX, 0);
        });
    }
}

#[test]
fn indirect_tables_that_must_not_be() {
    breaks(MODERN, TX, Fault::IndirectNested, |rig| {
        rig.desc_at(TABLE, 0, TABLE, 16, INDIRECT, 0);
        rig.desc(TX, 0, TABLE, 16, INDIRECT, 0);
        rig.offer(TX, 0);
    });
    breaks(MODERN, TX, Fault::IndirectWithNext, |rig| {
        rig.desc(TX, 0, TABLE, 16, INDIRECT | NEXT, 1);
        rig.offer(TX, 0);
    });
    for len in [0, 1, 15, 17, u32::MAX] {
        breaks(MODERN, RX, Fault::IndirectLength { len }, |rig| {
            rig.desc(RX, 0, TABLE, len, INDIRECT, 0);
            rig.offer(RX, 0);
        });
    }
    let without = MODERN & !feature(VIRTIO_RING_F_INDIRECT_DESC);
    breaks(without, TX, Fault::IndirectNotNegotiated, |rig| {
        rig.desc(TX, 0, TABLE, 16, INDIRECT, 0);
        rig.offer(TX, 0);
    });
}

#[test]
fn buffers_of_the_wrong_direction() {
    breaks(MODERN, TX, Fault::WritableInTx, |rig| {
        rig.desc(TX, 0, BUFFERS, 12, WRITE | NEXT, 1);
        rig.desc(TX, 1, BUFFERS, 60, 0, 0);
        rig.offer(TX, 0);
    });
    breaks(MODERN, TX, Fault::WritableInTx, |rig| {
        rig.desc(TX, 0, BUFFERS, 72, NEXT, 1);
        rig.desc(TX, 1, BUFFERS, 1, WRITE, 0);
        rig.offer(TX, 0);
    });
    breaks(MODERN, RX, Fault::ReadableInRx, |rig| {
        rig.desc(RX, 0, BUFFERS, 12, WRITE | NEXT, 1);
        rig.desc(RX, 1, BUFFERS, 100, 0, 0);
        rig.offer(RX, 0);
    });
}

#[test]
fn no_room_for_the_header() {
    for features in [MODERN, MODERN & !MERGEABLE] {
        breaks(features, RX, Fault::HeaderRoom { len: 11 }, |rig| {
            rig.desc(RX, 0, BUFFERS, 11, WRITE, 0);
            rig.offer(RX, 0);
        });
    }
}

#[test]
fn an_index_that_jumps() {
    for ring in [RX, TX] {
        for jump in [9, 0x8000, u16::MAX] {
            let fault = Fault::AvailableIndex { size: 8 };
            breaks(MODERN, ring, fault, |rig| rig.set_avail_idx(ring, jump));
        }
    }
}

#[test]
fn more_chains_than_descriptors_without_waiting() {
    let mut rig = Rig::new(MODERN);
    for round in 0..9u16 {
        rig.transmit(round % 8, &frame(60));
        let mut out = [0; 100];
        let taken = rig.device.next_tx(&mut out);
        match round {
            0..8 => assert_eq!(taken, Ok(Some(72))),
            _ => assert_eq!(taken.unwrap_err().fault, Fault::AvailableIndex { size: 8 }),
        }
    }
}

#[test]
fn a_flood_of_runts_ends_a_call() {
    let mut rig = Rig::new(MODERN);
    for head in 0..8 {
        rig.transmit(head, &[0; 1]);
    }
    let mut out = [0; 100];
    assert_eq!(rig.device.next_tx(&mut out), Ok(None));
    assert_eq!(rig.device.counters().tx_runt, 8);
    rig.device.flush();
    assert!(!rig.device.arm());
}

#[test]
fn a_fault_is_forgotten_when_all_rings_have_stopped() {
    let mut rig = Rig::new(MODERN);
    rig.offer(TX, 8);
    assert!(turn(&mut rig).is_some());
    for ring in [RX, TX] {
        rig.ask(state(id::GET_VRING_BASE, ring as u32, 0));
    }
    assert_eq!(rig.device.fault(), None);
    assert_eq!(rig.ask(message(id::GET_STATUS, &[])), [0; 8]);
}

#[test]
fn the_worker_can_stop_the_device() {
    let mut rig = Rig::new(MODERN);
    rig.device.fail();
    assert!(!rig.device.is_running());
    let status = rig.ask(message(id::GET_STATUS, &[]));
    assert_eq!(status[0], VIRTIO_CONFIG_S_NEEDS_RESET as u8);
}

#[test]
fn memory_cut_under_the_device() {
    let mut rig = Rig::new(MODERN);
    rig.transmit(0, &frame(60));
    assert!(!rig.device.is_poisoned());
    ftruncate(&rig.file, 0).unwrap();
    let mut out = [0; 100];
    // Whatever is read is judged as ever; the process lives, and knows.
    let _ = rig.device.next_tx(&mut out);
    assert!(rig.device.is_poisoned());
    rig.device.detach();
    assert!(!rig.device.is_poisoned());
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Rings full of anything: the device finds a fault or frames, and ends.
        #[test]
        fn anything_in_the_rings(
            table in prop::collection::vec(
                (0..5u8, any::<u16>(), 0..300u32, 0..8u16, 0..10u16), 16),
            heads in prop::collection::vec(0..9u16, 16),
            idx in prop::array::uniform2(0..10u16),
            events in prop::array::uniform2(any::<u16>()),
        ) {
            let mut rig = Rig::new(MODERN | EVENT_IDX);
            for (i, (place, offset, len, flags, next)) in table.into_iter().enumerate() {
                let base = [A, BUFFERS, B, HOLE - 0x100, u64::MAX - 0xffff][usize::from(place)];
                rig.desc(i % 2, (i / 2) as u16, base + u64::from(offset), len, flags, next);
            }
            for (i, head) in heads.into_iter().enumerate() {
                rig.offer(i % 2, head);
            }
            for ring in [RX, TX] {
                rig.set_avail_idx(ring, idx[ring]);
                rig.set_used_event(ring, events[ring]);
            }
            for _ in 0..3 {
                turn(&mut rig);
                rig.device.arm();
                rig.device.disarm();
            }
            prop_assert!(!rig.device.is_poisoned());
        }
    }
}
