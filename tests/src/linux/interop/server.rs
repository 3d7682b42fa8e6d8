//! The HTTP server over kernel sockets that the guest's is compared with: a
//! thread per connection, files by `sendfile`, bodies read and summed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use super::content::digest;
use crate::backend::FIXED_BODY;
use crate::netns::Namespace;

/// Bytes that one read of a body takes.
const PIECE: usize = 256 * 1024;
/// How long a connection may stand still before it is given up: longer than any
/// retransmission timeout on a wire that loses one frame in ten.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server on port 80 of a namespace. Dropping it ends it; its connections end
/// with their clients.
#[derive(Debug)]
pub struct KernelServer {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl KernelServer {
    /// Serves the files of `root`; without one, a fixed body for every request.
    pub fn start(net: &Namespace, root: Option<&Path>) -> io::Result<KernelServer> {
        // Takes IPv4 too, unless the namespace has no IPv6.
        let any = [SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80)), ([0, 0, 0, 0], 80).into()];
        let listener = net.run(|| TcpListener::bind(&any[..]))?;
        let accepting = listener.try_clone()?;
        let root = root.map(Path::to_owned);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let root = root.clone();
                // A client that goes away in the middle is its own affair.
                std::thread::spawn(move || drop(serve(&stream, root.as_deref())));
            }
        });
        Ok(KernelServer { listener, thread: Some(thread) })
    }
}

impl Drop for KernelServer {
    fn drop(&mut self) {
        // Ends the accept.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What of a request's head matters.
#[derive(Debug, Default)]
struct Head {
    path: PathBuf,
    len: u64,
    digest: Option<String>,
    expects_continue: bool,
}

/// Serves one connection to its end.
fn serve(stream: &TcpStream, root: Option<&Path>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut input = BufReader::with_capacity(PIECE, stream);
    let mut output = stream;
    while let Some(head) = read_head(&mut input)? {
        if head.expects_continue {
            output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let right = read_body(&mut input, &head)?;
        if !right {
            output.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
        } else if let Some(root) = root {
            let mut file = File::open(root.join(&head.path))?;
            output.write_all(&response_head(file.metadata()?.len()))?;
            io::copy(&mut file, &mut output)?;
        } else {
            let mut answer = response_head(FIXED_BODY.len() as u64);
            answer.extend_from_slice(FIXED_BODY);
            output.write_all(&answer)?;
        }
    }
    Ok(())
}

fn response_head(len: u64) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").into_bytes()
}

/// Reads one head; `None` at the end of the connection.
fn read_head(input: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default();
    let path = target.trim_start_matches('/').into();
    let mut head = Head { path, ..Head::default() };
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            return Ok(Some(head));
        }
        let (name, value) = line.trim_end().split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => head.len = value.trim().parse().unwrap_or(0),
            "content-digest" => head.digest = Some(value.trim().to_owned()),
            "expect" => head.expects_continue = true,
            _ => {}
        }
    }
}

/// Reads the body; whether it is the one whose digest was given.
fn read_body(input: &mut BufReader<&TcpStream>, head: &Head) -> io::Result<bool> {
    let mut left = head.len;
    let mut crc = 0;
    while left > 0 {
        let bytes = match input.fill_buf() {
            // A process that was held still and goes on.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        crc = crc32c::crc32c_append(crc, &bytes[..len]);
        input.consume(len);
        left -= len as u64;
    }
    Ok(head.digest.as_ref().is_none_or(|said| *said == digest(crc)))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::require;
    use crate::require::Need;

    /// A request on a connection of its own, and all that came back.
    fn ask(net: &Namespace, request: &str) -> String {
        net.run(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", 80)).expect("it listens");
            stream.write_all(request.as_bytes()).expect("a request fits");
            stream.shutdown(std::net::Shutdown::Write).expect("an end");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("text");
            answer
        })
    }

    #[test]
    fn it_serves_files_and_judges_bodies() {
        require!(Need::Namespaces);
        let net = Namespace::new();
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("x"), "file").expect("a file");
        let server = KernelServer::start(&net, Some(root.path())).expect("a server");
        let answer = ask(&net, "GET /x HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n");
        let one = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfile";
        assert_eq!(answer, one.repeat(2));
        drop(server);

        let _server = KernelServer::start(&net, None).expect("a server on the same port");

        let post = |digest| {
            let head = "POST / HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n";
            ask(&net, &format!("{head}Content-Digest: {digest}\r\n\r\n123456789"))
        };
        let answer = post("crc32c=:4waSgw==:");
        assert!(answer.starts_with("HTTP/1.1 100 ") && answer.contains(" 200 "), "{answer}");
        let answer = post("crc32c=:4waSgQ==:");
        assert!(answer.contains(" 400 "), "{answer}");
    }
}
