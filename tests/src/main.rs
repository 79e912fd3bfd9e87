//! The `throwbar` command under another name, so that cargo builds it for the tests beside it.

fn main() -> std::process::ExitCode {
    throwbar_host::cli::main()
}
