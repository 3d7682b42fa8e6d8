//! A guest on a device that the host keeps using, by AF_XDP: one end of a veth, whose
//! other end is the clients'.

#![cfg(target_os = "linux")]

mod long;
mod times;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use paste_tests::backend::{self, Backend, FIXED_BODY, Guest, Stats};
use paste_tests::interop::content::{Content, FILE};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::{client, wait};

const NEEDS: [Need; 6] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Program("curl"),
    Need::Program("ping"),
    Need::Program("ethtool"),
];

/// The device of the host's end.
const DEVICE: &str = "nic0";
/// The guest's IPv6 address.
const GUEST_V6: &str = "fd00:7::11";
/// The host's own addresses on the device.
const HOST: &str = "10.7.0.1";
const HOST_V6: &str = "fd00:7::1";

/// A guest on the device, by this port.
fn guest(port: &'static str, more: &str) -> Guest {
    Guest { address_v6: Some(format!("{GUEST_V6}/64")), ..numbered(1, port, more) }
}

/// One of several guests on it, without an IPv6 address.
fn numbered(number: u8, port: &'static str, more: &str) -> Guest {
    let mut guest = Guest { port: Some(port), ..Guest::number(number) };
    guest.more.push_str(more);
    guest
}

/// A host and its network.
struct Net {
    host: Namespace,
    far: Namespace,
    queues: u8,
}

impl Net {
    fn new(queues: u8) -> Net {
        let net = Net { host: Namespace::new(), far: Namespace::new(), queues };
        net.link();
        net
    }

    /// Makes the device, whose peer fills in checksums.
    fn link(&self) {
        self.host.link_of(self.queues, DEVICE, &self.far, "10.7.0.9/24");
        self.host.ip(&format!("address add {HOST}/24 dev {DEVICE}"));
        self.host.ip(&format!("address add {HOST_V6}/64 dev {DEVICE} nodad"));
        self.far.ip("address add fd00:7::9/64 dev eth0 nodad");
        self.offload("off");
    }

    /// Whether the peer leaves checksums to its device.
    fn offload(&self, tx: &str) {
        run(self.far.command("ethtool").args(["-K", "eth0", "tx", tx]));
    }

    /// What `ip link` shows of the device.
    fn show(&self) -> String {
        let shown = run(self.host.command("ip").args(["link", "show", "dev", DEVICE]));
        String::from_utf8(shown.stdout).expect("text")
    }

    #[track_caller]
    fn assert_nothing_attached(&self) {
        let shown = self.show();
        assert!(!shown.contains("xdp"), "{shown}");
    }

    fn ping(&self, address: &str) -> bool {
        let mut command = self.far.command("ping");
        let output = command.args(["-c1", "-W2", "-q", address]).output().expect("ping runs");
        output.status.success()
    }

    #[track_caller]
    fn assert_pings(&self, address: &str) {
        let mut command = self.far.command("ping");
        // Five, with a payload that ping compares.
        command.args(["-c5", "-i0.2", "-W10", "-p", "c0ffee", address]);
        let said = String::from_utf8(run(&mut command).stdout).expect("text");
        assert!(said.contains("5 received") && !said.contains("wrong data"), "{said}");
    }

    fn curl(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = self.far.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "60"]);
        run(command.args(arguments)).stdout
    }

    /// Starts a backend that is to refuse, and returns what it says.
    fn refused(&self, guest: Guest) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let config = backend::write_config(dir.path(), &[guest]);
        let output = backend::run_command(&self.host, &config).output().expect("pasted runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        said
    }
}

/// A backend and its guest, serving a file.
struct Served {
    // The order of the fields is that of taking down.
    application: Process,
    backend: Backend,
    guest: Guest,
    net: Net,
    content: Content,
}

impl Served {
    fn start(net: Net, guest: Guest) -> Served {
        let content = Content::write(10 << 20).expect("a file");
        let backend = Backend::start(&net.host, std::slice::from_ref(&guest));
        let root = content.dir().to_str().expect("UTF-8");
        let application = backend.example(&net.host, &guest, "http", &["--root", root]);
        backend::wait_serving(&net.far, &guest);
        Served { application, backend, guest, net, content }
    }

    fn assert_downloads(&self) {
        let expected = std::fs::read(self.content.path()).expect("the file");
        for address in [self.guest.ip().to_owned(), format!("[{GUEST_V6}]")] {
            let got = self.net.curl(&[&format!("http://{address}/{FILE}")]);
            assert_eq!(got.len(), expected.len(), "{address}");
            assert!(got == expected, "the file differs by way of {address}");
        }
    }

