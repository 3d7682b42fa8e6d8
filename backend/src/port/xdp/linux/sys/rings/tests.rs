//! Rings against a model of the kernel's side, which plays by the rules or not.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use paste_pmem::Mapping;
use proptest::prelude::*;

use super::*;

const LEN: u32 = 8;
const OFFSETS: XdpRingOffset =
    XdpRingOffset { producer: 0, consumer: 64, desc: 256, flags: Some(128) };

/// The kernel's side: the same memory, mapped once more.
struct Kernel(Mapping);

impl Kernel {
    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        assert!(self.0.read_at(at as usize, &mut bytes));
        u32::from_ne_bytes(bytes)
    }

    fn set_word(&self, at: u64, value: u32) {
        assert!(self.0.write_at(at as usize, &value.to_ne_bytes()));
    }

    fn at(index: u32) -> usize {
        (OFFSETS.desc + u64::from(index & (LEN - 1)) * 8) as usize
    }

    fn entry(&self, index: u32) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.0.read_at(Kernel::at(index), &mut bytes));
        u64::from_ne_bytes(bytes)
    }

    fn set_entry(&self, index: u32, value: u64) {
        assert!(self.0.write_at(Kernel::at(index), &value.to_ne_bytes()));
    }
}

/// Memory of a ring whose indices begin at `index`.
fn memory(index: u32) -> (std::fs::File, Kernel) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let kernel = Kernel(Mapping::from_fd(file.as_fd(), 0, 4096, true).unwrap());
    kernel.set_word(OFFSETS.producer, index);
    kernel.set_word(OFFSETS.consumer, index);
    (file, kernel)
}

#[derive(Clone, Debug)]
enum Step {
    /// We write and publish as many entries as there is room for, up to this.
    Ours(u32),
    /// The kernel does its part, up to this many.
    Kernels(u32),
    /// The kernel's index says something that cannot be.
    Insane(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..LEN + 3).prop_map(Step::Ours),
        4 => (0..LEN + 3).prop_map(Step::Kernels),
        1 => any::<u32>().prop_map(Step::Insane),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn what_is_produced_is_what_the_kernel_gets(start: u32, steps in steps()) {
        let (file, kernel) = memory(start);
        let mut ring = Producer::<u64>::map(file.as_fd(), 0, &OFFSETS, LEN).unwrap();
        let mut model = VecDeque::new();
        let mut next = 1;
        let mut taken = start;
        for step in steps {
            match step {
                Step::Ours(most) => {
                    let room = ring.room().unwrap();
                    prop_assert_eq!(room, LEN - model.len() as u32);
                    let count = most.min(room);
                    for ahead in 0..count {
                        ring.write(ahead, next);
                        model.push_back(next);
                        next += 1;
                    }
                    // What is not published, the kernel does not see.
                    let seen = kernel.word(OFFSETS.producer).wrapping_sub(taken) as usize;
                    prop_assert_eq!(seen, model.len() - count as usize);
                    ring.publish(count);
                }
                Step::Kernels(most) => {
                    let there = kernel.word(OFFSETS.producer).wrapping_sub(taken);
                    prop_assert_eq!(there, model.len() as u32);
                    for _ in 0..most.min(there) {
                        prop_assert_eq!(Some(kernel.entry(taken)), model.pop_front());
                        taken = taken.wrapping_add(1);
                    }
                    kernel.set_word(OFFSETS.consumer, taken);
                }
                Step::Insane(index) => {
                    kernel.set_word(OFFSETS.consumer, index);
                    let waiting = kernel.word(OFFSETS.producer).wrapping_sub(index);
                    let expected = if waiting > LEN {
                        Err(Insane { len: LEN, claimed: waiting })
                    } else {
                        Ok(waiting)
                    };
                    prop_assert_eq!(ring.waiting(), expected);
                    prop_assert_eq!(ring.room(), expected.map(|waiting| LEN - waiting));
                    kernel.set_word(OFFSETS.consumer, taken);
                }
            }
        }
    }

    #[test]
    fn what_the_kernel_put_is_what_is_consumed(start: u32, steps in steps()) {
        let (file, kernel) = memory(start);
        let mut ring = Consumer::<u64>::map(file.as_fd(), 0, &OFFSETS, LEN).unwrap();
        let mut model = VecDeque::new();
        let mut next = 1;
        let mut put = start;
        for step in steps {
            match step {
                Step::Ours(most) => {
                    let available = ring.available().unwrap();
                    prop_assert_eq!(available, model.len() as u32);
                    let count = most.min(available);
                    for ahead in 0..count {
                        prop_assert_eq!(Some(ring.read(ahead)), model.pop_front());
                    }
                    ring.release(count);
                    let left = put.wrapping_sub(kernel.word(OFFSETS.consumer));
                    prop_assert_eq!(left, model.len() as u32);
                }
                Step::Kernels(most) => {
                    for _ in 0..most.min(LEN - model.len() as u32) {
                        kernel.set_entry(put, next);
                        model.push_back(next);
                        next += 1;
                        put = put.wrapping_add(1);
                    }
                    kernel.set_word(OFFSETS.producer, put);
                }
                Step::Insane(index) => {
                    kernel.set_word(OFFSETS.producer, index);
                    let available = index.wrapping_sub(kernel.word(OFFSETS.consumer));
                    let expected = if available > LEN {
                        Err(Insane { len: LEN, claimed: available })
                    } else {
                        Ok(available)
                    };
                    prop_assert_eq!(ring.available(), expected);
                    kernel.set_word(OFFSETS.producer, put);
                }
            }
        }
    }
}

#[test]
fn our_own_index_is_not_read_again() {
    let (file, kernel) = memory(0);
    let mut ring = Producer::<u64>::map(file.as_fd(), 0, &OFFSETS, LEN).unwrap();
    ring.write(0, 7);
    ring.publish(1);
    kernel.set_word(OFFSETS.producer, 1000);
    assert_eq!(ring.waiting(), Ok(1));
    ring.write(0, 8);
    ring.publish(1);
    assert_eq!((kernel.word(OFFSETS.producer), kernel.entry(1)), (2, 8));
}

#[test]
fn the_kernel_says_when_it_wants_to_be_told() {
    let (file, kernel) = memory(0);
    let ring = Producer::<u64>::map(file.as_fd(), 0, &OFFSETS, LEN).unwrap();
    assert!(!ring.needs_wakeup());
    kernel.set_word(128, 1);
    assert!(ring.needs_wakeup());
    kernel.set_word(128, 2);
    assert!(!ring.needs_wakeup());
}

#[test]
fn a_layout_that_cannot_be_is_refused() {
    let (file, _kernel) = memory(0);
    let map = |offsets: XdpRingOffset, len| {
        Producer::<u64>::map(file.as_fd(), 0, &offsets, len).unwrap_err()
    };
    let with = |change: &dyn Fn(&mut XdpRingOffset)| {
        let mut offsets = XdpRingOffset { flags: Some(128), ..OFFSETS };
        change(&mut offsets);
        offsets
    };
    assert_eq!(map(with(&|o| o.producer = 1), LEN), Errno::PROTO);
    assert_eq!(map(with(&|o| o.consumer = 1 << 40), LEN), Errno::PROTO);
    assert_eq!(map(with(&|o| o.desc = 4), LEN), Errno::PROTO);
    assert_eq!(map(with(&|o| o.desc = u64::MAX - 7), LEN), Errno::OVERFLOW);
    assert_eq!(map(with(&|o| o.flags = None), LEN), Errno::NOSYS, "a kernel before 5.4");
    assert_eq!(map(with(&|_| ()), 6), Errno::PROTO);
}
