//! Two versions of one plugin, deployed in turn.

use anyhow::{Context, Result};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use throwbar_host::plugin::{
    Access, CompileIn, PluginConfig, PluginLimits, Plugins, PluginsOptions, Source, builtin,
};
use throwbar_host::store::{BackendKind, BucketConfig, Store, ValueKind};

/// A plugin, and two components for it.
pub struct Deploys {
    plugins: Arc<Plugins>,
    versions: [Bytes; 2],
    runtime: tokio::runtime::Runtime,
    _data: tempfile::TempDir,
}

const NAME: &str = "bench";

impl Deploys {
    /// Compiles both versions.
    ///
    /// # Errors
    /// If one is refused.
    pub fn open() -> Result<Self> {
        Self::open_with(CompileIn::Thread)
    }

    /// The same, compiling in this place.
    ///
    /// # Errors
    /// If one is refused.
    pub fn open_with(compile_in: CompileIn) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let data = tempfile::tempdir()?;
        let bucket = BucketConfig::new("upstreams", BackendKind::Memory, ValueKind::Endpoint);
        let plugins = Plugins::new(PluginsOptions {
            data: data.path(),
            store: Store::open(&[bucket], data.path())?,
            workers: 2,
            component_bytes_max: 1 << 20,
            compile_in,
        })?;
        let config = PluginConfig {
            name: NAME.into(),
            source: Source::Pushed,
            grants: BTreeMap::from([("upstreams".into(), Access::Read)]),
            settings: BTreeMap::new(),
            limits: PluginLimits::default(),
            sessions: Default::default(),
            versions: Default::default(),
        };
        let version =
            |name| Ok::<_, anyhow::Error>(builtin::component(name).context(name)?.to_vec().into());
        let deploys = Self {
            versions: [version("by-header")?, version("maintenance")?],
            plugins,
            runtime,
            _data: data,
        };
        let applied = deploys.runtime.block_on(deploys.plugins.apply(&[config]));
        applied.map_err(|(_, error)| error)?;
        deploys.swap(0)?;
        deploys.swap(1)?;
        Ok(deploys)
    }

    /// Deploys one of both versions in turn; returns how long its publish took.
    ///
    /// # Errors
    /// If it is refused.
    pub fn swap(&self, turn: usize) -> Result<Duration> {
        let version = self.versions[turn % 2].clone();
        let deploy = self.plugins.deploy(NAME, version, "bench", false);
        let deployed = self.runtime.block_on(deploy)?;
        Ok(Duration::from_secs_f64(deployed.publish_us / 1e6))
    }

    /// Compiles and tries a component, and changes nothing.
    ///
    /// # Errors
    /// If it is refused.
    pub fn check(&self, component: Vec<u8>) -> Result<()> {
        let deploy = self.plugins.deploy(NAME, component.into(), "bench", true);
        self.runtime.block_on(deploy)?;
        Ok(())
    }

    /// Goes back to the version before.
    ///
    /// # Errors
    /// If it is refused.
    pub fn rollback(&self) -> Result<()> {
        self.runtime
            .block_on(self.plugins.rollback(NAME, "bench", false))?;
        Ok(())
    }
}
