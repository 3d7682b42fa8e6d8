//! The program `paste-bench`: all of it is in the library, which is empty where there is no
//! Linux. The seam.

#[cfg(target_os = "linux")]
use paste_bench::main as run;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
use unsupported::run;

fn main() -> std::process::ExitCode {
    run()
}
