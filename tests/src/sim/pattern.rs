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

/// Bytes in a buffer that its guest keeps: what is said on many flows are pieces
/// of them, so that one buffer serves all.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// The key of the bytes.
    pub key: u64,
    /// How many there are.
    pub len: u64,
    /// The length of a piece.
    pub piece: u64,
}

/// What one end of a flow says.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Its key: of the bytes, or of where the pieces are from.
    pub key: u64,
    /// It is made of pieces of these.
    pub stored: Option<Stored>,
}

impl Stored {
    /// Where in the stored bytes byte `at` of the stream with `key` lies, and how
    /// many of its piece there are from there on.
    pub fn place(&self, key: u64, at: u64) -> (u64, u64) {
        let (number, inside) = (at / self.piece, at % self.piece);
        let start = u64::from_le_bytes(word(key, number)) % (self.len - self.piece + 1);
        (start + inside, self.piece - inside)
    }
}

impl Stream {
    /// The place of the first byte that is not the stream's from `at` on.
    pub fn difference(&self, mut at: u64, mut bytes: &[u8]) -> Option<u64> {
        let Some(stored) = self.stored else { return difference(self.key, at, bytes) };
        while !bytes.is_empty() {
            let (place, left) = stored.place(self.key, at);
            let (now, rest) = bytes.split_at(bytes.len().min(left as usize));
            if let Some(wrong) = difference(stored.key, place, now) {
                return Some(at + (wrong - place));
            }
            at += now.len() as u64;
            bytes = rest;
        }
        None
    }
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

    #[test]
    fn a_stream_of_pieces_is_made_of_what_is_stored() {
        let stored = Stored { key: 7, len: 100, piece: 30 };
        let stream = Stream { key: 3, stored: Some(stored) };
        let mut bytes: Vec<u8> =
            (0..200).map(|at| pattern(stored.key, stored.place(stream.key, at).0)).collect();
        assert!((0..200).all(|at| stored.place(stream.key, at).0 < stored.len));
        assert_eq!(stream.difference(0, &bytes), None);
        assert_eq!(stream.difference(50, &bytes[50..]), None);
        bytes[150] ^= 1;
        assert_eq!(stream.difference(50, &bytes[50..]), Some(150));
    }
}
