//! What the index looks like in memory, little endian.
//!
//! First a page with the root slots, 64 bytes each and a cache line of its own;
//! then the pages of the tree.
//!
//! | offset | size | root slot |
//! | --- | --- | --- |
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | [`VERSION`] |
//! | 12 | 4 | CRC-32C of the root page; zero for an empty tree |
//! | 16 | 8 | generation: how often the index was committed |
//! | 24 | 8 | the last generation that was known to be durable |
//! | 32 | 8 | number of entries |
//! | 40 | 4 | page of the root; zero for an empty tree |
//! | 44 | 4 | CRC-32C of all before |
//!
//! | offset | size | page |
//! | --- | --- | --- |
//! | 0 | 4 | CRC-32C of all after, up to the end of its entries |
//! | 4 | 2 | 1 for a leaf, 2 for a branch |
//! | 6 | 2 | number of entries |
//! | 8 | 8 | generation that it was written in |
//! | 16 | 4 | bytes in use, these 24 included |
//! | 20 | 4 | zero |
//! | 24 | | entries, sorted by key |
//!
//! An entry is the length of its key (2), of its value (2), the key, and the value:
//! in a leaf the pieces as in a record of the log, in a branch page (4) and
//! CRC (4) of a child, whose keys are not below the entry's; the key of a branch's
//! first entry says nothing. Page numbers count from the root slots', which is 0.

use crate::index::{KEY_MAX, PIECES_MAX};

/// The first eight bytes of a root slot.
pub(super) const MAGIC: [u8; 8] = *b"PASTEIDX";
/// The layout above.
pub(super) const VERSION: u32 = 1;
/// Bytes of a page.
pub(super) const PAGE_LEN: usize = 4096;
/// Root slots, used in turn.
pub(super) const ROOTS: u64 = 4;
/// Bytes from one to the next.
pub(super) const ROOT_STEP: u64 = 64;
/// Bytes of a root slot.
pub(super) const ROOT_LEN: usize = 48;
/// Bytes of a page before its entries.
pub(super) const HEAD_LEN: usize = 24;
/// Bytes of an entry besides key and value.
const ENTRY_LEN: usize = 4;
/// Bytes of a piece.
pub(super) const PIECE_LEN: usize = 12;

const LEAF: u16 = 1;
const BRANCH: u16 = 2;

// Any split leaves two pages that have room for one entry more.
const _: () = assert!(4 * (ENTRY_LEN + KEY_MAX + PIECES_MAX * PIECE_LEN) <= PAGE_LEN - HEAD_LEN);

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A page of the tree, by its number, and what must be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Link {
    pub(super) page: u32,
    pub(super) crc: u32,
}

impl Link {
    pub(super) fn decode(value: &[u8]) -> Option<Link> {
        (value.len() == 8).then(|| Link { page: u32_at(value, 0), crc: u32_at(value, 4) })
    }

    pub(super) fn encode(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.page.to_le_bytes());
        bytes[4..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }
}

/// A root slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) generation: u64,
    pub(super) durable: u64,
    pub(super) entries: u64,
    /// `None` for an empty tree.
    pub(super) link: Option<Link>,
}

impl Root {
    pub(super) fn encode(&self) -> [u8; ROOT_LEN] {
        let link = self.link.unwrap_or_default();
        let mut bytes = [0; ROOT_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&link.crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.entries.to_le_bytes());
        bytes[40..44].copy_from_slice(&link.page.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The root in these bytes, or the version that they have instead.
    pub(super) fn decode(bytes: &[u8; ROOT_LEN]) -> Option<Result<Root, u32>> {
        if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..44]) != u32_at(bytes, 44) {
            return None;
        }
        if u32_at(bytes, 8) != VERSION {
            return Some(Err(u32_at(bytes, 8)));
        }
        let link = Link { page: u32_at(bytes, 40), crc: u32_at(bytes, 12) };
        let root = Root {
            generation: u64_at(bytes, 16),
            durable: u64_at(bytes, 24),
            entries: u64_at(bytes, 32),
            link: (link.page != 0).then_some(link),
        };
        (root.generation < 1 << 62).then_some(Ok(root))
    }
}

