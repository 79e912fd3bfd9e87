//! What to do about an import that is more than its backend takes at once.

use crate::cli::problem::Problem;

/// How the rows of an import are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// All of them at once.
    Whole,
    /// All of them at once, as the whole content of the bucket.
    Replacing,
    /// So many at a time.
    Chunks(u64),
}

impl Way {
    pub(super) fn of(replace: bool, chunk: Option<u64>) -> Self {
        match chunk {
            _ if replace => Self::Replacing,
            None => Self::Whole,
            Some(rows) => Self::Chunks(rows),
        }
    }

    /// What is said of a dry run of more than is taken at once, of which so many writes are; none if they are not written so.
    pub(super) fn note(self, reason: &str, writes_max: Option<u64>) -> Option<String> {
        match (self, writes_max) {
            (Self::Chunks(rows), Some(most)) if rows <= most => None,
            _ => Some(self.told(reason, writes_max)),
        }
    }

    /// A refusal with the way out, if it is one of too much at once.
    pub(super) fn explain(self, problem: &mut Problem) {
        if problem.code.as_deref() == Some("batch-too-large") {
            let reason = problem.detail.take().unwrap_or_default();
            problem.detail = Some(self.told(&reason, problem.writes_max));
        }
    }

    /// Only what is taken for sure is advised.
    fn told(self, reason: &str, writes_max: Option<u64>) -> String {
        let Some(most) = writes_max else {
            return reason.to_owned();
        };
        match self {
            Self::Chunks(rows) if rows <= most => reason.to_owned(),
            Self::Whole | Self::Chunks(_) => format!("{reason}: give --chunk {most}"),
            Self::Replacing => {
                // A backend may write down beside deletes that there were some.
                let keys = most.saturating_sub(1).max(1);
                format!(
                    "{reason}: give --chunk {most} in place of --replace, then delete what the file does not have with kv del, \
                     at most {keys} keys at a time: --replace --diff shows it"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(way: Way, code: &str, writes_max: Option<u64>) -> String {
        let mut problem = Problem {
            code: Some(code.to_owned()),
            detail: Some("too large".to_owned()),
            writes_max,
            ..Problem::default()
        };
        way.explain(&mut problem);
        problem.detail.expect("it stays")
    }

    #[test]
    fn what_is_advised_is_what_the_server_takes() {
        let explained = |way, most| explained(way, "batch-too-large", most);
        assert_eq!(
            explained(Way::of(false, None), Some(64)),
            "too large: give --chunk 64"
        );
        assert_eq!(
            explained(Way::of(false, Some(1_000)), Some(64)),
            "too large: give --chunk 64"
        );
        assert_eq!(
            explained(Way::of(true, None), Some(64)),
            "too large: give --chunk 64 in place of --replace, then delete what the file does not have with kv del, \
             at most 63 keys at a time: --replace --diff shows it"
        );
    }

    #[test]
    fn nothing_is_advised_that_does_not_help() {
        let code = "batch-too-large";
        for way in [Way::Whole, Way::Replacing, Way::Chunks(9)] {
            assert_eq!(explained(way, code, None), "too large", "{way:?}");
            assert_eq!(
                explained(way, "too-large", Some(64)),
                "too large",
                "{way:?}"
            );
        }
        assert_eq!(explained(Way::Chunks(64), code, Some(64)), "too large");
        assert_eq!(Way::Chunks(64).note("too large", Some(64)), None);
        let told = Way::Chunks(65).note("too large", Some(64));
        assert_eq!(told.as_deref(), Some("too large: give --chunk 64"));
        let told = Way::Chunks(65).note("too large", None);
        assert_eq!(told.as_deref(), Some("too large"));
    }
}
