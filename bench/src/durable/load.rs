//! The load: redis-benchmark, what our own client sends, and a small client that
//! stores every key before and judges every value after.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pasted::sys::linux::demo::children::{self, DeathSignal};

use crate::client::{Answer, REQUEST_LEN_MAX, Script};

/// The program, and what Debian calls the package that has it.
pub const PROGRAMS: [(&str, &str); 2] =
    [("redis-server", "redis-server"), ("redis-benchmark", "redis-tools")];
/// Keys that redis-benchmark asks for, at random.
pub const KEYS: u32 = 2048;
/// Keys that are stored or judged at once.
const KEYS_AT_ONCE: u32 = 16;
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one run of redis-benchmark may take beyond what was planned.
const RUN_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether a run has ended.
const RUN_INTERVAL: Duration = Duration::from_millis(2);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Stores a value.
    Set,
    /// Fetches one.
    Get,
}

impl Op {
    /// In the order of their turns.
    pub const ALL: [Op; 2] = [Op::Set, Op::Get];

    /// As Redis calls it.
    pub fn name(self) -> &'static str {
        match self {
            Op::Set => "SET",
            Op::Get => "GET",
        }
    }
}

/// Who sends the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Redis's own program.
    RedisBenchmark,
    /// Our client, on our own stack.
    Own,
}

impl Driver {
    /// As it is called in tables and rows.
    pub fn name(self) -> &'static str {
        match self {
            Driver::RedisBenchmark => "redis-benchmark",
            Driver::Own => "paste-bench",
        }
    }
}

/// What every row of a group of rows has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Connections at once.
    pub connections: u32,
    /// Requests that a connection sends at once.
    pub pipeline: u32,
}

/// What a client said of one round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Requests per second.
    pub rps: f64,
    /// Latency that half of the requests did not exceed, in us.
    pub p50_us: f64,
    /// Latency that 99 of 100 did not exceed, in us.
    pub p99_us: f64,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not installed.
    #[error("{program} is not installed: apt-get install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// What to install.
        package: &'static str,
    },
    /// The system refused, or a server did not answer.
    #[error("{server}: {what}: {source}")]
    System {
        /// Which server.
        server: SocketAddrV4,
        /// What could not be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// redis-benchmark failed, or took far too long.
    #[error("redis-benchmark against {server} failed: {said}")]
    Benchmark {
        /// Which server.
        server: SocketAddrV4,
        /// What it printed.
        said: String,
    },
}

/// An error unless the programs are there.
pub fn check_programs() -> Result<(), LoadError> {
    for (program, package) in PROGRAMS {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().is_err() {
            return Err(LoadError::Missing { program, package });
        }
    }
    Ok(())
}

/// Runs redis-benchmark with `requests` requests.
pub fn run(server: SocketAddrV4, cell: Cell, op: Op, requests: u64) -> Result<Figures, LoadError> {
    let failed = |said: String| LoadError::Benchmark { server, said };
    let mut command = Command::new("redis-benchmark");
    command.args(arguments(server, cell, op, requests));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = children::spawn(&mut command, None, DeathSignal::Kill)
        .map_err(|e| failed(e.to_string()))?;
    let end = Instant::now() + RUN_PATIENCE;
    // It says little: the pipes hold it.
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("it does not come to an end".to_owned()));
        }
        std::thread::sleep(RUN_INTERVAL);
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    parse(&said, op).ok_or_else(|| failed(said.into_owned()))
}

fn arguments(server: SocketAddrV4, cell: Cell, op: Op, requests: u64) -> Vec<String> {
    let op = op.name().to_lowercase();
    format!(
        "-h {} -p {} -c {} -P {} -d {} -r {KEYS} -n {requests} -t {op} --csv",
        server.ip(),
        server.port(),
        cell.connections,
        cell.pipeline,
        cell.value_bytes
    )
    .split(' ')
    .map(str::to_owned)
    .collect()
}

