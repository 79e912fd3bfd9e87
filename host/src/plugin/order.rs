//! What is asked for: a version, what it is to be, and how.

use super::{Fraction, Share};
use bytes::Bytes;

/// What is to be brought into a role.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// These bytes.
    Component(Bytes),
    /// The version whose digest begins so.
    Version(String),
    /// What was active before.
    Previous,
}

/// What a version is to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Role {
    /// It decides.
    Active,
    /// It decides a share of the requests.
    Canary(Share),
    /// It is asked about this part of the requests, and compared.
    Shadow(Fraction),
}

/// How something is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// Who asks.
    pub by: &'a str,
    /// Try everything, change nothing.
    pub dry_run: bool,
    /// Though the guard took the version back, or something else speaks against it that is not in the way.
    pub force: bool,
}
