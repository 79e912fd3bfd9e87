//! Behaviour of the proxy through its public ports, with real clients.
//!
//! Each test starts a proxy process of its own, with ports from the system and everything it keeps in a directory of its
//! own, so they all run side by side.

#[path = "../harness/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "a harness is wider than its tests of the day, and written like a library"
)]
mod harness;

mod access_log;
mod admin;
mod audit;
mod bodies;
mod canary;
mod cli;
mod clocks;
mod config;
mod demo;
mod deploy;
mod fields;
mod fleet;
mod framing;
mod guard;
mod h2c;
mod hostile;
mod hot_swap;
mod import;
mod kv_bulk;
mod kv_cli;
mod kv_conditions;
mod kv_doors;
mod kv_formats;
mod kv_history;
mod kv_memory;
mod kv_operations;
mod kv_watch;
mod limits;
mod lookup;
mod migrate;
mod on_change;
mod pings;
mod records;
mod revocation;
mod seed;
mod session_writes;
mod sessions;
mod shadow;
mod shared;
mod store;
mod stream_drain;
mod timeouts;
mod tokens;
mod upstream_tls;
mod upstreams;
mod versions;
mod views;
mod websocket;
