//! The peer to compare with: an HTTP server over kernel sockets, one thread,
//! edge-triggered readiness, requests parsed by the parser that the guest's
//! server uses, the same response.
//!
//! With a [`RequestLog`], requests are copied into it as they are read, and the
//! answers of one wait go together, once it is durable.
//!
//! It is meant to be as good as such a server can be, not as a straw man: one
//! read and one write per request, no allocation per request, and the same
//! waiting discipline as the backend's (it polls for as long before it sleeps).

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send, sockopt};

use super::requests::{Malformed, Requests};
use crate::sys::linux::demo::{Poller, Ready};

/// Connections that one server keeps at most; further ones are closed at once.
const CONNECTIONS_MAX: usize = 16 * 1024;
/// What one wait names at most.
const READY_MAX: usize = 1024;
/// Bytes that one read takes at most.
const READ_LEN: usize = 16 * 1024;
/// Numbers of listeners, and of descriptors that are not the server's, begin
/// here; connections are below.
const LISTENER_FIRST: u64 = 1 << 32;
const FOREIGN_FIRST: u64 = 1 << 33;

/// What one listener's connections have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Served {
    /// Requests answered.
    pub requests: u64,
    /// Waits that brought at least one request.
    pub batches: u64,
    /// Payload bytes that the kernel copied to the server.
    pub bytes_in: u64,
    /// Payload bytes that the kernel copied from the server.
    pub bytes_out: u64,
    /// Requests answered before the present turn.
    #[serde(skip)]
    requests_before: u64,
}

/// What requests are logged in before they are answered.
pub trait RequestLog {
    /// Copies what has been read behind what is there.
    fn append(&mut self, bytes: &[u8]);
    /// Makes durable what was appended.
    fn commit(&mut self) -> io::Result<()>;
}

struct Connection {
    socket: OwnedFd,
    listener: usize,
    requests: Requests,
    /// What the kernel has not taken yet.
    unsent: Vec<u8>,
    /// Whether the connection ends when everything has been sent.
    last: bool,
}

/// The server.
pub struct EpollServer {
    poller: Poller,
    listeners: Vec<(TcpListener, Served)>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    response: Vec<u8>,
    buffer: Box<[u8]>,
    output: Vec<u8>,
    events: Vec<Ready>,
    spin: Duration,
    log: Option<Box<dyn RequestLog>>,
    /// Connections whose answers wait for the log.
    owing: Vec<usize>,
}

impl EpollServer {
    /// A server that answers every request with `response`, and polls for
    /// `spin` before it sleeps.
    pub fn new(response: Vec<u8>, spin: Duration) -> io::Result<EpollServer> {
        Ok(EpollServer {
            poller: Poller::new(READY_MAX)?,
            listeners: Vec::new(),
            connections: Vec::new(),
            free: Vec::new(),
            response,
            buffer: vec![0; READ_LEN].into(),
            output: Vec::with_capacity(READ_LEN),
            events: Vec::with_capacity(READY_MAX),
            spin,
            log: None,
            owing: Vec::with_capacity(READY_MAX),
        })
    }

    /// Logs every request before it is answered.
    pub fn log(&mut self, log: Box<dyn RequestLog>) {
        self.log = Some(log);
    }

    /// Serves one more listener.
    pub fn listen(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.poller.add_readable(&listener, LISTENER_FIRST + self.listeners.len() as u64)?;
        self.listeners.push((listener, Served::default()));
        Ok(())
    }

    /// Waits for something else's descriptor as well: `foreign` of
    /// [`EpollServer::turn`] is told `number` whenever it can be read.
    pub fn watch(&self, fd: impl AsFd, number: u32) -> io::Result<()> {
        self.poller.add_readable(fd, FOREIGN_FIRST + u64::from(number))
    }

    /// What each listener's connections have seen, in the order of the calls of
    /// [`EpollServer::listen`].
    pub fn served(&self) -> impl Iterator<Item = Served> {
        self.listeners.iter().map(|(_, served)| *served)
    }