/// Finds the columns by their names.
fn parse(csv: &str, op: Op) -> Option<Figures> {
    let cells = |line: &str| -> Vec<String> {
        line.split(',').map(|cell| cell.trim_matches('"').to_owned()).collect()
    };
    let mut lines = csv.lines().map(cells);
    let heads = lines.find(|cells| cells[0] == "test")?;
    let row = lines.find(|cells| cells[0] == op.name())?;
    let value = |name: &str| -> Option<f64> {
        let at = heads.iter().position(|head| head == name)?;
        row.get(at)?.parse().ok().filter(|value: &f64| value.is_finite())
    };
    Some(Figures {
        rps: value("rps")?,
        p50_us: value("p50_latency_ms")? * 1e3,
        p99_us: value("p99_latency_ms")? * 1e3,
    })
}

/// The value of this length that redis-benchmark stores, in every run the same.
pub fn value(len: usize) -> Vec<u8> {
    let mut state = 1234_u32;
    let mut next = || {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
        b'0' + ((state >> 16) & 63) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The name of a key as redis-benchmark has it.
fn key(number: u32) -> String {
    format!("key:{number:012}")
}

/// A command as clients send it.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// What our own client sends on each connection: as many requests at once as the
/// pipeline has, for keys that no other connection asks for where there are enough.
/// `None` if that is more than it can send at once.
pub fn scripts(cell: Cell, op: Op, value: &[u8]) -> Option<Vec<Script>> {
    let mut answer = Vec::new();
    for _ in 0..cell.pipeline {
        match op {
            Op::Set => answer.extend_from_slice(b"+OK\r\n"),
            Op::Get => {
                answer.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
                answer.extend_from_slice(value);
                answer.extend_from_slice(b"\r\n");
            }
        }
    }
    let answer = Answer::Bytes(answer.into());
    let script = |connection: u32| {
        let number = |place| key((connection * cell.pipeline + place) % KEYS);
        let request = |place| match op {
            Op::Set => command(&[b"SET", number(place).as_bytes(), value]),
            Op::Get => command(&[b"GET", number(place).as_bytes()]),
        };
        let request: Vec<u8> = (0..cell.pipeline).flat_map(request).collect();
        (request.len() <= REQUEST_LEN_MAX).then(|| Script {
            request,
            requests: cell.pipeline,
            answer: answer.clone(),
        })
    };
    (0..cell.connections).map(script).collect()
}

/// A connection that stores and judges.
#[derive(Debug)]
pub struct Client {
    server: SocketAddrV4,
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects, as soon as the server answers a PING.
    pub fn connect(server: SocketAddrV4) -> Result<Client, LoadError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let attempt = || -> io::Result<Client> {
                let stream = TcpStream::connect_timeout(&server.into(), Duration::from_secs(1))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut client = Client { server, stream: BufReader::new(stream) };
                client.send(&[b"PING"])?;
                client.expect("+PONG")?;
                Ok(client)
            };
            match attempt() {
                Ok(client) => return Ok(client),
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
                Err(source) => return Err(client_error(server, "it does not serve")(source)),
            }
        }
    }

    fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        self.stream.get_mut().write_all(&command(words))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn expect(&mut self, wanted: &str) -> io::Result<()> {
        let line = self.line()?;
        if line == wanted { Ok(()) } else { Err(io::Error::other(format!("{line:?} came"))) }
    }

    /// The string that is the next answer.
    fn bulk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let len = line.strip_prefix('$').and_then(|len| len.parse::<i64>().ok());
        let len = len.ok_or_else(|| io::Error::other(format!("{line:?} came")))?;
        let Ok(len) = usize::try_from(len) else {
            return Ok(None);
        };
        let mut bytes = vec![0; len + 2];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(len);
        Ok(Some(bytes))
    }

    /// Stores `value` under every key.
    pub fn fill(&mut self, value: &[u8]) -> Result<(), LoadError> {
        let mut work = || -> io::Result<()> {
            for first in (0..KEYS).step_by(KEYS_AT_ONCE as usize) {
                for number in first..first + KEYS_AT_ONCE {
                    self.send(&[b"SET", key(number).as_bytes(), value])?;
                }
                for _ in 0..KEYS_AT_ONCE {
                    self.expect("+OK")?;
                }
            }
            Ok(())
        };
        work().map_err(client_error(self.server, "a value cannot be stored"))
    }

    /// Counts the keys that do not have this value.
    pub fn wrong(&mut self, value: &[u8]) -> Result<u64, LoadError> {
        let mut work = || -> io::Result<u64> {
            let mut wrong = 0;
            for first in (0..KEYS).step_by(KEYS_AT_ONCE as usize) {
                for number in first..first + KEYS_AT_ONCE {
                    self.send(&[b"GET", key(number).as_bytes()])?;
                }
                for _ in 0..KEYS_AT_ONCE {
                    wrong += u64::from(self.bulk()?.as_deref() != Some(value));
                }
            }
            Ok(wrong)
        };
        work().map_err(client_error(self.server, "a value cannot be fetched"))
    }

    /// A setting of Redis, as it says itself.
    pub fn setting(&mut self, name: &str) -> Result<String, LoadError> {
        let mut work = || -> io::Result<String> {
            self.send(&[b"CONFIG", b"GET", name.as_bytes()])?;
            self.expect("*2")?;
            self.bulk()?;
            Ok(String::from_utf8_lossy(&self.bulk()?.unwrap_or_default()).into_owned())
        };
        work().map_err(client_error(self.server, "it does not tell a setting"))
    }
}

