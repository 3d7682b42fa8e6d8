//! A small HTTP client over kernel sockets, for what curl does not tell.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a client waits for a connection or for bytes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A connection that gives up after [`PATIENCE`].
pub fn connect(ip: &str, port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::new(ip.parse().expect("an address"), port);
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request on a connection that stays open.
pub fn get(stream: &mut TcpStream, path: &str) -> io::Result<Response> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())?;
    answer(stream)
}

/// The answer to a request that was sent.
pub fn answer(stream: &mut TcpStream) -> io::Result<Response> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > 16 * 1024 {
            return Err(invalid("a head without an end"));
        }
    }
    let head = String::from_utf8(head).map_err(|_| invalid("a head that is not text"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.ok_or_else(|| invalid("no length"))?];
    stream.read_exact(&mut body)?;
    Ok(Response { status: status.ok_or_else(|| invalid("no status"))?, body })
}

/// One request on a connection of its own.
pub fn get_once(ip: &str, path: &str) -> io::Result<Response> {
    get(&mut connect(ip, 80)?, path)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
