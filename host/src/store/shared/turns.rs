//! Turns of this process's writers that depend on the same keys.
//!
//! A writer takes none as long as nobody comes before it. Whoever met a conflict waits in line, and so does whoever comes
//! while somebody is in line; the first in line writes as soon as it has seen what came before. So of many writers of one
//! key each has its turn, however many they are.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use ahash::RandomState;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use super::{Condition, Transaction};
use crate::store::configure::MARKS;

/// Which line: a hash of its key and bucket. If ever two have the same, they wait for each other.
type Line = u64;

/// Lines that somebody is in.
#[derive(Default)]
pub(super) struct Turns {
    /// Held for as long as it takes to look some up.
    lines: std::sync::Mutex<HashMap<Line, Arc<Mutex<()>>, RandomState>>,
    hasher: RandomState,
}

/// Places in some lines; dropped, it is the turn of the next ones.
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    /// In order.
    lines: Vec<Line>,
    /// Those of them that it is first in.
    places: Vec<OwnedMutexGuard<()>>,
    /// Those that it is in.
    queues: Vec<Arc<Mutex<()>>>,
}

impl Turns {
    fn lines(&self) -> MutexGuard<'_, HashMap<Line, Arc<Mutex<()>>, RandomState>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of what a transaction depends on, and whether it does; if not, of what it writes. In one order for all.
    pub(super) fn lines_of(&self, transaction: &Transaction) -> (Vec<Line>, bool) {
        let line = |bucket: &str, key: &str| self.hasher.hash_one((bucket, key));
        let conditions = transaction.conditions.iter();
        // All batches of a plugin depend on its mark, which hardly ever changes.
        let conditions = conditions.filter(|it| it.bucket() != MARKS);
        let lines = conditions.map(|condition| match condition {
            Condition::At { bucket, key, .. } | Condition::Over { bucket, key, .. } => {
                line(bucket, key)
            }
            // No key is empty.
            _ => line(condition.bucket(), ""),
        });
        let mut lines: Vec<Line> = lines.collect();
        let depends = !lines.is_empty();
        if !depends {
            let writes = transaction.writes.iter();
            lines.extend(writes.map(|it| line(&it.bucket, &it.key)));
        }
        lines.sort_unstable();
        lines.dedup();
        (lines, depends)
    }

    /// Whether somebody is in one of these lines.
    pub(super) fn has_line(&self, lines: &[Line]) -> bool {
        let known = self.lines();
        !known.is_empty() && lines.iter().any(|line| known.contains_key(line))
    }

    /// Is in these lines from now on, and first in none yet.
    fn enter(&self, lines: Vec<Line>) -> Turn<'_> {
        let mut known = self.lines();
        let queues = lines.iter();
        let queues = queues.map(|line| Arc::clone(known.entry(*line).or_default()));
        Turn {
            turns: self,
            queues: queues.collect(),
            places: Vec::new(),
            lines,
        }
    }

    /// Waits in these lines; none if the turn has not come by then.
    pub(super) async fn take(&self, lines: Vec<Line>, deadline: Instant) -> Option<Turn<'_>> {
        let mut turn = self.enter(lines);
        for queue in &turn.queues {
            let place = timeout_at(deadline, Arc::clone(queue).lock_owned()).await;
            turn.places.push(place.ok()?);
        }
        Some(turn)
    }
}

impl Turn<'_> {
    /// Whether it is a turn in each of these lines.
    pub(super) fn is_in(&self, lines: &[Line]) -> bool {
        lines
            .iter()
            .all(|line| self.lines.binary_search(line).is_ok())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.places.clear();
        self.queues.clear();
        let mut known = self.turns.lines();
        for line in &self.lines {
            // Nobody else is in it, nor can come while this is looked at.
            if known
                .get(line)
                .is_some_and(|queue| Arc::strong_count(queue) == 1)
            {
                known.remove(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shared::SharedWrite;
    use futures_util::FutureExt;
    use std::time::Duration;

    fn of_keys(keys: &[&str]) -> Transaction {
        let condition = |key: &&str| Condition::At {
            bucket: "b".into(),
            key: (*key).into(),
            revision: None,
        };
        Transaction {
            conditions: keys.iter().map(condition).collect(),
            ..Transaction::default()
        }
    }

    #[tokio::test]
    async fn writers_of_one_key_have_their_turns_in_order() {
        let turns = Turns::default();
        let late = Instant::now() + Duration::from_secs(30);
        let lines = turns.lines_of(&of_keys(&["k"])).0;
        assert!(!turns.has_line(&lines));
        let first = turns
            .take(lines.clone(), late)
            .await
            .expect("nobody is there");
        assert!(first.is_in(&lines) && turns.has_line(&lines));
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(turns.take(lines.clone(), soon).await.is_none());
        let others = std::array::from_fn::<_, 3, _>(|_| turns.take(lines.clone(), late));
        let [mut second, mut third, _] = others.map(Box::pin);
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_some());
        // Who no longer waits is in no line, nor is a line kept that nobody is in.
        drop((second, third));
        assert!(!turns.has_line(&lines) && turns.lines().is_empty());
    }

    #[tokio::test]
    async fn a_turn_for_some_keys_is_none_for_others() {
        let turns = Turns::default();
        let many: Vec<String> = (0..5_000).map(|key| key.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (all, depends) = turns.lines_of(&of_keys(&many));
        assert!(depends);
        assert_eq!(all.len(), many.len());
        let late = Instant::now() + Duration::from_secs(30);
        let turn = turns.take(all[1..].to_vec(), late).await;
        let turn = turn.expect("nobody is there");
        assert!(turn.is_in(&all[5..9]) && !turn.is_in(&all));
        assert!(turns.has_line(&all[1..2]) && !turns.has_line(&all[..1]));
        // Without a condition, what is written counts; a mark is none.
        let mark = Condition::At {
            bucket: MARKS.into(),
            key: "plugin".into(),
            revision: None,
        };
        let blind = Transaction {
            conditions: vec![mark],
            writes: vec![SharedWrite {
                bucket: "b".into(),
                key: "k".into(),
                value: None,
            }],
            ..Transaction::default()
        };
        let (of_key, _) = turns.lines_of(&of_keys(&["k"]));
        assert_eq!(turns.lines_of(&blind), (of_key, false));
    }
}
