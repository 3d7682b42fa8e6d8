//! nginx, as Debian has it: one process, no log, and the same response to everything. It
//! has no way to poll.

use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pasted::demo::http::BODY;

use crate::serve::{READY, say};

/// Connections at once.
const CONNECTIONS_MAX: u32 = 16 * 1024;

/// What the process is told.
#[derive(Debug, clap::Args)]
pub struct NginxArgs {
    /// Where it listens
    #[arg(long)]
    address: SocketAddrV4,
    /// Where its files go
    #[arg(long)]
    directory: PathBuf,
}

/// Becomes nginx. Returns only why it did not.
pub fn become_nginx(args: &NginxArgs) -> io::Error {
    let file = args.directory.join("nginx.conf");
    let text = match std::str::from_utf8(BODY) {
        Ok(body) => configuration(args.address, &args.directory, body),
        Err(error) => return io::Error::new(ErrorKind::InvalidData, error),
    };
    if let Err(error) = std::fs::write(&file, text).and_then(|()| say(READY)) {
        return error;
    }
    let error = Command::new("nginx").arg("-e").arg("stderr").arg("-c").arg(file).exec();
    match error.kind() {
        ErrorKind::NotFound => io::Error::new(
            ErrorKind::NotFound,
            "nginx is not installed: install nginx-light, or name other --servers",
        ),
        _ => error,
    }
}

fn configuration(address: SocketAddrV4, directory: &Path, body: &str) -> String {
    let directory = directory.display();
    let body = body.trim_end();
    format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\nerror_log stderr;\n\
         pid {directory}/nginx.pid;\n\
         events {{ use epoll; worker_connections {CONNECTIONS_MAX}; multi_accept on; }}\n\
         http {{\n  access_log off;\n  server_tokens off;\n  default_type text/plain;\n  \
         keepalive_requests 4294967295;\n  keepalive_timeout 1h;\n  \
         client_body_timeout 1h;\n  client_header_timeout 1h;\n  \
         client_body_temp_path {directory}/nginx-body;\n  \
         server {{ listen {address} backlog=1024; \
         location / {{ return 200 \"{body}\\n\"; }} }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_one_that_is_expected() {
        let address = "10.0.0.1:80".parse().unwrap();
        let body = std::str::from_utf8(BODY).unwrap();
        let text = configuration(address, Path::new("/d"), body);
        assert!(text.contains(&format!("return 200 \"{}\\n\";", body.trim_end())), "{text}");
        assert!(body.ends_with('\n') && !body.contains(['"', '$']));
        assert!(text.contains("listen 10.0.0.1:80 "));
    }
}
