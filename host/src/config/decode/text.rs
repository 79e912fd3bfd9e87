//! Strings with `${env:NAME}` and `${file:PATH}` put in.

use std::io::Read;
use std::path::Path;

/// Where substitutions come from.
pub struct Sources<'s> {
    /// Paths of the config are relative to it.
    pub directory: &'s Path,
    /// Reads an environment variable.
    pub env: &'s dyn Fn(&str) -> Option<String>,
}

/// Largest file that `${file:PATH}` may name.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Puts substitutions into a string. `$${` stands for `${`; `${header.NAME}` is left for the proxy.
///
/// # Errors
/// What is wrong, never with a value that was put in.
pub(super) fn substitute(text: &str, sources: &Sources<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, found) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &found[2..];
            continue;
        }
        out.push_str(before);
        let end = found
            .find('}')
            .ok_or("`${` has no closing `}`: write `$${` for a plain `${`")?;
        let inner = &found[2..end];
        if let Some(name) = inner.strip_prefix("env:") {
            out.push_str(&variable(name, sources)?);
        } else if let Some(path) = inner.strip_prefix("file:") {
            out.push_str(&file(path, sources)?);
        } else if inner.starts_with("header.") {
            out.push_str(&found[..=end]);
        } else {
            return Err(format!(
                "unknown substitution `${{{}}}`: expected `${{env:NAME}}`, `${{file:PATH}}`, or in the body of a reply \
                 `${{header.NAME}}`; write `$${{` for a plain `${{`",
                super::shorten(inner)
            ));
        }
        rest = &found[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn variable(inner: &str, sources: &Sources<'_>) -> Result<String, String> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    // The functions of the standard library panic on such names.
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("`${env:NAME}` needs the name of an environment variable".to_owned());
    }
    (sources.env)(name)
        .or_else(|| default.map(str::to_owned))
        .ok_or_else(|| {
            let name = super::shorten(name);
            format!(
                "environment variable `{name}` is not set: set it, or write `${{env:{name}:-default}}`"
            )
        })
}

/// The text of a file, without the line end most editors put at its end.
fn file(path: &str, sources: &Sources<'_>) -> Result<String, String> {
    let shown = super::shorten(path);
    let path = sources.directory.join(path);
    let failed = |error: std::io::Error| format!("cannot read file {shown:?}: {error}");
    // A pipe or a device would keep us waiting.
    if !std::fs::metadata(&path).map_err(failed)?.is_file() {
        return Err(format!("{shown:?} is not a regular file"));
    }
    let mut text = String::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("file {shown:?} is larger than 1MiB"));
    }
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The names of `${header.NAME}` in a text.
pub(super) fn header_templates(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("${header.").map(|(at, found)| {
        let name = &text[at + found.len()..];
        &name[..name.find('}').unwrap_or(name.len())]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_env(text: &str) -> Result<String, String> {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("secret"), "s3cret\r\n").expect("written");
        std::fs::write(directory.path().join("big"), vec![b'x'; (1 << 20) + 1]).expect("written");
        std::fs::write(directory.path().join("bytes"), b"s3cret\xff").expect("written");
        let env = |name: &str| (name == "A").then(|| "${env:A}".to_owned());
        substitute(
            text,
            &Sources {
                directory: directory.path(),
                env: &env,
            },
        )
    }

    #[test]
    fn variables_defaults_and_files_are_put_in_once() {
        assert_eq!(with_env("a ${env:A} b").as_deref(), Ok("a ${env:A} b"));
        assert_eq!(with_env("${env:B:-x:-y}").as_deref(), Ok("x:-y"));
        assert_eq!(with_env("${env:B:-}").as_deref(), Ok(""));
        assert_eq!(with_env("<${file:secret}>").as_deref(), Ok("<s3cret>"));
        assert_eq!(
            with_env("${header.x-id} $5 $${env:A}").as_deref(),
            Ok("${header.x-id} $5 ${env:A}")
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, part) in [
            ("${env:B}", "environment variable `B` is not set"),
            ("${env:}", "needs the name"),
            ("${env:A=B}", "needs the name"),
            ("${file:none}", "cannot read file \"none\""),
            ("${file:.}", "is not a regular file"),
            ("${file:big}", "larger than 1MiB"),
            ("${evn:A}", "unknown substitution `${evn:A}`"),
            ("x ${env:A", "no closing"),
        ] {
            let error = with_env(text).expect_err(text);
            assert!(error.contains(part), "{error}");
        }
        assert!(
            !with_env("${file:bytes}")
                .expect_err("not text")
                .contains("s3cret")
        );
    }
}
