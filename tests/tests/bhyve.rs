//! bhyve's backend without bhyve: the unchanged C file of `backend/bhyve`, linked with what
//! stands in for bhyve (`tests/bhyve`), and the real program. The machine's kernel is a
//! network namespace, behind a TAP device that the stand-in passes frames to.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use paste_tests::backend::FIXED_BODY;
use paste_tests::bhyve::{self, root};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::resp::{Client, Reply};
use paste_tests::{client, wait};
use pasted::link::wire::{
    self, Flushed, HEAD_LEN, Hello, Kind, RECORD_MAX, Region, Segment, Welcome,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};
use tempfile::TempDir;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// The machine's own addresses, by its kernel.
const KERNEL: &str = "10.7.0.200";
const KERNEL_V6: &str = "fd00:7::200";
/// The host's end of the network.
const NEAR: &str = "10.7.0.1";
const NEAR_V6: &str = "fd00:7::1";
/// The address of the stack port: the first of the template, as it has one guest.
const STACK: &str = "10.7.0.16";

/// Builds `tests/bhyve/NAME.c` with the backend's files, unchanged.
fn build(name: &str, sanitize: bool) -> PathBuf {
    bhyve::build(Path::new(env!("CARGO_TARGET_TMPDIR")), name, sanitize)
}

fn vm_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build("vm", false))
}

/// A host with `pasted`, and a machine on it.
struct Scene {
    vm: Process,
    pasted: Process,
    guest: Namespace,
    host: Namespace,
    dir: TempDir,
}

impl Scene {
    /// Starts it with further lines of the template, and further options of the device.
    fn start(lines: &str, options: &str) -> Scene {
        Scene::start_after(lines, options, |_| ())
    }

    /// Likewise, with something done at the control socket before the machine comes.
    fn start_after(lines: &str, options: &str, before: impl FnOnce(&Path)) -> Scene {
        Scene::start_as(lines, &[], options, before)
    }

    /// Likewise, with what the machine's driver can, as the stand-in is told.
    fn start_as(lines: &str, driver: &[&str], options: &str, before: impl FnOnce(&Path)) -> Scene {
        let host = Namespace::new();
        host.tap_with("tap0", &format!("{NEAR}/24"));
        host.ip(&format!("address add {NEAR_V6}/64 dev tap0 nodad"));
        let guest = Namespace::new();
        let dir = tempfile::tempdir().expect("a directory");
        // The example, with files of the test's own, on a TAP device for its one guest.
        let control = format!(
            "control = \"{}\"\nstats = \"{}\"",
            dir.path().join("control.sock").display(),
            dir.path().join("stats.json").display(),
        );
        let config = include_str!("../../configs/bhyve.toml")
            .replace("control = \"/var/run/pasted/control.sock\"", &control)
            .replace("vale0:{guest}", "tap:tap0")
            .replace("guests_max = 16", "guests_max = 1")
            .replace(
                "spoof_check = false",
                &format!("sources = [\"{KERNEL}\", \"{KERNEL_V6}\"]\n{lines}"),
            );
        let with_segment = format!(
            "\nregion = {{ size = \"16MiB\", segment = true, mirror = \"{}\" }}",
            dir.path().join("mirror").display()
        );
        let config = match options.ends_with(WITH_REGION) {
            true => config.replace("\nregion = { size = \"64MiB\" }", &with_segment),
            false => config,
        };
        std::fs::write(dir.path().join("pasted.toml"), config).expect("a file");
        let pasted = serve(&host, dir.path());
        before(&dir.path().join("control.sock"));
        let vm = machine_with(&guest, dir.path(), "web1", driver, options);
        let scene = Scene { vm, pasted, guest, host, dir };
        scene.up();
        scene
    }

    fn socket(&self) -> String {
        self.dir.path().join("control.sock").display().to_string()
    }

    /// Sets the machine's network device up.
    fn up(&self) {
        // The address that the stand-in's front end makes of slot 5.
        self.guest.run(|| {
            run(&["ip", "link", "set", "vm0", "address", "00:a0:98:00:05:00"]);
            run(&["ip", "addr", "add", &format!("{KERNEL}/24"), "dev", "vm0"]);
            run(&["ip", "addr", "add", &format!("{KERNEL_V6}/64"), "dev", "vm0", "nodad"]);
            run(&["ip", "link", "set", "vm0", "up"]);
        });
    }

