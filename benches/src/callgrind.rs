//! What callgrind is told, and what it wrote.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::Path;

/// The argument that says where its output goes.
pub fn out_file(out: &Path) -> OsString {
    let mut argument = OsString::from("--callgrind-out-file=");
    argument.push(out);
    argument
}

/// The instructions counted in an output file.
///
/// # Errors
/// No such file, or one without a total.
pub fn total(out: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(out).context("callgrind wrote no output")?;
    let line = text.lines().find_map(|line| {
        line.strip_prefix("summary: ")
            .or(line.strip_prefix("totals: "))
    });
    Ok(line
        .context("callgrind's output has no total")?
        .trim()
        .parse()?)
}
