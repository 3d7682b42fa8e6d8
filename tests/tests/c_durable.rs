//! The example `log.c`, a server in C that logs each line where it has arrived: what it
//! has answered outlives every crash, and what it gives up goes back to the pool.

#![cfg(target_os = "linux")]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use paste_tests::backend::{Backend, Guest, Stats, wait_serving_at};
use paste_tests::c::compile;
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::{client, wait};
use tempfile::TempDir;

const NEEDS: [Need; 4] =
    [Need::Namespaces, Need::Built("pasted"), Need::Built("libpasteguest.a"), Need::Program("cc")];
const PORT: u16 = 7000;
const ANSWER: &[u8] = b"logged\n";

/// The server, its backend, and the files that outlive them.
struct Logged {
    // The order of the fields is that of taking down.
    application: Option<Process>,
    backend: Option<Backend>,
    guest: Guest,
    net: Namespace,
    /// The region: memory, which only the machine loses.
    memory: TempDir,
    /// The mirror, which outlives the machine.
    _disk: TempDir,
    server: PathBuf,
    reader: PathBuf,
    _programs: [TempDir; 2],
}

/// What a log was found to hold.
struct Found {
    lines: Vec<String>,
    lost: u64,
    damaged: u64,
}

impl Logged {
    fn start() -> Logged {
        let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let [disk, first, second] = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
        let server = compile("guest-driver/examples/c/log.c", "libpasteguest.a", &[], first.path());
        let reader = compile("tests/c/read_log.c", "libpasteguest.a", &[], second.path());
        let mut guest = Guest::number(1);
        guest.more = format!(
            "region = {{ size = \"8MiB\", path = \"{}\", mirror = \"{}\" }}\n",
            memory.path().join("region").display(),
            disk.path().join("mirror").display(),
        );
        let net = Namespace::new();
        net.tap_with(&guest.tap, &guest.near_address());
        let backend = Some(Backend::start(&net, std::slice::from_ref(&guest)));
        let mut logged = Logged {
            application: None,
            backend,
            guest,
            net,
            memory,
            _disk: disk,
            server,
            reader,
            _programs: [first, second],
        };
        logged.start_application();
        logged
    }

    fn socket(&self) -> PathBuf {
        self.backend.as_ref().expect("a backend").socket(&self.guest)
    }

    fn start_application(&mut self) {
        let mut command = self.net.command(&self.server);
        command.arg(self.socket()).arg(PORT.to_string());
        self.application = Some(Process::spawn("log.c", &mut command));
        self.wait_serving();
    }

    fn wait_serving(&mut self) {
        wait_serving_at(&self.net, &self.guest, PORT);
    }

    fn kill_application(&mut self) {
        self.application.take().expect("an application").kill();
    }

    /// Kills the backend, has `between` happen, and starts another one.
    fn kill_backend(&mut self, between: impl FnOnce(&mut Logged)) {
        let dir = self.backend.take().expect("a backend").crash();
        between(self);
        let guests = std::slice::from_ref(&self.guest);
        self.backend = Some(Backend::start_in(dir, &self.net, guests));
    }

    fn forget_memory(&self) {
        std::fs::remove_file(self.memory.path().join("region")).expect("a region");
    }

    fn connect(&self) -> TcpStream {
        self.net.run(|| client::connect(self.guest.ip(), PORT).expect("a connection"))
    }

    /// Reads the log with a program in C, while the server does not run.
    fn read(&self, more: &[&str]) -> Found {
        let mut command = self.net.command("timeout");
        command.arg("60").arg(&self.reader).arg(self.socket()).args(more);
        let output = command.output().expect("the reader can be started");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}");
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        let last = lines.pop().expect("what was found");
        let numbers: Vec<u64> = last.split(' ').filter_map(|word| word.parse().ok()).collect();
        let &[records, lost, damaged] = &numbers[..] else { panic!("{last}") };
        assert_eq!(lines.len() as u64, records, "{last}");
        // Without the record's number and its tag.
        let bytes = lines.iter().map(|line| line.split_once(": ").expect("a record").1);
        Found { lines: bytes.map(str::to_owned).collect(), lost, damaged }
    }

    /// Reads the log and expects these lines in it, in this order.
    fn expect(&mut self, count: usize) {
        let found = self.read(&[]);
        assert_eq!((found.lost, found.damaged), (0, 0));
        assert_eq!(found.lines.len(), count);
        for (number, found) in found.lines.iter().enumerate() {
            assert_eq!(*found, line(number).trim_end());
        }
    }

    /// Gives up everything and ends the backend.
    fn stop(mut self) -> (Guest, Stats) {
        if let Some(mut application) = self.application.take() {
            application.terminate();
            assert_eq!(application.wait().code(), Some(0), "the application's exit");
        }
        self.read(&["clear"]);
        assert_eq!(self.read(&[]).lines, [""; 0]);
        let backend = self.backend.take().expect("a backend");
        (self.guest.clone(), backend.stop())
    }
}

/// A line that no other is.
fn line(number: usize) -> String {
    format!("line {number:08} {:.>1$}\n", "", 40 + number * 7 % 400)
}

/// Takes so many answers.
fn hear(stream: &mut TcpStream, count: usize) -> io::Result<()> {
    let mut answers = vec![0; ANSWER.len() * count];
    stream.read_exact(&mut answers)?;
    assert_eq!(answers, ANSWER.repeat(count));
    Ok(())
}

