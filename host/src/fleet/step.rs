//! What is next on the way from what a node has to what was agreed on.

use crate::plugin::{Agreement, Present, Step};

/// The next step; none if the node has what was agreed on.
pub(super) fn next_step(wanted: &Agreement, present: &Present) -> Option<Step> {
    let Some(active) = &present.active else {
        return Some(Step::Activate(wanted.active.clone()));
    };
    // First, so that the version does not become what a rollback leads to.
    if let Some((version, reason)) = &wanted.failing
        && *version != wanted.active
        && !present.failing.contains(version)
    {
        return Some(Step::Mark {
            version: version.clone(),
            reason: reason.clone(),
        });
    }
    if *active != wanted.active {
        return Some(match &present.canary {
            Some((canary, _)) if *canary == wanted.active => Step::Promote,
            _ => Step::Activate(wanted.active.clone()),
        });
    }
    match (&wanted.canary, &present.canary) {
        (None, None) => None,
        (Some((version, share)), Some((canary, _))) if version == canary => {
            (wanted.canary != present.canary).then(|| Step::Share(share.clone()))
        }
        (_, Some(_)) => Some(Step::Abort),
        (Some((version, share)), None) => Some(Step::Canary(version.clone(), share.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{Fraction, Share};
    use proptest::prelude::*;

    fn share(percent: f64) -> Share {
        Share {
            fraction: Fraction::percent(percent).expect("a percentage"),
            field: "header:x-id".parse().expect("a field"),
        }
    }

    fn wanted(active: &str, canary: Option<(&str, f64)>) -> Agreement {
        Agreement {
            active: active.to_owned(),
            canary: canary.map(|(version, percent)| (version.to_owned(), share(percent))),
            failing: None,
            force: false,
            back: false,
        }
    }

    fn present(active: Option<&str>, canary: Option<(&str, f64)>) -> Present {
        Present {
            active: active.map(str::to_owned),
            canary: canary.map(|(version, percent)| (version.to_owned(), share(percent))),
            failing: Default::default(),
        }
    }

    /// What a step does to what a node has.
    fn take(present: &mut Present, step: Step) {
        match step {
            Step::Mark { version, .. } => {
                present.failing.insert(version);
            }
            Step::Activate(version) => {
                present.failing.remove(&version);
                present.active = Some(version);
                present.canary = None;
            }
            Step::Promote => {
                let (version, _) = present.canary.take().expect("a canary");
                present.failing.remove(&version);
                present.active = Some(version);
            }
            Step::Abort => {
                assert!(present.canary.take().is_some(), "nothing to abort");
            }
            Step::Canary(version, share) => {
                let before = present.canary.replace((version, share));
                assert_eq!(before, None, "a second canary");
            }
            Step::Share(share) => present.canary.as_mut().expect("a canary").1 = share,
        }
    }

    #[test]
    fn a_canary_that_was_promoted_elsewhere_is_promoted_here() {
        let node = present(Some("a"), Some(("b", 5.0)));
        assert_eq!(next_step(&wanted("b", None), &node), Some(Step::Promote));
        assert_eq!(next_step(&wanted("a", None), &node), Some(Step::Abort));
        let more = wanted("a", Some(("b", 25.0)));
        assert_eq!(next_step(&more, &node), Some(Step::Share(share(25.0))));
        let same = wanted("a", Some(("b", 5.0)));
        assert_eq!(next_step(&same, &node), None);
    }

    #[test]
    fn a_version_that_failed_elsewhere_is_marked_before_it_is_left() {
        let mut back = wanted("a", None);
        back.failing = Some(("b".to_owned(), "5 traps".to_owned()));
        let node = present(Some("b"), None);
        let mark = Step::Mark {
            version: "b".to_owned(),
            reason: "5 traps".to_owned(),
        };
        assert_eq!(next_step(&back, &node), Some(mark));
    }

    proptest! {
        #[test]
        fn steps_lead_to_what_was_agreed_on(
            now in (0..4_usize, 0..4_usize, 1..4_u32),
            then in (0..3_usize, 0..4_usize, 1..4_u32, 0..4_usize),
        ) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let canary = |active: Option<&str>, index: usize, percent: u32| {
                let name = NAMES.get(index).filter(|name| active.is_some_and(|active| active != **name));
                name.map(|name| (*name, f64::from(percent)))
            };
            let active = NAMES.get(now.0).copied();
            let mut node = present(active, canary(active, now.1, now.2));
            let mut goal = wanted(NAMES[then.0], canary(Some(NAMES[then.0]), then.1, then.2));
            goal.failing = NAMES.get(then.3).map(|name| ((*name).to_owned(), "it failed".to_owned()));
            let mut steps = 0;
            while let Some(step) = next_step(&goal, &node) {
                take(&mut node, step);
                steps += 1;
                prop_assert!(steps <= 4, "{node:?}");
            }
            prop_assert_eq!(node.active.as_ref(), Some(&goal.active));
            prop_assert_eq!(node.canary, goal.canary);
        }
    }
}
