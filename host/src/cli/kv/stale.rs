//! Reads of buckets that proxies share: what is read while their backend is away is said to be old.

use crate::cli::client::{Answer, Client, ClientError};
use crate::cli::output;
use serde_json::Value;
use std::time::Duration;

/// What is older is told. It is a second or less while the backend is there.
const TOLD_FROM: Duration = Duration::from_secs(5);

/// Reads of a bucket, or of the list of them, and says if what it was answered may be old: that there is nothing, too.
///
/// # Errors
/// See [`ClientError`].
pub(super) async fn read(
    client: &Client,
    bucket: Option<&str>,
    path: &str,
) -> Result<Answer, ClientError> {
    let answer = client.get(path).await;
    let age = match &answer {
        Ok(answer) => answer.staleness,
        Err(ClientError::Problem(problem)) => problem.staleness,
        Err(_) => None,
    };
    tell(bucket, age);
    answer
}

/// Says so if what was read of a bucket, or of several, may be old.
pub(super) fn tell(bucket: Option<&str>, age: Option<Duration>) {
    if let Some(text) = age.and_then(|age| said(bucket, age)) {
        output::aside(format_args!("{text}"));
    }
}

fn said(bucket: Option<&str>, age: Duration) -> Option<String> {
    let seconds = age.as_secs();
    let text = match bucket {
        Some(bucket) => format!(
            "{}: this is what it was {seconds} s ago, for its backend is away",
            output::printable(bucket)
        ),
        None => format!(
            "shared buckets: some of this is what they were {seconds} s ago, for their backend is away"
        ),
    };
    (age > TOLD_FROM).then_some(text)
}

/// Puts the age of what was read, in seconds, into what is printed as JSON.
pub(super) fn put(age: Option<Duration>, json: &mut Value) {
    if let (Some(age), Some(json)) = (age, json.as_object_mut()) {
        json.insert("staleness".to_owned(), age.as_secs_f64().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_is_told_with_its_age() {
        let age = Duration::from_millis;
        assert_eq!(said(Some("b"), age(5_000)), None);
        let told = said(Some("b"), age(73_900)).expect("told");
        assert!(
            told.starts_with("b: ") && told.contains("73 s ago"),
            "{told}"
        );
        assert!(said(None, age(9_000)).is_some_and(|told| told.contains("shared buckets")));
    }
}
