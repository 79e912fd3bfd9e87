//! `map` blocks of an nginx config: `map $source $result { key value; … }`.
//!
//! nginx looks a value up in this order: whole keys; with `hostnames` the longest mask `*.example.com`, then the longest
//! `www.example.*`; the first expression of the block; the default. A bucket tries prefixes before suffixes, and
//! expressions by their bytes.

mod config;

use super::include::Includes;
use super::{Bucket, Found};
use crate::store::LookupKind;
use crate::store::ordered::compile;
use config::{Entry, Map, Place};
use std::collections::BTreeMap;

/// Reads the map that sets a variable, or the only one.
///
/// # Errors
/// What is wrong with the file, with its line; or that the map is not there.
pub(in crate::cli::kv) fn parse(
    text: &str,
    result: Option<&str>,
    bucket: Bucket,
    includes: &mut Includes,
) -> Result<Found, Vec<String>> {
    let maps = config::maps(text).map_err(|problem| vec![problem])?;
    let mut map = chosen(maps, result).map_err(|problem| vec![problem])?;
    map.expand(includes).map_err(|problem| vec![problem])?;
    Ok(entries(&map, bucket))
}

fn chosen(mut maps: Vec<Map>, result: Option<&str>) -> Result<Map, String> {
    let names: Vec<&str> = maps.iter().map(|map| map.result.as_str()).collect();
    let names = names.join(", ");
    if maps.is_empty() {
        return Err(
            "has no map block, expected `map $source $result { … }`; only `include` inside of a map is followed"
                .to_owned(),
        );
    }
    let Some(wanted) = result else {
        return match maps.len() {
            1 => Ok(maps.remove(0)),
            _ => Err(format!(
                "has several maps, expected --map with one of {names}"
            )),
        };
    };
    let wanted = wanted.trim_start_matches('$');
    let found = maps
        .into_iter()
        .find(|map| map.result.trim_start_matches('$') == wanted);
    found.ok_or_else(|| format!("has no map that sets ${wanted}, expected one of {names}"))
}

fn entries(map: &Map, bucket: Bucket) -> Found {
    let mut reading = Reading {
        bucket,
        has_hostnames: false,
        default: None,
        found: Found::default(),
        seen: BTreeMap::new(),
        suffixes: Vec::new(),
        tails: Vec::new(),
        expressions: Vec::new(),
    };
    for Entry { place, words } in &map.entries {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let carried = match words.as_slice() {
            ["hostnames"] => {
                reading.has_hostnames = true;
                Ok(())
            }
            // It is about when nginx looks again: a bucket is looked up by each request.
            ["volatile"] => Ok(()),
            [key, value] => reading.pair(place, key, value),
            _ => Err("expected a key and a value".to_owned()),
        };
        if let Err(why) = carried {
            reading.refuse(place, &words.join(" "), &why);
        }
    }
    reading.finish(map)
}

/// A mask of hosts in lower case.
struct Mask<'m> {
    place: &'m Place,
    key: String,
    value: &'m str,
}

/// A map as far as it was read.
struct Reading<'m> {
    bucket: Bucket,
    has_hostnames: bool,
    found: Found,
    default: Option<&'m Place>,
    /// What nginx has each key as, in lower case.
    seen: BTreeMap<String, &'m Place>,
    /// `*.example.com` and `.example.com`.
    suffixes: Vec<Mask<'m>>,
    /// `www.example.*`
    tails: Vec<Mask<'m>>,
    /// Patterns with their values.
    expressions: Vec<(String, String)>,
}

impl<'m> Reading<'m> {
    fn refuse(&mut self, place: &Place, text: &str, why: &str) {
        self.found
            .unsupported
            .push(format!("{place}: {text}: {why}"));
    }

    /// # Errors
    /// Why an entry is not carried over.
    fn pair(&mut self, place: &'m Place, key: &str, value: &'m str) -> Result<(), String> {
        if value.contains('$') {
            return Err("a value with variables has no counterpart".to_owned());
        }
        if key == "default" {
            return self.default(place, value);
        }
        self.bucket.holds(value)?;
        if let Some(pattern) = key.strip_prefix('~') {
            self.bucket
                .needs(LookupKind::Regex, "a regular expression")?;
            let pattern = match pattern.strip_prefix('*') {
                Some(pattern) => format!("(?i){pattern}"),
                None => pattern.to_owned(),
            };
            compile(&pattern)?;
            self.expressions.push((pattern, value.to_owned()));
            return Ok(());
        }
        // `\` makes a key of a word that is special.
        let key = key.strip_prefix('\\').unwrap_or(key);
        let lower = key.to_ascii_lowercase();
        if !self.has_hostnames {
            self.see(place, lower)?;
            return self.exact(key, value);
        }
        match host(&lower)? {
            Host::Name => {
                self.see(place, lower.clone())?;
                self.exact(&lower, value)
            }
            Host::Suffix => {
                if let Some(name) = lower.strip_prefix('.') {
                    self.see(place, name.to_owned())?;
                    self.see(place, format!("*.{name}"))?;
                } else {
                    self.see(place, lower.clone())?;
                }
                self.bucket.needs(LookupKind::Suffix, "a mask of hosts")?;
                let kinds = self.bucket.kinds;
                kinds.check_as(&lower, LookupKind::Suffix)?;
                self.suffixes.push(Mask {
                    place,
                    key: lower,
                    value,
                });
                Ok(())
            }
            Host::Tail => {
                self.see(place, lower.clone())?;
                self.tails.push(Mask {
                    place,
                    key: lower,
                    value,
                });
                Ok(())
            }
        }
    }