    /// A server in the machine, on its kernel's sockets, that sends back what it gets.
    fn http(&self, more: &[&str]) -> Process {
        let mut command = self.guest.command(built("examples/http"));
        command.args(["--interface", "vm0", "--inline"]).args(more);
        Process::spawn("http", &mut command)
    }

    fn ping(&self, count: u32) {
        let count = count.to_string();
        wait::until("the machine's kernel answers", || {
            let args = ["-c", &count, "-i", "0.01", "-W", "1", "-q", KERNEL];
            let output = self.host.command("ping").args(args).output().expect("ping runs");
            output.status.success().then_some(())
        });
    }

    fn stop(mut self) -> serde_json::Value {
        self.vm.terminate();
        assert_eq!(self.vm.wait().code(), Some(0), "the machine's exit");
        self.pasted.terminate();
        assert_eq!(self.pasted.wait().code(), Some(0), "pasted's exit");
        let stats = std::fs::read(self.dir.path().join("stats.json")).expect("statistics");
        let stats: serde_json::Value = serde_json::from_slice(&stats).expect("JSON");
        let guest = stats["guests"][0].clone();
        let counter = |name: &str| guest["counters"][name].as_u64().unwrap_or_default();
        let held = counter("pool.free") + counter("pool.port") + counter("pool.claimed");
        assert_eq!(held, counter("pool.buffers"), "buffers are missing");
        guest
    }
}

fn serve(host: &Namespace, dir: &Path) -> Process {
    let mut command = host.command(built("pasted"));
    command.args(["run", "--config"]).arg(dir.join("pasted.toml"));
    let mut pasted = Process::spawn("pasted", &mut command);
    pasted.wait_output("serving");
    pasted
}

fn machine(guest: &Namespace, dir: &Path, options: &str) -> Process {
    machine_as(guest, dir, "web1", options)
}

fn machine_as(guest: &Namespace, dir: &Path, name: &str, options: &str) -> Process {
    machine_with(guest, dir, name, &[], options)
}

fn machine_with(
    guest: &Namespace,
    dir: &Path,
    name: &str,
    driver: &[&str],
    options: &str,
) -> Process {
    let socket = dir.join("control.sock");
    let (options, region) = match options.strip_suffix(WITH_REGION) {
        Some(options) => (options, true),
        None => (options, false),
    };
    let option = format!("5,virtio-net,paste=ix0,socket={}{options}", socket.display());
    let mut command = guest.command(vm_program());
    command.current_dir(dir).args(driver).args(["vm0", name, &option]);
    if region {
        // Left there by the machine before.
        let _ = std::fs::create_dir(dir.join("vmm.io"));
        command.arg(format!("6,paste-region,socket={}", socket.display()));
    }
    let mut vm = Process::spawn("vm", &mut command);
    vm.wait_output("running");
    vm
}

/// Behind the options of a machine's network device: it has one that shows the region.
const WITH_REGION: &str = " and a region";

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("it runs");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A transfer between the kernels, over the plain path, each way, byte by byte.
fn transfer(scene: &Scene, to: &str, bytes: usize) {
    let listener = scene.guest.run(|| std::net::TcpListener::bind((to, 80)).expect("a port"));
    let data: Vec<u8> = (0..bytes).map(|i| (i * 31 + i / 257) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut received = vec![0; bytes];
            stream.read_exact(&mut received).expect("all of it");
            stream.write_all(&received).expect("and back");
        });
        let mut stream = scene.host.run(|| client::connect(to, 80).expect("a connection"));
        let mut writer = stream.try_clone().expect("a second handle");
        let all = &data;
        scope.spawn(move || writer.write_all(all).expect("it is taken"));
        let mut back = vec![0; bytes];
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        stream.read_exact(&mut back).expect("all of it");
        assert!(back == data, "bytes differ");
    });
}

#[test]
fn a_machine_that_nobody_configured_has_its_network_by_one_line() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Program("ping"), Need::Built("pasted"));
    let scene = Scene::start("", "");
    scene.ping(50);
    transfer(&scene, KERNEL, 20_000_000);
    let guest = scene.stop();
    assert_eq!(guest["name"], "web1");
    assert_eq!(guest["counters"]["worker.plain_out_spoofed"], 0, "its address was known");
    let (frames, kicks) =
        (&guest["counters"]["device.tx_frames"], &guest["counters"]["worker.turns"]);
    println!("{frames} frames in, {kicks} turns");
}

