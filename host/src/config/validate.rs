//! Checks across sections.
