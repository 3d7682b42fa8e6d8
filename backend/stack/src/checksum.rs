//! The Internet checksum (RFC 1071), as ones' complement arithmetic on 16-bit
//! sums. A *sum* is folded and not complemented; a *checksum* is complemented.

use crate::wire::ip::Octets;

/// Folds a wide sum to 16 bits.
#[inline]
pub(crate) const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of `data`, its bytes paired from the start; an odd last byte is
/// padded with zero. `data` is at most 64 KiB.
///
/// Words are added in the machine's order of bytes, and the result is swapped once
/// (RFC 1071 section 2B). Two sums are kept, of whole 32-bit words and of their
/// upper halves, both wrapping; what the lower halves add up to follows from
/// them, as it is less than 2^30. Compilers make vectors of that, and of nothing
/// more elaborate.
#[inline]
pub fn sum(data: &[u8]) -> u16 {
    let (words, rest) = data.as_chunks::<4>();
    let (mut whole, mut upper) = (0u32, 0u32);
    for word in words {
        let word = u32::from_ne_bytes(*word);
        whole = whole.wrapping_add(word);
        upper = upper.wrapping_add(word >> 16);
    }
    let lower = whole.wrapping_sub(upper << 16);
    let last = match *rest {
        [] => 0,
        [a] => u16::from_ne_bytes([a, 0]).into(),
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, ..] => {
            u32::from(u16::from_ne_bytes([a, b])) + u32::from(u16::from_ne_bytes([c, 0]))
        }
    };
    fold(upper + lower + last).to_be()
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

/// The sum of an address. That of a mapped IPv4 address is that of its four
/// bytes: the 0xffff in front of them is a zero.
#[inline]
pub(crate) fn address(octets: &Octets) -> u16 {
    let words = u128::from_be_bytes(*octets);
    let (high, low) = ((words >> 64) as u64, words as u64);
    let sum = (high >> 32) + (high & 0xffff_ffff) + (low >> 32) + (low & 0xffff_ffff);
    // At most 34 bits.
    fold((sum >> 16 & 0xffff) as u32 + (sum & 0xffff) as u32 + (sum >> 32) as u32)
}

/// The sum of the pseudo-header of RFC 9293 section 3.1, or RFC 8200 section
/// 8.1, from the sums of its addresses.
#[inline]
pub(crate) const fn pseudo(addresses: u16, protocol: u8, len: usize) -> u16 {
    fold(addresses as u32 + protocol as u32 + len as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_example_of_rfc_1071_section_3() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    /// RFC 1071 section 1, word for word.
    fn plain(data: &[u8]) -> u16 {
        let mut total = 0u64;
        for pair in data.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn sums_as_the_plain_way_does_at_every_length() {
        let mut bytes = vec![0xffu8; 1 << 16];
        assert_eq!(sum(&bytes), plain(&bytes), "every lane at its largest");
        let mut state = 1u32;
        for byte in &mut bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        for len in (0..300).chain([1399, 1400, 1401, 1460, 8960, 65535, 65536]) {
            assert_eq!(sum(&bytes[..len]), plain(&bytes[..len]), "{len} bytes");
        }
    }

    #[test]
    fn pads_an_odd_byte() {
        assert_eq!(sum(&[0x12]), 0x1200);
    }

    #[test]
    fn an_address_has_the_sum_of_its_bytes() {
        for bytes in [[0xff; 16], [0; 16], core::array::from_fn(|i| 255 - 7 * i as u8)] {
            assert_eq!(address(&bytes), sum(&bytes));
        }
        let v4 = core::net::Ipv4Addr::new(10, 1, 254, 255);
        assert_eq!(address(&v4.to_ipv6_mapped().octets()), sum(&v4.octets()));
    }

    #[test]
    fn subtraction_undoes_addition_up_to_the_two_zeros() {
        for (a, b) in [(0x1234, 0xfedc), (0xffff, 1), (7, 0xffff)] {
            let back = sub(add(a, b), b);
            assert!(back == a || (back % 0xffff == a % 0xffff), "{a:x} {b:x} {back:x}");
        }
    }
}