// Offloads of virtio-net (VIRTIO 1.2 section 5.1.3): of frames to the device, and from it.
const OUT: u64 = 1 << 0 | 1 << 11 | 1 << 12;
const IN: u64 = 1 << 1 | 1 << 7 | 1 << 8;

/// The bytes of a frame, on average, that the machine's kernel has had from the device or
/// given to it.
fn mean_frame(scene: &Scene, direction: &str) -> u64 {
    let number = |what: &str| {
        let path = format!("/sys/class/net/vm0/statistics/{direction}_{what}");
        let said = scene.guest.command("cat").arg(path).output().expect("it runs").stdout;
        String::from_utf8_lossy(&said).trim().parse::<u64>().expect("a number")
    };
    number("bytes") / number("packets").max(1)
}

/// By a TAP device a driver leaves segments and checksums to the host, and takes them from
/// it, as far as it can.
#[test]
fn frames_larger_than_the_mtu_pass_as_far_as_the_driver_has_it() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Program("ping"), Need::Built("pasted"));
    const FRAME: u64 = 1514;
    for (header, accepts) in
        [("12", OUT | IN), ("10", OUT | IN), ("12", OUT), ("12", IN), ("12", 0), ("10", 1)]
    {
        let driver = ["-h", header, "-f", &accepts.to_string()];
        let scene = Scene::start_as("", &driver, "", |_| ());
        let said = scene.vm.output();
        let features = said.split_once("features ").and_then(|(_, rest)| {
            let digits = rest.split_whitespace().next()?.trim_start_matches("0x");
            u64::from_str_radix(digits, 16).ok()
        });
        assert_eq!(features, Some(accepts), "{said}");
        scene.ping(3);
        for address in [KERNEL, KERNEL_V6] {
            transfer(&scene, address, 10_000_000);
        }
        for (direction, offloads) in [("tx", OUT), ("rx", IN)] {
            let mean = mean_frame(&scene, direction);
            let is_large = mean > FRAME;
            assert_eq!(is_large, accepts & offloads == offloads, "{driver:?}: {direction} {mean}");
        }
        let guest = scene.stop();
        let counter = |name: &str| guest["counters"][name].as_u64().unwrap_or_default();
        for wrong in ["worker.plain_out_refused", "device.rx_unfit", "device.tx_oversize"] {
            assert_eq!(counter(wrong), 0, "{driver:?}: {wrong}");
        }
    }
}

