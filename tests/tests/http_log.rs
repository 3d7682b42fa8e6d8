//! The `http` example logs requests before it answers them: what was answered
//! outlives the guest, the backend and all memory, and the log goes round.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use paste_tests::backend::{Backend, FIXED_BODY, Guest, wait_serving};
use paste_tests::client;
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use tempfile::TempDir;

const NEEDS: [Need; 3] = [Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http")];
/// How requests are logged.
const WAYS: [&str; 2] = ["keep", "copy"];
const PORT: u16 = 80;

/// The server, its backend, and the files that outlive them.
struct Logged {
    // The order of the fields is that of taking down.
    application: Process,
    backend: Option<Backend>,
    guest: Guest,
    net: Namespace,
    way: &'static str,
    /// The region: memory, which only the machine loses.
    memory: TempDir,
    /// The mirror: what outlives the machine.
    disk: TempDir,
}

impl Logged {
    fn start(way: &'static str) -> Logged {
        let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let disk = tempfile::tempdir().expect("a directory");
        let mut guest = Guest::number(1);
        guest.more = format!(
            "region = {{ size = \"8MiB\", path = \"{}\", mirror = \"{}\" }}\n",
            memory.path().join("region").display(),
            disk.path().join("mirror").display(),
        );
        let net = Namespace::new();
        net.tap_with(&guest.tap, &guest.near_address());
        let backend = Backend::start(&net, std::slice::from_ref(&guest));
        let application = backend.example(&net, &guest, "http", &["--log", way]);
        wait_serving(&net, &guest);
        Logged { application, backend: Some(backend), guest, net, way, memory, disk }
    }

    /// Ends everything as a loss of power would, and starts it again. Returns how
    /// many requests and damages were found in the log.
    fn lose_power(&mut self) -> (usize, usize) {
        self.application.kill();
        let dir = self.backend.take().expect("a backend").crash();
        std::fs::remove_file(self.memory.path().join("region")).expect("a region");
        let guests = std::slice::from_ref(&self.guest);
        let backend = Backend::start_in(dir, &self.net, guests);
        let more = ["--log", self.way];
        self.application = backend.example(&self.net, &self.guest, "http", &more);
        self.backend = Some(backend);
        wait_serving(&self.net, &self.guest);
        self.application.wait_output(" damages\n");
        let said = self.application.output();
        let line = said.lines().find(|line| line.starts_with("found ")).expect("what was found");
        let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[2])
    }

    fn connect(&self) -> TcpStream {
        self.net.run(|| client::connect(self.guest.ip(), PORT).expect("a connection"))
    }

    /// The numbers of the requests whose marks the mirror holds.
    fn held(&self) -> BTreeSet<usize> {
        let mirror = std::fs::read(self.disk.path().join("mirror")).expect("a mirror");
        let marks = mirror.split(|&byte| byte == b'<');
        let number = |mark: &[u8]| {
            let digits = mark.strip_prefix(b"request ")?.first_chunk::<8>()?;
            std::str::from_utf8(digits).ok()?.parse().ok()
        };
        marks.filter_map(number).collect()
    }
}

/// A request with a mark that no other has.
fn request(number: usize) -> Vec<u8> {
    let mut body = format!("<request {number:08}>").into_bytes();
    body.resize(900, b'.');
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.into_bytes(), body].concat()
}

/// Sends requests at once, and takes as many answers.
fn ask(stream: &mut TcpStream, requests: &[Vec<u8>]) -> io::Result<()> {
    stream.write_all(&requests.concat())?;
    let (mut answers, mut bytes) = (0, Vec::new());
    while answers < requests.len() {
        let mut more = [0; 4096];
        match stream.read(&mut more)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => bytes.extend_from_slice(&more[..len]),
        }
        while let Some(at) = bytes.windows(FIXED_BODY.len()).position(|part| part == FIXED_BODY) {
            assert!(bytes.starts_with(b"HTTP/1.1 200 "), "{}", bytes.escape_ascii());
            bytes.drain(..at + FIXED_BODY.len());
            answers += 1;
        }
    }
    Ok(())
}

#[test]
fn what_was_answered_outlives_a_loss_of_power() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    for way in WAYS {
        let mut server = Logged::start(way);
        let mut before = 0;
        for count in [200, 100] {
            let mut stream = server.connect();
            for number in before..before + count {
                client::get(&mut stream, "/").expect("an answer, and nothing to log");
                ask(&mut stream, &[request(number)]).expect("an answer");
            }
            before += count;
            assert_eq!(server.lose_power(), (before, 0), "{way}");
            assert_eq!(server.held(), (0..before).collect(), "{way}");
        }
    }
}

#[test]
fn the_log_goes_round_and_keeps_the_newest() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    // Three times as many as the region has buffers.
    const COUNT: usize = 12_000;
    const AT_ONCE: usize = 40;
    for way in WAYS {
        let mut server = Logged::start(way);
        let mut stream = server.connect();
        for first in (0..COUNT).step_by(AT_ONCE) {
            let requests: Vec<_> = (first..first + AT_ONCE).map(request).collect();
            ask(&mut stream, &requests).expect("answers");
        }
        // In segments of their own, so that their marks are not cut.
        let last: Vec<usize> = (COUNT..COUNT + 100).collect();
        for &number in &last {
            ask(&mut stream, &[request(number)]).expect("an answer");
        }
        let (found, damages) = server.lose_power();
        assert_eq!(damages, 0, "{way}");
        assert!((last.len()..COUNT / 2).contains(&found), "{way}: {found} requests");
        let held = server.held();
        assert!(last.iter().all(|number| held.contains(number)), "{way}: {held:?}");
        let mut stream = server.connect();
        ask(&mut stream, &[request(0)]).expect("an answer");
    }
}
