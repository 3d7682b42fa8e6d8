//! What serves at the far end: a guest behind `pasted`, or Linux.

use std::fmt;
use std::path::Path;

use super::path::{self, Settings, tcp_counter};
use super::server::KernelServer;
use crate::backend::{Backend, Guest, Stats};
use crate::client;
use crate::process::Process;
use crate::wait;

/// The guest's device in the bridge at the far end.
const GUEST_DEVICE: &str = "tap1";

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A guest behind `pasted run`.
    Pasted,
    /// The kernel's TCP.
    Linux,
}

impl PeerKind {
    /// Its name in a row.
    pub fn name(self) -> &'static str {
        match self {
            PeerKind::Pasted => "pasted",
            PeerKind::Linux => "linux",
        }
    }
}

impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is served.
#[derive(Clone, Copy, Debug)]
pub enum Service<'a> {
    /// HTTP: the files of a directory.
    Files(&'a Path),
    /// HTTP: a fixed body for every request; bodies of up to so many bytes.
    Fixed(u64),
    /// iperf3.
    Iperf3,
}

impl Service<'_> {
    fn port(self) -> u16 {
        match self {
            Service::Files(_) | Service::Fixed(_) => 80,
            Service::Iperf3 => 5201,
        }
    }
}

/// A server at the far end of a path.
#[derive(Debug)]
pub enum Peer {
    /// A guest.
    Pasted {
        /// The guest application.
        application: Process,
        /// The backend.
        backend: Box<Backend>,
        /// The guest.
        guest: Box<Guest>,
    },
    /// The kernel's TCP.
    Linux {
        /// The server.
        server: KernelService,
        /// Segments that it had sent again before.
        retransmits_before: u64,
    },
}

/// A server over kernel sockets.
#[derive(Debug)]
pub enum KernelService {
    /// HTTP.
    Http(KernelServer),
    /// `iperf3 --server`.
    Iperf3(Process),
}

/// What a peer counted.
#[derive(Debug)]
pub struct PeerCounters {
    /// Segments sent again.
    pub retransmits: u64,
    /// All that `pasted` counted, and for which guest.
    pub stats: Option<(Stats, Guest)>,
}

impl Peer {
    /// Starts a server and waits until it serves.
    pub fn start(
        kind: PeerKind,
        path: &path::Path,
        settings: &Settings,
        what: Service<'_>,
    ) -> Peer {
        let peer = match kind {
            PeerKind::Pasted => start_pasted(path, settings, what),
            PeerKind::Linux => start_linux(path, settings, what),
        };
        path.near.run(|| {
            wait::until(&format!("{kind} listens"), || {
                client::connect(settings.family.far_ip(), what.port()).ok()
            });
        });
        peer
    }

    /// Whether it is still there.
    pub fn is_alive(&mut self) -> bool {
        match self {
            Peer::Pasted { application, backend, .. } => {
                application.is_alive() && backend.process.is_alive()
            }
            Peer::Linux { server: KernelService::Http(_), .. } => true,
            Peer::Linux { server: KernelService::Iperf3(process), .. } => process.is_alive(),
        }
    }

    /// Ends it in good order.
    ///
    /// # Panics
    /// If the guest, the backend or one of its buffers is missing.
    pub fn stop(self, path: &path::Path) -> PeerCounters {
        match self {
            Peer::Pasted { mut application, backend, guest } => {
                application.terminate();
                assert_eq!(application.wait().code(), Some(0), "the application's exit");
                let stats = backend.stop();
                stats.assert_no_buffer_missing(&guest);
                PeerCounters {
                    retransmits: stats.get(&guest, "stack.retransmits"),
                    stats: Some((stats, *guest)),
                }
            }
            Peer::Linux { server, retransmits_before } => {
                drop(server);
                let retransmits = tcp_counter(&path.far, "RetransSegs") - retransmits_before;
                PeerCounters { retransmits, stats: None }
            }
        }
    }
}

fn start_pasted(path: &path::Path, settings: &Settings, what: Service<'_>) -> Peer {
    path.add_far_tap(GUEST_DEVICE, settings.mtu);
    // A buffer holds the longest frame with its headroom.
    let buffer_size = if settings.mtu > 1500 { 16384 } else { 2048 };
    let guest = Guest {
        name: "far".to_owned(),
        tap: GUEST_DEVICE.to_owned(),
        port: None,
        mac: "52:54:00:00:09:02".to_owned(),
        address: settings.family.far().to_owned(),
        address_v6: None,
        shares_addresses: false,
        connects: false,
        more: format!(
            "mtu = {}\nregion = {{ size = \"64MiB\", buffer_size = {buffer_size} }}\n",
            settings.mtu
        ),
    };
    let backend = Backend::start(&path.far, std::slice::from_ref(&guest));
    let (example, arguments) = match what {
        Service::Files(root) => ("http", vec!["--root".to_owned(), root.display().to_string()]),
        Service::Fixed(body_max) => ("http", vec!["--body-max".to_owned(), body_max.to_string()]),
        Service::Iperf3 => ("iperf3", Vec::new()),
    };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let application = backend.example(&path.far, &guest, example, &arguments);
    Peer::Pasted { application, backend: Box::new(backend), guest: Box::new(guest) }
}

fn start_linux(path: &path::Path, settings: &Settings, what: Service<'_>) -> Peer {
    path.give_far_address(settings.family);
    let http = |root| KernelServer::start(&path.far, root).expect("a server can be started");
    let server = match what {
        Service::Files(root) => KernelService::Http(http(Some(root))),
        Service::Fixed(_) => KernelService::Http(http(None)),
        Service::Iperf3 => {
            let mut command = path.far.command("iperf3");
            KernelService::Iperf3(Process::spawn("iperf3", command.arg("--server")))
        }
    };
    Peer::Linux { server, retransmits_before: tcp_counter(&path.far, "RetransSegs") }
}
