//! Guests on the host's own TCP (`sockets:`): the real program and the real example, over
//! loopback addresses of the test's own, without namespaces and without privilege.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paste_tests::backend::{Backend, FIXED_BODY, Guest, Stats};
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::sim::pattern;
use paste_tests::{client, wait};
use pasted::port::prng::Prng;
use tempfile::TempDir;

const NEEDS: [Need; 3] = [Need::IoUring, Need::Built("pasted"), Need::Built("examples/http")];
/// Where guests listen.
const PORT: u16 = 8080;

/// A guest on sockets that serves HTTP.
struct Server {
    application: Process,
    backend: Backend,
    guest: Guest,
    more: Vec<String>,
}

/// A guest with a loopback address that no other test has.
fn guest(more: &str) -> Guest {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let [_, high, middle, low] = (pid << 8 | count & 0xff).to_be_bytes();
    let region = if more.contains("region") { "" } else { "region = { size = \"16MiB\" }\n" };
    Guest {
        port: Some("sockets:"),
        address: format!("127.{}.{middle}.{low}/8", 1 + high % 254),
        more: format!("{region}{more}"),
        ..Guest::number(1)
    }
}

fn http(backend: &Backend, guest: &Guest, more: &[String]) -> Process {
    let mut command = Command::new(built("examples/http"));
    command.arg("--socket").arg(backend.socket(guest)).args(["--port", &PORT.to_string()]);
    Process::spawn("http", command.args(more))
}

impl Server {
    fn start(more: &[&str]) -> Server {
        Server::start_with("", more)
    }

    /// Starts it with further lines of the guest's table, and arguments for the example.
    fn start_with(lines: &str, more: &[&str]) -> Server {
        let guest = guest(lines);
        let backend = Backend::start_here(
            tempfile::tempdir().expect("a directory"),
            std::slice::from_ref(&guest),
        );
        let more: Vec<_> = more.iter().map(ToString::to_string).collect();
        let application = http(&backend, &guest, &more);
        let server = Server { application, backend, guest, more };
        server.wait_serving();
        server
    }

    fn wait_serving(&self) {
        wait::until("the guest listens", || self.connect().ok());
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        client::connect(self.guest.ip(), PORT)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}:{PORT}{path}", self.guest.ip())
    }

    /// curl that is silent but for errors, and gives up.
    fn curl(&self, arguments: &[&str], path: &str) -> Vec<u8> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "30"]);
        run(command.args(arguments).arg(self.url(path))).stdout
    }

    /// The guest serves as ever.
    fn assert_serves(&self) {
        let mut stream = self.connect().expect("a connection");
        let response = client::get(&mut stream, "/").expect("an answer");
        assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
    }

    /// Starts the example anew.
    fn restart_guest(&mut self) {
        self.application = http(&self.backend, &self.guest, &self.more);
    }

    /// Ends everything in good order; no buffer may be missing.
    fn stop(mut self) -> (Guest, Stats) {
        self.application.terminate();
        assert_eq!(self.application.wait().code(), Some(0), "the application's exit");
        let stats = self.backend.stop();
        stats.assert_no_buffer_missing(&self.guest);
        assert_eq!(stats.get(&self.guest, "stack.flows"), 0);
        assert_eq!(stats.get(&self.guest, "port.strange_completions"), 0);
        assert_eq!(stats.get(&self.guest, "worker.port_errors"), 0);
        (self.guest, stats)
    }
}

/// Runs a program to its end, which must be a good one.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    output
}

/// A file that no two places of are alike.
fn make_file(path: &Path, len: u64) -> Vec<u8> {
    let bytes: Vec<u8> = (0..len).map(|at| pattern(7, at)).collect();
    std::fs::write(path, &bytes).expect("a file can be written");
    bytes
}

/// A directory with a file of many buffers.
fn directory(len: u64) -> (TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let bytes = make_file(&dir.path().join("big.bin"), len);
    (dir, bytes)
}