    /// Waits for at most `timeout` for something to do, and does it all.
    pub fn turn(
        &mut self,
        timeout: Duration,
        foreign: &mut dyn FnMut(u32) -> io::Result<()>,
    ) -> io::Result<()> {
        let ready = self.poller.wait(self.spin, timeout)?;
        self.events.clear();
        self.events.extend_from_slice(ready);
        for (_, served) in &mut self.listeners {
            served.requests_before = served.requests;
        }
        for at in 0..self.events.len() {
            let Ready { token, readable, writable } = self.events[at];
            if token >= FOREIGN_FIRST {
                foreign((token - FOREIGN_FIRST) as u32)?;
            } else if token >= LISTENER_FIRST {
                self.accept((token - LISTENER_FIRST) as usize)?;
            } else {
                self.serve(token as usize, readable, writable);
            }
        }
        self.pay()?;
        for (_, served) in &mut self.listeners {
            served.batches += u64::from(served.requests > served.requests_before);
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = match accept_with(&self.listeners[listener].0, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                // The peer went away before it was accepted.
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            if self.connections.len() - self.free.len() >= CONNECTIONS_MAX {
                continue;
            }
            if sockopt::set_tcp_nodelay(&socket, true).is_err() {
                continue;
            }
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poller.add_socket(&socket, index as u64)?;
            self.connections[index] = Some(Connection {
                socket,
                listener,
                requests: Requests::default(),
                unsent: Vec::new(),
                last: false,
            });
        }
    }

    /// Reads, answers and writes what one connection has ready.
    fn serve(&mut self, index: usize, readable: bool, writable: bool) {
        // An earlier event of this batch may have ended it.
        let Some(connection) = &mut self.connections[index] else {
            return;
        };
        let served = &mut self.listeners[connection.listener].1;
        let mut going = true;
        if writable && !connection.unsent.is_empty() && !self.owing.contains(&index) {
            going = connection.send_unsent(served);
        }
        while going && readable && !connection.last {
            let n = match recv(&connection.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((n, _)) if n > 0 => n,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Ok(_) | Err(_) => {
                    going = false;
                    break;
                }
            };
            served.bytes_in += n as u64;
            match connection.requests.take(&self.buffer[..n]) {
                Ok(found) => {
                    self.output.clear();
                    for _ in 0..found.requests {
                        self.output.extend_from_slice(&self.response);
                    }
                    served.requests += found.requests;
                    connection.last = found.last;
                    match &mut self.log {
                        Some(log) => {
                            log.append(&self.buffer[..n]);
                            connection.unsent.extend_from_slice(&self.output);
                            self.owing.push(index);
                        }
                        None => going = connection.send(&self.output, served),
                    }
                }
                Err(Malformed) => going = false,
            }
            // Less than was asked for: nothing is left, and a further read
            // would only say so.
            if n < self.buffer.len() {
                break;
            }
        }
        self.end_if(index, !going);
    }

    /// Makes the log durable and sends the answers that waited for it.
    fn pay(&mut self) -> io::Result<()> {
        let Some(log) = self.log.as_mut().filter(|_| !self.owing.is_empty()) else {
            return Ok(());
        };
        log.commit()?;
        let owing = std::mem::take(&mut self.owing);
        for &index in &owing {
            let Some(connection) = &mut self.connections[index] else { continue };
            let going = connection.send_unsent(&mut self.listeners[connection.listener].1);
            self.end_if(index, !going);
        }
        self.owing = owing;
        self.owing.clear();
        Ok(())
    }

    /// Ends a connection that is broken, or that was to end when all is sent.
    fn end_if(&mut self, index: usize, broken: bool) {
        let done = |c: &mut Connection| broken || (c.last && c.unsent.is_empty());
        if self.connections[index].as_mut().is_some_and(done) {
            self.connections[index] = None;
            self.free.push(index);
        }
    }
}

impl Connection {
    /// Sends, or keeps what the kernel does not take; false if the connection
    /// has ended.
    fn send(&mut self, bytes: &[u8], served: &mut Served) -> bool {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return self.send_unsent(served);
        }
        match send_some(&self.socket, bytes, served) {
            Some(n) => {
                self.unsent.extend_from_slice(&bytes[n..]);
                true
            }
            None => false,
        }
    }

