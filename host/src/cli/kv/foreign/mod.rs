//! Maps of other proxies as entries of a bucket.

mod haproxy;
mod nginx;

pub(super) use haproxy::parse as haproxy_map;
pub(super) use nginx::parse as nginx_map;

/// What a foreign map comes to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// Key and value, each key once.
    pub(super) entries: Vec<(String, String)>,
    /// What a bucket has no counterpart for, with its line.
    pub(super) unsupported: Vec<String>,
    /// What is done in another way here.
    pub(super) notes: Vec<String>,
}
