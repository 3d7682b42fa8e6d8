//! The table of functions, driven through its C ABI as packetdrill drives it.

#![cfg(target_os = "linux")]

use core::ffi::{CStr, c_int, c_void};
use core::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use paste_packetdrill::errno::Errno;
use paste_packetdrill::ffi::caller::Table;

const LOCAL: &str = "192.168.0.1:8080";
const PEER: &str = "192.0.2.1:40000";
const SYN: u8 = 2;
const FIN: u8 = 1;
const ACK: u8 = 16;
const PSH: u8 = 8;
const RST: u8 = 4;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let words = bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A peer that knows where it is in both streams.
struct Peer {
    seq: u32,
    ack: u32,
}

/// What the tests look at of a segment from the stack.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    flags: u8,
    seq: u32,
    ack: u32,
    payload: Vec<u8>,
}

impl Peer {
    fn packet(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (SocketAddr::V4(peer), SocketAddr::V4(local)) = (address(PEER), address(LOCAL)) else {
            unreachable!("both are IPv4");
        };
        let mut tcp = Vec::new();
        tcp.extend(peer.port().to_be_bytes());
        tcp.extend(local.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(if flags & ACK != 0 { self.ack } else { 0 }.to_be_bytes());
        tcp.extend([0x50, flags, 0x80, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        let mut pseudo = [peer.ip().octets(), local.ip().octets()].concat();
        pseudo.extend([0, 6]);
        pseudo.extend((tcp.len() as u16).to_be_bytes());
        let sum = checksum(&[&pseudo, &tcp]);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend((20 + tcp.len() as u16).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 6, 0, 0]);
        ip.extend(peer.ip().octets());
        ip.extend(local.ip().octets());
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(tcp);
        ip
    }

    fn send(&mut self, table: &Table, flags: u8, payload: &[u8]) {
        table.netdev_send(&self.packet(flags, payload)).unwrap();
        self.seq += payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
    }

    /// The next segment of the stack's, and when it came.
    fn receive(&mut self, table: &Table) -> (Segment, i64) {
        let (packet, time) = table.netdev_receive().unwrap().expect("a packet");
        let tcp = &packet[20..];
        let word = |at: usize| u32::from_be_bytes(*tcp[at..].first_chunk().unwrap());
        let payload = tcp[usize::from(tcp[12] >> 4) * 4..].to_vec();
        let segment = Segment { flags: tcp[13], seq: word(4), ack: word(8), payload };
        let control = u32::from(segment.flags & (SYN | FIN) != 0);
        self.ack = segment.seq + segment.payload.len() as u32 + control;
        (segment, time)
    }
}

fn listening() -> (Table, i32) {
    let table = Table::new(c"");
    let fd = table.socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP).unwrap();
    table.bind(fd, address(LOCAL)).unwrap();
    table.listen(fd, 5).unwrap();
    (table, fd)
}

fn established() -> (Table, i32, i32, Peer) {
    let (table, listener) = listening();
    let mut peer = Peer { seq: 1000, ack: 0 };
    peer.send(&table, SYN, &[]);
    let (segment, _) = peer.receive(&table);
    assert_eq!((segment.flags, segment.ack), (SYN | ACK, 1001));
    peer.send(&table, ACK, &[]);
    let (fd, from) = table.accept(listener).unwrap();
    assert_eq!(from, address(PEER));
    (table, listener, fd, peer)
}

fn nonblocking(table: &Table, fd: i32) {
    assert_eq!(table.fcntl(fd, libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK), Ok(0));
    let flags = libc::O_RDWR | libc::O_NONBLOCK;
    assert_eq!(table.fcntl(fd, libc::F_GETFL, 0), Ok(flags));
}

fn int(table: &Table, fd: i32, level: c_int, name: c_int) -> i32 {
    let mut value = [0; 4];
    assert_eq!(table.getsockopt(fd, level, name, &mut value), Ok(4));
    i32::from_ne_bytes(value)
}

#[test]
fn a_connection_from_open_to_close() {
    let (table, _, fd, mut peer) = established();
    peer.send(&table, ACK | PSH, b"request");
    let (mut first, mut second) = ([0; 3], [0; 10]);
    assert_eq!(table.readv(fd, &mut first, &mut second), Ok(7));
    assert_eq!((&first, &second[..4]), (b"req", b"uest".as_slice()));
    assert_eq!(table.write(fd, b"response"), Ok(8));
    let (segment, _) = peer.receive(&table);
    assert_eq!((segment.flags, segment.ack), (ACK | PSH, 1008));
    assert_eq!(segment.payload, b"response");
    peer.send(&table, ACK, &[]);
    table.close(fd).unwrap();
    let (segment, _) = peer.receive(&table);
    assert_eq!(segment.flags, FIN | ACK);
    peer.send(&table, FIN | ACK, &[]);
    let (segment, _) = peer.receive(&table);
    assert_eq!((segment.flags, segment.ack), (ACK, 1009));
    assert_eq!(table.write(fd, b"x"), Err(Errno(libc::EBADF)));
}

#[test]
fn time_passes_in_sleep_and_in_the_wait_for_a_packet_alone() {
    let (table, _, _, mut peer) = established();
    let before = table.now().unwrap();
    table.usleep(1_000_000).unwrap();
    let slept = table.now().unwrap() - before;
    assert!((1_000_000..1_000_010).contains(&slept), "{slept}");
    // The delayed acknowledgement comes after 40 ms that nobody waited.
    peer.send(&table, ACK | PSH, b"half");
    let sent = table.now().unwrap();
    let (segment, time) = peer.receive(&table);
    assert_eq!(segment.ack, 1005);
    assert!((39_000..43_000).contains(&(time - sent)), "{}", time - sent);
    assert!(table.now().unwrap() >= time);
}

#[test]
fn nothing_is_received_where_nothing_will_be_sent() {
    let table = Table::new(c"");
    assert_eq!(table.netdev_receive(), Ok(None));
    let (table, _) = listening();
    assert_eq!(table.netdev_receive(), Ok(None));
}

/// Runs `call` on another thread, as packetdrill does with a call that waits,
/// and returns once it waits; the receiver has its result, and the time at
/// which it returned.
fn waiting<T: Send + 'static>(
    table: &Arc<Table>,
    call: impl FnOnce(&Table) -> T + Send + 'static,
) -> std::sync::mpsc::Receiver<(T, i64)> {
    let (report, outcome) = channel();
    let (tell, stat) = channel();
    let table = Arc::clone(table);
    thread::spawn(move || {
        let own = std::fs::read_link("/proc/thread-self").unwrap();
        tell.send(std::path::Path::new("/proc").join(own).join("stat")).unwrap();
        let result = call(&table);
        report.send((result, table.now().unwrap())).unwrap();
    });
    let stat = stat.recv().unwrap();
    let state = || std::fs::read_to_string(&stat).unwrap_or_default();
    while !state().contains(") S ") {
        thread::yield_now();
    }
    outcome
}

