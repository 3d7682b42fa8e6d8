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

fn main() -> std::process::ExitCode {
    paste_tests::interop::program::main()
}
