//! Programs in C, compiled with the header and one of the libraries for guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::require::built;

/// The workspace's directory.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What a program of this workspace is compiled with.
const FLAGS: [&str; 6] = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic"];

/// Compiles a program of this workspace that needs no library to `program`.
///
/// # Panics
/// With what the compiler says, if it says anything.
pub fn compile_alone(source: &str, program: &Path) {
    let mut command = Command::new("cc");
    command.args(FLAGS).arg(repository().join(source)).arg("-o").arg(program);
    run(&mut command);
}

/// Compiles a program of this workspace into `dir`, without a warning, and links it with
/// the library of this kind.
///
/// # Panics
/// With what the compiler says, if it says anything.
pub fn compile(source: &str, library: &str, more: &[&str], dir: &Path) -> PathBuf {
    let program = dir.join("program");
    let mut command = Command::new("cc");
    command.args(FLAGS).arg("-I");
    command.arg(repository().join("guest-driver/include")).arg(repository().join(source));
    command.args(more).arg(built(library)).args(["-lpthread", "-ldl", "-lm", "-o"]).arg(&program);
    let libraries = built(library);
    let libraries = libraries.parent().expect("a library lies in a directory");
    command.arg(format!("-Wl,-rpath,{}", libraries.display()));
    run(&mut command);
    program
}

fn run(command: &mut Command) {
    let output = command.output().expect("the compiler can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
