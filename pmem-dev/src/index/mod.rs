//! The index: a sorted map in the region, from keys to where their values lie.
//!
//! A B+tree whose pages are never changed in place. Changes gather in ordinary
//! memory; [`Index::commit`] writes the pages that changed, and those above them
//! up to the root, to free pages, and a root slot that names the new root. All of
//! it may become durable in any order: every link has the CRC of the page that it
//! names, so a root that became durable before its pages is recognised, and
//! the root before it counts. The pages of that one are not used again before the
//! new one was reached.
//!
//! # Index or log
//!
//! A [log](crate::wal) with a map in ordinary memory writes some 100 bytes for a
//! change and reads nothing, and must be read whole when the program starts; the
//! index writes pages, some 6000 bytes for a change that is committed alone and some
//! 800 for one of a thousand, needs no memory for its keys, and is there after
//! one walk over its pages. `examples/log_or_index` measures both. A store with many small writes and a map that fits in memory keeps a
//! log, as the key-value server does. The index is for keys that outgrow memory,
//! for range scans over them, and for changes that come in large batches.
//!
//! # What it needs of the application
//!
//! - A buffer is claimed in the epoch of the commit that names it, or before.
//! - It is given back only after the commit that no longer names it was reached.

mod edit;
mod open;
mod page;

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

pub use open::{Report, verify};

use crate::index::page::{Link, Node, PAGE_LEN, PIECE_LEN, ROOT_LEN, ROOT_STEP, ROOTS, Root, View};
use crate::layout::Part;
use crate::medium::{Medium, Ticket};
use crate::wal::{Piece, Place};

/// Bytes of the longest key.
pub const KEY_MAX: usize = 512;
/// Pieces of one value. A longer list lies in a buffer that the value names.
pub const PIECES_MAX: usize = 32;
/// Pages of the smallest index.
const PAGES_MIN: u64 = 32;
/// Commits that may be under way at once.
const COMMITS_MAX: usize = ROOTS as usize - 1;

/// Why an index cannot be read or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// No index was created here yet.
    #[error("no index was created in this region")]
    Absent,
    /// No root slot is sound.
    #[error("all root slots of the index are damaged, so its pages cannot be found")]
    Roots,
    /// An index of another version.
    #[error("the index has version {0}, this program knows version {known}", known = page::VERSION)]
    Version(u32),
    /// The part is too small.
    #[error("{len} bytes are too few for an index")]
    Small {
        /// Its length.
        len: u64,
    },
    /// A page that was promised is not what was written; 0 for the number of
    /// entries.
    #[error("page {page} of the index is damaged")]
    Damaged {
        /// The page.
        page: u32,
    },
    /// There are too few free pages.
    #[error(
        "the index is full: {needed} pages needed, {free} free; remove keys, or commit and wait"
    )]
    Full {
        /// Pages that are free.
        free: usize,
        /// Pages that the change may take.
        needed: usize,
    },
    /// A key that is too long, or empty.
    #[error("a key has 1 to {KEY_MAX} bytes, not {0}")]
    Key(usize),
    /// A value of too many pieces.
    #[error("a value has up to {PIECES_MAX} pieces, not {0}")]
    Pieces(usize),
    /// A piece that does not lie in a buffer.
    #[error("bytes {}+{} of buffer {} are not in the region", .0.offset, .0.len, .0.buf)]
    Piece(Piece),
}

/// What recovery found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Commits that were being written and are not whole: nobody was promised them.
    pub torn: u64,
}

/// The index of one region, open for reading and changing.
#[derive(Debug)]
pub struct Index {
    part: Part,
    place: Place,
    /// With a CRC of 0 while the root page is dirty.
    root: Option<Link>,
    /// A page that was found damaged in the middle of a change.
    broken: Option<u32>,
    depth: u32,
    entries: u64,
    /// Of the next commit.
    generation: u64,
    /// The last one that is durable.
    durable: u64,
    /// Changed since the last commit.
    dirty: HashMap<u32, Node>,
    free: Vec<u32>,
    /// Pages of the last commit that the next one does not need.
    shadowed: Vec<u32>,
    /// Commits under way, and the pages that each sets free.
    commits: VecDeque<(Ticket, u64, Vec<u32>)>,
    /// When everything is durable that the index was when it was opened.
    settled: Ticket,
    scratch: Vec<u8>,
}

