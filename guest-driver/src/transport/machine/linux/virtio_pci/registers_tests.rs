//! The beginning, with a device written from the specification.

use super::*;
use std::cell::RefCell;

const OFFERED: u64 = F_VERSION_1 | F_EVENT_IDX | F_MAC | 1 << 15 | 1 << 16 | 1;

/// A device, and what was done to it that a device may not be asked for.
#[derive(Debug, Default)]
struct State {
    offered: u64,
    accepted: u64,
    select: [u32; 2],
    status: u8,
    /// Reads of the status that still show the old one after a reset.
    slow: u32,
    stuck: bool,
    refuses: bool,
    queues: [Queue; 3],
    selected: u16,
    /// Reads of the generation that each find another one.
    changes: u8,
    generation: u8,
    resets: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Queue {
    max: u16,
    size: u16,
    enabled: bool,
    parts: [u64; 3],
}

#[derive(Debug)]
struct Fake(RefCell<State>);

impl Fake {
    fn new() -> Fake {
        let queue = Queue { max: 256, ..Queue::default() };
        // Left running by whoever was before.
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        let state = State { offered: OFFERED, queues: [queue; 3], status, ..State::default() };
        Fake(RefCell::new(state))
    }

    fn with(change: impl FnOnce(&mut State)) -> Fake {
        let fake = Fake::new();
        change(&mut fake.0.borrow_mut());
        fake
    }
}

impl Registers for Fake {
    fn load8(&self, at: usize) -> u8 {
        let mut s = self.0.borrow_mut();
        match at {
            field::DEVICE_STATUS if s.slow > 0 => {
                s.slow -= 1;
                s.status | DRIVER
            }
            field::DEVICE_STATUS => s.status,
            field::CONFIG_GENERATION => {
                s.generation = s.generation.wrapping_add(u8::from(s.changes > 0));
                s.changes = s.changes.saturating_sub(1);
                s.generation
            }
            _ => panic!("no field of 8 bits is at {at:#x}"),
        }
    }

    fn load16(&self, at: usize) -> u16 {
        let s = self.0.borrow();
        match at {
            field::NUM_QUEUES => 3,
            field::QUEUE_SIZE => s.queues[usize::from(s.selected)].max,
            field::QUEUE_NOTIFY_OFF => s.selected + 7,
            _ => panic!("no field of 16 bits is at {at:#x}"),
        }
    }

    fn load32(&self, at: usize) -> u32 {
        assert_eq!(at, field::DEVICE_FEATURE);
        let s = self.0.borrow();
        assert_eq!(s.status & (DRIVER | ACKNOWLEDGE), DRIVER | ACKNOWLEDGE);
        (s.offered >> (32 * s.select[0])) as u32
    }

    fn store8(&self, at: usize, value: u8) {
        assert_eq!(at, field::DEVICE_STATUS);
        let mut s = self.0.borrow_mut();
        if value == 0 {
            s.resets += 1;
            if !s.stuck {
                s.status = 0;
                s.accepted = 0;
                s.queues.iter_mut().for_each(|queue| queue.enabled = false);
            }
            return;
        }
        assert_eq!(value & s.status, s.status, "no bit is taken back");
        assert!((value ^ s.status).is_power_of_two(), "one step at a time");
        s.status = value;
        if value & FEATURES_OK != 0 && s.refuses {
            s.status &= !FEATURES_OK;
        }
    }

    fn store16(&self, at: usize, value: u16) {
        let mut s = self.0.borrow_mut();
        let selected = usize::from(s.selected);
        match at {
            field::QUEUE_SELECT => s.selected = value,
            field::QUEUE_SIZE => s.queues[selected].size = value,
            field::QUEUE_ENABLE => {
                assert_eq!(value, 1);
                assert!(s.status & FEATURES_OK != 0 && s.status & DRIVER_OK == 0);
                let Queue { max, size, parts, .. } = s.queues[selected];
                assert!(size.is_power_of_two() && size <= max);
                let [desc, driver, device] = parts;
                assert!(desc.is_multiple_of(16) && driver.is_multiple_of(2));
                assert!(device.is_multiple_of(4));
                s.queues[selected].enabled = true;
            }
            _ => panic!("no field of 16 bits is at {at:#x}"),
        }
    }

