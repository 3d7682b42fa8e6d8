//! `pasted run` with a configuration made for the test, and guests as processes.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use paste_pmem::{Image, Medium};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::Process;
use crate::require::built;
use crate::wait;

/// What the `http` example answers when it serves no directory.
pub const FIXED_BODY: &[u8] = b"Served from a buffer that the NIC filled and nobody has copied.\n";

/// One guest of a configuration.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name; the socket is `NAME.sock` in the backend's directory.
    pub name: String,
    /// Its TAP device.
    pub tap: String,
    /// Its port, where that is no TAP device.
    pub port: Option<&'static str>,
    /// The Ethernet address.
    pub mac: String,
    /// The stack port's address with its prefix.
    pub address: String,
    /// Its IPv6 address with its prefix, if it has one.
    pub address_v6: Option<String>,
    /// These are the addresses of its kernel, and the backend is not told of them.
    pub shares_addresses: bool,
    /// The backend connects to its socket, and the front end listens.
    pub connects: bool,
    /// Further lines of its table, such as `flows_max = 16`.
    pub more: String,
}

impl Guest {
    /// Guest `number`, from 1: `web1` with 10.7.0.11/24 on tap1.
    pub fn number(number: u8) -> Guest {
        Guest {
            name: format!("web{number}"),
            tap: format!("tap{number}"),
            port: None,
            mac: format!("52:54:00:00:07:{:02x}", 10 + number),
            address: format!("10.7.0.{}/24", 10 + number),
            address_v6: None,
            shares_addresses: false,
            connects: false,
            more: "region = { size = \"16MiB\" }\n".to_owned(),
        }
    }

    /// Likewise, in a network of its own: guest 2 is 10.8.2.11/24, and its
    /// clients' end of the TAP device is 10.8.2.1/24.
    pub fn apart(number: u8) -> Guest {
        Guest { address: format!("10.8.{number}.11/24"), ..Guest::number(number) }
    }

    /// The address of the clients' end of its TAP device.
    pub fn near_address(&self) -> String {
        let (network, _) = self.address.rsplit_once('.').expect("a dotted address");
        format!("{network}.1/24")
    }

    /// The address, without its prefix.
    pub fn ip(&self) -> &str {
        self.address.split('/').next().unwrap_or_default()
    }

    /// The table of this guest, with its socket in `dir`.
    pub fn table(&self, dir: &Path) -> String {
        let Guest { name, tap, port, mac, address, address_v6, connects, more, .. } = self;
        let port = port.map_or_else(|| format!("tap:{tap}"), str::to_owned);
        let second =
            address_v6.iter().map(|address| format!(", \"{address}\"")).collect::<String>();
        let addresses = match self.shares_addresses {
            true => "\"guest\"".to_owned(),
            false => format!("[\"{address}\"{second}]"),
        };
        let socket = dir.join(format!("{name}.sock"));
        let mode = if *connects { "client" } else { "server" };
        format!(
            "[[guest]]\nname = \"{name}\"\nsocket = {{ path = \"{}\", mode = \"{mode}\" }}\n\
             mac = \"{mac}\"\naddresses = {addresses}\nport = \"{port}\"\n{more}\n",
            socket.display()
        )
    }
}

/// `pasted run`, serving.
#[derive(Debug)]
pub struct Backend {
    /// The process.
    pub process: Process,
    dir: TempDir,
}

impl Backend {
    /// Starts the program in the namespace, and waits until it serves. The TAP
    /// devices must be there.
    pub fn start(net: &Namespace, guests: &[Guest]) -> Backend {
        Backend::start_with(net, "", guests)
    }

    /// Likewise, with lines before the guests, such as `workers = 1`.
    pub fn start_with(net: &Namespace, head: &str, guests: &[Guest]) -> Backend {
        let dir = tempfile::tempdir().expect("a directory can be made");
        Backend::start_by(net.command(built("pasted")), dir, head, guests)
    }

    /// Likewise, with its sockets in a directory that may hold something already.
    pub fn start_in(dir: TempDir, net: &Namespace, guests: &[Guest]) -> Backend {
        Backend::start_in_with(dir, net, "", guests)
    }

