//! The keys of a table in byte order: what a page of a listing is read from.
//!
//! Leaves of about a kilobyte, or two long keys, in branches, in one root; all are shared until they change, so that a new key copies its leaf,
//! its branch and the root. A leaf is one string of bytes in front coding: a key is what it shares with the one before it, as
//! a count, and the rest, since neighbours in order begin alike. Writing another value under a key touches nothing here.
//!
//! Leaves that get small are not joined, only taken out when they are empty: the least that one costs is what its key costs
//! the table.

use std::ops::Bound;
use std::sync::Arc;

/// A leaf beyond this is cut into equal parts.
const LEAF_BYTES_MAX: usize = 1024;
/// How full leaves of many keys are made, so that not each is cut by the next key.
const LEAF_BYTES_FULL: usize = LEAF_BYTES_MAX * 3 / 4;
/// A branch of more leaves than this is cut into equal parts.
const BRANCH_LEAVES_MAX: usize = 128;
const BRANCH_LEAVES_FULL: usize = BRANCH_LEAVES_MAX * 3 / 4;
/// Before the bytes of a key: how many it shares with the one before it, and how many follow, of which two bytes are the
/// count.
const HEAD_BYTES: usize = 3;

/// At least one key. The first of them is whole.
type Leaf = Arc<[u8]>;
/// At least one leaf.
type Branch = Arc<Vec<Leaf>>;

/// A persistent set of keys; a clone shares everything.
#[derive(Clone, Default)]
pub(super) struct Keys {
    root: Arc<Vec<Branch>>,
}

impl Keys {
    /// Puts keys in and takes others out. `changes` are in byte order, each with whether its key is there afterwards.
    pub(super) fn change(&mut self, mut changes: &[(&[u8], bool)]) {
        while let Some((first, _)) = changes.first() {
            let (branch, leaf) = self.place_of(first);
            let here = match self.first_after(branch, leaf) {
                Some(next) => changes.partition_point(|(key, _)| *key < next),
                None => changes.len(),
            };
            let (here, later) = changes.split_at(here);
            let root = Arc::make_mut(&mut self.root);
            change_leaf(root, (branch, leaf), here);
            changes = later;
        }
    }

    /// Where a key is, if it is anywhere: its branch and its leaf.
    fn place_of(&self, key: &[u8]) -> (usize, usize) {
        let last_from = |count: usize| count.saturating_sub(1);
        let branches = self.root.partition_point(|leaves| first(leaves) <= key);
        let branch = last_from(branches);
        let leaves = self.root.get(branch);
        let leaves = leaves.map_or(0, |it| it.partition_point(|leaf| first_of(leaf) <= key));
        (branch, last_from(leaves))
    }

    /// The first key of the leaf after this one.
    fn first_after(&self, branch: usize, leaf: usize) -> Option<&[u8]> {
        match self.root.get(branch)?.get(leaf + 1) {
            Some(next) => Some(first_of(next)),
            None => self.root.get(branch + 1).map(|leaves| first(leaves)),
        }
    }

    /// The keys from one on, in byte order.
    pub(super) fn walk(&self, from: Bound<&[u8]>) -> Walk<'_> {
        let (branch, leaf) = match from {
            Bound::Included(key) | Bound::Excluded(key) => self.place_of(key),
            Bound::Unbounded => (0, 0),
        };
        let mut walk = Walk {
            root: &self.root,
            next: (branch, leaf),
            rest: &[],
            key: Vec::new(),
            again: false,
        };
        let is_before = |key: &[u8]| match from {
            Bound::Included(from) => key < from,
            Bound::Excluded(from) => key <= from,
            Bound::Unbounded => false,
        };
        while let Some(key) = walk.next() {
            if !is_before(key) {
                walk.again = true;
                break;
            }
        }
        walk
    }
}

/// Keys on their way out.
pub(super) struct Walk<'k> {
    root: &'k [Branch],
    /// The place of the leaf after the one that is read.
    next: (usize, usize),
    /// What of the leaf is not read yet.
    rest: &'k [u8],
    /// The key that was read last: the next one may begin with what it begins with.
    key: Vec<u8>,
    /// Whether that one comes once more.
    again: bool,
}

impl Walk<'_> {
    /// The next key, until another one is asked for.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        if std::mem::take(&mut self.again) {
            return Some(&self.key);
        }
        while self.rest.is_empty() {
            let (branch, leaf) = self.next;
            match self.root.get(branch)?.get(leaf) {
                Some(found) => {
                    self.rest = found;
                    self.next = (branch, leaf + 1);
                }
                None => self.next = (branch + 1, 0),
            }
        }
        let (shared, suffix, rest) = read(self.rest);
        self.key.truncate(shared);
        self.key.extend_from_slice(suffix);
        self.rest = rest;
        Some(&self.key)
    }
}

