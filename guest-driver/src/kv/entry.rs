//! Entries: what a page holds, byte for byte.
//!
//! A page is a buffer that holds runs, and a run is what one batch of writes
//! added to the page: 8 bytes that say up to which record of the log everything
//! was known to be durable when it was written, and then entries. The log has one
//! record for each run. All numbers are little endian, and entries begin at
//! multiples of 8.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | kind |
//! | 1 | 1 | 1: the next entry belongs to the same request, all or nothing |
//! | 2 | 2 | bytes of the key |
//! | 4 | 4 | bytes of the value |
//! | 8 | 8 | when the key ends, ms since the Unix epoch; 0 for never |
//! | 16 | 4 | CRC32C of what the extents name |
//! | 20 | 2 | bytes of the body after the key: the value, or extents |
//! | 22 | 2 | zero |
//! | 24 | | the key, then the body |

use super::extent::Extent;

/// Bytes at the beginning of a run.
pub(super) const RUN_HEAD: usize = 8;
/// Bytes of an entry before its key.
pub(super) const HEAD: usize = 24;
/// Entries begin at multiples of this.
pub(super) const ALIGN: usize = 8;

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The key has the value in the body.
    Packed = 1,
    /// The key has the value that the body's extents name, as a bulk string.
    Extents = 2,
    /// Likewise, and the body's extents name lists of extents.
    Lists = 3,
    /// The key is deleted.
    Deleted = 4,
    /// All keys are deleted.
    Cleared = 5,
    /// The records from `expires_ms` to before `expires_ms` + `value_len` never
    /// happened.
    Void = 6,
}

/// The fixed part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) more: bool,
    pub(super) key_len: u16,
    pub(super) value_len: u32,
    pub(super) expires_ms: u64,
    pub(super) checksum: u32,
    pub(super) body_len: u16,
}

impl Head {
    /// Bytes of the whole entry.
    pub(super) fn entry_len(&self) -> usize {
        (HEAD + usize::from(self.key_len) + usize::from(self.body_len)).next_multiple_of(ALIGN)
    }

    /// Where the body starts, from the entry's start.
    pub(super) fn body_at(&self) -> usize {
        HEAD + usize::from(self.key_len)
    }

    /// Extents in the body.
    pub(super) fn extents(&self) -> usize {
        match self.kind {
            Kind::Extents | Kind::Lists => usize::from(self.body_len) / Extent::STORED,
            _ => 0,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[0] = self.kind as u8;
        out[1] = self.more.into();
        out[2..4].copy_from_slice(&self.key_len.to_le_bytes());
        out[4..8].copy_from_slice(&self.value_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.expires_ms.to_le_bytes());
        out[16..20].copy_from_slice(&self.checksum.to_le_bytes());
        out[20..22].copy_from_slice(&self.body_len.to_le_bytes());
        out
    }

    /// Reads what [`Head::to_bytes`] wrote; `None` for anything else.
    pub(super) fn from_bytes(bytes: &[u8; HEAD]) -> Option<Head> {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let kind = match bytes[0] {
            1 => Kind::Packed,
            2 => Kind::Extents,
            3 => Kind::Lists,
            4 => Kind::Deleted,
            5 => Kind::Cleared,
            6 => Kind::Void,
            _ => return None,
        };
        let head = Head {
            kind,
            more: bytes[1] == 1,
            key_len: word(2),
            value_len: long(4),
            expires_ms: u64::from(long(8)) | u64::from(long(12)) << 32,
            checksum: long(16),
            body_len: word(20),
        };
        (head.to_bytes() == *bytes).then_some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_back_and_nothing_else_is() {
        for kind in [Kind::Packed, Kind::Extents, Kind::Lists, Kind::Deleted, Kind::Void] {
            let head = Head {
                kind,
                more: kind == Kind::Lists,
                key_len: 0x1234,
                value_len: 0x8765_4321,
                expires_ms: 0x1122_3344_5566_7788,
                checksum: 0xDEAD_BEEF,
                body_len: 0xFFF8,
            };
            let mut bytes = head.to_bytes();
            assert_eq!(Head::from_bytes(&bytes), Some(head));
            bytes[23] = 1;
            assert_eq!(Head::from_bytes(&bytes), None);
        }
        assert_eq!(Head::from_bytes(&[0; HEAD]), None);
        assert_eq!(Head::from_bytes(&[7; HEAD]), None);
    }
}