    fn default(&mut self, place: &'m Place, value: &str) -> Result<(), String> {
        if let Some(first) = self.default.replace(place) {
            return Err(format!(
                "there is one on {first} already, which nginx refuses"
            ));
        }
        // As if there were none.
        if value.is_empty() {
            return Ok(());
        }
        self.bucket.needs(LookupKind::Default, "a default")?;
        self.found.entries.push(("*".to_owned(), value.to_owned()));
        Ok(())
    }

    fn exact(&mut self, key: &str, value: &str) -> Result<(), String> {
        self.bucket.kinds.check_as(key, LookupKind::Exact)?;
        self.found.entries.push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    fn see(&mut self, place: &'m Place, key: String) -> Result<(), String> {
        match self.seen.insert(key, place) {
            None => Ok(()),
            Some(first) => Err(format!(
                "the key is on {first} already, which nginx refuses"
            )),
        }
    }

    /// What is said and done once all entries are known.
    fn finish(mut self, map: &Map) -> Found {
        self.carry_tails();
        let suffixes = self.suffixes.into_iter();
        let suffixes = suffixes.map(|mask| (mask.key, mask.value.to_owned()));
        let found = &mut self.found;
        let has_letters =
            |(key, _): &(String, String)| key.contains(|c: char| c.is_ascii_alphabetic());
        if found.entries.iter().any(has_letters) {
            found.notes.push(format!(
                "the map on {}: nginx compares keys without regard to case, a bucket with regard to it",
                map.place
            ));
        }
        found.entries.extend(suffixes);
        found.add_expressions(self.expressions);
        self.found
    }

    /// Masks such as `www.example.*` become prefixes where no suffix is to be tried before them, else expressions, which
    /// a bucket tries after suffixes: all of them, so that the longest of them stays the first.
    fn carry_tails(&mut self) {
        let mut tails = std::mem::take(&mut self.tails);
        let before = |tail: &Mask<'_>| {
            let mut suffixes = self.suffixes.iter();
            suffixes.find(|suffix| suffix.value != tail.value)
        };
        let kinds = self.bucket.kinds;
        let has_conflict = tails.iter().any(|tail| before(tail).is_some());
        if kinds.has(LookupKind::Prefix) && !has_conflict {
            for tail in tails {
                match kinds.check_as(&tail.key, LookupKind::Prefix) {
                    Ok(()) => self.found.entries.push((tail.key, tail.value.to_owned())),
                    Err(why) => self.refuse(tail.place, &tail.key, &why),
                }
            }
            return;
        }
        if kinds.has(LookupKind::Regex) {
            tails.sort_by_key(|tail| std::cmp::Reverse(tail.key.len()));
            let pattern = |tail: &Mask<'_>| {
                let begin = regex::escape(tail.key.trim_end_matches('*'));
                (format!("(?i)^{begin}[^.]"), tail.value.to_owned())
            };
            let patterns: Vec<_> = tails.iter().map(pattern).collect();
            self.expressions.splice(0..0, patterns);
            return;
        }
        let refusals: Vec<_> = tails
            .iter()
            .map(|tail| (tail, match before(tail) {
                Some(suffix) if kinds.has(LookupKind::Prefix) => format!(
                    "nginx tries {} on {} before it, and a bucket tries prefixes before suffixes: {}x{} would find \
                     another entry; expected \"regex\" in `lookup` of the bucket",
                    suffix.key,
                    suffix.place,
                    tail.key.trim_end_matches('*'),
                    suffix.key.trim_start_matches('*'),
                ),
                _ if has_conflict => "a mask that ends in .* has no counterpart without \"regex\" in `lookup` of the \
                     bucket, beside masks that begin with *."
                    .to_owned(),
                _ => "a mask that ends in .* has no counterpart without \"prefix\" in `lookup` of the bucket"
                    .to_owned(),
            }))
            .map(|(tail, why)| (tail.place, format!("{} {}", tail.key, tail.value), why))
            .collect();
        for (place, text, why) in refusals {
            self.refuse(place, &text, &why);
        }
    }
}

/// What a key is under `hostnames`.
enum Host {
    Name,
    /// `*.example.com`, and `.example.com` for that and the name itself.
    Suffix,
    /// `www.example.*`
    Tail,
}

/// # Errors
/// That nginx refuses it.
fn host(key: &str) -> Result<Host, String> {
    let stars = key.bytes().filter(|byte| *byte == b'*').count();
    let refused = || Err("is no name and no mask of hosts, which nginx refuses".to_owned());
    if stars > 1 || key.contains("..") {
        return refused();
    }
    match key {
        _ if key.len() > 1 && key.starts_with('.') => Ok(Host::Suffix),
        _ if key.len() > 2 && key.starts_with("*.") => Ok(Host::Suffix),
        _ if key.len() > 2 && key.ends_with(".*") => Ok(Host::Tail),
        _ if stars == 0 => Ok(Host::Name),
        _ => refused(),
    }
}

#[cfg(test)]
mod tests;
