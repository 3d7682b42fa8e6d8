//! A real guest kernel on a region: a virtual machine that finds it as device
//! DAX, with no tool, and what it stores there outlives it. And the whole way: a
//! client, a TAP device, the backend, the machine's own virtio-net driver, and an
//! application in the machine, whose payload lies in the region.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use paste_abi::superblock::HOST_HEAD_LEN;
use paste_tests::backend::{Backend, FIXED_BODY, Guest};
use paste_tests::netns::Namespace;
use paste_tests::require::{Need, built};
use paste_tests::resp::{Client, Reply};
use paste_tests::vm::{Nic, Setup, Vm};
use paste_tests::{client, require, wait};

const NEEDS: [Need; 4] = [
    Need::Built("pasted"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::GuestKernel,
];
const SIZE: u64 = 16 << 20;

/// `pasted region` on this side: what it printed.
#[track_caller]
fn region(arguments: &[&str]) -> String {
    let output = Command::new(built("pasted")).arg("region").args(arguments).output();
    let output = output.expect("pasted runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

fn create(path: &Path, guest: &str) {
    let path = path.to_str().expect("a path in UTF-8");
    region(&["create", path, "--size", "16MiB", "--guest", guest]);
}

/// Waits until the driver serves the device: its node is there earlier.
fn wait_device(vm: &mut Vm, device: &str) {
    vm.run(&format!("until (: <{device}) 2>/dev/null; do sleep 0.1; done"));
}

fn line<'a>(text: &'a str, key: &str) -> &'a str {
    let found = text.lines().find(|line| line.trim_start().starts_with(key));
    found.unwrap_or_else(|| panic!("no {key} in {text}"))
}

#[test]
fn a_guest_finds_its_region_and_what_it_stores_outlives_it() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let dir = tempfile::tempdir().expect("a directory");
    let [given, bare] = ["given.region", "bare.region"].map(|name| dir.path().join(name));
    create(&given, "web1");
    // A device that the guest has for itself: of its region only the block is left
    // that makes the guest's kernel show it.
    create(&bare, "nobody");
    let file = fs::File::options().write(true).open(&bare).expect("the region's file");
    let zeros = vec![0; (SIZE - HOST_HEAD_LEN) as usize];
    file.write_all_at(&zeros, HOST_HEAD_LEN).expect("zeros are written");
    let given_text = region(&["info", given.to_str().expect("UTF-8")]);

    let setup =
        Setup { programs: vec!["pasted"], regions: vec![given, bare.clone()], ..Setup::default() };
    let mut vm = Vm::boot(&setup);
    wait_device(&mut vm, "/dev/dax0.0");
    wait_device(&mut vm, "/dev/dax1.0");

    // What the host has made, as its guest sees it.
    let info = vm.run("pasted region info /dev/dax0.0");
    assert_eq!(line(&info, "identity"), line(&given_text, "identity"));
    assert!(line(&info, "durable").contains("CPU's cache"), "{info}");
    assert!(vm.run("pasted region check /dev/dax0.0").contains(": sound,"));
    let (status, said) = vm.try_run("pasted region create /dev/dax0.0 --size 4MiB");
    assert_eq!(status, 1);
    assert!(said.contains("there is data on this device"), "{said}");

    // A region of the guest's own, on all of the device.
    let (status, said) = vm.try_run("pasted region create /dev/dax1.0 --size 16MiB");
    assert_eq!(status, 1);
    assert!(said.contains("this device has 14680064 bytes, 16777216 expected"), "{said}");
    let made = vm.run("pasted region create /dev/dax1.0 --size 14MiB --guest inner");
    assert!(line(&made, "durable").contains("CPU's cache"), "{made}");
    assert!(vm.run("pasted region check /dev/dax1.0").contains(": sound,"));
    vm.kill();

    // In the file, behind the host's head, as the guest left it.
    let mut bytes = vec![0; zeros.len()];
    let file = fs::File::open(&bare).expect("the region's file");
    file.read_exact_at(&mut bytes, HOST_HEAD_LEN).expect("all of it");
    let inner = dir.path().join("inner.region");
    fs::write(&inner, bytes).expect("a file can be written");
    let info = region(&["info", inner.to_str().expect("UTF-8")]);
    for key in ["guest", "identity", "created", "left", "size"] {
        assert_eq!(line(&info, key), line(&made, key));
    }

    // And again in a machine that is started anew.
    let mut vm = Vm::boot(&setup);
    wait_device(&mut vm, "/dev/dax1.0");
    let again = vm.run("pasted region info /dev/dax1.0");
    assert_eq!(again, made);
    assert!(vm.run("pasted region check /dev/dax1.0").contains(": sound,"));
}

