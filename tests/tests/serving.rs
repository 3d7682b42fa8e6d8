//! One guest serves ordinary clients: curl, wrk, ping, and a client that
//! compares every byte.

#![cfg(target_os = "linux")]

use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};

use paste_tests::backend::{FIXED_BODY, Server};
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::sim::pattern;
use paste_tests::{client, wait};

const NEEDS: [Need; 3] = [Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http")];

/// Runs a program to its end, which must be a good one.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    output
}

/// curl that is silent but for errors, and gives up.
fn curl(server: &Server, arguments: &[&str], path: &str) -> Output {
    let mut command = server.net.command("curl");
    command.args(["--silent", "--show-error", "--max-time", "30"]);
    run(command.args(arguments).arg(server.url(path)))
}

/// A file that no two places of are alike.
fn make_file(path: &Path, len: u64) -> Vec<u8> {
    let bytes: Vec<u8> = (0..len).map(|at| pattern(7, at)).collect();
    std::fs::write(path, &bytes).expect("a file can be written");
    bytes
}

#[test]
fn curl_gets_what_the_guest_sends() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("curl"));
    let server = Server::start(&[]);
    assert_eq!(curl(&server, &[], "/").stdout, FIXED_BODY);

    // Several requests on one connection.
    let url = server.url("/again");
    let both = curl(&server, &["--write-out", "%{num_connects}", &url], "/");
    let expected = [FIXED_BODY, b"1", FIXED_BODY, b"0"].concat();
    assert_eq!(both.stdout, expected, "the second request opens no connection");

    let head = curl(&server, &["--head"], "/").stdout;
    let head = String::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "a body after HEAD: {head}");

    // A body of many segments, which the guest reads and answers.
    let dir = tempfile::tempdir().expect("a directory");
    let upload = dir.path().join("upload");
    make_file(&upload, 100 * 1024);
    let data = format!("@{}", upload.display());
    let answer = curl(&server, &["--data-binary", &data, "--write-out", "%{http_code}"], "/");
    assert_eq!(answer.stdout, [FIXED_BODY, b"200"].concat());

    let guest = server.guest.clone();
    let stats = server.stop();
    stats.assert_no_buffer_missing(&guest);
    assert!(stats.get(&guest, "stack.bytes_in") >= 100 * 1024);
}

#[test]
fn curl_gets_files_byte_for_byte() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("curl"));
    let dir = tempfile::tempdir().expect("a directory");
    let big = make_file(&dir.path().join("big.bin"), 10 << 20);
    make_file(&dir.path().join("empty"), 0);
    let root = dir.path().to_str().expect("a path in UTF-8");
    let server = Server::start(&["--root", root]);

    let got = curl(&server, &[], "/big.bin").stdout;
    assert_eq!(got.len(), big.len());
    assert!(got == big, "the file differs");
    assert_eq!(curl(&server, &[], "/empty").stdout, b"");

    let status = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    assert_eq!(curl(&server, &status, "/missing").stdout, b"404");
    let up = [&status[..], &["--path-as-is"]].concat();
    assert_eq!(curl(&server, &up, "/../../etc/passwd").stdout[..1], *b"4");

    // A client that goes away in the middle costs nobody anything.
    server.net.run(|| {
        for _ in 0..8 {
            let mut stream = client::connect(server.guest.ip(), 80).expect("a connection");
            std::io::Write::write_all(&mut stream, b"GET /big.bin HTTP/1.1\r\nHost: t\r\n\r\n")
                .expect("a request fits");
            std::io::Read::read_exact(&mut stream, &mut [0; 100_000]).expect("a part of it");
        }
    });
    let got = curl(&server, &[], "/big.bin").stdout;
    assert!(got == big, "the file differs afterwards");

    let guest = server.guest.clone();
    server.stop().assert_no_buffer_missing(&guest);
}

