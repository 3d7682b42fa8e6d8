//! A guest that maps no region: the same application, with payload in the frames.

#![cfg(target_os = "linux")]

use paste_tests::backend::{FIXED_BODY, Server};
use paste_tests::client;
use paste_tests::require;
use paste_tests::require::Need;

#[test]
fn an_application_serves_with_inline_slots() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http"));
    let server = Server::start(&["--inline"]);
    server.net.run(|| {
        let mut stream = client::connect(server.guest.ip(), 80).expect("a connection");
        for _ in 0..500 {
            let response = client::get(&mut stream, "/").expect("an answer");
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
        }
    });
    let guest = server.guest.clone();
    let stats = server.stop();
    stats.assert_no_buffer_missing(&guest);
    assert!(stats.get(&guest, "channel.inline_bytes_out") >= 500 * 16, "requests were copied");
    let answers = 500 * FIXED_BODY.len() as u64;
    assert!(stats.get(&guest, "channel.inline_bytes_in") >= answers, "answers were copied");
    assert_eq!(stats.get(&guest, "channel.refused_channels"), 0);
}

#[test]
fn files_longer_than_a_frame_arrive_whole() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http"));
    let root = tempfile::tempdir().expect("a directory");
    let file: Vec<u8> = (0..300_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    std::fs::write(root.path().join("file.bin"), &file).expect("a file");
    let root = root.path().to_str().expect("a name");
    let server = Server::start(&["--inline", "--root", root]);
    server.net.run(|| {
        let mut stream = client::connect(server.guest.ip(), 80).expect("a connection");
        for _ in 0..5 {
            let response = client::get(&mut stream, "/file.bin").expect("an answer");
            assert_eq!(response.status, 200);
            assert!(response.body == file, "{} bytes", response.body.len());
        }
    });
    let guest = server.guest.clone();
    server.stop().assert_no_buffer_missing(&guest);
}
