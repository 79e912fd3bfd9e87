//! Durations and sizes as they are written: `250ms`, `64KiB`.

use crate::store::check_ttl;
use std::time::Duration;

/// Longest duration of a config.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a duration such as `500us`, `250ms`, `5s`, `10m`, `4h` or `30d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    read_duration(text)?
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| "expected at most 365d".to_owned())
}

/// Reads how long an entry lives, which has bounds of its own.
pub(crate) fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = read_duration(text)?.unwrap_or(Duration::MAX);
    check_ttl(ttl).map(|()| ttl)
}

/// None if it is longer than can be said.
fn read_duration(text: &str) -> Result<Option<Duration>, String> {
    const EXPECTED: &str =
        r#"expected a whole number with its unit, such as "250ms", "5s", "10m" or "4h""#;
    let (number, unit) = split(text).ok_or(EXPECTED)?;
    let micros = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        "" => {
            return Err(format!(
                r#"it has no unit: write "{number}s" or "{number}ms""#
            ));
        }
        _ => return Err(EXPECTED.to_owned()),
    };
    Ok(number.checked_mul(micros).map(Duration::from_micros))
}

/// Reads a size such as `64KiB`, `16MiB` or `512B`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = r#"expected a whole number with its unit, such as "64KiB" or "16MiB""#;
    let (number, unit) = split(text).ok_or(EXPECTED)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        "KB" | "kB" | "K" | "k" | "kb" => return Err(format!(r#"write "{number}KiB""#)),
        "MB" | "M" | "m" | "mb" => return Err(format!(r#"write "{number}MiB""#)),
        "GB" | "G" | "g" | "gb" => return Err(format!(r#"write "{number}GiB""#)),
        _ => return Err(EXPECTED.to_owned()),
    };
    number
        .checked_mul(1 << shift)
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| "expected fewer bytes than 8EiB".to_owned())
}

/// The digits and what follows them.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_for_one_bound_however_it_is_written() {
        assert_eq!(ttl("3650d"), Ok(Duration::from_secs(3650 * 24 * 3600)));
        for bad in ["0s", "3651d", "9999999999999999h"] {
            let why = ttl(bad).expect_err("refused");
            assert!(why.contains("expected 1ms to 3650d"), "{bad}: {why}");
        }
        assert!(ttl("5").is_err());
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("5 s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("4h"), Ok(Duration::from_secs(14_400)));
        assert_eq!(duration("365d"), Ok(DURATION_MAX));
        for bad in [
            "",
            "s",
            "5",
            "-5s",
            "1.5s",
            "5 sec",
            "366d",
            "99999999999999999999s",
            "5\u{a0}s",
            "9999999999999999h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("64KiB"), Ok(64 << 10));
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("512B"), Ok(512));
        assert_eq!(size("4 GiB"), Ok(4 << 30));
        assert_eq!(size("16MB"), Err(r#"write "16MiB""#.to_owned()));
        for bad in ["", "KiB", "-1", "1.5MiB", "8388608TiB", "5ms"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
