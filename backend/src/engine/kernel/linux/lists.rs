//! Lists of flows, threaded through a table that is allocated once. A flow is in a list
//! of each kind at most once, and finding out, adding and removing take the same time
//! whatever the length. Which kinds there are is the engine's business.

use std::marker::PhantomData;

/// No flow, buffer or other index.
pub(super) const NIL: u32 = u32::MAX;
/// In place of the next: in no list.
const OUT: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

/// One list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub(super) const EMPTY: List = List { head: NIL, tail: NIL };

    /// The first.
    pub(super) fn head(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == NIL
    }
}

/// The links of all flows, which are in lists of `N` kinds, named by `K`.
#[derive(Debug)]
pub(super) struct Lists<K, const N: usize> {
    links: Box<[[Link; N]]>,
    kinds: PhantomData<K>,
}

impl<K: Copy + Into<usize>, const N: usize> Lists<K, N> {
    pub(super) fn new(count: u32) -> Lists<K, N> {
        let links = vec![[Link { prev: NIL, next: OUT }; N]; count as usize].into();
        Lists { links, kinds: PhantomData }
    }

    fn link(&mut self, kind: K, index: u32) -> &mut Link {
        &mut self.links[index as usize][kind.into()]
    }

    /// Whether the flow is in a list of the kind.
    pub(super) fn linked(&self, kind: K, index: u32) -> bool {
        self.links[index as usize][kind.into()].next != OUT
    }

    /// Appends the flow, unless it is in a list of the kind already.
    pub(super) fn push_back(&mut self, list: &mut List, kind: K, index: u32) {
        if self.linked(kind, index) {
            return;
        }
        *self.link(kind, index) = Link { prev: list.tail, next: NIL };
        match list.tail {
            NIL => list.head = index,
            tail => self.link(kind, tail).next = index,
        }
        list.tail = index;
    }

    /// Takes the flow out of the list, if it is in it.
    pub(super) fn remove(&mut self, list: &mut List, kind: K, index: u32) {
        if !self.linked(kind, index) {
            return;
        }
        let Link { prev, next } = *self.link(kind, index);
        match prev {
            NIL => list.head = next,
            prev => self.link(kind, prev).next = next,
        }
        match next {
            NIL => list.tail = prev,
            next => self.link(kind, next).prev = prev,
        }
        *self.link(kind, index) = Link { prev: NIL, next: OUT };
    }

    /// Takes the first out of the list.
    pub(super) fn pop_front(&mut self, list: &mut List, kind: K) -> Option<u32> {
        let index = list.head()?;
        self.remove(list, kind, index);
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The same as a deque, whatever is done.
        #[test]
        fn lists_keep_their_order(steps in prop::collection::vec((0..3u8, 0..8u32), 0..200)) {
            let (mut lists, mut list) = (Lists::<usize, 2>::new(8), List::EMPTY);
            let mut model = VecDeque::new();
            for (step, index) in steps {
                match step {
                    0 => {
                        lists.push_back(&mut list, 0, index);
                        if !model.contains(&index) {
                            model.push_back(index);
                        }
                    }
                    1 => {
                        lists.remove(&mut list, 0, index);
                        model.retain(|&other| other != index);
                    }
                    _ => {
                        let popped = lists.pop_front(&mut list, 0);
                        prop_assert_eq!(popped, model.pop_front());
                    }
                }
                prop_assert_eq!(list.head(), model.front().copied());
                prop_assert_eq!(list.is_empty(), model.is_empty());
                for index in 0..8 {
                    let linked = lists.linked(0, index);
                    prop_assert_eq!(linked, model.contains(&index));
                    prop_assert!(!lists.linked(1, index));
                }
            }
        }
    }
}
