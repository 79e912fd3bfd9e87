//! Throwbar: a reverse proxy whose routing is a WebAssembly component.
//!
//! Two lives, each written once, top to bottom:
//!
//! **A request**: accept [`listener`] → parse `listener/http.rs` → admit `proxy/request.rs` → route `proxy/route.rs`
//! → forward `proxy/forward.rs` → stream `proxy/body.rs` or `proxy/upgrade.rs` → log [`proxy::access_log`].
//!
//! **A plugin** (`plugin::Plugins::deploy`): upload `admin/plugins.rs` → keep `plugin/artifact.rs` → validate
//! `plugin/validate.rs` → compile `plugin/compile.rs` → prepare [`plugin::generation`] → swap (one atomic store,
//! [`plugin`]) → drain and free [`plugin::generation`].

pub mod admin;
pub mod app;
pub mod audit;
mod changes;
pub mod cli;
pub mod config;
pub mod control;
pub mod deadline;
pub mod drain;
pub mod drains;
pub mod echo;
pub mod fleet;
pub mod listener;
pub mod log_file;
pub mod memory;
pub mod metrics;
pub mod plugin;
pub mod proxy;
pub mod store;
pub mod stream;
pub mod upstream;
pub mod worker;
