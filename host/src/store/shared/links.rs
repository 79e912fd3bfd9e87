//! The engines that proxies share and that this process has opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::link::Link;
use super::settings::SharedSettings;
use crate::store::backend::Wake;
use crate::store::{BackendKind, OpenError};

/// Starts a link; tried again if it could not.
type Starter = Box<dyn Fn(Wake) -> Result<Link, String> + Send>;

/// One link for each kind, started when a bucket first needs it.
pub(in crate::store) struct Links {
    dir: PathBuf,
    starters: Mutex<BTreeMap<BackendKind, Starter>>,
    /// Whether none is started any more.
    is_closed: AtomicBool,
    etcd: OnceLock<Link>,
    redis: OnceLock<Link>,
}

impl Links {
    /// Those of the config, none of which is started yet; copies of what they hold are kept in `dir`.
    pub(in crate::store) fn new(settings: SharedSettings, dir: &Path) -> Self {
        let links = Self {
            dir: dir.to_owned(),
            starters: Mutex::default(),
            is_closed: AtomicBool::new(false),
            etcd: OnceLock::new(),
            redis: OnceLock::new(),
        };
        #[cfg(feature = "etcd")]
        if let Some(etcd) = settings.etcd {
            links.add(BackendKind::Etcd, move |wake| {
                let timeout = etcd.timeout;
                let engine = super::Etcd::new(etcd.clone()).map_err(|error| error.to_string())?;
                Link::start(engine, "etcd", timeout, wake).map_err(|error| error.to_string())
            });
        }
        #[cfg(feature = "redis")]
        if let Some(redis) = settings.redis {
            links.add(BackendKind::Redis, move |wake| {
                let timeout = redis.timeout;
                let engine = super::Redis::new(redis.clone()).map_err(|error| error.to_string())?;
                Link::start(engine, "redis", timeout, wake).map_err(|error| error.to_string())
            });
        }
        links
    }

    pub(in crate::store) fn add(
        &self,
        kind: BackendKind,
        start: impl Fn(Wake) -> Result<Link, String> + Send + 'static,
    ) {
        let mut starters = self.starters.lock().unwrap_or_else(PoisonError::into_inner);
        starters.insert(kind, Box::new(start));
    }

    fn place(&self, kind: BackendKind) -> Option<&OnceLock<Link>> {
        match kind {
            BackendKind::Memory | BackendKind::Embedded => None,
            BackendKind::Etcd => Some(&self.etcd),
            BackendKind::Redis => Some(&self.redis),
        }
    }

    /// The link of a kind, started if it is not yet.
    ///
    /// # Errors
    /// If there are no settings for it, or they are wrong; if all were ended.
    pub(in crate::store) fn open(
        &self,
        kind: BackendKind,
        wake: impl FnOnce() -> Wake,
    ) -> Result<&Link, OpenError> {
        let failed = |reason: String| OpenError::Shared {
            backend: kind,
            reason,
        };
        let place = self
            .place(kind)
            .ok_or_else(|| failed("expected a backend that proxies share".into()))?;
        if let Some(link) = place.get() {
            return Ok(link);
        }
        let mut starters = self.starters.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been faster.
        if let Some(link) = place.get() {
            return Ok(link);
        }
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(OpenError::Closed);
        }
        let start = starters
            .get(&kind)
            .ok_or_else(|| failed("the config does not say where it is".into()))?;
        let link = start(wake()).map_err(failed)?;
        starters.remove(&kind);
        Ok(place.get_or_init(|| link))
    }

    /// The link of a kind, if it was started.
    pub(in crate::store) fn get(&self, kind: BackendKind) -> Option<&Link> {
        self.place(kind)?.get()
    }

    /// Those that were started.
    pub(in crate::store) fn iter(&self) -> impl Iterator<Item = (BackendKind, &Link)> {
        let kinds = [BackendKind::Etcd, BackendKind::Redis];
        kinds
            .into_iter()
            .filter_map(|kind| Some((kind, self.get(kind)?)))
    }

    /// Whether the config has any.
    pub(in crate::store) fn is_configured(&self) -> bool {
        let starters = self.starters.lock().unwrap_or_else(PoisonError::into_inner);
        !starters.is_empty() || !self.is_empty()
    }

    /// Whether none was started.
    pub(in crate::store) fn is_empty(&self) -> bool {
        self.etcd.get().is_none() && self.redis.get().is_none()
    }

    /// Where a copy of what a kind holds is kept.
    pub(in crate::store) fn copy_path(&self, kind: BackendKind) -> PathBuf {
        self.dir.join(format!("{}.copy", kind.as_str()))
    }

    /// Ends all of them.
    pub(in crate::store) fn close(&self) {
        let starters = self.starters.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_closed.store(true, Ordering::Relaxed);
        drop(starters);
        for (_, link) in self.iter() {
            link.close();
        }
    }
}
