//! Room in buckets that proxies share, so that limits hold though many write at once.
//!
//! A batch is judged by the state that this process has, and others make its bucket grow meanwhile. Those of this process
//! are known: what they add is set apart until it is in the state. Those of other processes are not. While a bucket is far
//! from its limits they do no harm, and nobody waits for anybody; close to one, batches that make it grow go one after the
//! other, here by their turns and beside other processes by a condition of the engine.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use arc_swap::ArcSwap;

use crate::store::backend::Change;
use crate::store::{BucketConfig, BucketId, Snapshot};

/// What part of a limit is close to it: more than others add in the moment in which a write is under way.
const CLOSE_PART: i128 = 8;
/// The least of that.
const CLOSE_KEYS_MIN: i128 = 1024;
const CLOSE_BYTES_MIN: i128 = 1 << 20;

/// How much more a bucket holds, or is to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Growth {
    keys: i128,
    bytes: i128,
}

/// How a batch changes what buckets hold.
#[derive(Default)]
pub(super) struct Growths(Vec<(BucketId, Growth)>);

impl Growths {
    pub(super) fn of(changes: &[Change]) -> Self {
        let mut growths: HashMap<BucketId, Growth, RandomState> = HashMap::default();
        for change in changes {
            let growth = growths.entry(change.id).or_default();
            if let Some(after) = &change.after {
                growth.keys += 1;
                growth.bytes += i128::from(after.bytes());
            }
            if let Some(before) = &change.before {
                growth.keys -= 1;
                growth.bytes -= i128::from(before.bytes());
            }
        }
        let changing = growths.into_iter();
        Self(
            changing
                .filter(|(_, it)| *it != Growth::default())
                .collect(),
        )
    }
}

/// What batches that are under way add to buckets.
#[derive(Default)]
pub(super) struct Room(Mutex<HashMap<BucketId, Growth, RandomState>>);

/// Room that is set apart for a batch; dropped, it is for others.
pub(super) struct Kept<'r> {
    room: &'r Room,
    kept: Vec<(BucketId, Growth)>,
    /// Buckets close to a limit that it makes grow.
    pub(super) growing: Vec<BucketId>,
    /// Buckets close to a limit that it makes shrink.
    pub(super) shrinking: Vec<BucketId>,
}

impl Room {
    fn under_way(&self) -> MutexGuard<'_, HashMap<BucketId, Growth, RandomState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets room apart; none if what is under way leaves too little.
    pub(super) fn keep(&self, newest: &ArcSwap<Snapshot>, growths: &Growths) -> Option<Kept<'_>> {
        let mut kept = Kept {
            room: self,
            kept: Vec::new(),
            growing: Vec::new(),
            shrinking: Vec::new(),
        };
        let mut under_way = self.under_way();
        // What is no longer under way is in this state.
        let snapshot = newest.load();
        for &(id, growth) in &growths.0 {
            let Some(bucket) = snapshot.bucket(id) else {
                continue;
            };
            let others = under_way.get(&id).copied().unwrap_or_default();
            let held = Growth {
                keys: i128::from(bucket.len()) + others.keys,
                bytes: i128::from(bucket.bytes()) + others.bytes,
            };
            match place(&bucket.config, held, growth) {
                Place::Far => {}
                Place::Close if growth.keys > 0 || growth.bytes > 0 => kept.growing.push(id),
                Place::Close => kept.shrinking.push(id),
                Place::None => return None,
            }
            // Nobody counts on room that is not there yet.
            let added = Growth {
                keys: growth.keys.max(0),
                bytes: growth.bytes.max(0),
            };
            if added != Growth::default() {
                kept.kept.push((id, added));
            }
        }
        for (id, added) in &kept.kept {
            let sum = under_way.entry(*id).or_default();
            sum.keys += added.keys;
            sum.bytes += added.bytes;
        }
        drop(under_way);
        Some(kept)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        let mut under_way = self.room.under_way();
        for (id, added) in &self.kept {
            let sum = under_way.entry(*id).or_default();
            sum.keys -= added.keys;
            sum.bytes -= added.bytes;
            if *sum == Growth::default() {
                under_way.remove(id);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Far from every limit.
    Far,
    Close,
    /// It is beyond one.
    None,
}

fn place(config: &BucketConfig, held: Growth, growth: Growth) -> Place {
    let mut place = Place::Far;
    for (held, growth, max, least) in [
        (held.keys, growth.keys, config.keys_max, CLOSE_KEYS_MIN),
        (held.bytes, growth.bytes, config.bytes_max, CLOSE_BYTES_MIN),
    ] {
        let (max, sum) = (i128::from(max), held + growth.max(0));
        if growth > 0 && sum > max {
            return Place::None;
        }
        if growth != 0 && sum + (max / CLOSE_PART).max(least) > max {
            place = Place::Close;
        }
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BackendKind, Store, ValueKind};
    use std::path::Path;

    const ID: BucketId = BucketId(0);

    fn held_by(keys_max: u64) -> ArcSwap<Snapshot> {
        let config = BucketConfig {
            keys_max,
            bytes_max: 100 << 20,
            ..BucketConfig::new("b", BackendKind::Memory, ValueKind::Bytes)
        };
        let store = Store::open(&[config], Path::new("")).expect("a store");
        ArcSwap::new(store.snapshot())
    }

    fn growths(keys: i128, bytes: i128) -> Growths {
        Growths(vec![(ID, Growth { keys, bytes })])
    }

    #[test]
    fn room_is_for_one_only_as_long_as_it_is_kept() {
        let (newest, room) = (held_by(10), Room::default());
        let first = room.keep(&newest, &growths(6, 60)).expect("there is room");
        assert_eq!(
            (&first.growing[..], &first.shrinking[..]),
            (&[ID][..], &[][..])
        );
        assert!(room.keep(&newest, &growths(5, 50)).is_none());
        // What is to go leaves no room before it is gone.
        let going = room
            .keep(&newest, &growths(-3, -30))
            .expect("it adds nothing");
        assert_eq!(
            (&going.growing[..], &going.shrinking[..]),
            (&[][..], &[ID][..])
        );
        assert!(room.keep(&newest, &growths(5, 50)).is_none());
        drop(first);
        assert!(room.keep(&newest, &growths(10, 50)).is_some());
        assert!(room.under_way().is_empty());
    }

    #[test]
    fn nobody_waits_far_from_a_limit() {
        let (newest, room) = (held_by(80_000), Room::default());
        let far = room
            .keep(&newest, &growths(60_000, 1))
            .expect("there is room");
        assert!(far.growing.is_empty());
        let close = room
            .keep(&newest, &growths(10_001, 1))
            .expect("there is room");
        assert_eq!(close.growing, [ID]);
        // One limit is enough.
        let close = room
            .keep(&newest, &growths(0, 90 << 20))
            .expect("there is room");
        assert_eq!(close.growing, [ID]);
    }
}
