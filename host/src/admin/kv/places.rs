//! Places of watches: so many clients watch at a time, and one limited token has a share of them.

use crate::admin::problem::Problem;
use crate::admin::rights::Caller;
use http::StatusCode;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clients that watch at a time: fewer than there are connections, so that others are served beside them.
const WATCHES_MAX: usize = 128;

/// Clients that watch: at most so many, a quarter of them with one limited token, and three quarters with limited ones
/// altogether, so that the last quarter is for the process's own token.
#[derive(Debug)]
pub(in crate::admin) struct Watches {
    max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    /// Those of limited tokens, by name.
    limited: BTreeMap<String, usize>,
}

/// The place of one; dropping it frees it.
#[derive(Debug)]
pub(super) struct Place {
    watches: Arc<Watches>,
    /// The limited token that has it.
    token: Option<String>,
}

impl Default for Watches {
    fn default() -> Self {
        Self::new(WATCHES_MAX)
    }
}

impl Watches {
    /// None yet, of at most so many.
    pub(in crate::admin) fn new(max: usize) -> Self {
        let open = Mutex::default();
        Self { max, open }
    }

    /// A place for one more.
    ///
    /// # Errors
    /// 503 with the bound that is reached.
    pub(super) fn take(self: &Arc<Self>, caller: &Caller) -> Result<Place, Problem> {
        let token = match caller {
            Caller::Admin => None,
            Caller::Limited(token) => Some(token.name.clone()),
        };
        let mut open = self.open();
        if let Some(reason) = self.full(&open, token.as_deref()) {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Problem::new(status, "too-many-watches", reason));
        }
        open.all += 1;
        if let Some(token) = &token {
            *open.limited.entry(token.clone()).or_default() += 1;
        }
        let watches = Arc::clone(self);
        Ok(Place { watches, token })
    }

    /// Why there is no place for one more.
    fn full(&self, open: &Open, token: Option<&str>) -> Option<String> {
        let share = self.max / 4;
        if let Some(token) = token {
            let own = open.limited.get(token).copied().unwrap_or(0);
            if own >= share {
                return Some(format!(
                    "token {token:?} has {own} watches open, as many as one limited token may have"
                ));
            }
            let limited: usize = open.limited.values().sum();
            if limited >= self.max - share {
                return Some(format!(
                    "{limited} watches of limited tokens are open, as many as they may have together"
                ));
            }
        }
        let all = open.all;
        (all >= self.max).then(|| format!("{all} watches are open, as many as there may be"))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing under this lock panics half way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.watches.open();
        open.all -= 1;
        let Some(token) = &self.token else {
            return;
        };
        if let Some(count) = open.limited.get_mut(token) {
            *count -= 1;
            if *count == 0 {
                open.limited.remove(token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{LimitedToken, Token};

    fn limited(name: &str) -> Caller {
        Caller::Limited(Arc::new(LimitedToken {
            name: name.to_owned(),
            token: Token::given("0123456789abcdef0123456789abcdef").unwrap(),
            buckets: BTreeMap::new(),
            prefix: String::new(),
        }))
    }

    #[test]
    fn a_limited_token_has_a_quarter_and_all_of_them_leave_one() {
        let watches = Arc::new(Watches::new(8));
        let refused = |caller: &Caller| {
            let problem = watches.take(caller).map(drop).unwrap_err();
            assert_eq!(problem.status, 503);
            problem.detail
        };
        let take = |caller: &Caller| watches.take(caller).unwrap();
        let tokens = ["a", "b", "c", "d"].map(limited);
        let mut places: Vec<Place> = Vec::new();
        for token in &tokens[..3] {
            places.extend([take(token), take(token)]);
            let reason = refused(token);
            assert!(reason.contains("has 2 watches open"), "{reason}");
        }
        let reason = refused(&tokens[3]);
        assert!(reason.starts_with("6 watches of limited"), "{reason}");
        let own = [take(&Caller::Admin), take(&Caller::Admin)];
        let reason = refused(&Caller::Admin);
        assert!(reason.starts_with("8 watches are open"), "{reason}");
        // What is free is anybody's whose share is not used up.
        places.remove(0);
        places.push(take(&tokens[3]));
        drop((places, own));
        let all: Vec<Place> = (0..8).map(|_| take(&Caller::Admin)).collect();
        let reason = refused(&tokens[0]);
        assert!(reason.starts_with("8 watches are open"), "{reason}");
        drop(all);
        assert!(watches.open().limited.is_empty());
    }
}