/// The network device of the machine, up, and its region's device.
const APPLICATION: &str = "--interface eth0 --region /dev/dax0.0";

/// A backend, and a machine behind it that runs both servers.
fn serve(dir: tempfile::TempDir, net: &Namespace, guest: &Guest) -> (Backend, Vm) {
    let backend = Backend::start_in(dir, net, std::slice::from_ref(guest));
    let mut vm = Vm::boot(&Setup {
        programs: vec!["examples/http", "examples/kv"],
        regions: vec![backend.dir().join("region")],
        nics: vec![Nic::of(&backend, guest)],
        ..Setup::default()
    });
    wait_device(&mut vm, "/dev/dax0.0");
    vm.run("ip link set eth0 up");
    vm.run(&format!("http {APPLICATION} >/dev/ttyS0 2>&1 &"));
    vm.run(&format!("kv {APPLICATION} --channel 1 >/dev/ttyS0 2>&1 &"));
    (backend, vm)
}

#[test]
fn applications_in_a_machine_serve_clients_and_keep_what_they_were_told() {
    require!(Need::Namespaces, NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Program("curl"));
    require!(Need::Built("examples/http"), Need::Built("examples/kv"));
    let net = Namespace::new();
    let dir = tempfile::tempdir().expect("a directory");
    let region = dir.path().join("region");
    let guest = Guest {
        more: format!("region = {{ size = \"16MiB\", path = \"{}\" }}\n", region.display()),
        ..Guest::number(1)
    };
    net.tap_with(&guest.tap, &guest.near_address());
    let (backend, vm) = serve(dir, &net, &guest);
    let connect = || wait::until("the store listens", || Client::connect(guest.ip(), 6379).ok());
    let value: Vec<u8> = (0..5000).map(|at| (at % 251) as u8).collect();
    net.run(|| {
        wait::until("the server listens", || client::connect(guest.ip(), 80).ok());
        let mut store = connect();
        assert_eq!(store.ask(&[b"SET", b"k", &value[..]]).expect("an answer"), ok());
        // More slots than a socket may keep frames for.
        let many = vec![vec![b"APPEND".to_vec(), b"log".to_vec(), b"x".to_vec()]; 2000];
        store.send(&many).expect("a pipeline");
        for len in 1..=many.len() {
            assert_eq!(store.receive().expect("an answer"), Reply::Integer(len as i64));
        }
    });
    let mut curl = net.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30"]);
    let answer = curl.arg(format!("http://{}/", guest.ip())).output().expect("curl runs");
    assert_eq!(answer.stdout, FIXED_BODY, "{}", String::from_utf8_lossy(&answer.stderr));

    // Neither has a chance to end well.
    vm.kill();
    let dir = backend.crash();
    let (backend, vm) = serve(dir, &net, &guest);
    net.run(|| {
        let mut store = connect();
        let found = store.ask(&[b"GET", b"k"]).expect("an answer");
        assert_eq!(found, Reply::Bulk(Some(value)));
        assert_eq!(store.ask(&[b"STRLEN", b"log"]).expect("an answer"), Reply::Integer(2000));
    });
    vm.kill();
    let stats = backend.stop();
    assert_eq!(stats.get(&guest, "channel.opened"), 2);
    for fault in ["malformed", "foreign_buffer", "bad_range", "refused_channels"] {
        assert_eq!(stats.get(&guest, &format!("channel.{fault}")), 0, "{fault}");
    }
    let of = |name| stats.get(&guest, name);
    assert_eq!(of("pool.free") + of("pool.port") + of("pool.claimed"), of("pool.buffers"));
}

fn ok() -> Reply {
    Reply::Simple("OK".to_owned())
}
