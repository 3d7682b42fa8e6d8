//! Transfers between Linux's TCP and ours over a wire that loses, every byte
//! judged, beside Linux to Linux over the same wire.
//!
//! ```sh
//! cargo build --release -p pasted -p paste-guest --bins --examples
//! cargo run --release -p paste-tests --bin interop -- --full
//! ```
//!
//! Needs root, for namespaces and TAP devices, and curl; wrk and iperf3 if they
//! are asked for. On Linux alone.

#[cfg(target_os = "linux")]
use paste_tests::interop::program::main as run;

#[cfg(not(target_os = "linux"))]
fn run() -> std::process::ExitCode {
    eprintln!("interop: needs Linux, whose TCP it is about");
    std::process::ExitCode::FAILURE
}

fn main() -> std::process::ExitCode {
    run()
}
