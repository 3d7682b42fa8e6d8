//! Changing the tree: pages on the way from the root are copied to free ones,
//! in ordinary memory until the commit.

use crate::index::page::{Link, Node, PAGE_LEN};
use crate::index::{Index, IndexError};
use crate::medium::Medium;

/// A page with less in it is joined with a neighbour, if there is room.
const SPARSE: usize = PAGE_LEN / 4;
/// Pages that only removals may take.
const RESERVE: usize = 16;

/// What became of a child.
struct Edited {
    page: u32,
    /// The upper half of it, and its first key.
    split: Option<(Box<[u8]>, u32)>,
}

/// A link whose CRC follows with the commit.
fn unsealed(page: u32) -> [u8; 8] {
    Link { page, crc: 0 }.encode()
}

impl Index {
    /// Whether a change can be made: a path of pages, and as many splits.
    pub(super) fn room(&self, insert: bool) -> Result<(), IndexError> {
        if let Some(page) = self.broken {
            return Err(IndexError::Damaged { page });
        }
        let path = self.depth as usize + 1;
        let needed = if insert { 2 * path + 1 + RESERVE } else { 2 * path };
        if self.free.len() < needed {
            return Err(IndexError::Full { free: self.free.len(), needed });
        }
        Ok(())
    }

    fn alloc(&mut self, node: Node) -> u32 {
        let page = self.free.pop().expect("room was made sure of");
        self.dirty.insert(page, node);
        page
    }

    /// A copy of the page that may be changed.
    fn own(&mut self, medium: &(impl Medium + ?Sized), page: u32) -> Result<u32, IndexError> {
        if self.dirty.contains_key(&page) {
            return Ok(page);
        }
        let node = self.with(medium, page, Node::decode)?;
        self.shadowed.push(page);
        Ok(self.alloc(node))
    }

    fn node(&mut self, page: u32) -> &mut Node {
        self.dirty.get_mut(&page).expect("a page that was owned")
    }

    fn child_of(&self, page: u32, at: usize) -> Result<u32, IndexError> {
        let link = self.dirty.get(&page).and_then(|node| node.link(at));
        link.map(|link| link.page).ok_or(IndexError::Damaged { page })
    }

    /// Inserts below the root and returns the value that was there.
    pub(super) fn put(
        &mut self,
        medium: &(impl Medium + ?Sized),
        key: &[u8],
        value: &[u8],
    ) -> Result<Option<Box<[u8]>>, IndexError> {
        let Some(root) = self.root else {
            let node = Node::new(true, vec![(key.into(), value.into())]);
            self.root = Some(Link { page: self.alloc(node), crc: 0 });
            self.depth = 1;
            return Ok(None);
        };
        let mut old = None;
        let edited = self.put_below(medium, root.page, key, value, &mut old)?;
        let mut page = edited.page;
        if let Some((first, upper)) = edited.split {
            let none: Box<[u8]> = Box::default();
            let children = vec![(none, unsealed(page).into()), (first, unsealed(upper).into())];
            page = self.alloc(Node::new(false, children));
            self.depth += 1;
        }
        self.root = Some(Link { page, crc: 0 });
        Ok(old)
    }

    fn put_below(
        &mut self,
        medium: &(impl Medium + ?Sized),
        page: u32,
        key: &[u8],
        value: &[u8],
        old: &mut Option<Box<[u8]>>,
    ) -> Result<Edited, IndexError> {
        let page = self.own(medium, page)?;
        let node = self.node(page);
        if node.leaf {
            match node.entries.binary_search_by(|(found, _)| (**found).cmp(key)) {
                Ok(at) => *old = Some(node.replace(at, value)),
                Err(at) => node.insert(at, key, value),
            }
        } else {
            let at = node.child(key);
            let child = self.child_of(page, at)?;
            let edited = self.put_below(medium, child, key, value, old)?;
            let node = self.node(page);
            node.replace(at, &unsealed(edited.page));
            if let Some((first, upper)) = edited.split {
                node.insert(at + 1, &first, &unsealed(upper));
            }
        }
        let node = self.node(page);
        if node.len() <= PAGE_LEN {
            return Ok(Edited { page, split: None });
        }
        let upper = node.split();
        let first = upper.entries[0].0.clone();
        Ok(Edited { page, split: Some((first, self.alloc(upper))) })
    }

