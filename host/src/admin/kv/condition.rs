//! What `If-Match` and `If-None-Match` require of what is written: decided by the commit, for only the store knows what is so then.

use crate::admin::input::Tags;
use crate::admin::problem::Problem;
use crate::store::{CommitError, Committed, Expect, Revision, Store, WriteBatch};
use http::{HeaderMap, header};

/// What the fields of a request require of an entry, or of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::admin) struct Required {
    /// The first thing that would do.
    pub(in crate::admin) expect: Expect,
    /// Other revisions that would do as well.
    others: Vec<Revision>,
}

impl Required {
    /// Reads the fields.
    ///
    /// # Errors
    /// 400 if they make no sense, 412 if nothing could be so: a weak tag, or one that is no revision.
    pub(in crate::admin) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let if_match = Tags::from(headers, header::IF_MATCH)?;
        let if_none_match = Tags::from(headers, header::IF_NONE_MATCH)?;
        let only = |expect| {
            let others = Vec::new();
            Ok(Self { expect, others })
        };
        match (if_match, if_none_match) {
            (None, None) => only(Expect::Any),
            (None, Some(Tags::Any)) => only(Expect::Absent),
            (Some(Tags::Any), None) => only(Expect::Present),
            (Some(Tags::List(tags)), None) => {
                let mut revisions: Vec<_> = tags.iter().filter_map(revision).collect();
                // The newest is the likeliest.
                revisions.sort_unstable();
                match revisions.pop() {
                    Some(newest) => Ok(Self {
                        expect: Expect::At(newest),
                        others: revisions,
                    }),
                    None => Err(Problem::precondition(
                        "if-match: none of the tags is a revision, expected one such as \"42\"",
                    )),
                }
            }
            (None, Some(_)) => Err(Problem::bad_request(
                "entity-tag",
                "if-none-match: expected * for a write",
            )),
            (Some(_), Some(_)) => Err(Problem::bad_request(
                "entity-tag",
                "expected if-match or if-none-match, not both",
            )),
        }
    }

    /// Whether it requires nothing.
    pub(in crate::admin) fn is_nothing(&self) -> bool {
        self.expect == Expect::Any
    }

    /// Whether it is so of an entry at this revision, or of none.
    pub(in crate::admin) fn holds(&self, found: Option<Revision>) -> bool {
        match self.expect {
            Expect::Any => true,
            Expect::Absent => found.is_none(),
            Expect::Present => found.is_some(),
            Expect::At(revision) => {
                found.is_some_and(|found| found == revision || self.others.contains(&found))
            }
        }
    }

    /// Commits a batch that [`Self::expect`] has been put into by `put`. What was refused for another of the revisions that
    /// would do is tried with that: each at most once.
    pub(in crate::admin) async fn commit(
        mut self,
        store: &Store,
        mut batch: WriteBatch,
        put: impl Fn(&mut WriteBatch, Expect) + Send,
    ) -> Result<Committed, CommitError> {
        loop {
            put(&mut batch, self.expect);
            if self.others.is_empty() {
                return store.commit(batch).await;
            }
            let result = store.commit(batch.clone()).await;
            let (Err(CommitError::Conflict {
                found: Some(found), ..
            })
            | Err(CommitError::BucketConflict { found, .. })) = result
            else {
                return result;
            };
            let Some(at) = self.others.iter().position(|other| *other == found) else {
                return result;
            };
            self.expect = Expect::At(self.others.swap_remove(at));
        }
    }
}

/// The revision that a tag is; none if it is weak, or the tag of something else.
fn revision((is_weak, tag): &(bool, String)) -> Option<Revision> {
    let revision: u64 = tag.parse().ok().filter(|_| !is_weak)?;
    (revision.to_string() == *tag).then_some(Revision(revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(name: &'static str, value: &str) -> Result<Required, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        Required::of(&headers).map_err(|problem| problem.status.as_u16())
    }

    #[test]
    fn fields_are_required_of_the_commit_whatever_is_known_here() {
        let expect = |name, value| required(name, value).map(|required| required.expect);
        assert_eq!(expect("if-match", "\"42\""), Ok(Expect::At(Revision(42))));
        assert_eq!(expect("if-match", "*"), Ok(Expect::Present));
        assert_eq!(expect("if-none-match", "*"), Ok(Expect::Absent));
        assert_eq!(expect("if-none-match", "\"42\""), Err(400));
        for none in ["W/\"42\"", "\"a\"", "\"042\"", "\"+1\"", "\"\""] {
            assert_eq!(expect("if-match", none), Err(412), "{none}");
        }
        assert!(Required::of(&HeaderMap::new()).unwrap().is_nothing());
    }

    #[test]
    fn of_several_tags_any_will_do() {
        let required = required("if-match", "\"3\", W/\"4\", \"7\", \"5\"").unwrap();
        assert_eq!(required.expect, Expect::At(Revision(7)));
        for (revision, holds) in [(3, true), (4, false), (5, true), (7, true), (8, false)] {
            assert_eq!(
                required.holds(Some(Revision(revision))),
                holds,
                "{revision}"
            );
        }
        assert!(!required.holds(None));
    }
}
