//! Rights that change while what they were for goes on: each config may bring other tokens.
//!
//! What is over in a moment is finished with the rights it began with. What goes on for as long as its client likes is asked
//! about again: a watch and an export whenever tokens change, a batch or a chunk of an import before it is committed.

use super::problem::Problem;
use super::rights::{Caller, LimitedToken};
use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use http::Method;
use http_body::Frame;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::watch;

/// The limited tokens there are now; clones follow the same.
#[derive(Debug, Clone)]
pub(super) struct Tokens(watch::Receiver<Vec<Arc<LimitedToken>>>);

/// Comes when a caller may no longer have what it is given, with why.
pub(super) type Lost = Pin<Box<dyn Future<Output = Problem> + Send>>;

impl Tokens {
    /// Those of the config that runs.
    pub(super) fn following(tokens: watch::Receiver<Vec<Arc<LimitedToken>>>) -> Self {
        Self(tokens)
    }

    /// Always these.
    pub(super) fn fixed(tokens: Vec<Arc<LimitedToken>>) -> Self {
        Self(watch::channel(tokens).1)
    }

    /// The token that somebody gives.
    pub(super) fn find(&self, given: &[u8]) -> Option<Arc<LimitedToken>> {
        let tokens = self.0.borrow();
        let found = tokens.iter().find(|token| token.token.matches(given));
        found.cloned()
    }

    /// The caller with the rights it has now, if it may still use a bucket so.
    ///
    /// # Errors
    /// As [`Caller::renewed`].
    pub(super) fn renew(
        &self,
        caller: &Caller,
        method: &Method,
        bucket: &str,
    ) -> Result<Caller, Problem> {
        caller.renewed(&self.0.borrow(), method, bucket)
    }

    /// Waits until a caller may no longer list these keys; forever if that stays so.
    pub(super) fn lost(&self, caller: Caller, bucket: &str, prefix: &str) -> Lost {
        let (mut tokens, bucket, prefix) = (self.0.clone(), bucket.to_owned(), prefix.to_owned());
        Box::pin(async move {
            loop {
                // They may have changed since the gate let the caller in.
                let now = caller.renewed(&tokens.borrow_and_update(), &Method::GET, &bucket);
                if let Err(problem) = now.and_then(|caller| caller.may_list(&prefix)) {
                    return problem;
                }
                if tokens.changed().await.is_err() {
                    // Nobody is left to change them.
                    return pending().await;
                }
            }
        })
    }
}

/// A body that breaks off when its caller may no longer have it: what is cut short must not look whole.
pub(super) struct Revocable {
    body: Body,
    lost: Option<Lost>,
}

impl Revocable {
    /// This body, until then.
    pub(super) fn new(body: Body, lost: Lost) -> Self {
        let lost = Some(lost);
        Self { body, lost }
    }
}

impl HttpBody for Revocable {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(lost) = &mut self.lost else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(problem) = lost.as_mut().poll(cx) {
            self.lost = None;
            self.body = Body::empty();
            return Poll::Ready(Some(Err(problem.detail.into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Token;
    use crate::plugin::Access;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn token(secret: &str, bucket: &str, prefix: &str) -> Arc<LimitedToken> {
        Arc::new(LimitedToken {
            name: "agents".to_owned(),
            token: Token::given(secret).unwrap(),
            buckets: [(bucket.to_owned(), Access::Write)].into(),
            prefix: prefix.to_owned(),
        })
    }

    /// A caller that lists keys that begin with `eu-1`, and what is to be when it no longer may.
    fn caller() -> (watch::Sender<Vec<Arc<LimitedToken>>>, Tokens, Caller) {
        let eu = token(SECRET, "ids", "eu-");
        let sender = watch::Sender::new(vec![eu.clone()]);
        let tokens = Tokens::following(sender.subscribe());
        (sender, tokens, Caller::Limited(eu))
    }

    #[test]
    fn who_still_may_goes_on_and_who_may_not_is_told_why() {
        let other = "another-secret-of-32-characters-";
        let mut renamed = LimitedToken::clone(&token(SECRET, "ids", ""));
        renamed.name = "robots".to_owned();
        renamed.buckets.insert("ids".to_owned(), Access::Read);
        for (now, told) in [
            (
                vec![token(other, "x", ""), token(SECRET, "ids", "eu-")],
                None,
            ),
            (vec![Arc::new(renamed)], None),
            (vec![token(SECRET, "ids", "eu-1")], None),
            (vec![], Some((401_u16, "\"agents\" is good no longer"))),
            (vec![token(other, "ids", "eu-")], Some((401, "no longer"))),
            (vec![token(SECRET, "x", "")], Some((403, "bucket \"ids\""))),
            (vec![token(SECRET, "ids", "eu-2")], Some((403, "\"eu-2\""))),
        ] {
            let (sender, tokens, caller) = caller();
            let mut lost = tokens.lost(caller, "ids", "eu-1");
            assert_eq!(lost.as_mut().now_or_never(), None);
            sender.send_replace(now.clone());
            let problem = lost.now_or_never();
            match (&problem, told) {
                (None, None) => {}
                (Some(problem), Some((status, why))) => {
                    assert_eq!(problem.status, status, "{now:?}");
                    assert!(problem.detail.contains(why), "{}", problem.detail);
                }
                _ => panic!("{now:?}: {problem:?}"),
            }
        }
    }

    #[test]
    fn what_changed_before_it_is_asked_for_counts_and_the_own_token_never_does() {
        let (sender, tokens, caller) = caller();
        sender.send_replace(Vec::new());
        let lost = tokens.lost(caller, "ids", "eu-1").now_or_never();
        assert!(lost.is_some_and(|problem| problem.status == 401));
        let own = tokens.lost(Caller::Admin, "ids", "");
        assert_eq!(own.now_or_never(), None);
    }

    #[test]
    fn a_body_that_is_lost_breaks_off() {
        let (sender, tokens, caller) = caller();
        let lost = tokens.lost(caller, "ids", "eu-1");
        let mut body = Revocable::new(Body::from("all"), lost);
        sender.send_replace(Vec::new());
        let mut next = || body.frame().now_or_never().expect("at once");
        assert!(next().is_some_and(|frame| frame.is_err()));
        assert!(next().is_none());
    }
}
