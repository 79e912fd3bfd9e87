//! Loading buckets that processes share, on whatever thread may wait: not the writer's, which an engine that is slow or away
//! would keep from all other writes.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::{Loaded, Wake};
use crate::store::configure::missing;
use crate::store::content::table;
use crate::store::shared::link::Wanted;
use crate::store::shared::{EngineError, Links, copy};
use crate::store::snapshot::Snapshot;
use crate::store::writer::Command;
use crate::store::{BackendKind, BucketConfig, OpenError, Revision};

/// A bucket as its engine has it, or had it.
pub(in crate::store) struct Fetched {
    kind: BackendKind,
    name: Box<str>,
    /// From where on it is to be followed; none if it is only what was kept of it.
    from: Option<Revision>,
    pub(in crate::store) loaded: Loaded,
}

impl Fetched {
    /// Whether it is the bucket of a config.
    pub(in crate::store) fn is_of(&self, config: &BucketConfig) -> bool {
        self.kind == config.backend && *self.name == *config.name
    }

    /// What is to be followed.
    pub(in crate::store) fn wanted(&self) -> (BackendKind, Wanted) {
        (self.kind, (self.name.clone(), self.from))
    }
}

/// Loads from engines; clones share their links.
#[derive(Clone)]
pub(in crate::store) struct Fetcher {
    pub(in crate::store) links: Arc<Links>,
    /// What readers see.
    pub(in crate::store) newest: Arc<ArcSwap<Snapshot>>,
    /// Where links say that something has arrived.
    pub(in crate::store) commands: Sender<Command>,
}

impl Fetcher {
    /// Loads the buckets of a config that processes share and a state does not have. Blocks for as long as the engine takes.
    ///
    /// # Errors
    /// If an engine is away and there is no copy, or it refuses.
    pub(in crate::store) fn fetch(
        &self,
        previous: &Snapshot,
        configs: &[BucketConfig],
    ) -> Result<Vec<Fetched>, OpenError> {
        let missing = missing(previous, configs);
        missing.iter().map(|config| self.load(config)).collect()
    }

    /// A bucket of an engine; what was kept of it, if the engine is away.
    fn load(&self, config: &BucketConfig) -> Result<Fetched, OpenError> {
        let (kind, links) = (config.backend, &self.links);
        let link = links.open(kind, || Wake {
            newest: Arc::clone(&self.newest),
            commands: self.commands.clone(),
            kind,
            pending: Arc::default(),
        })?;
        let name: Box<str> = config.name.as_str().into();
        let failed = |reason: String| OpenError::Shared {
            backend: kind,
            reason,
        };
        // One that was away for the last bucket is so for this one, and need not be waited for again.
        let asked = Instant::now();
        let loaded = match link.health().lost {
            Some(reason) => Err(EngineError::Unavailable(reason)),
            None => link.load_blocking(vec![name.clone()]),
        };
        let (loaded, from) = match loaded {
            Ok(loaded) => {
                link.loaded(asked);
                let revision = loaded.revision;
                (loaded, Some(revision))
            }
            Err(EngineError::Refused(reason)) => return Err(failed(reason)),
            Err(error) => {
                let path = links.copy_path(kind);
                let kept = copy::read(&path, &name).map_err(failed)?;
                let (loaded, at) = kept.ok_or_else(|| {
                    let engine = kind.as_str();
                    let advice = match error.to_string().contains("refused") {
                        true => "start it first".to_owned(),
                        false => {
                            format!("check the addresses, `tls` and the login in [store.{engine}]")
                        }
                    };
                    failed(format!(
                        "{error}; there is no copy of bucket {name:?} in {} to begin with: {advice}",
                        path.display()
                    ))
                })?;
                link.kept_from(at, error.to_string());
                (loaded, None)
            }
        };
        let revision = loaded.revision;
        let loaded = Loaded {
            table: table(config, loaded),
            revision,
        };
        Ok(Fetched {
            kind,
            name,
            from,
            loaded,
        })
    }
}
