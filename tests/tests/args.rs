//! `pasted args`: QEMU takes what is printed for the example's guest, and attaches.

#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};

use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::wait;

const QEMU: &str = "qemu-system-x86_64";

#[test]
fn qemu_attaches_by_what_is_printed() {
    require!(Need::Program(QEMU), Need::IoUring, Need::Built("pasted"));
    let dir = tempfile::tempdir().expect("a directory");
    let (socket, region) = (dir.path().join("web1.sock"), dir.path().join("web 1.region"));
    let config = dir.path().join("pasted.toml");
    // The example, with files of the test's own, and on the host's TCP.
    let text = include_str!("../../configs/vm.toml")
        .replace("/run/pasted/web1.sock", &socket.display().to_string())
        .replace("/dev/shm/web1.region", &region.display().to_string())
        .replace("10.7.0.2/24", "127.0.0.1/8")
        .replace("gateway = \"10.7.0.1\"\n", "")
        .replace("tap:tap0", "sockets:");
    std::fs::write(&config, text).expect("a file");
    let mut command = Command::new(built("pasted"));
    let mut pasted = Process::spawn("pasted", command.arg("run").arg("--config").arg(&config));
    pasted.wait_output("serving");
    let printed = Command::new(built("pasted"))
        .args(["args", "qemu", "web1", "--memory", "128MiB", "--config"])
        .arg(&config)
        .output()
        .expect("pasted runs");
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let arguments = String::from_utf8(printed.stdout).expect("text").replace('\n', " ");
    // Without a guest inside: its firmware finds nothing to boot, and that is enough.
    let line = format!(
        "exec {QEMU} -nodefaults -display none -machine q35 -accel tcg -monitor stdio {arguments}"
    );
    let mut qemu = Command::new("sh");
    qemu.args(["-c", &line]).stdin(Stdio::piped());
    let mut qemu = Process::spawn("qemu", &mut qemu);
    pasted.wait_output("front end attached");
    qemu.tell("info memdev\n");
    qemu.wait_output("web1-region");
    qemu.tell("info network\n");
    qemu.wait_output("web1-net");
    qemu.tell("quit\n");
    assert_eq!(qemu.wait().code(), Some(0));
    wait::until("pasted notices", || pasted.output().contains("detached").then_some(()));
    pasted.terminate();
    assert_eq!(pasted.wait().code(), Some(0));
}
