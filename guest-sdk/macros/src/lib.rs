//! Router attribute.
