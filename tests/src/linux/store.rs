//! The `kv` example with its backend, ended and started in any order, and the
//! writes that it has acknowledged.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::backend::{Backend, Guest, Stats, run_command, write_config};
use crate::netns::Namespace;
use crate::process::Process;
use crate::resp::{Client, Reply};
use crate::sim::pattern;
use crate::wait;

/// Where it is served.
pub const PORT: u16 = 6379;

/// The server, its backend, and the files that outlive them.
#[derive(Debug)]
pub struct Store {
    // The order of the fields is that of taking down.
    /// The guest application, if it runs.
    pub application: Option<Process>,
    /// The backend, if it runs.
    pub backend: Option<Backend>,
    /// The guest.
    pub guest: Guest,
    /// The namespace with the clients' end of the TAP device.
    pub net: Arc<Namespace>,
    /// The backend's directory, while it does not run.
    dir: Option<TempDir>,
    /// The region: memory, which only the machine loses.
    memory: TempDir,
    /// The mirror: what outlives the machine.
    mirror: PathBuf,
}

impl Store {
    /// Starts it, with a region of this size and a mirror in this place.
    pub fn start(size: &str, mirror: &Path) -> Store {
        let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let mut guest = Guest::number(1);
        guest.more = format!(
            "region = {{ size = \"{size}\", path = \"{}\", mirror = \"{}\" }}\n",
            memory.path().join("region").display(),
            mirror.display(),
        );
        let net = Arc::new(Namespace::new());
        net.tap_with(&guest.tap, &guest.near_address());
        let dir = Some(tempfile::tempdir().expect("a directory can be made"));
        let mirror = mirror.to_owned();
        let mut store = Store { application: None, backend: None, guest, net, dir, memory, mirror };
        store.resume();
        store.wait_serving();
        store
    }

    /// Where the region is.
    pub fn region(&self) -> PathBuf {
        self.memory.path().join("region")
    }

    /// Where its mirror is.
    pub fn mirror(&self) -> &Path {
        &self.mirror
    }

    /// Waits until it answers.
    pub fn wait_serving(&self) {
        self.net.run(|| {
            wait::until("the store serves", || {
                let mut client = Client::connect(self.guest.ip(), PORT).ok()?;
                (client.ask(&[b"PING"]).ok()? == Reply::Simple("PONG".to_owned())).then_some(())
            });
        });
    }

    /// A connection to it.
    pub fn client(&self) -> Client {
        self.net.run(|| Client::connect(self.guest.ip(), PORT).expect("a connection"))
    }

    /// A connection whose client has room for few answers that it does not read.
    pub fn slow_client(&self) -> Client {
        self.net.run(|| Client::connect_small(self.guest.ip(), PORT).expect("a connection"))
    }

    /// What redis-cli says to these words.
    pub fn cli(&self, words: &[&str]) -> String {
        redis_cli(&self.net, self.guest.ip(), words)
    }

    /// Ends the guest, the backend or both as a crash would; with the machine the
    /// region is gone.
    pub fn crash(&mut self, guest: bool, backend: bool, machine: bool) {
        if guest && let Some(mut application) = self.application.take() {
            application.kill();
        }
        if backend && let Some(backend) = self.backend.take() {
            self.dir = Some(backend.crash());
            if machine {
                std::fs::remove_file(self.region()).expect("a region");
            }
        }
    }

    /// The backend has ended by itself.
    pub fn put_back(&mut self, backend: Backend) {
        self.dir = Some(backend.crash());
    }

    /// Starts what does not run.
    pub fn resume(&mut self) {
        if let Some(dir) = self.dir.take() {
            let guests = std::slice::from_ref(&self.guest);
            self.backend = Some(Backend::start_in(dir, &self.net, guests));
        }
        if self.application.is_none()
            && let Some(backend) = &self.backend
        {
            self.application = Some(backend.example(&self.net, &self.guest, "kv", &[]));
        }
    }

    /// Tries to start the backend, which does not run, and says why it cannot.
    ///
    /// # Panics
    /// If it can.
    pub fn refusal(&self) -> String {
        let dir = self.dir.as_ref().expect("the backend does not run");
        let config = write_config(dir.path(), std::slice::from_ref(&self.guest));
        let mut process = Process::spawn("pasted", &mut run_command(&self.net, &config));
        assert_eq!(process.wait().code(), Some(1), "{}", process.output());
        process.output()
    }

    /// Stops both in good order.
    pub fn stop(mut self) -> Stats {
        self.stop_application();
        self.backend.take().expect("the backend runs").stop()
    }

    /// Stops the guest application in good order.
    pub fn stop_application(&mut self) {
        let mut application = self.application.take().expect("the application runs");
        application.terminate();
        assert_eq!(application.wait().code(), Some(0), "the application's exit");
    }
}

