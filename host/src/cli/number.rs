//! Numbers of the command line, each refused with what was expected.

/// Reads a whole number of these bounds.
pub(super) fn whole<T: TryFrom<u64>>(
    least: u64,
    most: u64,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok();
        let number = number.filter(|number| (least..=most).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| match most {
            u64::MAX => format!("expected a whole number, {least} or more"),
            _ => format!("expected a whole number from {least} to {most}"),
        })
    }
}

/// Reads a whole number that may be below zero.
pub(super) fn signed(text: &str) -> Result<i64, String> {
    text.parse()
        .map_err(|_| "expected a whole number such as 5 or -5, of 64 bits".to_owned())
}

/// Reads a number of these bounds.
pub(super) fn within(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("expected a number from {least} to {most}"))
}

/// Reads the revision of a key or a bucket.
pub(super) fn revision(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "expected a revision as `kv ls` shows it, a whole number".to_owned())
}

/// Reads the revision of a key that is there.
pub(super) fn written(text: &str) -> Result<u64, String> {
    match revision(text)? {
        0 => Err("0 is the revision of a key that does not exist, expected that of one".to_owned()),
        revision => Ok(revision),
    }
}

/// Reads the port of an address that should have been as `expected`.
pub(super) fn port(text: &str, expected: &str) -> Result<u16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().map_err(|_| match is_number {
        true => format!("{text} is no port, expected 0 to 65535"),
        false => expected.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_bounds_is_refused_with_the_bounds() {
        let small = whole::<u16>(1, 256);
        assert_eq!(small("256"), Ok(256));
        for bad in ["", "0", "257", "65537", "-3", "1.5", "abc"] {
            assert_eq!(
                small(bad),
                Err("expected a whole number from 1 to 256".to_owned()),
                "{bad}"
            );
        }
        let any = whole::<u64>(1, u64::MAX)("99999999999999999999");
        assert_eq!(any, Err("expected a whole number, 1 or more".to_owned()));
        assert_eq!(within("0.5", 0.0, 1.0), Ok(0.5));
        for bad in ["", "2", "NaN", "5%"] {
            let why = within(bad, 0.0, 1.0).expect_err(bad);
            assert_eq!(why, "expected a number from 0 to 1");
        }
        assert_eq!(signed("-5"), Ok(-5));
        assert!(signed("9223372036854775808").is_err());
        assert!(revision("-1").is_err_and(|why| why.contains("`kv ls`")));
        assert_eq!((revision("0"), written("1")), (Ok(0), Ok(1)));
        assert!(written("0").is_err_and(|why| why.contains("does not exist")));
    }

    #[test]
    fn a_port_that_is_none_is_told_from_what_is_no_port() {
        assert_eq!(port("65535", "x"), Ok(65535));
        let large = port("99999", "x").expect_err("refused");
        assert_eq!(large, "99999 is no port, expected 0 to 65535");
        assert_eq!(port("http", "IP:PORT"), Err("IP:PORT".to_owned()));
    }
}
