//! Our own conformance scripts, by our own runner, and by packetdrill where it
//! is installed.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use paste_packetdrill::ffi::caller::Table;
use paste_packetdrill::runner;

fn scripts() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut scripts: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|e| e == "pkt"));
    scripts.sort();
    assert!(!scripts.is_empty());
    scripts
}

#[test]
fn scripts_pass() {
    let mut failures = Vec::new();
    for script in scripts() {
        let text = fs::read_to_string(&script).unwrap();
        if let Err(error) = runner::run(&text, Table::new(c"")) {
            failures.push(format!("{}: {error}", script.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_script_names_its_section() {
    for script in scripts() {
        let text = fs::read_to_string(&script).unwrap();
        let head = text.lines().next().unwrap_or_default();
        assert!(head.starts_with("// RFC "), "{}", script.display());
    }
}

/// The shared object, which cargo builds beside the tests.
fn shared_object() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.with_file_name("libpaste_packetdrill.so")
}

/// No package of Debian 12 has packetdrill, so its absence is no failure, not
/// even where every other skip is one: the same scripts run above.
#[test]
fn scripts_pass_by_packetdrill() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path).map(|dir| dir.join("packetdrill"));
    let Some(program) = dirs.find(|file| file.is_file()) else {
        eprintln!("skipped: packetdrill is not in PATH");
        return;
    };
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: packetdrill locks its memory, which needs root");
        return;
    }
    let mut failures = Vec::new();
    for script in scripts() {
        let output = Command::new(&program)
            .arg(format!("--so_filename={}", shared_object().display()))
            .args(["--ip_version=ipv4", "--local_ip=192.168.0.1", "--remote_ip=192.0.2.1"])
            .args(["--gateway_ip=192.168.0.1", "--netmask_ip=255.255.0.0"])
            .arg(&script)
            .output()
            .unwrap();
        if !output.status.success() {
            failures.push(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
