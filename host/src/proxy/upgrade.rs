//! Upgrades: after a valid 101 both raw sockets leave HTTP and become a stream.

use super::Proxy;
use super::error::ProxyError;
use super::forward::Forwarded;
use super::record::Record;
use super::site::SiteView;
use crate::listener::ClientConnection;
use crate::listener::socket::DownstreamSocket;
use crate::plugin::decision::{Follow, Varying};
use crate::stream::{Following, Hook, NewStream, Times};
use base64::Engine;
use http::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use sha1::{Digest, Sha1};
use std::rc::Rc;
use std::sync::Arc;

/// What RFC 6455, 1.3 appends to the key.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether `accept` answers `key` (RFC 6455, 4.2.2).
pub fn accepts(key: &HeaderValue, accept: Option<&HeaderValue>) -> bool {
    let digest = Sha1::new()
        .chain_update(key.as_bytes())
        .chain_update(ACCEPT_GUID)
        .finalize();
    let expected = base64::engine::general_purpose::STANDARD.encode(digest);
    accept.is_some_and(|accept| accept.as_bytes() == expected.as_bytes())
}

/// The fields that tell a client of the switch.
pub fn switching(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// A stream that waits for the client's socket to leave HTTP.
pub struct Pending {
    /// The endpoint's side.
    pub forwarded: Forwarded,
    /// The client's side.
    pub client: OnUpgrade,
    /// What the plugin said of the stream.
    pub varying: Option<Box<Varying>>,
    /// The entry it follows.
    pub follow: Option<Box<Follow>>,
    /// What its messages are shown to.
    pub hook: Option<Box<Hook>>,
}

impl Proxy {
    /// Joins both sockets once the 101 has been written to the client.
    ///
    /// # Errors
    /// If there is no room for another stream.
    pub fn join(
        self: &Rc<Self>,
        view: &Rc<SiteView>,
        connection: &Rc<ClientConnection>,
        pending: Pending,
        record: &Record,
    ) -> Result<(), ProxyError> {
        if self.streams.is_full() {
            return Err(ProxyError::TooManyStreams);
        }
        let site = &view.site;
        let (route, times) = match record.route {
            Some(route) => (site.routes[route].name.clone(), site.routes[route].streams),
            None => (Arc::default(), site.streams.times),
        };
        let (label, key) = (record.label.clone(), record.key.clone());
        let Pending {
            forwarded,
            client,
            varying,
            follow,
            hook,
        } = pending;
        let (proxy, connection) = (self.clone(), connection.clone());
        tokio::task::spawn_local(async move {
            let Forwarded {
                response,
                connection: upstream,
                picked,
            } = forwarded;
            // The client went away before it was told.
            let Ok(upgraded) = client.await else { return };
            let Ok(parts) = upgraded.downcast::<DownstreamSocket>() else {
                unreachable!("every client's socket is a DownstreamSocket");
            };
            let endpoint = upstream.place().address.clone();
            let (Ok(downstream), Ok(upstream)) =
                (parts.io.into_tcp().into_std(), upstream.into_raw())
            else {
                return;
            };
            let varying = varying.unwrap_or_default();
            let follow = follow.map(|entry| proxy.following(*entry));
            let opened = proxy.streams.open(NewStream {
                downstream: downstream.into(),
                downstream_read_ahead: parts.read_buf,
                upstream,
                upstream_read_ahead: response.received,
                route,
                label,
                key,
                client: connection.client,
                endpoint,
                upstream_name: picked
                    .as_ref()
                    .and_then(|picked| picked.upstream().cloned()),
                times: Times {
                    idle_timeout: varying.stream_idle_timeout.or(times.idle_timeout),
                    age_max: varying.stream_age_max.or(times.age_max),
                    ..times
                },
                follow,
                hook: hook.map(|hook| *hook),
                // The upstream's policy counts the stream as long as it is open.
                on_close: picked.map(|picked| Box::new(move || drop(picked)) as _),
            });
            if let Err(error) = opened {
                tracing::warn!(%error, "stream refused");
            }
        });
        Ok(())
    }

    fn following(self: &Rc<Self>, entry: Follow) -> Following {
        let proxy = self.clone();
        let is_current = Box::new(move |follow: &Follow| {
            let mut reader = proxy.reader.borrow_mut();
            let bucket = reader.load().bucket(follow.bucket);
            let entry = bucket.and_then(|bucket| bucket.get(&follow.key));
            entry.map(|entry| &entry.value) == Some(&follow.value)
        });
        Following { entry, is_current }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_that_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert!(accepts(
            &key,
            Some(&HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
        ));
        assert!(!accepts(
            &key,
            Some(&HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOp="))
        ));
        assert!(!accepts(&key, None));
    }
}
