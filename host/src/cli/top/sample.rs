//! One reading of `/metrics`: samples by name and labels.

use std::collections::BTreeMap;

/// Labels of a sample, in the order of their names.
pub(super) type Labels = BTreeMap<String, String>;

/// All samples of one reading.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sample(BTreeMap<String, Vec<(Labels, f64)>>);

impl Sample {
    /// Reads OpenMetrics text.
    ///
    /// # Errors
    /// Names the first line that is no sample.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut sample = Self::default();
        for line in text.lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, labels, value) =
                parse_line(line).ok_or_else(|| format!("not a line of metrics: {line:?}"))?;
            let series = sample.0.entry(name.to_owned()).or_default();
            series.push((labels, value));
        }
        Ok(sample)
    }

    /// Every series of a name that has this label, with its labels.
    pub(super) fn labelled<'a>(
        &'a self,
        name: &str,
        (label, value): (&'a str, &'a str),
    ) -> impl Iterator<Item = &'a (Labels, f64)> {
        let series = self.series(name).iter();
        series.filter(move |(labels, _)| labels.get(label).is_some_and(|have| have == value))
    }

    /// Every series of a name, with its labels.
    fn series(&self, name: &str) -> &[(Labels, f64)] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Sum over the series of a name that have these labels; 0 if there are none.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = self.series(name).iter().filter(|(have, _)| {
            labels
                .iter()
                .all(|(label, value)| have.get(*label).is_some_and(|have| have == value))
        });
        matching.map(|(_, value)| value).sum()
    }

    /// The values that a label of a name has, each once, in order.
    pub(super) fn values<'a>(&'a self, name: &str, label: &str) -> Vec<&'a str> {
        let mut values: Vec<&str> = self
            .series(name)
            .iter()
            .filter_map(|(labels, _)| labels.get(label).map(String::as_str))
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// Name, labels and value of a line; a timestamp or exemplar after them is not ours to write, and refused.
fn parse_line(line: &str) -> Option<(&str, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = parse_text(after)?;
            labels.insert(label.to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    Some((name, labels, value))
}

/// A label's value up to its closing quote, and what follows it.
fn parse_text(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP throwbar_requests Requests by status class.
# TYPE throwbar_requests counter
throwbar_requests_total{route=\"all\",code_class=\"2xx\"} 7
throwbar_requests_total{route=\"all\",code_class=\"5xx\"} 1
throwbar_requests_total{route=\"a \\\"quoted\\\"\\n} b\",code_class=\"2xx\"} 2
throwbar_uptime_seconds 12
throwbar_decision_seconds_bucket{le=\"1e-6\",plugin=\"p\"} 3
throwbar_decision_seconds_bucket{le=\"+Inf\",plugin=\"p\"} 4
# EOF
";

    #[test]
    fn sums_are_of_the_series_that_have_the_labels() {
        let sample = Sample::parse(TEXT).expect("metrics");
        let name = "throwbar_requests_total";
        assert_eq!(sample.sum(name, &[]), 10.0);
        assert_eq!(sample.sum(name, &[("route", "all")]), 8.0);
        assert_eq!(sample.sum(name, &[("code_class", "2xx")]), 9.0);
        assert_eq!(sample.sum("throwbar_uptime_seconds", &[]), 12.0);
        assert_eq!(sample.sum("throwbar_unknown", &[]), 0.0);
    }

    #[test]
    fn label_values_are_read_as_they_were_before_escaping() {
        let sample = Sample::parse(TEXT).expect("metrics");
        assert_eq!(
            sample.values("throwbar_requests_total", "route"),
            ["a \"quoted\"\n} b", "all"]
        );
    }

    #[test]
    fn what_is_no_sample_is_an_error_that_shows_the_line() {
        for line in ["no_value", "open{a=\"b\" 1", "text{a=\"b\"} x", "{"] {
            let error = Sample::parse(line).expect_err(line);
            assert!(error.contains(&format!("{line:?}")), "{error}");
        }
    }
}