/// Keys in byte order, on their way into leaves.
pub(super) struct Writer {
    leaves: Vec<Leaf>,
    leaf: Vec<u8>,
    /// The key that was written last.
    last: Vec<u8>,
    /// A leaf of so many bytes is full.
    full: usize,
}

impl Writer {
    /// Of many keys.
    pub(super) fn new() -> Self {
        Self::of_leaves(LEAF_BYTES_FULL)
    }

    fn of_leaves(full: usize) -> Self {
        Self {
            leaves: Vec::new(),
            leaf: Vec::with_capacity(LEAF_BYTES_MAX),
            last: Vec::new(),
            full,
        }
    }

    /// Whether a key is after all that were written.
    pub(super) fn takes(&self, key: &[u8]) -> bool {
        (self.leaf.is_empty() && self.leaves.is_empty()) || *key > *self.last
    }

    /// Writes a key that is after all others.
    pub(super) fn push(&mut self, key: &[u8]) {
        if self.leaf.len() >= self.full {
            self.end_leaf();
        }
        let shared = match self.leaf.is_empty() {
            true => 0,
            false => shared(&self.last, key),
        };
        let suffix = &key[shared..];
        debug_assert!(suffix.len() <= usize::from(u16::MAX));
        self.leaf.push(shared as u8);
        self.leaf.extend((suffix.len() as u16).to_le_bytes());
        self.leaf.extend_from_slice(suffix);
        self.last.truncate(shared);
        self.last.extend_from_slice(suffix);
    }

    fn end_leaf(&mut self) {
        if !self.leaf.is_empty() {
            self.leaves.push(self.leaf.as_slice().into());
            self.leaf.clear();
        }
    }

    fn into_leaves(mut self) -> Vec<Leaf> {
        self.end_leaf();
        self.leaves
    }

    /// All that were written.
    pub(super) fn finish(self) -> Keys {
        let branches = into_branches(self.into_leaves());
        Keys {
            root: Arc::new(branches.collect()),
        }
    }
}

/// Changes what is in one leaf, or that which has none yet.
fn change_leaf(root: &mut Vec<Branch>, (branch, leaf): (usize, usize), changes: &[(&[u8], bool)]) {
    let old = root
        .get(branch)
        .and_then(|leaves| leaves.get(leaf))
        .cloned();
    let old = old.unwrap_or_else(|| [].into());
    let (bytes, ends) = unpack(&old);
    let begins = std::iter::once(0).chain(ends.iter().copied());
    let stored = begins.zip(&ends).map(|(begin, end)| &bytes[begin..*end]);
    let leaves = pack(&merged(stored, changes));
    let Some(there) = root.get_mut(branch) else {
        root.extend(into_branches(leaves));
        return;
    };
    let there = Arc::make_mut(there);
    there.splice(leaf..=leaf, leaves);
    if there.is_empty() || there.len() > BRANCH_LEAVES_MAX {
        let parts = into_branches(std::mem::take(there));
        root.splice(branch..=branch, parts);
    }
}

/// Keys that are there after the changes.
fn merged<'k>(
    stored: impl Iterator<Item = &'k [u8]>,
    changes: &[(&'k [u8], bool)],
) -> Vec<&'k [u8]> {
    let mut stored = stored.peekable();
    let mut merged = Vec::with_capacity(stored.size_hint().0 + changes.len());
    for &(key, is_there) in changes {
        while let Some(before) = stored.next_if(|stored| *stored < key) {
            merged.push(before);
        }
        stored.next_if_eq(&key);
        if is_there {
            merged.push(key);
        }
    }
    merged.extend(stored);
    merged
}

/// The keys of a leaf one after the other, and where each of them ends.
fn unpack(mut leaf: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes: Vec<u8> = Vec::with_capacity(4 * leaf.len());
    let mut ends = Vec::new();
    let mut last = 0;
    while !leaf.is_empty() {
        let (shared, suffix, rest) = read(leaf);
        let begin = bytes.len();
        bytes.extend_from_within(last..last + shared);
        bytes.extend_from_slice(suffix);
        ends.push(bytes.len());
        (last, leaf) = (begin, rest);
    }
    (bytes, ends)
}

/// Leaves of about the same size with all these keys: one, if they fit.
fn pack(keys: &[&[u8]]) -> Vec<Leaf> {
    let pairs = keys.windows(2).map(|pair| (pair[0], pair[1]));
    let rest: usize = pairs
        .map(|(before, key)| HEAD_BYTES + key.len() - shared(before, key))
        .sum();
    let bytes = rest + keys.first().map_or(0, |key| HEAD_BYTES + key.len());
    let leaves = match bytes {
        0..=LEAF_BYTES_MAX => 1,
        _ => bytes.div_ceil(LEAF_BYTES_FULL),
    };
    let mut writer = Writer::of_leaves(bytes.div_ceil(leaves).max(1));
    keys.iter().for_each(|key| writer.push(key));
    writer.into_leaves()
}