    fn stop(mut self) -> (Stats, Guest, Net) {
        self.application.terminate();
        assert_eq!(self.application.wait().code(), Some(0), "the application's exit");
        let stats = self.backend.stop();
        stats.assert_no_buffer_missing(&self.guest);
        assert_eq!(stats.get(&self.guest, "port.xdp.ring_errors"), 0);
        self.net.assert_nothing_attached();
        (stats, self.guest, self.net)
    }
}

/// Runs a program to its end, which must be a good one.
#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    output
}

/// The host's own TCP on the device still answers.
fn assert_host_serves(net: &Net) {
    for host in [HOST, HOST_V6] {
        let listener = net.host.run(|| TcpListener::bind((host, 99))).expect("a listener");
        let mut stream = net.far.run(|| TcpStream::connect((host, 99))).expect("a connection");
        let (mut accepted, _) = listener.accept().expect("a connection");
        stream.write_all(b"hello").expect("it goes");
        let mut bytes = [0; 5];
        accepted.read_exact(&mut bytes).expect("it comes");
        assert_eq!(&bytes, b"hello");
    }
}

/// Everything a client may want, in one way of serving the device.
fn serves(port: &'static str, more: &str, queues: u8) -> (Stats, Guest) {
    serves_on(Net::new(queues), guest(port, more))
}

/// Likewise, on a device that is there.
fn serves_on(net: Net, guest: Guest) -> (Stats, Guest) {
    let queues = net.queues;
    let served = Served::start(net, guest);
    for address in [served.guest.ip(), GUEST_V6, HOST, HOST_V6] {
        served.net.assert_pings(address);
    }
    served.assert_downloads();
    assert_host_serves(&served.net);
    let shown = served.net.show();
    assert!(shown.contains("xdp"), "{shown}");
    let (stats, guest, _net) = served.stop();
    for wrong in ["port.xdp.rx_unfilled_taken", "stack.drop_bad_tcp_csum", "port.drops.rx_oversize"]
    {
        assert_eq!(stats.get(&guest, wrong), 0, "{wrong}");
    }
    assert_eq!(stats.get(&guest, "port.xdp.queues"), u64::from(queues));
    (stats, guest)
}

#[test]
fn bursts_that_grow_find_buffers() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[4], NEEDS[5]);
    let more = "region = { size = \"256MiB\" }\n".to_owned();
    let served = Served::start(Net::new(1), Guest { more, ..guest("xdp:nic0", "") });
    // Each fits in what the one before has shown to be needed, and the last is more than
    // there is at first.
    for frames in [1400, 2900] {
        served.backend.process.hold();
        let guest = served.guest.ip();
        served.net.far.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
            for _ in 0..frames {
                socket.send_to(&[7; 100], (guest, 9)).expect("the frame leaves");
            }
        });
        served.backend.process.go_on();
        // Behind all of them.
        assert!(served.net.ping(guest), "the guest is lost");
    }
    let (stats, guest, _) = served.stop();
    assert!(stats.get(&guest, "port.rx_frames") >= 1400 + 2900);
    assert_eq!(stats.get(&guest, "port.xdp.rx_missed"), 0);
}

#[test]
fn serves_in_the_driver() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5]);
    let (stats, guest) = serves("xdp:nic0", "", 1);
    assert_eq!(stats.get(&guest, "port.xdp.driver_mode"), 1);
}

#[test]
fn serves_in_the_kernels_own_path() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5]);
    let (stats, guest) = serves("xdp:nic0?mode=generic", "", 1);
    assert_eq!(stats.get(&guest, "port.xdp.driver_mode"), 0);
}

#[test]
fn serves_a_guest_that_may_write_headers() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5]);
    serves("xdp:nic0", "spoof_check = false\n", 1);
}

#[test]
fn serves_all_queues_of_a_device() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5]);
    serves("xdp:nic0", "", 2);
}

#[test]
fn uploads_arrive_byte_for_byte() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5]);
    uploads(&Net::new(2), &[guest("xdp:nic0", "")]);
}

