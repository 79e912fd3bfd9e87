//! Keys of a bucket in byte order, as a call sees them: those of the state under what the instance wrote.

use super::HostState;
use crate::store::{BucketId, start_of};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Most keys of one answer.
pub(super) const KEYS_MAX: usize = 1_000;

impl HostState {
    /// At most `limit` keys with `prefix`, after `after`.
    pub(in crate::plugin) fn list(
        &self,
        bucket: BucketId,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<String> {
        let start = start_of(prefix, after);
        let stored = self.snapshot.bucket(bucket).into_iter();
        let stored = stored.flat_map(|bucket| bucket.range(prefix, after));
        let stored = stored.map(|(key, _)| (key, true));
        // What this call wrote goes before what earlier ones did.
        let earlier = self.unapplied.keys(bucket, start);
        let own = above(self.overlay.keys(bucket, start), earlier);
        above(own, stored)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, is_there)| *is_there)
            .take(limit.min(KEYS_MAX))
            .map(|(key, _)| key.to_owned())
            .collect()
    }
}

/// Keys of a tree from a start on.
pub(super) fn keys_from<'k, V>(
    keys: Option<&'k BTreeMap<Box<str>, V>>,
    start: Bound<&str>,
) -> impl Iterator<Item = (&'k str, &'k V)> + use<'k, V> {
    let keys = keys.map(|keys| keys.range::<str, _>((start, Bound::Unbounded)));
    let keys = keys.into_iter().flatten();
    keys.map(|(key, value)| (&**key, value))
}

/// Keys of two that are in byte order, in that order, each with whether it is there: what the upper one says of a key goes
/// before what the lower one does.
fn above<'k>(
    upper: impl Iterator<Item = (&'k str, bool)>,
    lower: impl Iterator<Item = (&'k str, bool)>,
) -> impl Iterator<Item = (&'k str, bool)> {
    let (mut upper, mut lower) = (upper.peekable(), lower.peekable());
    std::iter::from_fn(move || match upper.peek() {
        Some((key, _)) => match lower.next_if(|(other, _)| other < key) {
            Some(before) => Some(before),
            None => {
                lower.next_if(|(other, _)| other == key);
                upper.next()
            }
        },
        None => lower.next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_keys_go_before_the_lower_ones() {
        let keys = |upper: &[(&'static str, bool)], lower: &[(&'static str, bool)]| {
            above(upper.iter().copied(), lower.iter().copied()).collect::<Vec<_>>()
        };
        let (a, b, c) = (("a", true), ("b", true), ("c", true));
        let gone = ("b", false);
        assert_eq!(keys(&[], &[]), []);
        assert_eq!(keys(&[a, c], &[]), [a, c]);
        assert_eq!(keys(&[], &[a, c]), [a, c]);
        assert_eq!(keys(&[gone], &[a, b, c]), [a, gone, c]);
        assert_eq!(keys(&[a, b], &[gone]), [a, b]);
        assert_eq!(keys(&[b], &[a, c]), [a, b, c]);
        assert_eq!(keys(&[a, c], &[gone]), [a, gone, c]);
    }
}
