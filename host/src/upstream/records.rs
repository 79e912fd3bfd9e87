//! Which address of a typed record a request gets: one worker's balancers, made when the first request asks.

use super::balance::Balancer;
use crate::store::TypedRecord;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Records remembered at most; with more in use, others are balanced anew with each request.
const RECORDS_MAX: usize = 10_000;
/// Ticks after which one that no request asked for is forgotten: a minute.
const UNUSED_TICKS: u32 = 600;

/// One worker's balancers of typed records.
#[derive(Default)]
pub struct Records {
    /// By the place of the record in memory, which is its own as long as it is kept here.
    known: HashMap<usize, Known, ahash::RandomState>,
}

struct Known {
    _record: Arc<TypedRecord>,
    balancer: Rc<Balancer>,
    used: u32,
}

impl Records {
    /// The balancer of a record; `now` in ticks.
    pub fn balancer(&mut self, record: &Arc<TypedRecord>, now: u32) -> Rc<Balancer> {
        let place = Arc::as_ptr(record) as usize;
        if let Some(known) = self.known.get_mut(&place) {
            known.used = now;
            return known.balancer.clone();
        }
        let balancer = Balancer::of_record(record);
        if self.known.len() < RECORDS_MAX {
            let known = Known {
                _record: Arc::clone(record),
                balancer: balancer.clone(),
                used: now,
            };
            self.known.insert(place, known);
        }
        balancer
    }

    /// To be called now and then: forgets what is not in use.
    pub fn sweep(&mut self, now: u32) {
        self.known.retain(|_, known| {
            now.wrapping_sub(known.used) < UNUSED_TICKS || Rc::strong_count(&known.balancer) > 1
        });
        if self.known.is_empty() {
            self.known.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Value, ValueKind};

    fn record(n: usize) -> Arc<TypedRecord> {
        let text = format!("{{\"addresses\": [\"h{n}:1\", \"i{n}:1\"]}}");
        match Value::parse(ValueKind::Endpoint, text.as_bytes()) {
            Ok(Value::Typed(record)) => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_keeps_its_balancer_until_it_is_not_used_for_a_minute() {
        let mut records = Records::default();
        let (one, other) = (record(1), record(2));
        let turn = |records: &mut Records, record, now| {
            let balancer = records.balancer(record, now);
            balancer.pick(b"", &[], now).expect("one")
        };
        assert_eq!(turn(&mut records, &one, 0).index(), 0);
        let held = turn(&mut records, &other, 0);
        assert_eq!(turn(&mut records, &one, 9).index(), 1);
        records.sweep(UNUSED_TICKS);
        assert_eq!(records.known.len(), 2);
        records.sweep(UNUSED_TICKS + 9);
        assert_eq!(records.known.len(), 1);
        drop(held);
        records.sweep(UNUSED_TICKS + 9);
        assert!(records.known.is_empty());
    }

    #[test]
    fn no_more_records_are_remembered_than_there_is_room_for() {
        let mut records = Records::default();
        for n in 0..RECORDS_MAX + 10 {
            assert_eq!(records.balancer(&record(n), 0).len(), 2);
        }
        assert_eq!(records.known.len(), RECORDS_MAX);
    }
}