    fn store32(&self, at: usize, value: u32) {
        let mut s = self.0.borrow_mut();
        match at {
            field::DEVICE_FEATURE_SELECT => s.select[0] = value,
            field::DRIVER_FEATURE_SELECT => s.select[1] = value,
            field::DRIVER_FEATURE => {
                assert_eq!(s.status & FEATURES_OK, 0);
                let half = s.select[1];
                s.accepted |= u64::from(value) << (32 * half);
            }
            field::QUEUE_DESC..0x38 => {
                let selected = usize::from(s.selected);
                let (part, shift) = ((at - field::QUEUE_DESC) / 8, at % 8 * 8);
                let word = &mut s.queues[selected].parts[part];
                *word = *word & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
            }
            _ => panic!("no field of 32 bits is at {at:#x}"),
        }
    }
}

/// The configuration of a network device.
#[derive(Debug)]
struct Net;

impl Registers for Net {
    fn load8(&self, at: usize) -> u8 {
        [2, 0, 0, 0, 0, 9][at]
    }
    fn load16(&self, _: usize) -> u16 {
        panic!("the address is read in bytes")
    }
    fn load32(&self, _: usize) -> u32 {
        panic!("the address is read in bytes")
    }
    fn store8(&self, _: usize, _: u8) {
        panic!("nothing is written there")
    }
    fn store16(&self, _: usize, _: u16) {
        panic!("nothing is written there")
    }
    fn store32(&self, _: usize, _: u32) {
        panic!("nothing is written there")
    }
}

#[test]
fn a_device_is_begun_with_in_the_order_of_the_specification() {
    let fake = Fake::with(|state| state.slow = 3);
    assert_eq!(negotiate(&fake, &Net).unwrap(), [2, 0, 0, 0, 0, 9]);
    assert_eq!(fake.0.borrow().accepted, F_VERSION_1 | F_EVENT_IDX | F_MAC);
    assert_eq!(queue_size_max(&fake, 1).unwrap(), 256);
    let layout = Layout::new(64, 2048);
    let address = 0x12_3400_0000;
    for index in 0..2 {
        let place = enable_queue(&fake, index, layout, address + u64::from(index) * (1 << 20));
        assert_eq!(place, index + 7);
    }
    assert!(matches!(check(&fake), Err(PciError::WasReset)), "it does not run yet");
    run(&fake).unwrap();
    let state = fake.0.borrow();
    let desc = address + (1 << 20);
    let parts = [desc, desc + layout.avail as u64, desc + layout.used as u64];
    assert_eq!(state.queues[1], Queue { max: 256, size: 64, enabled: true, parts });
    assert!(state.queues[0].enabled && !state.queues[2].enabled);
    assert_eq!(state.resets, 1);
}

#[test]
fn a_device_that_will_not_or_cannot_is_refused() {
    let refused = |change: fn(&mut State)| negotiate(&Fake::with(change), &Net).unwrap_err();
    assert!(matches!(refused(|state| state.refuses = true), PciError::Features));
    assert!(matches!(refused(|state| state.offered |= F_ACCESS_PLATFORM), PciError::Iommu));
    for bit in [F_VERSION_1, F_EVENT_IDX, F_MAC] {
        let fake = Fake::with(|state| state.offered &= !bit);
        assert!(matches!(negotiate(&fake, &Net), Err(PciError::Unsupported(_))));
    }
    // Its address changes, and then no more; or for ever.
    negotiate(&Fake::with(|state| state.changes = 9), &Net).unwrap();
    assert!(matches!(refused(|state| state.changes = u8::MAX), PciError::Unsupported(_)));
    let fake = Fake::with(|state| state.queues[1].max = 0);
    assert!(matches!(queue_size_max(&fake, 1), Err(PciError::Queue(1))));
    assert!(matches!(queue_size_max(&fake, 3), Err(PciError::Queue(3))));
    let fake = Fake::with(|state| state.queues[0].max = u16::MAX);
    assert_eq!(queue_size_max(&fake, 0).unwrap(), 1 << 15);
}

#[test]
fn a_device_that_is_not_reset_in_time_is_refused() {
    let fake = Fake::with(|state| state.stuck = true);
    assert!(matches!(reset(&fake), Err(PciError::Reset)));
}

#[test]
fn a_device_that_stops_is_noticed() {
    for (status, says) in [
        (0, "was reset"),
        (ACKNOWLEDGE | DRIVER | FEATURES_OK, "was reset"),
        (u8::MAX, "taken out"),
        (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET, "asks to be reset"),
    ] {
        let fake = Fake::with(|state| state.status = status);
        let said = check(&fake).unwrap_err().to_string();
        assert!(said.contains(says), "{status:#x}: {said}");
    }
    check(&Fake::new()).unwrap();
}
