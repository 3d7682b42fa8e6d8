//! `pasted run` with a mirror: what it leaves behind when it is stopped or
//! killed, and what it makes of that when it starts again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use paste_abi::superblock::HOST_HEAD_LEN;
use paste_pmem::{Image, Medium};
use tempfile::TempDir;

struct Place {
    dir: TempDir,
}

/// `pasted run`, ended with the test.
struct Running {
    child: Child,
    log: Vec<String>,
    /// Open until the end: what it logs then has to go somewhere.
    _stderr: BufReader<ChildStderr>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn signal(&mut self, signal: rustix::process::Signal) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        self.child.wait().unwrap().code()
    }

    fn logged(&self, text: &str) -> bool {
        self.log.iter().any(|line| line.contains(text))
    }
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mirror(&self) -> Image {
        Image::open(&self.path("web1.mirror")).unwrap()
    }

    /// Starts to serve a guest whose region is memory, and reads the log up to
    /// the line that says so.
    fn run(&self) -> Running {
        let config = format!(
            "[[guest]]\nname = \"web1\"\nsocket = \"{}\"\nmac = \"52:54:00:00:00:01\"\n\
             addresses = [\"10.7.0.2/24\"]\nport = \"pipe:wire\"\n\
             region = {{ size = \"4MiB\", mirror = \"{}\" }}\n",
            self.path("web1.sock").display(),
            self.path("web1.mirror").display(),
        );
        fs::write(self.path("web.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pasted"))
            .args(["run", "--log", "info", "--config"])
            .arg(self.path("web.toml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = Vec::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while stderr.read_line(&mut line).is_ok_and(|len| len > 0) {
            log.push(std::mem::take(&mut line));
            if log.last().is_some_and(|line| line.contains("serving")) {
                break;
            }
        }
        let running = Running { child, log, _stderr: stderr };
        assert!(running.logged("serving"), "{:?}", running.log);
        running
    }
}

#[test]
fn a_mirror_is_made_kept_and_found_again() {
    use rustix::process::Signal;

    let place = Place::new();
    let mut running = place.run();
    let mirror = place.mirror();
    assert!(mirror.in_use() && !mirror.is_clean());
    let uuid = mirror.uuid();
    drop(mirror);
    assert_eq!(running.signal(Signal::TERM), Some(0));
    assert!(place.mirror().is_clean());

    // What the guest had made durable.
    let at = HOST_HEAD_LEN + 100_000;
    let file = fs::OpenOptions::new().write(true).open(place.path("web1.mirror")).unwrap();
    file.write_all_at(b"durable", at).unwrap();
    let mut running = place.run();
    assert!(running.logged("restored from its mirror"), "{:?}", running.log);
    assert!(!running.logged("not closed in good order"), "{:?}", running.log);
    assert_eq!(running.signal(Signal::KILL), None);

    let mut running = place.run();
    assert!(running.logged("not closed in good order"), "{:?}", running.log);
    assert_eq!(running.signal(Signal::TERM), Some(0));
    let mirror = place.mirror();
    assert!(mirror.is_clean());
    assert_eq!(mirror.uuid(), uuid);
    let mut bytes = [0; 7];
    mirror.load(100_000, &mut bytes);
    assert_eq!(&bytes, b"durable");
}

#[test]
fn a_mirror_of_something_else_stops_the_start_and_is_left_alone() {
    let place = Place::new();
    fs::write(place.path("web1.mirror"), b"precious").unwrap();
    let config = format!(
        "[[guest]]\nname = \"web1\"\nsocket = \"{}\"\nmac = \"52:54:00:00:00:01\"\n\
         addresses = [\"10.7.0.2/24\"]\nport = \"pipe:wire\"\n\
         region = {{ size = \"4MiB\", path = \"{}\", mirror = \"{}\" }}\n",
        place.path("web1.sock").display(),
        place.path("web1.region").display(),
        place.path("web1.mirror").display(),
    );
    fs::write(place.path("web.toml"), config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pasted"))
        .args(["run", "--log", "error", "--config"])
        .arg(place.path("web.toml"))
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("web1.mirror: has 8 bytes, 4194304 expected"), "{errors}");
    assert_eq!(fs::read(place.path("web1.mirror")).unwrap(), b"precious");
    assert!(!place.path("web1.region").exists());
    assert!(!place.path("web1.sock").exists());
}
