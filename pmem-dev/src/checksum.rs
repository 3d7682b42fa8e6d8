//! The Internet checksum (RFC 1071) as it comes with a slot: complemented, of
//! the payload alone, bytes paired from its first one, the first of a pair being
//! the high one.
//!
//! Zero has two forms in ones' complement arithmetic, so checksums are compared
//! with [`equal`].

/// Adds with end-around carry.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// Bytes that are summed at once at most.
const SUM_MAX: usize = 1 << 16;

/// The sum of `bytes`, folded to 16 bits and not complemented.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    if bytes.len() > SUM_MAX {
        return bytes.chunks(SUM_MAX).map(sum).fold(0, add);
    }
    #[allow(unsafe_code)]
    // SAFETY: a slice can be read.
    unsafe {
        sum_at(bytes.as_ptr(), bytes.len())
    }
}

/// Payload from which on wider registers are worth the question whether there
/// are any, bytes.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 256;

/// The sum of `len` bytes at `from`, at most [`SUM_MAX`]. Others may write to them
/// meanwhile: what comes of that is some number, which is all that a checksum of
/// moving bytes can be.
///
/// # Safety
/// The bytes must be mapped.
#[inline]
#[allow(unsafe_code)]
pub(crate) unsafe fn sum_at(from: *const u8, len: usize) -> u16 {
    #[cfg(target_arch = "x86_64")]
    if len >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: as the caller says, and the processor has what it needs.
        return unsafe { sum_avx2(from, len) };
    }
    // SAFETY: as the caller says.
    unsafe { sum_words(from, len) }
}

/// As [`sum_at`], in registers of 32 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
unsafe fn sum_avx2(from: *const u8, len: usize) -> u16 {
    // SAFETY: as the caller says.
    unsafe { sum_words(from, len) }
}

/// As [`sum_at`].
///
/// Words are added in the machine's order of bytes and swapped once at the end
/// (RFC 1071 section 2B). Two sums are kept, of whole 32-bit words and of their
/// upper halves, both wrapping; what the lower halves add up to follows from
/// them. Compilers make vectors of that, and of nothing more elaborate. Neither
/// the halves of 2^16 words nor what remains can overflow.
#[inline(always)]
#[allow(unsafe_code)]
unsafe fn sum_words(from: *const u8, len: usize) -> u16 {
    let (mut whole, mut upper) = (0u32, 0u32);
    let words = len / 4;
    let mut done = words * 4;
    let mut total = 0u64;
    // SAFETY: every read lies in `from..from + len`, and asks for no alignment.
    unsafe {
        for at in 0..words {
            let word = from.add(at * 4).cast::<u32>().read_unaligned();
            whole = whole.wrapping_add(word);
            upper = upper.wrapping_add(word >> 16);
        }
        if len - done >= 2 {
            total += u64::from(from.add(done).cast::<u16>().read_unaligned());
            done += 2;
        }
        if done < len {
            total += u64::from(u16::from_ne_bytes([from.add(done).read(), 0]));
        }
    }
    total += u64::from(upper) + u64::from(whole.wrapping_sub(upper << 16));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    (total as u16).to_be()
}

/// The checksum of `bytes`.
pub fn of(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The checksum of what `load` gives for `len` bytes, piece by piece.
pub(crate) fn of_loaded(len: usize, mut load: impl FnMut(usize, &mut [u8])) -> u16 {
    // Even, so that pairs are not cut.
    let mut piece = [0; 2048];
    let mut total = 0;
    let mut at = 0;
    while at < len {
        let now = &mut piece[..(len - at).min(2048)];
        load(at, now);
        total = add(total, sum(now));
        at += now.len();
    }
    !total
}

/// The checksum of the middle of a payload whose checksum is `whole`: without
/// the bytes `before` it and `after` it. `len` is the length of the middle. So a
/// value that lies between a request's head and its end is recorded without
/// being summed.
pub fn of_middle(whole: u16, before: &[u8], len: usize, after: &[u8]) -> u16 {
    let turned = |odd: bool, sum: u16| if odd { sum.swap_bytes() } else { sum };
    let rest = turned((before.len() + len) % 2 == 1, sum(after));
    let middle = add(add(!whole, !sum(before)), !rest);
    !turned(before.len() % 2 == 1, middle)
}

/// Whether two checksums say the same.
pub fn equal(a: u16, b: u16) -> bool {
    a == b || (a ^ b == 0xffff && (a == 0 || b == 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert!(equal(of(&[]), 0xffff) && equal(of(&[0xff, 0xff]), 0xffff));
        assert!(!equal(1, 2) && !equal(0x00ff, 0xff00) && !equal(0x1234, !0x1234));
    }

    /// RFC 1071 section 1, word for word.
    fn plain(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0, |sum, pair| {
            add(sum, u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
        })
    }

    #[test]
    fn sums_as_the_plain_way_does_at_every_length() {
        let mut bytes = vec![0xffu8; 200_000];
        assert_eq!(sum(&bytes), plain(&bytes), "every lane at its largest");
        let mut state = 1u32;
        for byte in &mut bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        for len in (0..600).chain([1399, 1400, 1401, 1460, 8960, 65535, 65536, 65537, 199_996]) {
            for from in 0..4 {
                let bytes = &bytes[from..][..len];
                assert_eq!(sum(bytes), plain(bytes), "{len} bytes from {from}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_middle_follows_from_the_whole(
            before in prop::collection::vec(any::<u8>(), 0..40),
            middle in prop::collection::vec(any::<u8>(), 0..40),
            after in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let whole = of(&[&before[..], &middle, &after].concat());
            prop_assert!(equal(of_middle(whole, &before, middle.len(), &after), of(&middle)));
        }

        #[test]
        fn pieces_sum_to_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            let loaded = of_loaded(bytes.len(), |at, out| {
                out.copy_from_slice(&bytes[at..at + out.len()]);
            });
            prop_assert!(equal(loaded, of(&bytes)));
        }
    }
}
