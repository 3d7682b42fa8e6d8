//! Guests in C: the header and both libraries, by the system's compiler and without a
//! warning; the papers' loop serving curl; and calls that are wrong.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use paste_tests::backend::{Backend, Guest};
use paste_tests::c::{compile, repository};
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::{client, wait};
use tempfile::TempDir;

const NEEDS: [Need; 5] = [
    Need::IoUring,
    Need::Built("pasted"),
    Need::Built("libpasteguest.a"),
    Need::Built("libpasteguest.so"),
    Need::Program("cc"),
];
const PORT: u16 = 8080;
const BODY: &[u8] = b"Served by a C loop\n";

/// A guest on the host's own TCP, with a loopback address that no other test has.
fn guest(number: u8) -> Guest {
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    Guest {
        port: Some("sockets:"),
        address: format!("127.{}.{high}.{low}/8", 200 + number),
        ..Guest::number(1)
    }
}

fn start(number: u8) -> (Backend, Guest, TempDir) {
    let guest = guest(number);
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::start_here(dir, std::slice::from_ref(&guest));
    (backend, guest, tempfile::tempdir().expect("a directory"))
}

fn serves(guest: &Guest) {
    let url = format!("http://{}:{PORT}/", guest.ip());
    let mut command = Command::new("curl");
    // Twice on one connection, then on another.
    command.args(["--silent", "--show-error", "--max-time", "30", &url, &url, "--next"]);
    let output = command.args(["--silent", "--max-time", "30", &url]).output().expect("curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, BODY.repeat(3));
}

/// Requests that come all at once, and one that comes byte for byte.
fn answers_every_request(guest: &Guest) {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: c\r\n\r\n";
    let count = 300;
    let mut stream = client::connect(guest.ip(), PORT).expect("the guest listens");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    stream.write_all(&REQUEST.repeat(count - 1)).expect("the guest reads");
    for byte in REQUEST {
        stream.write_all(&[*byte]).expect("the guest reads");
    }
    stream.shutdown(std::net::Shutdown::Write).expect("a socket");
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).expect("the guest answers and closes");
    let bodies = answers.windows(BODY.len()).filter(|part| *part == BODY).count();
    assert_eq!(bodies, count);
}

fn the_loop_serves(library: &str, number: u8) {
    let (backend, guest, dir) = start(number);
    let program = compile("guest-driver/examples/c/server.c", library, &[], dir.path());
    let mut command = Command::new(program);
    let mut server =
        Process::spawn("server.c", command.arg(backend.socket(&guest)).arg(PORT.to_string()));
    server.wait_output("listening");
    serves(&guest);
    answers_every_request(&guest);

    // The backend goes and comes back; the program is told, and listens again.
    let backend = Backend::start_here(backend.crash(), std::slice::from_ref(&guest));
    server.wait_output("the channel was lost");
    wait::until("the guest listens again", || client::connect(guest.ip(), PORT).ok());
    serves(&guest);
    server.terminate();
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.output().contains("306 requests"), "{}", server.output());
    backend.stop();
}

#[test]
fn the_loop_of_the_papers_serves_with_the_static_library() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[4], Need::Program("curl"));
    the_loop_serves("libpasteguest.a", 1);
}

#[test]
fn the_loop_of_the_papers_serves_with_the_shared_library() {
    require!(NEEDS[0], NEEDS[1], NEEDS[3], NEEDS[4], Need::Program("curl"));
    the_loop_serves("libpasteguest.so", 2);
}

fn what_is_wrong_is_answered(mut guest: Guest, more: &[&str]) {
    let dirs = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let [dir, program, files] = dirs;
    if !more.is_empty() {
        let [region, mirror] = ["region", "mirror"].map(|name| files.path().join(name));
        guest.more = format!(
            "region = {{ size = \"16MiB\", path = \"{}\", mirror = \"{}\" }}\n",
            region.display(),
            mirror.display()
        );
    }
    let backend = Backend::start_here(dir, std::slice::from_ref(&guest));
    let program = compile("tests/c/misuse.c", "libpasteguest.a", &[], program.path());
    let mut command = Command::new(program);
    command.arg(backend.socket(&guest)).arg(guest.ip()).arg(PORT.to_string()).args(more);
    let mut misuse = Process::spawn("misuse.c", &mut command);
    let status = misuse.wait();
    assert_eq!(status.code(), Some(0), "{}", misuse.output());
    backend.stop().assert_no_buffer_missing(&guest);
}

#[test]
fn what_is_wrong_is_answered_with_a_code_and_a_message() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[4]);
    what_is_wrong_is_answered(guest(3), &[]);
}

#[test]
fn what_is_wrong_is_answered_where_the_host_makes_data_durable() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[4]);
    what_is_wrong_is_answered(guest(4), &["mirror"]);
}

/// The header is one for C++ too.
#[test]
fn the_header_is_read_by_a_compiler_for_c_plus_plus() {
    require!(Need::Program("c++"));
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("use.cc");
    std::fs::write(&source, "#include \"paste_guest.h\"\nint main() { return PASTE_OK; }\n")
        .expect("a file");
    let mut command = Command::new("c++");
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I"]);
    let output = command.arg(repository().join("guest-driver/include")).arg(source).output();
    let output = output.expect("the compiler can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
