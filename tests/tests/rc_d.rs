//! The service script for FreeBSD, with a stand-in for rc.subr(8): on this system it
//! shows what the script asks of it, and not that rc.subr does so.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::wait;
use tempfile::TempDir;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A host with the service installed, in a directory.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let script = fs::read_to_string(repository().join("configs/rc.d/pasted")).unwrap();
        let subr = repository().join("tests/rc.subr");
        let here = dir.path().display();
        // The two places of the system that no setting moves.
        let script = script
            .replace("/etc/rc.subr", &subr.display().to_string())
            .replace("/var/run/${name}.pid", &format!("{here}/${{name}}.pid"));
        fs::write(dir.path().join("pasted"), script).unwrap();
        let host = Host { dir };
        host.enable("YES");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn enable(&self, word: &str) {
        let text = format!(
            "pasted_enable={word}\npasted_config={}\npasted_bin={}\npasted_rundir={}\n\
             pasted_args=\"--log warn\"\n",
            self.path("paste.conf").display(),
            built("pasted").display(),
            self.path("run").display(),
        );
        fs::write(self.path("rc.conf"), text).unwrap();
    }

    /// One guest on a wire of the process's own, with its socket where the service makes
    /// the directory.
    fn configure(&self) {
        let text = format!(
            "[[guest]]\nname = \"web1\"\nsocket = \"{}\"\nmac = \"58:9c:fc:00:00:01\"\n\
             addresses = [\"10.7.0.2/24\"]\nport = \"pipe:wire\"\nregion = {{ size = \"16MiB\" }}\n",
            self.path("run/web1.sock").display()
        );
        fs::write(self.path("paste.conf"), text).unwrap();
    }

    fn service(&self, argument: &str) -> Output {
        let mut command = Command::new("sh");
        command.arg(self.path("pasted")).arg(argument);
        command.env("RC_CONF", self.path("rc.conf")).env("RC_LOG", self.path("log"));
        command.output().expect("a shell can be started")
    }

    fn says(&self, argument: &str, success: bool, part: &str) {
        let output = self.service(argument);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.success(), success, "{argument}: {said}");
        assert!(said.contains(part), "{argument}: {part:?} is not in {said:?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.service("onestop");
    }
}

#[test]
fn the_script_is_a_script() {
    let script = repository().join("configs/rc.d/pasted");
    let status = Command::new("sh").arg("-n").arg(script).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_service_starts_stops_and_tells() {
    require!(Need::Built("pasted"));
    let host = Host::new();
    host.configure();
    host.says("status", false, "is not running");
    host.says("start", true, "Starting pasted");
    let socket = host.path("run/web1.sock");
    wait::until("the service serves", || socket.exists().then_some(()));
    host.says("status", true, "is running");
    let pid = fs::read_to_string(host.path("pasted.pid")).unwrap();
    let arguments = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap();
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
    let config = host.path("paste.conf");
    assert!(
        arguments.ends_with(&format!("pasted run --config {} --log warn ", config.display())),
        "{arguments}"
    );
    host.says("start", false, "already running");

    // A wrong configuration neither ends what is served nor is it started.
    fs::write(&config, "[[guest]]\nname = 7\n").unwrap();
    host.says("configtest", false, "paste.conf:2:");
    host.says("restart", false, "paste.conf:2:");
    host.says("status", true, pid.trim());
    host.configure();
    host.says("configtest", true, "web1");
    host.says("restart", true, "Starting pasted");
    wait::until("the service serves again", || socket.exists().then_some(()));
    let next = fs::read_to_string(host.path("pasted.pid")).unwrap();
    assert_ne!(next, pid);
    host.says("stop", true, "Stopping pasted");
    assert!(!socket.exists(), "the socket is left behind");
    host.says("stop", false, "not running");
}

#[test]
fn nothing_is_started_that_is_not_wanted_or_cannot_be() {
    require!(Need::Built("pasted"));
    let host = Host::new();
    host.says("start", false, "paste.conf is not readable");
    fs::write(host.path("paste.conf"), "colour = 1\n").unwrap();
    host.says("start", false, "paste.conf:1:");
    assert!(!host.path("run").exists());
    host.configure();
    host.enable("NO");
    host.says("start", true, "Set pasted_enable to YES");
    assert!(!host.path("pasted.pid").exists());
}
