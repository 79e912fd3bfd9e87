//! Whether a history of concurrent operations on one key has an order that explains it: the method of Wing and Gong, with
//! Lowe's memory of what was tried, as Knossos and Porcupine have it.
//!
//! Keys do not depend on each other, so a history of several keys has such an order if that of each key has.

use std::collections::HashSet;

/// What was asked of a key. Values that are written are written once, so each tells who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Get,
    Put(i64),
    /// Puts if the entry was last written at this revision; none: if there is no entry.
    CompareAndSet(Option<u64>, i64),
    Increment(i64),
    Delete,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// Value and revision.
    Got(Option<(i64, u64)>),
    /// Written, at this revision, and what an increment came to.
    Written(u64, Option<i64>),
    Deleted,
    /// Not written: the entry was at this revision.
    Conflict(Option<u64>),
    /// Nobody knows: it may have taken effect before its end, or not at all.
    Unknown,
}

/// One operation, from its call to its end on a clock that all clients share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    pub(super) call: u64,
    pub(super) end: u64,
    pub(super) input: Input,
    pub(super) output: Output,
}

/// What a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Absent,
    /// The revision is none if whoever wrote it was never told.
    Present(i64, Option<u64>),
}

impl State {
    /// The state after an operation, if it may have had this output here.
    fn after(self, operation: &Operation) -> Option<Self> {
        let written = |value| match operation.output {
            Output::Written(revision, _) => Some(Self::Present(value, Some(revision))),
            Output::Unknown => Some(Self::Present(value, None)),
            _ => None,
        };
        match (operation.input, operation.output) {
            (Input::Get, Output::Got(found)) => self.seen(found),
            // A read that told nothing tells nothing.
            (Input::Get, Output::Unknown) => Some(self),
            (Input::Put(value), _) => written(value),
            (Input::CompareAndSet(expected, value), Output::Written(..) | Output::Unknown) => {
                self.at(expected)?;
                written(value)
            }
            (Input::CompareAndSet(expected, _), Output::Conflict(found)) if expected != found => {
                self.at(found)
            }
            (Input::Increment(by), output) => {
                let sum = by
                    + match self {
                        Self::Absent => 0,
                        Self::Present(value, _) => value,
                    };
                match output {
                    Output::Written(_, told) if told != Some(sum) => None,
                    _ => written(sum),
                }
            }
            (Input::Delete, Output::Deleted | Output::Unknown) => Some(Self::Absent),
            _ => None,
        }
    }

    /// The same, if somebody can have read this.
    fn seen(self, found: Option<(i64, u64)>) -> Option<Self> {
        match (self, found) {
            (Self::Absent, None) => Some(self),
            (Self::Present(value, _), Some((seen, revision))) if value == seen => {
                self.at(Some(revision))
            }
            _ => None,
        }
    }

    /// The same, if it can be at this revision; one that nobody was told of is known from then on.
    fn at(self, revision: Option<u64>) -> Option<Self> {
        match (self, revision) {
            (Self::Absent, None) => Some(self),
            (Self::Present(value, known), Some(revision)) => known
                .is_none_or(|known| known == revision)
                .then_some(Self::Present(value, Some(revision))),
            _ => None,
        }
    }
}

/// Which operations have been put in order.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Ordered {
    bits: Box<[u64]>,
}

impl Ordered {
    fn none_of(count: usize) -> Self {
        let bits = vec![0; count.div_ceil(64)].into();
        Self { bits }
    }

    fn has(&self, at: usize) -> bool {
        self.bits[at / 64] & (1 << (at % 64)) != 0
    }

    fn with(&self, at: usize) -> Self {
        let mut with = self.clone();
        with.add(at);
        with
    }

    fn add(&mut self, at: usize) {
        self.bits[at / 64] |= 1 << (at % 64);
    }
}