    /// Likewise, with lines before the guests.
    pub fn start_in_with(dir: TempDir, net: &Namespace, head: &str, guests: &[Guest]) -> Backend {
        Backend::start_by(net.command(built("pasted")), dir, head, guests)
    }

    /// Starts the program where the test is, in no namespace, with its sockets in a
    /// directory that may hold something already.
    pub fn start_here(dir: TempDir, guests: &[Guest]) -> Backend {
        Backend::start_by(Command::new(built("pasted")), dir, "", guests)
    }

    fn start_by(mut pasted: Command, dir: TempDir, head: &str, guests: &[Guest]) -> Backend {
        let config = write_config_with(dir.path(), head, guests);
        pasted.args(["run", "--config"]).arg(&config).args(["--log", "info"]);
        let process = Process::spawn("pasted", &mut pasted);
        let mut backend = Backend { process, dir };
        backend.process.wait_output("serving");
        backend
    }

    /// A guest's socket.
    pub fn socket(&self, guest: &Guest) -> PathBuf {
        self.dir.path().join(format!("{}.sock", guest.name))
    }

    /// Starts an example of `paste-guest` as this guest, in the namespace so
    /// that it ends with it.
    pub fn example(&self, net: &Namespace, guest: &Guest, name: &str, more: &[&str]) -> Process {
        let mut command = net.command(built(&format!("examples/{name}")));
        command.arg("--socket").arg(self.socket(guest)).args(more);
        Process::spawn(&format!("{name} as {}", guest.name), &mut command)
    }

    /// Kilobytes of memory that are the process's alone, regions not included.
    pub fn private_kb(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.expect("the kernel tells")
    }

    /// Descriptors that the process has open.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.process.id());
        std::fs::read_dir(path).expect("the process lives").count()
    }

    /// Ends the process as a crash would, and returns the directory as it left it.
    pub fn crash(mut self) -> TempDir {
        self.process.kill();
        self.dir
    }

    /// Its directory, with the sockets.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stops the process in good order and returns what it counted.
    ///
    /// # Panics
    /// If it does not end with exit code 0, or leaves a socket behind.
    pub fn stop(mut self) -> Stats {
        assert!(self.process.is_alive(), "pasted ended by itself");
        self.process.terminate();
        let status = self.process.wait();
        assert_eq!(status.code(), Some(0), "pasted's exit");
        let left = sockets_in(self.dir.path());
        assert!(left.is_empty(), "left behind: {left:?}");
        Stats::read(&self.dir.path().join("stats.json"))
    }
}

/// The socket files in a directory.
pub fn sockets_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the directory exists");
    let paths = entries.map(|entry| entry.expect("a readable directory").path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "sock")).collect()
}

/// What the mirror at `path` has of a guest's mapping, with what its journal has.
pub fn mirrored(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mirror = Image::open(path).expect("the mirror is there");
    let mut bytes = vec![0; len];
    mirror.load(at, &mut bytes);
    bytes
}

/// Writes the configuration of these guests to `dir`.
pub fn write_config(dir: &Path, guests: &[Guest]) -> PathBuf {
    write_config_with(dir, "", guests)
}

/// Likewise, with lines before the guests.
pub fn write_config_with(dir: &Path, head: &str, guests: &[Guest]) -> PathBuf {
    let stats = dir.join("stats.json");
    let mut text = String::new();
    writeln!(text, "stats = \"{}\"\n{head}\n", stats.display()).expect("a string can grow");
    for guest in guests {
        text.push_str(&guest.table(dir));
    }
    let path = dir.join("pasted.toml");
    std::fs::write(&path, text).expect("a file can be written");
    path
}

/// `pasted run` in the namespace.
pub fn run_command(net: &Namespace, config: &Path) -> Command {
    let mut command = net.command(built("pasted"));
    command.args(["run", "--config"]).arg(config);
    command
}

/// What a backend counted, read back from its file.
#[derive(Debug)]
pub struct Stats(serde_json::Value);

impl Stats {
    fn read(path: &Path) -> Stats {
        let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Stats(serde_json::from_slice(&text).expect("JSON"))
    }

    /// A counter of a port that several guests share.
    pub fn shared(&self, port: &str, counter: &str) -> u64 {
        let ports = self.0["shared_ports"].as_array().expect("a port is shared");
        let found = ports.iter().find(|shared| shared["port"] == port);
        let value = &found.expect("this port is shared")["counters"][counter];
        value.as_u64().unwrap_or_else(|| panic!("there is no counter {counter}"))
    }

