//! The device outlives what happens around it: the backend is killed under a running
//! machine and started again, the machine is stopped and goes on, gets more memory, and
//! loses the device and gets it back. The guest's kernel notices at most that frames
//! were lost; its applications learn that their flows are gone, and go on.

#![cfg(target_os = "linux")]

use std::path::Path;

use paste_tests::backend::{Backend, FIXED_BODY, Guest};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require::Need;
use paste_tests::resp::{Client, Reply};
use paste_tests::vm::{Attach, Nic, Setup, Vm};
use paste_tests::{client, require, wait};
use serde_json::json;

const NEEDS: [Need; 8] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Built("examples/kv"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("curl"),
    Need::GuestKernel,
];

/// Bytes of what the guest's kernel fetches while its backend is killed.
const LEN: usize = 8 << 20;
/// Times that it is.
const KILLS: usize = 3;

/// The clients' ends of the two devices' networks, and the kernel's addresses there.
const NEAR: [&str; 2] = ["10.7.0.1", "10.8.2.1"];
const OWN: [&str; 2] = ["10.7.0.77", "10.8.2.77"];

struct Scene {
    vm: Vm,
    _server: Process,
    backend: Option<Backend>,
    guests: [Guest; 2],
    net: Namespace,
    /// Of what is fetched.
    digest: String,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// A machine whose first device connects to the backend and has a region, and whose
    /// second one waits to be connected to.
    fn start() -> Scene {
        let net = Namespace::new();
        let dir = tempfile::tempdir().expect("a directory");
        let region = dir.path().join("region");
        let guests = [
            Guest {
                more: format!(
                    "sources = \"any\"\nregion = {{ size = \"16MiB\", path = \"{}\" }}\n",
                    region.display()
                ),
                ..Guest::number(1)
            },
            Guest {
                connects: true,
                more: "sources = \"any\"\nregion = { size = \"16MiB\" }\n".to_owned(),
                ..Guest::apart(2)
            },
        ];
        for guest in &guests {
            net.tap_with(&guest.tap, &guest.near_address());
        }
        let backend = Backend::start(&net, &guests);
        let bytes: Vec<u8> = (0..LEN).map(|at| (at * 31 % 65_521 % 251) as u8).collect();
        std::fs::write(dir.path().join("file"), bytes).expect("a file can be written");
        let server = serve(&net, dir.path());

        let [first, second] = guests.each_ref().map(|guest| Nic::of(&backend, guest));
        let setup = Setup {
            programs: vec!["examples/http", "examples/kv"],
            tools: vec!["curl"],
            regions: vec![region],
            nics: vec![
                Nic { attach: Attach::Again, ..first },
                Nic { attach: Attach::Listen, ..second },
            ],
            ..Setup::default()
        };
        let mut vm = Vm::boot(&setup);
        vm.run("until (: </dev/dax0.0) 2>/dev/null; do sleep 0.1; done");
        let mut scene = Scene {
            vm,
            _server: server,
            backend: Some(backend),
            guests,
            net,
            digest: String::new(),
            _dir: dir,
        };
        for device in 0..2 {
            scene.bring_up(device);
        }
        let application = "--interface eth0 --region /dev/dax0.0";
        scene.vm.run(&format!("http {application} >/dev/ttyS0 2>&1 &"));
        scene.vm.run(&format!("kv {application} --channel 1 >/dev/ttyS0 2>&1 &"));
        scene.digest = scene.vm.run(&format!("curl --silent {} | sha256sum", url(0)));
        scene
    }

    fn bring_up(&mut self, device: usize) {
        self.vm.run(&format!(
            "ip link set eth{device} up; ip address add {}/24 dev eth{device}",
            OWN[device]
        ));
    }

    fn backend(&self) -> &Backend {
        self.backend.as_ref().expect("it runs")
    }

    /// Kills the backend, and starts it again.
    fn kill(&mut self) {
        let dir = self.backend.take().expect("it runs").crash();
        self.backend = Some(Backend::start_in(dir, &self.net, &self.guests));
    }

    fn ping(&mut self) {
        for near in NEAR {
            self.vm.run(&format!("ping -c 2 -W 20 {near}"));
        }
    }

    fn store(&self) -> Client {
        let ip = self.guests[0].ip();
        wait::until("the store listens", || Client::connect(ip, 6379).ok())
    }

    /// Both applications serve, and the store has what it was told.
    fn check_applications(&self, value: &[u8]) {
        let ip = self.guests[0].ip();
        self.net.run(|| {
            let response = wait::until("the server answers", || {
                client::get(&mut client::connect(ip, 80).ok()?, "/").ok()
            });
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
            let found = self.store().ask(&[b"GET", b"k"]).expect("an answer");
            assert_eq!(found, Reply::Bulk(Some(value.to_vec())));
        });
    }
}

fn url(device: usize) -> String {
    format!("http://{}:8000/file", NEAR[device])
}

fn serve(net: &Namespace, dir: &Path) -> Process {
    let mut command = net.command("busybox");
    command.args(["httpd", "-f", "-p", "8000", "-h"]).arg(dir);
    Process::spawn("httpd", &mut command)
}

