//! Several applications in one machine, each with its channel, beside the kernel's own
//! network: they serve wrk and redis-benchmark from outside, and the end of one is no
//! business of the others.

#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::time::Duration;

use paste_tests::backend::{Backend, FIXED_BODY, Guest};
use paste_tests::c::compile;
use paste_tests::client;
use paste_tests::netns::Namespace;
use paste_tests::require::Need;
use paste_tests::resp::{Client, Reply};
use paste_tests::store::redis_benchmark;
use paste_tests::vm::{Nic, Setup, Vm};
use paste_tests::{require, wait};

const NEEDS: [Need; 8] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Built("examples/kv"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("wrk"),
    Need::Program("redis-benchmark"),
    Need::GuestKernel,
];

/// The kernel's own address, and the clients'.
const OWN: &str = "10.7.0.77";
const NEAR: &str = "10.7.0.1";

struct Scene {
    vm: Vm,
    backend: Backend,
    guest: Guest,
    net: Namespace,
}

impl Scene {
    fn start() -> Scene {
        let mut scene = Scene::boot(Vec::new());
        scene.run("http", "--region /dev/dax0.0");
        scene.run("kv", "--region /dev/dax0.0 --channel 1");
        scene.run("http", "--region /dev/dax0.0 --channel 2 --port 8080");
        scene.run("http", "--inline --channel 3 --port 8081");
        scene
    }

    /// The machine, with its own network and further programs.
    fn boot(files: Vec<PathBuf>) -> Scene {
        let net = Namespace::new();
        let dir = tempfile::tempdir().expect("a directory");
        let region = dir.path().join("region");
        let guest = Guest {
            more: format!(
                "sources = [\"{OWN}\"]\nregion = {{ size = \"32MiB\", path = \"{}\" }}\n",
                region.display()
            ),
            ..Guest::number(1)
        };
        net.tap_with(&guest.tap, &guest.near_address());
        let backend = Backend::start_in(dir, &net, std::slice::from_ref(&guest));
        let mut vm = Vm::boot(&Setup {
            programs: vec!["examples/http", "examples/kv"],
            files,
            regions: vec![region],
            nics: vec![Nic::of(&backend, &guest)],
            ..Setup::default()
        });
        vm.run("until (: </dev/dax0.0) 2>/dev/null; do sleep 0.1; done");
        vm.run(&format!("ip link set eth0 up; ip address add {OWN}/24 dev eth0"));
        Scene { vm, backend, guest, net }
    }

    /// Starts an application, whose number is then in the file of its first port's name.
    fn run(&mut self, name: &str, arguments: &str) {
        let file = arguments.split_whitespace().last().expect("an argument").replace('/', "-");
        self.vm.run(&format!(
            "{name} --interface eth0 {arguments} >/dev/ttyS0 2>&1 & echo $! >/tmp/{file}"
        ));
    }

    /// Asks a server until it answers.
    fn check_server(&self, port: u16) {
        let ip = self.guest.ip();
        self.net.run(|| {
            let response = wait::until(&format!("port {port} answers"), || {
                client::get(&mut client::connect(ip, port).ok()?, "/").ok()
            });
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY), "port {port}");
        });
    }

    fn store(&self) -> Client {
        let ip = self.guest.ip();
        wait::until("the store listens", || Client::connect(ip, 6379).ok())
    }
}

