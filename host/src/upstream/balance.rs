//! Which endpoint of an upstream a request gets.

use super::{Config, Policy};
use crate::store::{Target, TypedRecord};
use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

/// One worker's state of one upstream, or of one typed record.
pub struct Balancer {
    name: Option<Arc<str>>,
    endpoints: Box<[Endpoint]>,
    policy: Policy,
    /// Whether one has another weight than the others.
    is_weighted: bool,
    next: Cell<usize>,
}

/// An endpoint, and this worker's state of it.
struct Endpoint {
    /// Where, without a port of its own, and the port: 0 for one that has none.
    place: (Target, u16),
    weight: u16,
    active: Cell<u32>,
    /// It failed to be reached, until when (in ticks): passed over while another one is left.
    down_until: Cell<u32>,
    /// How much of its turn it has, of those that take turns by weight.
    credit: Cell<i64>,
}

/// Ticks for which an endpoint that could not be reached is passed over: 2 s.
const DOWN_TICKS: u32 = 20;

/// An endpoint in use; counted until it is dropped.
pub struct Picked {
    balancer: Rc<Balancer>,
    index: usize,
}

impl Balancer {
    /// For a checked config: there is at least one endpoint.
    pub fn new(config: &Config) -> Rc<Self> {
        let places = config.endpoints.iter().cloned();
        let name = Some(config.name.as_str().into());
        Self::of(name, places.map(|place| (place, 1)), config.policy)
    }

    /// For a typed record, which has at least one address.
    pub fn of_record(record: &TypedRecord) -> Rc<Self> {
        let places = record.addresses.iter().map(|one| {
            let (target, port) = one.target.split_port();
            ((target, port.unwrap_or(0)), one.weight)
        });
        Self::of(None, places, record.policy)
    }