/// Machines of one template on one device: the first one opens it for all, or guests of the
/// configuration have it already.
#[test]
fn machines_of_one_template_share_the_port_that_it_names() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Program("ping"), Need::Built("pasted"));
    for with_configured in [false, true] {
        let host = Namespace::new();
        host.tap_with("tap0", &format!("{NEAR}/24"));
        let dir = tempfile::tempdir().expect("a directory");
        let configured = "[[guest]]\nname = \"web9\"\nmac = \"02:00:00:00:00:09\"\nport = \
            \"tap:tap0\"\naddresses = [\"10.7.0.9/24\"]\nsources = [\"10.7.0.209\"]\n\
            region = { size = \"16MiB\" }\n";
        let config = format!(
            "control = \"{}\"\nstats = \"{}\"\n{}\n[[template]]\ninterface = \"ix0\"\n\
             guests_max = 2\naddresses = [\"10.7.0.16/24\"]\nport = \"tap:tap0\"\n\
             sources = [\"10.7.0.128/25\"]\nregion = {{ size = \"16MiB\" }}\n",
            dir.path().join("control.sock").display(),
            dir.path().join("stats.json").display(),
            if with_configured { configured } else { "" },
        );
        std::fs::write(dir.path().join("pasted.toml"), config).expect("a file");
        let mut pasted = serve(&host, dir.path());
        let numbers: &[u8] = if with_configured { &[9, 1, 2] } else { &[1, 2] };
        let mut machines = Vec::new();
        for number in numbers {
            let net = Namespace::new();
            let mac = format!("02:00:00:00:00:{number:02x}");
            let name = format!("web{number}");
            let vm = machine_as(&net, dir.path(), &name, &format!(",mac={mac}"));
            net.run(|| {
                run(&["ip", "link", "set", "vm0", "address", &mac]);
                run(&["ip", "addr", "add", &format!("10.7.0.20{number}/24"), "dev", "vm0"]);
                run(&["ip", "link", "set", "vm0", "up"]);
            });
            machines.push((net, vm));
        }
        // A third one of the template is one too many.
        let socket = dir.path().join("control.sock");
        let option = format!("6,virtio-net,paste=ix0,socket={}", socket.display());
        let mut command = host.command(vm_program());
        command.args(["vm3", "web3", &option]).stderr(Stdio::piped()).stdout(Stdio::null());
        let refused = command.output().expect("it runs");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("guests_max"));
        for number in numbers {
            let address = format!("10.7.0.20{number}");
            for net in std::iter::once(&host).chain(machines.iter().map(|(net, _)| net)) {
                wait::until(&format!("{address} answers"), || {
                    let args = ["-c", "3", "-i", "0.05", "-W", "1", "-q", &address];
                    let output = net.command("ping").args(args).output().expect("ping runs");
                    output.status.success().then_some(())
                });
            }
        }
        for (_, vm) in &mut machines {
            vm.terminate();
            assert_eq!(vm.wait().code(), Some(0), "the machine's exit");
        }
        pasted.terminate();
        assert_eq!(pasted.wait().code(), Some(0), "pasted's exit");
        let stats = std::fs::read(dir.path().join("stats.json")).expect("statistics");
        let stats: serde_json::Value = serde_json::from_slice(&stats).expect("JSON");
        let guests = stats["guests"].as_array().expect("a list");
        let names: Vec<_> = guests.iter().map(|guest| guest["name"].as_str().unwrap()).collect();
        let expected: Vec<_> = numbers.iter().map(|number| format!("web{number}")).collect();
        assert_eq!(names, expected);
        for guest in guests {
            let counter = |name: &str| guest["counters"][name].as_u64().unwrap_or_default();
            let held = counter("pool.free") + counter("pool.port");
            assert_eq!(held, counter("pool.buffers"), "buffers are missing");
            assert!(counter("worker.plain_in") > 0 && counter("worker.plain_out") > 0);
        }
        let port = &stats["shared_ports"][0];
        assert_eq!(port["port"], "tap:tap0");
        assert!(port["counters"]["switch.switched"].as_u64() > Some(0), "{port:#}");
    }
}

/// By AF_XDP the NIC has to be told of each guest that comes: its frames, and who asks for
/// its address.
#[test]
fn a_nic_lets_in_what_is_for_guests_that_came_late() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Program("ping"), Need::Built("pasted"));
    let (host, peer) = (Namespace::new(), Namespace::new());
    host.link("x0", &peer, &format!("{NEAR}/24"));
    let dir = tempfile::tempdir().expect("a directory");
    let config = format!(
        "control = \"{}\"\nstats = \"{}\"\n[[template]]\naddresses = [\"10.7.0.16/24\"]\n\
         port = \"xdp:x0\"\nguests_max = 3\nregion = {{ size = \"16MiB\" }}\n",
        dir.path().join("control.sock").display(),
        dir.path().join("stats.json").display(),
    );
    std::fs::write(dir.path().join("pasted.toml"), config).expect("a file");
    let mut pasted = serve(&host, dir.path());
    let mut machines = Vec::new();
    for number in 1..=3 {
        let net = Namespace::new();
        let options = format!(",mac=02:00:00:00:00:{number:02x}");
        machines.push((machine_as(&net, dir.path(), &format!("web{number}"), &options), net));
    }
    for address in ["10.7.0.16", "10.7.0.17", "10.7.0.18"] {
        wait::until(&format!("{address} answers"), || {
            let args = ["-c", "3", "-i", "0.05", "-W", "1", "-q", address];
            let output = peer.command("ping").args(args).output().expect("ping runs");
            output.status.success().then_some(())
        });
    }
    for (vm, _) in &mut machines {
        vm.terminate();
        assert_eq!(vm.wait().code(), Some(0), "the machine's exit");
    }
    pasted.terminate();
    assert_eq!(pasted.wait().code(), Some(0), "pasted's exit");
}

