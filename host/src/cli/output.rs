//! What commands print: tables, JSON, sizes and ages for people; a closed pipe is not an error.

use std::io::{self, IsTerminal, Write};

/// Standard output was closed by its reader.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(crate) struct Closed;

/// Standard output, buffered; flushed when asked for.
pub(crate) struct Out {
    writer: io::BufWriter<Box<dyn Write>>,
}

impl Out {
    /// To standard output.
    pub(crate) fn stdout() -> Self {
        Self::to(io::stdout())
    }

    /// To a file or anything else.
    pub(crate) fn to(writer: impl Write + 'static) -> Self {
        Self {
            writer: io::BufWriter::new(Box::new(writer)),
        }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// [`Closed`] if the reader is gone, otherwise what the system says.
    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> anyhow::Result<()> {
        writeln!(self.writer, "{line}").map_err(closed)
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.writer.write_all(bytes).map_err(closed)
    }

    /// Writes a JSON value, indented, and a newline.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub(crate) fn json(&mut self, value: &serde_json::Value) -> anyhow::Result<()> {
        self.line(format_args!("{value:#}"))
    }

    /// Hands on what was written.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        self.writer.flush().map_err(closed)
    }
}

fn closed(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Closed.into()
    } else {
        anyhow::Error::new(error).context("write output")
    }
}

/// Tells people something on standard error, which is no part of the output.
pub(crate) fn aside(text: std::fmt::Arguments<'_>) {
    // Closed: there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings, columns as wide as their widest cell.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: one cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells
            .into_iter()
            .map(|cell| shown_in_table(&cell))
            .collect();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// Prints it.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub(crate) fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        for line in self.lines() {
            out.line(line)?;
        }
        Ok(())
    }

    /// Its lines, headings first.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(name, _)| name.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let heading = self.columns.iter().map(|(name, _)| *name).collect();
        std::iter::once(heading)
            .chain(
                self.rows
                    .iter()
                    .map(|row| row.iter().map(|c| &**c).collect()),
            )
            .map(|cells: Vec<&str>| self.line(&cells, &widths))
            .collect()
    }

    fn line(&self, cells: &[&str], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, width), (_, align)) in cells.iter().zip(widths).zip(&self.columns) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            match align {
                Align::Left => line.push_str(&format!("{cell:<width$}")),
                Align::Right => line.push_str(&format!("{cell:>width$}")),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A cell: one that would make all rows longer than a screen is cut.
fn shown_in_table(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    const CHARS_OF_CUT: usize = 60;
    if text.chars().nth(CHARS_MAX).is_none() {
        return printable(text);
    }
    cut(text, CHARS_OF_CUT)
}

/// The beginning of a text, and how long it is: `aaaa… (3,000,000 bytes)`.
fn cut(text: &str, chars: usize) -> String {
    let head: String = text.chars().take(chars).collect();
    let bytes = count(text.len() as u64);
    format!("{}… ({bytes} bytes)", printable(&head))
}

/// Text from outside as it may be shown on a terminal: control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars()
            .flat_map(|c| {
                let escaped = c.is_control().then(|| c.escape_default());
                let plain = escaped.is_none().then_some(c);
                escaped.into_iter().flatten().chain(plain)
            })
            .collect()
    } else {
        text.to_owned()
    }
}

/// Bytes for people: `512 B`, `61.6 KB`, `12.2 MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Seconds for people, two units at most: `8s`, `4m 10s`, `2h 5m`, `3d 4h`.
pub(crate) fn age(seconds: u64) -> String {
    let (days, hours, minutes, rest) = (
        seconds / 86_400,
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A span for people, three digits at most: `850 ns`, `12 µs`, `3.4 ms`, `1.2 s`.
pub(crate) fn span(nanos: u64) -> String {
    let (value, unit) = match nanos {
        0..1_000 => return format!("{nanos} ns"),
        1_000..1_000_000 => (nanos as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (nanos as f64 / 1e6, "ms"),
        _ => (nanos as f64 / 1e9, "s"),
    };
    if value < 10.0 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// A whole number with its thousands apart: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number and its noun: `1 key`, `2 keys`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!(
        "{} {noun}{}",
        count(number),
        if number == 1 { "" } else { "s" }
    )
}

/// How people name a version: the first 12 digits of its digest.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Colours, if the stream they go to is a terminal and nobody asked for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style(bool);

impl Style {
    /// For standard output.
    pub(crate) fn stdout() -> Self {
        Self(io::stdout().is_terminal() && colors_wanted())
    }

    /// For standard error.
    pub(crate) fn stderr() -> Self {
        Self(io::stderr().is_terminal() && colors_wanted())
    }

    /// Whether colours are on.
    pub(crate) fn is_on(self) -> bool {
        self.0
    }

    /// Good news.
    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Bad news.
    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// What matters.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What can be passed over.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn colors_wanted() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    !is_dumb && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_have_no_trailing_spaces() {
        let mut table = Table::new(&[
            ("KEY", Align::Left),
            ("REVISION", Align::Right),
            ("VALUE", Align::Left),
        ]);
        table.row(["id1".into(), "7".into(), "127.0.0.2".into()]);
        table.row(["a-long-key".into(), "1234567890".into(), "x".into()]);
        assert_eq!(
            table.lines(),
            [
                "KEY           REVISION  VALUE",
                "id1                  7  127.0.0.2",
                "a-long-key  1234567890  x",
            ]
        );
    }

    #[test]
    fn a_long_cell_is_cut_and_makes_no_row_longer() {
        let mut table = Table::new(&[("KEY", Align::Left), ("REVISION", Align::Right)]);
        table.row(["v".repeat(120_000), "7".into()]);
        table.row(["ü".repeat(200), "8".into()]);
        let lines = table.lines();
        let cut = format!("{}… (120,000 bytes)", "v".repeat(60));
        assert!(lines[1].starts_with(&cut), "{}", lines[1]);
        assert!(lines[2].starts_with(&"ü".repeat(200)), "{}", lines[2]);
        assert!(lines.iter().all(|line| line.chars().count() == 210));
    }

    #[test]
    fn control_characters_from_outside_never_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(printable("größe"), "größe");
    }

    #[test]
    fn sizes_ages_and_spans_read_well_at_their_borders() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1000), "1.0 KB");
        assert_eq!(size(61_565), "61.6 KB");
        assert_eq!(size(999_999), "1.0 MB");
        assert_eq!(age(59), "59s");
        assert_eq!(age(60), "1m 0s");
        assert_eq!(age(7_500), "2h 5m");
        assert_eq!(age(90_000), "1d 1h");
        assert_eq!(span(850), "850 ns");
        assert_eq!(span(12_300), "12 µs");
        assert_eq!(span(3_400_000), "3.4 ms");
        assert_eq!(span(1_200_000_000), "1.2 s");
    }

    #[test]
    fn thousands_are_set_apart_and_nouns_agree() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(1, "key"), "1 key");
        assert_eq!(counted(1_000, "key"), "1,000 keys");
    }

    #[test]
    fn a_closed_pipe_is_told_apart_from_other_failures() {
        let error = closed(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(error.is::<Closed>());
        let error = closed(io::Error::from(io::ErrorKind::StorageFull));
        assert!(!error.is::<Closed>());
    }
}