fn client_error(server: SocketAddrV4, what: &'static str) -> impl FnOnce(io::Error) -> LoadError {
    move |source| LoadError::System { server, what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                       \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                       \"SET\",\"3158.56\",\"19.746\",\"1.760\",\"20.111\",\"28.527\",\"31.567\",\
                       \"36.671\"\n";

    #[test]
    fn columns_are_found_by_name() {
        let figures = parse(CSV, Op::Set).unwrap();
        assert_eq!((figures.rps, figures.p50_us), (3158.56, 20111.0));
        assert!((figures.p99_us - 31567.0).abs() < 1e-6);
        assert_eq!(parse(CSV, Op::Get), None);
        assert_eq!(parse(&CSV.replace("p99_latency_ms", "x"), Op::Set), None);
        assert_eq!(parse(&CSV.replace("3158.56", "nan"), Op::Set), None);
        assert_eq!(parse("", Op::Set), None);
    }

    #[test]
    fn our_own_client_sends_a_pipeline_of_keys_of_its_own() {
        let cell = Cell { value_bytes: 2, connections: 3, pipeline: 2 };
        let scripts = scripts(cell, Op::Set, b"ab").unwrap();
        let text = |at: usize| String::from_utf8(scripts[at].request.clone()).unwrap();
        assert!(text(1).contains("key:000000000002\r\n$2\r\nab\r\n*3\r\n$3\r\nSET\r\n"));
        assert!(text(2).ends_with("key:000000000005\r\n$2\r\nab\r\n"));
        assert!(matches!(&scripts[0].answer, Answer::Bytes(b) if **b == *b"+OK\r\n+OK\r\n"));
        let large = Cell { value_bytes: 16384, connections: 1, pipeline: 16 };
        assert!(super::scripts(large, Op::Set, &value(16384)).is_none());
        let gets = super::scripts(Cell { pipeline: 1, ..large }, Op::Get, b"x").unwrap();
        assert!(matches!(&gets[0].answer, Answer::Bytes(b) if **b == *b"$1\r\nx\r\n"));
    }

    #[test]
    fn the_program_is_told_what_to_do() {
        let cell = Cell { value_bytes: 64, connections: 16, pipeline: 2 };
        let words = arguments("10.0.0.1:6379".parse().unwrap(), cell, Op::Get, 100).join(" ");
        assert_eq!(words, "-h 10.0.0.1 -p 6379 -c 16 -P 2 -d 64 -r 2048 -n 100 -t get --csv");
    }

    #[test]
    fn values_are_those_of_redis_benchmark() {
        // As Redis 7.0.15 had them after a run.
        assert_eq!(value(30), b"VXKeHogKgJ=[5V9_X^b?48OKF2jGA<");
        assert_eq!(key(1), "key:000000000001");
        assert_eq!(KEYS % KEYS_AT_ONCE, 0);
    }
}
