//! Two machines and a process on one TAP device: each reaches the others, and so does
//! who is on the network behind it.

#![cfg(target_os = "linux")]

use paste_tests::backend::{Backend, FIXED_BODY, Guest, wait_serving};
use paste_tests::netns::Namespace;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::vm::{Nic, Setup, Vm};

const NEEDS: [Need; 7] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("curl"),
    Need::GuestKernel,
];

/// The addresses of the machines' kernels.
const OWN: [&str; 2] = ["10.7.0.71", "10.7.0.72"];
/// Bytes of what they fetch from each other.
const LEN: usize = 4 << 20;

#[test]
fn machines_and_a_process_on_one_device_reach_each_other() {
    for need in NEEDS {
        require!(need);
    }
    let net = Namespace::new();
    let guests = [1, 2, 3].map(|number| Guest {
        tap: "tap1".to_owned(),
        more: "sources = \"any\"\nregion = { size = \"16MiB\" }\n".to_owned(),
        ..Guest::number(number)
    });
    let [.., process] = &guests;
    net.tap_with("tap1", &process.near_address());
    let backend = Backend::start(&net, &guests);
    let _application = backend.example(&net, process, "http", &[]);

    let mut machines: Vec<Vm> = std::thread::scope(|scope| {
        let boot = |guest| {
            let nics = vec![Nic::of(&backend, guest)];
            Vm::boot(&Setup { tools: vec!["curl"], nics, ..Setup::default() })
        };
        let booting: Vec<_> =
            guests[..2].iter().map(|guest| scope.spawn(move || boot(guest))).collect();
        booting.into_iter().map(|thread| thread.join().expect("it boots")).collect()
    });
    for (vm, own) in machines.iter_mut().zip(OWN) {
        vm.run(&format!("ip link set eth0 up; ip address add {own}/24 dev eth0"));
        vm.run(&format!("head -c {LEN} /dev/urandom >/tmp/file; httpd -p 8000 -h /tmp"));
    }
    wait_serving(&net, process);

    let digests: Vec<String> =
        machines.iter_mut().map(|vm| vm.run("sha256sum </tmp/file")).collect();
    for (at, vm) in machines.iter_mut().enumerate() {
        let other = 1 - at;
        vm.run(&format!("ping -c 2 -W 20 {}", OWN[other]));
        let said = vm.run(&format!("curl --silent http://{}:8000/file | sha256sum", OWN[other]));
        assert_eq!(said, digests[other], "fetched by {}", OWN[at]);
        let said = vm.run(&format!("curl --silent http://{}/", process.ip()));
        assert_eq!(said.as_bytes(), FIXED_BODY);
        vm.run("ping -c 2 -W 20 10.7.0.1");
        let mut curl = net.command("sh");
        let fetch = format!("curl --silent http://{}:8000/file | sha256sum", OWN[at]);
        let output = curl.args(["-c", &fetch]).output().expect("curl runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), digests[at]);
    }
    machines.into_iter().for_each(Vm::kill);
    let stats = backend.stop();
    assert!(stats.shared("tap:tap1", "switch.switched") > 0);
    for guest in &guests {
        let of = |counter: &str| stats.get(guest, counter);
        assert_eq!((of("worker.plain_out_refused"), of("worker.ring_errors")), (0, 0));
    }
    for guest in &guests[..2] {
        // What goes from one to the other is cut on its way, and joined again.
        assert!(stats.get(guest, "worker.plain_out_segments") > (LEN / 1448) as u64);
    }
}
