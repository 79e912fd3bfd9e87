//! Turns of this process's writers that depend on the same keys.
//!
//! A writer takes none as long as nobody comes before it. Whoever met a conflict waits in line, and so does whoever comes
//! while somebody is in line; the first in line writes as soon as it has seen what came before. So of many writers of one
//! key each has its turn, however many they are.

use ahash::RandomState;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use super::{Condition, Transaction};
use crate::store::configure::MARKS;

/// Lines; keys that share one wait for each other.
const LINES: usize = 256;

pub(super) struct Turns {
    lines: Vec<Mutex<()>>,
    hasher: RandomState,
}

/// Places in some lines; dropped, it is the turn of the next ones.
pub(super) struct Turn<'t> {
    lines: Vec<usize>,
    _places: Vec<MutexGuard<'t, ()>>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self {
            lines: std::iter::repeat_with(Mutex::default).take(LINES).collect(),
            hasher: RandomState::new(),
        }
    }

    /// The lines of what a transaction depends on, and whether it does; if not, of what it writes. In one order for all.
    pub(super) fn lines_of(&self, transaction: &Transaction) -> (Vec<usize>, bool) {
        let line = |bucket: &str, key: &str| self.hasher.hash_one((bucket, key)) as usize % LINES;
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
        let mut lines: Vec<usize> = lines.collect();
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
    pub(super) fn has_line(&self, lines: &[usize]) -> bool {
        lines
            .iter()
            .any(|line| self.lines[*line].try_lock().is_err())
    }

    /// Waits in these lines; none if the turn has not come by then.
    pub(super) async fn take(&self, lines: Vec<usize>, deadline: Instant) -> Option<Turn<'_>> {
        let mut places = Vec::with_capacity(lines.len());
        for line in &lines {
            let place = timeout_at(deadline, self.lines[*line].lock()).await;
            places.push(place.ok()?);
        }
        Some(Turn {
            lines,
            _places: places,
        })
    }
}

impl Turn<'_> {
    /// Whether it is a turn in each of these lines.
    pub(super) fn is_in(&self, lines: &[usize]) -> bool {
        lines
            .iter()
            .all(|line| self.lines.binary_search(line).is_ok())
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
        let turns = Turns::new();
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
    }

    #[test]
    fn a_turn_for_some_keys_is_none_for_others() {
        let turns = Turns::new();
        let many: Vec<String> = (0..5_000).map(|key| key.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (all, depends) = turns.lines_of(&of_keys(&many));
        assert!(depends);
        assert_eq!(all, (0..LINES).collect::<Vec<_>>());
        let turn = Turn {
            lines: all[1..].to_vec(),
            _places: Vec::new(),
        };
        assert!(turn.is_in(&all[5..9]) && !turn.is_in(&all));
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
