//! The draw: which upstream a key belongs to. It is part of this plugin's contract and never changes, so that a new
//! version of the plugin moves no key.
//!
//! An upstream holds as many tickets as its weight says, named `<upstream>#0`, `<upstream>#1`, … The key draws a number
//! for each ticket, `mix(hash(key) ^ hash(ticket))`, and the highest number wins. `hash(text)` is the mix of the FNV-1a
//! hash in 64 bits, and `mix` is the finaliser of SplitMix64. So an upstream's share of the keys is its share of the
//! tickets, and a weight that grows adds tickets that can only win keys: no key moves between the others.

/// One chance to win: the upstream's place in the list, and the hash of the ticket's name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    upstream: usize,
    hash: u64,
}

/// The tickets of all upstreams.
pub(crate) fn tickets(weights: &[(String, u32)]) -> Vec<Ticket> {
    let mut tickets = Vec::new();
    for (upstream, (name, weight)) in weights.iter().enumerate() {
        tickets.extend((0..*weight).map(|number| Ticket {
            upstream,
            hash: hash(&format!("{name}#{number}")),
        }));
    }
    tickets
}

/// The place of the upstream that `key` belongs to.
pub(crate) fn draw(key: &str, tickets: &[Ticket]) -> usize {
    let key = hash(key);
    let winner = tickets.iter().max_by_key(|ticket| mix(key ^ ticket.hash));
    winner.map_or(0, |ticket| ticket.upstream)
}

fn hash(text: &str) -> u64 {
    mix(fnv1a(text.as_bytes()))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_the_published_ones() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        // The first two numbers of SplitMix64 seeded with 0.
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        assert_eq!(mix(step), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(step.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn keys_stay_where_every_version_put_them() {
        let tickets = tickets(&[("stable".into(), 8), ("next".into(), 2)]);
        let drawn: String = (0..32)
            .map(|n| match draw(&format!("key-{n}"), &tickets) {
                0 => 's',
                _ => 'n',
            })
            .collect();
        assert_eq!(drawn, "ssssssssnssnsssssssnssssnsssssss");
    }
}
