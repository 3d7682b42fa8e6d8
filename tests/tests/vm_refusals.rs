//! Machines that are set up wrongly, and guests that do what their host does not allow:
//! each gets a clear line, and the device goes on as soon as it is right again.

#![cfg(target_os = "linux")]

use std::process::Command;

use paste_tests::backend::{Backend, Guest};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::vm::{Nic, Setup, Vm};

const NEEDS: [Need; 6] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::GuestKernel,
];

const NEAR: &str = "10.7.0.1";

/// A machine's network device that is set up, and one that is refused.
struct Scene {
    vm: Vm,
    backend: Backend,
    guest: Guest,
    net: Namespace,
}

impl Scene {
    /// A machine whose region is another guest's.
    fn start(setup: Setup) -> Scene {
        let net = Namespace::new();
        let guest = Guest {
            more: "sources = \"any\"\nregion = { size = \"16MiB\" }\n".to_owned(),
            ..Guest::number(1)
        };
        net.tap_with(&guest.tap, &guest.near_address());
        let backend = Backend::start(&net, std::slice::from_ref(&guest));
        let mut vm = Vm::boot(&Setup { nics: vec![Nic::of(&backend, &guest)], ..setup });
        vm.run("ip link set eth0 up; ip address add 10.7.0.77/24 dev eth0");
        Scene { vm, backend, guest, net }
    }

    fn is_reached(&mut self) -> bool {
        self.vm.try_run(&format!("ping -c 1 -W 3 {NEAR}")).0 == 0
    }

    #[track_caller]
    fn assert_said(&self, line: &str) {
        let said = self.backend.process.output();
        assert!(said.contains(line), "\"{line}\" is not in:\n{said}");
    }
}

#[test]
fn what_a_guest_must_not_do_is_refused_and_told() {
    for need in NEEDS {
        require!(need);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let region = dir.path().join("region");
    let mut create = Command::new(built("pasted"));
    create.args(["region", "create"]).arg(&region).args(["--size", "16MiB", "--guest", "other"]);
    assert!(create.status().expect("pasted runs").success());
    let setup =
        Setup { programs: vec!["examples/http"], regions: vec![region], ..Setup::default() };
    let mut scene = Scene::start(setup);
    assert!(scene.is_reached());

    // An application with the region of another guest.
    scene.vm.run("until (: </dev/dax0.0) 2>/dev/null; do sleep 0.1; done");
    let (status, said) = scene.vm.try_run("timeout 20 http --interface eth0 --region /dev/dax0.0");
    assert_ne!(status, 0);
    assert!(said.contains("/dev/dax0.0: is not the region that the host serves"), "{said}");

    // Another Ethernet address than its own.
    let own = scene.guest.mac.clone();
    scene.vm.run("ip link set eth0 address 52:54:00:00:07:99");
    assert!(!scene.is_reached());
    scene.assert_said("its Ethernet source is not the guest's mac: set mac to that of the VM");
    scene.vm.run(&format!("ip link set eth0 address {own}"));
    assert!(scene.is_reached());

    // Packets that the link does not carry, out of the guest and into it.
    scene.vm.run("ip link set eth0 mtu 4000");
    let (status, _) = scene.vm.try_run(&format!("ping -c 1 -W 1 -s 3000 {NEAR}"));
    assert_ne!(status, 0);
    scene.assert_said("a frame of 3042 bytes, where the link carries 1518: give its device");
    scene.vm.run("ip link set eth0 mtu 1500");
    scene.net.ip("link set dev tap1 mtu 9000");
    let mut ping = scene.net.command("busybox");
    let output = ping.args(["ping", "-c1", "-W1", "-s", "3000", "10.7.0.77"]).output();
    assert!(!output.expect("ping runs").status.success());
    assert!(scene.is_reached());

    // A second machine at the same socket. It ends, or has no network; the first one
    // keeps its own.
    let mut second = Command::new("qemu-system-x86_64");
    second.args(["-nodefaults", "-display", "none", "-M", "q35", "-m", "64", "-chardev"]);
    second.arg(format!("socket,id=c,path={}", scene.backend.socket(&scene.guest).display()));
    second.args(["-netdev", "vhost-user,id=n,chardev=c", "-device", "virtio-net-pci,netdev=n"]);
    let mut second = Process::spawn("the second machine", &mut second);
    scene.backend.process.wait_output("a second front end was turned away: one is attached");
    assert!(scene.is_reached());
    second.kill();

    scene.vm.kill();
    let stats = scene.backend.stop();
    let of = |counter| stats.get(&scene.guest, counter);
    assert!(of("worker.plain_out_spoofed") > 0 && of("worker.plain_out_refused") > 0);
    assert!(of("port.drops.rx_oversize") > 0);
    assert_eq!((of("worker.ring_errors"), of("device.sessions")), (0, 1));
}

#[test]
fn memory_that_is_not_the_guests_is_told_of() {
    for need in NEEDS {
        require!(need);
    }
    // The VMM gives a descriptor away, but has a copy of what it is of.
    let setup = Setup { private_memory: true, ..Setup::default() };
    let mut scene = Scene::start(setup);
    assert!(!scene.is_reached());
    scene.assert_said("the memory that the VMM shares is not the guest's");
    scene.vm.kill();
    scene.backend.stop();
}
