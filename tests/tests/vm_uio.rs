//! An application in a real machine that drives a virtio-net device itself, by
//! `uio_pci_generic`, while another device stays the kernel's: it serves, sleeping and
//! polling, comes back after it was killed under load, after the device was reset under it
//! and after the backend was killed, and gives the device back. A store on it keeps what it
//! has acknowledged, and a program in C serves by it.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paste_tests::backend::{Backend, FIXED_BODY, Guest};
use paste_tests::c::compile;
use paste_tests::netns::Namespace;
use paste_tests::require::Need;
use paste_tests::resp::{Client, Reply};
use paste_tests::store::{Ledger, PORT, redis_benchmark, redis_cli};
use paste_tests::vm::{Attach, Nic, Setup, Vm};
use paste_tests::{client, require, wait};

const NEEDS: [Need; 12] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Built("examples/kv"),
    Need::Built("libpasteguest.a"),
    Need::Program("cc"),
    Need::Program("redis-cli"),
    Need::Program("redis-benchmark"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("curl"),
    Need::GuestKernel,
];

/// Of the kernel's device.
const NEAR: &str = "10.8.2.1";
const OWN: &str = "10.8.2.77";
/// Bytes of a file that is served.
const LEN: usize = 300_000;
/// Times that the application is killed while it serves.
const KILLS: usize = 3;
/// Writes to the store that are acknowledged before it is killed, and their keys.
const WRITES: u64 = 200;
const KEYS: u64 = 20;
/// What the program in C answers.
const BODY_IN_C: &[u8] = b"Served by a C loop\n";
/// How long 80 requests, one after the other, may take without interrupts. Asleep to the
/// end each time, the application would take 40 s.
const UNTOLD_LIMIT: Duration = Duration::from_secs(20);

struct Scene {
    vm: Vm,
    backend: Option<Backend>,
    guests: [Guest; 2],
    net: Namespace,
    /// The device on the PCI bus, and where it is in sysfs.
    address: String,
    device: String,
    file: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Scene {
    fn start() -> Scene {
        let net = Namespace::new();
        let dir = tempfile::tempdir().expect("a directory");
        let region = dir.path().join("region");
        let guests = [
            Guest {
                more: format!(
                    "sources = \"any\"\nregion = {{ size = \"32MiB\", path = \"{}\" }}\n",
                    region.display()
                ),
                ..Guest::number(1)
            },
            Guest {
                more: "sources = \"any\"\nregion = { size = \"16MiB\" }\n".to_owned(),
                ..Guest::apart(2)
            },
        ];
        for guest in &guests {
            net.tap_with(&guest.tap, &guest.near_address());
        }
        let backend = Backend::start(&net, &guests);
        let file: Vec<u8> = (0..LEN).map(|at| (at * 31 % 65_521 % 251) as u8).collect();
        let path = dir.path().join("served");
        std::fs::write(&path, &file).expect("a file can be written");
        // There is nothing in the machine that it could be linked with.
        let source = "guest-driver/examples/c/server.c";
        let in_c = compile(source, "libpasteguest.a", &["-static"], dir.path());
        let mut vm = Vm::boot(&Setup {
            programs: vec!["examples/http", "examples/kv"],
            files: vec![path, in_c],
            drivers: vec!["uio_pci_generic"],
            regions: vec![region],
            nics: guests
                .iter()
                .map(|guest| Nic { attach: Attach::Again, ..Nic::of(&backend, guest) })
                .collect(),
            ..Setup::default()
        });
        vm.run("until (: </dev/dax0.0) 2>/dev/null; do sleep 0.1; done");
        vm.run("mkdir /tmp/root; cp /bin/served /tmp/root");
        vm.run(&format!("ip link set eth1 up; ip address add {OWN}/24 dev eth1"));
        let device = vm.run("readlink -f /sys/class/net/eth0/device/..").trim().to_owned();
        let address = device.rsplit('/').next().expect("a path").to_owned();
        let device = format!("/sys/bus/pci/devices/{address}");
        let backend = Some(backend);
        Scene { vm, backend, guests, net, address, device, file, dir }
    }

    /// What a start of the application with these arguments fails with.
    fn refused(&mut self, arguments: &str) -> String {
        self.fails(&format!("http {arguments}"))
    }

    /// What the program in C says when it cannot open this device.
    fn refused_in_c(&mut self, address: &str) -> String {
        let said = self.fails(&format!("program --device {address} /dev/dax0.0 80"));
        assert!(said.starts_with("server: open: "), "{address}: {said}");
        said
    }

    fn fails(&mut self, line: &str) -> String {
        let (status, said) = self.vm.try_run(line);
        assert_eq!(status, 1, "{line}: {said}");
        said
    }

    /// Has the device driven by this driver.
    fn bind(&mut self, driver: &str) {
        let Scene { vm, device, address, .. } = self;
        vm.run(&format!("echo {driver} >{device}/driver_override"));
        vm.run(&format!("echo {address} >{device}/driver/unbind"));
        vm.run(&format!("echo {address} >/sys/bus/pci/drivers/{driver}/bind"));
    }

    fn run(&mut self, arguments: &str) {
        self.launch(&format!("http --device {} --region /dev/dax0.0 {arguments}", self.address));
    }

    /// Starts the one program that drives the device.
    fn launch(&mut self, line: &str) {
        self.vm.run(&format!("{line} >/tmp/said-by-it 2>&1 & echo $! >/tmp/pid"));
    }

    /// What that program has said.
    fn said(&mut self) -> String {
        self.vm.run("cat /tmp/said-by-it")
    }

    fn signal(&mut self, signal: &str) {
        self.vm.run(&format!("kill -{signal} $(cat /tmp/pid)"));
        self.vm.run("while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.1; done");
    }

    /// It serves: over several connections at once, with many requests each.
    fn check(&self, requests: usize) {
        let ip = self.guests[0].ip();
        self.net.run(|| {
            wait::until("the server answers", || {
                client::get(&mut client::connect(ip, 80).ok()?, "/").ok()
            });
            let mut open: Vec<_> =
                (0..8).map(|_| client::connect(ip, 80).expect("a connection")).collect();
            for _ in 0..requests {
                for stream in &mut open {
                    let response = client::get(stream, "/").expect("an answer");
                    assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
                }
            }
        });
    }

    /// The kernel's own device works.
    fn ping(&mut self) {
        self.vm.run(&format!("ping -c 2 -W 20 {NEAR}"));
    }

    /// How often the device has interrupted by this driver.
    fn interrupts(&mut self) -> u64 {
        let said = self.vm.run("grep uio_pci_generic /proc/interrupts");
        let counts = said.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok());
        counts.sum()
    }