#[test]
fn curl_gets_and_posts_byte_for_byte() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("curl"));
    let (dir, big) = directory(10 << 20);
    let root = dir.path().to_str().expect("a path in UTF-8");
    let server = Server::start(&["--root", root]);
    let got = server.curl(&[], "/big.bin");
    assert!(got == big, "the file differs: {} bytes of {}", got.len(), big.len());
    let parallel = ["--parallel", "--parallel-max", "8"].into_iter();
    let urls: Vec<_> = (0..7).map(|_| server.url("/big.bin")).collect();
    let all: Vec<_> = parallel.chain(urls.iter().map(String::as_str)).collect();
    assert_eq!(server.curl(&all, "/big.bin").len(), 8 * big.len());
    server.stop();

    // Bodies that the guest compares with their digest.
    let upload = dir.path().join("upload");
    let bytes = make_file(&upload, 1 << 20);
    let digest = crc32c::crc32c(&bytes).to_be_bytes();
    let digest = format!("Content-Digest: crc32c=:{}:", base64(&digest));
    let data = format!("@{}", upload.display());
    let server = Server::start(&[]);
    for _ in 0..8 {
        let answer = server.curl(
            &["--data-binary", &data, "--header", &digest, "--write-out", "%{http_code}"],
            "/",
        );
        assert_eq!(answer, [FIXED_BODY, b"200"].concat());
    }
    let (guest, stats) = server.stop();
    assert!(stats.get(&guest, "stack.bytes_in") >= 8 << 20);
}

/// Base64 of a digest (RFC 4648 section 4).
fn base64(bytes: &[u8; 4]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let word = u64::from(u32::from_be_bytes(*bytes)) << 4;
    let digits = (0..6).rev().map(|at| char::from(ALPHABET[(word >> (6 * at) & 63) as usize]));
    digits.chain("==".chars()).collect()
}

#[test]
fn wrk_counts_no_error_and_a_request_costs_few_system_calls() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("wrk"));
    let _turn = wait::turn();
    let server = Server::start(&[]);
    let mut command = Command::new("wrk");
    command.args(["-t2", "-c64", "-d3s", "--timeout", "20s"]).arg(server.url("/"));
    let said = String::from_utf8(run(&mut command).stdout).expect("text");
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let (guest, stats) = server.stop();
    let (calls, sends) = (stats.get(&guest, "port.syscalls"), stats.get(&guest, "stack.sends"));
    assert!(sends > 1_000, "{said}");
    assert!(2 * calls < sends, "{calls} calls of io_uring_enter for {sends} requests");
}

#[test]
fn a_thousand_connections_are_served_at_once() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let server = Server::start(&[]);
    let mut streams: Vec<_> = (0..1000).map(|_| server.connect().expect("a connection")).collect();
    for _ in 0..3 {
        for stream in &mut streams {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n").expect("a request");
        }
        for stream in &mut streams {
            let mut byte = [0; 2048];
            let mut got = Vec::new();
            while !got.ends_with(FIXED_BODY) {
                let len = stream.read(&mut byte).expect("an answer");
                assert_ne!(len, 0, "closed");
                got.extend_from_slice(&byte[..len]);
            }
        }
    }
    drop(streams);
    let (guest, stats) = server.stop();
    assert!(stats.get(&guest, "stack.accepted") >= 1000);
    assert_eq!(stats.get(&guest, "stack.accept_no_flow"), 0);
}

