//! Write a routing plugin for the Throwbar reverse proxy.
//!
//! A plugin decides, for each request, where it goes. This is a whole one:
//!
//! ```
//! use throwbar::prelude::*;
//!
//! #[throwbar::router]
//! fn route(req: &Request) -> Decision {
//!     match req.lookup("upstreams", "x-id") {
//!         Some(entry) => entry.into(),
//!         None => Reply::text(404, "nobody of that name").into(),
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! It is a library crate with `crate-type = ["cdylib", "rlib"]` and `throwbar` as its only dependency. `cargo build
//! --release --target wasm32-wasip2` makes the component, and `cargo test` runs its unit tests natively, against the
//! fake host of [`testing`].
//!
//! What a plugin wants of every request it says once: the host passes that much and no more. The attribute on a function
//! reads it off the function's own literals; whatever it cannot see stays reachable, at the price of a call to the host.
//! A plugin with settings or state implements [`Router`] and says it to [`Setup`].
//!
//! A plugin that wants to see the messages of the WebSockets it forwards has a [`Session`] for each of them. One whose
//! data change their form from version to version brings them along by a [migration](macro@router#migration). One that would
//! parse its data again and again keeps a [`View`] of them.

#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "router",
        default_bindings_module: "throwbar::bindings",
        export_macro_name: "export",
        pub_export_macro: true,
        generate_all,
        additional_derives: [PartialEq, Eq],
    });
}

#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod hook_bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "hooks",
        default_bindings_module: "throwbar::hook_bindings",
        export_macro_name: "export",
        pub_export_macro: true,
        with: {
            "throwbar:plugin/types@0.1.0": crate::bindings::throwbar::plugin::types,
        },
        additional_derives: [PartialEq, Eq],
        // It holds a handle, which is not compared.
        additional_derives_ignore: ["opening"],
    });
}

#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod migration_bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "migrating",
        default_bindings_module: "throwbar::migration_bindings",
        export_macro_name: "export",
        pub_export_macro: true,
    });
}

#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod watch_bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "watching",
        default_bindings_module: "throwbar::watch_bindings",
        export_macro_name: "export",
        pub_export_macro: true,
    });
}

pub mod config;
pub mod decision;
mod door;
pub mod json;
pub mod kv;
pub mod log;
pub mod request;
pub mod router;
pub mod session;
pub mod setup;
pub mod stream_options;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod view;

pub use decision::{Decision, Forward, Reply, Target};
pub use request::{Entry, Request};
pub use router::Router;
pub use session::{Direction, Ending, Impulse, Kind, Message, Opening, Session, Verdict};
pub use setup::{Bucket, Field, Setup, Slot, Subscribed};
pub use stream_options::OnChange;
pub use throwbar_macros::router;
pub use view::View;

/// What most plugins use.
pub mod prelude {
    pub use crate::{
        Bucket, Decision, Direction, Ending, Entry, Field, Forward, Impulse, Kind, Message,
        OnChange, Opening, Reply, Request, Router, Session, Setup, Slot, Subscribed, Target,
        Verdict, View, config, json, kv, log, session, view,
    };
}
