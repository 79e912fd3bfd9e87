//! What the demonstration shows: titles, claims that held with what it took, and the one that did not.

use crate::cli::output::{Out, Style};
use std::fmt::Display;

/// The screen.
pub(super) struct Screen {
    out: Out,
    style: Style,
    claims: u32,
}

impl Screen {
    /// Standard output.
    pub(super) fn stdout() -> Self {
        Self {
            out: Out::stdout(),
            style: Style::stdout(),
            claims: 0,
        }
    }

    /// A title, after an empty line.
    pub(super) fn title(&mut self, text: &str) -> anyhow::Result<()> {
        let text = self.style.bold(text);
        self.out.line(format_args!("\n{text}"))?;
        self.out.flush()
    }

    /// An explanation.
    pub(super) fn note(&mut self, text: impl Display) -> anyhow::Result<()> {
        self.out.line(format_args!("  {text}"))?;
        self.out.flush()
    }

    /// Something to type.
    pub(super) fn command(&mut self, text: &str) -> anyhow::Result<()> {
        let text = self.style.bold(text);
        self.out.line(format_args!("    {text}"))?;
        self.out.flush()
    }

    /// The command that does what the step does.
    pub(super) fn same_as(&mut self, command: &str) -> anyhow::Result<()> {
        self.note(self.style.dim(&format!("the same as: throwbar {command}")))
    }

    /// A claim: shown as kept, or the error that ends the demonstration.
    pub(super) fn claim(
        &mut self,
        holds: bool,
        claim: impl Display,
        found: impl Display,
    ) -> anyhow::Result<()> {
        if !holds {
            let mark = self.style.red("✗");
            self.out.line(format_args!("  {mark} {claim}: {found}"))?;
            self.out.flush()?;
            anyhow::bail!("the demonstration failed: {claim}: {found}");
        }
        self.claims += 1;
        let (mark, found) = (self.style.green("✓"), self.style.dim(&found.to_string()));
        self.out.line(format_args!("  {mark} {claim}  {found}"))?;
        self.out.flush()
    }

    /// How many claims held.
    pub(super) fn claims(&self) -> u32 {
        self.claims
    }
}
