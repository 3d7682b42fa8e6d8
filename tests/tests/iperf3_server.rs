//! The iperf3 server of a guest, against a client that does what iperf3 does only
//! now and then.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::TcpStream;

use paste_tests::backend::{Backend, Guest, wait_serving_at};
use paste_tests::client;
use paste_tests::netns::Namespace;
use paste_tests::require;
use paste_tests::require::Need;

/// The states that the two sides tell each other, as iperf3 numbers them.
const TEST_START: u8 = 1;
const TEST_RUNNING: u8 = 2;
const TEST_END: u8 = 4;
const PARAM_EXCHANGE: u8 = 9;
const CREATE_STREAMS: u8 = 10;
const EXCHANGE_RESULTS: u8 = 13;
const DISPLAY_RESULTS: u8 = 14;
const IPERF_DONE: u8 = 16;

const PORT: u16 = 5201;
const COOKIE: &[u8; 37] = b"0123456789abcdef0123456789abcdef0123\0";

fn connection(guest: &Guest) -> TcpStream {
    let mut stream = client::connect(guest.ip(), PORT).expect("a connection");
    stream.write_all(COOKIE).expect("it takes a cookie");
    stream
}

fn expect(control: &mut TcpStream, state: u8) {
    let mut said = [0];
    control.read_exact(&mut said).unwrap_or_else(|error| panic!("state {state}: {error}"));
    assert_eq!(said[0], state);
}

fn say_json(control: &mut TcpStream, text: &str) {
    let mut message = (text.len() as u32).to_be_bytes().to_vec();
    message.extend(text.bytes());
    control.write_all(&message).expect("it takes a message");
}

/// During a test a client reads what there is, at its end whole blocks again: it
/// waits within a block, and for nothing but that, until the server ends the stream.
#[test]
fn a_stream_ends_when_the_test_does() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/iperf3"));
    let guest = Guest::number(1);
    let net = Namespace::new();
    net.tap_with(&guest.tap, &guest.near_address());
    let backend = Backend::start(&net, std::slice::from_ref(&guest));
    let mut application = backend.example(&net, &guest, "iperf3", &[]);
    wait_serving_at(&net, &guest, PORT);

    net.run(|| {
        let mut control = connection(&guest);
        expect(&mut control, PARAM_EXCHANGE);
        say_json(&mut control, r#"{"tcp":true,"reverse":true,"parallel":2,"len":131072}"#);
        expect(&mut control, CREATE_STREAMS);
        let mut streams = [connection(&guest), connection(&guest)];
        expect(&mut control, TEST_START);
        expect(&mut control, TEST_RUNNING);
        for stream in &mut streams {
            stream.read_exact(&mut [0; 300_000]).expect("it sends");
        }
        control.write_all(&[TEST_END]).expect("it listens");
        for stream in &mut streams {
            let left = std::io::copy(stream, &mut std::io::sink());
            left.expect("the stream ends with the test");
        }
        expect(&mut control, EXCHANGE_RESULTS);
        say_json(&mut control, "{}");
        let mut len = [0; 4];
        control.read_exact(&mut len).expect("results");
        let mut results = vec![0; u32::from_be_bytes(len) as usize];
        control.read_exact(&mut results).expect("results");
        let results: serde_json::Value = serde_json::from_slice(&results).expect("JSON");
        assert_eq!(results["streams"].as_array().map(Vec::len), Some(2), "{results:#}");
        expect(&mut control, DISPLAY_RESULTS);
        control.write_all(&[IPERF_DONE]).expect("it listens");
    });

    application.terminate();
    assert_eq!(application.wait().code(), Some(0), "the application's exit");
    backend.stop().assert_no_buffer_missing(&guest);
}
