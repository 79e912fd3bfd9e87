//! `wasi:config/store`: the plugin's settings of the config.

use super::HostState;
use super::bindings::wasi::config::store::{Error, Host};

impl Host for HostState {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, Error>> {
        Ok(Ok(self.sandbox.config.settings.get(&key).cloned()))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, Error>> {
        let settings = self.sandbox.config.settings.iter();
        Ok(Ok(settings.map(|(k, v)| (k.clone(), v.clone())).collect()))
    }
}