/// Sends lines from this one on, some of them at once and some in two pieces, until so many
/// are answered.
fn ask(stream: &mut TcpStream, first: usize, count: usize) {
    stream.set_nodelay(true).expect("a socket");
    let mut number = first;
    while number < first + count {
        let now = (1 + number % 5).min(first + count - number);
        let text: String = (number..number + now).map(line).collect();
        let (before, after) = text.as_bytes().split_at(text.len() * 2 / 3);
        stream.write_all(before).expect("the guest reads");
        if number.is_multiple_of(2) {
            // Whole lines of it are answered before the rest is there.
            let whole = before.iter().filter(|&&byte| byte == b'\n').count();
            hear(stream, whole).expect("answers");
            stream.write_all(after).expect("the guest reads");
            hear(stream, now - whole).expect("answers");
        } else {
            stream.write_all(after).expect("the guest reads");
            hear(stream, now).expect("answers");
        }
        number += now;
    }
}

#[test]
fn what_was_answered_is_in_the_log_after_every_crash() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    const COUNT: usize = 150;
    let mut server = Logged::start();
    for crash in 0..5 {
        ask(&mut server.connect(), crash * COUNT, COUNT);
        let answered = (crash + 1) * COUNT;
        match crash {
            // The application.
            0 => server.kill_application(),
            // The backend: the application opens the log again, and serves.
            1 => {
                server.kill_backend(|_| ());
                let said = format!("found {answered} lines, lost 0\n");
                server.application.as_mut().expect("an application").wait_output(&said);
                server.wait_serving();
                server.kill_application();
            }
            // Both, in either order.
            2 => {
                server.kill_application();
                server.kill_backend(|_| ());
            }
            3 => server.kill_backend(Logged::kill_application),
            // Power: only the mirror is left.
            _ => server.kill_backend(|server| {
                server.kill_application();
                server.forget_memory();
            }),
        }
        server.expect(answered);
        server.start_application();
        let said = format!("found {answered} lines, lost 0\n");
        server.application.as_mut().expect("an application").wait_output(&said);
    }
    let (guest, stats) = server.stop();
    assert!(stats.get(&guest, "channel.flushed") > 0, "nothing was made durable");
    assert_eq!(stats.get(&guest, "pool.claimed"), 0);
    stats.assert_no_buffer_missing(&guest);
}

#[test]
fn a_loss_of_power_in_the_middle_loses_nothing_that_was_answered() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    const AT_ONCE: usize = 20;
    let mut server = Logged::start();
    let mut stream = server.connect();
    let other_end = stream.try_clone().expect("a socket");
    let answered = AtomicUsize::new(0);
    let sent = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut sent = 0;
            loop {
                let text: String = (sent..sent + AT_ONCE).map(line).collect();
                sent += AT_ONCE;
                if stream.write_all(text.as_bytes()).is_err() {
                    return sent;
                }
                for _ in 0..AT_ONCE {
                    if hear(&mut stream, 1).is_err() {
                        return sent;
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        wait::until("lines are answered", || {
            (answered.load(Ordering::Relaxed) >= 30 * AT_ONCE).then_some(())
        });
        server.kill_backend(|server| {
            server.kill_application();
            server.forget_memory();
        });
        // Unless the other backend has told the client by now, nobody will.
        let _ = other_end.shutdown(Shutdown::Both);
        client.join().expect("the client ends")
    });
    let answered = answered.load(Ordering::Relaxed);
    let found = server.read(&[]);
    assert_eq!((found.lost, found.damaged), (0, 0));
    assert!((answered..=sent).contains(&found.lines.len()), "{answered}, {}", found.lines.len());
    for (number, found) in found.lines.iter().enumerate() {
        assert_eq!(*found, line(number).trim_end());
    }
    let (guest, stats) = server.stop();
    stats.assert_no_buffer_missing(&guest);
}

#[test]
fn a_lost_channel_closes_the_log_and_it_can_be_opened_again() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let mut server = Logged::start();
    server.kill_application();
    let dir = tempfile::tempdir().expect("a directory");
    let program = compile("tests/c/lost.c", "libpasteguest.a", &[], dir.path());
    let mut lost = Process::spawn("lost.c", server.net.command(program).arg(server.socket()));
    lost.wait_output("ready\n");
    server.kill_backend(|_| lost.wait_output("lost\n"));
    let status = lost.wait();
    assert_eq!(status.code(), Some(0), "{}", lost.output());
    let (guest, stats) = server.stop();
    stats.assert_no_buffer_missing(&guest);
}

#[test]
fn the_log_goes_round_and_gives_back_what_it_gives_up() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    // Three times as many as the region has buffers, each in one of its own.
    const COUNT: usize = 12_000;
    const AT_ONCE: usize = 40;
    let long = |number: usize| format!("{number:08} {:.>1380}\n", "");
    let mut server = Logged::start();
    let mut stream = server.connect();
    for first in (0..COUNT).step_by(AT_ONCE) {
        let text: String = (first..first + AT_ONCE).map(long).collect();
        stream.write_all(text.as_bytes()).expect("the guest reads");
        hear(&mut stream, AT_ONCE).expect("answers");
    }
    drop(stream);
    server.kill_backend(|server| {
        server.kill_application();
        server.forget_memory();
    });
    let found = server.read(&[]);
    assert_eq!((found.lost, found.damaged), (0, 0));
    assert!((500..COUNT / 2).contains(&found.lines.len()), "{} lines", found.lines.len());
    let first = COUNT - found.lines.len();
    for (number, found) in (first..).zip(&found.lines) {
        assert_eq!(*found, long(number).trim_end());
    }
    // It goes on from there.
    server.start_application();
    ask(&mut server.connect(), 0, 100);
    let (guest, stats) = server.stop();
    assert_eq!(stats.get(&guest, "pool.claimed"), 0);
    stats.assert_no_buffer_missing(&guest);
}
