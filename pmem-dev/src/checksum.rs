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

/// The sum of `bytes`, not complemented.
fn sum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks_exact(2);
    let last = pairs.remainder().first().map_or(0, |&byte| u64::from(byte) << 8);
    let mut total =
        pairs.map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>() + last;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
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
