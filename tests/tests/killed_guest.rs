//! A guest is killed under load, again and again: the backend resets its flows,
//! takes its buffers back, and lets the next one attach.

#![cfg(target_os = "linux")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use paste_tests::backend::{Backend, FIXED_BODY, Server};
use paste_tests::client;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::wait;

/// Times that the guest is killed.
const KILLS: u64 = 20;
/// Connections that are busy when it happens.
const CONNECTIONS: usize = 16;
/// Kilobytes by which the backend may grow over all kills: allocators keep a
/// little, a leaked session or stack would be much more.
const GROWTH_KB_MAX: u64 = 4 * 1024;

/// Keeps a connection busy, and opens another whenever it breaks. An answer
/// that comes must be right.
fn load(ip: &str, stop: &AtomicBool, answers: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = client::connect(ip, 80) else {
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let Ok(response) = client::get(&mut stream, "/") else {
                break;
            };
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn the_backend_outlives_twenty_guests_killed_under_load() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http"));
    let _turn = wait::turn();
    let mut server = Server::start(&[]);
    let backend_pid = server.backend.process.id();
    let stop = AtomicBool::new(false);
    let answers = AtomicU64::new(0);
    let mut private_kb = 0;
    let Server { application, backend, guest, net } = &mut server;
    std::thread::scope(|scope| {
        let _ending = wait::Ending(&stop);
        for _ in 0..CONNECTIONS {
            let (net, ip) = (&*net, guest.ip());
            scope.spawn(|| net.run(|| load(ip, &stop, &answers)));
        }
        let more = |application: &mut Process, backend: &mut Backend| {
            let before = answers.load(Ordering::Relaxed);
            wait::until("the guest answers", || {
                assert!(backend.process.is_alive(), "the backend ended");
                assert!(application.is_alive(), "the guest ended");
                (answers.load(Ordering::Relaxed) > before + 50).then_some(())
            });
        };
        more(application, backend);
        for kill in 0..KILLS {
            application.kill();
            *application = backend.example(net, guest, "http", &[]);
            more(application, backend);
            if kill == 1 {
                private_kb = backend.private_kb();
            }
        }
    });
    assert_eq!(server.backend.process.id(), backend_pid);
    let grown_kb = server.backend.private_kb().saturating_sub(private_kb);
    assert!(grown_kb < GROWTH_KB_MAX, "the backend grew by {grown_kb} kB");

    let guest = server.guest.clone();
    let stats = server.stop();
    stats.assert_no_buffer_missing(&guest);
    assert_eq!(stats.get(&guest, "device.sessions"), KILLS + 1);
    assert_eq!(stats.get(&guest, "channel.opened"), KILLS + 1);
    assert_eq!(stats.get(&guest, "channel.closed"), KILLS + 1);
    assert!(stats.get(&guest, "stack.resets_out") >= KILLS, "flows were reset");
}
