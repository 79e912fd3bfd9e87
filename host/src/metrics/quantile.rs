//! Quantiles of a histogram, as well as its bounds tell.

/// The value that this part of all values is at most, between two bounds taken to rise evenly; of the last bucket, if it
/// has no bound, the bound before. None without values.
///
/// `buckets` are upper bounds, lowest first, each with how many values lie between it and the one before; the last bound
/// may be infinite.
pub fn quantile(buckets: impl Iterator<Item = (f64, u64)> + Clone, part: f64) -> Option<u64> {
    let all: u64 = buckets.clone().map(|(_, count)| count).sum();
    let wanted = part * all as f64;
    let (mut below, mut lower) = (0, 0.0);
    for (upper, count) in buckets {
        if count > 0 && (below + count) as f64 >= wanted && upper.is_finite() {
            let inside = (wanted - below as f64) / count as f64;
            return Some((lower + (upper - lower) * inside).round() as u64);
        }
        below += count;
        lower = if upper.is_finite() { upper } else { lower };
    }
    (all > 0).then_some(lower.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(buckets: &[(f64, u64)], part: f64) -> Option<u64> {
        quantile(buckets.iter().copied(), part)
    }

    #[test]
    fn a_quantile_lies_between_the_bounds_of_its_bucket() {
        let buckets = [(10.0, 10), (20.0, 0), (40.0, 10)];
        assert_eq!(of(&buckets, 0.25), Some(5));
        assert_eq!(of(&buckets, 0.5), Some(10));
        assert_eq!(of(&buckets, 0.75), Some(30));
        assert_eq!(of(&buckets, 1.0), Some(40));
    }

    #[test]
    fn a_value_beyond_the_last_bound_counts_as_that_bound() {
        assert_eq!(of(&[(1_000.0, 0), (f64::INFINITY, 3)], 0.5), Some(1_000));
        assert_eq!(of(&[(f64::INFINITY, 3)], 0.5), Some(0));
    }

    #[test]
    fn without_values_there_is_none() {
        assert_eq!(of(&[(1_000.0, 0), (f64::INFINITY, 0)], 0.5), None);
        assert_eq!(of(&[], 0.5), None);
    }
}
