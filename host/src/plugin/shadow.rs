//! A shadow: a version that is asked what it would decide of live requests, and compared; nothing of it is acted on.
//!
//! A worker copies the fields that the shadow subscribes to, and what was decided, into a bounded queue; it waits for
//! nobody and wakes nobody. From a version that asks for other parts of a request the first comparisons are void, and from
//! then on whole heads are copied. A thread of the lowest priority looks into the queue every few milliseconds. What does not fit is
//! dropped and counted.

use super::canary::{Fraction, mix};
use super::difference::{self, Difference};
use super::imports::request;
use super::report::{Errors, ShadowInfo, rfc3339};
use super::subscription::Field;
use super::{Decision, Generation, Instance, RequestHead, RouteError};
use crate::store::Snapshot;
use http::{HeaderMap, HeaderValue, Method, Uri};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Requests that may wait to be compared.
const QUEUE: usize = 1024;
/// Longest copy of a request's fields; those of a longer one are not compared.
const FIELDS_BYTES_MAX: usize = 16 << 10;
/// Between two looks into an empty queue.
const POLL: Duration = Duration::from_millis(5);
/// Keys whose decisions differ that are counted one by one.
const KEYS_MAX: usize = 100;
/// Longest key that is shown.
const KEY_BYTES_MAX: usize = 256;

/// A version that is compared with the active one.
pub struct Shadow {
    generation: Arc<Generation>,
    sample: Fraction,
    /// What is copied of a request: all that the version subscribes to, each once.
    fields: Arc<[Field]>,
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    since: SystemTime,
}

/// What workers, the shadow's thread and the admin API share.
#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    /// Set by a worker whose request did not fit; until the thread has made room, nothing more is copied.
    full: AtomicBool,
    /// Set by the thread when the guest asked for what it does not subscribe to.
    whole: AtomicBool,
    dropped: AtomicU64,
    tally: Mutex<Tally>,
}

/// One request, as far as the shadow may see it.
struct Job {
    request: Copied,
    snapshot: Arc<Snapshot>,
    /// What the active version decided; none if it failed.
    decided: Option<Decision>,
}

/// A copy of a request.
enum Copied {
    /// What the shadow subscribes to, as packed for a plugin.
    Fields(String),
    /// All of its head.
    Head(Box<RequestHead>),
}

/// What was found so far.
#[derive(Debug, Default)]
struct Tally {
    compared: u64,
    differing: u64,
    by_field: BTreeMap<&'static str, u64>,
    keys: TopKeys,
}

/// What a shadow found so far.
#[derive(Debug, Clone, Serialize)]
pub struct ShadowReport {
    /// Its version.
    pub version: String,
    /// Its part of the requests, from 0 to 1.
    pub sample: f64,
    /// When it began, in this process.
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// Requests compared.
    pub compared: u64,
    /// Of those, how many were decided in another way.
    pub differing: u64,
    /// Requests that were not compared because the shadow was behind.
    pub dropped: u64,
    /// Calls of the shadow without a decision.
    pub errors: Errors,
    /// Requests by the part of the decision that differs.
    pub fields: BTreeMap<&'static str, u64>,
    /// Keys whose decisions differ, the most frequent first. A count may be too high by as much as `over` says.
    pub keys: Vec<DifferingKey>,
}

/// A key whose decisions differ.
#[derive(Debug, Clone, Serialize)]
pub struct DifferingKey {
    /// What was looked up, or else the first field that the shadow subscribes to.
    pub key: String,
    /// How often.
    pub count: u64,
    /// By how much the count may be too high.
    pub over: u64,
    /// One of the differences.
    pub example: Vec<Difference>,
}

