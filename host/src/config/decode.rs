//! TOML into a [`Config`](super::Config), every problem at once.
