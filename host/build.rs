//! Builds the plugins that are part of the binary.

#[path = "build/guests.rs"]
mod guests;

/// As in `src/plugin/builtin.rs`.
const PLUGINS: [&str; 7] = [
    "by-header",
    "canary",
    "chat-filter",
    "maintenance",
    "path-prefix",
    "prefix-rules",
    "self-register",
];

fn main() {
    if let Err(error) = build() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    guests::watch(&["plugins"]);
    let packages: Vec<&str> = PLUGINS.iter().flat_map(|name| ["-p", name]).collect();
    let built = guests::build(&packages)?;
    for name in PLUGINS {
        let component = built.join(name.replace('-', "_")).with_extension("wasm");
        guests::place(&component, &guests::out_dir(), name)?;
    }
    Ok(())
}
