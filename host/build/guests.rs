//! Builds guests with a cargo of their own, so that `cargo build` and `cargo test` are the whole command.
//!
//! Included by the build scripts of `host` and `tests`. All of them share `<target>/guests`, where debug, release, check,
//! clippy and doc builds find each other's work; the outer build's own directory, and its lock, are never touched.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "wasm32-wasip2";

/// Runs `cargo build` for the wasm target with these arguments, and returns the directory of what it made.
///
/// # Errors
/// What to do about a missing target, or the whole output of the failed build.
pub(crate) fn build(arguments: &[&str]) -> Result<PathBuf, String> {
    ensure_target()?;
    let workspace = workspace();
    let target_dir = target_dir().join("guests");
    let mut cargo = Command::new(variable("CARGO"));
    clean_environment(&mut cargo);
    cargo
        .current_dir(&workspace)
        .args(["build", "--profile", "guest", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .args(arguments);
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    run(&mut cargo)?;
    Ok(target_dir.join(TARGET).join("guest"))
}

/// Copies a component into `directory`, unless the very bytes are there: a new time stamp would rebuild who includes it.
///
/// # Errors
/// If it cannot be read or written.
pub(crate) fn place(component: &Path, directory: &Path, name: &str) -> Result<(), String> {
    let bytes = fs::read(component).map_err(|e| format!("{}: {e}", component.display()))?;
    let copy = directory.join(name).with_extension("wasm");
    if fs::read(&copy).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    fs::write(&copy, bytes).map_err(|e| format!("{}: {e}", copy.display()))
}

/// Has cargo run the build script again when one of these paths of the workspace changes.
pub(crate) fn watch(paths: &[&str]) {
    for path in ["Cargo.toml", "Cargo.lock", "guest-sdk", "host/build"] {
        println!("cargo:rerun-if-changed=../{path}");
    }
    for path in paths {
        println!("cargo:rerun-if-changed=../{path}");
    }
}

/// The directory that cargo gives this build script.
pub(crate) fn out_dir() -> PathBuf {
    PathBuf::from(variable("OUT_DIR"))
}

fn workspace() -> PathBuf {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .expect("every package is a folder of the workspace")
        .to_owned()
}

/// The target directory: cargo marks it with a tag; without one it is where `target/debug/build/<package>/out` says.
fn target_dir() -> PathBuf {
    let out_dir = out_dir();
    let tagged = out_dir
        .ancestors()
        .find(|path| path.join("CACHEDIR.TAG").exists());
    tagged
        .or(out_dir.ancestors().nth(4))
        .expect("OUT_DIR is deep inside the target directory")
        .to_owned()
}

/// Adds the target with rustup if this toolchain lacks it.
fn ensure_target() -> Result<(), String> {
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let directory = run(&mut rustc)?;
    if Path::new(directory.trim()).exists() {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", TARGET])).map_err(|error| {
        format!(
            "plugins are built for {TARGET}, which this Rust toolchain lacks. Add it with this command:\n\n    \
             rustup target add {TARGET}\n\n(it was tried: {error})"
        )
    })?;
    Ok(())
}

/// Takes away what cargo and clippy set for the build around us, which is for another target and another profile.
/// Where crates come from, the job server and the toolchain stay.
fn clean_environment(command: &mut Command) {
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const DROPPED: [&str; 12] = [
        "CLIPPY_ARGS",
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "TARGET",
    ];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let cargo = name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept));
        if cargo || DROPPED.contains(&name) {
            command.env_remove(name);
        }
    }
    // Set, though empty: else the flags of a cargo config, which are for the machine's own target, would apply.
    command.env("CARGO_ENCODED_RUSTFLAGS", "");
}

fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{program} ended with {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn variable(name: &str) -> std::ffi::OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}
