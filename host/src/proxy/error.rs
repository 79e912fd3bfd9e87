//! Why a request failed, and the only mapping of that to a response.

use super::request::Refused;
use crate::plugin::{RouteError, SessionError};
use crate::store::CommitError;
use crate::upstream::address::Address;
use crate::upstream::connection::DialError;
use crate::upstream::exchange::ExchangeError;
use crate::upstream::guard;
use http::StatusCode;
use std::error::Error;
use std::fmt::Write;
use std::io;

/// Why a request got no response of an endpoint or a plugin.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The client's fault: its request is refused.
    #[error("{}", .0.reason)]
    Refused(Refused),
    /// The client's fault: its body is larger than `limits.body_bytes_max`.
    #[error("request body is larger than limits.body_bytes_max")]
    BodyTooLarge,
    /// The client's fault: its body ended too early or in garbage.
    #[error("request body failed")]
    RequestBody(#[source] Box<dyn Error + Send + Sync>),
    /// Nobody's: no route is for this request.
    #[error("no route matches")]
    NoRoute,
    /// The plugin's.
    #[error("plugin {plugin:?} version {version}: no decision")]
    Plugin {
        /// Its name.
        plugin: String,
        /// Its version.
        version: String,
        /// What happened.
        #[source]
        error: RouteError,
    },
    /// The plugin's: the stream got no session.
    #[error("plugin {plugin:?} version {version}: no session")]
    Session {
        /// Its name.
        plugin: String,
        /// Its version.
        version: String,
        /// What happened.
        #[source]
        error: SessionError,
    },
    /// The plugin's: its writes were refused.
    #[error("plugin {plugin:?} version {version}: writes refused")]
    Commit {
        /// Its name.
        plugin: String,
        /// Its version.
        version: String,
        /// Why.
        #[source]
        error: CommitError,
    },
    /// The plugin has no version yet.
    #[error("plugin {0:?} has no version yet")]
    NoVersion(String),
    /// The plugin or map named what may not be dialled.
    #[error("endpoint refused")]
    Guard(#[source] guard::Refused),
    /// The plugin named an upstream that does not exist.
    #[error("no upstream {0:?}")]
    NoUpstream(String),
    /// The host name of an endpoint has no address.
    #[error("resolve {0:?}")]
    Resolve(String, #[source] io::Error),
    /// The endpoint could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The endpoint did not answer as it should.
    #[error("endpoint {0}")]
    Exchange(Address, #[source] ExchangeError),
    /// The endpoint accepted an upgrade wrongly.
    #[error("endpoint {0}: {1}")]
    Upgrade(Address, &'static str),
    /// Ours: there is no room for another stream.
    #[error("streams.streams_max is reached")]
    TooManyStreams,
}

impl ProxyError {
    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refused) => refused.status,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestBody(_) => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Plugin { .. }
            | Self::Session { .. }
            | Self::Commit { .. }
            | Self::NoVersion(_)
            | Self::TooManyStreams => StatusCode::SERVICE_UNAVAILABLE,
            Self::Dial(DialError::Timeout(..)) | Self::Exchange(_, ExchangeError::Timeout) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Exchange(_, ExchangeError::Client(_)) => StatusCode::BAD_REQUEST,
            Self::Dial(DialError::TooMany(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Guard(_)
            | Self::NoUpstream(_)
            | Self::Resolve(..)
            | Self::Dial(DialError::Io(..) | DialError::Tls(..))
            | Self::Exchange(..)
            | Self::Upgrade(..) => StatusCode::BAD_GATEWAY,
        }
    }

    /// Itself and its causes, for the log.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(text, ": {error}").expect("writing to memory");
            cause = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::DecisionError;

    #[test]
    fn why_there_is_no_decision_is_said_once() {
        let error = ProxyError::Plugin {
            plugin: "router".into(),
            version: "10a0".into(),
            error: DecisionError::no_upstream("app").into(),
        };
        assert_eq!(
            error.chain(),
            "plugin \"router\" version 10a0: no decision: bad decision: no upstream \"app\" in the config"
        );
    }
}
