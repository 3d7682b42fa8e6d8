//! The program `paste-bench`: all of it is in the library.

#[cfg(target_os = "linux")]
use paste_bench::main as run;

#[cfg(not(target_os = "linux"))]
fn run() -> std::process::ExitCode {
    eprintln!("paste-bench: measures on Linux alone");
    std::process::ExitCode::FAILURE
}

fn main() -> std::process::ExitCode {
    run()
}
