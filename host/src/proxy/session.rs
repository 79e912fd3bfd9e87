//! Sessions of streams: opened between the decision and the dial.

use super::Proxy;
use super::error::ProxyError;
use super::record::Record;
use super::site::SiteView;
use crate::plugin::decision::Found;
use crate::plugin::{
    DecisionError, Forward, Generation, OnTrap, Opened, Reply, RouteTarget, SessionError,
};
use crate::store::WriteBatch;
use crate::stream::Hook;
use http::header;

/// What a plugin with stream hooks said of a stream to be.
pub enum Hooking {
    /// It is taken; without a hook if the plugin failed and the config says to go on all the same.
    Taken(Option<Box<Hook>>),
    /// It is refused.
    Refused(Reply),
}

impl Proxy {
    /// Opens a session for a request that is to become a stream. The session may name another target; extensions that the
    /// client offers are taken out of the request, since messages are shown as they are sent.
    ///
    /// # Errors
    /// [`ProxyError::Session`] or [`ProxyError::Commit`]. Dropping the future drops the session.
    pub async fn open_session(
        &self,
        view: &SiteView,
        generation: &Generation,
        forward: &mut Forward,
        record: &mut Record,
    ) -> Result<Hooking, ProxyError> {
        let opened = self
            .sessions
            .open(generation, &mut record.head)
            .and_then(|opened| check(opened, view));
        // Others may have lived where it was to live.
        self.streams.settle_lost();
        let (session, target, tick, writes) = match opened {
            Ok(Opened::Taken {
                session,
                target,
                tick,
                writes,
            }) => (session, target, tick, writes),
            Ok(Opened::Refused { reply, writes }) => {
                self.commit(generation, writes).await?;
                return Ok(Hooking::Refused(reply));
            }
            Err(error) => return fall_back(generation, error, record),
        };
        self.commit(generation, writes).await?;
        if let Some(found) = target {
            forward.to = found.to;
            forward.follow = found.follow;
            record.key = found.key.or(record.key.take());
        }
        if let Some(head) = &mut record.head {
            head.headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        }
        Ok(Hooking::Taken(Some(Box::new(Hook { session, tick }))))
    }

    async fn commit(
        &self,
        generation: &Generation,
        writes: Option<WriteBatch>,
    ) -> Result<(), ProxyError> {
        let Some(writes) = writes else { return Ok(()) };
        self.write(writes).await.map_err(|error| {
            let refused = &generation.stats(self.worker).refused_writes;
            crate::metrics::add(refused, 1);
            ProxyError::Commit {
                plugin: generation.label().plugin.to_string(),
                version: generation.label().version().to_string(),
                error,
            }
        })
    }
}

/// Only who has the config can tell whether an upstream exists.
fn check(opened: Opened, view: &SiteView) -> Result<Opened, SessionError> {
    match &opened {
        Opened::Taken {
            session,
            target:
                Some(Found {
                    to: RouteTarget::Upstream(name, _),
                    ..
                }),
            ..
        } if !view.has_upstream(name) => Err(session.bad_opening(DecisionError::no_upstream(name))),
        _ => Ok(opened),
    }
}

fn fall_back(
    generation: &Generation,
    error: SessionError,
    record: &mut Record,
) -> Result<Hooking, ProxyError> {
    let on_trap = generation.config().sessions.on_trap;
    let full = matches!(error, SessionError::Full(_) | SessionError::IsolatedFull(_));
    let error = ProxyError::Session {
        plugin: generation.label().plugin.to_string(),
        version: generation.label().version().to_string(),
        error,
    };
    tracing::warn!(
        error = error.chain(),
        request = record.request_id(),
        "no session"
    );
    // A bound is a bound, whatever becomes of failures.
    match on_trap {
        OnTrap::Pass if !full => {
            record.error = Some(error.chain());
            Ok(Hooking::Taken(None))
        }
        _ => Err(error),
    }
}
