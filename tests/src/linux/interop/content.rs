//! Bytes that no two places of are alike: a file of them to serve or to upload,
//! and a judge of what arrived.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The name of the file in its directory.
pub const FILE: &str = "content.bin";

const KEY: u64 = 9;
const PIECE: usize = 64 * 1024;

/// A file of so many bytes.
#[derive(Debug)]
pub struct Content {
    dir: TempDir,
    len: u64,
    crc: u32,
}

impl Content {
    /// Writes the file.
    pub fn write(len: u64) -> io::Result<Content> {
        let dir = tempfile::tempdir()?;
        let mut file = BufWriter::new(File::create(dir.path().join(FILE))?);
        let mut piece = vec![0; PIECE];
        let (mut at, mut crc) = (0, 0);
        while at < len {
            let part = &mut piece[..PIECE.min((len - at) as usize)];
            fill(at, part);
            crc = crc32c::crc32c_append(crc, part);
            file.write_all(part)?;
            at += part.len() as u64;
        }
        file.flush()?;
        Ok(Content { dir, len, crc })
    }

    /// The directory that the file is alone in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(FILE)
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The field of a request that carries it (RFC 9530).
    pub fn digest_field(&self) -> String {
        format!("Content-Digest: {}", digest(self.crc))
    }

    /// Reads to the end and compares every byte. The error says where the first
    /// difference is.
    pub fn judge(&self, mut stream: impl Read) -> Result<(), String> {
        let (mut got, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
        let mut at = 0;
        loop {
            let len = stream.read(&mut got).map_err(|error| format!("at {at}: {error}"))?;
            if len == 0 {
                break;
            }
            fill(at, &mut expected[..len]);
            if got[..len] != expected[..len] {
                let pairs = got[..len].iter().zip(&expected[..len]);
                let first = pairs.take_while(|(got, expected)| got == expected).count();
                return Err(format!("byte {} differs", at + first as u64));
            }
            at += len as u64;
        }
        if at == self.len { Ok(()) } else { Err(format!("{at} of {} bytes", self.len)) }
    }
}

/// A CRC32C as a member of `Content-Digest` (RFC 9530 section 2).
pub fn digest(crc: u32) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(crc) << 4;
    let digits = (0..6).rev().map(|at| char::from(DIGITS[(bits >> (6 * at) & 63) as usize]));
    format!("crc32c=:{}==:", digits.collect::<String>())
}

/// The bytes from place `at` on.
fn fill(at: u64, out: &mut [u8]) {
    let mut at = at;
    let mut out = out;
    while !out.is_empty() {
        let word = word(at / 8);
        let from = (at % 8) as usize;
        let len = (8 - from).min(out.len());
        let (now, later) = out.split_at_mut(len);
        now.copy_from_slice(&word[from..from + len]);
        out = later;
        at += len as u64;
    }
}

/// SplitMix64's output function: every bit of the place matters.
fn word(at: u64) -> [u8; 8] {
    let mut z = KEY ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_right_and_anything_else_is_not() {
        let content = Content::write(200_003).expect("a file");
        let bytes = std::fs::read(content.path()).expect("the file");
        assert_eq!(content.judge(&bytes[..]), Ok(()));
        assert_eq!(content.judge(&bytes[..200_000]), Err("200000 of 200003 bytes".to_owned()));
        let mut moved = bytes.clone();
        moved.rotate_left(8);
        assert!(content.judge(&moved[..]).is_err_and(|error| error.ends_with("differs")));
        let mut flipped = bytes;
        flipped[100_001] ^= 4;
        assert_eq!(content.judge(&flipped[..]), Err("byte 100001 differs".to_owned()));
    }

    #[test]
    fn a_digest_is_written_as_the_standard_says() {
        // The check value of CRC32C, over "123456789".
        assert_eq!(digest(crc32c::crc32c(b"123456789")), "crc32c=:4waSgw==:");
    }
}