#[test]
fn an_application_in_it_serves_with_inline_slots() {
    require!(
        Need::Namespaces,
        Need::Program("gcc"),
        Need::Program("ping"),
        Need::Built("pasted"),
        Need::Built("examples/http")
    );
    let scene = Scene::start("", ",mtu=1500");
    scene.ping(3);
    let mut http = scene.http(&[]);
    scene.host.run(|| {
        wait::until("the application listens", || client::connect(STACK, 80).ok());
        let mut stream = client::connect(STACK, 80).expect("a connection");
        for _ in 0..300 {
            let response = client::get(&mut stream, "/").expect("an answer");
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
        }
    });
    // Beside it, the kernel's own network.
    scene.ping(10);
    http.terminate();
    assert_eq!(http.wait().code(), Some(0), "the application's exit");
    let guest = scene.stop();
    assert_eq!(guest["counters"]["channel.refused_channels"], 0);
}

#[test]
fn a_restart_of_the_backend_is_survived() {
    require!(
        Need::Namespaces,
        Need::Program("gcc"),
        Need::Program("ping"),
        Need::Built("pasted"),
        Need::Built("examples/http")
    );
    let mut scene = Scene::start("", "");
    scene.ping(3);
    let mut http = scene.http(&[]);
    let ask = |scene: &Scene| {
        scene.host.run(|| {
            wait::until("the application answers", || {
                let mut stream = client::connect(STACK, 80).ok()?;
                stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
                let response = client::get(&mut stream, "/").ok()?;
                (response.status == 200 && *response.body == *FIXED_BODY).then_some(())
            });
        });
    };
    ask(&scene);
    for crash in [true, false] {
        match crash {
            true => scene.pasted.kill(),
            false => {
                scene.pasted.terminate();
                assert_eq!(scene.pasted.wait().code(), Some(0));
            }
        }
        scene.pasted = serve(&scene.host, scene.dir.path());
        // Neither the machine nor its application does anything for it.
        scene.ping(3);
        ask(&scene);
    }
    http.terminate();
    assert_eq!(http.wait().code(), Some(0), "the application's exit");
    scene.stop();
}

#[test]
fn an_application_in_it_keeps_values_in_the_region() {
    require!(
        Need::Namespaces,
        Need::Program("gcc"),
        Need::Program("ping"),
        Need::Built("pasted"),
        Need::Built("examples/kv")
    );
    let mut scene = Scene::start("", WITH_REGION);
    scene.ping(3);
    let region = scene.dir.path().join("vmm.io/web1.paste");
    let kv = |scene: &Scene| {
        let mut command = scene.guest.command(built("examples/kv"));
        command.args(["--interface", "vm0", "--region"]).arg(&region);
        Process::spawn("kv", &mut command)
    };
    let value = |round: u8| vec![b'a' + round; 5000];
    let check = |scene: &Scene, round: u8| {
        scene.host.run(|| {
            let found = wait::until("the store answers", || {
                Client::connect(STACK, 6379).ok()?.ask(&[b"GET", b"k"]).ok()
            });
            assert_eq!(found, Reply::Bulk(Some(value(round))));
        });
    };
    let mut store = kv(&scene);
    for round in 0..4 {
        scene.host.run(|| {
            let stored = wait::until("the store answers", || {
                Client::connect(STACK, 6379).ok()?.ask(&[b"SET", b"k", &value(round)]).ok()
            });
            assert_eq!(stored, Reply::Simple("OK".to_owned()));
        });
        check(&scene, round);
        match round {
            // The host's process ends, in any way; the machine, and with it its memory.
            0 => {
                scene.pasted.kill();
                scene.pasted = serve(&scene.host, scene.dir.path());
            }
            1 => {
                scene.pasted.terminate();
                assert_eq!(scene.pasted.wait().code(), Some(0));
                scene.pasted = serve(&scene.host, scene.dir.path());
            }
            2 => {
                store.kill();
                scene.vm.kill();
                scene.vm = wait::until("the guest is free", || {
                    let mut vm = Process::spawn(
                        "vm",
                        scene.guest.command(vm_program()).current_dir(scene.dir.path()).args([
                            "vm0",
                            "web1",
                            &format!("5,virtio-net,paste=ix0,socket={}", scene.socket()),
                            &format!("6,paste-region,socket={}", scene.socket()),
                        ]),
                    );
                    wait::until("it begins, or ends", || {
                        (vm.output().contains("running") || !vm.is_alive()).then_some(())
                    });
                    vm.is_alive().then_some(vm)
                });
                scene.up();
                store = kv(&scene);
            }
            _ => {}
        }
        check(&scene, round);
    }
    store.terminate();
    assert_eq!(store.wait().code(), Some(0), "the store's exit");
    let guest = scene.stop();
    let counter = |name: &str| guest["counters"][name].as_u64().unwrap_or_default();
    assert!(counter("flush.commits") > 0 && counter("pool.claimed") > 0, "{guest}");
}

