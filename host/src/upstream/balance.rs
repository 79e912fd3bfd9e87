//! Which endpoint of an upstream a request gets.

use super::{Config, Policy};
use crate::store::Target;
use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

/// One worker's state of one upstream.
pub struct Balancer {
    name: Arc<str>,
    config: Config,
    next: Cell<usize>,
    active: Box<[Cell<u32>]>,
    /// Endpoints that failed to be reached, until when (in ticks): passed over while another one is left.
    down_until: Box<[Cell<u32>]>,
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
    pub fn new(config: Config) -> Rc<Self> {
        let count = config.endpoints.len();
        Rc::new(Self {
            name: config.name.as_str().into(),
            config,
            next: Cell::new(0),
            active: (0..count).map(|_| Cell::new(0)).collect(),
            down_until: (0..count).map(|_| Cell::new(0)).collect(),
        })
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.config.endpoints.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.config.endpoints.is_empty()
    }

    /// Picks one that is not in `tried`; none if all were. `key` counts for [`Policy::Hash`] only.
    pub fn pick(self: &Rc<Self>, key: &[u8], tried: &[usize], now: u32) -> Option<Picked> {
        let untried = || (0..self.len()).filter(|index| !tried.contains(index));
        let up = |index: &usize| self.down_until[*index].get() <= now;
        let candidates = |up_only: bool| untried().filter(move |index| !up_only || up(index));
        let up_only = candidates(true).next().is_some();
        let index = match self.config.policy {
            Policy::RoundRobin => {
                let start = self.next.get();
                self.next.set(start.wrapping_add(1));
                candidates(up_only)
                    .min_by_key(|&index| (index + self.len() - start % self.len()) % self.len())
            }
            Policy::LeastRequests => {
                // From where the last one left off, so that equal ones take turns.
                let start = self.next.get();
                self.next.set(start.wrapping_add(1));
                candidates(up_only).min_by_key(|&index| {
                    (
                        self.active[index].get(),
                        (index + self.len() - start % self.len()) % self.len(),
                    )
                })
            }
            Policy::Hash => candidates(up_only)
                .max_by_key(|&index| rendezvous(key, &self.config.endpoints[index])),
        }?;
        self.active[index].set(self.active[index].get() + 1);
        Some(Picked {
            balancer: self.clone(),
            index,
        })
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
    /// The name of its upstream.
    pub fn upstream(&self) -> &Arc<str> {
        &self.balancer.name
    }

    /// Its host and port.
    pub fn endpoint(&self) -> &(Target, u16) {
        &self.balancer.config.endpoints[self.index]
    }

    /// Its place among the endpoints.
    pub fn index(&self) -> usize {
        self.index
    }

    /// It could not be reached.
    pub fn failed(&self, now: u32) {
        self.balancer.down_until[self.index].set(now + DOWN_TICKS);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        let active = &self.balancer.active[self.index];
        active.set(active.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balancer(policy: Policy, endpoints: usize) -> Rc<Balancer> {
        let endpoint = |i: usize| (Target::Ip([127, 0, 0, 1].into(), None), 1000 + i as u16);
        Balancer::new(Config {
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
}
