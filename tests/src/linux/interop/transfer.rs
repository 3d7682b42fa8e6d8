//! One transfer by curl, every byte of it judged.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::content::{Content, FILE};
use super::path::{Family, Path};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the far end: the server sends.
    Get,
    /// To the far end: curl's kernel sends.
    Post,
}

/// What became of a transfer.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Bytes of content that went over, as curl counts.
    pub bytes: u64,
    /// From the request to the end of the response, in seconds.
    pub seconds: f64,
    /// What was wrong.
    pub error: Option<String>,
}

impl Transfer {
    /// Goodput, in Mbit/s.
    pub fn mbps(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 * 8.0 / 1e6 / self.seconds } else { 0.0 }
    }
}

/// Transfers the content; gives up after `limit`.
pub fn run(
    path: &Path,
    family: Family,
    direction: Direction,
    content: &Content,
    limit: Duration,
) -> Transfer {
    let mut command = path.near.command("curl");
    command.args(["--silent", "--show-error", "--max-time", &limit.as_secs().to_string()]);
    command.args([
        "--write-out",
        "%{stderr}result %{http_code} %{size_download} %{size_upload} %{time_pretransfer} \
         %{time_total}\n",
    ]);
    match direction {
        Direction::Get => command.arg(family.far_url(&format!("/{FILE}"))),
        Direction::Post => {
            command.args(["--request", "POST", "--header", &content.digest_field()]);
            command.arg("--upload-file").arg(content.path()).arg(family.far_url("/"))
        }
    };
    let (verdict, said) = judge(&mut command, direction, content);
    let result = said.lines().find_map(|line| line.strip_prefix("result "));
    let numbers = result.unwrap_or_default().split(' ').map(|word| word.parse().unwrap_or(0.0));
    let numbers: Vec<f64> = numbers.collect();
    let [code, down, up, start, end] = numbers[..] else {
        return Transfer { bytes: 0, seconds: 0.0, error: Some(said.trim().to_owned()) };
    };
    let bytes = if direction == Direction::Get { down } else { up } as u64;
    let error = if code != 200.0 || bytes != content.len() {
        Some(format!("status {code}, {bytes} bytes: {}", said.trim().replace('\n', "; ")))
    } else {
        verdict.err()
    };
    Transfer { bytes, seconds: end - start, error }
}

/// Runs curl to its end. Returns the verdict on what came, and what curl said.
fn judge(
    command: &mut Command,
    direction: Direction,
    content: &Content,
) -> (Result<(), String>, String) {
    let spawned =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut output = child.stdout.take().expect("it is piped");
    let verdict = match direction {
        Direction::Get => content.judge(output),
        Direction::Post => {
            // The server has judged: its status says how.
            let mut answer = Vec::new();
            output.read_to_end(&mut answer).map(drop).map_err(|error| error.to_string())
        }
    };
    let mut said = String::new();
    let read = child.stderr.take().expect("it is piped").read_to_string(&mut said);
    let ended = child.wait();
    if let Some(error) = read.err().or(ended.err()) {
        said.push_str(&error.to_string());
    }
    (verdict, said)
}
