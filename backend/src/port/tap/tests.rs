//! A TAP device in a network namespace of its own, so that nothing of the host
//! is touched: the test starts itself again under unshare(1).

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::testing::{BUFFER_SIZE, pool, push, receive_all, send_all};
use super::*;

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "PASTED_TEST_INSIDE_NETNS";
/// Set where a test that cannot run is a failure.
const REQUIRE_ALL: &str = "PASTED_REQUIRE_ALL";
/// Longest wait for the kernel, in s; not reached unless something is broken.
const WAIT_S: i64 = 20;

const HOST: [u8; 4] = [10, 77, 0, 1];
const GUEST: [u8; 4] = [10, 77, 0, 2];
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

/// Runs `body` in a network namespace of its own: in this process if it is in
/// one already, else by starting the test of this name again.
fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let missing = ["true", "ip -V"].iter().find(|command| {
        let inside = Command::new("unshare").args(["-rn", "sh", "-c", command]).output();
        !inside.is_ok_and(|output| output.status.success())
    });
    let missing = missing
        .map(|command| format!("`unshare -rn {command}` fails"))
        .or_else(|| std::fs::metadata("/dev/net/tun").err().map(|e| format!("/dev/net/tun: {e}")));
    if let Some(reason) = missing {
        assert!(std::env::var_os(REQUIRE_ALL).is_none(), "cannot run: {reason}");
        eprintln!("{test} skipped: {reason}");
        return;
    }
    let output = Command::new("unshare")
        .arg("-rn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("port::tap::tests::{test}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{failed}");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// The next frame that `wanted` accepts; others, as of IPv6, are passed over.
fn next(
    port: &mut TapPort,
    pool: &mut Pool,
    wanted: impl Fn(&[u8]) -> bool,
) -> (Received, Vec<u8>) {
    let now = Now { monotonic_ns: 0, real_ns: 42 };
    loop {
        for (received, bytes) in receive_all(port, now, pool) {
            if wanted(&bytes) {
                return (received, bytes);
            }
        }
        let fd = port.fd().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let wait = Timespec { tv_sec: WAIT_S, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&wait)).unwrap(), 1, "no such frame came");
    }
}

/// The ones' complement sum of bytes (RFC 1071), folded.
fn sum(bytes: &[u8], seed: u32) -> u16 {
    let mut sum = seed;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u32::from(b));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo-header of a UDP datagram in an IPv4 frame.
fn pseudo_sum(frame: &[u8]) -> u16 {
    let udp_len = (frame.len() - 34) as u32;
    sum(&frame[26..34], 17 + udp_len)
}