    /// Masks the device's line, as nobody but its driver should.
    fn mask(&mut self) {
        self.vm.run(&format!(
            "printf '\\005' | dd of={}/config bs=1 seek=5 conv=notrunc 2>/dev/null",
            self.device
        ));
    }

    /// Nobody has the device, or memory for it.
    fn check_free(&mut self) {
        self.vm.run("until grep -q 'HugePages_Free: *1$' /proc/meminfo; do sleep 0.1; done");
        let command = self.vm.run(&format!("od -An -tx1 -j4 -N1 {}/config", self.device));
        let command = u8::from_str_radix(command.trim(), 16).expect("a byte");
        assert_eq!(command & 4, 0, "bus mastering is off");
    }

    fn backend(&self) -> &Backend {
        self.backend.as_ref().expect("it runs")
    }
}

/// Fetches the file by curl, some times.
fn fetch(scene: &Scene, path: &Path) {
    for _ in 0..5 {
        let mut curl: Command = scene.net.command("curl");
        curl.args(["--silent", "--fail", "--max-time", "60", "--output"]).arg(path);
        curl.arg(format!("http://{}/served", scene.guests[0].ip()));
        assert!(curl.status().expect("curl runs").success());
        let bytes = std::fs::read(path).expect("a file");
        assert!(bytes == scene.file, "the file is whole");
    }
}

