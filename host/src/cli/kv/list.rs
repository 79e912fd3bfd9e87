//! `throwbar kv ls` and `kv lookup`: the buckets, the keys of one, or the entry that a key finds.

use super::{listed, path_of, segment, shown, stale};
use crate::cli::client::{Client, with_query};
use crate::cli::output::{self, Align, Out, Table};
use serde::Deserialize;
use serde_json::{Value, json};

/// Keys asked for at a time.
const PAGE: u64 = 1_000;

/// A page of keys.
#[derive(Debug, Deserialize)]
struct Page {
    revision: u64,
    entries: Vec<Value>,
    cursor: Option<String>,
}

/// Lists the buckets.
///
/// # Errors
/// If the proxy cannot be reached or refuses.
pub(super) async fn buckets(client: &Client, json: bool) -> anyhow::Result<()> {
    let read = stale::read(client, None, "/v1/kv").await?;
    let mut answer: Value = read.json()?;
    let mut out = Out::stdout();
    if json {
        stale::put(read.staleness, &mut answer);
        out.json(&answer)?;
        return out.flush();
    }
    let mut table = Table::new(&[
        ("BUCKET", Align::Left),
        ("KEYS", Align::Right),
        ("SIZE", Align::Right),
        ("REVISION", Align::Right),
        ("BACKEND", Align::Left),
        ("VALUES", Align::Left),
    ]);
    for bucket in listed(&answer, "buckets") {
        let text = |name: &str| bucket[name].as_str().unwrap_or("-").to_owned();
        let number = |name: &str| bucket[name].as_u64();
        table.row([
            text("name"),
            number("keys").map_or("-".into(), output::count),
            number("bytes").map_or("-".into(), output::size),
            number("revision").map_or("-".into(), |n| n.to_string()),
            text("backend"),
            text("values"),
        ]);
    }
    table.print(&mut out)?;
    out.flush()
}

/// Lists the keys of a bucket, page by page.
///
/// # Errors
/// If the proxy cannot be reached or refuses.
pub(super) async fn keys(
    client: &Client,
    bucket: &str,
    prefix: Option<String>,
    (mut cursor, limit): (Option<String>, u64),
    json: bool,
) -> anyhow::Result<()> {
    let base = format!("/v1/kv/{}", segment("bucket", bucket)?);
    let mut entries: Vec<Value> = Vec::new();
    let (mut revision, mut age) = (0, None);
    while (entries.len() as u64) < limit {
        let wanted = (limit - entries.len() as u64).min(PAGE);
        let path = with_query(
            base.clone(),
            &[
                ("prefix", prefix.clone()),
                ("limit", Some(wanted.to_string())),
                ("cursor", cursor.take()),
            ],
        );
        // The first page tells how old it is, for those after it.
        let read = match entries.is_empty() {
            true => stale::read(client, Some(bucket), &path).await?,
            false => client.get(&path).await?,
        };
        age = age.max(read.staleness);
        let page: Page = read.json()?;
        revision = page.revision;
        entries.extend(page.entries);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    let mut out = Out::stdout();
    if json {
        let mut page = json!({ "revision": revision, "entries": entries, "cursor": cursor });
        stale::put(age, &mut page);
        out.json(&page)?;
        return out.flush();
    }
    let mut columns = vec![
        ("KEY", Align::Left),
        ("VALUE", Align::Left),
        ("REVISION", Align::Right),
    ];
    let one_ends = entries.iter().any(|entry| entry["expires_at"].is_string());
    if one_ends {
        columns.push(("ENDS", Align::Left));
    }
    let mut table = Table::new(&columns);
    for entry in &entries {
        let ends = entry["expires_at"].as_str().unwrap_or("-").to_owned();
        let row = [
            entry["key"].as_str().unwrap_or_default().to_owned(),
            shown(&entry["value"]),
            entry["revision"].to_string(),
        ];
        table.row(row.into_iter().chain(one_ends.then_some(ends)));
    }
    table.print(&mut out)?;
    out.flush()?;
    if cursor.is_some() {
        output::aside(format_args!(
            "… more keys follow: the limit of {} is reached, --limit raises it, and --json has a cursor for --cursor",
            output::count(limit)
        ));
    }
    Ok(())
}

/// Shows what is found by a key.
///
/// # Errors
/// If the proxy cannot be reached or refuses, or nothing is found.
pub(super) async fn found(
    client: &Client,
    bucket: &str,
    key: &str,
    json: bool,
) -> anyhow::Result<()> {
    let path = format!("{}?lookup=true", path_of(bucket, key)?);
    let read = stale::read(client, Some(bucket), &path).await?;
    let mut answer: Value = read.json()?;
    let mut out = Out::stdout();
    if json {
        stale::put(read.staleness, &mut answer);
        out.json(&answer)?;
        return out.flush();
    }
    let mut table = Table::new(&[
        ("KEY", Align::Left),
        ("KIND", Align::Left),
        ("VALUE", Align::Left),
        ("REVISION", Align::Right),
    ]);
    let entry = &answer["entry"];
    table.row([
        entry["key"].as_str().unwrap_or_default().to_owned(),
        answer["kind"].as_str().unwrap_or_default().to_owned(),
        shown(&entry["value"]),
        entry["revision"].to_string(),
    ]);
    table.print(&mut out)?;
    out.flush()
}