impl Shadow {
    /// Starts its thread.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(super) fn start(generation: Arc<Generation>, sample: Fraction) -> io::Result<Self> {
        let mut fields: Vec<Field> = Vec::new();
        for field in generation.plan.fields.iter().chain(&*generation.plan.slots) {
            if !fields.contains(field) {
                fields.push(field.clone());
            }
        }
        let fields: Arc<[Field]> = fields.into();
        let shared = Arc::<Shared>::default();
        let (queue, jobs) = sync_channel(QUEUE);
        let comparing = Comparing {
            generation: Arc::clone(&generation),
            fields: Arc::clone(&fields),
            shared: Arc::clone(&shared),
            instance: None,
        };
        let thread = std::thread::Builder::new()
            .name("shadow".into())
            .spawn(move || comparing.run(&jobs))?;
        Ok(Self {
            generation,
            sample,
            fields,
            queue,
            shared,
            thread: Mutex::new(Some(thread)),
            since: SystemTime::now(),
        })
    }

    /// Its generation.
    pub(super) fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// Its part of the requests.
    pub(super) fn sample(&self) -> Fraction {
        self.sample
    }

    /// Ends its thread, after the call it is at.
    pub(super) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of a shadow panicked");
        }
    }

    /// Takes a copy of a request that the active version decided, if it is in the sample and there is room. `number` differs
    /// from request to request.
    pub fn offer(
        &self,
        number: u64,
        head: &RequestHead,
        snapshot: &Arc<Snapshot>,
        decided: Option<&Decision>,
    ) {
        if !self.sample.takes(mix(number)) {
            return;
        }
        if self.shared.full.load(Ordering::Relaxed) {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut fits = true;
        let request = if self.shared.whole.load(Ordering::Relaxed) {
            Copied::Head(Box::new(head.clone()))
        } else {
            let mut fields = String::with_capacity(64);
            request::pack(head, &self.fields, &mut fields);
            fits = fields.len() <= FIELDS_BYTES_MAX;
            Copied::Fields(fields)
        };
        let job = Job {
            request,
            snapshot: Arc::clone(snapshot),
            decided: decided.cloned(),
        };
        match fits.then(|| self.queue.try_send(job)) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(_))) => self.shared.full.store(true, Ordering::Relaxed),
            Some(Err(TrySendError::Disconnected(_))) | None => {}
        }
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// In short, for lists.
    pub(super) fn info(&self) -> ShadowInfo {
        let report = self.report();
        let errors = report.errors;
        ShadowInfo {
            version: report.version,
            sample: report.sample,
            compared: report.compared,
            differing: report.differing,
            errors: errors.trap + errors.deadline + errors.bad_decision,
            dropped: report.dropped,
        }
    }

    /// What was found so far.
    pub(super) fn report(&self) -> ShadowReport {
        let mut totals = crate::metrics::CallTotals::default();
        totals.add_stats(self.generation.stats(0));
        let tally = self.shared.tally();
        ShadowReport {
            version: self.generation.label().digest.to_string(),
            sample: self.sample.part(),
            since: self.since,
            compared: tally.compared,
            differing: tally.differing,
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            errors: Errors::from(&totals),
            fields: tally.by_field.clone(),
            keys: tally.keys.sorted(),
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Nothing under it panics half way.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread works with.
struct Comparing {
    generation: Arc<Generation>,
    fields: Arc<[Field]>,
    shared: Arc<Shared>,
    instance: Option<Instance>,
}

impl Comparing {
    fn run(mut self, jobs: &Receiver<Job>) {
        // Only this thread, on Linux. What serves requests goes first.
        if let Err(error) = rustix::process::setpriority_process(None, 19) {
            tracing::debug!(%error, "shadow thread keeps its priority");
        }
        while !self.shared.stopping.load(Ordering::Relaxed) {
            match jobs.try_recv() {
                Ok(job) => self.compare(job),
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.shared.full.store(false, Ordering::Relaxed);
                    // Not a blocking receive: a worker would have to wake it.
                    std::thread::sleep(POLL);
                }
            }
        }
    }

    fn compare(&mut self, job: Job) {
        let (head, is_whole) = match job.request {
            Copied::Fields(fields) => (unpack(&fields, &self.fields), false),
            Copied::Head(head) => (*head, true),
        };
        let first = self.fields.first();
        let first = first.and_then(|field| Some(request::text(&head, field)?.into_owned()));
        let (candidate, asked_beyond) = self.decide(head, &job.snapshot);
        if asked_beyond && !is_whole {
            self.shared.whole.store(true, Ordering::Relaxed);
            return;
        }
        let found = difference::between(job.decided.as_ref(), candidate.as_ref().ok());
        let mut tally = self.shared.tally();
        tally.compared += 1;
        if found.is_empty() {
            return;
        }
        tally.differing += 1;
        for one in &found {
            *tally.by_field.entry(one.field).or_default() += 1;
        }
        let key = difference::key(job.decided.as_ref())
            .or_else(|| difference::key(candidate.as_ref().ok()))
            .or(first.as_deref())
            .unwrap_or_default();
        tally
            .keys
            .add(&key[..key.floor_char_boundary(KEY_BYTES_MAX)], found);
    }

    fn decide(
        &mut self,
        head: RequestHead,
        snapshot: &Arc<Snapshot>,
    ) -> (Result<Decision, RouteError>, bool) {
        let started = Instant::now();
        let mut instance = match self.instance.take() {
            Some(instance) => Ok(instance),
            None => Instance::new(&self.generation).map(|mut instance| {
                instance.watch_asked();
                instance
            }),
        };
        let mut head = Some(head);
        // Its writes go with what it returned.
        let decided = match &mut instance {
            Ok(instance) => instance
                .route(&mut head, snapshot)
                .map(|routed| routed.decision),
            Err(_) => Err(RouteError::Instantiate("no instance".into())),
        };
        let asked_beyond = instance.as_ref().is_ok_and(Instance::asked_beyond);
        self.instance = instance.ok().filter(|instance| !instance.is_poisoned());
        let nanos = started.elapsed().as_nanos() as u64;
        self.generation
            .stats(0)
            .count(decided.as_ref().err(), nanos);
        (decided, asked_beyond)
    }
}

/// A head of what was packed; the rest of it is empty.
fn unpack(packed: &str, fields: &[Field]) -> RequestHead {
    let mut head = RequestHead {
        method: Method::GET,
        uri: Uri::from_static("/"),
        authority: http::uri::Authority::from_static("localhost"),
        headers: HeaderMap::new(),
        client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        scheme: "http",
        websocket: false,
    };
    let (mut path, mut query) = ("/", None);
    for (field, value) in fields.iter().zip(packed.split('\0')) {
        // Every value comes from a valid request, so nothing of this fails.
        match field {
            _ if value == request::ABSENT => {}
            Field::Header(name) => {
                if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                    head.headers.insert(name, value);
                }
            }
            Field::Method => head.method = value.parse().unwrap_or(Method::GET),
            Field::Scheme => head.scheme = if value == "https" { "https" } else { "http" },
            Field::Authority => {
                if let Ok(authority) = value.parse() {
                    head.authority = authority;
                }
            }
            Field::Path => path = value,
            Field::Query => query = Some(value),
            Field::ClientIp => head.client = value.parse().unwrap_or(head.client),
            Field::Upgrade => head.websocket = true,
        }
    }
    let target = match query {
        Some(query) => format!("{path}?{query}").parse(),
        None => path.parse(),
    };
    if let Ok(uri) = target {
        head.uri = uri;
    }
    head
}

