//! Stand-ins for bhyve (`tests/bhyve`), linked with the unchanged C files of
//! `backend/bhyve`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The project's files.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the project")
}

/// Builds `tests/bhyve/NAME.c` into a directory, under a name of its own.
///
/// # Panics
/// If it does not compile without a warning.
pub fn build(dir: &Path, name: &str, sanitize: bool) -> PathBuf {
    let out = dir.join(format!("bhyve-{name}"));
    let mut gcc = Command::new("gcc");
    gcc.current_dir(root()).args(["-std=gnu17", "-D_GNU_SOURCE", "-DWITHOUT_CAPSICUM"]);
    // Where the process is.
    gcc.arg("-DPASTE_VMM_IO=\"vmm.io\"");
    gcc.args(["-Wall", "-Wextra", "-Werror", "-O1", "-g"]);
    gcc.args(["-Itests/bhyve", "-Itests/bhyve/include", "-Itests/bhyve/linux", "-Ibackend/bhyve"]);
    gcc.args(["-include", "tests/bhyve/linux/compat.h"]);
    if sanitize {
        gcc.arg("-fsanitize=thread");
    }
    gcc.args(["backend/bhyve/net_backend_paste.c", "backend/bhyve/pci_paste_region.c"]);
    gcc.args(["tests/bhyve/bhyve.c", "tests/bhyve/vmm.c", "tests/bhyve/linux/compat.c"]);
    gcc.args([&format!("tests/bhyve/{name}.c"), "-lpthread", "-o"]);
    let output = gcc.arg(&out).output().expect("gcc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}