    fn of(
        name: Option<Arc<str>>,
        places: impl Iterator<Item = ((Target, u16), u16)>,
        policy: Policy,
    ) -> Rc<Self> {
        let endpoints: Box<[Endpoint]> = places
            .map(|(place, weight)| Endpoint {
                place,
                weight,
                active: Cell::new(0),
                down_until: Cell::new(0),
                credit: Cell::new(0),
            })
            .collect();
        let is_weighted = endpoints
            .windows(2)
            .any(|two| two[0].weight != two[1].weight);
        Rc::new(Self {
            name,
            endpoints,
            policy,
            is_weighted,
            next: Cell::new(0),
        })
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Picks one that is not in `tried`; none if all were. `key` counts for [`Policy::Hash`] only.
    pub fn pick(self: &Rc<Self>, key: &[u8], tried: &[usize], now: u32) -> Option<Picked> {
        let untried = || (0..self.len()).filter(|index| !tried.contains(index));
        let up = |index: &usize| self.endpoints[*index].down_until.get() <= now;
        let candidates = |up_only: bool| untried().filter(move |index| !up_only || up(index));
        let up_only = candidates(true).next().is_some();
        let index = match self.policy {
            Policy::RoundRobin if self.is_weighted => self.turn_by_weight(candidates(up_only)),
            Policy::RoundRobin => {
                let start = self.next_start();
                candidates(up_only).min_by_key(|&index| self.places_after(start, index))
            }
            Policy::LeastRequests => {
                // From where the last one left off, so that equal ones take turns.
                let start = self.next_start();
                candidates(up_only)
                    .min_by_key(|&index| (self.load(index), self.places_after(start, index)))
            }
            Policy::Hash if self.is_weighted => candidates(up_only)
                .map(|index| (self.share(key, index), index))
                .max_by(|(one, _), (other, _)| one.total_cmp(other))
                .map(|(_, index)| index),
            Policy::Hash => candidates(up_only)
                .max_by_key(|&index| rendezvous(key, &self.endpoints[index].place)),
        }?;
        let active = &self.endpoints[index].active;
        active.set(active.get() + 1);
        Some(Picked {
            balancer: self.clone(),
            index,
        })
    }

    fn next_start(&self) -> usize {
        self.next.replace(self.next.get().wrapping_add(1)) % self.len()
    }

    fn places_after(&self, start: usize, index: usize) -> usize {
        (index + self.len() - start) % self.len()
    }

    /// What it would have to do with one more, for its weight.
    fn load(&self, index: usize) -> u64 {
        let endpoint = &self.endpoints[index];
        (u64::from(endpoint.active.get()) + 1) * (1 << 20) / u64::from(endpoint.weight)
    }

    /// Each is given its weight; the richest has its turn, and pays what all were given. So those of much weight come often,
    /// and never in a row that others could be between.
    fn turn_by_weight(&self, candidates: impl Iterator<Item = usize>) -> Option<usize> {
        let (mut richest, mut given) = (None, 0);
        for index in candidates {
            let Endpoint { weight, credit, .. } = &self.endpoints[index];
            given += i64::from(*weight);
            credit.set(credit.get() + i64::from(*weight));
            if richest.is_none_or(|other: usize| self.endpoints[other].credit < *credit) {
                richest = Some(index);
            }
        }
        let credit = &self.endpoints[richest?].credit;
        credit.set(credit.get() - given);
        richest
    }

    /// Rendezvous hash with weights: the greatest is that of each endpoint as often as its weight says.
    fn share(&self, key: &[u8], index: usize) -> f64 {
        let endpoint = &self.endpoints[index];
        let hash = rendezvous(key, &endpoint.place);
        // Between 0 and 1, and neither.
        let unit = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -f64::from(endpoint.weight) / unit.ln()
    }
}

/// Highest random weight: an endpoint that goes moves only its own keys. The hash is the same in every process.
fn rendezvous(key: &[u8], endpoint: &(Target, u16)) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(key);
    endpoint.hash(&mut hasher);
    // FNV's high bits hardly depend on the last bytes: mix them (the finaliser of MurmurHash3).
    let mut hash = hasher.finish();
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl Picked {
    /// The name of its upstream, if it is of one.
    pub fn upstream(&self) -> Option<&Arc<str>> {
        self.balancer.name.as_ref()
    }

    /// Its host, and its port: 0 for one that has none.
    pub fn place(&self) -> &(Target, u16) {
        &self.balancer.endpoints[self.index].place
    }

    /// Its place among the endpoints.
    pub fn index(&self) -> usize {
        self.index
    }

    /// It could not be reached.
    pub fn failed(&self, now: u32) {
        let endpoint = &self.balancer.endpoints[self.index];
        endpoint.down_until.set(now + DOWN_TICKS);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        let active = &self.balancer.endpoints[self.index].active;
        active.set(active.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balancer(policy: Policy, endpoints: usize) -> Rc<Balancer> {
        let endpoint = |i: usize| (Target::Ip([127, 0, 0, 1].into(), None), 1000 + i as u16);
        Balancer::new(&Config {
            name: "u".into(),
            endpoints: (0..endpoints).map(endpoint).collect(),
            policy,
        })
    }

    #[test]
    fn round_robin_takes_turns_and_passes_over_what_failed() {
        let balancer = balancer(Policy::RoundRobin, 3);
        let turn = |now| balancer.pick(b"", &[], now).expect("one").index();
        assert_eq!([turn(0), turn(0), turn(0), turn(0)], [0, 1, 2, 0]);
        balancer
            .pick(b"", &[0, 2], 0)
            .expect("endpoint 1")
            .failed(0);
        assert!((0..6).all(|_| turn(0) != 1));
        assert!((0..6).any(|_| turn(DOWN_TICKS) == 1));
    }

    #[test]
    fn least_requests_counts_what_is_held() {
        let balancer = balancer(Policy::LeastRequests, 2);
        let held = balancer.pick(b"", &[], 0).expect("one");
        let other = balancer.pick(b"", &[], 0).expect("one");
        assert_ne!(held.index(), other.index());
        drop(other);
        assert_ne!(
            balancer.pick(b"", &[], 0).expect("one").index(),
            held.index()
        );
    }

    #[test]
    fn hash_keeps_a_key_and_moves_only_the_keys_of_what_went() {
        let balancer = balancer(Policy::Hash, 4);
        let keys: Vec<String> = (0..400).map(|i| format!("key{i}")).collect();
        let pick = |key: &str, tried: &[usize]| {
            balancer
                .pick(key.as_bytes(), tried, 0)
                .expect("one")
                .index()
        };
        let before: Vec<usize> = keys.iter().map(|key| pick(key, &[])).collect();
        for endpoint in 0..4 {
            let share = before.iter().filter(|&&index| index == endpoint).count();
            assert!(
                (60..140).contains(&share),
                "endpoint {endpoint} has {share} of 400 keys"
            );
        }
        for (key, &index) in keys.iter().zip(&before) {
            if index != 2 {
                assert_eq!(pick(key, &[2]), index);
            }
        }
    }

    #[test]
    fn nothing_is_picked_when_all_were_tried() {
        assert!(
            balancer(Policy::RoundRobin, 2)
                .pick(b"", &[0, 1], 0)
                .is_none()
        );
    }

    fn weighted(policy: &str, weights: &[u16]) -> Rc<Balancer> {
        let addresses: Vec<_> = weights
            .iter()
            .enumerate()
            .map(|(at, weight)| serde_json::json!({ "address": format!("h{at}:80"), "weight": weight }))
            .collect();
        let record = serde_json::json!({ "addresses": addresses, "policy": policy }).to_string();
        let value =
            crate::store::Value::parse(crate::store::ValueKind::Endpoint, record.as_bytes());
        let Ok(crate::store::Value::Typed(record)) = value else {
            panic!("a record: {value:?}");
        };
        Balancer::of_record(&record)
    }

    #[test]
    fn turns_by_weight_are_spread() {
        let balancer = weighted("round-robin", &[5, 1, 1]);
        let turns: Vec<usize> = (0..14)
            .map(|_| balancer.pick(b"", &[], 0).expect("one").index())
            .collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
        balancer
            .pick(b"", &[1, 2], 0)
            .expect("endpoint 0")
            .failed(0);
        let turns = (0..6).map(|_| balancer.pick(b"", &[], 0).expect("one").index());
        assert_eq!(turns.filter(|index| *index == 1).count(), 3);
    }

    #[test]
    fn the_fewest_requests_are_for_the_weight() {
        let balancer = weighted("least-requests", &[1, 3]);
        let held: Vec<Picked> = (0..40).filter_map(|_| balancer.pick(b"", &[], 0)).collect();
        assert_eq!(held.iter().filter(|picked| picked.index() == 1).count(), 30);
    }

    #[test]
    fn keys_are_spread_by_weight_and_more_weight_takes_keys_and_gives_none() {
        let index = |balancer: &Rc<Balancer>, key: usize| {
            let key = format!("key{key}");
            balancer.pick(key.as_bytes(), &[], 0).expect("one").index()
        };
        let (less, more) = (weighted("hash", &[1, 2, 1]), weighted("hash", &[1, 8, 1]));
        let mut count = 0;
        for key in 0..1000 {
            let (before, after) = (index(&less, key), index(&more, key));
            count += usize::from(before == 1);
            assert!(after == before || after == 1, "{before} {after}");
        }
        assert!((440..560).contains(&count), "{count}");
    }
}
