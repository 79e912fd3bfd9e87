//! The `canary` plugin: splits traffic between upstreams by weight, the same key always the same way.

use throwbar::prelude::*;

mod draw;

/// Splits requests between upstreams by a sticky hash of a key, as the module `draw` says.
///
/// | setting | default | |
/// |---|---|---|
/// | `weights` | | upstreams with whole weights, such as `stable=95,next=5`; 1000 together at most |
/// | `key` | none | the header field that holds the key; if it is unset or absent: the client's address |
#[derive(Debug)]
pub struct Canary {
    key: Option<Subscribed>,
    client: Subscribed,
    upstreams: Vec<String>,
    tickets: Vec<draw::Ticket>,
}

#[throwbar::router]
impl Router for Canary {
    fn init(setup: &mut Setup) -> Result<Self, String> {
        let weights = weights(&config::require("weights")?)?;
        let tickets = draw::tickets(&weights);
        let key = config::get("key").filter(|name| !name.is_empty());
        Ok(Self {
            key: key.map(|name| setup.header(&name)),
            client: setup.field(Field::ClientIp),
            upstreams: weights.into_iter().map(|(upstream, _)| upstream).collect(),
            tickets,
        })
    }

    fn route(&self, req: &Request) -> Decision {
        let key = self.key.and_then(|key| req.get(key));
        let key = key.or(req.get(self.client)).unwrap_or_default();
        let drawn = draw::draw(key, &self.tickets);
        Target::upstream(self.upstreams[drawn].as_str()).into()
    }
}

/// Most tickets: a decision looks at each.
const WEIGHT_MAX: u32 = 1_000;

fn weights(text: &str) -> Result<Vec<(String, u32)>, String> {
    let wrong = |why: &str| {
        format!("setting \"weights\" is {text:?}: {why}, expected such as \"stable=95,next=5\"")
    };
    let mut weights: Vec<(String, u32)> = Vec::new();
    let mut total: u32 = 0;
    for part in text.split(',') {
        let Some((upstream, weight)) = part.split_once('=') else {
            return Err(wrong(&format!("no \"=\" in {part:?}")));
        };
        let (upstream, weight) = (upstream.trim(), weight.trim());
        let Ok(weight) = weight.parse::<u32>() else {
            return Err(wrong(&format!("{weight:?} is no whole number")));
        };
        if upstream.is_empty() || weights.iter().any(|(known, _)| known == upstream) {
            return Err(wrong(&format!("{upstream:?} is empty or there twice")));
        }
        total = total.saturating_add(weight);
        weights.push((upstream.to_owned(), weight));
    }
    match total {
        1..=WEIGHT_MAX => Ok(weights),
        _ => Err(wrong(&format!("the sum is not 1 to {WEIGHT_MAX}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use throwbar::testing::{Host, Plugin, get};

    fn start(weights: &str) -> Plugin<Canary> {
        let host = Host::new()
            .config("weights", weights)
            .config("key", "x-user");
        host.start().unwrap()
    }

    fn split(weights: &str, users: usize) -> Vec<Target> {
        let plugin = start(weights);
        let ask = |user| get("/").header("x-user", &format!("user-{user}"));
        let split = (0..users).map(|user| plugin.route(ask(user)).forwarded().to);
        split.collect()
    }

    #[test]
    fn a_key_sticks_whoever_sends_it_and_clients_are_the_key_without_one() {
        let plugin = start("stable=50,next=50");
        let to = |ask| plugin.route(ask).forwarded().to;
        let first = to(get("/a").header("x-user", "7").client_ip("10.0.0.1"));
        for n in 2..50 {
            let client = format!("10.0.0.{n}");
            assert_eq!(
                to(get("/b").header("x-user", "7").client_ip(&client)),
                first
            );
        }
        let clients = |n| to(get("/").client_ip(&format!("10.0.0.{n}")));
        assert!((1..50).any(|n| clients(n) != clients(0)));
        assert_eq!(clients(3), clients(3));
    }

    #[test]
    fn shares_follow_the_weights() {
        let next = Target::upstream("next");
        let split = split("stable=90,next=10", 10_000);
        let share = split.iter().filter(|to| **to == next).count();
        assert!((900..1_100).contains(&share), "{share} of 10000");
    }

    #[test]
    fn growing_a_weight_moves_keys_into_it_and_nowhere_else() {
        let next = Target::upstream("next");
        let steps = [
            "stable=95,old=3,next=0",
            "stable=95,old=3,next=5",
            "next=50,old=3,stable=95",
        ];
        let splits = steps.map(|weights| split(weights, 2_000));
        for pair in splits.windows(2) {
            let moved = pair[0].iter().zip(&pair[1]).filter(|(a, b)| a != b);
            let moved: Vec<_> = moved.collect();
            assert!(!moved.is_empty());
            assert!(moved.iter().all(|(_, to)| **to == next));
        }
    }

    #[test]
    fn weights_that_make_no_sense_are_refused() {
        for text in [
            "", "a", "a=", "a=x", "a=-1", "=5", "a=0", "a=1,a=2", "a=1001", "a=1,",
        ] {
            let host = Host::new().config("weights", text);
            let error = host.start::<Canary>().err().unwrap();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        let error = Host::new().start::<Canary>().err().unwrap();
        assert_eq!(error, "setting \"weights\" is missing");
    }
}
