//! The ring against a device written from the specification.

use super::*;
use crate::sys;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

const ADDRESS: u64 = 1 << 32;
const LAYOUT: Layout = Layout::new(8, 128);

/// The device's side, through a mapping of its own.
struct Device {
    mapping: Mapping,
    next_avail: u16,
    used: u16,
}

impl Device {
    fn new(fd: &OwnedFd) -> Device {
        let mapping = Mapping::from_fd(fd.as_fd(), 0, LAYOUT.len, true).unwrap();
        Device { mapping, next_avail: 0, used: 0 }
    }

    fn at<T: Copy>(&self, at: usize) -> T {
        assert!(at + size_of::<T>() <= LAYOUT.len);
        // SAFETY: inside the mapping; the test runs both sides in one thread.
        unsafe { self.mapping.as_ptr().add(at).cast::<T>().read_volatile() }
    }

    fn set<T: Copy>(&self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= LAYOUT.len);
        // SAFETY: inside the mapping; the test runs both sides in one thread.
        unsafe { self.mapping.as_ptr().add(at).cast::<T>().write_volatile(value) }
    }

    /// The next available descriptor: id, offset of its buffer, length, flags.
    fn take(&mut self) -> Option<(u16, usize, u32, u16)> {
        if self.next_avail == self.at::<u16>(LAYOUT.avail + 2) {
            return None;
        }
        let id: u16 = self.at(LAYOUT.avail + 4 + usize::from(self.next_avail % 8) * 2);
        self.next_avail = self.next_avail.wrapping_add(1);
        let desc = usize::from(id) * 16;
        let address: u64 = self.at(desc);
        assert_eq!(self.at::<u16>(desc + 14), 0, "no next descriptor");
        Some((id, (address - ADDRESS) as usize, self.at(desc + 8), self.at(desc + 12)))
    }

    fn put(&mut self, id: u32, len: u32) {
        let at = LAYOUT.used + 4 + usize::from(self.used % 8) * 8;
        self.set(at, id);
        self.set(at + 4, len);
        self.used = self.used.wrapping_add(1);
        self.set(LAYOUT.used + 2, self.used);
    }

    fn used_event(&self) -> u16 {
        self.at(LAYOUT.avail + 4 + 16)
    }

    fn set_avail_event(&self, event: u16) {
        self.set(LAYOUT.used + 4 + 64, event);
    }
}

fn pair(direction: Direction) -> (Ring, Device) {
    let fd = sys::shared_memory(LAYOUT.len).unwrap();
    let mapping = Mapping::from_fd(fd.as_fd(), 0, LAYOUT.len, true).unwrap();
    (Ring::new(mapping, LAYOUT, ADDRESS, direction), Device::new(&fd))
}

#[test]
fn frames_cross_in_order_and_buffers_come_back() {
    let (mut ring, mut device) = pair(Direction::Transmit);
    for round in 0..100u8 {
        for i in 0..8 {
            assert!(ring.push(|out| {
                out[0] = round;
                out[1] = i;
                2 + usize::from(i)
            }));
        }
        assert!(!ring.push(|_| panic!("no descriptor is free")));
        assert!(device.take().is_none() || round > 0, "nothing is shown before publish");
        let _ = ring.publish();
        for i in 0..8 {
            let (id, at, len, flags) = device.take().unwrap();
            assert_eq!((len, flags), (2 + u32::from(i), 0));
            assert_eq!(device.at::<[u8; 2]>(at), [round, i]);
            device.put(id.into(), 0);
        }
        assert_eq!(ring.refresh(), Ok(8));
        while ring.pop().unwrap().is_some() {}
        assert_eq!(ring.free(), 8);
    }
}

#[test]
fn received_bytes_are_shown_and_the_buffer_reused() {
    let (mut ring, mut device) = pair(Direction::Receive);
    ring.refill();
    let _ = ring.publish();
    let (id, at, len, flags) = device.take().unwrap();
    assert_eq!((len, flags), (128, DESC_F_WRITE));
    device.set(at, *b"frame");
    device.put(id.into(), 5);
    assert!(ring.pop().unwrap().is_none(), "not before refresh");
    assert_eq!(ring.refresh(), Ok(1));
    assert_eq!(ring.pop().unwrap(), Some(&b"frame"[..]));
    assert_eq!(ring.free(), 1);
}

