//! Packets that lie in several buffers: an MTU of 9000 with buffers of 2048 bytes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paste_abi::net_hdr::NET_HDR_LEN;
use paste_stack::checksum;
use paste_tests::frontend::RawGuest;
use paste_tests::interop::tap::Tap;
use paste_tests::packet::Packets;

use super::*;

/// Of the device, and of its guests.
const MTU: &str = "mtu = 9000\n";
/// The guest's Ethernet address, and those of its kernel.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 7, 11];
const KERNEL: &str = "10.7.0.77";
const KERNEL_V6: &str = "fd00:7::77";

/// A device whose ends carry long packets.
fn net(queues: u8) -> Net {
    let net = Net::new(queues);
    net.host.ip(&format!("link set dev {DEVICE} mtu 9000"));
    net.far.ip("link set dev eth0 mtu 9000");
    net
}

/// Nothing was wrong with what came, and much of it was longer than a buffer.
#[track_caller]
fn assert_cut(count: impl Fn(&str) -> u64, bytes: u64) {
    for wrong in ["drops.rx_oversize", "xdp.rx_bad_csum", "xdp.rx_unfilled_refused"] {
        assert_eq!(count(wrong), 0, "{wrong}");
    }
    assert_eq!(count("xdp.ring_errors"), 0);
    let cut = count("xdp.rx_cut");
    // The half of it at least came in packets of nearly 9000 bytes.
    assert!(cut > bytes / 2 / 9000, "{cut}");
}

#[test]
fn long_packets_go_both_ways() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5]);
    for port in ["xdp:nic0", "xdp:nic0?mode=generic"] {
        serves_on(net(1), guest(port, MTU));
        let guest = guest(port, MTU);
        let stats = uploads(&net(2), std::slice::from_ref(&guest));
        assert_cut(|name| stats.get(&guest, &format!("port.{name}")), 2 * (10 << 20));
        assert_eq!(stats.get(&guest, "port.xdp.rx_unfilled_taken"), 0);
        assert_eq!(stats.get(&guest, "stack.drop_bad_tcp_csum"), 0);
    }
}

#[test]
fn segments_that_a_sender_has_joined_are_taken() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[5]);
    // With a program in the driver, a veth takes none of its peer.
    for (port, is_joined) in [("xdp:nic0", false), ("xdp:nic0?mode=generic", true)] {
        let net = net(1);
        net.offload("on");
        let guest = guest(port, MTU);
        let stats = uploads(&net, std::slice::from_ref(&guest));
        assert_cut(|name| stats.get(&guest, &format!("port.{name}")), 0);
        let cut = stats.get(&guest, "port.xdp.rx_cut");
        assert!(stats.get(&guest, "port.xdp.rx_unfilled_taken") >= cut);
        assert_eq!(cut < (20 << 20) / 9000, is_joined, "{cut} packets");
    }
}

#[test]
fn a_guest_that_may_write_headers_gets_long_packets() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[5]);
    let guest = guest("xdp:nic0", "mtu = 9000\nspoof_check = false\n");
    let stats = uploads(&net(1), std::slice::from_ref(&guest));
    assert_cut(|name| stats.get(&guest, &format!("port.{name}")), 2 * (10 << 20));
}

#[test]
fn guests_with_different_buffers_share_a_device_with_long_packets() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[5]);
    let port = "xdp:nic0";
    let large = Guest {
        more: "region = { size = \"16MiB\", buffer_size = 4096 }\nmtu = 9000\n".to_owned(),
        ..numbered(2, port, "")
    };
    // The last one's segments are no longer than it has said.
    let guests = [guest(port, MTU), large, numbered(3, port, "mtu = 1500\n")];
    let stats = uploads(&net(1), &guests);
    assert_cut(|name| stats.shared(port, &format!("port.{name}")), 3 * (10 << 20));
    for guest in &guests {
        assert_eq!(stats.get(guest, "port.drops.rx_oversize"), 0);
        assert_eq!(stats.get(guest, "stack.drop_bad_tcp_csum"), 0);
    }
}

