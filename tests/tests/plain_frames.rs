//! An ordinary virtio-net driver on the same device: DPDK's testpmd with its
//! `net_virtio_user` port, a front end that was not written by us.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use paste_tests::backend::{Backend, Guest};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::sim::pattern;
use paste_tests::{client, wait};
use tempfile::TempDir;

/// The peer behind the device, which is not the stack port.
const PEER: &str = "10.7.0.77";
/// Bytes of the transfer, in each direction.
const LEN: u64 = 8 << 20;

/// A backend with one guest, whose device testpmd drives.
struct Scene {
    testpmd: Process,
    backend: Backend,
    guest: Guest,
    /// Where the TAP device's other end is.
    net: Namespace,
    _runtime: TempDir,
}

/// testpmd in the namespace, with the guest's device as port 0.
fn testpmd(net: &Namespace, runtime: &Path, socket: &Path, eal: &[&str], app: &[&str]) -> Process {
    let device =
        format!("--vdev=net_virtio_user0,path={},mac=52:54:00:00:07:0b,queues=1", socket.display());
    let mut command = net.command("dpdk-testpmd");
    command
        .env("RUNTIME_DIRECTORY", runtime)
        // One core is enough: the first thread only waits for its input.
        .args(["--lcores=0@0,1@0", "--no-huge", "--no-pci", "-m", "128", "--no-telemetry"])
        .arg(device)
        .args(eal)
        .args(["--", "--auto-start", "--no-mlockall", "--total-num-mbufs=4096"])
        .args(app);
    Process::spawn("testpmd", &mut command)
}

impl Scene {
    /// testpmd runs in `far`, or beside the backend.
    fn start(far: Option<&Namespace>, eal: &[&str], app: &[&str]) -> Scene {
        let guest = Guest::number(1);
        let more = format!("{}sources = [\"{PEER}\"]\n", guest.more);
        Scene::start_as(Guest { more, ..guest }, far, eal, app)
    }

    fn start_as(guest: Guest, far: Option<&Namespace>, eal: &[&str], app: &[&str]) -> Scene {
        let net = Namespace::new();
        net.tap_with(&guest.tap, &guest.near_address());
        let backend = Backend::start(&net, std::slice::from_ref(&guest));
        let runtime = tempfile::tempdir().expect("a directory can be made");
        let socket = backend.socket(&guest);
        let mut testpmd = testpmd(far.unwrap_or(&net), runtime.path(), &socket, eal, app);
        let attached = "front end attached";
        wait::until("testpmd attaches", || {
            assert!(testpmd.is_alive(), "testpmd ended");
            backend.process.output().contains(attached).then_some(())
        });
        Scene { testpmd, backend, guest, net, _runtime: runtime }
    }