/// What is called with keys and values, in order.
type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// The pieces in a value.
fn pieces(value: &[u8]) -> impl Iterator<Item = Piece> + '_ {
    value.chunks_exact(PIECE_LEN).map(|bytes| {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Piece {
            buf: u32::from(word(0)) | u32::from(word(2)) << 16,
            offset: word(4),
            len: word(6),
            csum: word(8),
        }
    })
}

impl Index {
    /// Makes a new, empty index, whatever was there before. It takes changes at
    /// once and a commit when it is durable itself.
    ///
    /// # Errors
    /// [`IndexError::Small`].
    pub fn create(
        medium: &mut (impl Medium + ?Sized),
        part: Part,
        place: Place,
    ) -> Result<Index, IndexError> {
        let pages = Index::pages(part)?;
        let old = open::roots(medium, part).unwrap_or_default();
        let generation = old.first().map_or(0, |root| root.generation) + 1;
        let mut index = Index {
            part,
            place,
            root: None,
            broken: None,
            depth: 0,
            entries: 0,
            generation: generation + 1,
            durable: generation,
            dirty: HashMap::new(),
            free: (1..pages).rev().collect(),
            shadowed: Vec::new(),
            commits: VecDeque::with_capacity(COMMITS_MAX),
            settled: Ticket::default(),
            scratch: Vec::with_capacity(PAGE_LEN),
        };
        index.wipe(medium, (0..ROOTS).filter(|&slot| slot != generation % ROOTS));
        let root = Root { generation, durable: generation - 1, entries: 0, link: None };
        index.store_root(medium, &root);
        index.settled = medium.seal();
        Ok(index)
    }

    /// Opens the index after a crash, or after an orderly end, which is the same.
    /// `claimed` is asked of buffers.
    ///
    /// # Errors
    /// [`IndexError`] where there is no index, or a page of it is damaged.
    pub fn recover(
        medium: &mut (impl Medium + ?Sized),
        part: Part,
        place: Place,
        claimed: impl Fn(u32) -> bool,
    ) -> Result<(Index, Recovery), IndexError> {
        let pages = Index::pages(part)?;
        let (tree, torn) = open::newest(medium, part, &place, &claimed)?;
        let roots = open::roots(medium, part)?;
        let generation = tree.root.generation;
        let mut index = Index {
            part,
            place,
            root: tree.root.link,
            broken: None,
            depth: tree.depth,
            entries: tree.entries,
            generation: generation + 1,
            // No commit is made before this is true.
            durable: generation,
            dirty: HashMap::new(),
            free: (1..pages).rev().filter(|page| !tree.pages.contains(page)).collect(),
            shadowed: Vec::new(),
            commits: VecDeque::with_capacity(COMMITS_MAX),
            settled: Ticket::default(),
            scratch: Vec::with_capacity(PAGE_LEN),
        };
        // Only this program may have crashed: what was found need not be durable.
        for (page, len) in tree.recent {
            medium.flush(index.at(page), len as u64);
        }
        for piece in tree.recent_pieces {
            if let Some(at) = place.locate(&piece) {
                medium.flush(at, piece.len.into());
            }
        }
        let slot = generation % ROOTS;
        medium.flush(part.offset + slot * ROOT_STEP, ROOT_LEN as u64);
        // Commits that are not whole must not seem so when their pages are used again.
        let torn_roots = roots.iter().filter(|root| root.generation > generation);
        index.wipe(medium, torn_roots.map(|root| root.generation % ROOTS));
        index.settled = medium.seal();
        Ok((index, Recovery { torn }))
    }

