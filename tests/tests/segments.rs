//! Segments of one flow that the kernel gives to a TAP device as one packet, and
//! takes as one: what the port counts as frames is more than the device counts as
//! packets, and not a byte is wrong.

#![cfg(target_os = "linux")]

use std::io::Write;

use paste_tests::backend::{Server, Stats};
use paste_tests::interop::content::digest;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::sim::pattern;
use paste_tests::{client, wait};

const NEEDS: [Need; 3] = [Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http")];
/// Less than what the server takes of a body.
const UPLOAD: u64 = 1 << 20;
const DOWNLOAD: u64 = 8 << 20;

/// Packets that the device's owner has given to it, and taken from it.
struct Packets {
    given: u64,
    taken: u64,
}

fn packets(server: &Server) -> Packets {
    let mut command = server.net.command("ip");
    let command = command.args(["-json", "-statistics", "link", "show", "dev", &server.guest.tap]);
    let output = command.output().expect("ip runs");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let count = |way: &str| links[0]["stats64"][way]["packets"].as_u64().expect("a number");
    // The device's names are those of the host's end of it.
    Packets { given: count("rx"), taken: count("tx") }
}

fn bytes(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|at| pattern(seed, at)).collect()
}

/// Stops the server; its packets before that, and what it counted.
fn stop(server: Server) -> (Packets, impl Fn(&str) -> u64) {
    let guest = server.guest.clone();
    let packets = packets(&server);
    let stats: Stats = server.stop();
    stats.assert_no_buffer_missing(&guest);
    assert_eq!(stats.sum(&guest, "stack.drop_bad"), 0);
    assert_eq!(stats.sum(&guest, "port.drops"), 0);
    (packets, move |name| stats.get(&guest, name))
}

#[test]
fn what_the_kernel_sends_as_one_packet_arrives_as_its_segments() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    let server = Server::start(&[]);
    let body = bytes(3, UPLOAD);
    let request = [
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {UPLOAD}\r\n\
             Content-Digest: {}\r\n\r\n",
            digest(crc32c::crc32c(&body))
        )
        .as_bytes(),
        &body,
    ]
    .concat();
    server.net.run(|| {
        let mut stream = client::connect(server.guest.ip(), 80).expect("a connection");
        stream.write_all(&request).expect("a request");
        // The server has judged its digest.
        let answer = client::answer(&mut stream).expect("an answer");
        assert_eq!(answer.status, 200);
    });
    let (packets, of) = stop(server);
    assert!(of("stack.bytes_in") >= UPLOAD);
    let frames = of("port.rx_frames");
    assert!(frames >= UPLOAD / 1460, "{frames} frames");
    assert!(frames >= 4 * packets.taken, "{frames} frames in {} packets", packets.taken);
}

#[test]
fn what_a_guest_sends_leaves_as_packets_of_many_segments() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    let dir = tempfile::tempdir().expect("a directory");
    let file = bytes(5, DOWNLOAD);
    std::fs::write(dir.path().join("file"), &file).expect("a file can be written");
    let server = Server::start(&["--root", dir.path().to_str().expect("UTF-8")]);
    server.net.run(|| {
        let answer = client::get_once(server.guest.ip(), "/file").expect("an answer");
        assert_eq!(answer.status, 200);
        assert!(answer.body == file, "the file differs");
    });
    let (packets, of) = stop(server);
    let frames = of("port.tx_frames");
    assert!(frames >= DOWNLOAD / 1460, "{frames} frames");
    assert!(frames >= 2 * packets.given, "{frames} frames in {} packets", packets.given);
}
