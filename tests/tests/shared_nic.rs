//! Guests on one device that the host keeps using, by AF_XDP: behind a switch, or each
//! with a queue of its own. The device is one end of a veth, whose other end is the
//! clients'.

#![cfg(target_os = "linux")]

use std::process::{Command, Output, Stdio};

use paste_tests::backend::{self, Backend, FIXED_BODY, Guest, Stats};
use paste_tests::client;
use paste_tests::interop::content::{Content, FILE};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::wait;

const NEEDS: [Need; 7] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Program("curl"),
    Need::Program("ping"),
    Need::Program("ethtool"),
    Need::Program("taskset"),
];

/// The device of the host's end, and the host's own address on it.
const DEVICE: &str = "nic0";
const HOST: &str = "10.7.0.1";

/// Guest `number` on the device, by this port.
fn guest(number: u8, port: &'static str) -> Guest {
    let mut guest = Guest::number(number);
    guest.port = Some(port);
    guest.address_v6 = Some(format!("fd00:7::1{number}/64"));
    guest
}

/// A host with guests that serve a file, and its network.
struct Served {
    // The order of the fields is that of taking down.
    applications: Vec<Process>,
    backend: Backend,
    guests: Vec<Guest>,
    content: Content,
    host: Namespace,
    far: Namespace,
}

impl Served {
    /// Guests by these ports, on a device with two queues.
    fn start(ports: &[&'static str], head: &str) -> Served {
        let (host, far) = (Namespace::new(), Namespace::new());
        link(&host, &far);
        let guests: Vec<_> = (1..).zip(ports).map(|(number, port)| guest(number, port)).collect();
        let content = Content::write(4 << 20).expect("a file");
        let backend = Backend::start_with(&host, head, &guests);
        let root = content.dir().to_str().expect("UTF-8");
        let start = |guest| backend.example(&host, guest, "http", &["--root", root]);
        let applications = guests.iter().map(start).collect();
        let served = Served { applications, backend, guests, content, host, far };
        served.wait_serving();
        served
    }

    /// A command of the clients' on the CPU whose frames come on this guest's queue.
    fn command(&self, index: usize, program: &str) -> Command {
        let mut command = self.far.command("taskset");
        command.args(["--cpu-list", &(index % 2).to_string(), program]);
        command
    }

    fn pings(&self, index: usize, address: &str) -> bool {
        let mut ping = self.command(index, "ping");
        ping.args(["-c1", "-W2", "-q", address]).output().expect("ping runs").status.success()
    }

    fn wait_serving(&self) {
        for (index, guest) in self.guests.iter().enumerate() {
            wait::until("a guest is there", || self.pings(index, guest.ip()).then_some(()));
            let url = format!("http://{}/", guest.ip());
            wait::until("a guest listens", || {
                let mut curl = self.command(index, "curl");
                let output = curl.args(["--silent", "--max-time", "5", &url]).output();
                output.expect("curl runs").status.success().then_some(())
            });
        }
    }

    /// Every guest serves the file, all at the same time.
    fn assert_downloads(&self) {
        let expected = &std::fs::read(self.content.path()).expect("the file");
        std::thread::scope(|scope| {
            for (index, guest) in self.guests.iter().enumerate() {
                for address in [guest.ip().to_owned(), format!("[fd00:7::1{}]", index + 1)] {
                    scope.spawn(move || {
                        let url = format!("http://{address}/{FILE}");
                        let mut curl = self.command(index, "curl");
                        curl.args(["--silent", "--show-error", "--max-time", "60", &url]);
                        let got = run(&mut curl).stdout;
                        assert!(got == *expected, "the file differs by way of {address}");
                    });
                }
            }
        });
    }

    fn show(&self) -> String {
        let shown = run(self.host.command("ip").args(["link", "show", "dev", DEVICE]));
        String::from_utf8(shown.stdout).expect("text")
    }

    fn stop(mut self) -> (Stats, Vec<Guest>) {
        assert!(self.pings(0, HOST), "the host has its network");
        for application in &mut self.applications {
            application.terminate();
            assert_eq!(application.wait().code(), Some(0), "the application's exit");
        }
        let shown = self.show();
        assert!(shown.contains("xdp"), "{shown}");
        let stats = self.backend.stop();
        let shown = run(self.host.command("ip").args(["link", "show", "dev", DEVICE])).stdout;
        assert!(!String::from_utf8_lossy(&shown).contains("xdp"), "it stays attached");
        self.guests.iter().for_each(|guest| stats.assert_no_buffer_missing(guest));
        (stats, self.guests)
    }
}

/// Makes the device. Its peer fills in checksums, and puts what CPU 0 sends on queue 0,
/// what CPU 1 sends on queue 1.
fn link(host: &Namespace, far: &Namespace) {
    host.link_of(2, DEVICE, far, "10.7.0.9/24");
    host.ip(&format!("address add {HOST}/24 dev {DEVICE}"));
    far.ip("address add fd00:7::9/64 dev eth0 nodad");
    run(far.command("ethtool").args(["-K", "eth0", "tx", "off"]));
    let queues = "/sys/class/net/eth0/queues";
    let by_cpu = format!("echo 1 > {queues}/tx-0/xps_cpus && echo 2 > {queues}/tx-1/xps_cpus");
    run(far.command("sh").args(["-c", &by_cpu]));
}

/// Runs a program to its end, which must be a good one.
#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    output
}

