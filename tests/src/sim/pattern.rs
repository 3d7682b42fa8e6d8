//! Streams of bytes that nobody has to keep: what a sender sends and a receiver
//! expects, each byte a function of a key and its place.

/// SplitMix64's output function: every bit of key and place matters.
fn word(key: u64, number: u64) -> [u8; 8] {
    let mut z = key ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Byte `at` of the stream with this key.
pub fn pattern(key: u64, at: u64) -> u8 {
    word(key, at / 8)[(at % 8) as usize]
}

/// Writes the stream from `at` on.
pub fn fill(key: u64, mut at: u64, mut out: &mut [u8]) {
    while !out.is_empty() {
        let skip = (at % 8) as usize;
        let len = (8 - skip).min(out.len());
        let (now, rest) = out.split_at_mut(len);
        now.copy_from_slice(&word(key, at / 8)[skip..skip + len]);
        at += len as u64;
        out = rest;
    }
}

/// The place of the first byte that is not the stream's from `at` on.
pub fn difference(key: u64, mut at: u64, mut bytes: &[u8]) -> Option<u64> {
    while !bytes.is_empty() {
        let skip = (at % 8) as usize;
        let len = (8 - skip).min(bytes.len());
        let (now, rest) = bytes.split_at(len);
        let expected = word(key, at / 8);
        if now != &expected[skip..skip + len] {
            let wrong = now.iter().zip(&expected[skip..]).position(|(a, b)| a != b)?;
            return Some(at + wrong as u64);
        }
        at += len as u64;
        bytes = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_in_pieces_and_a_wrong_byte_is_found() {
        let mut whole = [0; 100];
        fill(7, 3, &mut whole);
        assert!((3..).zip(whole).all(|(at, byte)| byte == pattern(7, at)));
        assert_eq!(difference(7, 3, &whole), None);
        assert_eq!(difference(7, 13, &whole[10..]), None);
        whole[50] ^= 1;
        assert_eq!(difference(7, 3, &whole), Some(53));
    }
}