/// Keeps a connection busy, and opens another whenever it breaks. An answer that comes
/// must be right.
fn load(ip: &str, stop: &AtomicBool, answers: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = client::connect(ip, PORT) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let Ok(response) = client::get(&mut stream, "/") else { break };
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn guests_are_killed_under_load_and_the_backend_goes_on() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    let mut server = Server::start(&[]);
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let ip = server.guest.ip().to_owned();
    let descriptors = std::thread::scope(|scope| {
        let _ending = wait::Ending(&stop);
        for _ in 0..16 {
            scope.spawn(|| load(&ip, &stop, &answers));
        }
        let more = |server: &mut Server| {
            let before = answers.load(Ordering::Relaxed);
            wait::until("the guest answers", || {
                assert!(server.backend.process.is_alive(), "the backend ended");
                assert!(server.application.is_alive(), "the guest ended");
                (answers.load(Ordering::Relaxed) > before + 50).then_some(())
            });
        };
        more(&mut server);
        let descriptors = server.backend.descriptors();
        for _ in 0..10 {
            server.application.kill();
            server.restart_guest();
            more(&mut server);
        }
        descriptors
    });
    wait::until("flows are closed", || (server.backend.descriptors() <= descriptors).then_some(()));
    let (guest, stats) = server.stop();
    assert_eq!(stats.get(&guest, "channel.opened"), 11);
}

#[test]
fn a_killed_backend_leaves_nothing_that_hinders_the_next() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let server = Server::start(&[]);
    let mut stream = server.connect().expect("a connection");
    client::get(&mut stream, "/").expect("an answer");
    let Server { mut application, backend, guest, more } = server;
    let dir = backend.crash();
    let end = stream.read(&mut [0; 1]);
    assert!(matches!(end, Ok(0) | Err(_)), "the kernel has closed it: {end:?}");
    // The example waits for a backend that restarts.
    let backend = Backend::start_here(dir, std::slice::from_ref(&guest));
    assert!(application.is_alive());
    let server = Server { application, backend, guest, more };
    wait::until("the guest serves again", || {
        let mut stream = server.connect().ok()?;
        client::get(&mut stream, "/").ok()
    });
    server.stop();
}

#[test]
fn clients_that_never_read_and_clients_that_reset_hurt_nobody() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let (dir, _) = directory(10 << 20);
    let root = dir.path().to_str().expect("a path in UTF-8");
    let server = Server::start(&["--root", root]);
    let request = b"GET /big.bin HTTP/1.1\r\nHost: t\r\n\r\n";
    let deaf: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = server.connect().expect("a connection");
            stream.write_all(request).expect("a request");
            stream
        })
        .collect();
    for round in 0..64 {
        let mut stream = server.connect().expect("a connection");
        stream.write_all(request).expect("a request");
        if round % 2 == 0 {
            stream.read_exact(&mut [0; 50_000]).expect("a part of it");
        }
        // What lies unread makes the end a RST.
        drop(stream);
    }
    let mut stream = server.connect().expect("a connection");
    assert_eq!(client::get(&mut stream, "/missing").expect("an answer").status, 404);
    drop(deaf);
    let (guest, stats) = server.stop();
    assert!(stats.get(&guest, "stack.reset") >= 64);
}

#[test]
fn slow_clients_exhaust_the_pool_and_others_wait_for_their_turn() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    // Some 970 buffers, for 600 clients that send the beginning of a body each.
    let server = Server::start_with("region = { size = \"4MiB\" }\n", &[]);
    let head = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 8000\r\n\r\n";
    let mut slow: Vec<_> = (0..600).map(|_| server.connect().expect("a connection")).collect();
    for stream in &mut slow {
        stream.write_all(head).expect("a head");
        stream.write_all(&[b'x'; 4000]).expect("half of a body");
    }
    // All of them get their answer when they go on.
    for stream in &mut slow {
        stream.write_all(&[b'x'; 4000]).expect("the other half");
    }
    for stream in &mut slow {
        let mut got = Vec::new();
        let mut part = [0; 4096];
        while !got.ends_with(FIXED_BODY) {
            let len = stream.read(&mut part).expect("an answer");
            assert_ne!(len, 0, "closed");
            got.extend_from_slice(&part[..len]);
        }
    }
    server.assert_serves();
    drop(slow);
    let (guest, stats) = server.stop();
    assert!(stats.get(&guest, "stack.pool_empty") > 0, "the pool was never empty");
}

