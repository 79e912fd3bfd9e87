//! Which requests a route is for.

use crate::plugin::RequestHead;

/// Conditions, all of which must hold; none holds always.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matcher {}

impl Matcher {
    /// Whether the request is for this route.
    pub fn matches(&self, _head: &RequestHead) -> bool {
        unimplemented!()
    }
}
