//! A machine with one address: its kernel has it, and applications serve at it.

#![cfg(target_os = "linux")]

use std::process::Command;

use paste_tests::backend::{Backend, FIXED_BODY, Guest};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require::Need;
use paste_tests::vm::{Nic, Setup, Vm};
use paste_tests::{require, wait};

const NEEDS: [Need; 7] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("curl"),
    Need::GuestKernel,
];

const NEAR: &str = "10.7.0.1";
const NEAR_V6: &str = "fd00:7::1";
const OWN: &str = "10.7.0.11";
const OWN_V6: &str = "fd00:7::11";
/// What the kernel's servers serve, on each side.
const FAR_FILE: &str = "of the kernel";
const NEAR_FILE: &str = "of the clients";

struct Scene {
    vm: Vm,
    backend: Backend,
    guest: Guest,
    net: Namespace,
    _server: Process,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn start() -> Scene {
        let net = Namespace::new();
        let dir = tempfile::tempdir().expect("a directory");
        let region = dir.path().join("region");
        let guest = Guest {
            shares_addresses: true,
            more: format!(
                "sources = [\"10.7.0.0/24\", \"fd00:7::/64\"]\n\
                 region = {{ size = \"16MiB\", path = \"{}\" }}\n",
                region.display()
            ),
            ..Guest::number(1)
        };
        net.tap_with(&guest.tap, &guest.near_address());
        net.ip(&format!("address add {NEAR_V6}/64 dev {} nodad", guest.tap));
        let backend = Backend::start(&net, std::slice::from_ref(&guest));
        std::fs::write(dir.path().join("file"), NEAR_FILE).expect("a file can be written");
        let mut server = net.command("busybox");
        server.args(["httpd", "-f", "-p", "8090", "-h"]).arg(dir.path());
        let server = Process::spawn("the clients' server", &mut server);
        let mut vm = Vm::boot(&Setup {
            programs: vec!["examples/http"],
            regions: vec![region],
            nics: vec![Nic::of(&backend, &guest)],
            ..Setup::default()
        });
        vm.run("until (: </dev/dax0.0) 2>/dev/null; do sleep 0.1; done");
        vm.run("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up");
        vm.run(&format!("mkdir /tmp/www; echo -n '{FAR_FILE}' >/tmp/www/file"));
        Scene { vm, backend, guest, net, _server: server, _dir: dir }
    }

    fn start_application(&mut self) {
        self.vm.run(
            "http --interface eth0 --region /dev/dax0.0 >/dev/ttyS0 2>&1 & echo $! >/tmp/http",
        );
    }

    /// What a path is served as, and by whom.
    fn get(&self, host: &str, port: u16, path: &str) -> Option<String> {
        let mut curl = self.net.command("curl");
        curl.args(["--silent", "--fail", "--globoff", "--max-time", "60", "--connect-timeout"]);
        let output = curl.arg("20").arg(format!("http://{host}:{port}{path}")).output();
        let output = output.expect("curl runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks until it is served as this.
    #[track_caller]
    fn check(&self, host: &str, port: u16, path: &str, body: &str) {
        wait::until(&format!("{host} port {port} says {body:?}"), || {
            (self.get(host, port, path).as_deref() == Some(body)).then_some(())
        });
    }

    fn ping(&self, address: &str) {
        let mut ping: Command = self.net.command("ping");
        let output = ping.args(["-c3", "-i0.2", "-w60", address]).output().expect("ping runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
    }
}

#[test]
fn an_application_serves_at_the_one_address_of_its_machine() {
    for need in NEEDS {
        require!(need);
    }
    let mut scene = Scene::start();
    let fixed = String::from_utf8_lossy(FIXED_BODY).into_owned();
    let v6 = format!("[{OWN_V6}]");

    // The application is there before the kernel has an address.
    scene.start_application();
    scene.backend.process.wait_output("channel opened");
    scene.vm.run(&format!("ip address add {OWN}/24 dev eth0"));
    scene.vm.run(&format!("ip address add {OWN_V6}/64 dev eth0"));
    scene.vm.run("httpd -p 8080 -h /tmp/www");
    scene.ping(OWN);
    scene.ping(OWN_V6);
    for host in [OWN, &v6] {
        scene.check(host, 80, "/", &fixed);
        scene.check(host, 8080, "/file", FAR_FILE);
    }
    // The kernel's own connections are its own.
    let said = scene.vm.run(&format!("wget -q -O - http://{NEAR}:8090/file"));
    assert!(said.contains(NEAR_FILE), "{said}");
    let said = scene.vm.run(&format!("ping -c 2 -W 20 {NEAR}"));
    assert!(said.contains(" 0% packet loss"), "{said}");
    // On other ports the kernel refuses, and not the stack.
    assert_eq!(scene.get(OWN, 81, "/"), None);

    // When the application ends, the port is the kernel's; when it is back, its own.
    scene.vm.run("kill $(cat /tmp/http)");
    scene.backend.process.wait_output("channel closed");
    scene.vm.run("httpd -p 80 -h /tmp/www");
    scene.check(OWN, 80, "/file", FAR_FILE);
    scene.start_application();
    scene.check(OWN, 80, "/", &fixed);
    scene.check(&v6, 80, "/", &fixed);
    scene.check(OWN, 8080, "/file", FAR_FILE);

    scene.vm.kill();
    let stats = scene.backend.stop();
    let of = |counter: &str| stats.get(&scene.guest, counter);
    for some in ["share.to_stack", "share.to_kernel", "share.renewed"] {
        assert!(of(some) > 0, "{some}");
    }
    // Echo and ARP are the kernel's to answer.
    assert_eq!((of("stack.echo_replies_out"), of("stack.arp_replies_out")), (0, 0));
    assert_eq!(of("stack.address_conflicts"), 0);
    assert_eq!((of("worker.ring_errors"), of("channel.opened")), (0, 2));
    stats.assert_no_buffer_missing(&scene.guest);
}
