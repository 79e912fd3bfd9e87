//! A canary: a second version that takes a share of the requests, chosen by a hash of one field of each.
//!
//! The hash depends on the plugin and the field's value only, and a share takes the lower part of all hashes. So an ID stays
//! with the version it met for as long as the share does not shrink, on every worker and over restarts.

use super::{Generation, RequestHead};
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::sync::Arc;

mod field;

pub use field::StickyField;

/// A part of a whole, from 0 to 1, in millionths: exact, and so the same after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fraction(u32);

const WHOLE: u32 = 1_000_000;

impl Fraction {
    /// Everything.
    pub const ALL: Self = Self(WHOLE);

    /// From a number from 0 to 1; none for any other.
    pub fn new(part: f64) -> Option<Self> {
        (0.0..=1.0)
            .contains(&part)
            .then(|| Self((part * f64::from(WHOLE)).round() as u32))
    }

    /// From a number from 0 to 100.
    ///
    /// # Errors
    /// The number, with what was expected.
    pub fn percent(percent: f64) -> Result<Self, String> {
        Self::new(percent / 100.0)
            .ok_or_else(|| format!("percent {percent}: expected a number from 0 to 100"))
    }

    /// From 0 to 1.
    pub fn part(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }

    /// From 0 to 100.
    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE / 100)
    }

    /// Whether a hash is in this part of all hashes. What is in a part is in every larger one.
    pub(super) fn takes(self, hash: u64) -> bool {
        (hash >> 32) * u64::from(WHOLE) < u64::from(self.0) << 32
    }
}

/// Which requests a canary gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// How many of the values.
    pub fraction: Fraction,
    /// Of what.
    pub field: StickyField,
}

/// A version that takes a share of the requests; requests without the field stay with the active one.
pub(super) struct Canary {
    pub(super) generation: Arc<Generation>,
    pub(super) share: Share,
    /// Of the plugin's name: shares of two plugins are independent.
    seed: u64,
}

impl Canary {
    pub(super) fn new(generation: Arc<Generation>, share: Share) -> Self {
        let seed = hash(FNV_BASIS, generation.label().plugin.as_bytes());
        Self {
            generation,
            share,
            seed,
        }
    }

    /// Whether it decides this request.
    pub(super) fn takes(&self, head: &RequestHead) -> bool {
        takes(&self.share, self.seed, head)
    }
}

fn takes(share: &Share, seed: u64, head: &RequestHead) -> bool {
    let hash = match &share.field {
        StickyField::ClientIp => {
            // The longest is an IPv4 address written as IPv6.
            let mut text = [0; 46];
            let mut rest = &mut text[..];
            if write!(rest, "{}", head.client.to_canonical()).is_err() {
                return false;
            }
            let left = rest.len();
            hash(seed, &text[..46 - left])
        }
        field => match field.value(head) {
            Some(value) => hash(seed, value),
            None => return false,
        },
    };
    share.fraction.takes(mix(hash))
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: short, and the same in every process.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finaliser of MurmurHash3: FNV's high bits hardly depend on the last bytes.
pub(super) fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, Method};

    fn head(headers: &[(&'static str, &str)]) -> RequestHead {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        RequestHead {
            method: Method::GET,
            uri: "/a?user=u1&x=2".parse().expect("a uri"),
            authority: "example.com".parse().expect("an authority"),
            headers: map,
            client: "192.0.2.1".parse().expect("an address"),
            scheme: "http",
            websocket: false,
        }
    }

    fn share(percent: f64, field: &str) -> Share {
        Share {
            fraction: Fraction::percent(percent).expect("a percentage"),
            field: field.parse().expect("a field"),
        }
    }

    fn taken(percent: f64, ids: u32) -> Vec<u32> {
        let share = share(percent, "header:x-id");
        let seed = hash(FNV_BASIS, b"p");
        (0..ids)
            .filter(|id| takes(&share, seed, &head(&[("x-id", &format!("id{id}"))])))
            .collect()
    }

    #[test]
    fn a_growing_share_keeps_every_id_it_has_and_is_as_large_as_it_says() {
        let shares = [0.0, 0.5, 5.0, 25.0, 100.0].map(|percent| (percent, taken(percent, 20_000)));
        for pair in shares.windows(2) {
            assert!(
                pair[0]
                    .1
                    .iter()
                    .all(|id| pair[1].1.binary_search(id).is_ok())
            );
        }
        for (percent, taken) in shares {
            let got = taken.len() as f64 / 200.0;
            assert!(
                (got - percent).abs() < 0.5,
                "{got} % instead of {percent} %"
            );
        }
    }

    #[test]
    fn whichever_field_has_an_id_it_is_drawn_alike() {
        let taken_by = |field: &str, request: &dyn Fn(u32) -> RequestHead| -> Vec<u32> {
            let (share, seed) = (share(5.0, field), hash(FNV_BASIS, b"p"));
            let ids = 0..20_000;
            ids.filter(|id| takes(&share, seed, &request(*id)))
                .collect()
        };
        let at = |uri: String| RequestHead {
            uri: uri.parse().expect("a uri"),
            ..head(&[])
        };
        let by_header = taken(5.0, 20_000);
        assert!(
            (900..1_100).contains(&by_header.len()),
            "{}",
            by_header.len()
        );
        let by_cookie = |id| head(&[("cookie", &format!("a=b; user=id{id}; c=d"))]);
        assert_eq!(taken_by("cookie:user", &by_cookie), by_header);
        let by_query = |id| at(format!("/a?x=1&user=id{id}"));
        assert_eq!(taken_by("query:user", &by_query), by_header);
        let by_segment = |id| at(format!("/users/id{id}/edit"));
        assert_eq!(taken_by("segment:2", &by_segment), by_header);
    }

    #[test]
    fn two_plugins_draw_independently() {
        let (share, head) = (share(50.0, "header:x-id"), |id: u32| {
            head(&[("x-id", &format!("id{id}"))])
        });
        let [one, two] = [b"one", b"two"].map(|name| hash(FNV_BASIS, name));
        let both = (0..1_000)
            .filter(|id| takes(&share, one, &head(*id)) && takes(&share, two, &head(*id)))
            .count();
        assert!((200..300).contains(&both), "{both} of 1000 in both halves");
    }

    #[test]
    fn a_request_without_the_field_is_never_taken() {
        for field in ["header:x-id", "cookie:id", "query:id", "segment:2"] {
            let share = share(100.0, field);
            assert!(!takes(&share, 1, &head(&[])), "{field}");
            assert!(
                !takes(&share, 1, &head(&[("x-id", ""), ("cookie", "ids=1")])),
                "{field}"
            );
        }
        for field in ["client-ip", "path", "authority", "query:user", "segment:1"] {
            assert!(takes(&share(100.0, field), 1, &head(&[])), "{field}");
        }
        assert!(takes(
            &share(100.0, "cookie:id"),
            1,
            &head(&[("cookie", "a=b; id=7")])
        ));
    }

    #[test]
    fn a_percentage_is_from_0_to_100() {
        assert!(Fraction::percent(100.1).is_err() && Fraction::percent(f64::NAN).is_err());
    }
}
