//! Builds the guests that tests push, and says where they are: `env!("THROWBAR_FIXTURES")` is a directory of
//! `<name>.wasm`, by the names of `fixtures/guests/examples`.

#[path = "../host/build/guests.rs"]
mod guests;

use std::fs;

const SOURCES: &str = "fixtures/guests/examples";

fn main() {
    if let Err(error) = build() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    guests::watch(&["plugins", "tests/fixtures", "tests/build.rs"]);
    let built = guests::build(&[
        "-p",
        "throwbar-fixtures",
        "--features",
        "guest",
        "--examples",
    ])?;
    let directory = guests::out_dir().join("fixtures");
    let sources = fs::read_dir(SOURCES).map_err(|error| format!("{SOURCES}: {error}"))?;
    for source in sources {
        let source = source.map_err(|error| format!("{SOURCES}: {error}"))?;
        let path = source.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let name = name.ok_or_else(|| format!("{}: expected a name in UTF-8", path.display()))?;
        let component = built.join("examples").join(name.replace('-', "_"));
        guests::place(&component.with_extension("wasm"), &directory, name)?;
    }
    println!("cargo:rustc-env=THROWBAR_FIXTURES={}", directory.display());
    Ok(())
}
