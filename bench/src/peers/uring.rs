//! The second server over kernel sockets: io_uring, one thread, connections accepted and
//! bytes received by requests that go on until they are cancelled, into a ring of buffers
//! that the kernel was given beforehand; one system call for all that a turn has to say,
//! and none where there is nothing. Requests are parsed as the epoll server does it, the
//! response is the same.
//!
//! The ring to the kernel is that of the backend's `sockets:` engine, so that what is
//! compared is what stands on it.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paste_pmem::{Buffers, Region};
use pasted::demo::epoll_server::Served;
use pasted::demo::requests::{Malformed, Requests};
use pasted::engine::kernel::linux::sockets::ring::{
    Completion, Copying, Op, PARTS_MAX, Part, Ring,
};
use pasted::sys::clock::monotonic_ns;
use rustix::net::sockopt;

use crate::device::{self, DeviceError};

/// Connections at once.
const CONNECTIONS_MAX: u32 = 16 * 1024;
/// Buffers that the kernel may fill.
const PROVIDED: u16 = 1024;
/// Bytes of the region that they lie in.
const REGION_SIZE: u64 = 8 << 20;
/// The buffer with the response, behind those.
const RESPONSE: u32 = PROVIDED as u32;
/// The listener, where connections have their index.
const LISTENER: u32 = u32::MAX;
/// How often a server that sleeps looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// Why there is no server, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// No region.
    #[error(transparent)]
    Region(#[from] DeviceError),
    /// No ring.
    #[error("{call}: {source}: io_uring of Linux 6.1 or later must be allowed here")]
    Setup {
        /// The call that failed.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused.
    #[error(transparent)]
    System(#[from] io::Error),
}

struct Connection {
    socket: OwnedFd,
    requests: Requests,
    /// Responses that are not sent yet.
    owed: u64,
    /// A send is under way.
    sends: bool,
    /// The kernel is to say what comes.
    receives: bool,
    /// It ends when nothing is under way any more.
    ends: bool,
}

/// The server.
pub struct UringServer {
    ring: Ring,
    buffers: Buffers,
    _region: Region,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    response_len: u16,
    scratch: Box<[u8]>,
    served: Served,
}

impl UringServer {
    /// A server that answers every request with `response`.
    pub fn new(listener: TcpListener, response: &[u8]) -> Result<UringServer, UringError> {
        let region = device::region("io_uring", REGION_SIZE)?;
        let buffers = region.buffers();
        let ring = Ring::new(CONNECTIONS_MAX, PROVIDED, buffers.clone());
        let mut ring =
            ring.map_err(|error| UringError::Setup { call: error.call, source: error.source })?;
        ring.enable()?;
        for buf in 0..u32::from(PROVIDED) {
            ring.provide(buf, 0);
        }
        ring.publish_provided();
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        buffers.write(RESPONSE, 0, response).map_err(too_long)?;
        ring.accept(listener.as_fd(), LISTENER);
        Ok(UringServer {
            ring,
            scratch: vec![0; buffers.size()].into(),
            buffers,
            _region: region,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            response_len: response.len() as u16,
            served: Served::default(),
        })
    }

    /// Serves until `stop`, polling for `poll` before it sleeps. Returns what it did.
    pub fn run(mut self, poll: Duration, stop: &AtomicBool) -> Result<Served, UringError> {
        let poll_ns = poll.as_nanos() as u64;
        let mut active_ns = monotonic_ns();
        while !stop.load(Ordering::Relaxed) {
            if self.ring.has_work() {
                self.ring.enter()?;
            }
            let now = monotonic_ns();
            if self.turn()? {
                active_ns = now;
            } else if now.saturating_sub(active_ns) >= poll_ns {
                self.ring.enter_and_wait(STOP_INTERVAL)?;
            } else {
                std::hint::spin_loop();
            }
        }
        Ok(self.served)
    }

    /// Takes what is complete, and asks for what follows. Whether there was any.
    fn turn(&mut self) -> Result<bool, UringError> {
        let (mut any, before) = (false, self.served.requests);
        while let Some(completion) = self.ring.take_completion() {
            any = true;
            // A completion asks for three requests at most.
            if !self.ring.has_room(3) {
                self.ring.enter()?;
            }
            match completion.op {
                Op::Accept => self.accepted(completion)?,
                Op::Receive => self.received(&completion),
                Op::Send => self.sent(&completion),
                _ => {}
            }
        }
        self.ring.publish_provided();
        self.served.batches += u64::from(self.served.requests > before);
        Ok(any)
    }

    fn accepted(&mut self, completion: Completion) -> Result<(), UringError> {
        if !completion.more() {
            self.ring.accept(self.listener.as_fd(), LISTENER);
        }
        let Some(socket) = completion.into_socket() else { return Ok(()) };
        if self.connections.len() - self.free.len() >= CONNECTIONS_MAX as usize {
            return Ok(());
        }
        if sockopt::set_tcp_nodelay(&socket, true).is_err() {
            return Ok(());
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() as u32 - 1
        });
        self.ring.receive(socket.as_fd(), index);
        self.connections[index as usize] = Some(Connection {
            socket,
            requests: Requests::default(),
            owed: 0,
            sends: false,
            receives: true,
            ends: false,
        });
        Ok(())
    }

    fn received(&mut self, completion: &Completion) {
        let buf = completion.buffer().and_then(|id| self.ring.take_provided(id));
        let place = self.connections.get_mut(completion.index as usize);
        if let Some(connection) = place.and_then(Option::as_mut) {
            connection.receives = completion.more();
            match (completion.result, buf) {
                (len @ 1.., Some(buf)) if !connection.ends => {
                    let bytes = &mut self.scratch[..len as usize];
                    // The kernel says no more than the buffer holds.
                    let found = match self.buffers.read(buf, 0, bytes) {
                        Ok(()) => connection.requests.take(bytes),
                        Err(_) => Err(Malformed),
                    };
                    self.served.bytes_in += len as u64;
                    match found {
                        Ok(found) => {
                            self.served.requests += found.requests;
                            connection.owed += found.requests;
                            connection.ends = found.last;
                        }
                        Err(Malformed) => connection.ends = true,
                    }
                }
                // There was no buffer, for a moment.
                (code, _) if code == -libc::ENOBUFS => {}
                _ => connection.ends = true,
            }
            if !connection.receives && !connection.ends {
                connection.receives = true;
                self.ring.receive(connection.socket.as_fd(), completion.index);
            }
        }
        if let Some(buf) = buf {
            self.ring.provide(buf, 0);
        }
        self.go_on(completion.index);
    }

    fn sent(&mut self, completion: &Completion) {
        let place = self.connections.get_mut(completion.index as usize);
        if let Some(connection) = place.and_then(Option::as_mut) {
            connection.sends = false;
            if completion.result < 0 {
                (connection.ends, connection.owed) = (true, 0);
            } else {
                self.served.bytes_out += completion.result as u64;
            }
        }
        self.go_on(completion.index);
    }

    /// Sends what a connection is owed, or ends it.
    fn go_on(&mut self, index: u32) {
        let Some(place) = self.connections.get_mut(index as usize) else { return };
        let Some(connection) = place else { return };
        if connection.sends {
            return;
        }
        if connection.owed > 0 {
            let count = connection.owed.min(PARTS_MAX as u64);
            let part = Part { buf: RESPONSE, offset: 0, len: self.response_len };
            let parts = std::iter::repeat_n(part, count as usize);
            self.ring.send(connection.socket.as_fd(), parts, Copying::Yes, index);
            connection.owed -= count;
            connection.sends = true;
            return;
        }
        if !connection.ends {
            return;
        }
        if connection.receives {
            // Its receiving comes to an end.
            let _ = rustix::net::shutdown(&connection.socket, rustix::net::Shutdown::Both);
            return;
        }
        if let Some(connection) = place.take() {
            self.ring.close(connection.socket, index);
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::Arc;

    use pasted::demo::http::response;

    use super::*;

    /// Runs a server until the clients have done.
    fn serve(clients: impl FnOnce(std::net::SocketAddr)) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let server = std::thread::spawn(move || {
            let server = UringServer::new(listener, &response(b"body")).unwrap();
            server.run(Duration::from_micros(50), &flag).unwrap()
        });
        clients(address);
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap()
    }

    #[test]
    fn pipelined_requests_are_all_answered_and_then_the_connection_ends() {
        let served = serve(|address| {
            for _ in 0..3 {
                let mut stream = TcpStream::connect(address).unwrap();
                let requests = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\
                    GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n";
                stream.write_all(requests).unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                assert_eq!(answer, response(b"body").repeat(3));
            }
        });
        assert_eq!(served.requests, 9);
    }

    #[test]
    fn a_malformed_request_ends_its_connection_alone() {
        let served = serve(|address| {
            let mut bad = TcpStream::connect(address).unwrap();
            let mut good = TcpStream::connect(address).unwrap();
            bad.write_all(b"\0\0\0\0").unwrap();
            assert_eq!(bad.read(&mut [0]).unwrap_or(0), 0);
            good.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            assert_eq!(good.read(&mut [0]).unwrap(), 1);
        });
        assert_eq!(served.requests, 1);
    }
}
