//! A guest with an address of each family serves ordinary clients over both,
//! on a plain link and on a VLAN.

#![cfg(target_os = "linux")]

use std::net::Ipv6Addr;
use std::process::{Command, Output};

use paste_tests::backend::{Backend, Guest, Server};
use paste_tests::netns::Namespace;
use paste_tests::packet::Packets;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::sim::pattern;
use paste_tests::wait;

const NEEDS: [Need; 5] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Program("curl"),
    Need::Program("ping"),
];

/// The guest's IPv6 address, and the clients'.
const GUEST: &str = "fd00:7::11";
const NEAR: &str = "fd00:7::1";

fn guest(more: &str) -> Guest {
    let mut guest = Guest::number(1);
    guest.address_v6 = Some(format!("{GUEST}/64"));
    guest.more.push_str(more);
    guest
}

/// Runs a program to its end, which must be a good one.
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}: {said}");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// Gives the clients' end of a device an IPv6 address, at once.
fn give_address(net: &Namespace, device: &str) {
    net.ip(&format!("address add {NEAR}/64 dev {device} nodad"));
}

fn curl(net: &Namespace, arguments: &[&str], url: &str) -> String {
    let mut command = net.command("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--globoff"]);
    run(command.args(arguments).arg(url))
}

#[test]
fn curl_and_ping_reach_the_guest_over_ipv6() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4]);
    let dir = tempfile::tempdir().expect("a directory");
    let big: Vec<u8> = (0..4 << 20).map(|at| pattern(7, at)).collect();
    std::fs::write(dir.path().join("big.bin"), &big).expect("a file can be written");
    let root = dir.path().to_str().expect("a path in UTF-8");
    let server = Server::start_as(guest(""), &["--root", root]);
    give_address(&server.net, &server.guest.tap);

    for size in ["0", "56", "1452"] {
        let mut command = server.net.command("ping");
        command.args(["-6", "-c5", "-i0.3", "-W10", "-p", "c0ffee", "-s", size]);
        let said = run(command.arg(GUEST));
        assert!(said.contains("5 received, 0% packet loss"), "{said}");
        assert!(!said.contains("wrong data byte"), "{said}");
    }

    // Byte for byte, over each family.
    for host in [format!("[{GUEST}]"), server.guest.ip().to_owned()] {
        let copy = dir.path().join("copy");
        let copy = copy.to_str().expect("a path in UTF-8");
        curl(&server.net, &["--output", copy], &format!("http://{host}/big.bin"));
        assert!(std::fs::read(copy).expect("curl wrote it") == big, "{host}: the file differs");
    }

    // The kernel has found the guest by NDP, and keeps it.
    let neighbour = run(server.net.command("ip").args(["-6", "neighbour", "show", GUEST]));
    assert!(neighbour.contains(&server.guest.mac), "{neighbour}");

    // A port without a listener, over IPv6 too.
    let mut command = server.net.command("curl");
    command.args(["--silent", "--globoff", "--max-time", "30", &format!("http://[{GUEST}]:81/")]);
    assert_eq!(command.output().expect("curl runs").status.code(), Some(7), "refused");

    let guest = server.guest.clone();
    let stats = server.stop();
    stats.assert_no_buffer_missing(&guest);
    assert_eq!(stats.get(&guest, "stack.echo_replies_out"), 15);
    assert_eq!(stats.get(&guest, "stack.address_conflicts"), 0);
    assert!(stats.get(&guest, "stack.mld_reports_out") >= 2);
    assert!(stats.get(&guest, "stack.ndp_advertisements_out") >= 1);
    let copied = stats.get(&guest, "stack.bytes_copied");
    assert!(copied < 4096, "{copied} bytes of whole segments were copied");
}

#[test]
fn pings_in_fragments_are_answered_and_too_long_ones_do_no_harm() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[4]);
    let server = Server::start_as(guest(""), &[]);
    let (net, tap) = (&server.net, &server.guest.tap);
    give_address(net, tap);
    // The clients' end believes in a path of 1280 bytes, the guest in 1500.
    net.ip(&format!("link set dev {tap} mtu 1280"));
    for (family, host, size) in [("-4", server.guest.ip(), "1400"), ("-6", GUEST, "1400")] {
        let mut command = net.command("ping");
        command.args([family, "-M", "dont", "-c3", "-i0.3", "-W2", "-s", size]);
        // The answers, whole, do not fit back in where the device says 1280;
        // what counts is that the guest put them together.
        let _ = command.arg(host).output().expect("ping runs");
    }
    let mut command = net.command("ping");
    command.args(["-M", "dont", "-c2", "-i0.3", "-W1", "-s", "4000"]);
    let _ = command.arg(server.guest.ip()).output().expect("ping runs");
    let guest = server.guest.clone();
    let stats = server.stop();
    assert_eq!(stats.get(&guest, "stack.reassembled"), 6);
    assert_eq!(stats.get(&guest, "stack.echo_replies_out"), 6);
    assert!(stats.get(&guest, "stack.drop_fragment") >= 2);
}

/// An echo request of ICMPv6 from the link, with a VLAN's tag if there is one.
fn echo_request(vlan: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![0x52, 0x54, 0, 0, 7, 0x0b, 2, 0, 0, 0, 0, 200];
    if let Some(vlan) = vlan {
        bytes.extend([0x81, 0]);
        bytes.extend(vlan.to_be_bytes());
    }
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 58, 64]);
    for address in ["fd00:7::c8", GUEST] {
        bytes.extend(address.parse::<Ipv6Addr>().expect("an address").octets());
    }
    let mut message = [128, 0, 0, 0, 0, 1, 0, 1];
    // Over both addresses, the length and the protocol (RFC 8200 section 8.1).
    let addresses = &bytes[bytes.len() - 32..];
    let words = addresses.chunks(2).chain(message.chunks(2));
    let mut sum = 8 + 58 + words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes.extend(message);
    bytes
}

/// The kernel's own VLAN devices are not everywhere; frames with a tag are.
#[test]
fn a_guest_on_a_vlan_is_reached_by_its_tag_only() {
    require!(NEEDS[0], NEEDS[1]);
    let guest = guest("vlan = 7\n");
    let net = Namespace::new();
    net.tap(&guest.tap);
    let backend = Backend::start(&net, std::slice::from_ref(&guest));
    net.run(|| {
        let packets = Packets::on(&guest.tap).expect("a packet socket");
        for vlan in [None, Some(8), Some(7), None, Some(0x6007), Some(8), Some(7)] {
            packets.send(&echo_request(vlan)).expect("a frame can be sent");
        }
    });
    // Besides three answers, two reports of groups and two probes.
    wait::until("the guest answers", || {
        let path = format!("/sys/class/net/{}/statistics/rx_packets", guest.tap);
        let frames = run(net.command("cat").arg(path));
        frames.trim().parse::<u64>().is_ok_and(|frames| frames >= 7).then_some(())
    });
    let stats = backend.stop();
    assert_eq!(stats.get(&guest, "stack.echo_replies_out"), 3);
    assert!(stats.get(&guest, "stack.foreign") >= 4);
}
