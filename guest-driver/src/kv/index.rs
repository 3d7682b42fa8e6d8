//! The table of keys: where the entry of each lies. Volatile; recovery fills it
//! from the log.
//!
//! Chains in a table that doubles. Doubling splits each chain in two, so a scan
//! whose cursor counts with its bits reversed, as in Redis, meets every key that
//! is there from its beginning to its end, whatever the table does meanwhile.

/// No item.
const NONE: u32 = u32::MAX;
/// Chains of an empty table.
const CHAINS_MIN: usize = 1024;

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// The page.
    pub(super) buffer: u32,
    /// Where it starts in the page.
    pub(super) offset: u16,
}

/// What is known of a key without looking at its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The key's hash.
    pub(super) hash: u64,
    /// When the key ends, ms since the Unix epoch; 0 for never.
    pub(super) expires_ms: u64,
    /// Its entry.
    pub(super) spot: Spot,
}

#[derive(Debug)]
struct Node {
    item: Item,
    next: u32,
    used: bool,
}

/// The table.
#[derive(Debug)]
pub(super) struct Index {
    chains: Vec<u32>,
    nodes: Vec<Node>,
    free: u32,
    len: usize,
    /// Keys that end some time.
    mortal: usize,
}

impl Index {
    pub(super) fn new() -> Index {
        Index { chains: vec![NONE; CHAINS_MIN], nodes: Vec::new(), free: NONE, len: 0, mortal: 0 }
    }

    /// Keys in the table.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keys that end some time.
    pub(super) fn mortal(&self) -> usize {
        self.mortal
    }

    fn chain(&self, hash: u64) -> usize {
        hash as usize & (self.chains.len() - 1)
    }

    /// The item with this hash that `is_it`.
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(Spot) -> bool) -> Option<u32> {
        let mut at = self.chains[self.chain(hash)];
        while let Some(node) = self.nodes.get(at as usize) {
            if node.item.hash == hash && is_it(node.item.spot) {
                return Some(at);
            }
            at = node.next;
        }
        None
    }

    /// The item of this number.
    pub(super) fn item(&self, number: u32) -> Option<&Item> {
        self.nodes.get(number as usize).filter(|node| node.used).map(|node| &node.item)
    }

    /// Numbers that items have or had; those of items that left are free.
    pub(super) fn numbers(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// Changes where an item's entry lies and when it ends.
    pub(super) fn update(&mut self, number: u32, spot: Spot, expires_ms: u64) {
        if let Some(node) = self.nodes.get_mut(number as usize) {
            self.mortal -= usize::from(node.item.expires_ms != 0);
            self.mortal += usize::from(expires_ms != 0);
            node.item = Item { spot, expires_ms, ..node.item };
        }
    }

    /// Adds an item, whose key must not be in the table.
    pub(super) fn insert(&mut self, item: Item) {
        if self.len >= self.chains.len() {
            self.double();
        }
        let chain = self.chain(item.hash);
        let node = Node { item, next: self.chains[chain], used: true };
        let number = match self.nodes.get_mut(self.free as usize) {
            Some(free) => {
                let number = self.free;
                self.free = free.next;
                *free = node;
                number
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.chains[chain] = number;
        self.len += 1;
        self.mortal += usize::from(item.expires_ms != 0);
    }

    /// Removes an item.
    pub(super) fn remove(&mut self, number: u32) -> Option<Item> {
        let item = *self.item(number)?;
        let chain = self.chain(item.hash);
        let after = self.nodes[number as usize].next;
        if self.chains[chain] == number {
            self.chains[chain] = after;
        } else {
            let mut at = self.chains[chain];
            while self.nodes[at as usize].next != number {
                at = self.nodes[at as usize].next;
            }
            self.nodes[at as usize].next = after;
        }
        let node = &mut self.nodes[number as usize];
        node.used = false;
        node.next = self.free;
        self.free = number;
        self.len -= 1;
        self.mortal -= usize::from(item.expires_ms != 0);
        Some(item)
    }

    /// Forgets all keys.
    pub(super) fn clear(&mut self) {
        *self = Index::new();
    }

    fn double(&mut self) {
        let old = std::mem::take(&mut self.chains);
        self.chains = vec![NONE; old.len() * 2];
        for mut at in old {
            while at != NONE {
                let next = self.nodes[at as usize].next;
                let chain = self.chain(self.nodes[at as usize].item.hash);
                self.nodes[at as usize].next = self.chains[chain];
                self.chains[chain] = at;
                at = next;
            }
        }
    }

    /// Visits the chain at `cursor`, and returns the next cursor; 0 after the
    /// last.
    pub(super) fn scan(&self, cursor: u64, mut visit: impl FnMut(Spot, u64)) -> u64 {
        let mask = self.chains.len() as u64 - 1;
        let mut at = self.chains[(cursor & mask) as usize];
        while let Some(node) = self.nodes.get(at as usize) {
            visit(node.item.spot, node.item.expires_ms);
            at = node.next;
        }
        (cursor | !mask).reverse_bits().wrapping_add(1).reverse_bits()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Keys are their spots; hashes that meet often.
    fn item(key: u32) -> Item {
        let hash = u64::from(key % 97).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        let spot = Spot { buffer: key, offset: 0 };
        Item { hash, expires_ms: u64::from(key % 3), spot }
    }

    fn find(index: &Index, key: u32) -> Option<u32> {
        index.find(item(key).hash, |spot| spot.buffer == key)
    }

    fn scan_all(index: &Index) -> Vec<u32> {
        let (mut cursor, mut found) = (0, Vec::new());
        loop {
            cursor = index.scan(cursor, |spot, _| found.push(spot.buffer));
            if cursor == 0 {
                found.sort_unstable();
                return found;
            }
        }
    }

    proptest! {
        #[test]
        fn the_table_is_a_map(steps in prop::collection::vec((0u32..5000, any::<bool>()), 0..4000)) {
            let (mut index, mut model) = (Index::new(), HashMap::new());
            for (key, insert) in steps {
                match (find(&index, key), insert) {
                    (None, true) => {
                        prop_assert!(model.insert(key, item(key)).is_none());
                        index.insert(item(key));
                    }
                    (Some(number), false) => {
                        prop_assert_eq!(index.remove(number), model.remove(&key));
                        prop_assert_eq!(index.item(number), None);
                    }
                    (found, _) => prop_assert_eq!(found.is_some(), model.contains_key(&key)),
                }
                prop_assert_eq!(index.len(), model.len());
            }
            let mortal = model.values().filter(|item| item.expires_ms != 0).count();
            prop_assert_eq!(index.mortal(), mortal);
            let mut keys: Vec<u32> = model.into_keys().collect();
            keys.sort_unstable();
            prop_assert_eq!(scan_all(&index), keys);
        }
    }

    #[test]
    fn a_scan_meets_every_key_though_the_table_doubles() {
        let mut index = Index::new();
        let key = |key: u32| Item {
            hash: u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17),
            ..item(key)
        };
        (0..1000).for_each(|number| index.insert(key(number)));
        let (mut cursor, mut found, mut next) = (0, Vec::new(), 1000);
        loop {
            cursor = index.scan(cursor, |spot, _| found.push(spot.buffer));
            if cursor == 0 {
                break;
            }
            if next < 20_000 {
                (next..next + 50).for_each(|number| index.insert(key(number)));
                next += 50;
            }
        }
        assert!(next > 8 * CHAINS_MIN as u32, "it doubled");
        found.sort_unstable();
        found.dedup();
        assert!((0..1000).all(|number| found.binary_search(&number).is_ok()));
    }
}
