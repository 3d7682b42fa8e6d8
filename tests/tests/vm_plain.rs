//! A guest that knows nothing of PASTE: its kernel's own virtio-net driver on our
//! device is a NIC like any other, whatever is done to the driver or the machine.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

use paste_tests::backend::{Backend, Guest, Stats};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require::Need;
use paste_tests::vm::{Nic, Setup, Vm};
use paste_tests::{require, wait};
use serde_json::{Value, json};

const NEEDS: [Need; 9] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("cc"),
    Need::Program("curl"),
    Need::Program("iperf3"),
    Need::Program("ping"),
    Need::GuestKernel,
];

/// Bytes of what is fetched, in each direction.
const LEN: usize = 6 << 20;
/// The clients' end of the first device's network, and the guest's addresses there.
const NEAR: &str = "10.7.0.1";
const NEAR_V6: &str = "fd00:7::1";
const OWN_V6: &str = "fd00:7::77";
/// The second device's, whose MTU is 9000.
const NEAR_JUMBO: &str = "10.8.2.1";
const OWN_JUMBO: &str = "10.8.2.77";

/// Bits of virtio-net's features (virtio 1.2 section 5.1.3): checksums and segments in
/// both directions, mergeable buffers, status, MTU and MAC.
const FEATURES: [usize; 10] = [0, 1, 3, 5, 7, 8, 11, 12, 15, 16];

/// A guest with two devices, and who is on their networks.
struct Scene {
    vm: Vm,
    _servers: Vec<Process>,
    backend: Backend,
    guests: [Guest; 2],
    net: Namespace,
    /// What is served to the guest: a file.
    file: PathBuf,
    dir: tempfile::TempDir,
}

/// One that any address of its kernel's own is allowed to.
fn any(guest: Guest) -> Guest {
    Guest { more: format!("{}sources = \"any\"\n", guest.more), ..guest }
}

impl Scene {
    fn start() -> Scene {
        let net = Namespace::new();
        let small = any(Guest::number(1));
        let jumbo = Guest {
            more: "mtu = 9000\nregion = { size = \"16MiB\", buffer_size = 16384 }\n".to_owned(),
            ..Guest::apart(2)
        };
        let guests = [small, any(jumbo)];
        for guest in &guests {
            net.tap_with(&guest.tap, &guest.near_address());
        }
        net.ip(&format!("address add {NEAR_V6}/64 dev tap1 nodad"));
        net.ip("link set dev tap2 mtu 9000");
        let backend = Backend::start(&net, &guests);

        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        let bytes: Vec<u8> = (0..LEN).map(|at| (at * 31 % 65_521 % 251) as u8).collect();
        std::fs::write(&file, bytes).expect("a file can be written");
        let servers = vec![serve(&net, dir.path()), give_addresses(&net, dir.path())];

        let mtus = [1500, 9000];
        let nics = guests.iter().zip(mtus).map(|(guest, mtu)| {
            let mtu = Some(mtu);
            Nic { mtu, ..Nic::of(&backend, guest) }
        });
        let setup = Setup {
            tools: vec!["curl", "iperf3"],
            nics: nics.collect(),
            kexec: true,
            reboots: true,
            ..Setup::default()
        };
        let vm = Vm::boot(&setup);
        Scene { vm, _servers: servers, backend, guests, net, file, dir }
    }

    /// Brings the devices up; the first one's address is from the server of addresses.
    /// Returns that address.
    fn bring_up(&mut self) -> String {
        self.vm.run("ip link set eth0 up; ip link set eth1 up");
        self.vm.run("udhcpc -i eth0 -n -q -t 10 -s /etc/dhcp");
        self.vm.run("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad");
        self.vm.run(&format!("ip address add {OWN_V6}/64 dev eth0"));
        self.vm.run(&format!("ip address add {OWN_JUMBO}/24 dev eth1"));
        let shown = self.vm.run("ip -4 -o address show dev eth0");
        let address = shown.split_whitespace().find_map(|word| word.split_once('/'));
        let (address, _) = address.unwrap_or_else(|| panic!("no address in {shown}"));
        address.to_owned()
    }

