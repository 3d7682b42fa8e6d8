//! The identity of a region.

use std::fmt;
use std::str::FromStr;

/// A region's identity: 16 bytes, written as RFC 9562 section 4 writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

/// Text that is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID: want 32 hexadecimal digits, as in 5268e23e-971b-46f2-ad7e-9b7338e55ca9")]
pub struct UuidError;

impl Uuid {
    /// A version 4 UUID (RFC 9562 section 5.4) from 16 random bytes.
    pub const fn from_random(mut bytes: [u8; 16]) -> Uuid {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Uuid(bytes)
    }

    /// A new identity from the system's random source.
    ///
    /// # Errors
    /// Those of the system.
    pub fn random() -> std::io::Result<Uuid> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Uuid::from_random(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Uuid, UuidError> {
        let bytes = text.as_bytes();
        let dashed = bytes.len() == 36;
        if !dashed && bytes.len() != 32 {
            return Err(UuidError);
        }
        let mut digits = 0;
        let mut value = 0u128;
        for (i, &byte) in bytes.iter().enumerate() {
            if dashed && matches!(i, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return Err(UuidError);
                }
                continue;
            }
            let digit = char::from(byte).to_digit(16).ok_or(UuidError)?;
            value = value << 4 | u128::from(digit);
            digits += 1;
        }
        if digits != 32 {
            return Err(UuidError);
        }
        Ok(Uuid(value.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let text = "5268e23e-971b-46f2-ad7e-9b7338e55ca9";
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!(uuid.0[..4], [0x52, 0x68, 0xe2, 0x3e]);
        assert_eq!(uuid.to_string(), text);
        assert_eq!(text.replace('-', "").parse(), Ok(uuid));
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "5268e23e-971b-46f2-ad7e-9b7338e55ca",
            "5268e23e-971b-46f2-ad7e-9b7338e55cag",
            "5268e23e0971b-46f2-ad7e-9b7338e55ca9",
            "5268e23e-971b-46f2-ad7e-9b7338e5-ca9",
        ] {
            assert_eq!(text.parse::<Uuid>(), Err(UuidError), "{text}");
        }
    }

    #[test]
    fn random_bytes_carry_version_and_variant() {
        let uuid = Uuid::from_random([0xff; 16]);
        assert_eq!(uuid.to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_ne!(Uuid::random().unwrap(), Uuid::random().unwrap());
    }
}
