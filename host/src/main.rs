//! The `throwbar` command: arguments in, exit code out.

fn main() -> std::process::ExitCode {
    throwbar_host::cli::main()
}