/// The bytes of a page that was judged: a walk over its entries ends in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// Judges a page, its CRC included.
    pub(super) fn check(bytes: &'a [u8; PAGE_LEN], link: Link) -> Option<View<'a>> {
        let view = View::new(bytes)?;
        let crc = crc32c::crc32c(&view.bytes[4..]);
        let sound = crc == link.crc && crc == u32_at(bytes, 0);
        let mut entries = view.entries();
        let mut last = None;
        for _ in 0..view.count() {
            let (key, value) = entries.next()?;
            let fits = if view.is_leaf() {
                value.len().is_multiple_of(PIECE_LEN)
            } else {
                Link::decode(value).is_some()
            };
            if !fits || last.is_some_and(|last| last >= key) {
                return None;
            }
            // A branch's first key says nothing.
            last = (view.is_leaf() || last.is_some()).then_some(key).or(Some(&[]));
        }
        (sound && entries.rest.is_empty() && view.count() > 0).then_some(view)
    }

    /// A page that was checked when the index was opened, or written since.
    pub(super) fn new(bytes: &'a [u8; PAGE_LEN]) -> Option<View<'a>> {
        let used = u32_at(bytes, 16) as usize;
        let sane =
            (HEAD_LEN..=PAGE_LEN).contains(&used) && matches!(u16_at(bytes, 4), LEAF | BRANCH);
        sane.then(|| View { bytes: &bytes[..used] })
    }

    pub(super) fn is_leaf(self) -> bool {
        u16_at(self.bytes, 4) == LEAF
    }

    pub(super) fn generation(self) -> u64 {
        u64_at(self.bytes, 8)
    }

    pub(super) fn len(self) -> usize {
        self.bytes.len()
    }

    pub(super) fn count(self) -> usize {
        u16_at(self.bytes, 6).into()
    }

    pub(super) fn entries(self) -> Entries<'a> {
        Entries { rest: &self.bytes[HEAD_LEN..] }
    }

    /// The child that has the keys around `key`.
    pub(super) fn child(self, key: &[u8]) -> Option<Link> {
        let mut entries = self.entries();
        let (_, mut value) = entries.next()?;
        for (first, next) in entries {
            if first > key {
                break;
            }
            value = next;
        }
        Link::decode(value)
    }

    pub(super) fn value(self, key: &[u8]) -> Option<&'a [u8]> {
        self.entries()
            .find(|(found, _)| *found >= key)
            .and_then(|(found, value)| (found == key).then_some(value))
    }
}

/// The entries of a page.
#[derive(Clone, Debug)]
pub(super) struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.len() < ENTRY_LEN {
            return None;
        }
        let (key, value) = (u16_at(self.rest, 0).into(), usize::from(u16_at(self.rest, 2)));
        let (key, rest) = self.rest[ENTRY_LEN..].split_at_checked(key)?;
        let (value, rest) = rest.split_at_checked(value)?;
        self.rest = rest;
        Some((key, value))
    }
}

/// A key and its value.
pub(super) type Entry = (Box<[u8]>, Box<[u8]>);

/// A page that is being changed.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) leaf: bool,
    pub(super) entries: Vec<Entry>,
    /// Bytes that it takes.
    len: usize,
}

fn entry_len(key: &[u8], value: &[u8]) -> usize {
    ENTRY_LEN + key.len() + value.len()
}

impl Node {
    pub(super) fn new(leaf: bool, entries: Vec<Entry>) -> Node {
        let len = HEAD_LEN + entries.iter().map(|(k, v)| entry_len(k, v)).sum::<usize>();
        Node { leaf, entries, len }
    }

    pub(super) fn decode(view: View<'_>) -> Node {
        let owned = |(key, value): (&[u8], &[u8])| (key.into(), value.into());
        Node::new(view.is_leaf(), view.entries().map(owned).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, at: usize, key: &[u8], value: &[u8]) {
        self.len += entry_len(key, value);
        self.entries.insert(at, (key.into(), value.into()));
    }

    pub(super) fn replace(&mut self, at: usize, value: &[u8]) -> Box<[u8]> {
        let old = std::mem::replace(&mut self.entries[at].1, value.into());
        self.len = self.len + value.len() - old.len();
        old
    }

    pub(super) fn remove(&mut self, at: usize) -> Entry {
        let (key, value) = self.entries.remove(at);
        self.len -= entry_len(&key, &value);
        (key, value)
    }

    /// The entry of a branch whose child has the keys around `key`.
    pub(super) fn child(&self, key: &[u8]) -> usize {
        self.entries.partition_point(|(first, _)| **first <= *key).saturating_sub(1)
    }

    pub(super) fn link(&self, at: usize) -> Option<Link> {
        Link::decode(&self.entries[at].1)
    }

    /// Moves the upper half, by bytes, into a node of its own.
    pub(super) fn split(&mut self) -> Node {
        let mut half = HEAD_LEN;
        let at = self.entries.iter().position(|(key, value)| {
            half += entry_len(key, value);
            half > self.len / 2
        });
        let at = at.unwrap_or(0).clamp(1, self.entries.len() - 1);
        let upper = Node::new(self.leaf, self.entries.split_off(at));
        self.len -= upper.len - HEAD_LEN;
        upper
    }

    pub(super) fn append(&mut self, mut upper: Node) {
        self.len += upper.len - HEAD_LEN;
        self.entries.append(&mut upper.entries);
    }

    /// Writes the page and returns the CRC that is to be in its link.
    pub(super) fn encode(&self, generation: u64, out: &mut Vec<u8>) -> u32 {
        out.clear();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(if self.leaf { LEAF } else { BRANCH }).to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u16).to_le_bytes());
        out.extend_from_slice(&generation.to_le_bytes());
        out.extend_from_slice(&(self.len as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for (key, value) in &self.entries {
            out.extend_from_slice(&(key.len() as u16).to_le_bytes());
            out.extend_from_slice(&(value.len() as u16).to_le_bytes());
            out.extend_from_slice(key);
            out.extend_from_slice(value);
        }
        debug_assert!(out.len() == self.len && self.len <= PAGE_LEN);
        let crc = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        crc
    }
}
