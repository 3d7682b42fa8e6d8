//! A guest on two workers, in a machine with two processors: its kernel's driver uses
//! both queue pairs of the device, and knows nothing of what is behind them.

#![cfg(target_os = "linux")]

use paste_tests::backend::{Backend, Guest};
use paste_tests::netns::Namespace;
use paste_tests::require::Need;
use paste_tests::vm::{Attach, Nic, Setup, Vm};
use paste_tests::{require, wait};
use serde_json::Value;

const NEEDS: [Need; 7] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("iperf3"),
    Need::Program("ping"),
    Need::GuestKernel,
];

/// The addresses of the machine's kernel and of the stack port, and of the network.
const OWN: &str = "10.7.0.77";
const NEAR: &str = "10.7.0.1";

/// Of the configuration, before the guest.
const WORKERS: &str = "workers = 2";

struct Scene {
    vm: Vm,
    net: Namespace,
}

impl Scene {
    #[track_caller]
    fn ping(&self, address: &str) {
        let mut command = self.net.command("ping");
        let output = command.args(["-c3", "-i0.2", "-w60", address]).output().expect("ping runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    fn bring_up(&mut self) {
        self.vm.run(&format!("ip address add {OWN}/24 dev eth0; ip link set eth0 up"));
        self.vm.run(&format!("ping -c 2 -W 20 {NEAR}"));
    }

    /// iperf3 with several streams, both ways.
    fn measure(&mut self) {
        self.vm.run("iperf3 -s -D -1; iperf3 -s -D -1 -p 5202");
        for more in [["-p", "5201"].as_slice(), &["-p", "5202", "-R"]] {
            let output = wait::until("iperf3 runs", || {
                let mut command = self.net.command("timeout");
                command.args(["120", "iperf3", "-J", "-P", "8", "-n", "8M", "-c", OWN]).args(more);
                // It ends when so much was queued: with large buffers, hardly any has come.
                command.args(["-w", "128K"]);
                let output = command.output().expect("iperf3 runs");
                output.status.success().then_some(output)
            });
            let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let bytes = report["end"]["sum_received"]["bytes"].as_u64();
            assert!(bytes.is_some_and(|bytes| bytes >= 1 << 20), "{report:#}");
        }
    }
}

#[test]
fn a_kernel_uses_both_pairs() {
    for need in NEEDS {
        require!(need);
    }
    let net = Namespace::new();
    let mut guest = Guest::number(1);
    guest.more.push_str("worker = [0, 1]\nsources = \"any\"\n");
    net.tap_with(&guest.tap, &guest.near_address());
    let guests = [guest];
    let backend = Backend::start_with(&net, WORKERS, &guests);
    let nic = Nic { pairs: Some(2), attach: Attach::Again, ..Nic::of(&backend, &guests[0]) };
    let setup = Setup { tools: vec!["iperf3"], nics: vec![nic], cpus: Some(2), ..Setup::default() };
    let mut scene = Scene { vm: Vm::boot(&setup), net };

    let queues = scene.vm.run("ls /sys/class/net/eth0/queues");
    assert_eq!(queues.split_whitespace().collect::<Vec<_>>(), ["rx-0", "rx-1", "tx-0", "tx-1"]);
    scene.bring_up();
    scene.ping(OWN);
    scene.measure();
    // The stack port's own address is answered by the stack of the first worker.
    scene.ping(guests[0].ip());

    // The driver goes and comes.
    let driver = "/sys/bus/virtio/drivers/virtio_net";
    let device = scene.vm.run("basename $(readlink /sys/class/net/eth0/device)");
    let device = device.trim();
    scene.vm.run(&format!("echo {device} >{driver}/unbind; echo {device} >{driver}/bind"));
    scene.bring_up();
    scene.ping(OWN);

    // So does the backend, and takes the pairs up where they were.
    let backend = Backend::start_in_with(backend.crash(), &scene.net, WORKERS, &guests);
    scene.ping(OWN);
    scene.measure();
    // Each processor sends on its own pair.
    for mask in [1, 2] {
        scene.vm.run(&format!("taskset {mask} ping -c 3 -W 20 {NEAR}"));
    }

    scene.vm.kill();
    let second = Guest { name: "web1/1".to_owned(), ..guests[0].clone() };
    let stats = backend.stop();
    for lane in [&guests[0], &second] {
        let of = |counter: &str| stats.get(lane, counter);
        assert!(of("device.tx_frames") >= 3, "{} sent {}", lane.name, of("device.tx_frames"));
        for wrong in ["plain_out_refused", "plain_out_spoofed", "ring_errors"] {
            assert_eq!(of(&format!("worker.{wrong}")), 0, "{wrong} of {}", lane.name);
        }
        stats.assert_no_buffer_missing(lane);
    }
}