#[test]
fn a_waiting_read_returns_at_the_time_of_its_reason() {
    let (table, _, fd, mut peer) = established();
    let table = Arc::new(table);
    let start = table.now().unwrap();
    let read = waiting(&table, move |table| table.read(fd, &mut [0; 10]));
    table.usleep(500_000).unwrap();
    assert!(read.try_recv().is_err());
    peer.send(&table, ACK | PSH, b"late");
    // Time goes on before the other thread looks at the clock.
    table.usleep(300_000).unwrap();
    let (result, time) = read.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(result, Ok(4));
    assert!((500_000..500_100).contains(&(time - start)), "{}", time - start);
}

#[test]
fn a_waiting_poll_times_out_in_virtual_time() {
    let (table, _, fd, _) = established();
    let table = Arc::new(table);
    let start = table.now().unwrap();
    let poll = waiting(&table, move |table| {
        let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
        table.poll(&mut fds, 250)
    });
    table.usleep(1_000_000).unwrap();
    let (result, time) = poll.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(result, Ok(0));
    assert!((250_000..250_100).contains(&(time - start)), "{}", time - start);
}

#[test]
fn a_call_that_nobody_can_end_fails_on_the_main_thread() {
    let (table, listener) = listening();
    assert_eq!(table.accept(listener), Err(Errno(libc::EDEADLK)));
    let mut fds = [libc::pollfd { fd: listener, events: libc::POLLIN, revents: 0 }];
    let before = table.now().unwrap();
    assert_eq!(table.poll(&mut fds, 100), Ok(0));
    assert!(table.now().unwrap() - before >= 100_000);
}

