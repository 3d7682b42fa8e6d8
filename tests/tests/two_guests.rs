//! Two guests behind a switch, each with a device of its own or both with one that
//! they share: every client reaches both, and neither notices what becomes of the
//! other.

#![cfg(target_os = "linux")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use paste_tests::backend::{Backend, FIXED_BODY, Guest, wait_serving};
use paste_tests::client;
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::wait;

/// Client namespaces behind the switch.
const CLIENTS: usize = 3;
/// Requests of each client to each guest.
const REQUESTS: u32 = 200;

/// A switch with two guests on it, and clients.
struct Scene {
    applications: Vec<Process>,
    backend: Backend,
    guests: [Guest; 2],
    clients: Vec<Namespace>,
    switch: Namespace,
}

/// What the guests are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Devices {
    Apart,
    Shared,
}

impl Scene {
    fn start(devices: Devices) -> Scene {
        let switch = Namespace::new();
        switch.bridge("br0");
        let mut guests = [Guest::number(1), Guest::number(2)];
        if devices == Devices::Shared {
            guests[1].tap = guests[0].tap.clone();
        }
        for guest in &guests[..if devices == Devices::Shared { 1 } else { 2 }] {
            switch.tap(&guest.tap);
            switch.join("br0", &guest.tap);
        }
        let clients: Vec<_> = (0..CLIENTS).map(|_| Namespace::new()).collect();
        for (number, client) in clients.iter().enumerate() {
            let device = format!("link{number}");
            switch.link(&device, client, &format!("10.7.0.{}/24", 101 + number));
            switch.join("br0", &device);
        }
        let backend = Backend::start(&switch, &guests);
        let start = |guest| backend.example(&switch, guest, "http", &[]);
        let applications = guests.iter().map(start).collect();
        let scene = Scene { applications, backend, guests, clients, switch };
        for client in &scene.clients {
            for guest in &scene.guests {
                wait_serving(client, guest);
            }
        }
        scene
    }
}

/// Sends requests on one connection; every answer must be right.
fn ask(guest: &Guest, count: u32) {
    let mut stream = client::connect(guest.ip(), 80).expect("a connection");
    for _ in 0..count {
        let response = client::get(&mut stream, "/").expect("an answer");
        assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
    }
}

#[test]
fn every_client_is_served_by_both_at_the_same_time() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http"));
    serve_every_client(Devices::Apart);
}

#[test]
fn every_client_is_served_by_both_on_one_device() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http"));
    serve_every_client(Devices::Shared);
}

fn serve_every_client(devices: Devices) {
    let mut scene = Scene::start(devices);
    std::thread::scope(|scope| {
        for client in &scene.clients {
            for guest in &scene.guests {
                scope.spawn(|| client.run(|| ask(guest, REQUESTS)));
            }
        }
    });
    for application in &mut scene.applications {
        application.terminate();
        assert_eq!(application.wait().code(), Some(0));
    }
    let stats = scene.backend.stop();
    for guest in &scene.guests {
        stats.assert_no_buffer_missing(guest);
        let requests = CLIENTS as u64 * u64::from(REQUESTS);
        assert!(stats.get(guest, "channel.data_out") >= requests);
    }
    if devices == Devices::Shared {
        let port = format!("tap:{}", scene.guests[0].tap);
        let count = |counter| stats.shared(&port, counter);
        assert!(count("port.rx_frames") > 0 && count("port.tx_frames") > 0);
        assert_eq!((count("dropped.web1"), count("dropped.web2")), (0, 0));
    }
    drop(scene.switch);
}

#[test]
fn one_guest_does_not_notice_the_end_of_the_other() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http"));
    end_one(Devices::Apart);
}

#[test]
fn one_guest_does_not_notice_the_end_of_the_other_on_one_device() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http"));
    end_one(Devices::Shared);
}

fn end_one(devices: Devices) {
    let mut scene = Scene::start(devices);
    let [first, second] = &scene.guests;
    let stop = AtomicBool::new(false);
    let answers = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _ending = wait::Ending(&stop);
        let served = scope.spawn(|| {
            scene.clients[0].run(|| {
                let mut stream = client::connect(second.ip(), 80).expect("a connection");
                while !stop.load(Ordering::Relaxed) {
                    let response = client::get(&mut stream, "/").expect("an answer");
                    assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let more = || {
            let before = answers.load(Ordering::Relaxed);
            wait::until("the other guest answers", || {
                assert!(!served.is_finished(), "the other guest's client ended");
                (answers.load(Ordering::Relaxed) > before + 20).then_some(())
            });
        };
        more();
        for _ in 0..3 {
            scene.applications[0].kill();
            more();
            scene.applications[0] = scene.backend.example(&scene.switch, first, "http", &[]);
            wait_serving(&scene.clients[1], first);
            scene.clients[1].run(|| ask(first, 5));
            more();
        }
    });
    // The same connection lasted through all of it.
    for application in &mut scene.applications {
        application.terminate();
        application.wait();
    }
    let stats = scene.backend.stop();
    assert_eq!(stats.get(second, "device.sessions"), 1);
    assert_eq!(stats.get(first, "device.sessions"), 4);
    for guest in &scene.guests {
        stats.assert_no_buffer_missing(guest);
    }
}
