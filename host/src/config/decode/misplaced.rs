//! Keys of the top level, for what is told of them where they stand in another table: in TOML all that follows a `[table]` is in it.

/// How a key of the top level is written; none for any other.
pub(super) fn at_top_level(key: &str) -> Option<TopLevel> {
    match key {
        "version" | "workers" | "data" => Some(TopLevel::Value),
        "listener" | "route" => Some(TopLevel::Tables),
        "buckets" | "upstreams" | "plugins" => Some(TopLevel::Named),
        "admin" | "store" | "upstream_tls" | "guard" | "fleet" | "limits" | "streams" | "log"
        | "compat" => Some(TopLevel::Table),
        _ => None,
    }
}

/// What a key of the top level holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopLevel {
    /// A value of its own.
    Value,
    /// A table.
    Table,
    /// Tables with names.
    Named,
    /// Tables one after the other.
    Tables,
}

impl TopLevel {
    /// What to do about a key that was written into another table.
    pub(super) fn help(self, key: &str) -> String {
        match self {
            Self::Value => {
                format!("`{key}` is a key of the top level: put it before the first `[table]`")
            }
            Self::Table => format!("it is a table of the top level: write `[{key}]`"),
            Self::Named => format!("they are tables of the top level: write `[{key}.NAME]`"),
            Self::Tables => format!("they are tables of the top level: write `[[{key}]]`"),
        }
    }
}