#[test]
fn a_blocking_connect_succeeds_or_is_refused() {
    let table = Arc::new(Table::new(c""));
    for (answer, outcome) in [(SYN | ACK, Ok(())), (RST | ACK, Err(Errno(libc::ECONNREFUSED)))] {
        let fd = table.socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        table.bind(fd, address(LOCAL)).unwrap();
        let connect = waiting(&table, move |table| table.connect(fd, address(PEER)));
        let mut peer = Peer { seq: 7, ack: 0 };
        let (segment, _) = peer.receive(&table);
        assert_eq!(segment.flags, SYN);
        peer.send(&table, answer, &[]);
        let (result, _) = connect.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(result, outcome);
        if result.is_ok() {
            let (segment, _) = peer.receive(&table);
            assert_eq!((segment.flags, segment.ack), (ACK, 8));
            // So that the next one finds the addresses free.
            peer.send(&table, RST | ACK, &[]);
            table.close(fd).unwrap();
        }
    }
}

#[test]
fn a_nonblocking_connect_tells_how_far_it_is() {
    let table = Table::new(c"");
    let fd = table.socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    table.bind(fd, address(LOCAL)).unwrap();
    nonblocking(&table, fd);
    let connect = || table.connect(fd, address(PEER));
    assert_eq!(connect(), Err(Errno(libc::EINPROGRESS)));
    assert_eq!(connect(), Err(Errno(libc::EALREADY)));
    let mut peer = Peer { seq: 7, ack: 0 };
    peer.receive(&table);
    peer.send(&table, SYN | ACK, &[]);
    assert_eq!(int(&table, fd, libc::SOL_SOCKET, libc::SO_ERROR), 0);
    assert_eq!(connect(), Ok(()));
    assert_eq!(connect(), Err(Errno(libc::EISCONN)));
}

#[test]
fn calls_that_would_wait_fail_on_a_nonblocking_socket() {
    let (table, listener, fd, mut peer) = established();
    nonblocking(&table, listener);
    nonblocking(&table, fd);
    assert_eq!(table.accept(listener), Err(Errno(libc::EAGAIN)));
    assert_eq!(table.read(fd, &mut [0; 1]), Err(Errno(libc::EAGAIN)));
    let small = 4608i32.to_ne_bytes();
    table.setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &small).unwrap();
    // What fits is taken; more does not fit until the peer acknowledges.
    assert_eq!(table.write(fd, &[0; 20_000]), Ok(9216));
    assert_eq!(table.write(fd, &[0; 1]), Err(Errno(libc::EAGAIN)));
    let mut received = 0;
    while received < 9216 {
        received += peer.receive(&table).0.payload.len();
        peer.send(&table, ACK, &[]);
    }
    assert_eq!(table.write(fd, &[0; 1]), Ok(1));
}

