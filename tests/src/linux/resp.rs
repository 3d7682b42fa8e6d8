//! A client of a key-value server that speaks RESP2, for what redis-cli does not
//! tell.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::client;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+`
    Simple(String),
    /// `-`
    Error(String),
    /// `:`
    Integer(i64),
    /// `$`; `None` for nothing.
    Bulk(Option<Vec<u8>>),
    /// `*`
    Array(Vec<Reply>),
}

/// A connection.
#[derive(Debug)]
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(ip: &str, port: u16) -> io::Result<Client> {
        Ok(Client(BufReader::with_capacity(64 * 1024, client::connect(ip, port)?)))
    }

    /// Connects with room for 32 KiB that are received and not read.
    ///
    /// # Errors
    /// The system's.
    pub fn connect_small(ip: &str, port: u16) -> io::Result<Client> {
        use rustix::net::{AddressFamily, SocketType};
        let address = SocketAddr::new(ip.parse().map_err(io::Error::other)?, port);
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        // Before there is a window, so that none is taken back.
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 32 * 1024)?;
        rustix::net::connect(&socket, &address)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(client::PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Client(BufReader::with_capacity(64 * 1024, stream)))
    }

    /// Sends requests, without waiting for the answers.
    ///
    /// # Errors
    /// The system's.
    pub fn send(&mut self, requests: &[Vec<Vec<u8>>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for request in requests {
            bytes.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
            for word in request {
                bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                bytes.extend_from_slice(word);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        self.0.get_mut().write_all(&bytes)
    }

    /// Reads one answer.
    ///
    /// # Errors
    /// The system's, or that it is no answer.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line)?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "no answer");
        let text = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
        let text = text.ok_or_else(invalid)?;
        let (kind, rest) = text.split_at_checked(1).ok_or_else(invalid)?;
        let number = || rest.parse::<i64>().map_err(|_| invalid());
        Ok(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" if rest == "-1" => Reply::Bulk(None),
            "$" => {
                let mut bytes = vec![0; number()? as usize + 2];
                self.0.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(Some(bytes))
            }
            "*" => {
                let elements = (0..number()?).map(|_| self.receive());
                Reply::Array(elements.collect::<io::Result<_>>()?)
            }
            _ => return Err(invalid()),
        })
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// The system's, or that it is no answer.
    pub fn ask(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.send(&[words.iter().map(|word| word.to_vec()).collect()])?;
        self.receive()
    }
}
