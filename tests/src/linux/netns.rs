//! Network namespaces of a test's own, with TAP devices, bridges and links.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::LinkNameSpaceType;

/// What every name begins with; the number of the process follows.
const PREFIX: &str = "paste-tests";
/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// A network namespace. Dropping it removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new namespace with a loopback device that is up.
    pub fn new() -> Namespace {
        static STALE: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        STALE.call_once(remove_stale);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace { name: format!("{PREFIX}-{}-{count}", std::process::id()) };
        ip(&["netns", "add", &namespace.name]);
        namespace.ip("link set dev lo up");
        namespace
    }

    /// Runs `ip` in the namespace; `arguments` are split at spaces.
    pub fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split(' '));
        ip(&all);
    }

    /// A TAP device that is up, without an address.
    pub fn tap(&self, name: &str) {
        self.ip(&format!("tuntap add dev {name} mode tap"));
        self.ip(&format!("link set dev {name} up"));
    }

    /// A TAP device that is up, with an address such as `10.7.0.1/24`.
    pub fn tap_with(&self, name: &str, address: &str) {
        self.tap(name);
        self.ip(&format!("address add {address} dev {name}"));
    }

    /// A bridge that is up.
    pub fn bridge(&self, name: &str) {
        self.ip(&format!("link add {name} type bridge"));
        self.ip(&format!("link set dev {name} up"));
    }

    /// Puts a device into a bridge.
    pub fn join(&self, bridge: &str, device: &str) {
        self.ip(&format!("link set dev {device} master {bridge} up"));
    }

    /// A link from `device` here to `eth0` with an address in another namespace.
    pub fn link(&self, device: &str, other: &Namespace, address: &str) {
        self.link_of(1, device, other, address);
    }

    /// Likewise, whose ends have so many queues.
    pub fn link_of(&self, queues: u8, device: &str, other: &Namespace, address: &str) {
        let peer = &other.name;
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        self.ip(&format!(
            "link add {device} {queues} type veth peer name eth0 {queues} netns {peer}"
        ));
        self.ip(&format!("link set dev {device} up"));
        other.ip(&format!("address add {address} dev eth0"));
        other.ip("link set dev eth0 up");
    }

    /// A program that runs in the namespace. It keeps the number of the process
    /// that is started.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }

    /// Runs `work` on a thread in the namespace: its sockets are made there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves this thread into the namespace for good.
    pub fn enter(&self) {
        let file = File::open(format!("{NAMES}/{}", self.name)).expect("the namespace exists");
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("a namespace can be entered");
    }
}

impl Default for Namespace {
    fn default() -> Namespace {
        Namespace::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes the namespaces of test processes that ended without doing so, and
/// what still runs in them.
fn remove_stale() {
    let Ok(entries) = std::fs::read_dir(NAMES) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}

/// Ends what runs in a namespace and removes it.
fn remove(name: &str) {
    let listed = Command::new("ip").args(["netns", "pids", name]).output();
    let pids = listed.map(|listed| listed.stdout).unwrap_or_default();
    for pid in String::from_utf8_lossy(&pids).split_whitespace() {
        let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
        // A thread of this process may still be in there. It is no stray.
        if let Some(pid) = pid.filter(|&pid| pid != rustix::process::getpid()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said}", arguments.join(" "));
}