/// A TCP segment for the guest that belongs to no flow.
fn segment(payload: usize) -> Vec<u8> {
    let mut tcp = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10, 1, 0, 0, 0, 0, 0];
    tcp.extend((0..payload).map(|at| at as u8));
    let len = (tcp.len() as u16).to_be_bytes();
    let addresses = [10, 7, 0, 9, 10, 7, 0, 11];
    let pseudo = [&addresses[..], &[0, 6], &len].concat();
    let sum = !checksum::sum(&[&pseudo[..], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let total = (tcp.len() as u16 + 20).to_be_bytes();
    let mut ip = [&[0x45, 0], &total[..], &[0, 0, 0x40, 0, 64, 6, 0, 0], &addresses].concat();
    let sum = !checksum::sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&MAC[..], &[2, 0, 0, 0, 0, 9, 8, 0], &ip, &tcp].concat()
}

#[test]
fn a_long_packet_with_a_wrong_checksum_is_dropped() {
    require!(NEEDS[0], NEEDS[1], NEEDS[4], NEEDS[5]);
    let (net, guest) = (net(1), guest("xdp:nic0", MTU));
    let backend = Backend::start(&net.host, std::slice::from_ref(&guest));
    let right = segment(8000);
    net.far.run(|| {
        let packets = Packets::on("eth0").expect("a packet socket");
        packets.send(&right).expect("it leaves");
        // In each buffer, and in the header.
        for at in [14 + 20 + 5, 1000, 1792, 5000, right.len() - 1] {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            packets.send(&wrong).expect("it leaves");
        }
    });
    // Behind all of them.
    wait::until("the guest answers", || net.ping(guest.ip()).then_some(()));
    let stats = backend.stop();
    let count = |name| stats.get(&guest, name);
    assert_eq!((count("port.xdp.rx_cut"), count("port.xdp.rx_bad_csum")), (1, 5));
    assert_eq!((count("stack.drop_bad_tcp_csum"), count("port.xdp.ring_errors")), (0, 0));
    stats.assert_no_buffer_missing(&guest);
}

#[test]
fn what_finds_too_few_buffers_is_lost_whole() {
    require!(NEEDS[0], NEEDS[1], NEEDS[4], NEEDS[5]);
    let (net, guest) = (net(1), guest("xdp:nic0", MTU));
    let backend = Backend::start(&net.host, std::slice::from_ref(&guest));
    // For the guest's kernel, so that the stack waits for no fragment of any.
    net.far.ip(&format!("neigh add {KERNEL} lladdr {} dev eth0 nud permanent", guest.mac));
    backend.process.hold();
    let sent = 2000;
    net.far.run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        for _ in 0..sent {
            socket.send_to(&[7; 8000], (KERNEL, 9)).expect("it leaves");
        }
    });
    backend.process.go_on();
    wait::until("the guest answers", || net.ping(guest.ip()).then_some(()));
    let stats = backend.stop();
    let count = |name| stats.get(&guest, name);
    let (cut, missed) = (count("port.xdp.rx_cut"), count("port.xdp.rx_missed"));
    assert!(cut > 0 && missed > 0, "{cut} and {missed}");
    assert_eq!(cut + missed, sent);
    assert_eq!((count("port.xdp.ring_errors"), count("port.drops.rx_oversize")), (0, 0));
    stats.assert_no_buffer_missing(&guest);
}

