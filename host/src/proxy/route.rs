//! Routing: the routes in order, a plugin called under its deadline, what happens when it cannot answer.

use super::error::ProxyError;
use super::record::Record;
use super::site::{Action, SiteView};
use super::{OnFailure, Proxy};
use crate::plugin::{
    Decision, DecisionError, Forward, Generation, PluginSlot, Reply, RouteError, RouteTarget,
    Routed, Shadow,
};
use crate::store::{CommitError, Snapshot, WriteBatch};
use bytes::Bytes;
use http::{HeaderName, StatusCode};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What becomes of a request.
#[derive(Debug)]
pub enum Verdict {
    /// It is sent on. `trusted` targets come from the config.
    Forward {
        /// Where.
        forward: Forward,
        /// Whether the guard's networks and ports do not apply.
        trusted: bool,
        /// The generation that wants to see the messages of the stream that this is to become.
        hooks: Option<Arc<Generation>>,
    },
    /// It is answered.
    Reply(Reply),
}

impl Proxy {
    /// Decides. Waits only where a plugin wrote to the store, for the acknowledgement.
    ///
    /// # Errors
    /// [`ProxyError::NoRoute`], or why a plugin gave no decision if the route answers that with a status (which is then
    /// in the record).
    pub async fn route(&self, view: &SiteView, record: &mut Record) -> Result<Verdict, Failure> {
        for (index, route) in view.site.routes.iter().enumerate() {
            let head = record
                .head
                .as_ref()
                .expect("lent to plugins only, which give it back");
            if !route.matcher.matches(head) {
                continue;
            }
            record.route = Some(index);
            match &route.action {
                Action::Forward(target) => return Ok(trusted(target.clone())),
                Action::Reply(reply) => return Ok(Verdict::Reply(fill_in(reply, record))),
                Action::Plugin(slot, on_failure) => match self.ask(view, slot, record).await {
                    Ok((Decision::Pass, _)) => {}
                    Ok((Decision::Forward(forward), hooks)) => {
                        return Ok(Verdict::Forward {
                            forward,
                            trusted: false,
                            hooks,
                        });
                    }
                    Ok((Decision::Reply(reply), _)) => return Ok(Verdict::Reply(reply)),
                    Err(error) => {
                        route.counters[self.worker]
                            .plugin_failures
                            .fetch_add(1, Relaxed);
                        return self.fall_back(view, slot, on_failure, error, record).await;
                    }
                },
            }
        }
        Err(Failure {
            error: ProxyError::NoRoute,
            status: None,
        })
    }

    /// Asks the active version, or the canary if the request is in its share; says which generation has hooks for the
    /// stream that this is to become, if it has.
    async fn ask(
        &self,
        view: &SiteView,
        slot: &Arc<PluginSlot>,
        record: &mut Record,
    ) -> Result<(Decision, Option<Arc<Generation>>), ProxyError> {
        let Asked {
            routed,
            generation,
            hooks,
        } = self.ask_informed(view, slot, record).await?;
        let Some(writes) = routed.writes else {
            return Ok((routed.decision, hooks));
        };
        match self.write(writes).await {
            Ok(()) => Ok((routed.decision, hooks)),
            // Another version migrated the data between the call and the commit; nothing was done yet.
            Err(CommitError::Marked { .. }) => {
                let Asked {
                    routed,
                    generation,
                    hooks,
                } = self.ask_informed(view, slot, record).await?;
                if let Some(writes) = routed.writes {
                    let written = self.write(writes).await;
                    written.map_err(|error| self.refused(slot, generation.as_deref(), error))?;
                }
                Ok((routed.decision, hooks))
            }
            Err(error) => Err(self.refused(slot, generation.as_deref(), error)),
        }
    }