/// Uploads a file to each address of these guests, which compare it with its digest.
fn uploads(net: &Net, guests: &[Guest]) -> Stats {
    let content = Content::write(10 << 20).expect("a file");
    let backend = Backend::start(&net.host, guests);
    let more = ["--body-max", &content.len().to_string()];
    let start = |guest| backend.example(&net.host, guest, "http", &more);
    let mut applications: Vec<_> = guests.iter().map(start).collect();
    let (data, digest) = (format!("@{}", content.path().display()), content.digest_field());
    for guest in guests {
        backend::wait_serving(&net.far, guest);
        let v6 = guest.address_v6.as_ref().map(|_| format!("[{GUEST_V6}]"));
        for address in [Some(guest.ip().to_owned()), v6].into_iter().flatten() {
            let url = format!("http://{address}/");
            let arguments = ["--data-binary", &data, "--header", &digest];
            let got = net.curl(&[&arguments[..], &["--write-out", "%{http_code}", &url]].concat());
            assert_eq!(got, [FIXED_BODY, b"200"].concat(), "{address}");
        }
    }
    for application in &mut applications {
        application.terminate();
        assert_eq!(application.wait().code(), Some(0));
    }
    let stats = backend.stop();
    guests.iter().for_each(|guest| stats.assert_no_buffer_missing(guest));
    net.assert_nothing_attached();
    stats
}

#[test]
fn wrk_counts_no_error() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[5], Need::Program("wrk"));
    let _turn = wait::turn();
    let guest = guest("xdp:nic0", "");
    let net = Net::new(2);
    let backend = Backend::start(&net.host, std::slice::from_ref(&guest));
    let _application = backend.example(&net.host, &guest, "http", &[]);
    backend::wait_serving(&net.far, &guest);
    let url = format!("http://{}/", guest.ip());
    let mut command = net.far.command("wrk");
    let output = run(command.args(["-t2", "-c64", "-d3s", "--timeout", "20s", &url]));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let requests =
        said.lines().find_map(|line| line.trim().strip_suffix(" read")?.split(' ').next());
    let requests: u64 = requests.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    assert!(requests > 1_000, "{said}");
}

#[test]
fn one_queue_is_one_queue() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[4], NEEDS[5]);
    let net = Net::new(2);
    let guest = guest("xdp:nic0@1", "");
    let backend = Backend::start(&net.host, std::slice::from_ref(&guest));
    net.assert_pings(HOST);
    let stats = backend.stop();
    assert_eq!(stats.get(&guest, "port.xdp.queues"), 1);
    net.assert_nothing_attached();
}

#[test]
fn nothing_stays_attached_after_a_crash() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[4], NEEDS[5]);
    let net = Net::new(1);
    let backend = Backend::start(&net.host, &[guest("xdp:nic0", "")]);
    assert!(net.show().contains("xdp"), "{}", net.show());
    let mut process = backend.process;
    process.kill();
    process.wait();
    wait::until("the program is gone", || (!net.show().contains("xdp")).then_some(()));
    net.assert_pings(HOST);
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[5]);
    let net = Net::new(1);
    let assert_refused = |port, more: &str, expected: &str| {
        let said = net.refused(guest(port, more));
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("port xdp:")).collect();
        assert!(lines.len() == 1 && lines[0].contains(expected), "{expected:?} in {said}");
        net.assert_nothing_attached();
    };
    assert_refused("xdp:nosuch0", "", "port xdp:nosuch0: there is no such device: `ip link`");
    assert_refused("xdp:nic0@1", "", "port xdp:nic0: the device has no queue 1");
    let jumbo = "mtu = 9000\n";
    assert_refused("xdp:nic0", jumbo, "port xdp:nic0: its MTU is 1500, the guest's 9000: set");
    net.host.ip(&format!("link set dev {DEVICE} mtu 1400"));
    assert_refused("xdp:nic0", "", "port xdp:nic0: its MTU is 1400, the guest's 1500: set");
    net.host.ip(&format!("link set dev {DEVICE} mtu 1500"));
    net.host.ip(&format!("link set dev {DEVICE} down"));
    assert_refused("xdp:nic0", "", "port xdp:nic0: the device is down: bring it up with");
}

#[test]
fn a_region_that_no_device_can_use_is_refused() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[5]);
    // Beside the tests' programs, which are on a disk as a rule.
    let dir = tempfile::tempdir_in(built("pasted").parent().expect("a directory"));
    let dir = dir.expect("a directory");
    let kind = run(Command::new("stat").args(["-f", "-c", "%T"]).arg(dir.path())).stdout;
    let kind = String::from_utf8_lossy(&kind).trim().to_owned();
    if kind != "ext2/ext3" {
        eprintln!("skipped: {} is on {kind}, not on ext4", dir.path().display());
        return;
    }
    let net = Net::new(1);
    let mut guest = guest("xdp:nic0", "");
    let path = dir.path().join("region");
    guest.more = format!("region = {{ size = \"16MiB\", path = \"{}\" }}\n", path.display());
    let said = net.refused(guest);
    assert!(said.contains("port xdp:nic0: the kernel cannot let the device use"), "{said}");
    net.assert_nothing_attached();
}