/// What redis-cli says to these words, to the store at this address.
pub fn redis_cli(net: &Namespace, ip: &str, words: &[&str]) -> String {
    let mut command = net.command("redis-cli");
    command.args(["-h", ip]).args(words);
    let output = command.output().expect("redis-cli runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    said.trim_end_matches('\n').to_owned()
}

/// Has redis-benchmark run these of its tests, as it calls them when they are done, against
/// the store at this address.
///
/// # Panics
/// If it finds an error, or does not end one of them.
pub fn redis_benchmark(net: &Namespace, ip: &str, tests: &[&str], more: &[&str]) {
    let mut command = net.command("redis-benchmark");
    let named: Vec<_> = tests.iter().map(|test| test.trim_end_matches("_MBULK")).collect();
    command.args(["-h", ip, "-q", "-t", &named.join(",").to_lowercase()]).args(more);
    let output = command.output().expect("redis-benchmark runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("rror"), "{more:?}: {said}{errors}");
    for test in tests {
        let done = said
            .lines()
            .flat_map(|line| line.split('\r'))
            .any(|line| line.starts_with(test) && line.contains("requests per second"));
        assert!(done, "{more:?}: no {test} in {said}");
    }
}

/// Xorshift: the same numbers in every run.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `count`.
    pub fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % count
    }
}

/// What is known of a key: the version that was acknowledged last, and the newest
/// that was asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    acknowledged: u64,
    asked: u64,
}

/// The writes of one writer, each of which sets one of its keys to a new version.
#[derive(Debug)]
pub struct Ledger {
    writer: u64,
    known: Vec<Known>,
}

impl Ledger {
    /// Nothing is written yet to any of `keys` keys.
    pub fn new(writer: u64, keys: u64) -> Ledger {
        Ledger { writer, known: vec![Known::default(); keys as usize] }
    }

    /// The name of a key.
    fn key(&self, number: u64) -> String {
        format!("writer {} key {number}", self.writer)
    }

    /// The value of a version: mostly short, of all sizes up to some hundred
    /// kilobytes.
    fn value(&self, number: u64, version: u64) -> Vec<u8> {
        let mut random = Random((self.writer << 40) | (number << 32) | version | (1 << 63));
        random.below(2);
        let len = match random.below(40) {
            0 => 20_000 + random.below(150_000),
            1..6 => 1_000 + random.below(9_000),
            _ => random.below(200),
        };
        let mut value = format!("{version} ").into_bytes();
        let stream = self.writer * 100 + number + version;
        value.extend((0..len).map(|at| pattern(stream, at)));
        value
    }

    /// The next version of a key, and the request that asks for it.
    pub fn ask(&mut self, number: u64) -> (u64, Vec<Vec<u8>>) {
        let known = &mut self.known[number as usize];
        known.asked += 1;
        let version = known.asked;
        let words =
            vec![b"SET".to_vec(), self.key(number).into_bytes(), self.value(number, version)];
        (version, words)
    }

    /// The version was acknowledged.
    pub fn acknowledge(&mut self, number: u64, version: u64) {
        self.known[number as usize].acknowledged = version;
    }

    /// Asks for the next version of a key, and notes whether that was acknowledged.
    ///
    /// # Errors
    /// The connection's.
    pub fn write(&mut self, client: &mut Client, number: u64) -> io::Result<Reply> {
        let (version, words) = self.ask(number);
        client.send(&[words])?;
        let reply = client.receive()?;
        if reply == Reply::Simple("OK".to_owned()) {
            self.acknowledge(number, version);
        }
        Ok(reply)
    }

    /// Compares every key: what was acknowledged is there, or something newer that
    /// was asked for, byte for byte, and what is read stays from now on. Returns how
    /// many writes that checks.
    ///
    /// # Panics
    /// If it is not so.
    pub fn check(&mut self, client: &mut Client) -> u64 {
        let mut checked = 0;
        for number in 0..self.known.len() as u64 {
            let version = self.check_one(client, number);
            let known = &mut self.known[number as usize];
            checked += u64::from(known.acknowledged > 0);
            known.acknowledged = version;
        }
        checked
    }

    /// Likewise, of one key of a store that cannot make durable what it reads out.
    /// Returns the version that was read.
    ///
    /// # Panics
    /// If it is not so.
    pub fn check_one(&self, client: &mut Client, number: u64) -> u64 {
        let version = self.version(client, number);
        let Known { acknowledged, asked } = self.known[number as usize];
        assert!(
            (acknowledged..=asked).contains(&version),
            "{}: version {version}, but {acknowledged} was acknowledged and {asked} asked for",
            self.key(number),
        );
        version
    }

    /// The version of a key that the store has; 0 if it has none.
    fn version(&self, client: &mut Client, number: u64) -> u64 {
        let name = self.key(number);
        let reply = client.ask(&[b"GET", name.as_bytes()]).expect("an answer");
        let Reply::Bulk(found) = reply else { panic!("{name}: {reply:?}") };
        let Some(found) = found else { return 0 };
        let digits = found.split(|&byte| byte == b' ').next().unwrap_or_default();
        let version = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
        let version = version.unwrap_or(0);
        assert!(found == self.value(number, version), "{name}: other bytes");
        version
    }
}