/// Carries frames between a guest's device and its kernel, whose end of it is a TAP device.
fn carry(guest: &mut RawGuest, tap: &Tap, ends: &AtomicBool) {
    let mut frame = vec![0; 4096];
    while !ends.load(Ordering::Relaxed) {
        let mut is_idle = true;
        while let Some((index, len)) = guest.rx.take() {
            let bytes = guest.rx.contents(index, len as usize);
            guest.offer_receive(index);
            guest.kick();
            // Without what the device says of it: the kernel has to find it right itself.
            tap.send(&bytes[NET_HDR_LEN..]);
            is_idle = false;
        }
        while let Some(len) = tap.receive(&mut frame).expect("the TAP device lives") {
            guest.send(&frame[..len]);
            is_idle = false;
        }
        if is_idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What is no TCP gets there in fragments, and TCP in segments, with checksums that a kernel
/// finds right.
#[test]
fn a_kernel_gets_long_packets() {
    require!(NEEDS[0], NEEDS[1], NEEDS[4], NEEDS[5]);
    let (net, kernel) = (net(1), Namespace::new());
    let sources = format!("{MTU}sources = [\"{KERNEL}\", \"{KERNEL_V6}\"]\n");
    let guest = guest("xdp:nic0", &sources);
    let backend = Backend::start(&net.host, std::slice::from_ref(&guest));
    let mut device = RawGuest::attach_soon(&backend.socket(&guest));
    let tap = kernel.run(|| Tap::open("eth0")).expect("a TAP device");
    // The MTU that its device tells it.
    kernel.ip(&format!("link set dev eth0 address {} mtu 1965 up", guest.mac));
    kernel.ip(&format!("address add {KERNEL}/24 dev eth0"));
    kernel.ip(&format!("address add {KERNEL_V6}/64 dev eth0 nodad"));
    // Nobody asks a guest's kernel here.
    for address in [KERNEL, KERNEL_V6] {
        net.far.ip(&format!("neigh add {address} lladdr {} dev eth0 nud permanent", guest.mac));
    }
    let ping = |address: &str, size: &str| {
        let mut command = net.far.command("ping");
        command.args(["-c5", "-i0.2", "-W10", "-p", "c0ffee", "-s", size, address]);
        let said = String::from_utf8(run(&mut command).stdout).expect("text");
        assert!(said.contains("5 received") && !said.contains("wrong data"), "{said}");
    };
    // In buffers of the guest's, which are put together in one again.
    for address in [guest.ip(), GUEST_V6] {
        ping(address, "1800");
    }
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ending = wait::Ending(&ends);
        scope.spawn(|| carry(&mut device, &tap, &ends));
        // Of an IPv6 guest's own fragments, those of ICMP are not let out.
        for (address, size) in [(KERNEL, "1800"), (KERNEL, "8000"), (KERNEL_V6, "1800")] {
            ping(address, size);
        }
        // With checksums that the sender has left to its device.
        for tx in ["off", "on"] {
            net.offload(tx);
            for (near, far) in [(KERNEL, "10.7.0.9"), (KERNEL_V6, "fd00:7::9")] {
                let socket = kernel.run(|| UdpSocket::bind((near, 9))).expect("a socket");
                socket.set_read_timeout(Some(wait::LIMIT)).expect("a timeout");
                let sent: Vec<u8> = (0..8001).map(|at: u32| (at / 7) as u8).collect();
                let from = net.far.run(|| UdpSocket::bind((far, 0))).expect("a socket");
                from.send_to(&sent, (near, 9)).expect("it leaves");
                let mut got = vec![0; 9000];
                let len = socket.recv(&mut got).expect("it comes");
                assert!(got[..len] == sent, "{len} bytes came by {near}");

                let listener = kernel.run(|| TcpListener::bind((near, 80))).expect("a listener");
                let mut stream = net.far.run(|| TcpStream::connect((near, 80))).expect("a flow");
                let (mut accepted, _) = listener.accept().expect("a flow");
                let sent: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 251) as u8).collect();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        stream.write_all(&sent).expect("it goes");
                        stream.shutdown(std::net::Shutdown::Write).expect("it ends");
                    });
                    let mut got = Vec::new();
                    accepted.read_to_end(&mut got).expect("it comes");
                    assert!(got == sent, "{} bytes came by {near}", got.len());
                });
            }
        }
        drop(ending);
    });
    drop(device);
    let stats = backend.stop();
    let count = |name| stats.get(&guest, name);
    assert_cut(|name| stats.get(&guest, &format!("port.{name}")), 4 << 20);
    assert!(count("port.xdp.rx_unfilled_taken") > 0);
    stats.assert_no_buffer_missing(&guest);
}