#[test]
fn a_device_that_is_taken_stays_with_who_has_it() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[4], NEEDS[5]);
    let net = Net::new(1);
    let first = guest("xdp:nic0", "");
    let backend = Backend::start(&net.host, std::slice::from_ref(&first));
    for port in ["xdp:nic0", "xdp:nic0?mode=generic", "xdp:nic0@0"] {
        let said = net.refused(guest(port, ""));
        assert!(said.contains("port xdp:nic0: the device has an XDP program already"), "{said}");
    }
    net.assert_pings(first.ip());
    backend.stop().assert_no_buffer_missing(&first);
    net.assert_nothing_attached();
}

#[test]
fn a_device_that_goes_comes_back_into_service() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5]);
    let mut served = Served::start(Net::new(1), guest("xdp:nic0", ""));
    let ip = served.guest.ip().to_owned();
    served.assert_downloads();

    served.net.host.ip(&format!("link set dev {DEVICE} down"));
    served.backend.process.wait_output("the device is down: bring it up");
    assert!(!served.net.ping(&ip));
    served.net.host.ip(&format!("link set dev {DEVICE} up"));
    served.net.host.ip(&format!("address add {HOST_V6}/64 dev {DEVICE} nodad"));
    served.backend.process.wait_output("the port works again");
    wait::until("the guest is back", || served.net.ping(&ip).then_some(()));
    served.assert_downloads();

    served.net.host.ip(&format!("link delete dev {DEVICE}"));
    served.backend.process.wait_output("there is no such device");
    served.net.link();
    wait::until("the guest is back again", || served.net.ping(&ip).then_some(()));
    served.assert_downloads();
    assert!(served.net.show().contains("xdp"));

    let (stats, guest, _net) = served.stop();
    assert_eq!(stats.get(&guest, "port.xdp.lost"), 1);
}

#[test]
fn checksums_that_nobody_filled_in_are_diagnosed() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5]);
    let net = Net::new(1);
    net.offload("on");
    let served = Served::start(net, guest("xdp:nic0", ""));
    served.assert_downloads();
    // Looked for now and then, when a frame comes.
    wait::until("it is said", || {
        served.net.ping(served.guest.ip());
        served.backend.process.output().contains("ethtool -K PEER tx off").then_some(())
    });
    served.assert_downloads();
    let said = served.backend.process.output();
    assert_eq!(said.matches("ethtool -K PEER tx off").count(), 1, "{said}");
    assert!(said.contains("nic0's peer"), "{said}");
    let (stats, guest, _net) = served.stop();
    assert!(stats.get(&guest, "port.xdp.rx_unfilled_taken") > 10);
    assert_eq!(stats.get(&guest, "port.xdp.rx_unfilled_refused"), 0);
}

/// The configuration that ships, as its first lines say.
#[test]
fn the_example_configuration_serves() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[5]);
    let (host, far) = (Namespace::new(), Namespace::new());
    host.link("eth1", &far, "10.7.0.1/24");
    run(far.command("ethtool").args(["-K", "eth0", "tx", "off"]));
    // In a place of the test's own, so that it can run beside others.
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("web1.sock");
    let text = include_str!("../../../configs/xdp.toml")
        .replace("/tmp/pasted-web1.sock", socket.to_str().expect("UTF-8"));
    let config = dir.path().join("xdp.toml");
    std::fs::write(&config, text).expect("a file");
    let mut pasted = Process::spawn("pasted", &mut backend::run_command(&host, &config));
    pasted.wait_output("serving");
    let mut application = start_http(&host, &socket);
    far.run(|| wait::until("the guest listens", || client::connect("10.7.0.2", 80).ok()));
    let mut command = far.command("curl");
    let got = run(command.args(["--silent", "--max-time", "30", "http://10.7.0.2/"])).stdout;
    assert_eq!(got, FIXED_BODY);
    application.terminate();
    assert_eq!(application.wait().code(), Some(0));
    pasted.terminate();
    assert_eq!(pasted.wait().code(), Some(0));
}

fn start_http(net: &Namespace, socket: &Path) -> Process {
    let mut command = net.command(built("examples/http"));
    Process::spawn("http", command.stdin(Stdio::null()).arg("--socket").arg(socket))
}
