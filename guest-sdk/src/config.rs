//! Settings of the plugin, from its section of the proxy's config.

use crate::door;
use std::fmt::Display;
use std::str::FromStr;

/// A setting, if it is there.
pub fn get(name: &str) -> Option<String> {
    door::config_get(name)
}

/// A setting, or its default.
pub fn get_or(name: &str, default: &str) -> String {
    get(name).unwrap_or_else(|| default.to_owned())
}

/// A setting that has no default.
///
/// # Errors
/// If it is absent; the message names it, ready to be returned from `init`.
pub fn require(name: &str) -> Result<String, String> {
    get(name).ok_or_else(|| format!("setting {name:?} is missing"))
}

/// A setting of any type that can be read from text, if it is there.
///
/// ```no_run
/// # use throwbar::config;
/// # fn init() -> Result<(), String> {
/// let port: u16 = config::parse("port")?.unwrap_or(8080);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If it cannot be read; the message names it, its value and why.
pub fn parse<T: FromStr<Err: Display>>(name: &str) -> Result<Option<T>, String> {
    let Some(text) = get(name) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(format!("setting {name:?} is {text:?}: {error}")),
    }
}

/// Every setting, by name, in no particular order.
pub fn all() -> Vec<(String, String)> {
    door::config_all()
}
