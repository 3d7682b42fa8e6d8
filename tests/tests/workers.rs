//! Many guests on few workers: all are served, whatever one of them does, and each
//! worker runs where it is to run.

#![cfg(target_os = "linux")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use paste_tests::backend::{self, Backend, FIXED_BODY, Guest, wait_serving};
use paste_tests::client;
use paste_tests::frontend::RawGuest;
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::wait;

const NEEDS: [Need; 3] = [Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http")];

/// A backend with guests that serve, each on a TAP device in a network of its own.
struct Scene {
    applications: Vec<Process>,
    backend: Backend,
    guests: Vec<Guest>,
    net: Namespace,
}

impl Scene {
    /// So many guests, with these lines before them; the first `silent` have nobody who
    /// serves.
    fn start(count: u8, silent: usize, head: &str) -> Scene {
        let net = Namespace::new();
        let mut guests: Vec<_> = (1..=count).map(Guest::apart).collect();
        for guest in &mut guests {
            guest.more = "region = { size = \"4MiB\" }\nflows_max = 64\n".to_owned();
            net.tap_with(&guest.tap, &guest.near_address());
        }
        let backend = Backend::start_with(&net, head, &guests);
        let start = |guest| backend.example(&net, guest, "http", &[]);
        let applications = guests[silent..].iter().map(start).collect();
        let scene = Scene { applications, backend, guests, net };
        scene.guests[silent..].iter().for_each(|guest| wait_serving(&scene.net, guest));
        scene
    }

    /// Sends requests to a guest on one connection. Returns how long the slowest took.
    fn ask(&self, guest: &Guest, count: u32) -> Duration {
        self.net.run(|| {
            let mut stream = client::connect(guest.ip(), 80).expect("a connection");
            let mut slowest = Duration::ZERO;
            for _ in 0..count {
                let start = Instant::now();
                let response = client::get(&mut stream, "/").expect("an answer");
                assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
                slowest = slowest.max(start.elapsed());
            }
            slowest
        })
    }

    fn stop(mut self) -> (backend::Stats, Vec<Guest>) {
        for application in &mut self.applications {
            application.terminate();
            assert_eq!(application.wait().code(), Some(0));
        }
        let stats = self.backend.stop();
        self.guests.iter().for_each(|guest| stats.assert_no_buffer_missing(guest));
        (stats, self.guests)
    }
}

#[test]
fn all_guests_are_served_by_however_many_workers() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    for (guests, workers) in [(1, 1), (2, 1), (2, 2), (16, 1), (16, 2)] {
        let scene = Scene::start(guests, 0, &format!("workers = {workers}"));
        std::thread::scope(|scope| {
            for guest in &scene.guests {
                scope.spawn(|| scene.ask(guest, 100));
            }
        });
        let (stats, guests) = scene.stop();
        for guest in &guests {
            assert!(stats.get(guest, "channel.data_out") >= 100, "{}", guest.name);
        }
        let served = stats.workers("lost");
        assert_eq!(served.len(), workers);
        for (serves, lost) in &served {
            assert_eq!((serves.len(), *lost), (guests.len() / workers, 0), "{served:?}");
        }
    }
}

#[test]
fn guests_have_the_worker_that_they_are_given_and_workers_their_cpu() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let net = Namespace::new();
    let mut guests: Vec<_> = (1..=3).map(Guest::apart).collect();
    for guest in &mut guests {
        guest.more.push_str("worker = 1\n");
        net.tap(&guest.tap);
    }
    guests[2].more = "region = { size = \"16MiB\" }\n".to_owned();
    let backend = Backend::start_with(&net, "workers = 2\ncpus = [1, 0]", &guests);
    for (name, cpu) in [("worker-0", "1"), ("worker-1", "0")] {
        assert_eq!(allowed(backend.process.id(), name), cpu);
    }
    let stats = backend.stop();
    let serves: Vec<_> = stats.workers("rounds").into_iter().map(|(serves, _)| serves).collect();
    assert_eq!(serves, [vec!["web3"], vec!["web1", "web2"]]);
}

/// The CPUs that a thread of a process may run on.
fn allowed(process: u32, thread: &str) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process lives");
    let statuses = tasks.map(|task| {
        let status = task.expect("a thread").path().join("status");
        std::fs::read_to_string(status).expect("the thread lives")
    });
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("the kernel tells").trim().to_owned()
    };
    let status = statuses.into_iter().find(|status| field(status, "Name:") == thread);
    field(&status.expect("there is such a thread"), "Cpus_allowed_list:")
}

#[test]
fn a_cpu_that_there_is_not_is_named() {
    require!(NEEDS[0], NEEDS[1]);
    let net = Namespace::new();
    let guest = Guest::apart(1);
    net.tap(&guest.tap);
    let dir = tempfile::tempdir().expect("a directory");
    let config = backend::write_config_with(dir.path(), "cpus = [1023]", &[guest]);
    let output = backend::run_command(&net, &config).output().expect("pasted runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("worker 0: CPU 1023 is not to be had ("), "{said}");
    assert!(backend::sockets_in(dir.path()).is_empty());
}

#[test]
fn one_that_kicks_like_mad_and_dies_harms_nobody_on_its_worker() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    let scene = Scene::start(4, 3, "workers = 1");
    let honest = &scene.guests[3];
    scene.ask(honest, 100);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = wait::Ending(&over);
        for hostile in &scene.guests[..3] {
            let socket = scene.backend.socket(hostile);
            let over = &over;
            scope.spawn(move || {
                // Dies every now and then, as abruptly as it gets.
                while !over.load(Ordering::Relaxed) {
                    let guest = RawGuest::attach_soon(&socket);
                    for _ in 0..20_000 {
                        guest.kick();
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        let slowest = scene.ask(honest, 500);
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    });
    let (stats, guests) = scene.stop();
    for hostile in &guests[..3] {
        assert!(stats.get(hostile, "worker.kicks") > 100);
    }
    assert_eq!(stats.get(&guests[3], "device.sessions"), 1, "the honest one noticed");
}

#[test]
fn without_descriptors_guests_are_served_on() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let scene = Scene::start(3, 1, "workers = 1");
    let process = rustix::process::Pid::from_raw(scene.backend.process.id() as i32);
    // As many as there are, so that there will be none for watching others.
    let limit = |current| {
        let limit = rustix::process::Rlimit { current: Some(current), maximum: Some(4096) };
        let resource = rustix::process::Resource::Nofile;
        rustix::process::prlimit(process, resource, limit).expect("the limit is set");
    };
    limit(8);
    // One goes, so that others are to be watched.
    let mut applications = scene.applications;
    applications[0].kill();
    let scene = Scene { applications, ..scene };
    let told = "descriptors cannot be watched";
    wait::until("it is told", || scene.backend.process.output().contains(told).then_some(()));
    scene.ask(&scene.guests[2], 200);
    limit(1024);
    let mut applications = scene.applications;
    applications[0] = scene.backend.example(&scene.net, &scene.guests[1], "http", &[]);
    let scene = Scene { applications, ..scene };
    wait_serving(&scene.net, &scene.guests[1]);
    scene.ask(&scene.guests[1], 10);
    scene.stop();
}
