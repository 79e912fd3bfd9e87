//! Lines for the proxy's log, which says beside each which plugin and version wrote it. Lines over the plugin's rate
//! are dropped and counted.

use crate::door;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

macro_rules! levels {
    ($($name:ident $level:ident $what:literal;)*) => {$(
        #[doc = $what]
        pub fn $name(message: impl AsRef<str>) {
            door::log(Level::$level, message.as_ref());
        }
    )*};
}

levels! {
    trace Trace "Logs a step that only a debugging author wants to see.";
    debug Debug "Logs what helps to understand a decision.";
    info Info "Logs what an operator may want to know.";
    warn Warn "Logs what an operator should look at some day.";
    error Error "Logs what an operator should look at now.";
}

/// Has panics logged before they trap: their message would be lost, as a plugin has no standard error.
#[doc(hidden)]
pub fn panics() {
    std::panic::set_hook(Box::new(|panic| error(panic.to_string())));
}
