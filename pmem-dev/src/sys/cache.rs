//! Lines of the CPU's cache: written back to memory, for regions whose memory is
//! durable by itself, and fetched before they are needed. Only x86-64 has this here;
//! elsewhere no instruction is found, such a region is not offered as durable, and
//! nothing is fetched early.

/// How a line of the cache is written back. All do the same; the later ones of
/// the list cost more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instruction {
    /// `clwb`: the line may stay in the cache.
    Clwb,
    /// `clflushopt`: the line leaves the cache.
    ClFlushOpt,
    /// `clflush`: likewise, and one waits for the other.
    ClFlush,
}

/// Bytes from one write-back to the next. A CPU with longer lines writes some
/// of them twice; none has shorter ones.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _mm_sfence};

    use super::{Instruction, LINE};

    impl Instruction {
        /// The best one that this CPU has (Intel SDM volume 2, CPUID).
        pub fn detect() -> Option<Instruction> {
            let (leaf_max, features) = (__cpuid(0).eax, __cpuid(1).edx);
            let extended = if leaf_max >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
            if extended >> 24 & 1 == 1 {
                Some(Instruction::Clwb)
            } else if extended >> 23 & 1 == 1 {
                Some(Instruction::ClFlushOpt)
            } else {
                (features >> 19 & 1 == 1).then_some(Instruction::ClFlush)
            }
        }
    }

    /// Starts writing back the lines that `from..from + len` touches.
    ///
    /// # Safety
    /// The range is mapped, and `by` was detected on this CPU.
    pub(crate) unsafe fn write_back(by: Instruction, from: *const u8, len: usize) {
        if len == 0 {
            return;
        }
        let lead = from as usize % LINE;
        let mut line = from.wrapping_sub(lead);
        let end = from.wrapping_add(len);
        while line < end {
            // SAFETY: the line has a byte of the range, so it is mapped. Not
            // `nomem`: stores before it must stay before it.
            unsafe {
                match by {
                    Instruction::Clwb => asm!("clwb [{}]", in(reg) line, options(nostack)),
                    Instruction::ClFlushOpt => {
                        asm!("clflushopt [{}]", in(reg) line, options(nostack));
                    }
                    Instruction::ClFlush => asm!("clflush [{}]", in(reg) line, options(nostack)),
                }
            }
            line = line.wrapping_add(LINE);
        }
    }

    /// Says that the line at `at`, which may be anywhere, is about to be read, or with
    /// `write` written.
    #[inline]
    pub(crate) fn prefetch(at: *const u8, write: bool) {
        // SAFETY: neither instruction faults or changes anything but what is in the cache.
        // A CPU without `prefetchw` takes it for one that does nothing (Intel SDM volume 2).
        unsafe {
            if write {
                asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
            } else {
                asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
            }
        }
    }

    /// Returns when all write-backs that were started are done.
    pub(crate) fn fence() {
        // SAFETY: every x86-64 CPU has SSE2; the instruction has no operands.
        unsafe { _mm_sfence() };
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::Instruction;

    impl Instruction {
        /// None: this CPU is not an x86-64.
        pub fn detect() -> Option<Instruction> {
            None
        }
    }

    /// # Safety
    /// Nothing is done: no instruction was ever detected.
    pub(crate) unsafe fn write_back(_: Instruction, _: *const u8, _: usize) {}

    pub(crate) fn prefetch(_: *const u8, _: bool) {}

    pub(crate) fn fence() {}
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use other::{fence, prefetch, write_back};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{fence, prefetch, write_back};

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_back_is_unchanged() {
        let best = Instruction::detect().expect("every x86-64 has clflush");
        let all = [Instruction::Clwb, Instruction::ClFlushOpt, Instruction::ClFlush];
        let first = all.iter().position(|&one| one == best).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        for &by in &all[first..] {
            // A CPU that has one has those after it.
            for (from, len) in [(0, 0), (0, 1), (63, 2), (1, 255), (0, 256)] {
                // SAFETY: the range lies in `bytes`, and the CPU knows `by`.
                unsafe { write_back(by, bytes[from..].as_ptr(), len) };
                fence();
            }
        }
        assert!(bytes.iter().copied().eq(0..=255));
    }
}
