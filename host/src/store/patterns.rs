//! The entries of a bucket whose keys stand for others: found by what is asked for, immutable once published.
//!
//! Prefixes and suffixes lie in a [`Table`] of their own, and are looked up in it by each length that one of them has,
//! the longest first: as many steps as the key asked for has bytes, at most, and none that waits for another. A change
//! of one copies what a change of the bucket's own table copies, and the counts of lengths. Regular expressions are
//! compiled into one set, anew when one comes or goes; their number is bounded for that.

use std::collections::BTreeSet;
use std::sync::Arc;

use regex::{RegexSet, RegexSetBuilder};

use super::bucket::KEY_BYTES_MAX;
use super::lookup::{LookupKind, LookupKinds, NAME_BYTES_MAX, Shape, pattern_of, regex_error};
use super::record::Record;
use super::table::Table;

/// Bound of all compiled patterns of a bucket, and of what a thread keeps to search with them, in bytes.
const REGEXES_BYTES_MAX: usize = 16 << 20;
const REGEXES_CACHE_BYTES_MAX: usize = 4 << 20;

/// The entries of a bucket whose keys are no exact ones.
#[derive(Clone)]
pub(super) struct Patterns {
    kinds: LookupKinds,
    /// All of them; the bucket's own table has them, too.
    table: Table,
    prefixes: Arc<Lengths>,
    suffixes: Arc<Lengths>,
    /// The keys of regular expressions, and those that are compiled: others until [`Patterns::settle`].
    keys: Arc<BTreeSet<Box<str>>>,
    regexes: Arc<Regexes>,
}

/// Regular expressions, compiled.
pub(super) struct Regexes {
    /// In byte order.
    keys: Arc<BTreeSet<Box<str>>>,
    /// The same, by place.
    places: Box<[Box<str>]>,
    set: RegexSet,
}

/// How many keys there are of each length.
#[derive(Clone)]
struct Lengths {
    counts: [u32; KEY_BYTES_MAX + 1],
    /// A bit for each length that is not 0 times there.
    bits: [u64; KEY_BYTES_MAX / 64 + 1],
}

impl Default for Lengths {
    fn default() -> Self {
        Self {
            counts: [0; KEY_BYTES_MAX + 1],
            bits: [0; KEY_BYTES_MAX / 64 + 1],
        }
    }
}

impl Lengths {
    fn add(&mut self, length: usize) {
        self.counts[length] += 1;
        self.bits[length / 64] |= 1 << (length % 64);
    }

    fn remove(&mut self, length: usize) {
        self.counts[length] -= 1;
        if self.counts[length] == 0 {
            self.bits[length / 64] &= !(1 << (length % 64));
        }
    }

    fn has(&self, length: usize) -> bool {
        self.bits[length / 64] & 1 << (length % 64) != 0
    }

    /// The greatest that is there, up to `at_most`.
    fn up_to(&self, at_most: usize) -> Option<usize> {
        let mut word = at_most / 64;
        let mut bits = self.bits[word] & (u64::MAX >> (63 - at_most % 64));
        loop {
            if bits != 0 {
                return Some(word * 64 + 63 - bits.leading_zeros() as usize);
            }
            word = word.checked_sub(1)?;
            bits = self.bits[word];
        }
    }
}

impl Regexes {
    /// # Errors
    /// Why they cannot be compiled together.
    fn compile(keys: &Arc<BTreeSet<Box<str>>>) -> Result<Self, String> {
        let set = RegexSetBuilder::new(keys.iter().map(|key| pattern_of(key)))
            .size_limit(REGEXES_BYTES_MAX)
            .dfa_size_limit(REGEXES_CACHE_BYTES_MAX)
            .build()
            .map_err(regex_error)?;
        Ok(Self {
            keys: Arc::clone(keys),
            places: keys.iter().cloned().collect(),
            set,
        })
    }

    /// The key of the first that is found in `asked`.
    fn find(&self, asked: &str) -> Option<&str> {
        let first = self.set.matches(asked).iter().next()?;
        self.places.get(first).map(|key| &**key)
    }
}