#[test]
fn a_reset_is_reported_once() {
    let (table, _, fd, mut peer) = established();
    peer.send(&table, RST | ACK, &[]);
    assert_eq!(table.read(fd, &mut [0; 1]), Err(Errno(libc::ECONNRESET)));
    assert_eq!(table.read(fd, &mut [0; 1]), Ok(0));
    assert_eq!(table.write(fd, b"x"), Err(Errno(libc::EPIPE)));
    let (table, _, fd, mut peer) = established();
    peer.send(&table, RST | ACK, &[]);
    let error = int(&table, fd, libc::SOL_SOCKET, libc::SO_ERROR);
    assert_eq!(error, libc::ECONNRESET);
    assert_eq!(int(&table, fd, libc::SOL_SOCKET, libc::SO_ERROR), 0);
}

#[test]
fn shutdown_ends_one_direction() {
    let (table, _, fd, mut peer) = established();
    table.shutdown(fd, libc::SHUT_WR).unwrap();
    let (segment, _) = peer.receive(&table);
    assert_eq!(segment.flags, FIN | ACK);
    assert_eq!(table.write(fd, b"x"), Err(Errno(libc::EPIPE)));
    peer.send(&table, ACK | PSH, b"still");
    assert_eq!(table.read(fd, &mut [0; 10]), Ok(5));
    table.shutdown(fd, libc::SHUT_RD).unwrap();
    assert_eq!(table.read(fd, &mut [0; 10]), Ok(0));
    assert_eq!(table.shutdown(fd, 9), Err(Errno(libc::EINVAL)));
}

#[test]
fn what_is_not_read_or_not_wanted_ends_in_a_reset() {
    let (table, _, fd, mut peer) = established();
    peer.send(&table, ACK | PSH, b"unread");
    table.close(fd).unwrap();
    let (segment, _) = peer.receive(&table);
    assert_eq!(segment.flags & RST, RST);
    let (table, _, fd, mut peer) = established();
    let linger = [1i32, 0].map(i32::to_ne_bytes).concat();
    table.setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger).unwrap();
    table.close(fd).unwrap();
    let (segment, _) = peer.receive(&table);
    assert_eq!(segment.flags & RST, RST);
    let _ = peer;
}

#[test]
fn small_writes_wait_for_the_one_in_flight_unless_told_not_to() {
    let (table, _, fd, mut peer) = established();
    table.write(fd, b"one").unwrap();
    table.write(fd, b"two").unwrap();
    table.write(fd, b"three").unwrap();
    assert_eq!(peer.receive(&table).0.payload, b"one");
    peer.send(&table, ACK, &[]);
    assert_eq!(peer.receive(&table).0.payload, b"twothree");
    let on = 1i32.to_ne_bytes();
    table.write(fd, b"four").unwrap();
    table.setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &on).unwrap();
    assert_eq!(peer.receive(&table).0.payload, b"four");
    // Corked bytes go after 200 ms, or with the cork.
    table.setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CORK, &on).unwrap();
    table.write(fd, b"five").unwrap();
    let before = table.now().unwrap();
    let (segment, time) = peer.receive(&table);
    assert_eq!(segment.payload, b"five");
    assert!((199_990..205_000).contains(&(time - before)), "{}", time - before);
}

#[test]
fn readiness_by_poll_and_epoll() {
    let (table, listener, fd, mut peer) = established();
    let mut fds = [
        libc::pollfd { fd, events: libc::POLLIN | libc::POLLOUT, revents: 0 },
        libc::pollfd { fd: listener, events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: 999, events: libc::POLLIN, revents: 0 },
    ];
    assert_eq!(table.poll(&mut fds, 0), Ok(2));
    assert_eq!(fds.map(|f| f.revents), [libc::POLLOUT, 0, libc::POLLNVAL]);
    let epoll = table.epoll_create().unwrap();
    let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
    table.epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, events).unwrap();
    let again = table.epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, events);
    assert_eq!(again, Err(Errno(libc::EEXIST)));
    assert_eq!(table.epoll_wait(epoll, 0), Ok(None));
    peer.send(&table, ACK | PSH, b"edge");
    assert_eq!(table.epoll_wait(epoll, 0), Ok(Some((libc::EPOLLIN as u32, fd))));
    // Nothing new has come, though not all is read.
    assert_eq!(table.epoll_wait(epoll, 0), Ok(None));
    peer.send(&table, FIN | ACK, &[]);
    assert!(table.epoll_wait(epoll, 0).unwrap().is_some());
    table.epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, 0).unwrap();
    let gone = table.epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, 0);
    assert_eq!(gone, Err(Errno(libc::ENOENT)));
}

