//! What a test needs and may not have: privileges and programs.
//!
//! Without it the test says `skipped:` and why, and passes; with
//! `PASTED_REQUIRE_ALL=1` it fails, so that nobody takes a skip for a pass.

use std::path::{Path, PathBuf};

/// Something that a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces and TAP devices.
    Namespaces,
    /// The host's TCP through io_uring.
    IoUring,
    /// A device, such as `/dev/fuse`.
    Device(&'static str),
    /// A program in `PATH`.
    Program(&'static str),
    /// A program of this workspace, beside the tests in the target directory:
    /// `pasted`, or an example as `examples/http`.
    Built(&'static str),
    /// A kernel for virtual machines.
    GuestKernel,
}

/// Returns from the test, saying why, unless all of the needs are met.
#[macro_export]
macro_rules! require {
    ($($need:expr),+ $(,)?) => {
        $(if let Some(reason) = $crate::require::missing($need) {
            eprintln!("skipped: {reason}");
            return;
        })+
    };
}

/// Why the need is not met.
///
/// # Panics
/// If it is not met and `PASTED_REQUIRE_ALL=1` is set.
pub fn missing(need: Need) -> Option<String> {
    let reason = match need {
        Need::Namespaces => no_namespaces()?,
        Need::IoUring => pasted::engine::kernel::probe_sockets().err()?.to_string(),
        Need::Device(path) if Path::new(path).exists() => return None,
        Need::Device(path) => format!("{path} does not exist"),
        Need::Program(name) if program(name).is_some() => return None,
        Need::Program(name) => format!("{name} is not installed"),
        Need::GuestKernel if crate::vm::kernel().is_some() => return None,
        Need::GuestKernel => format!(
            "there is no kernel for virtual machines in {}: tests/run fetches Debian's",
            crate::vm::kernel_dir().display()
        ),
        Need::Built(name) if built(name).exists() => return None,
        Need::Built(name) => format!(
            "{} is missing: cargo build --release -p pasted -p paste-guest -p paste-bench --bins --examples",
            built(name).display()
        ),
    };
    assert!(!is_all_required(), "PASTED_REQUIRE_ALL=1, and {reason}");
    Some(reason)
}

/// Whether the tests are to skip nothing: `PASTED_REQUIRE_ALL=1`.
pub fn is_all_required() -> bool {
    std::env::var_os("PASTED_REQUIRE_ALL").is_some_and(|value| value == "1")
}

fn no_namespaces() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("namespaces need root".to_owned());
    }
    if program("ip").is_none() {
        return Some("ip is not installed (iproute2)".to_owned());
    }
    missing(Need::Device("/dev/net/tun"))
}

/// Where a program of the host is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Where a program of this workspace was built: in the target directory that
/// this test or program runs from.
pub fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a program has a path");
    // target/PROFILE/deps/test-HASH, or target/PROFILE/program
    let dir = own.parent().expect("a program lies in a directory");
    let profile = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    profile.join(name)
}