impl Patterns {
    /// None for a bucket of exact keys.
    pub(super) fn new(kinds: LookupKinds) -> Option<Self> {
        (!kinds.is_exact()).then(|| {
            let keys = Arc::default();
            Self {
                kinds,
                table: Table::unlisted(),
                prefixes: Arc::default(),
                suffixes: Arc::default(),
                regexes: Arc::new(Regexes::compile(&keys).expect("none of them is too large")),
                keys,
            }
        })
    }

    /// The entries of a bucket: faster than one by one.
    pub(super) fn load(kinds: LookupKinds, records: impl Iterator<Item = Record>) -> Option<Self> {
        let mut patterns = Self::new(kinds)?;
        let (prefixes, suffixes) = (
            Arc::make_mut(&mut patterns.prefixes),
            Arc::make_mut(&mut patterns.suffixes),
        );
        let keys = Arc::make_mut(&mut patterns.keys);
        patterns.table = patterns.table.load_like(records.filter(|record| {
            let key = record.key();
            let shape = kinds.shape(key);
            match shape {
                Shape::Prefix(_) => prefixes.add(key.len()),
                Shape::Suffix(_) => suffixes.add(key.len()),
                Shape::Regex(_) => drop(keys.insert(key.into())),
                Shape::Exact | Shape::Default => {}
            }
            shape != Shape::Exact
        }));
        Some(patterns)
    }

    /// What is found by `asked`, which is not in the bucket as an exact key.
    pub(super) fn find(&self, asked: &str) -> Option<(&Record, LookupKind)> {
        if self.table.len() == 0 {
            return None;
        }
        if let Some(record) = self.prefix(asked) {
            return Some((record, LookupKind::Prefix));
        }
        if let Some(record) = self.suffix(asked) {
            return Some((record, LookupKind::Suffix));
        }
        if !self.regexes.places.is_empty()
            && let Some(key) = self.regexes.find(asked)
            && let Some(record) = self.table.get(key)
        {
            return Some((record, LookupKind::Regex));
        }
        self.kinds
            .has(LookupKind::Default)
            .then(|| self.table.get("*"))?
            .map(|record| (record, LookupKind::Default))
    }

    /// Whether a key stands for others, so that it is found by nothing that is asked for.
    pub(super) fn is_pattern(&self, key: &str) -> bool {
        self.kinds.shape(key) != Shape::Exact
    }

    /// The longest prefix.
    fn prefix(&self, asked: &str) -> Option<&Record> {
        let mut longest = self.prefixes.up_to((asked.len() + 1).min(KEY_BYTES_MAX))?;
        // Each is the beginning of what is asked for, with a star.
        let mut key = [0; KEY_BYTES_MAX];
        key[..longest - 1].copy_from_slice(&asked.as_bytes()[..longest - 1]);
        loop {
            let end = longest - 1;
            if asked.is_char_boundary(end) {
                key[end] = b'*';
                let found = self.get(&key[..longest]);
                if found.is_some() {
                    return found;
                }
            }
            // What stood there is no part of a shorter one.
            longest = self.prefixes.up_to(end)?;
        }
    }