#[test]
fn three_guests_share_a_device() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5], NEEDS[6]);
    for (port, head) in [("xdp:nic0", ""), ("xdp:nic0?mode=generic", "workers = 1")] {
        let served = Served::start(&[port; 3], head);
        served.assert_downloads();
        let (stats, guests) = served.stop();
        let count = |counter| stats.shared(port, counter);
        assert!(count("port.rx_frames") > 0 && count("port.tx_frames") > 1000);
        assert_eq!(count("port.xdp.ring_errors"), 0);
        assert_eq!(count("port.xdp.tx_joined"), 0);
        // Whole, with what the guests' ends have.
        let free = count("pool.free") + 3 * 256;
        assert_eq!(free, count("pool.buffers"), "the device's buffers are missing");
        for guest in &guests {
            // The guest's own end: one copy each way.
            let copied = stats.get(guest, "port.tx_bytes_copied");
            assert_eq!(copied, stats.get(guest, "port.tx_bytes"));
            assert!(copied > 4 << 20);
        }
    }
}

#[test]
fn each_of_two_guests_has_a_queue_of_its_own() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], NEEDS[4], NEEDS[5], NEEDS[6]);
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("skipped: queues are told apart by CPUs, and there is but one");
        return;
    }
    let served = Served::start(&["xdp:nic0@0", "xdp:nic0@1"], "workers = 2\ncpus = [0, 1]");
    served.assert_downloads();
    // One goes, and comes back; the other is served meanwhile.
    let mut served = served;
    served.applications[0].kill();
    on_cpu(1, || {
        let connect = || client::connect(served.guests[1].ip(), 80);
        let mut stream = served.far.run(connect).expect("a connection");
        for _ in 0..100 {
            let response = client::get(&mut stream, "/").expect("an answer");
            assert_eq!(response.status, 404, "there is a directory, and nothing at its root");
        }
    });
    let root = served.content.dir().to_str().expect("UTF-8");
    let again = served.backend.example(&served.host, &served.guests[0], "http", &["--root", root]);
    served.applications[0] = again;
    served.wait_serving();

    // The device goes, and comes back for both.
    served.host.ip(&format!("link delete dev {DEVICE}"));
    wait::until("both have noticed", || {
        let said = served.backend.process.output();
        (said.matches("there is no such device").count() >= 2).then_some(())
    });
    link(&served.host, &served.far);
    served.wait_serving();
    served.assert_downloads();

    let (stats, guests) = served.stop();
    for guest in &guests {
        assert_eq!(stats.get(guest, "port.xdp.queues"), 1);
        assert_eq!(stats.get(guest, "port.xdp.lost"), 1);
        assert_eq!(stats.get(guest, "port.xdp.ring_errors"), 0);
        assert!(stats.get(guest, "port.rx_frames") > 100);
    }
}

/// Does something on this CPU.
fn on_cpu<T>(cpu: usize, work: impl FnOnce() -> T) -> T {
    let before = rustix::thread::sched_getaffinity(None).expect("the kernel tells");
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).expect("there is such a CPU");
    let done = work();
    rustix::thread::sched_setaffinity(None, &before).expect("as it was");
    done
}

#[test]
fn a_device_has_one_mode() {
    require!(NEEDS[0], NEEDS[1], NEEDS[5]);
    let (host, far) = (Namespace::new(), Namespace::new());
    link(&host, &far);
    let dir = tempfile::tempdir().expect("a directory");
    let guests = [guest(1, "xdp:nic0@0?mode=driver"), guest(2, "xdp:nic0@1?mode=generic")];
    let config = backend::write_config(dir.path(), &guests);
    let output = backend::run_command(&host, &config).output().expect("pasted runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("another guest of this process has the device in driver mode"), "{said}");
    let shown = run(host.command("ip").args(["link", "show", "dev", DEVICE])).stdout;
    assert!(!String::from_utf8_lossy(&shown).contains("xdp"), "it stays attached");
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
    let socket = |name: &str| dir.path().join(format!("{name}.sock"));
    let mut text = include_str!("../../configs/shared.toml").to_owned();
    for name in ["web1", "web2"] {
        let path = socket(name);
        text = text.replace(&format!("/tmp/pasted-{name}.sock"), path.to_str().expect("UTF-8"));
    }
    let config = dir.path().join("shared.toml");
    std::fs::write(&config, text).expect("a file");
    let mut pasted = Process::spawn("pasted", &mut backend::run_command(&host, &config));
    pasted.wait_output("serving");
    let mut applications = ["web1", "web2"].map(|name| {
        let mut command = host.command(built("examples/http"));
        command.stdin(Stdio::null()).arg("--socket").arg(socket(name));
        Process::spawn("http", &mut command)
    });
    for address in ["10.7.0.2", "10.7.0.3"] {
        far.run(|| wait::until("the guest listens", || client::connect(address, 80).ok()));
        let mut command = far.command("curl");
        let url = format!("http://{address}/");
        assert_eq!(run(command.args(["--silent", "--max-time", "30", &url])).stdout, FIXED_BODY);
    }
    for application in &mut applications {
        application.terminate();
        assert_eq!(application.wait().code(), Some(0));
    }
    pasted.terminate();
    assert_eq!(pasted.wait().code(), Some(0));
}