    /// Which guests and ports each worker serves, and a counter of each.
    pub fn workers(&self, counter: &str) -> Vec<(Vec<String>, u64)> {
        let workers = self.0["workers"].as_array().expect("a list of workers");
        let of = |worker: &serde_json::Value| {
            let serves = worker["serves"].as_array().expect("a list of names");
            let serves = serves.iter().map(|name| name.as_str().expect("text").to_owned());
            let value = worker["counters"][counter].as_u64();
            let value = value.unwrap_or_else(|| panic!("no counter {counter} in {worker:#}"));
            (serves.collect(), value)
        };
        workers.iter().map(of).collect()
    }

    /// A counter of a guest.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn get(&self, guest: &Guest, counter: &str) -> u64 {
        let guests = self.0["guests"].as_array().expect("a list of guests");
        let found = guests.iter().find(|g| g["name"] == guest.name.as_str());
        let counters = &found.unwrap_or_else(|| panic!("no guest {}", guest.name))["counters"];
        counters[counter].as_u64().unwrap_or_else(|| panic!("no counter {counter} in {counters:#}"))
    }

    /// The sum of a guest's counters whose names begin like this.
    pub fn sum(&self, guest: &Guest, prefix: &str) -> u64 {
        let guests = self.0["guests"].as_array().expect("a list of guests");
        let found = guests.iter().find(|g| g["name"] == guest.name.as_str());
        let counters = found.and_then(|g| g["counters"].as_object()).expect("counters");
        let matching = counters.iter().filter(|(name, _)| name.starts_with(prefix));
        matching.filter_map(|(_, value)| value.as_u64()).sum()
    }

    /// Every buffer of the guest's region is in the pool, or in the port's
    /// reserve.
    pub fn assert_no_buffer_missing(&self, guest: &Guest) {
        let [total, free, port] =
            ["pool.buffers", "pool.free", "pool.port"].map(|name| self.get(guest, name));
        assert_eq!(free + port, total, "buffers of {} are missing", guest.name);
    }
}

/// One guest that serves HTTP on its own TAP device, in a namespace of its own.
#[derive(Debug)]
pub struct Server {
    // The order of the fields is that of taking down.
    /// The guest application.
    pub application: Process,
    /// The backend.
    pub backend: Backend,
    /// The guest.
    pub guest: Guest,
    /// The namespace with the clients' end of the TAP device.
    pub net: Namespace,
}

impl Server {
    /// Starts it, with these further arguments for the `http` example.
    pub fn start(more: &[&str]) -> Server {
        Server::start_as(Guest::number(1), more)
    }

    /// Likewise, as this guest.
    pub fn start_as(guest: Guest, more: &[&str]) -> Server {
        let net = Namespace::new();
        net.tap_with(&guest.tap, &guest.near_address());
        Server::start_in(net, guest, more)
    }

    /// Likewise, in a namespace in which its TAP device is ready.
    pub fn start_in(net: Namespace, guest: Guest, more: &[&str]) -> Server {
        let backend = Backend::start(&net, std::slice::from_ref(&guest));
        let application = backend.example(&net, &guest, "http", more);
        let server = Server { application, backend, guest, net };
        server.wait_serving();
        server
    }

    /// Waits until the guest listens.
    pub fn wait_serving(&self) {
        wait_serving(&self.net, &self.guest);
    }

    /// Where `path` is served.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.guest.ip())
    }

    /// Ends the application in good order, then the backend.
    pub fn stop(mut self) -> Stats {
        self.application.terminate();
        assert_eq!(self.application.wait().code(), Some(0), "the application's exit");
        self.backend.stop()
    }
}

/// Waits until the guest accepts connections from this namespace.
pub fn wait_serving(net: &Namespace, guest: &Guest) {
    wait_serving_at(net, guest, 80);
}

/// Likewise, at this port.
pub fn wait_serving_at(net: &Namespace, guest: &Guest, port: u16) {
    let ip = guest.ip();
    net.run(|| {
        wait::until(&format!("{} listens", guest.name), || crate::client::connect(ip, port).ok());
    });
}