#[test]
fn connections_beyond_the_limit_wait_until_others_end() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let server = Server::start_with("flows_max = 8\n", &[]);
    // The connection that found it serving has ended by now, or will.
    let mut first: Vec<_> = Vec::new();
    wait::until("eight are served", || {
        // While it lasts, the eighth of these may be reset.
        first = (0..8).map(|_| server.connect().ok()).collect::<Option<Vec<_>>>()?;
        first.iter_mut().all(|stream| client::get(stream, "/").is_ok()).then_some(())
    });
    let late = server.connect().expect("the kernel takes it");
    late.set_read_timeout(Some(Duration::from_millis(200))).expect("a time");
    let mut late_again = late.try_clone().expect("a descriptor");
    assert!(client::get(&mut late_again, "/").is_err(), "there is no flow for it");
    drop(first);
    wait::until("there is room again", || {
        let mut stream = server.connect().ok()?;
        client::get(&mut stream, "/").ok()
    });
    drop((late, late_again));
    server.stop();
}

#[test]
fn hostile_clients_from_seeds_hurt_only_themselves() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let server = Server::start(&[]);
    let end = Instant::now() + Duration::from_secs(5);
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let server = &server;
            scope.spawn(move || {
                let mut random = Prng::new(seed);
                while Instant::now() < end {
                    hostile(server, &mut random);
                }
            });
        }
        while Instant::now() < end {
            server.assert_serves();
        }
    });
    server.assert_serves();
    server.stop();
}

/// One connection that does anything.
fn hostile(server: &Server, random: &mut Prng) {
    let Ok(mut stream) = server.connect() else { return };
    let _ = stream.set_nonblocking(true);
    for _ in 0..random.below(30) {
        let len = 1 + random.below(5000) as usize;
        let _ = match random.below(7) {
            0 => stream.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"),
            1 => stream.write(b"POST / HTTP/1.1\r\nContent-Length: 70000\r\n\r\n"),
            2 => stream.write(
                &(0..len).map(|at| (at as u64 ^ random.next_u64()) as u8).collect::<Vec<_>>(),
            ),
            3 => stream.write(&b"GET / HTTP/1.1\r\nHost: t\r\n\r\n".repeat(1 + len / 100)),
            4 => (0..len.min(300)).try_fold(0, |_, _| stream.write(b"G")),
            5 => stream.read(&mut vec![0; len]),
            _ => stream.shutdown(Shutdown::Write).map(|()| 0),
        };
    }
}

/// Nothing of it needs root: as an ordinary user, in the same way.
#[test]
fn an_unprivileged_user_can_run_it_all() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("curl"), Need::Program("setpriv"));
    if !rustix::process::geteuid().is_root() {
        // Then every test here is this one.
        return;
    }
    // The programs lie where that user may not look.
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    let place = dir.path().join("bin");
    std::fs::create_dir(&place).expect("a directory");
    for name in ["pasted", "examples/http"] {
        let file = Path::new(name).file_name().expect("a name");
        std::fs::copy(built(name), place.join(file)).expect("a copy");
    }
    let guest = guest("");
    let config = paste_tests::backend::write_config(dir.path(), std::slice::from_ref(&guest));
    run(Command::new("chown").args(["-R", "65534:65534"]).arg(dir.path()));
    let as_nobody = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
        command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(place.join(program));
        command
    };
    let ports = run(as_nobody("pasted").args(["ports", "--json"])).stdout;
    let ports: serde_json::Value = serde_json::from_slice(&ports).expect("JSON");
    let rows = ports["ports"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["kind"] == "sockets").expect("a row");
    assert_eq!(row["works"], true, "{row}");

    let mut pasted =
        Process::spawn("pasted", as_nobody("pasted").args(["run", "--config"]).arg(&config));
    pasted.wait_output("serving");
    let socket = dir.path().join(format!("{}.sock", guest.name));
    let start = |port: &str| {
        let mut command = as_nobody("http");
        Process::spawn("http", command.arg("--socket").arg(&socket).args(["--port", port]))
    };
    let url = format!("http://{}:{PORT}/", guest.ip());
    let mut application = start(&PORT.to_string());
    wait::until("the guest listens", || client::connect(guest.ip(), PORT).ok());
    let got = run(Command::new("curl").args(["--silent", "--max-time", "30", &url])).stdout;
    assert_eq!(got, FIXED_BODY);
    application.terminate();
    assert_eq!(application.wait().code(), Some(0));

    // A port that needs privilege is refused, and the log says what to do, once.
    if unprivileged_from() > 80 {
        let mut application = start("80");
        assert_ne!(application.wait().code(), Some(0));
        pasted.wait_output("the application wants a port that needs privilege");
        assert_eq!(pasted.output().matches("needs privilege").count(), 1);
    }
    pasted.terminate();
    assert_eq!(pasted.wait().code(), Some(0));
}