    fn pages(part: Part) -> Result<u32, IndexError> {
        let pages = part.len / PAGE_LEN as u64;
        match u32::try_from(pages) {
            Ok(count) if pages >= PAGES_MIN => Ok(count),
            _ => Err(IndexError::Small { len: part.len }),
        }
    }

    fn wipe(&self, medium: &mut (impl Medium + ?Sized), slots: impl Iterator<Item = u64>) {
        for slot in slots {
            let at = self.part.offset + slot * ROOT_STEP;
            medium.store(at, &[0; ROOT_LEN]);
            medium.flush(at, ROOT_LEN as u64);
        }
    }

    fn store_root(&self, medium: &mut (impl Medium + ?Sized), root: &Root) {
        let at = self.part.offset + root.generation % ROOTS * ROOT_STEP;
        medium.store(at, &root.encode());
        medium.flush(at, ROOT_LEN as u64);
    }

    fn at(&self, page: u32) -> u64 {
        self.part.offset + u64::from(page) * PAGE_LEN as u64
    }

    /// Reads a page that is not dirty.
    fn with<R>(
        &self,
        medium: &(impl Medium + ?Sized),
        page: u32,
        read: impl FnOnce(View<'_>) -> R,
    ) -> Result<R, IndexError> {
        let mut bytes = [0; PAGE_LEN];
        medium.load(self.at(page), &mut bytes);
        View::new(&bytes).map(read).ok_or(IndexError::Damaged { page })
    }

    fn crc_of(&self, medium: &(impl Medium + ?Sized), page: u32) -> Result<u32, IndexError> {
        let mut crc = [0; 4];
        medium.load(self.at(page), &mut crc);
        Ok(u32::from_le_bytes(crc))
    }

    /// Sets `key` to `value` and returns what it was before. Flushes the payload.
    ///
    /// # Errors
    /// [`IndexError`], and nothing has changed; after
    /// [`Damaged`](IndexError::Damaged) there are no changes and no commits any
    /// more.
    pub fn insert(
        &mut self,
        medium: &mut (impl Medium + ?Sized),
        key: &[u8],
        value: &[Piece],
    ) -> Result<Option<Vec<Piece>>, IndexError> {
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(IndexError::Key(key.len()));
        }
        if value.len() > PIECES_MAX {
            return Err(IndexError::Pieces(value.len()));
        }
        if let Some(piece) = value.iter().find(|piece| self.place.locate(piece).is_none()) {
            return Err(IndexError::Piece(*piece));
        }
        self.poll(medium);
        self.room(true)?;
        let mut bytes = Vec::with_capacity(value.len() * PIECE_LEN);
        for piece in value {
            bytes.extend_from_slice(&piece.buf.to_le_bytes());
            for word in [piece.offset, piece.len, piece.csum, 0] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            if let Some(at) = self.place.locate(piece) {
                medium.flush(at, piece.len.into());
            }
        }
        let old = self.put(medium, key, &bytes);
        let old = self.note_broken(old)?;
        self.entries += u64::from(old.is_none());
        Ok(old.map(|old| pieces(&old).collect()))
    }

    /// Removes `key` and returns what it was.
    ///
    /// # Errors
    /// As [`Index::insert`].
    pub fn remove(
        &mut self,
        medium: &(impl Medium + ?Sized),
        key: &[u8],
    ) -> Result<Option<Vec<Piece>>, IndexError> {
        self.poll(medium);
        let Some(old) = self.get(medium, key)? else { return Ok(None) };
        self.room(false)?;
        let taken = self.take(medium, key);
        self.note_broken(taken)?;
        self.entries -= 1;
        Ok(Some(old))
    }

    fn note_broken<T>(&mut self, done: Result<T, IndexError>) -> Result<T, IndexError> {
        if let Err(IndexError::Damaged { page }) = done {
            self.broken = Some(page);
        }
        done
    }