/// Branches of about the same size with all these leaves.
fn into_branches(leaves: Vec<Leaf>) -> impl Iterator<Item = Branch> {
    let branches = leaves.len().div_ceil(BRANCH_LEAVES_FULL).max(1);
    let each = leaves.len().div_ceil(branches);
    let mut rest = leaves.into_iter();
    std::iter::from_fn(move || {
        let branch: Vec<Leaf> = rest.by_ref().take(each).collect();
        (!branch.is_empty()).then(|| Arc::new(branch))
    })
}

/// How many bytes of a key are written as a count.
fn shared(before: &[u8], key: &[u8]) -> usize {
    let same = before.iter().zip(key).take(usize::from(u8::MAX));
    same.take_while(|(one, other)| one == other).count()
}

/// The count and the bytes of the first key that is left of a leaf, and what comes after it.
fn read(leaf: &[u8]) -> (usize, &[u8], &[u8]) {
    let (head, rest) = leaf.split_at(HEAD_BYTES);
    let len = u16::from_le_bytes([head[1], head[2]]);
    let (suffix, rest) = rest.split_at(usize::from(len));
    (usize::from(head[0]), suffix, rest)
}

fn first(leaves: &[Leaf]) -> &[u8] {
    leaves.first().map_or(&[], |leaf| first_of(leaf))
}

fn first_of(leaf: &[u8]) -> &[u8] {
    read(leaf).1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that are read, and how many leaves and branches there are.
    fn all(keys: &Keys) -> (Vec<Vec<u8>>, usize, usize) {
        let mut walk = keys.walk(Bound::Unbounded);
        let all = std::iter::from_fn(|| walk.next().map(<[u8]>::to_vec));
        let leaves = keys.root.iter().map(|branch| branch.len()).sum();
        (all.collect(), leaves, keys.root.len())
    }

    fn assert_bounded(keys: &Keys) {
        for branch in keys.root.iter() {
            assert!((1..=BRANCH_LEAVES_MAX).contains(&branch.len()));
            for leaf in branch.iter() {
                let (_, ends) = unpack(leaf);
                assert!(!ends.is_empty());
                assert!(leaf.len() <= LEAF_BYTES_MAX || ends.len() == 1);
            }
        }
    }

    #[test]
    fn leaves_and_branches_are_cut_when_they_grow_and_go_when_they_are_empty() {
        let key = |number: u32| format!("{:08x}-agent", number.wrapping_mul(0x9e37_79b1));
        let mut expected: Vec<Vec<u8>> = (0..20_000).map(|it| key(it).into_bytes()).collect();
        let mut keys = Keys::default();
        for key in &expected {
            keys.change(&[(key, true)]);
        }
        let one_by_one = keys.clone();
        assert_bounded(&keys);
        let put_in = expected.clone();
        expected.sort();
        let (found, leaves, branches) = all(&keys);
        assert_eq!(found, expected);
        assert!(leaves > 2 * BRANCH_LEAVES_MAX && branches > 2, "{leaves}");
        for key in &put_in {
            keys.change(&[(key, false)]);
            assert_bounded(&keys);
        }
        assert_eq!(all(&keys), (Vec::new(), 0, 0));
        assert_eq!(all(&one_by_one).0, expected);
    }

    #[test]
    fn many_changes_at_once_are_as_those_one_by_one() {
        let texts: Vec<String> = (0..30_000).map(|it| format!("{it:05}{it}")).collect();
        let (mut once, mut each) = (Keys::default(), Keys::default());
        let rounds: [&dyn Fn(usize) -> Option<bool>; 4] = [
            &|nth| (nth % 3 == 0).then_some(true),
            &|nth| (nth % 2 == 0).then_some(nth % 4 == 0),
            &|nth| (nth > 1_000 && nth < 29_000).then_some(false),
            &|nth| (nth % 7 != 0).then_some(true),
        ];
        for round in rounds {
            let changes = texts.iter().enumerate();
            let changes = changes.filter_map(|(nth, key)| Some((key.as_bytes(), round(nth)?)));
            let changes: Vec<_> = changes.collect();
            once.change(&changes);
            changes.iter().for_each(|change| each.change(&[*change]));
            assert_bounded(&once);
            assert_eq!(all(&once).0, all(&each).0);
        }
    }

    #[test]
    fn what_keys_share_is_counted_up_to_a_byte_and_may_end_within_a_character() {
        let long = "x".repeat(1_000);
        let texts = [
            "\u{e9}",
            "\u{ea}",
            &long[..255],
            &long[..256],
            &format!("{}y", &long[..256]),
            &long,
        ];
        let mut texts = texts.map(str::as_bytes);
        texts.sort_unstable();
        let mut writer = Writer::new();
        for key in texts {
            assert!(writer.takes(key));
            writer.push(key);
            assert!(!writer.takes(key));
        }
        assert_eq!(all(&writer.finish()).0, texts);
    }
}
