//! Routing: the routes in order, a plugin called under its deadline, what happens when it cannot answer.

use super::error::ProxyError;
use super::record::Record;
use super::site::{Action, SiteView};
use super::{OnFailure, Proxy};
use crate::plugin::{
    Decision, DecisionError, Forward, Generation, GenerationId, Instance, PluginSlot, Reply,
    RouteError, RouteTarget, Routed, Shadow,
};
use crate::store::{CommitError, Snapshot};
use bytes::Bytes;
use http::{HeaderName, StatusCode};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

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
        } = self.ask_once(view, slot, record)?;
        let Some(writes) = routed.writes else {
            return Ok((routed.decision, hooks));
        };
        match self.store.commit(writes).await {
            Ok(_) => Ok((routed.decision, hooks)),
            // Another version migrated the data between the call and the commit; nothing was done yet.
            Err(CommitError::Marked { .. }) => {
                let Asked {
                    routed,
                    generation,
                    hooks,
                } = self.ask_once(view, slot, record)?;
                if let Some(writes) = routed.writes {
                    let committed = self.store.commit(writes).await;
                    committed.map_err(|error| self.refused(slot, generation.as_deref(), error))?;
                }
                Ok((routed.decision, hooks))
            }
            Err(error) => Err(self.refused(slot, generation.as_deref(), error)),
        }
    }

    /// One call of who is to decide now. The state of the store is taken first, so that who knows it is asked.
    fn ask_once(
        &self,
        view: &SiteView,
        slot: &Arc<PluginSlot>,
        record: &mut Record,
    ) -> Result<Asked, ProxyError> {
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
        // A canary is not what the shadow is compared with.
        let compared = slot.compared().filter(|_| canary.is_none());
        let shadow = compared.as_ref().and_then(|shadow| shadow.as_deref());
        let routed = self.call(view, generation, snapshot, shadow, record);
        let label = generation.label();
        record.label = Some(label.clone());
        let routed = routed.map_err(|error| ProxyError::Plugin {
            plugin: slot.name().to_string(),
            version: label.version().to_string(),
            error,
        })?;
        let wrote = routed.writes.is_some();
        Ok(Asked {
            routed,
            generation: wrote.then(|| generation.clone()),
            hooks: hooks(generation, record),
        })
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

/// One worker's warm instances: at most one for each generation, a handful in most configs. Every route may
/// have a plugin of its own, so their number is bounded: the one unused for longest gives way.
#[derive(Default)]
pub struct Instances {
    warm: Vec<Warm>,
    leases: u64,
}

/// Small, so that looking for one touches few cache lines.
struct Warm {
    id: GenerationId,
    /// The lease that used it last.
    used: u64,
    instance: Box<Instance>,
}

impl Instances {
    /// The instance of a generation; made now if there is none, as after a trap.
    ///
    /// # Errors
    /// If it cannot be instantiated.
    pub fn lease(
        &mut self,
        generation: &Arc<Generation>,
        worker: usize,
    ) -> Result<&mut Instance, RouteError> {
        let id = generation.id();
        self.leases += 1;
        let index = match self.warm.iter().position(|warm| warm.id == id) {
            Some(index) => index,
            None => self.make(generation, worker)?,
        };
        let warm = &mut self.warm[index];
        warm.used = self.leases;
        Ok(&mut warm.instance)
    }

    fn make(&mut self, generation: &Arc<Generation>, worker: usize) -> Result<usize, RouteError> {
        if self.warm.len() >= generation.instances_per_worker() {
            self.evict();
        }
        let made = match Instance::on_worker(generation, worker) {
            // Trials have some for a moment.
            Err(RouteError::NoRoom(_)) if !self.warm.is_empty() => {
                self.evict();
                Instance::on_worker(generation, worker)
            }
            made => made,
        };
        self.warm.push(Warm {
            id: generation.id(),
            used: self.leases,
            instance: Box::new(made?),
        });
        Ok(self.warm.len() - 1)
    }

    /// Drops the instance that was not used for longest.
    fn evict(&mut self) {
        let oldest = self
            .warm
            .iter()
            .enumerate()
            .min_by_key(|(_, warm)| warm.used);
        if let Some((index, _)) = oldest {
            self.warm.swap_remove(index);
        }
    }

    /// Drops instances of generations that are neither active nor previous any more: those that a request made after
    /// their generation was retired, or that a fallback used.
    pub fn sweep(&mut self) {
        self.warm.retain(|warm| !warm.instance.is_orphaned());
    }

    /// Drops the instance of a generation.
    pub fn discard(&mut self, generation: GenerationId) {
        self.warm.retain(|warm| warm.id != generation);
    }
}