#[test]
fn a_lying_device_is_an_error() {
    let (mut ring, mut device) = pair(Direction::Receive);
    device.put(0, 1);
    assert_eq!(ring.refresh(), Err(RingError::Index));

    for (id, len, error) in [
        (8, 1, RingError::Descriptor),
        (u32::MAX, 1, RingError::Descriptor),
        (0, 129, RingError::Length),
    ] {
        let (mut ring, mut device) = pair(Direction::Receive);
        ring.refill();
        let _ = ring.publish();
        device.put(id, len);
        assert_eq!(ring.refresh(), Ok(1));
        assert_eq!(ring.pop().unwrap_err(), error);
    }

    let (mut ring, mut device) = pair(Direction::Receive);
    ring.refill();
    let _ = ring.publish();
    device.put(3, 1);
    device.put(3, 1);
    assert_eq!(ring.refresh(), Ok(2));
    assert!(ring.pop().unwrap().is_some());
    assert_eq!(ring.pop().unwrap_err(), RingError::Descriptor, "the same one twice");
}

#[test]
fn a_kick_is_wanted_only_when_the_event_is_passed() {
    let (mut ring, mut device) = pair(Direction::Transmit);
    let mut send = |ring: &mut Ring, count: u16| {
        for _ in 0..count {
            assert!(ring.push(|_| 1));
        }
        let kick = ring.publish();
        while let Some((id, ..)) = device.take() {
            device.put(id.into(), 0);
        }
        ring.refresh().unwrap();
        while ring.pop().unwrap().is_some() {}
        kick
    };
    // The device waits for the first entry, index 0.
    assert!(send(&mut ring, 1));
    // It has not moved its event: it is awake.
    assert!(!send(&mut ring, 3));
    assert!(!ring.publish(), "nothing new");
}

#[test]
fn a_kick_is_wanted_for_an_event_in_the_middle_of_a_batch() {
    let (mut ring, device) = pair(Direction::Transmit);
    device.set_avail_event(2);
    for _ in 0..2 {
        assert!(ring.push(|_| 1));
    }
    assert!(!ring.publish());
    for _ in 0..2 {
        assert!(ring.push(|_| 1));
    }
    assert!(ring.publish());
}

#[test]
fn arming_names_the_next_entry_and_disarming_the_last() {
    let (mut ring, device) = pair(Direction::Receive);
    assert_eq!(device.used_event(), u16::MAX);
    ring.arm();
    assert_eq!(device.used_event(), 0);
    ring.disarm();
    assert_eq!(device.used_event(), u16::MAX);
}

#[test]
fn the_parts_do_not_overlap() {
    let l = Layout::new(256, 12 + 4096);
    assert_eq!(l.buffer_len % 64, 0);
    assert!(256 * 16 <= l.avail && l.avail + 6 + 512 <= l.used);
    assert!(l.used + 6 + 2048 <= l.buffers && l.buffers + 256 * l.buffer_len <= l.len);
}

proptest! {
    /// Any interleaving: frames arrive complete, once and in order.
    #[test]
    fn behaves_like_a_queue(steps in prop::collection::vec(0u8..5, 1..400)) {
        let (mut ring, mut device) = pair(Direction::Transmit);
        let mut model = VecDeque::new();
        let mut taken = VecDeque::new();
        let mut next = 0u32;
        for step in steps {
            match step {
                0 | 1 => {
                    let pushed = ring.push(|out| {
                        out[..4].copy_from_slice(&next.to_ne_bytes());
                        4
                    });
                    if pushed {
                        model.push_back(next);
                        next += 1;
                    }
                }
                2 => { let _ = ring.publish(); }
                3 => if let Some((id, at, len, _)) = device.take() {
                    prop_assert_eq!(len, 4);
                    prop_assert_eq!(Some(device.at::<u32>(at)), model.pop_front());
                    taken.push_back(id);
                },
                _ => {
                    // Used in any order: the newest first.
                    if let Some(id) = taken.pop_back() {
                        device.put(id.into(), 0);
                    }
                    ring.refresh().unwrap();
                    while ring.pop().unwrap().is_some() {}
                }
            }
            prop_assert!(ring.free() + model.len() + taken.len() <= 8);
        }
    }
}