#[test]
fn wrk_counts_no_error_and_compares_every_body() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("wrk"));
    let dir = tempfile::tempdir().expect("a directory");
    let script = dir.path().join("compare.lua");
    let body = String::from_utf8_lossy(FIXED_BODY).replace('\n', "\\n");
    std::fs::write(
        &script,
        format!(
            "local expected = \"{body}\"\n\
             local threads = {{}}\n\
             function setup(thread) table.insert(threads, thread) end\n\
             function init() wrong, right = 0, 0 end\n\
             function response(status, headers, body)\n\
               if status == 200 and body == expected then right = right + 1\n\
               else wrong = wrong + 1 end\n\
             end\n\
             function done(summary)\n\
               local wrong, right = 0, 0\n\
               for _, thread in ipairs(threads) do\n\
                 wrong = wrong + thread:get('wrong')\n\
                 right = right + thread:get('right')\n\
               end\n\
               local e = summary.errors\n\
               print(string.format('result %d %d %d %d %d %d %d', right, wrong,\n\
                 e.connect, e.read, e.write, e.status, e.timeout))\n\
             end\n"
        ),
    )
    .expect("a script can be written");
    let _turn = wait::turn();
    let server = Server::start(&[]);
    let mut command = server.net.command("wrk");
    command.args(["-t2", "-c64", "-d3s", "--timeout", "20s", "-s"]).arg(&script);
    let output = run(command.arg(server.url("/")));
    let said = String::from_utf8_lossy(&output.stdout);
    let result = said.lines().find_map(|line| line.strip_prefix("result "));
    let numbers: Vec<u64> = result
        .unwrap_or_else(|| panic!("{said}"))
        .split(' ')
        .map(|number| number.parse().expect("a number"))
        .collect();
    assert!(numbers[0] > 1_000, "{said}");
    assert_eq!(numbers[1..], [0; 6], "{said}");

    let guest = server.guest.clone();
    let stats = server.stop();
    stats.assert_no_buffer_missing(&guest);
    assert!(stats.get(&guest, "channel.data_out") >= numbers[0]);
    assert_eq!(stats.sum(&guest, "stack.drop_bad"), 0);
}

#[test]
fn ping_is_answered() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("ping"));
    let server = Server::start(&[]);
    for size in ["0", "56", "1472"] {
        let mut command = server.net.command("ping");
        // Payload of a pattern, which ping compares; five answers to five.
        command.args(["-c5", "-i0.3", "-W10", "-p", "c0ffee", "-s", size]);
        let output = run(command.arg(server.guest.ip()));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("5 received, 0% packet loss"), "{said}");
        assert!(!said.contains("wrong data byte"), "{said}");
    }
    let guest = server.guest.clone();
    let stats = server.stop();
    assert_eq!(stats.get(&guest, "stack.echo_replies_out"), 15);
    stats.assert_no_buffer_missing(&guest);
}

#[test]
fn a_port_without_a_listener_refuses() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let server = Server::start(&[]);
    let refused = server.net.run(|| client::connect(server.guest.ip(), 81).map(drop));
    let kind = refused.expect_err("nobody listens there").kind();
    assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn requests_in_pieces_and_in_heaps_are_answered_in_order() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let server = Server::start(&[]);
    server.net.run(|| {
        let mut stream = client::connect(server.guest.ip(), 80).expect("a connection");
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        // One byte a segment.
        for byte in &request[..request.len() - 1] {
            std::io::Write::write_all(&mut stream, std::slice::from_ref(byte)).expect("a byte");
        }
        // The last byte, and forty whole requests in the same segments.
        let rest = [&request[request.len() - 1..], &request.repeat(40)].concat();
        std::io::Write::write_all(&mut stream, &rest).expect("all of it");
        assert_eq!(read_bodies(&mut stream, 41), 41);
    });
}

/// Reads this many responses with the fixed body, and returns how many came.
fn read_bodies(stream: &mut TcpStream, count: usize) -> usize {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let found = |bytes: &[u8]| bytes.windows(FIXED_BODY.len()).filter(|w| *w == FIXED_BODY).count();
    while found(&bytes) < count {
        match std::io::Read::read(stream, &mut part) {
            Ok(len @ 1..) => bytes.extend_from_slice(&part[..len]),
            _ => break,
        }
    }
    found(&bytes)
}
