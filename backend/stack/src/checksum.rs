//! The Internet checksum (RFC 1071), as ones' complement arithmetic on 16-bit
//! sums. A *sum* is folded and not complemented; a *checksum* is complemented.

use core::net::Ipv4Addr;

/// Folds a wide sum to 16 bits.
#[inline]
pub(crate) const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of `data`, its bytes paired from the start; an odd last byte is
/// padded with zero. `data` is at most 64 KiB, so that a `u32` cannot overflow.
pub(crate) fn sum(data: &[u8]) -> u16 {
    let (pairs, rest) = data.as_chunks::<2>();
    let mut total: u32 = 0;
    for pair in pairs {
        total += u32::from(u16::from_be_bytes(*pair));
    }
    if let [last] = rest {
        total += u32::from(*last) << 8;
    }
    fold(total)
}

/// Ones' complement addition.
#[inline]
pub(crate) const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// Ones' complement subtraction: addition of the complement.
#[inline]
pub(crate) const fn sub(a: u16, b: u16) -> u16 {
    add(a, !b)
}

/// The sum of the pseudo-header of RFC 9293 section 3.1.
#[inline]
pub(crate) fn pseudo(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> u16 {
    let (s, d) = (src.to_bits(), dst.to_bits());
    fold((s >> 16) + (s & 0xffff) + (d >> 16) + (d & 0xffff) + u32::from(protocol) + u32::from(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_example_of_rfc_1071_section_3() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn pads_an_odd_byte() {
        assert_eq!(sum(&[0x12]), 0x1200);
    }

    #[test]
    fn subtraction_undoes_addition_up_to_the_two_zeros() {
        for (a, b) in [(0x1234, 0xfedc), (0xffff, 1), (7, 0xffff)] {
            let back = sub(add(a, b), b);
            assert!(back == a || (back % 0xffff == a % 0xffff), "{a:x} {b:x} {back:x}");
        }
    }
}