/// The most frequent keys, by the space-saving algorithm: a new key takes the place and the count of the rarest.
#[derive(Debug, Default)]
struct TopKeys(Vec<DifferingKey>);

impl TopKeys {
    fn add(&mut self, key: &str, example: Vec<Difference>) {
        if let Some(known) = self.0.iter_mut().find(|known| known.key == key) {
            known.count += 1;
            return;
        }
        let rarest = match self.0.len() < KEYS_MAX {
            true => None,
            false => self.0.iter_mut().min_by_key(|known| known.count),
        };
        let over = rarest.as_ref().map_or(0, |rarest| rarest.count);
        let key = DifferingKey {
            key: key.to_owned(),
            count: over + 1,
            over,
            example,
        };
        match rarest {
            Some(rarest) => *rarest = key,
            None => self.0.push(key),
        }
    }

    fn sorted(&self) -> Vec<DifferingKey> {
        let mut keys = self.0.clone();
        keys.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    #[test]
    fn what_was_packed_is_there_again_and_nothing_else() {
        let fields = [
            Field::Header(HeaderName::from_static("x-id")),
            Field::Header(HeaderName::from_static("x-none")),
            Field::Path,
            Field::Query,
            Field::ClientIp,
            Field::Upgrade,
            Field::Authority,
        ];
        let head = RequestHead {
            method: Method::PUT,
            uri: "/a%20b?q=1".parse().expect("a uri"),
            authority: "example.com:8080".parse().expect("an authority"),
            headers: HeaderMap::from_iter([
                (
                    HeaderName::from_static("x-id"),
                    HeaderValue::from_static("id1"),
                ),
                (
                    HeaderName::from_static("x-more"),
                    HeaderValue::from_static("1"),
                ),
            ]),
            client: "192.0.2.7".parse().expect("an address"),
            scheme: "https",
            websocket: true,
        };
        let mut packed = String::new();
        request::pack(&head, &fields, &mut packed);
        let again = unpack(&packed, &fields);
        let mut repacked = String::new();
        request::pack(&again, &fields, &mut repacked);
        assert_eq!(repacked, packed);
        assert_eq!((again.headers.len(), again.method), (1, Method::GET));
    }

    #[test]
    fn frequent_keys_stay_whatever_else_differs() {
        let mut keys = TopKeys::default();
        for i in 0..10_000u32 {
            keys.add(&format!("rare{i}"), Vec::new());
            if i % 4 == 0 {
                keys.add("often", Vec::new());
            }
        }
        let sorted = keys.sorted();
        assert_eq!(sorted.len(), KEYS_MAX);
        let often = sorted.iter().find(|one| one.key == "often").expect("kept");
        assert!(often.count >= 2_500 && often.count - often.over <= 2_500);
    }
}