#[test]
fn applications_of_one_machine_serve_at_the_same_time_and_end_alone() {
    for need in NEEDS {
        require!(need);
    }
    let mut scene = Scene::start();
    let ports = [80, 8080, 8081];
    ports.iter().for_each(|&port| scene.check_server(port));
    load(&scene);
    scene.vm.run(&format!("ping -c 2 -W 20 {NEAR}"));

    // One is killed while it serves; the others do not notice.
    let ip = scene.guest.ip().to_owned();
    let mut open = scene.net.run(|| client::connect(&ip, 8080).expect("a connection"));
    assert_eq!(client::get(&mut open, "/").expect("an answer").body, FIXED_BODY);
    let mut store = scene.net.run(|| scene.store());
    assert_eq!(store.ask(&[b"SET", b"k", b"v"]).expect("an answer"), ok());
    scene.vm.run("kill -9 $(cat /tmp/8080)");
    scene.check_server(80);
    scene.check_server(8081);
    assert_eq!(store.ask(&[b"GET", b"k"]).expect("an answer"), Reply::Bulk(Some(b"v".to_vec())));
    // Whoever comes after it on its channel ends its flows, and serves.
    scene.run("http", "--region /dev/dax0.0 --channel 2 --port 8080");
    scene.check_server(8080);
    assert!(client::get(&mut open, "/").is_err());
    // So does the store, which has what it was told.
    scene.vm.run("kill -9 $(cat /tmp/1)");
    scene.run("kv", "--region /dev/dax0.0 --channel 1");
    let found = scene.net.run(|| {
        // Until it is there, connections are still those of the one that was killed.
        wait::until("the store answers", || scene.store().ask(&[b"GET", b"k"]).ok())
    });
    assert_eq!(found, Reply::Bulk(Some(b"v".to_vec())));
    assert!(store.ask(&[b"GET", b"k"]).is_err());
    ports.iter().for_each(|&port| scene.check_server(port));
    // Whoever comes on another channel serves there too: one that does not answer any more
    // is given up, its flows are reset and its port is free. Those that are idle answer.
    let mut open = scene.net.run(|| client::connect(&ip, 8081).expect("a connection"));
    assert_eq!(client::get(&mut open, "/").expect("an answer").body, FIXED_BODY);
    scene.vm.run("kill -9 $(cat /tmp/8081)");
    wait::until_for(Duration::from_secs(120), "the end of one is noticed", || {
        scene.backend.process.output().contains("the application no longer answers").then_some(())
    });
    assert!(client::get(&mut open, "/").is_err());
    scene.run("http", "--inline --channel 4 --port 8081");
    ports.iter().for_each(|&port| scene.check_server(port));
    scene.check_server(8081);

    scene.vm.kill();
    let stats = scene.backend.stop();
    let of = |counter: &str| stats.get(&scene.guest, counter);
    assert_eq!((of("channel.opened"), of("channel.gone")), (7, 1));
    assert!(of("channel.probes_out") > 6, "the others were asked too");
    for wrong in ["malformed", "foreign_buffer", "bad_range", "refused_channels"] {
        assert_eq!(of(&format!("channel.{wrong}")), 0, "{wrong}");
    }
    assert_eq!(of("worker.ring_errors"), 0);
    assert_eq!(of("pool.free") + of("pool.port") + of("pool.claimed"), of("pool.buffers"));
}

#[test]
fn a_program_in_c_serves_from_a_machine() {
    for need in NEEDS {
        require!(need);
    }
    require!(Need::Built("libpasteguest.a"), Need::Program("cc"));
    const BODY: &[u8] = b"Served by a C loop\n";
    let built = tempfile::tempdir().expect("a directory");
    // It has nothing in the machine that it could be linked with.
    let source = "guest-driver/examples/c/server.c";
    let program = compile(source, "libpasteguest.a", &["-static"], built.path());
    let mut scene = Scene::boot(vec![program]);
    scene.vm.run("program eth0 /dev/dax0.0 80 >/tmp/program 2>&1 & echo $! >/tmp/number");
    let ip = scene.guest.ip().to_owned();
    let mut stream = scene.net.run(|| {
        wait::until("the program answers", || {
            let mut stream = client::connect(&ip, 80).ok()?;
            let response = client::get(&mut stream, "/").ok()?;
            (response.body == BODY).then_some(stream)
        })
    });
    for _ in 0..50 {
        assert_eq!(client::get(&mut stream, "/").expect("an answer").body, BODY);
    }
    drop(stream);
    scene.vm.run("kill -TERM $(cat /tmp/number)");
    scene.vm.run("while kill -0 $(cat /tmp/number) 2>/dev/null; do sleep 0.1; done");
    let said = scene.vm.run("cat /tmp/program");
    assert!(said.contains("51 requests"), "{said}");
    scene.vm.kill();
    scene.backend.stop();
}

/// wrk and redis-benchmark, at the same time.
fn load(scene: &Scene) {
    std::thread::scope(|scope| {
        let benchmark = scope.spawn(|| {
            let more = ["-c", "16", "-r", "500", "-n", "2000"];
            redis_benchmark(&scene.net, scene.guest.ip(), &["SET", "GET"], &more);
        });
        let mut command = scene.net.command("wrk");
        command.args(["-t1", "-c16", "-d3s", &format!("http://{}/", scene.guest.ip())]);
        let output = command.output().expect("wrk runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
        let requests = said.lines().find_map(|line| line.trim().split_once(" requests in "));
        let requests = requests.and_then(|(count, _)| count.parse::<u64>().ok());
        assert!(requests.is_some_and(|count| count > 100), "{said}");
        benchmark.join().expect("it ran");
    });
}

fn ok() -> Reply {
    Reply::Simple("OK".to_owned())
}