    fn ping(&self, address: &str, size: &str) {
        let mut command = self.net.command("ping");
        command.args(["-c5", "-i0.3", "-W10", "-p", "c0ffee", "-s", size, address]);
        let output = command.output().expect("ping runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("5 received, 0% packet loss"), "{said}");
        assert!(!said.contains("wrong data byte"), "{said}");
    }
}

#[test]
fn an_ordinary_driver_answers_pings_beside_the_stack_port() {
    require!(
        Need::Namespaces,
        Need::Built("pasted"),
        Need::Program("dpdk-testpmd"),
        Need::Program("ping"),
    );
    let _turn = wait::turn();
    let mut scene = Scene::start(None, &[], &["--forward-mode=icmpecho"]);
    wait::until("testpmd forwards", || {
        let mut command = scene.net.command("ping");
        let output = command.args(["-c1", "-W1", PEER]).output().expect("ping runs");
        output.status.success().then_some(())
    });
    for size in ["0", "56", "1472"] {
        scene.ping(PEER, size);
        // The stack port's own address is answered by the stack.
        scene.ping(scene.guest.ip(), size);
    }
    scene.testpmd.terminate();
    scene.testpmd.wait();
    let stats = scene.backend.stop();
    let count = |counter| stats.get(&scene.guest, counter);
    assert!(count("worker.plain_in") >= 15 && count("worker.plain_out") >= 15);
    assert_eq!(count("stack.echo_replies_out"), 15);
    assert_eq!(count("channel.frames_in"), 0);
    stats.assert_no_buffer_missing(&scene.guest);
}

#[test]
fn a_driver_with_an_address_that_is_not_the_guests_is_not_heard() {
    require!(
        Need::Namespaces,
        Need::Built("pasted"),
        Need::Program("dpdk-testpmd"),
        Need::Program("ping"),
    );
    let _turn = wait::turn();
    let app = ["--forward-mode=icmpecho"];
    let mut scene = Scene::start_as(Guest::number(1), None, &[], &app);
    wait::until("the backend refuses what testpmd answers", || {
        let mut command = scene.net.command("ping");
        let output = command.args(["-c1", "-W1", PEER]).output().expect("ping runs");
        assert!(!output.status.success(), "an answer came");
        scene
            .backend
            .process
            .output()
            .contains("a frame of the guest's kernel was refused")
            .then_some(())
    });
    // It is told what to do, and the stack port is not concerned.
    let advice =
        format!("its source {PEER} is not the guest's: if its kernel is to have it, add it");
    assert!(scene.backend.process.output().contains(&advice), "{}", scene.backend.process.output());
    scene.ping(scene.guest.ip(), "56");
    scene.testpmd.terminate();
    scene.testpmd.wait();
    let stats = scene.backend.stop();
    assert!(stats.get(&scene.guest, "worker.plain_out_spoofed") > 0);
    assert_eq!(stats.get(&scene.guest, "worker.plain_out"), 0);
    stats.assert_no_buffer_missing(&scene.guest);
}

#[test]
fn a_kernels_tcp_crosses_the_device_byte_for_byte() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Program("dpdk-testpmd"));
    let _turn = wait::turn();
    // testpmd carries frames between our device and a TAP device of its own,
    // behind which another kernel's TCP is.
    let far = Namespace::new();
    // Its address is the guest's: what is sent there has to reach that kernel.
    let device = format!("--vdev=net_tap0,iface=far0,mac={}", Guest::number(1).mac);
    let mut scene = Scene::start(Some(&far), &[&device], &["--forward-mode=io"]);
    wait::until("testpmd makes its device", || {
        let shown = far.command("ip").args(["link", "show", "far0"]).output().expect("ip runs");
        shown.status.success().then_some(())
    });
    far.ip(&format!("address add {PEER}/24 dev far0"));
    far.ip("link set dev far0 up");

    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            far.run(|| {
                let listener = TcpListener::bind((PEER, 5001)).expect("a port");
                // It must not wait for a client that failed.
                listener.set_nonblocking(true).expect("a listener");
                let (stream, _) = wait::until("a connection", || listener.accept().ok());
                stream.set_nonblocking(false).expect("a stream");
                exchange(stream, 2, 1);
            });
        });
        scene.net.run(|| {
            let stream = wait::until("the far kernel accepts", || {
                assert!(!server.is_finished(), "the server ended");
                client::connect(PEER, 5001).ok()
            });
            exchange(stream, 1, 2);
        });
    });
    scene.testpmd.terminate();
    scene.testpmd.wait();
    let stats = scene.backend.stop();
    let count = |counter| stats.get(&scene.guest, counter);
    assert!(count("device.tx_bytes") > LEN && count("device.rx_bytes") > LEN);
    stats.assert_no_buffer_missing(&scene.guest);
}

/// Sends one stream of bytes and expects another, at the same time.
fn exchange(stream: TcpStream, sends: u64, expects: u64) {
    stream.set_read_timeout(Some(wait::LIMIT)).expect("a timeout");
    stream.set_write_timeout(Some(wait::LIMIT)).expect("a timeout");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bytes: Vec<u8> = (0..LEN).map(|at| pattern(sends, at)).collect();
            (&stream).write_all(&bytes).expect("all of it goes");
        });
        let mut bytes = vec![0; LEN as usize];
        (&stream).read_exact(&mut bytes).expect("all of it comes");
        let wrong = (0..LEN).find(|&at| bytes[at as usize] != pattern(expects, at));
        assert_eq!(wrong, None, "the first wrong byte");
    });
}
