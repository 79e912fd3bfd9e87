//! WIP.
use throwbar::prelude::*;
#[throwbar::router]
fn route(_req: &Request) -> Decision { Decision::Pass }
