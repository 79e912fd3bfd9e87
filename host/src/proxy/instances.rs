//! One worker's warm plugin instances.

use super::Proxy;
use crate::plugin::{Generation, GenerationId, Instance, RouteError};
use crate::store::Snapshot;
use std::sync::Arc;
use tokio::sync::oneshot;

impl Proxy {
    /// Makes this worker hold an instance of a generation, and tells `answer`. If it keeps a view of its own, it is told
    /// everything first, with requests served in between.
    pub async fn warm(
        &self,
        generation: &Arc<Generation>,
        answer: oneshot::Sender<Result<(), String>>,
    ) {
        let warmed = loop {
            // Whoever asked let go of the generation.
            if answer.is_closed() {
                return self.instances.borrow_mut().discard(generation.id());
            }
            let told = {
                let (mut reader, mut instances) =
                    (self.reader.borrow_mut(), self.instances.borrow_mut());
                instances.tell_page(generation, self.worker, reader.load())
            };
            match told {
                Ok(true) => break Ok(()),
                Ok(false) => tokio::task::yield_now().await,
                Err(error) => break Err(error.to_string()),
            }
        };
        // Whoever asked and went away wants no answer.
        let _ = answer.send(warmed);
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

    /// Tells the instance of a generation a page of what its view has not; whether that was the last one.
    ///
    /// # Errors
    /// If it cannot be instantiated or told; it is dropped then.
    pub fn tell_page(
        &mut self,
        generation: &Arc<Generation>,
        worker: usize,
        snapshot: &Arc<Snapshot>,
    ) -> Result<bool, RouteError> {
        let told = self.lease(generation, worker)?.tell_page(snapshot);
        told.inspect_err(|_| self.discard(generation.id()))
    }

    /// Lets every instance go over to this state of the store, so that none that nobody asks keeps an older one. Those
    /// that keep a view of their own are told a page.
    pub fn refresh(&mut self, snapshot: &Arc<Snapshot>) {
        self.warm
            .retain_mut(|warm| match warm.instance.refresh(snapshot) {
                Ok(()) => true,
                Err(error) => {
                    let label = warm.instance.label();
                    let (plugin, version) = (&*label.plugin, label.version());
                    tracing::warn!(plugin, version, %error, "instance was not told what has changed");
                    false
                }
            });
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