    /// Echo requests of this many bytes from the network to the guest, whole packets.
    #[track_caller]
    fn ping(&self, address: &str, size: usize) {
        let mut command = self.net.command("ping");
        // Until so many answers have come: an emulated machine may take its time.
        command.args(["-c3", "-i0.2", "-w60", "-Mdo", "-p", "c0ffee", "-s", &size.to_string()]);
        let output = command.arg(address).output().expect("ping runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("wrong data byte"), "{said}");
    }

    /// Whether the guest is reached, and reaches the network.
    #[track_caller]
    fn check_reached(&mut self, address: &str) {
        self.ping(address, 56);
        self.vm.run(&format!("ping -c 2 -W 20 {NEAR}"));
    }

    /// The guest fetches the file from `near`; then somebody there fetches it from the
    /// guest. The bytes are the same each time.
    #[track_caller]
    fn fetch(&mut self, near: &str, own: &str) {
        let digest = digest(&self.file);
        let said = self.vm.run(&format!(
            "curl --silent --show-error -o /tmp/file http://{near}:8000/file && \
             sha256sum </tmp/file"
        ));
        assert!(said.starts_with(&digest), "{said}");
        let got = self.dir.path().join("got");
        let mut command = self.net.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "60", "-g", "-o"]).arg(&got);
        let output = command.arg(format!("http://{own}:8001/file")).output().expect("curl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(self::digest(&got), digest);
    }

    /// iperf3, both ways.
    fn measure(&mut self, own: &str) {
        self.vm.run("iperf3 -s -D -1; iperf3 -s -D -1 -p 5202");
        for more in [["-p", "5201"].as_slice(), &["-p", "5202", "-R"]] {
            let output = wait::until("iperf3 runs", || {
                let mut command = self.net.command("iperf3");
                command.args(["-J", "-n", "8M", "-c", own]).args(more);
                let output = command.output().expect("iperf3 runs");
                output.status.success().then_some(output)
            });
            let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            // It ends when all was sent, and not when it has come.
            let bytes = report["end"]["sum_received"]["bytes"].as_u64();
            assert!(bytes.is_some_and(|bytes| bytes >= 1 << 20), "{report:#}");
        }
    }

    fn stop(self) -> (Stats, [Guest; 2]) {
        self.vm.kill();
        (self.backend.stop(), self.guests)
    }
}

/// Serves the files of a directory on the network, at every address.
fn serve(net: &Namespace, dir: &Path) -> Process {
    let mut command = net.command("busybox");
    command.args(["httpd", "-f", "-p", "8000", "-h"]).arg(dir);
    Process::spawn("httpd", &mut command)
}

/// A server of addresses on the first device's network.
fn give_addresses(net: &Namespace, dir: &Path) -> Process {
    let (leases, config) = (dir.join("leases"), dir.join("udhcpd.conf"));
    std::fs::write(&leases, "").expect("a file can be written");
    let text = format!(
        "start 10.7.0.100\nend 10.7.0.109\ninterface tap1\nlease_file {}\npidfile {}\n\
         option subnet 255.255.255.0\noption lease 3600\n",
        leases.display(),
        dir.join("pid").display(),
    );
    std::fs::write(&config, text).expect("a file can be written");
    Process::spawn("udhcpd", net.command("busybox").args(["udhcpd", "-f"]).arg(config))
}

fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    let said = String::from_utf8(output.stdout).expect("text");
    said.split_whitespace().next().expect("a digest").to_owned()
}