#[test]
fn who_cannot_be_served_is_told_why() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Program("ping"), Need::Built("pasted"));
    let mut scene = Scene::start("", "");
    let try_as = |scene: &Scene, name: &str, option: &str| {
        let mut command = scene.guest.command(vm_program());
        command.args(["vm1", name, option]).stderr(Stdio::piped()).stdout(Stdio::null());
        let output = command.output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let socket = scene.dir.path().join("control.sock");
    let with = |backend: &str| format!("6,virtio-net,{backend},socket={}", socket.display());
    for (name, option, says) in [
        ("web1", with("paste=ix0"), "in use"),
        ("web2", with("paste=ix0"), "guests_max"),
        ("web2", with("paste=ix1"), "no template for interface"),
        ("Web 2", with("paste=ix0"), "plain ASCII"),
        ("WEB2", with("paste=ix0"), "a-z"),
        ("web1", with("paste"), "ifname"),
        ("web1", with("paste=ix0,mtu=x"), "mtu"),
        ("web1", with("paste=ix0,mac=zz"), "mac"),
        ("web1", "6,virtio-net,paste=ix0,socket=/nowhere/x".to_owned(), "is pasted running"),
        ("web1", "6,virtio-net,paste=ix0,socket=relative".to_owned(), "absolute"),
    ] {
        let said = try_as(&scene, name, &option);
        assert!(said.contains(says), "{option}: {said}");
    }
    // The other ways of naming the interface, of a guest that is there already.
    assert!(try_as(&scene, "web1", &with("paste,ifname=ix0")).contains("in use"));
    assert!(try_as(&scene, "other", &with("paste=ix0,guest=web1")).contains("in use"));
    scene.ping(3);
    // Once its machine is gone, another device may have the guest, if it fits.
    scene.vm.terminate();
    scene.vm.wait();
    for (options, says) in [
        (",mtu=9000", "mtu 9000 is more than the guest's 1500"),
        (",mac=02:00:00:00:00:01", "give mac=00:a0:98:00:05:00"),
    ] {
        let said = wait::until("the guest is free", || {
            let said = try_as(&scene, "web1", &with(&format!("paste=ix0{options}")));
            (!said.contains("in use")).then_some(said)
        });
        assert!(said.contains(says), "{said}");
    }
    scene.vm = machine(&scene.guest, scene.dir.path(), "");
    scene.stop();
}

/// A VMM that is none, and what it has been told.
struct Hostile(OwnedFd);

impl Hostile {
    /// Asks for the guest, and gets it.
    fn attach(socket: &Path) -> Hostile {
        let flags = SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let hostile = Hostile(fd.expect("a socket"));
        connect(&hostile.0, &SocketAddrUnix::new(socket).expect("a path")).expect("it listens");
        let mut hello = Hello::new_zeroed();
        hello.name[..4].copy_from_slice(b"web1");
        hello.interface[..3].copy_from_slice(b"ix0");
        hello.mac = [0x00, 0xa0, 0x98, 0, 5, 0];
        hostile.say(Kind::Hello, 0, hello.as_bytes());
        let (kind, body) = hostile.hear().expect("a WELCOME");
        assert_eq!(kind, Kind::Welcome as u8);
        let welcome = Welcome::read_from_bytes(&body).expect("whole");
        assert_eq!(welcome.status.get(), 0, "{}", String::from_utf8_lossy(&welcome.text));
        hostile
    }

    fn say(&self, kind: Kind, count: u16, body: &[u8]) {
        let mut record = vec![0; HEAD_LEN];
        wire::write_head(kind, count, record.first_chunk_mut().expect("room"));
        record.extend(body);
        self.raw(&record);
    }

    fn raw(&self, record: &[u8]) {
        // It may have been cut off by what it said before.
        let _ = send(&self.0, record, SendFlags::NOSIGNAL);
    }