#[test]
fn an_application_drives_a_device_itself() {
    for need in NEEDS {
        require!(need);
    }
    let mut scene = Scene::start();
    refuse(&mut scene);

    // Sleeping between requests, it is woken by interrupts.
    scene.run("--root /tmp/root");
    let ip = scene.guests[0].ip().to_owned();
    let path = scene.dir.path().join("fetched");
    scene.net.run(|| {
        wait::until("the server answers", || {
            client::get(&mut client::connect(&ip, 80).ok()?, "/served").ok()
        })
    });
    let before = scene.interrupts();
    fetch(&scene, &path);
    assert!(scene.interrupts() > before, "it sleeps, and is woken");
    scene.ping();
    let said = scene.refused(&format!("--device {} --inline", scene.address));
    assert!(said.contains("another program drives it"), "{said}");
    scene.signal("TERM");
    let said = scene.said();
    assert!(said.contains("slots per batch"), "{said}");
    scene.check_free();

    // Polling all the time, it never is; it is killed while it serves, and begins anew.
    for _ in 0..KILLS {
        scene.run("--poll-us 1000000000");
        scene.check(20);
        let before = scene.interrupts();
        scene.check(20);
        let after = scene.interrupts();
        assert!(after <= before + 3, "it does not sleep");
        let mut open = scene.net.run(|| client::connect(&ip, 80).expect("a connection"));
        assert_eq!(client::get(&mut open, "/").expect("an answer").body, FIXED_BODY);
        let asking = std::thread::spawn(move || {
            loop {
                if let Err(error) = client::get(&mut open, "/") {
                    return error.kind();
                }
            }
        });
        scene.signal("KILL");
        scene.check_free();
        scene.run("");
        scene.check(5);
        assert!(scene.interrupts() > after + 10, "it sleeps, and is woken");
        // The host has seen its end.
        assert_eq!(asking.join().expect("it ends"), std::io::ErrorKind::ConnectionReset);
        scene.signal("KILL");
        scene.check_free();
    }
    scene.ping();

    // It serves when interrupts do not come, and not by sleeps to their end alone.
    scene.run("");
    scene.check(5);
    scene.mask();
    let (before, start) = (scene.interrupts(), Instant::now());
    scene.check(10);
    let spent = start.elapsed();
    assert_eq!(scene.interrupts(), before, "they do not come");
    assert!(spent < UNTOLD_LIMIT, "{spent:?}");
    scene.signal("TERM");

    // Payload in the frames, for a machine that shows no region.
    let line = format!("http --device {} --inline", scene.address);
    scene.launch(&line);
    scene.check(20);
    scene.signal("TERM");

    // It goes on when the device was reset under it, and when the backend was killed.
    for polling in ["", "--poll-us 1000000000"] {
        scene.run(polling);
        scene.check(5);
        scene.vm.run(&format!("echo 1 >{}/reset", scene.device));
        scene.check(5);
        let dir = scene.backend.take().expect("it runs").crash();
        scene.backend = Some(Backend::start_in(dir, &scene.net, &scene.guests));
        scene.check(5);
        scene.ping();
        scene.signal("TERM");
        let said = scene.said();
        assert!(said.contains("lost: 2"), "{said}");
        scene.check_free();
    }

    store(&mut scene);
    in_c(&mut scene);

    // And the kernel has the device again.
    scene.bind("virtio-pci");
    scene.vm.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done");
    scene.vm.run("ip link set eth0 up; ip address add 10.7.0.77/24 dev eth0");
    scene.vm.run("ping -c 2 -W 20 10.7.0.1");

    let said = scene.backend().process.output();
    assert!(!said.contains("broke its ring"), "{said}");
    scene.vm.kill();
    let stats = scene.backend.take().expect("it runs").stop();
    for guest in &scene.guests {
        for wrong in ["worker.ring_errors", "channel.malformed", "channel.foreign_buffer"] {
            assert_eq!(stats.get(guest, wrong), 0, "{wrong} of {}", guest.name);
        }
        assert_eq!(stats.sum(guest, "device.fault."), 0);
    }
}