#[test]
fn a_kernel_has_a_nic_like_any_other() {
    for need in NEEDS {
        require!(need);
    }
    let mut scene = Scene::start();
    let own = scene.bring_up();
    for device in ["eth0", "eth1"] {
        let features = scene.vm.run(&format!("cat /sys/class/net/{device}/device/features"));
        let missing = FEATURES.iter().find(|&&bit| features.as_bytes()[bit] != b'1');
        assert_eq!(missing, None, "{device}: {features}");
    }
    let mtu = scene.vm.run("cat /sys/class/net/eth0/mtu /sys/class/net/eth1/mtu");
    assert_eq!(mtu, "1500\n9000\n");

    scene.check_reached(&own);
    scene.ping(OWN_V6, 56);
    scene.vm.run(&format!("ping6 -c 2 -W 20 {NEAR_V6}"));
    // The largest packets, and what is one byte longer.
    scene.ping(&own, 1472);
    scene.ping(OWN_V6, 1452);
    scene.ping(OWN_JUMBO, 8972);
    // The stack port's own address is answered by the stack.
    scene.ping("10.7.0.11", 1472);

    scene.vm.run("httpd -p 8001 -h /tmp");
    scene.fetch(NEAR, &own);
    scene.fetch(&format!("[{NEAR_V6}]"), &format!("[{OWN_V6}]"));
    scene.fetch(NEAR_JUMBO, OWN_JUMBO);
    scene.measure(&own);

    link_down_and_up(&mut scene, &own);
    driver_taken_and_given_back(&mut scene);
    machine_asleep(&mut scene, &own);
    machine_reset(&mut scene);

    let (stats, [small, jumbo]) = scene.stop();
    for guest in [&small, &jumbo] {
        let of = |counter: &str| stats.get(guest, counter);
        for wrong in ["plain_out_refused", "plain_out_spoofed", "ring_errors", "plain_in_forged"] {
            assert_eq!(of(&format!("worker.{wrong}")), 0, "{wrong} of {}", guest.name);
        }
        let (sent, received) = (of("device.tx_bytes"), of("device.rx_bytes"));
        assert!(sent > LEN as u64 && received > LEN as u64, "{sent} out, {received} in");
        stats.assert_no_buffer_missing(guest);
    }
    // Segments leave as packets, and come as packets: those are in several buffers. How
    // many do depends on how fast the machine is.
    let of = |counter: &str| stats.get(&small, counter);
    assert!(of("worker.plain_out_segments") > LEN as u64 / 1448 / 4);
    assert!(of("device.rx_chains") - of("device.rx_frames") > LEN as u64 / 1448 / 4);
}

fn link_down_and_up(scene: &mut Scene, own: &str) {
    let carrier = "cat /sys/class/net/eth0/carrier";
    assert_eq!(scene.vm.run(carrier), "1\n");
    scene.vm.control("set_link", &json!({ "name": "nic0", "up": false }));
    scene.vm.run(&format!("until [ $({carrier}) = 0 ]; do sleep 0.1; done"));
    let (status, _) = scene.vm.try_run(&format!("ping -c 1 -W 1 {NEAR}"));
    assert_ne!(status, 0, "an answer came through a link that is down");
    scene.vm.control("set_link", &json!({ "name": "nic0", "up": true }));
    scene.vm.run(&format!("until [ $({carrier}) = 1 ]; do sleep 0.1; done"));
    scene.check_reached(own);
}

fn driver_taken_and_given_back(scene: &mut Scene) {
    let driver = "/sys/bus/virtio/drivers/virtio_net";
    let device = scene.vm.run("basename $(readlink /sys/class/net/eth0/device)");
    let device = device.trim();
    for _ in 0..3 {
        scene.vm.run(&format!("echo {device} >{driver}/unbind"));
        let (status, _) = scene.vm.try_run("ls /sys/class/net/eth0");
        assert_ne!(status, 0, "the device is still there");
        scene.vm.run(&format!("echo {device} >{driver}/bind"));
    }
    scene.vm.run("ip address flush dev eth1");
    let own = scene.bring_up();
    scene.check_reached(&own);
}

/// Suspend to memory, and back: the driver takes its device down and up again.
fn machine_asleep(scene: &mut Scene, own: &str) {
    assert!(scene.vm.run("cat /sys/power/state").contains("mem"));
    scene.vm.run("(sleep 1; echo mem >/sys/power/state) >/dev/null 2>&1 &");
    scene.vm.wait_event("SUSPEND");
    let mut ping = scene.net.command("ping");
    let output = ping.args(["-c1", "-W1", own]).output().expect("ping runs");
    assert!(!output.status.success(), "a machine that sleeps has answered");
    scene.vm.control("system_wakeup", &json!({}));
    scene.vm.wait_event("WAKEUP");
    scene.check_reached(own);
    scene.ping(OWN_JUMBO, 8972);
}

/// A reboot that the kernel asks for, one that it learns nothing of, and one that the
/// device learns nothing of.
fn machine_reset(scene: &mut Scene) {
    scene.vm.tell("reboot -f");
    scene.vm.wait_ready();
    let own = scene.bring_up();
    scene.check_reached(&own);
    scene.vm.control("system_reset", &json!({}));
    scene.vm.wait_ready();
    let own = scene.bring_up();
    scene.check_reached(&own);
    scene.vm.kexec();
    let own = scene.bring_up();
    scene.check_reached(&own);
    scene.ping(OWN_JUMBO, 8972);
}
