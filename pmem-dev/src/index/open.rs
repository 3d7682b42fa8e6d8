//! Finding the tree again: the newest root of which every page is there.

use std::collections::HashSet;

use crate::index::page::{Link, PAGE_LEN, ROOT_LEN, ROOT_STEP, ROOTS, Root, View};
use crate::index::{IndexError, pieces};
use crate::layout::Part;
use crate::medium::Medium;
use crate::wal::{Piece, Place};

/// Levels of the deepest tree: with two children in every branch, there are not
/// pages enough for more.
const DEPTH_MAX: u32 = 32;

/// A tree of which every page was read.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: Root,
    pub(super) depth: u32,
    pub(super) pages: HashSet<u32>,
    pub(super) entries: u64,
    /// Pages, and how many bytes of each, that need not be durable.
    pub(super) recent: Vec<(u32, usize)>,
    /// Of their entries.
    pub(super) recent_pieces: Vec<Piece>,
}

/// The root slots as they are.
pub(super) fn roots(medium: &(impl Medium + ?Sized), part: Part) -> Result<Vec<Root>, IndexError> {
    let mut roots = Vec::new();
    let mut blank = true;
    let mut version = None;
    for slot in 0..ROOTS {
        let mut bytes = [0; ROOT_LEN];
        medium.load(part.offset + slot * ROOT_STEP, &mut bytes);
        blank &= bytes.iter().all(|&byte| byte == 0);
        match Root::decode(&bytes) {
            Some(Ok(root)) if root.generation % ROOTS == slot => roots.push(root),
            Some(Err(other)) => version = Some(other),
            _ => {}
        }
    }
    roots.sort_by_key(|root| std::cmp::Reverse(root.generation));
    match version {
        _ if !roots.is_empty() => Ok(roots),
        Some(version) => Err(IndexError::Version(version)),
        None if blank => Err(IndexError::Absent),
        None => Err(IndexError::Roots),
    }
}

/// Reads the tree below `root`, or names the page or piece that is not there.
pub(super) fn walk(
    medium: &(impl Medium + ?Sized),
    part: Part,
    root: &Root,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<Tree, u32> {
    let mut tree = Tree {
        root: *root,
        depth: 0,
        pages: HashSet::new(),
        entries: 0,
        recent: Vec::new(),
        recent_pieces: Vec::new(),
    };
    if let Some(link) = root.link {
        below(medium, part, link, 1, &mut tree, &mut visit)?;
    }
    if tree.entries != root.entries {
        return Err(0);
    }
    Ok(tree)
}

fn below(
    medium: &(impl Medium + ?Sized),
    part: Part,
    link: Link,
    depth: u32,
    tree: &mut Tree,
    visit: &mut impl FnMut(&[u8], &[u8]),
) -> Result<(), u32> {
    let inside = (1..part.len / PAGE_LEN as u64).contains(&link.page.into());
    if !inside || depth > DEPTH_MAX || !tree.pages.insert(link.page) {
        return Err(link.page);
    }
    let mut bytes = [0; PAGE_LEN];
    medium.load(part.offset + u64::from(link.page) * PAGE_LEN as u64, &mut bytes);
    let view = View::check(&bytes, link).ok_or(link.page)?;
    let recent = view.generation() > tree.root.durable;
    if recent {
        tree.recent.push((link.page, view.len()));
    }
    tree.depth = tree.depth.max(depth);
    for (key, value) in view.entries() {
        if view.is_leaf() {
            tree.entries += 1;
            if recent {
                tree.recent_pieces.extend(pieces(value));
            }
            visit(key, value);
        } else {
            let child = Link::decode(value).ok_or(link.page)?;
            below(medium, part, child, depth + 1, tree, visit)?;
        }
    }
    Ok(())
}

/// The newest tree that is whole. A commit that nobody was promised may lack
/// pages or payload; then the one before it counts.
pub(super) fn newest(
    medium: &(impl Medium + ?Sized),
    part: Part,
    place: &Place,
    claimed: &impl Fn(u32) -> bool,
) -> Result<(Tree, u64), IndexError> {
    let roots = roots(medium, part)?;
    // A root that a later one calls durable was promised.
    let durable = roots.iter().map(|root| root.durable).max().unwrap_or(0);
    let mut missing = None;
    let mut damaged = None;
    for (torn, root) in (0..).zip(&roots) {
        match walk(medium, part, root, |_, _| ()) {
            Ok(tree) => {
                let whole = |piece: &Piece| claimed(piece.buf) && place.holds(medium, piece);
                // What is damaged of a promised one is for `verify` to say.
                if root.generation <= durable || tree.recent_pieces.iter().all(whole) {
                    return Ok((tree, torn));
                }
                damaged.get_or_insert((tree, torn));
            }
            Err(page) => {
                missing.get_or_insert(page);
            }
        }
        if root.generation <= durable {
            // Nothing older is whole: its pages are used again.
            break;
        }
    }
    damaged.ok_or(IndexError::Damaged { page: missing.unwrap_or(0) })
}

/// What an index holds, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Entries.
    pub entries: u64,
    /// Levels of the tree.
    pub depth: u32,
    /// Pages in use.
    pub used: u64,
    /// Pages there are.
    pub capacity: u64,
    /// How often it was committed.
    pub generation: u64,
    /// Commits that were being written and are not whole.
    pub torn: u64,
    /// Payload that entries name, in bytes.
    pub payload: u64,
    /// How many pieces of it are damaged, or in a buffer that is not claimed.
    pub damaged: u64,
    /// The first thousand of them.
    pub damaged_pieces: Vec<Piece>,
}

/// Reads an index and everything that it names, and changes nothing. `claimed`
/// is asked of buffers.
///
/// # Errors
/// [`IndexError`] where there is no index to read.
pub fn verify(
    medium: &(impl Medium + ?Sized),
    part: Part,
    place: &Place,
    claimed: impl Fn(u32) -> bool,
) -> Result<Report, IndexError> {
    let (tree, torn) = newest(medium, part, place, &claimed)?;
    let mut report = Report {
        entries: tree.entries,
        depth: tree.depth,
        used: tree.pages.len() as u64,
        capacity: (part.len / PAGE_LEN as u64).saturating_sub(1),
        generation: tree.root.generation,
        torn,
        payload: 0,
        damaged: 0,
        damaged_pieces: Vec::new(),
    };
    let again = walk(medium, part, &tree.root, |_, value| {
        for piece in pieces(value) {
            report.payload += u64::from(piece.len);
            if !claimed(piece.buf) || !place.holds(medium, &piece) {
                report.damaged += 1;
                if report.damaged_pieces.len() < 1000 {
                    report.damaged_pieces.push(piece);
                }
            }
        }
    });
    again.map_err(|page| IndexError::Damaged { page })?;
    Ok(report)
}
