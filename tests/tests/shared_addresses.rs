//! An application at an address that is its guest kernel's: it gets what is for its port,
//! and answers for nothing else.

#![cfg(target_os = "linux")]

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use paste_tests::backend::{FIXED_BODY, Guest, Server};
use paste_tests::require::Need;
use paste_tests::{client, require};

/// How long a connection that nobody answers is tried.
const UNANSWERED: Duration = Duration::from_millis(1500);

/// The guest is a process, so that there is no kernel: whoever else would answer is silent.
#[test]
fn the_stack_answers_for_its_port_and_is_silent_about_all_else() {
    require!(
        Need::Namespaces,
        Need::Built("pasted"),
        Need::Built("examples/http"),
        Need::Program("ping"),
    );
    let guest = Guest::number(1);
    let ip = guest.ip().to_owned();
    let more = format!("{}sources = [\"{ip}\"]\n", guest.more);
    let guest = Guest { shares_addresses: true, more, ..guest };
    let tap = guest.tap.clone();
    let net = paste_tests::netns::Namespace::new();
    net.tap_with(&tap, &guest.near_address());
    // Nobody answers requests for its address.
    net.ip(&format!("neighbour add {ip} lladdr {} dev {tap} nud permanent", guest.mac));
    let server = Server::start_in(net, guest, &[]);
    server.net.run(|| {
        let mut open = client::connect(&ip, 80).expect("a connection");
        assert_eq!(client::get(&mut open, "/").expect("an answer").body, FIXED_BODY);
        // A stack of its own would refuse this at once.
        let other = SocketAddr::new(ip.parse().expect("an address"), 81);
        let refused = TcpStream::connect_timeout(&other, UNANSWERED).expect_err("nobody is there");
        assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut, "{refused}");
    });
    let mut ping = server.net.command("ping");
    let output = ping.args(["-c1", "-W1", &ip]).output().expect("ping runs");
    assert!(!output.status.success(), "an answer came");
    let guest = server.guest.clone();
    let stats = server.stop();
    let of = |counter: &str| stats.get(&guest, counter);
    assert!(of("share.to_stack") > 0 && of("share.to_kernel") >= 2);
    assert_eq!((of("stack.resets_out"), of("stack.echo_replies_out")), (0, 0));
    stats.assert_no_buffer_missing(&guest);
}
