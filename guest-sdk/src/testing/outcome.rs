//! What became of a request, read as the real host would act on it.

use super::call::Call;
use crate::bindings::throwbar::plugin::types::{Edits, Subscription};
use crate::{Decision, Forward, OnChange, Reply, Target};

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It goes on.
    Forwarded(Box<Forwarded>),
    /// The plugin answered it.
    Replied(Reply),
    /// The next matching route decides.
    Passed,
    /// The plugin panicked with this message: a trap, in a component.
    Panicked(String),
}

/// A request as its upstream would see it, after the edits of the subscription and of the decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Forwarded {
    /// Where it goes; an entry of a bucket is shown as its address.
    pub to: Target,
    /// Path and query.
    pub path: String,
    /// Header fields of the request.
    pub headers: Vec<(String, String)>,
    /// Fields taken away from the response.
    pub response_remove: Vec<String>,
    /// Fields then set in the response.
    pub response_set: Vec<(String, String)>,
    /// Its label: the key looked up, or what the plugin said.
    pub key: Option<String>,
    /// What it said of the stream when its entry changes.
    pub on_change: Option<OnChange>,
    /// The decision as it was made, for its timeouts.
    pub decision: Forward,
}

impl Forwarded {
    /// The first value of a header field of the request.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

impl Outcome {
    /// The request that was forwarded.
    ///
    /// # Panics
    /// If it was not.
    #[track_caller]
    pub fn forwarded(self) -> Forwarded {
        match self {
            Outcome::Forwarded(forwarded) => *forwarded,
            other => panic!("expected a forward, got {other:?}"),
        }
    }

    /// The reply that was made.
    ///
    /// # Panics
    /// If none was.
    #[track_caller]
    pub fn replied(self) -> Reply {
        match self {
            Outcome::Replied(reply) => reply,
            other => panic!("expected a reply, got {other:?}"),
        }
    }

    pub(super) fn new(decision: Decision, call: &Call, subscription: &Subscription) -> Self {
        let forward = match decision {
            Decision::To(target) => Forward::to(target),
            Decision::Forward(forward) => forward,
            Decision::Reply(reply) => return Outcome::Replied(reply),
            Decision::Pass => return Outcome::Passed,
        };
        let (to, looked_up) = match &forward.to {
            Target::Entry(handle) => match call.entries.get(*handle as usize) {
                Some(found) => (
                    Target::Address(found.address.clone()),
                    Some(found.key.clone()),
                ),
                None => return Outcome::Panicked(format!("entry {handle} is not of this call")),
            },
            other => (other.clone(), None),
        };
        let ask = call.ask().expect("a request is being decided");
        let mut headers = ask.headers.clone();
        let (mut response_remove, mut response_set) = (Vec::new(), Vec::new());
        for edits in [&subscription.edits, &forward.edits] {
            apply(edits, &mut headers);
            response_remove.extend(edits.response_remove.iter().cloned());
            response_set.extend(edits.response_set.iter().cloned());
        }
        Outcome::Forwarded(Box::new(Forwarded {
            to,
            path: forward.path.clone().unwrap_or_else(|| ask.path.clone()),
            headers,
            response_remove,
            response_set,
            key: forward.key.clone().or(looked_up),
            on_change: call.on_change,
            decision: forward,
        }))
    }
}

/// Removing comes first, and setting replaces every field of that name.
fn apply(edits: &Edits, headers: &mut Vec<(String, String)>) {
    let is = |name: &String, known: &String| known.eq_ignore_ascii_case(name);
    for name in &edits.request_remove {
        headers.retain(|(known, _)| !is(name, known));
    }
    for (name, value) in &edits.request_set {
        headers.retain(|(known, _)| !is(name, known));
        headers.push((name.to_ascii_lowercase(), value.clone()));
    }
}