/// A store serves redis-cli and redis-benchmark, and is killed while it is written to: what
/// it has acknowledged is there when it comes back.
fn store(scene: &mut Scene) {
    let ip = scene.guests[0].ip().to_owned();
    let line = format!("kv --device {} --region /dev/dax0.0", scene.address);
    // One of before is told apart by that it does not answer any more.
    let client = |scene: &Scene| {
        scene.net.run(|| {
            wait::until("the store serves", || {
                let mut client = Client::connect(&ip, PORT).ok()?;
                (client.ask(&[b"PING"]).ok()? == Reply::Simple("PONG".to_owned())).then_some(client)
            })
        })
    };
    scene.launch(&line);
    let mut writer = client(scene);
    assert_eq!(redis_cli(&scene.net, &ip, &["SET", "greeting", "hello"]), "OK");
    let written = AtomicU64::new(0);
    let mut ledger = std::thread::scope(|scope| {
        // Until the connection ends: every answer is judged.
        let writing = scope.spawn(|| {
            let mut ledger = Ledger::new(1, KEYS);
            for number in (0..KEYS).cycle() {
                match ledger.write(&mut writer, number) {
                    Ok(reply) => assert_eq!(reply, Reply::Simple("OK".to_owned())),
                    Err(_) => break,
                }
                // Before that many it is not killed.
                if written.fetch_add(1, Ordering::Relaxed) + 1 < WRITES {
                    ledger.check_one(&mut writer, number);
                }
            }
            ledger
        });
        let more = ["-c", "8", "-r", "500", "-n", "2000", "-P", "4"];
        redis_benchmark(&scene.net, &ip, &["SET", "GET"], &more);
        wait::until("the store is written to", || {
            assert!(!writing.is_finished(), "the connection ended by itself");
            (written.load(Ordering::Relaxed) >= WRITES).then_some(())
        });
        scene.signal("KILL");
        scene.check_free();
        scene.launch(&line);
        writing.join().expect("answers are right")
    });
    let mut reader = client(scene);
    assert_eq!(redis_cli(&scene.net, &ip, &["GET", "greeting"]), "hello");
    assert_eq!(ledger.check(&mut reader), KEYS);
    drop(reader);
    scene.signal("TERM");
    let said = scene.said();
    assert!(said.contains("recovered") && !said.contains("DAMAGED"), "{said}");
    scene.check_free();
}

/// The papers' loop in C, by the header's way to such a device.
fn in_c(scene: &mut Scene) {
    let ip = scene.guests[0].ip().to_owned();
    let line = format!("program --device {} /dev/dax0.0 80", scene.address);
    scene.launch(&line);
    let mut stream = scene.net.run(|| {
        wait::until("the program answers", || {
            let mut stream = client::connect(&ip, 80).ok()?;
            (client::get(&mut stream, "/").ok()?.body == BODY_IN_C).then_some(stream)
        })
    });
    let address = scene.address.clone();
    let said = scene.refused_in_c(&address);
    assert!(said.contains("another program drives it"), "{said}");
    for _ in 0..50 {
        assert_eq!(client::get(&mut stream, "/").expect("an answer").body, BODY_IN_C);
    }
    drop(stream);
    scene.signal("TERM");
    let said = scene.said();
    assert!(said.contains("51 requests"), "{said}");
    scene.check_free();
}

/// What cannot be driven is refused, and said why.
fn refuse(scene: &mut Scene) {
    let region = "--region /dev/dax0.0";
    let address = scene.address.clone();
    let said = scene.refused(&format!("--device {address} {region}"));
    let bind = format!("echo {address} > /sys/bus/pci/drivers/uio_pci_generic/bind");
    assert!(said.contains("bound to virtio-pci") && said.contains(&bind), "{said}");
    let said = scene.refused_in_c(&address);
    assert!(said.contains("bound to virtio-pci") && said.contains(&bind), "{said}");
    let pmem = scene.vm.run("cd /sys/bus/pci/devices; grep -l 0x105b */device");
    let pmem = pmem.trim().trim_end_matches("/device");
    for (named, says) in [
        (pmem, "it is no virtio-net device, but vendor 0x1af4, device 0x105b"),
        ("0000:00:1e.7", "there is none"),
        ("eth0", "is no address of a PCI device"),
    ] {
        let said = scene.refused(&format!("--device {named} {region}"));
        assert!(said.contains(says), "{named}: {said}");
        let said = scene.refused_in_c(named);
        assert!(said.contains(says), "{named}: {said}");
    }
    scene.bind("uio_pci_generic");
    let pages = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let said = scene.refused(&format!("--device {address} {region}"));
    assert!(said.contains("no huge page") && said.contains(pages), "{said}");
    let said = scene.refused_in_c(&address);
    assert!(said.contains("no huge page") && said.contains(pages), "{said}");
    scene.vm.run(&format!("echo 1 >{pages}"));
    let said = scene.refused(&format!("--device {address} --region /dev/null"));
    assert!(said.contains("region"), "{said}");
    scene.check_free();
}