/// The frame of a UDP datagram back to where `request` came from; its checksum
/// is left to the device.
fn reply_to(request: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend([&request[6..12], &GUEST_MAC, &[0x08, 0x00]].concat());
    let total = (28 + payload.len()) as u16;
    frame.extend([0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([GUEST, HOST].concat());
    let check = !sum(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame.extend([&request[36..38], &request[34..36]].concat());
    frame.extend((total - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    let seed = pseudo_sum(&frame);
    frame[40..42].copy_from_slice(&seed.to_be_bytes());
    frame
}

/// The ARP reply that names the guest.
fn arp_reply(request: &[u8]) -> Vec<u8> {
    let mut frame = [&request[6..12], &GUEST_MAC, &request[12..20], &[0, 2]].concat();
    frame.extend(GUEST_MAC);
    frame.extend(GUEST);
    frame.extend(&request[22..32]);
    frame
}

#[test]
fn the_kernel_and_the_port_talk() {
    in_namespace("the_kernel_and_the_port_talk", || {
        let mut port = TapPort::open("paste0", 1500).unwrap();
        ip("addr add 10.77.0.1/24 dev paste0");
        ip("link set paste0 up");
        let mut pool = pool(8);
        let mut batch = TxBatch::new(8);
        let now = Now::default();
        let socket = UdpSocket::bind("10.77.0.1:5000").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(WAIT_S as u64))).unwrap();
        let payload: Vec<u8> = (0..1472).map(|i| i as u8).collect();
        socket.send_to(&payload, "10.77.0.2:7000").unwrap();

        let is_arp = |frame: &[u8]| frame[12..14] == [8, 6] && frame[38..42] == GUEST;
        let (received, request) = next(&mut port, &mut pool, is_arp);
        assert_eq!(received.frame.offset, RX_OFFSET);
        assert_eq!(received.frame.time, 42);
        push(&mut batch, &mut pool, &arp_reply(&request), 14, None);
        send_all(&mut port, now, &mut pool, &mut batch);

        // The largest frame, with its checksum left to the device.
        let is_udp = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 17;
        let (received, datagram) = next(&mut port, &mut pool, is_udp);
        assert_eq!(datagram.len(), 1514);
        assert_eq!(datagram[42..], payload);
        assert_eq!(received.frame.csum, RxCsum::Partial);
        assert_eq!(received.partial, Some(TxCsum { start: 34, offset: 6 }));
        assert_eq!(datagram[40..42], pseudo_sum(&datagram).to_be_bytes());

        // And back, from a head and a buffer.
        let csum = Some(TxCsum { start: 34, offset: 6 });
        push(&mut batch, &mut pool, &reply_to(&datagram, b"from the guest"), 42, csum);
        send_all(&mut port, now, &mut pool, &mut batch);
        let mut out = [0; 2048];
        let (len, from) = socket.recv_from(&mut out).unwrap();
        assert_eq!(&out[..len], b"from the guest");
        assert_eq!(from, "10.77.0.2:7000".parse().unwrap());

        let counters = *port.counters();
        assert_eq!((counters.tx_frames, counters.tx_bytes), (2, 42 + 56));
        assert_eq!(counters.drops, Default::default());
        port.release(&mut pool);
        assert_eq!(pool.free(), 8);

        // A device that is taken away ends the port, and only by an error.
        ip("link del paste0");
        let error = port.receive(now, &mut pool, &mut RxBatch::new(8)).unwrap_err();
        assert!(matches!(error, PortError::Gone { .. }), "{error}");
        push(&mut batch, &mut pool, &request, 14, None);
        let error = port.send(now, &pool, &mut batch, &mut |_, _| ()).unwrap_err();
        assert!(matches!(error, PortError::Gone { .. }), "{error}");
    });
}

#[test]
fn what_does_not_fit_is_counted() {
    in_namespace("what_does_not_fit_is_counted", || {
        ip("tuntap add dev paste0 mode tap");
        let mut port = TapPort::open("paste0", 1000).unwrap();
        let mut pool = pool(4);
        let mut batch = TxBatch::new(8);
        let now = Now::default();

        // The device is down still.
        push(&mut batch, &mut pool, &[0; 60], 14, None);
        send_all(&mut port, now, &mut pool, &mut batch);
        assert_eq!(port.counters().drops.tx_link_down, 1);
        assert!(receive_all(&mut port, now, &mut pool).is_empty());

        ip("addr add 10.77.0.1/24 dev paste0");
        ip("link set paste0 up");
        ip("neigh add 10.77.0.2 lladdr 52:54:00:00:00:01 dev paste0");
        let socket = UdpSocket::bind("10.77.0.1:5000").unwrap();
        // One byte more than the guest takes, and far more; then one that fits.
        for len in [1000 + 18 - 42 + 1, 1400, 60] {
            socket.send_to(&vec![7; len], "10.77.0.2:7000").unwrap();
        }
        let is_udp = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 17;
        let (_, datagram) = next(&mut port, &mut pool, is_udp);
        assert_eq!(datagram.len(), 60 + 42);
        assert_eq!(port.counters().drops.rx_oversize, 2);

        // An empty pool leaves frames in the device.
        port.release(&mut pool);
        let held: Vec<_> = std::iter::from_fn(|| pool.take(Owner::Stack)).collect();
        socket.send_to(b"waits", "10.77.0.2:7000").unwrap();
        assert!(receive_all(&mut port, now, &mut pool).is_empty());
        assert_eq!(port.counters().rx_no_buffer, 1);
        for buf in held {
            pool.give(buf, Owner::Stack).unwrap();
        }
        assert!(next(&mut port, &mut pool, is_udp).1.ends_with(b"waits"));
        assert_eq!(pool.buffers().size(), BUFFER_SIZE);
    });
}

#[test]
fn a_device_that_cannot_be_had_says_why() {
    in_namespace("a_device_that_cannot_be_had_says_why", || {
        let said = |name, mtu| TapPort::open(name, mtu).unwrap_err().to_string();
        let _first = TapPort::open("paste0", 1500).unwrap();
        assert_eq!(
            said("paste0", 1500),
            "port tap:paste0: another process has it: end that process or name another device"
        );
        ip("tuntap add dev paste1 mode tun");
        assert_eq!(
            said("paste1", 1500),
            "port tap:paste1: it is no TAP device with a single queue: name another device, or \
             create it anew with `ip tuntap add dev paste1 mode tap`"
        );
        ip("tuntap add dev paste2 mode tap");
        assert_eq!(
            said("paste2", 9000),
            "port tap:paste2: its MTU is 1500, the guest's 9000: set `mtu = 1500` for the guest, \
             or `ip link set dev paste2 mtu 9000`"
        );
        // One that is created gets the guest's MTU.
        assert_eq!(TapPort::open("paste3", 1900).unwrap().caps().mtu, 1900);
        assert!(!std::path::Path::new("/proc/sys/net/ipv4/conf/paste3").exists());
    });
}