    /// The next record; `None` when it was cut off.
    fn hear(&self) -> Option<(u8, Vec<u8>)> {
        let mut record = vec![0; RECORD_MAX];
        let (_, len) = recv(&self.0, &mut *record, RecvFlags::empty()).unwrap_or_default();
        let record = &record[..len];
        (len > 0).then(|| (record[1], record[HEAD_LEN..].to_vec()))
    }

    fn is_cut_off(&self) -> bool {
        while let Some((kind, _)) = self.hear() {
            assert_ne!(kind, Kind::Welcome as u8);
        }
        true
    }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut body = ((12 + bytes.len()) as u32).to_le_bytes().to_vec();
    body.extend([0; 12]);
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
    body
}

#[test]
fn a_peer_that_breaks_the_protocol_loses_its_link_alone() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Program("ping"), Need::Built("pasted"));
    let scene = Scene::start_after("", "", |socket| {
        let features = |n: u64| n.to_le_bytes();
        // What ends a link.
        type Attack = fn(&Hostile);
        let attacks: [Attack; 6] = [
            |h| h.raw(b"GET / HTTP/1.1"),
            |h| h.say(Kind::Hello, 0, &[0; 128]),
            |h| h.say(Kind::Features, 0, &u64::MAX.to_le_bytes()),
            |h| h.say(Kind::Frames, 2, &frame(&[0; 60])),
            |h| h.say(Kind::Frames, 1, &[0xff; 100]),
            |h| h.raw(&vec![1; RECORD_MAX + 100]),
        ];
        for attack in attacks {
            let hostile = Hostile::attach(socket);
            let start = std::time::Instant::now();
            attack(&hostile);
            assert!(hostile.is_cut_off());
            // At once, and not when something else happens.
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
        // What does not, and comes to nothing: PASTE frames of all kinds, headers that ask for
        // what was never offered, and nobody who reads.
        let hostile = Hostile::attach(socket);
        hostile.say(Kind::Frames, 1, &frame(&[1; 60]));
        hostile.say(Kind::Features, 0, &features(0));
        for kind in 0..=255u8 {
            let mut bytes = [0xff; 300];
            bytes[12..16].copy_from_slice(&[0x88, 0xb5, 1, kind]);
            bytes[16..32].fill(0);
            bytes[18] = kind % 9;
            hostile.say(Kind::Frames, 1, &frame(&bytes));
            let mut odd = frame(&[2; 70]);
            odd[4..16].fill(kind);
            hostile.say(Kind::Frames, 1, &odd);
        }
        let (kind, body) = hostile.hear().expect("the echo");
        assert_eq!((kind, &body[..]), (Kind::Features as u8, &features(0)[..]));
        drop(hostile);
    });
    scene.ping(20);
    scene.stop();
}