    /// Where the value of `key` lies.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn get(
        &self,
        medium: &(impl Medium + ?Sized),
        key: &[u8],
    ) -> Result<Option<Vec<Piece>>, IndexError> {
        let Some(mut link) = self.root else { return Ok(None) };
        loop {
            let page = link.page;
            let found = match self.dirty.get(&page) {
                Some(node) if node.leaf => {
                    let at = node.entries.binary_search_by(|(found, _)| (**found).cmp(key));
                    Err(at.ok().map(|at| pieces(&node.entries[at].1).collect()))
                }
                Some(node) => Ok(node.link(node.child(key))),
                None => self.with(medium, page, |view| match view.is_leaf() {
                    true => Err(view.value(key).map(|value| pieces(value).collect())),
                    false => Ok(view.child(key)),
                })?,
            };
            match found {
                Ok(child) => link = child.ok_or(IndexError::Damaged { page })?,
                Err(value) => return Ok(value),
            }
        }
    }

    /// Visits keys and values in order, from the first key that is not below
    /// `from`, until `visit` breaks.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn scan(
        &self,
        medium: &(impl Medium + ?Sized),
        from: &[u8],
        mut visit: impl FnMut(&[u8], &[Piece]) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        let Some(root) = self.root else { return Ok(()) };
        let mut value = Vec::new();
        self.scan_below(medium, root.page, from, &mut |key, bytes| {
            value.clear();
            value.extend(pieces(bytes));
            visit(key, &value)
        })
        .map(|_| ())
    }

    fn scan_below(
        &self,
        medium: &(impl Medium + ?Sized),
        page: u32,
        from: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, IndexError> {
        let mut bytes = [0; PAGE_LEN];
        let clean;
        let node = match self.dirty.get(&page) {
            Some(node) => node,
            None => {
                medium.load(self.at(page), &mut bytes);
                let view = View::new(&bytes).ok_or(IndexError::Damaged { page })?;
                clean = Node::decode(view);
                &clean
            }
        };
        if node.leaf {
            let first = node.entries.partition_point(|(key, _)| **key < *from);
            for (key, value) in &node.entries[first..] {
                if visit(key, value).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        if node.entries.is_empty() {
            return Err(IndexError::Damaged { page });
        }
        for at in node.child(from)..node.entries.len() {
            let child = node.link(at).ok_or(IndexError::Damaged { page })?;
            if self.scan_below(medium, child.page, from, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Writes what has changed and ends the epoch: it is durable when the ticket
    /// is reached. `None`, and nothing is written, while too many commits are
    /// under way; the changes go with a later one.
    pub fn commit(&mut self, medium: &mut (impl Medium + ?Sized)) -> Option<Ticket> {
        self.poll(medium);
        let busy = self.commits.len() == COMMITS_MAX || !medium.reached(self.settled);
        if busy || self.broken.is_some() {
            return None;
        }
        let mut out = std::mem::take(&mut self.scratch);
        self.root = self.root.map(|root| self.write(medium, root, &mut out));
        self.scratch = out;
        debug_assert!(self.dirty.is_empty());
        let root = Root {
            generation: self.generation,
            durable: self.durable,
            entries: self.entries,
            link: self.root,
        };
        self.store_root(medium, &root);
        let ticket = medium.seal();
        self.commits.push_back((ticket, self.generation, std::mem::take(&mut self.shadowed)));
        self.generation += 1;
        Some(ticket)
    }

    /// Takes note of what is durable by now.
    fn poll(&mut self, medium: &(impl Medium + ?Sized)) {
        while self.commits.front().is_some_and(|(ticket, ..)| medium.reached(*ticket)) {
            if let Some((_, generation, freed)) = self.commits.pop_front() {
                self.durable = generation;
                self.free.extend(freed);
            }
        }
    }

    /// Number of keys.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Levels of the tree.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Pages that can be taken now.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }
}