/// The first port that everybody may listen on.
fn unprivileged_from() -> u16 {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    setting.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[test]
fn an_address_that_is_not_the_hosts_is_refused_at_the_start() {
    require!(NEEDS[0], NEEDS[1]);
    let dir = tempfile::tempdir().expect("a directory");
    // Set aside for documentation (RFC 5737).
    let guest = Guest { address: "192.0.2.77/24".to_owned(), ..guest("") };
    let config = paste_tests::backend::write_config(dir.path(), &[guest]);
    let output = Command::new(built("pasted")).args(["run", "--config"]).arg(config).output();
    let output = output.expect("it can be started");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    let expected = "guest web1: port sockets: 192.0.2.77 cannot be bound (Cannot assign requested \
                    address (os error 99)): give the guest an address that this host has";
    assert!(said.contains(expected), "{said}");
}

/// Where nobody may have a network of his own, the demo is given on the loopback device.
#[test]
fn the_demo_needs_no_network_of_its_own() {
    require!(NEEDS[0], NEEDS[1], Need::Program("unshare"));
    // It would meet itself there.
    let _turn = wait::turn();
    // A user namespace in which no further one may be made, and no network.
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c"]).arg(
        "echo 0 > /proc/sys/user/max_net_namespaces && \
         echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"",
    );
    let output = run(command.arg("sh").arg(built("pasted")).args([
        "demo",
        "--seconds",
        "3",
        "--connections",
        "8",
        "--json",
    ]));
    let said = String::from_utf8(output.stdout).expect("text");
    let last = said.lines().last().expect("an object");
    let object: serde_json::Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(object["conditions"]["loopback"], true, "{last}");
    assert_eq!((&object["errors"], &object["guest_restarts"]), (&0.into(), &1.into()), "{last}");
    assert!(
        object["requests"].as_u64() > Some(100) && object["epoll_requests"].as_u64() > Some(100)
    );
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("no network of its own: this machine refuses"), "{told}");
}

/// The configuration that ships, as its first lines say.
#[test]
fn the_example_configuration_serves() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("curl"));
    let text = include_str!("../../configs/sockets.toml");
    // In a place of the test's own, so that it can run beside others.
    let dir = tempfile::tempdir().expect("a directory");
    let own = guest("");
    let socket = dir.path().join("web1.sock");
    let text = text
        .replace("/tmp/pasted-web1.sock", socket.to_str().expect("UTF-8"))
        .replace("127.0.0.1/8", &own.address);
    let config = dir.path().join("sockets.toml");
    std::fs::write(&config, text).expect("a file");
    let mut pasted = Process::spawn(
        "pasted",
        Command::new(built("pasted")).args(["run", "--config"]).arg(&config),
    );
    pasted.wait_output("serving");
    let mut command = Command::new(built("examples/http"));
    let mut application =
        Process::spawn("http", command.arg("--socket").arg(&socket).args(["--port", "8080"]));
    wait::until("the guest listens", || client::connect(own.ip(), PORT).ok());
    let url = format!("http://{}:8080/", own.ip());
    let got = run(Command::new("curl").args(["--silent", "--max-time", "30", &url])).stdout;
    assert_eq!(got, FIXED_BODY);
    application.terminate();
    assert_eq!(application.wait().code(), Some(0));
    pasted.terminate();
    assert_eq!(pasted.wait().code(), Some(0));
}