#[test]
fn options_and_ioctls_answer() {
    let (table, listener, fd, mut peer) = established();
    // The peer offered no MSS, and RFC 9293 section 3.7.1 has 536 then.
    assert_eq!(int(&table, fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG), 536);
    assert_eq!(int(&table, listener, libc::SOL_SOCKET, libc::SO_ACCEPTCONN), 1);
    assert_eq!(int(&table, fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN), 0);
    let mut value = [0; 256];
    let len = table.getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut value).unwrap();
    assert!(len >= 192, "{len}");
    assert_eq!(value[0], 1, "ESTABLISHED");
    let unknown = table.getsockopt(fd, libc::SOL_SOCKET, 9999, &mut value);
    assert_eq!(unknown, Err(Errno(libc::ENOPROTOOPT)));
    let short = table.setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &[1]);
    assert_eq!(short, Err(Errno(libc::EINVAL)));
    peer.send(&table, ACK | PSH, b"12345");
    assert_eq!(table.ioctl(fd, libc::FIONREAD, 0), Ok(5));
    table.write(fd, b"123").unwrap();
    assert_eq!(table.ioctl(fd, libc::TIOCOUTQ, 0), Ok(3));
    table.ioctl(fd, libc::FIONBIO, 1).unwrap();
    assert_eq!(table.recv(fd, &mut [0; 9], libc::MSG_PEEK), Ok(5));
    assert_eq!(table.read(fd, &mut [0; 9]), Ok(5));
    assert_eq!(table.read(fd, &mut [0; 9]), Err(Errno(libc::EAGAIN)));
    assert_eq!(table.ioctl(fd, 0x1234, 0), Err(Errno(libc::ENOTTY)));
}

#[test]
fn sockets_that_are_none_and_addresses_that_are_taken() {
    let (table, listener) = listening();
    assert_eq!(table.socket(libc::AF_UNIX, libc::SOCK_STREAM, 0), Err(Errno(libc::EAFNOSUPPORT)));
    let udp = table.socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    assert_eq!(udp, Err(Errno(libc::EPROTONOSUPPORT)));
    assert_eq!(table.read(999, &mut [0; 1]), Err(Errno(libc::EBADF)));
    assert_eq!(table.read(listener, &mut [0; 1]), Err(Errno(libc::ENOTCONN)));
    assert_eq!(table.bind(listener, address(LOCAL)), Err(Errno(libc::EINVAL)));
    let second = table.socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    table.bind(second, address(LOCAL)).unwrap();
    assert_eq!(table.listen(second, 1), Err(Errno(libc::EADDRINUSE)));
    assert_eq!(table.write(second, b"x"), Err(Errno(libc::EPIPE)));
    assert_eq!(table.accept(second), Err(Errno(libc::EINVAL)));
    let epoll = table.epoll_create().unwrap();
    assert_eq!(table.read(epoll, &mut [0; 1]), Err(Errno(libc::ENOTSOCK)));
    assert_eq!(table.close(999), Err(Errno(libc::EBADF)));
}

#[test]
fn packets_that_are_none_are_refused() {
    let (table, _) = listening();
    for bytes in [&[][..], &[0x15; 40], &[0x45; 65_530]] {
        assert_eq!(table.netdev_send(bytes), Err(Errno(libc::EINVAL)));
    }
    // One that looks like an IP packet is the stack's to judge.
    assert_eq!(table.netdev_send(&[0x45; 40]), Ok(()));
}