    /// Removes a key that is known to be there.
    pub(super) fn take(
        &mut self,
        medium: &(impl Medium + ?Sized),
        key: &[u8],
    ) -> Result<(), IndexError> {
        let Some(root) = self.root else { return Ok(()) };
        let mut page = self.take_below(medium, root.page, key)?;
        // A root with one child is none.
        while let Some(node) = self.dirty.get(&page)
            && !node.leaf
            && node.entries.len() == 1
        {
            let child = self.child_of(page, 0)?;
            self.forget(page);
            self.depth -= 1;
            page = child;
            if !self.dirty.contains_key(&page) {
                break;
            }
        }
        let empty = self.dirty.get(&page).is_some_and(|node| node.entries.is_empty());
        if empty {
            self.forget(page);
            self.depth = 0;
            self.root = None;
        } else {
            let crc = match self.dirty.contains_key(&page) {
                true => 0,
                false => self.crc_of(medium, page)?,
            };
            self.root = Some(Link { page, crc });
        }
        Ok(())
    }

    /// Gives up a page that was taken since the last commit.
    fn forget(&mut self, page: u32) {
        self.dirty.remove(&page);
        self.free.push(page);
    }

    fn take_below(
        &mut self,
        medium: &(impl Medium + ?Sized),
        page: u32,
        key: &[u8],
    ) -> Result<u32, IndexError> {
        let page = self.own(medium, page)?;
        let node = self.node(page);
        if node.leaf {
            if let Ok(at) = node.entries.binary_search_by(|(found, _)| (**found).cmp(key)) {
                node.remove(at);
            }
            return Ok(page);
        }
        let at = node.child(key);
        let child = self.child_of(page, at)?;
        let child = self.take_below(medium, child, key)?;
        self.node(page).replace(at, &unsealed(child));
        let (len, entries) = {
            let node = self.node(child);
            (node.len(), node.entries.len())
        };
        if entries == 0 {
            self.forget(child);
            self.node(page).remove(at);
        } else if len < SPARSE {
            self.join(medium, page, at)?;
        }
        Ok(page)
    }

    /// Joins the child at `at` with a neighbour, if they fit into one page.
    fn join(
        &mut self,
        medium: &(impl Medium + ?Sized),
        page: u32,
        at: usize,
    ) -> Result<(), IndexError> {
        let count = self.node(page).entries.len();
        for lower in [at.checked_sub(1), (at + 1 < count).then_some(at)].into_iter().flatten() {
            let (left, right) = (self.child_of(page, lower)?, self.child_of(page, lower + 1)?);
            let separator = self.node(page).entries[lower + 1].0.clone();
            let len = self.len_of(medium, left)? + self.len_of(medium, right)? + separator.len();
            if len > PAGE_LEN {
                continue;
            }
            let (left, right) = (self.own(medium, left)?, self.own(medium, right)?);
            let mut upper = self.node(right).clone();
            self.forget(right);
            if !upper.leaf {
                // Its first key says something from now on.
                let (_, value) = upper.remove(0);
                upper.insert(0, &separator, &value);
            }
            self.node(left).append(upper);
            let node = self.node(page);
            node.replace(lower, &unsealed(left));
            node.remove(lower + 1);
            return Ok(());
        }
        Ok(())
    }

    fn len_of(&self, medium: &(impl Medium + ?Sized), page: u32) -> Result<usize, IndexError> {
        match self.dirty.get(&page) {
            Some(node) => Ok(node.len()),
            None => self.with(medium, page, |view| view.len()),
        }
    }

    /// Writes the changed pages below `page`, children first, and returns its link.
    pub(super) fn write(
        &mut self,
        medium: &mut (impl Medium + ?Sized),
        link: Link,
        out: &mut Vec<u8>,
    ) -> Link {
        let Some(mut node) = self.dirty.remove(&link.page) else { return link };
        if !node.leaf {
            for at in 0..node.entries.len() {
                let child = node.link(at).expect("a branch has links");
                node.replace(at, &self.write(medium, child, out).encode());
            }
        }
        let crc = node.encode(self.generation, out);
        let at = self.at(link.page);
        medium.store(at, out);
        medium.flush(at, out.len() as u64);
        Link { page: link.page, crc }
    }
}