#[test]
fn a_device_outlives_its_backend_and_what_is_done_to_its_machine() {
    for need in NEEDS {
        require!(need);
    }
    let mut scene = Scene::start();
    let value: Vec<u8> = (0..3000).map(|at| (at % 249) as u8).collect();
    scene.net.run(|| {
        let stored = scene.store().ask(&[b"SET", b"k", &value[..]]).expect("an answer");
        assert_eq!(stored, Reply::Simple("OK".to_owned()));
    });
    scene.check_applications(&value);

    for _ in 0..KILLS {
        kill_under_transfers(&mut scene, &value);
    }
    stop_and_go_on(&mut scene, &value);
    more_memory(&mut scene, &value);
    unplug(&mut scene, &value);

    scene.vm.kill();
    let backend = scene.backend.take().expect("it runs");
    // Nobody else takes away what the machine had listened at.
    std::fs::remove_file(backend.socket(&scene.guests[1])).expect("it is left");
    let stats = backend.stop();
    for guest in &scene.guests {
        let of = |counter: &str| stats.get(guest, counter);
        for wrong in ["worker.ring_errors", "worker.plain_out_refused", "channel.malformed"] {
            assert_eq!(of(wrong), 0, "{wrong} of {}", guest.name);
        }
        assert_eq!(stats.sum(guest, "device.fault."), 0);
        assert_eq!(of("device.sessions"), 1);
    }
}

/// The backend is killed while the kernel fetches something through both devices, and
/// an application serves a connection.
fn kill_under_transfers(scene: &mut Scene, value: &[u8]) {
    for device in 0..2 {
        scene.vm.run(&format!(
            "(curl --silent --limit-rate 3M {} | sha256sum >/tmp/new{device}; \
             mv /tmp/new{device} /tmp/done{device}) >/dev/null 2>&1 &",
            url(device)
        ));
    }
    let mut open = scene.net.run(|| scene.store());
    // Both are under way.
    let received = "cat /sys/class/net/eth0/statistics/rx_bytes";
    let before: u64 = scene.vm.run(received).trim().parse().expect("a number");
    scene.vm.run(&format!("until [ $({received}) -gt $(({before} + 1000000)) ]; do :; done"));
    scene.kill();

    // Nothing is done in the guest.
    for device in 0..2 {
        let done = format!("/tmp/done{device}");
        let said = scene
            .vm
            .run(&format!("until [ -e {done} ]; do sleep 0.1; done; cat {done}; rm {done}"));
        assert_eq!(said, scene.digest, "through device {device}");
    }
    scene.ping();
    // The flow is gone, and whoever had it is told.
    assert!(open.ask(&[b"GET", b"k"]).is_err());
    scene.check_applications(value);
}

/// The machine is stopped, and goes on: nothing was lost, flows of applications neither.
fn stop_and_go_on(scene: &mut Scene, value: &[u8]) {
    let ip = scene.guests[0].ip().to_owned();
    let mut open = scene.net.run(|| client::connect(&ip, 80).expect("a connection"));
    for _ in 0..2 {
        assert_eq!(client::get(&mut open, "/").expect("an answer").body, FIXED_BODY);
        scene.vm.control("stop", &json!({}));
        scene.vm.control("cont", &json!({}));
    }
    assert_eq!(client::get(&mut open, "/").expect("an answer").body, FIXED_BODY);
    scene.ping();
    scene.check_applications(value);
}

/// The machine gets more memory, which its kernel then uses for frames like any other.
fn more_memory(scene: &mut Scene, value: &[u8]) {
    let size = 128 << 20;
    let backend = json!({
        "qom-type": "memory-backend-memfd", "id": "more", "size": size, "share": true
    });
    scene.vm.control("object-add", &backend);
    // Where the kernel takes it: at a multiple of its blocks, behind the region.
    let address = 0x1_1000_0000_u64;
    let dimm = json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more", "addr": address });
    scene.vm.control("device_add", &dimm);
    scene.vm.run(
        "until grep -q offline /sys/devices/system/memory/memory*/state; do sleep 0.1; done; \
         for state in $(grep -l offline /sys/devices/system/memory/memory*/state); do \
         echo online >$state; done",
    );
    scene.ping();
    for device in 0..2 {
        let said = scene.vm.run(&format!("curl --silent {} | sha256sum", url(device)));
        assert_eq!(said, scene.digest);
    }
    scene.check_applications(value);
}

/// The device is taken out of the machine, and put in again.
fn unplug(scene: &mut Scene, value: &[u8]) {
    scene.vm.control("device_del", &json!({ "id": "nic0" }));
    scene.vm.wait_event("DEVICE_DELETED");
    scene.vm.run("until ! [ -e /sys/class/net/eth0 ]; do sleep 0.1; done");
    let again = json!({
        "driver": "virtio-net-pci", "id": "nic0", "netdev": "net0", "bus": "port0",
        "mac": scene.guests[0].mac, "vectors": 0
    });
    scene.vm.control("device_add", &again);
    scene.vm.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done");
    scene.bring_up(0);
    scene.ping();
    scene.check_applications(value);
    let said = scene.backend().process.output();
    assert!(!said.contains("broke its ring"), "{said}");
}