#[test]
fn a_closed_listener_resets_who_waits() {
    let (table, listener) = listening();
    let mut peer = Peer { seq: 1000, ack: 0 };
    peer.send(&table, SYN, &[]);
    peer.receive(&table);
    peer.send(&table, ACK, &[]);
    table.close(listener).unwrap();
    let (segment, _) = peer.receive(&table);
    assert_eq!(segment.flags & RST, RST);
}

#[test]
fn flags_that_are_wrong_make_every_socket_fail() {
    let wrong: [&CStr; 2] = [c"nonsense", c"mtu=many"];
    for flags in wrong {
        let table = Table::new(flags);
        let socket = table.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        assert_eq!(socket, Err(Errno(libc::EINVAL)));
    }
}

#[test]
fn a_user_timeout_ends_the_connection() {
    let (table, _, fd, mut peer) = established();
    let timeout = 3000i32.to_ne_bytes();
    table.setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &timeout).unwrap();
    table.write(fd, b"lost").unwrap();
    let before = table.now().unwrap();
    peer.receive(&table);
    let mut byte = [0; 1];
    // On the main thread time passes in the call itself.
    assert_eq!(table.read(fd, &mut byte), Err(Errno(libc::ETIMEDOUT)));
    let waited = table.now().unwrap() - before;
    assert!((2_900_000..4_000_000).contains(&waited), "{waited}");
}

#[test]
fn a_record_stays_apart_from_what_follows() {
    let (table, _, fd, mut peer) = established();
    table.write(fd, b"first").unwrap();
    table.send(fd, b"record", libc::MSG_EOR).unwrap();
    table.write(fd, b"rest").unwrap();
    assert_eq!(peer.receive(&table).0.payload, b"first");
    // More follows the record, so that it does not wait for more.
    assert_eq!(peer.receive(&table).0.payload, b"record");
    peer.send(&table, ACK, &[]);
    assert_eq!(peer.receive(&table).0.payload, b"rest");
}

#[test]
fn a_connection_over_ipv6() {
    let (local, peer) = ("[fd3d:a0b:17d6::1]:8080", "[2001:db8::1]:40000");
    let table = Table::new(c"");
    let listener = table.socket(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
    table.bind(listener, address(local)).unwrap();
    table.listen(listener, 5).unwrap();
    let (SocketAddr::V6(from), SocketAddr::V6(to)) = (address(peer), address(local)) else {
        unreachable!("both are IPv6");
    };
    let packet = |flags: u8, seq: u32, ack: u32| {
        let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        let numbers = [seq.to_be_bytes(), ack.to_be_bytes()].concat();
        let mut tcp = [&ports[..], &numbers, &[0x50, flags, 0x80, 0, 0, 0, 0, 0]].concat();
        let ends = [from.ip().octets(), to.ip().octets()].concat();
        let sum = checksum(&[&ends, &[0, tcp.len() as u8, 0, 6], &tcp]);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        [&[0x60, 0, 0, 0, 0, tcp.len() as u8, 6, 64][..], &ends, &tcp].concat()
    };
    table.netdev_send(&packet(SYN, 1000, 0)).unwrap();
    let (syn_ack, _) = table.netdev_receive().unwrap().expect("a packet");
    assert_eq!((syn_ack[0] >> 4, syn_ack[6], syn_ack[53]), (6, 6, SYN | ACK));
    let isn = u32::from_be_bytes(*syn_ack[44..].first_chunk().unwrap());
    table.netdev_send(&packet(ACK, 1001, isn.wrapping_add(1))).unwrap();
    assert_eq!(table.accept(listener).unwrap().1, address(peer));
}

/// A caller in C may pass anything that is null or of a wrong length.
#[test]
fn null_pointers_are_errors() {
    let (table, listener, fd, _) = established();
    let bad = table.null_pointer_calls(listener, fd);
    assert!(bad.len() > 10);
    for (name, errno) in bad {
        assert!(matches!(errno, libc::EFAULT | libc::EINVAL), "{name}: errno {errno}");
    }
    let _: *mut c_void = table.interface().userdata;
}
