//! Host names into addresses, remembered for a moment by each worker.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long an answer is used. The system's resolver tells no time to live.
const ANSWER_TTL: Duration = Duration::from_secs(5);
/// Names remembered at most; the map is emptied when it is full.
const NAMES_MAX: usize = 10_000;
/// For one look-up.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One worker's answers.
#[derive(Default)]
pub struct Resolver {
    answers: RefCell<HashMap<Box<str>, Answer, ahash::RandomState>>,
}

/// When the resolver was asked, and what it said.
type Answer = (Instant, Vec<SocketAddr>);

impl Resolver {
    /// The addresses of a host name, with this port; at least one.
    ///
    /// # Errors
    /// If the system's resolver fails, finds none, or takes more than 5 s.
    pub async fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Some((at, addresses)) = self.answers.borrow().get(name)
            && at.elapsed() < ANSWER_TTL
        {
            return Ok(with_port(addresses, port));
        }
        let found = tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name, port)))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "resolver took too long"))??;
        let addresses: Vec<SocketAddr> = found.collect();
        if addresses.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "name has no address",
            ));
        }
        let mut answers = self.answers.borrow_mut();
        if answers.len() >= NAMES_MAX {
            answers.clear();
        }
        answers.insert(name.into(), (Instant::now(), addresses.clone()));
        Ok(addresses)
    }
}

fn with_port(addresses: &[SocketAddr], port: u16) -> Vec<SocketAddr> {
    addresses
        .iter()
        .map(|a| SocketAddr::new(a.ip(), port))
        .collect()
}