    /// The longest suffix, in which case counts as little as a port or a dot at the end.
    fn suffix(&self, asked: &str) -> Option<&Record> {
        self.suffixes.up_to(KEY_BYTES_MAX)?;
        let (name, port) = asked.rsplit_once(':').unwrap_or((asked, ""));
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
        let name = if is_port { name } else { asked };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        let mut key = [b'.'; NAME_BYTES_MAX + 1];
        let key = &mut key[..=name.len()];
        key[1..].copy_from_slice(name.as_bytes());
        key.make_ascii_lowercase();
        for at in 0..key.len() {
            // No label before the dot is no name of the domain.
            if key[at] != b'.' || at == 1 {
                continue;
            }
            if at > 0 && self.suffixes.has(key.len() - at + 1) {
                let before = std::mem::replace(&mut key[at - 1], b'*');
                let found = self.get(&key[at - 1..]);
                key[at - 1] = before;
                if found.is_some() {
                    return found;
                }
            }
            if self.suffixes.has(key.len() - at) {
                let found = self.get(&key[at..]);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    fn get(&self, key: &[u8]) -> Option<&Record> {
        self.table.get(std::str::from_utf8(key).ok()?)
    }

    /// Notes a record that came into the bucket's table in the place of what its key had.
    pub(super) fn insert(&mut self, record: &Record) {
        let key = record.key();
        let shape = self.kinds.shape(key);
        if shape == Shape::Exact {
            return;
        }
        let is_new = self.table.get(key).is_none();
        self.table.insert(record);
        if is_new {
            match shape {
                Shape::Prefix(_) => Arc::make_mut(&mut self.prefixes).add(key.len()),
                Shape::Suffix(_) => Arc::make_mut(&mut self.suffixes).add(key.len()),
                Shape::Regex(_) => drop(Arc::make_mut(&mut self.keys).insert(key.into())),
                Shape::Exact | Shape::Default => {}
            }
        }
    }

    /// Notes that a key went out of the bucket's table.
    pub(super) fn remove(&mut self, key: &str) {
        let shape = self.kinds.shape(key);
        if shape == Shape::Exact || self.table.get(key).is_none() {
            return;
        }
        self.table.remove(key);
        match shape {
            Shape::Prefix(_) => Arc::make_mut(&mut self.prefixes).remove(key.len()),
            Shape::Suffix(_) => Arc::make_mut(&mut self.suffixes).remove(key.len()),
            Shape::Regex(_) => drop(Arc::make_mut(&mut self.keys).remove(key)),
            Shape::Exact | Shape::Default => {}
        }
    }

    /// The patterns there will be after these keys came (true) and went; none if nothing comes or goes.
    ///
    /// # Errors
    /// If they are too many, or too large together.
    pub(super) fn compiled_after<'k>(
        &self,
        changes: impl Iterator<Item = (&'k str, bool)>,
        at_most: usize,
    ) -> Result<Option<Arc<Regexes>>, String> {
        let mut keys = Arc::clone(&self.keys);
        for (key, comes) in changes {
            if !matches!(self.kinds.shape(key), Shape::Regex(_)) || keys.contains(key) == comes {
                continue;
            }
            let keys = Arc::make_mut(&mut keys);
            match comes {
                true => keys.insert(key.into()),
                false => keys.remove(key),
            };
        }
        if Arc::ptr_eq(&keys, &self.keys) {
            return Ok(None);
        }
        if keys.len() > at_most && keys.len() > self.keys.len() {
            return Err(format!(
                "would hold {} regular expressions, regexes_max is {at_most}",
                keys.len()
            ));
        }
        let regexes = Regexes::compile(&keys)
            .map_err(|error| format!("its regular expressions together: {error}"))?;
        Ok(Some(Arc::new(regexes)))
    }

    /// Takes patterns that were compiled for the keys that are there next.
    pub(super) fn set_regexes(&mut self, regexes: Arc<Regexes>) {
        self.regexes = regexes;
    }

    /// Whether others are compiled than are there.
    pub(super) fn is_unsettled(&self) -> bool {
        !Arc::ptr_eq(&self.keys, &self.regexes.keys) && self.keys != self.regexes.keys
    }

    /// Has every pattern compiled that is there, after others wrote some: they know their bounds, not what there is of
    /// other writers. What is too large together is left out from the end, and said.
    pub(super) fn settle(&mut self, bucket: &str) {
        if self.keys == self.regexes.keys {
            return;
        }
        let mut keys = Arc::clone(&self.keys);
        loop {
            match Regexes::compile(&keys) {
                Ok(mut regexes) => {
                    // Compared with next time.
                    regexes.keys = Arc::clone(&self.keys);
                    self.regexes = Arc::new(regexes);
                    return;
                }
                Err(error) => {
                    let half = keys.len() / 2;
                    tracing::error!(
                        bucket,
                        error,
                        left_out = keys.len() - half,
                        "regular expressions of other writers cannot be compiled"
                    );
                    keys = Arc::new(keys.iter().take(half).cloned().collect());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