    /// Makes the writes of a call. One that is made and not seen here yet is no refusal.
    pub(super) async fn write(&self, writes: WriteBatch) -> Result<(), CommitError> {
        match self.store.commit(writes).await {
            Ok(_) | Err(CommitError::Unseen { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One call of who is to decide now. An instance that keeps a view of its own may have much to be told first: others
    /// are served between the pages.
    async fn ask_informed(
        &self,
        view: &SiteView,
        slot: &Arc<PluginSlot>,
        record: &mut Record,
    ) -> Result<Asked, ProxyError> {
        let mut waiting_since = None;
        loop {
            if let Some(asked) = self.ask_once(view, slot, record, waiting_since)? {
                return Ok(asked);
            }
            waiting_since.get_or_insert_with(Instant::now);
            tokio::task::yield_now().await;
        }
    }

    /// One call of who is to decide now, if its view is not pages behind. The state of the store is taken first, so that
    /// who knows it is asked.
    fn ask_once(
        &self,
        view: &SiteView,
        slot: &Arc<PluginSlot>,
        record: &mut Record,
        waiting_since: Option<Instant>,
    ) -> Result<Option<Asked>, ProxyError> {
        let mut reader = self.reader.borrow_mut();
        let mut snapshot = reader.load();
        let staged = slot.staged(snapshot.revision().0);
        let active = slot.active();
        let head = record.head.as_ref().expect("given back by plugins");
        let canary = match staged {
            Some(staged) => Some(staged),
            None => slot.canary_for(head),
        };
        let Some(generation) = canary.as_ref().or(active.as_ref()) else {
            return Err(ProxyError::NoVersion(slot.name().to_string()));
        };
        if generation.data_since() > snapshot.revision().0 {
            // It became active since: what it migrated is there by now.
            snapshot = reader.load();
        }
        if generation.has_view() {
            let told = self.tell_page(generation, snapshot, waiting_since, record);
            let told = told.map_err(|error| failed(slot, generation, error))?;
            if !told {
                return Ok(None);
            }
        }
        // A canary is not what the shadow is compared with.
        let compared = slot.compared().filter(|_| canary.is_none());
        let shadow = compared.as_ref().and_then(|shadow| shadow.as_deref());
        let routed = self.call(view, generation, snapshot, shadow, record);
        record.label = Some(generation.label().clone());
        let routed = routed.map_err(|error| failed(slot, generation, error))?;
        let wrote = routed.writes.is_some();
        Ok(Some(Asked {
            routed,
            generation: wrote.then(|| generation.clone()),
            hooks: hooks(generation, record),
        }))
    }

    /// Tells this worker's instance of a generation a page of what its view has not; whether that was the last one.
    fn tell_page(
        &self,
        generation: &Arc<Generation>,
        snapshot: &Arc<Snapshot>,
        waiting_since: Option<Instant>,
        record: &mut Record,
    ) -> Result<bool, RouteError> {
        let started = Instant::now();
        let waited = waiting_since.map_or(Duration::ZERO, |since| started - since);
        let told = match waited > VIEW_WAIT_MAX {
            true => Err(RouteError::WatchDeadline(VIEW_WAIT_MAX)),
            false => {
                let mut instances = self.instances.borrow_mut();
                instances.tell_page(generation, self.worker, snapshot)
            }
        };
        if let Err(error) = &told {
            let nanos = started.elapsed().as_nanos() as u64;
            record.label = Some(generation.label().clone());
            generation.stats(self.worker).count(Some(error), nanos);
        }
        told
    }

    /// Counts writes that were refused.
    fn refused(
        &self,
        slot: &PluginSlot,
        generation: Option<&Generation>,
        error: CommitError,
    ) -> ProxyError {
        if let Some(generation) = generation {
            let refused = &generation.stats(self.worker).refused_writes;
            refused.fetch_add(1, Relaxed);
        }
        let version = generation.map(|generation| generation.label().version());
        ProxyError::Commit {
            plugin: slot.name().to_string(),
            version: version.unwrap_or_default().to_owned(),
            error,
        }
    }

    /// One call of this worker's instance of a generation. This is where a request meets a plugin.
    fn call(
        &self,
        view: &SiteView,
        generation: &Arc<Generation>,
        snapshot: &Arc<Snapshot>,
        shadow: Option<&Shadow>,
        record: &mut Record,
    ) -> Result<Routed, RouteError> {
        let started = Instant::now();
        let mut instances = self.instances.borrow_mut();
        let outcome = match instances.lease(generation, self.worker) {
            Err(error) => Err(error),
            Ok(instance) => {
                let outcome = instance.route(&mut record.head, snapshot);
                if instance.is_poisoned() {
                    instances.discard(generation.id());
                }
                outcome.and_then(|routed| match routed.decision.upstream() {
                    Some(name) if !view.has_upstream(name) => {
                        Err(DecisionError::no_upstream(name).into())
                    }
                    _ => Ok(routed),
                })
            }
        };
        let nanos = started.elapsed().as_nanos() as u64;
        record.decision_ns += nanos;
        generation
            .stats(self.worker)
            .count(outcome.as_ref().err(), nanos);
        if let (Some(shadow), Some(head)) = (shadow, &record.head) {
            let decided = outcome.as_ref().ok().map(|routed| &routed.decision);
            shadow.offer(record.id, head, snapshot, decided);
        }
        outcome
    }

    /// What the route says of a plugin that gave no decision.
    async fn fall_back(
        &self,
        view: &SiteView,
        slot: &Arc<PluginSlot>,
        on_failure: &OnFailure,
        error: ProxyError,
        record: &mut Record,
    ) -> Result<Verdict, Failure> {
        tracing::warn!(
            error = error.chain(),
            request = record.request_id(),
            "plugin failed"
        );
        match on_failure {
            // A bad address or field is the plugin's answer, not its absence: the gateway got nothing it can use.
            OnFailure::Reply(status) => {
                let bad = matches!(
                    &error,
                    ProxyError::Plugin {
                        error: RouteError::Decision(_),
                        ..
                    }
                );
                Err(Failure {
                    error,
                    status: Some(if bad {
                        StatusCode::BAD_GATEWAY
                    } else {
                        *status
                    }),
                })
            }
            OnFailure::Upstream(name) => {
                record.error = Some(error.chain());
                Ok(trusted(RouteTarget::Upstream(name.as_str().into(), None)))
            }
            OnFailure::LastGood => {
                let (active, previous) = (slot.active(), slot.previous());
                // Beside a canary that failed, the active version is the good one.
                let failed = record.label.as_ref().map(|label| label.id);
                let is_other = active
                    .as_ref()
                    .is_some_and(|active| Some(active.id()) != failed);
                let good = if is_other && failed.is_some() {
                    &active
                } else {
                    &previous
                };
                let Some(generation) = &**good else {
                    return Err(Failure {
                        error,
                        status: None,
                    });
                };
                record.error = Some(error.chain());
                record.label = Some(generation.label().clone());
                let mut reader = self.reader.borrow_mut();
                match self.call(view, generation, reader.load(), None, record) {
                    Ok(Routed {
                        decision: Decision::Forward(forward),
                        writes: None,
                    }) => Ok(Verdict::Forward {
                        forward,
                        trusted: false,
                        hooks: hooks(generation, record),
                    }),
                    Ok(Routed {
                        decision: Decision::Reply(reply),
                        writes: None,
                    }) => Ok(Verdict::Reply(reply)),
                    _ => Err(Failure {
                        error,
                        status: None,
                    }),
                }
            }
        }
    }
}

/// How long a request waits at most until a view is whole: calls that tell it have a deadline, but others may come between
/// them again and again.
const VIEW_WAIT_MAX: Duration = Duration::from_secs(60);

fn failed(slot: &PluginSlot, generation: &Generation, error: RouteError) -> ProxyError {
    ProxyError::Plugin {
        plugin: slot.name().to_string(),
        version: generation.label().version().to_string(),
        error,
    }
}

/// What a call gave.
struct Asked {
    routed: Routed,
    /// Who was called, if it wrote.
    generation: Option<Arc<Generation>>,
    hooks: Option<Arc<Generation>>,
}

/// The generation, if it has hooks and the request is to become a stream.
fn hooks(generation: &Arc<Generation>, record: &Record) -> Option<Arc<Generation>> {
    let websocket = record.head.as_ref().is_some_and(|head| head.websocket);
    (websocket && generation.has_sessions()).then(|| generation.clone())
}

/// Why there is no verdict, and the status that the route gives it, if it says one.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub error: ProxyError,
    /// Instead of the error's own.
    pub status: Option<StatusCode>,
}

fn trusted(to: RouteTarget) -> Verdict {
    Verdict::Forward {
        forward: Forward {
            to,
            key: None,
            constant: None,
            varying: None,
            follow: None,
        },
        trusted: true,
        hooks: None,
    }
}

/// Replaces `${header.NAME}` in the body of a config's reply.
fn fill_in(reply: &Reply, record: &Record) -> Reply {
    let Ok(template) = std::str::from_utf8(&reply.body) else {
        return reply.clone();
    };
    if !template.contains("${header.") {
        return reply.clone();
    }
    let json = reply.headers.iter().any(|(name, value)| {
        *name == http::header::CONTENT_TYPE
            && value.to_str().is_ok_and(|value| value.contains("json"))
    });
    let headers = &record.head.as_ref().expect("given back by plugins").headers;
    let mut body = String::with_capacity(template.len() + 64);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${header.") {
        body.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            body.push_str("${header.");
            rest = after;
            continue;
        };
        let value = HeaderName::from_bytes(name.as_bytes())
            .ok()
            .and_then(|name| headers.get(name));
        let value = value
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .unwrap_or_default();
        if json {
            let quoted = serde_json::to_string(&value).expect("a string");
            body.push_str(&quoted[1..quoted.len() - 1]);
        } else {
            body.push_str(&value);
        }
        rest = after;
    }
    body.push_str(rest);
    Reply {
        body: Bytes::from(body),
        ..reply.clone()
    }
}
