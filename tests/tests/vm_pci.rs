//! Applications in a real machine that find the region in the memory of a PCI device, with
//! no driver for it: they serve, keep what they were told, and refuse another's region.

#![cfg(target_os = "linux")]

use std::process::Command;

use paste_tests::backend::{Backend, FIXED_BODY, Guest};
use paste_tests::client;
use paste_tests::netns::Namespace;
use paste_tests::require::{Need, built};
use paste_tests::resp::{Client, Reply};
use paste_tests::vm::{Nic, Setup, Vm};
use paste_tests::{require, wait};

#[test]
fn applications_find_the_region_in_a_pci_device() {
    require!(
        Need::Namespaces,
        Need::Built("pasted"),
        Need::Built("examples/http"),
        Need::Built("examples/kv"),
        Need::Program("qemu-system-x86_64"),
        Need::Program("busybox"),
        Need::GuestKernel
    );
    let net = Namespace::new();
    let files = tempfile::tempdir().expect("a directory");
    let [region, other] = ["region", "other"].map(|name| files.path().join(name));
    let guest = Guest {
        more: format!("region = {{ size = \"16MiB\", path = \"{}\" }}\n", region.display()),
        ..Guest::number(1)
    };
    net.tap_with(&guest.tap, &guest.near_address());
    let backend = Backend::start(&net, std::slice::from_ref(&guest));
    let mut create = Command::new(built("pasted"));
    create.args(["region", "create"]).arg(&other).args(["--size", "16MiB", "--guest", "web9"]);
    assert!(create.output().expect("pasted runs").status.success());
    let setup = Setup {
        programs: vec!["examples/http", "examples/kv"],
        shown: vec![other, region],
        nics: vec![Nic::of(&backend, &guest)],
        ..Setup::default()
    };
    let value: Vec<u8> = (0..5000).map(|at| (at % 251) as u8).collect();
    for round in 0..2 {
        let mut vm = Vm::boot(&setup);
        vm.run("ip link set eth0 up");
        vm.run("http --interface eth0 --region pci >/dev/ttyS0 2>&1 &");
        let found = vm.run("cd /sys/bus/pci/devices; grep -l 0x1110 */device");
        let found: Vec<_> = found.lines().filter_map(|line| line.strip_suffix("/device")).collect();
        let [foreign, ours] = found[..] else { panic!("{found:?}") };
        let kv = |address: &str| format!("kv --interface eth0 --channel 1 --region pci:{address}");
        for (address, says) in [
            (foreign, "is not the region that the host serves"),
            ("0000:00:1e.9", "opening the region's device"),
            ("nowhere", "is no address of a PCI device"),
        ] {
            let (status, said) = vm.try_run(&kv(address));
            assert!(status == 1 && said.contains(says), "{address}: {said}");
        }
        vm.run(&format!("{} >/dev/ttyS0 2>&1 &", kv(ours)));
        net.run(|| {
            let response = wait::until("the server answers", || {
                client::get(&mut client::connect(guest.ip(), 80).ok()?, "/").ok()
            });
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
            let mut store =
                wait::until("the store listens", || Client::connect(guest.ip(), 6379).ok());
            if round == 0 {
                let stored = store.ask(&[b"SET", b"k", &value[..]]).expect("an answer");
                assert_eq!(stored, Reply::Simple("OK".to_owned()));
            }
            let found = store.ask(&[b"GET", b"k"]).expect("an answer");
            assert_eq!(found, Reply::Bulk(Some(value.clone())));
        });
        vm.kill();
    }
    let stats = backend.stop();
    for fault in ["malformed", "foreign_buffer", "bad_range"] {
        assert_eq!(stats.get(&guest, &format!("channel.{fault}")), 0, "{fault}");
    }
}