/// Whether there is an order of operations on a key, absent at first, that keeps to real time: what had ended before
/// another one was called comes before it.
pub(super) fn is_linearizable(operations: &[Operation]) -> bool {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.call);
    let mut tried = HashSet::new();
    let mut open = vec![(Ordered::none_of(operations.len()), State::Absent)];
    while let Some((ordered, state)) = open.pop() {
        if !tried.insert((ordered.clone(), state)) {
            continue;
        }
        let rest = || {
            let all = operations.iter().enumerate();
            all.filter(|(at, _)| !ordered.has(*at))
        };
        let is_certain = |operation: &Operation| operation.output != Output::Unknown;
        let certain = rest().filter(|(_, operation)| is_certain(operation));
        // Whatever comes next was called before the first of these ended.
        let Some(horizon) = certain.map(|(_, operation)| operation.end).min() else {
            return true;
        };
        // Nothing comes after what was called when it had ended.
        let all = operations.iter().enumerate();
        let last_call = all.filter(|(at, _)| ordered.has(*at));
        let last_call = last_call.map(|(_, operation)| operation.call).max();
        for (at, operation) in rest() {
            if operation.call < horizon
                && let Some(next) = state.after(operation)
            {
                let mut ordered = ordered.with(at);
                let last_call = last_call.max(Some(operation.call));
                // What can no longer have been done is out of the question: whether it was makes no two ways from here.
                for (over, operation) in operations.iter().enumerate() {
                    if !is_certain(operation) && Some(operation.end) <= last_call {
                        ordered.add(over);
                    }
                }
                open.push((ordered, next));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations as `call..end`, what was asked, and what came of it.
    fn history(operations: &[(std::ops::Range<u64>, Input, Output)]) -> Vec<Operation> {
        let one = |(time, input, output): &(std::ops::Range<u64>, Input, Output)| Operation {
            call: time.start,
            end: time.end,
            input: *input,
            output: *output,
        };
        operations.iter().map(one).collect()
    }

    const W: fn(u64) -> Output = |revision| Output::Written(revision, None);

    #[test]
    fn what_overlaps_may_have_come_in_any_order() {
        let got = |value, revision| Output::Got(Some((value, revision)));
        let both_ways = |first, second| {
            history(&[
                (0..10, Input::Put(1), W(1)),
                (1..9, Input::Put(2), W(2)),
                (2..3, Input::Get, first),
                (11..12, Input::Get, second),
            ])
        };
        assert!(is_linearizable(&both_ways(Output::Got(None), got(2, 2))));
        assert!(is_linearizable(&both_ways(got(1, 1), got(2, 2))));
        assert!(is_linearizable(&both_ways(got(2, 2), got(1, 1))));
        assert!(
            !is_linearizable(&both_ways(got(2, 1), got(1, 1))),
            "another's revision"
        );
    }

    #[test]
    fn a_read_of_what_was_over_is_refused() {
        let stale = history(&[
            (0..1, Input::Put(1), W(1)),
            (2..3, Input::Put(2), W(2)),
            (4..5, Input::Get, Output::Got(Some((1, 1)))),
        ]);
        assert!(!is_linearizable(&stale));
        let back = history(&[
            (0..1, Input::Put(1), W(1)),
            (2..9, Input::Put(2), W(2)),
            (3..4, Input::Get, Output::Got(Some((2, 2)))),
            (5..6, Input::Get, Output::Got(Some((1, 1)))),
        ]);
        assert!(!is_linearizable(&back), "it went back");
        let lost = history(&[
            (0..1, Input::Put(1), W(1)),
            (2..3, Input::Get, Output::Got(None)),
        ]);
        assert!(!is_linearizable(&lost));
        let risen = history(&[
            (0..1, Input::Put(1), W(1)),
            (2..3, Input::Delete, Output::Deleted),
            (4..5, Input::Get, Output::Got(Some((1, 1)))),
        ]);
        assert!(!is_linearizable(&risen), "a deleted one came back");
    }

    #[test]
    fn of_two_that_compare_with_the_same_one_wins() {
        let race = |second| {
            history(&[
                (0..1, Input::Put(1), W(1)),
                (2..8, Input::CompareAndSet(Some(1), 2), W(2)),
                (3..9, Input::CompareAndSet(Some(1), 3), second),
            ])
        };
        assert!(is_linearizable(&race(Output::Conflict(Some(2)))));
        assert!(!is_linearizable(&race(W(3))), "both won");
        assert!(
            !is_linearizable(&race(Output::Conflict(Some(1)))),
            "nothing was in its way"
        );
        assert!(!is_linearizable(&race(Output::Conflict(None))));
    }

    #[test]
    fn increments_add_up() {
        let sums = |first, second| {
            history(&[
                (0..8, Input::Increment(1), Output::Written(1, Some(first))),
                (1..9, Input::Increment(1), Output::Written(2, Some(second))),
            ])
        };
        assert!(is_linearizable(&sums(1, 2)));
        assert!(is_linearizable(&sums(2, 1)));
        assert!(!is_linearizable(&sums(1, 1)), "one was lost");
    }

    #[test]
    fn what_nobody_knows_of_was_done_before_its_end_or_never() {
        let crashed = |found, from: u64| {
            history(&[
                (0..1, Input::Put(1), W(1)),
                (2..10, Input::Put(2), Output::Unknown),
                (from..from + 1, Input::Get, Output::Got(found)),
                (from + 2..from + 3, Input::Get, Output::Got(Some((2, 7)))),
            ])
        };
        let (old, new) = (Some((1, 1)), Some((2, 7)));
        assert!(is_linearizable(&crashed(old, 4)) && is_linearizable(&crashed(new, 4)));
        assert!(is_linearizable(&crashed(new, 20)));
        assert!(!is_linearizable(&crashed(old, 20)), "done after its end");
        assert!(
            !is_linearizable(&crashed(Some((2, 8)), 20)),
            "two revisions of one write"
        );
        let never = history(&[
            (0..1, Input::Put(1), W(1)),
            (2..10, Input::CompareAndSet(Some(9), 2), Output::Unknown),
            (20..21, Input::Get, Output::Got(old)),
        ]);
        assert!(is_linearizable(&never));
    }
}