    fn send_unsent(&mut self, served: &mut Served) -> bool {
        match send_some(&self.socket, &self.unsent, served) {
            Some(n) => {
                self.unsent.drain(..n);
                true
            }
            None => false,
        }
    }
}

/// Sends as much as the kernel takes; `None` if the connection has ended.
fn send_some(socket: &OwnedFd, bytes: &[u8], served: &mut Served) -> Option<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match send(socket, &bytes[sent..], SendFlags::NOSIGNAL) {
            Ok(n) => sent += n,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    served.bytes_out += sent as u64;
    Some(sent)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::super::http::response;
    use super::*;

    /// Runs the server until `done`.
    fn serve_until(server: &mut EpollServer, mut done: impl FnMut(&EpollServer) -> bool) {
        while !done(server) {
            server.turn(Duration::from_millis(100), &mut |_| Ok(())).unwrap();
        }
    }

    #[test]
    fn pipelined_requests_are_all_answered_and_then_the_connection_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = EpollServer::new(response(b"body"), Duration::ZERO).unwrap();
        server.listen(listener).unwrap();
        stream
            .write_all(
                b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n\
                  GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
            )
            .unwrap();
        serve_until(&mut server, |s| s.served().next().unwrap().requests == 3);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.as_bytes(), response(b"body").repeat(3));
        let served = server.served().next().unwrap();
        assert_eq!(served.bytes_out, answer.len() as u64);
        assert!(served.batches >= 1 && served.batches <= 3);
    }

    #[test]
    fn answers_wait_until_the_log_is_durable() {
        use std::sync::{Arc, Mutex};

        /// What was appended, and how much of it is durable.
        #[derive(Default)]
        struct Memory(Arc<Mutex<(Vec<u8>, usize)>>);
        impl RequestLog for Memory {
            fn append(&mut self, bytes: &[u8]) {
                self.0.lock().unwrap().0.extend_from_slice(bytes);
            }
            fn commit(&mut self) -> io::Result<()> {
                let mut log = self.0.lock().unwrap();
                log.1 = log.0.len();
                Ok(())
            }
        }

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = EpollServer::new(response(b"body"), Duration::ZERO).unwrap();
        let log = Memory::default();
        let seen = log.0.clone();
        server.log(Box::new(log));
        server.listen(listener).unwrap();
        let request = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
        for (piece, count) in [(&request[..9], 0), (&request[9..], 1)] {
            stream.write_all(piece).unwrap();
            serve_until(&mut server, |s| {
                let served = s.served().next().unwrap();
                served.bytes_in >= piece.len() as u64 && served.requests == count
            });
        }
        serve_until(&mut server, |s| s.served().next().unwrap().bytes_out > 0);
        let (log, durable) = seen.lock().unwrap().clone();
        assert_eq!((log.as_slice(), durable), (&request[..], request.len()));
        let mut answer = vec![0; response(b"body").len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, response(b"body"));
    }

    #[test]
    fn a_malformed_request_ends_its_connection_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut bad = TcpStream::connect(address).unwrap();
        let mut good = TcpStream::connect(address).unwrap();
        let mut server = EpollServer::new(response(b""), Duration::ZERO).unwrap();
        server.listen(listener).unwrap();
        bad.write_all(b"\0\0\0\0").unwrap();
        serve_until(&mut server, |s| s.free.len() == 1);
        assert_eq!(bad.read(&mut [0]).unwrap_or(0), 0);
        good.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        serve_until(&mut server, |s| s.served().next().unwrap().requests == 1);
        assert!(good.read(&mut [0]).unwrap() == 1);
    }

    #[test]
    fn another_descriptor_is_watched_beside_the_sockets() {
        let (mut a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut server = EpollServer::new(response(b""), Duration::ZERO).unwrap();
        server.watch(&b, 3).unwrap();
        a.write_all(b"x").unwrap();
        let mut told = Vec::new();
        server
            .turn(Duration::from_secs(9), &mut |number| {
                told.push(number);
                Ok(())
            })
            .unwrap();
        assert_eq!(told, [3]);
    }
}