#[test]
fn random_interleavings_find_no_race() {
    require!(Need::Program("gcc"));
    let program = build("interleave", true);
    let output = Command::new(program).args(["10000", "1"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("WARNING"), "{said}");
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

/// For FreeBSD 14 and 15, with every warning an error, and linked: nothing is missing of
/// its C library.
#[test]
fn it_compiles_for_freebsd() {
    let tools = Command::new(root().join("tests/cross-tools")).arg("c").output();
    let tools = tools.expect("the script runs");
    if tools.status.code() == Some(75) && std::env::var_os("PASTED_REQUIRE_ALL").is_none() {
        eprintln!("skipped: {}", String::from_utf8_lossy(&tools.stderr));
        return;
    }
    assert!(tools.status.success(), "{}", String::from_utf8_lossy(&tools.stderr));
    let cc = String::from_utf8(tools.stdout).expect("a path");
    let dir = tempfile::tempdir().expect("a directory");
    for target in ["x86_64-freebsd.14.0", "x86_64-freebsd.15.0", "aarch64-freebsd.15.0"] {
        let mut command = Command::new(cc.trim());
        command.current_dir(root()).args(["-target", target, "-std=gnu17", "-O2"]);
        command.args(["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wstrict-prototypes"]);
        command.args(["-Werror", "-Itests/bhyve/include", "-Itests/bhyve/freebsd"]);
        command.args(["-Ibackend/bhyve", "backend/bhyve/net_backend_paste.c"]);
        command.arg("backend/bhyve/pci_paste_region.c");
        command.args(["tests/bhyve/freebsd/link.c", "-lpthread", "-o"]);
        command.arg(dir.path().join(target));
        let output = command.output().expect("the compiler runs");
        assert!(output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The header in C describes the same bytes as the module in Rust.
#[test]
fn both_sides_have_the_same_layouts() {
    require!(Need::Program("gcc"));
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("layout.c");
    let text = r#"
#include <stddef.h>
#include <stdio.h>
#include "paste_wire.h"
#define AT(type, field) printf(#type "." #field " %zu\n", offsetof(struct type, field))
int main(void) {
    AT(paste_head, version); AT(paste_head, kind); AT(paste_head, count);
    AT(paste_head, reserved);
    AT(paste_hello, features); AT(paste_hello, mtu); AT(paste_hello, mac);
    AT(paste_hello, name); AT(paste_hello, interface); AT(paste_hello, has_driver);
    AT(paste_welcome, features); AT(paste_welcome, status); AT(paste_welcome, mtu);
    AT(paste_welcome, mac); AT(paste_welcome, text);
    AT(paste_region, len); AT(paste_region, name); AT(paste_region, reserved);
    AT(paste_segment, len); AT(paste_segment, guest_offset); AT(paste_segment, guest_len);
    AT(paste_segment, status); AT(paste_segment, durable); AT(paste_segment, text);
    AT(paste_flushed, number); AT(paste_flushed, outcome); AT(paste_flushed, reserved);
    printf("sizes %zu %zu %zu %zu %zu %zu\n", sizeof(struct paste_head),
        sizeof(struct paste_hello), sizeof(struct paste_welcome), sizeof(struct paste_region),
        sizeof(struct paste_segment), sizeof(struct paste_flushed));
    printf("numbers %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d\n", PASTE_WIRE_VERSION,
        PASTE_HELLO, PASTE_WELCOME, PASTE_FRAMES, PASTE_FEATURES, PASTE_REGION, PASTE_SEGMENT,
        PASTE_FLUSH, PASTE_FLUSHED, PASTE_RECORD_MAX, PASTE_FRAME_MIN, PASTE_FRAME_MAX,
        PASTE_ALIGN, PASTE_STATUS_BUSY, PASTE_STATUS_REFUSED);
    return 0;
}
"#;
    std::fs::write(&source, text).expect("a file");
    let program = dir.path().join("layout");
    let mut gcc = Command::new("gcc");
    gcc.arg("-I").arg(root().join("backend/bhyve")).arg(&source).arg("-o").arg(&program);
    let built = gcc.output().expect("gcc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = Command::new(&program).output().expect("it runs").stdout;
    macro_rules! at {
        ($type:ty, $name:literal: $($field:ident),+) => {
            [$(format!(concat!($name, ".{} {}"), stringify!($field), std::mem::offset_of!($type, $field))),+].join("\n")
        };
    }
    let expected = [
        "paste_head.version 0\npaste_head.kind 1\npaste_head.count 2\npaste_head.reserved 4".into(),
        at!(Hello, "paste_hello": features, mtu, mac, name, interface, has_driver),
        at!(Welcome, "paste_welcome": features, status, mtu, mac, text),
        at!(Region, "paste_region": len, name, reserved),
        at!(Segment, "paste_segment": len, guest_offset, guest_len, status, durable, text),
        at!(Flushed, "paste_flushed": number, outcome, reserved),
        format!(
            "sizes {HEAD_LEN} {} {} {} {} {}",
            size_of::<Hello>(),
            size_of::<Welcome>(),
            size_of::<Region>(),
            size_of::<Segment>(),
            size_of::<Flushed>()
        ),
        format!(
            "numbers {} {} {} {} {} {} {} {} {} {RECORD_MAX} {} {} {} {} {}\n",
            wire::VERSION,
            Kind::Hello as u8,
            Kind::Welcome as u8,
            Kind::Frames as u8,
            Kind::Features as u8,
            Kind::Region as u8,
            Kind::Segment as u8,
            Kind::Flush as u8,
            Kind::Flushed as u8,
            wire::FRAME_MIN,
            wire::FRAME_MAX,
            wire::ALIGN,
            wire::STATUS_BUSY,
            wire::STATUS_REFUSED
        ),
    ]
    .join("\n");
    assert_eq!(String::from_utf8_lossy(&said), expected);
}
