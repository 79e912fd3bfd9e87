//! What a plugin is, and how the host's two calls reach it.

use crate::bindings::throwbar::plugin::types::Subscription;
use crate::{Decision, Request, Setup};

/// A routing plugin with settings or state.
///
/// [`#[throwbar::router]`](macro@crate::router) on the `impl` makes it the plugin of the crate:
///
/// ```
/// use throwbar::prelude::*;
///
/// struct ById {
///     id: Slot,
///     upstreams: Bucket,
/// }
///
/// #[throwbar::router]
/// impl Router for ById {
///     fn init(setup: &mut Setup) -> Result<Self, String> {
///         let header = config::get_or("header", "x-id");
///         setup.remove_request_header(&header);
///         Ok(Self {
///             id: setup.slot_header(&header),
///             upstreams: setup.bucket("upstreams"),
///         })
///     }
///
///     fn route(&self, req: &Request) -> Decision {
///         match req.lookup(self.upstreams, self.id) {
///             Some(entry) => entry.into(),
///             None => Decision::Pass,
///         }
///     }
/// }
/// # fn main() {}
/// ```
pub trait Router: Sized + 'static {
    /// Called once for each instance, before its first request: reads the settings, and tells `setup` what every
    /// request is to bring along.
    ///
    /// # Errors
    /// A message for the operator: it refuses this version of the plugin, and the one before goes on serving.
    fn init(setup: &mut Setup) -> Result<Self, String>;

    /// Decides one request.
    ///
    /// A panic is answered by what the route's `on_failure` says, and drops this instance with what it wrote.
    fn route(&self, request: &Request) -> Decision;
}

/// A router after `init`, with what it subscribed to.
#[doc(hidden)]
pub struct Running<R> {
    router: R,
    subscription: Subscription,
}

impl<R: Router> Running<R> {
    /// Runs `init`.
    ///
    /// # Errors
    /// That of `init`, or of a subscription larger than the contract allows.
    pub fn start() -> Result<Self, String> {
        let mut setup = Setup::default();
        let router = R::init(&mut setup)?;
        Ok(Self {
            router,
            subscription: setup.finish()?,
        })
    }

    /// What the host is told.
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Decides one request, given the subscribed fields as the host packs them.
    #[inline]
    pub fn route(&self, fields: Option<String>) -> Decision {
        self.router.route(&Request::new(fields, &self.subscription))
    }
}

/// Makes a [`Router`] the plugin of the crate. The attribute writes this line.
#[doc(hidden)]
#[macro_export]
macro_rules! export {
    ($router:ty $(, streams = $session:ty)? $(, migrate = $migrate:path)? $(, view = $view:ty)?) => {
        // Natively nothing calls it but tests; it is in use all the same.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() -> ::core::result::Result<$crate::router::Running<$router>, ::std::string::String> =
            $crate::router::Running::start;
        $(
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn(&$crate::Request<'_>, Option<&[u8]>) -> Result<$crate::Opening<$session>, $crate::Reply> =
                <$session as $crate::Session>::open;
        )?
        $(
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn(Option<&str>) -> ::core::result::Result<(), ::std::string::String> = $migrate;
        )?
        $(
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() -> ::std::vec::Vec<::std::string::String> = <$view as $crate::View>::buckets;
        )?

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use ::std::cell::OnceCell;
            use $crate::bindings::exports::throwbar::plugin::routing;

            ::std::thread_local! {
                static RUNNING: OnceCell<$crate::router::Running<$router>> = const { OnceCell::new() };
            }

            struct Component;

            impl routing::Guest for Component {
                fn init() -> Result<routing::Subscription, ::std::string::String> {
                    $crate::log::panics();
                    let running = $crate::router::Running::start()?;
                    let subscription = running.subscription().clone();
                    let first = RUNNING.with(|cell| cell.set(running).is_ok());
                    if !first {
                        return Err("init was called twice".into());
                    }
                    Ok(subscription)
                }

                #[inline]
                fn route(fields: Option<::std::string::String>) -> routing::Decision {
                    RUNNING.with(|cell| cell.get().expect("the host calls init first").route(fields))
                }
            }

            $crate::bindings::export!(Component with_types_in $crate::bindings);

            $(
                use $crate::hook_bindings::exports::throwbar::plugin::streams;

                /// A session, as the host's handle stands for it.
                struct Held(::std::cell::RefCell<$session>);

                impl streams::Guest for Component {
                    type Session = Held;
                }

                impl streams::GuestSession for Held {
                    fn open(
                        fields: Option<::std::string::String>,
                        saved: Option<::std::vec::Vec<u8>>,
                    ) -> Result<streams::Opening, $crate::Reply> {
                        let opening = RUNNING.with(|cell| {
                            let running = cell.get().expect("the host calls init first");
                            $crate::session::open::<$session>(fields, saved.as_deref(), running.subscription())
                        })?;
                        Ok(streams::Opening {
                            tick_ms: opening.tick_ms(),
                            target: opening.target,
                            session: streams::Session::new(Held(opening.session.into())),
                        })
                    }

                    #[inline]
                    fn on_message(
                        &self,
                        direction: streams::Direction,
                        kind: streams::Kind,
                        bytes: ::std::vec::Vec<u8>,
                    ) -> streams::Verdict {
                        let message = $crate::Message { direction, kind, bytes };
                        $crate::Session::on_message(&mut *self.0.borrow_mut(), message)
                    }

                    fn on_tick(&self) -> streams::Impulse {
                        $crate::Session::on_tick(&mut *self.0.borrow_mut())
                    }

                    fn on_close(&self, ending: streams::Ending) {
                        $crate::Session::on_close(&mut *self.0.borrow_mut(), ending);
                    }
                }

                $crate::hook_bindings::export!(Component with_types_in $crate::hook_bindings);
            )?

            $(
                use $crate::migration_bindings::exports::throwbar::plugin::migration;

                impl migration::Guest for Component {
                    fn migrate(
                        from_version: Option<::std::string::String>,
                    ) -> ::core::result::Result<(), ::std::string::String> {
                        $migrate(from_version.as_deref())
                    }
                }

                $crate::migration_bindings::export!(Component with_types_in $crate::migration_bindings);
            )?

            $(
                use $crate::watch_bindings::exports::throwbar::plugin::watcher;

                impl watcher::Guest for Component {
                    fn buckets() -> ::std::vec::Vec<::std::string::String> {
                        <$view as $crate::View>::buckets()
                    }

                    fn changed(bucket: u32, changes: ::std::vec::Vec<watcher::Change>, more: bool) {
                        $crate::view::changed::<$view>(bucket, changes, more);
                    }
                }

                $crate::watch_bindings::export!(Component with_types_in $crate::watch_bindings);
            )?
        };
    };
}
