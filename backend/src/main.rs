//! `pasted`: see the library for what it is, and `pasted --help` for its use.

fn main() -> std::process::ExitCode {
    pasted::cli::main()
}
