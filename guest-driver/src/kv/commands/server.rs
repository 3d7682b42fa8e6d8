//! The server and the connection: what it is, and how it is spoken to.

use std::fmt::Write;

use super::{COMMANDS, Context, Done, Failure, SYNTAX, glob, wrong_arity};
use crate::kv::extent::Bytes;
use crate::kv::region::Region;
use crate::kv::request::{self, BULK_MAX};

/// The version of Redis whose answers these are.
const VERSION: &str = "7.0.0";

/// What INFO tells of the server.
#[derive(Clone, Debug, Default)]
pub(in crate::kv) struct About {
    /// The port that it listens on.
    pub(in crate::kv) port: u16,
    /// Seconds since it started.
    pub(in crate::kv) uptime_s: u64,
    /// Clients now.
    pub(in crate::kv) clients: usize,
    /// Clients since the start.
    pub(in crate::kv) connections: u64,
    /// Requests since the start.
    pub(in crate::kv) requests: u64,
    /// Bytes of a buffer.
    pub(in crate::kv) buffer_size: u64,
    /// How writes become durable.
    pub(in crate::kv) flush_domain: &'static str,
    /// Whether the last epoch that was answered could not be made durable.
    pub(in crate::kv) failed: bool,
}

pub(super) fn ping<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    match cx.arguments.len() {
        1 => cx.out.simple("PONG"),
        2 => return echo(cx),
        _ => return Err(wrong_arity("ping")),
    }
    Ok(())
}

pub(super) fn echo<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    cx.arguments.copy(cx.region, 1, &mut cx.scratch.value);
    cx.out.bulk(&cx.scratch.value);
    Ok(())
}

pub(super) fn quit<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    cx.out.simple("OK");
    Err(Failure::Quit)
}

pub(super) fn select<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    match cx.integer(1)? {
        0 => cx.out.simple("OK"),
        _ => return Err(Failure::error("ERR DB index is out of range")),
    }
    Ok(())
}

pub(super) fn hello<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let mut resp3 = cx.out.resp3;
    if cx.arguments.len() > 1 {
        let version = request::integer(cx.word(1)).ok_or_else(|| {
            Failure::error("ERR Protocol version is not an integer or out of range")
        })?;
        resp3 = match version {
            2 => false,
            3 => true,
            _ => return Err(Failure::error("NOPROTO unsupported protocol version")),
        };
    }
    let mut name = None;
    let mut at = 2;
    while at < cx.arguments.len() {
        let left = cx.arguments.len() - at;
        match cx.word(at) {
            b"auth" if left > 2 => {
                return Err(Failure::error(
                    "ERR AUTH <password> called without any password configured for the default \
                     user. Are you sure your configuration is correct?",
                ));
            }
            b"setname" if left > 1 => {
                name = Some(client_name(cx, at + 1)?);
                at += 2;
            }
            _ => return Err(Failure::error("ERR Syntax error in HELLO option")),
        }
    }
    if let Some(name) = name {
        cx.session.name = name;
    }
    cx.out.resp3 = resp3;
    cx.out.map(7);
    for (key, value) in [("server", "pasted-kv"), ("version", VERSION)] {
        cx.out.bulk(key.as_bytes());
        cx.out.bulk(value.as_bytes());
    }
    cx.out.bulk(b"proto");
    cx.out.integer(if resp3 { 3 } else { 2 });
    cx.out.bulk(b"id");
    cx.out.integer(cx.session.id as i64);
    for (key, value) in [("mode", "standalone"), ("role", "master")] {
        cx.out.bulk(key.as_bytes());
        cx.out.bulk(value.as_bytes());
    }
    cx.out.bulk(b"modules");
    cx.out.array(0);
    Ok(())
}

fn client_name<R: Region + Bytes>(
    cx: &mut Context<'_, R>,
    number: usize,
) -> Result<Vec<u8>, Failure> {
    let mut name = Vec::new();
    if cx.arguments.len_of(number) <= 256 {
        cx.arguments.copy(cx.region, number, &mut name);
        if name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
            return Ok(name);
        }
    }
    Err(Failure::error("ERR Client names cannot contain spaces, newlines or special characters."))
}

fn unknown_subcommand(name: &[u8], of: &str) -> Failure {
    let name = String::from_utf8_lossy(name);
    Failure::error(format!("ERR unknown subcommand '{name}'. Try {of} HELP."))
}

pub(super) fn client<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let given = cx.arguments.len();
    match (cx.word(1), given) {
        (b"id", 2) => cx.out.integer(cx.session.id as i64),
        (b"getname", 2) => cx.out.bulk(&cx.session.name),
        (b"setname", 3) => {
            cx.session.name = client_name(cx, 2)?;
            cx.out.simple("OK");
        }
        (b"setinfo", 4) => cx.out.simple("OK"),
        (b"id" | b"getname" | b"setname" | b"setinfo", _) => {
            let name = String::from_utf8_lossy(cx.word(1)).into_owned();
            return Err(wrong_arity(&format!("client|{name}")));
        }
        (other, _) => return Err(unknown_subcommand(other, "CLIENT")),
    }
    Ok(())
}

pub(super) fn config<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    if cx.word(1) != b"get" {
        return Err(unknown_subcommand(cx.word(1), "CONFIG"));
    }
    if cx.arguments.len() < 3 {
        return Err(wrong_arity("config|get"));
    }
    let (_, limit) = cx.store.buffers();
    let known = [
        ("appendfsync", "always".to_owned()),
        ("appendonly", "yes".to_owned()),
        ("databases", "1".to_owned()),
        ("maxmemory", (u64::from(limit) * cx.about.buffer_size).to_string()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("port", cx.about.port.to_string()),
        ("proto-max-bulk-len", BULK_MAX.to_string()),
        ("save", String::new()),
    ];
    let mut asked = [false; 8];
    for number in 2..cx.arguments.len() {
        let pattern = cx.word(number);
        for (asked, (name, _)) in asked.iter_mut().zip(&known) {
            *asked |= glob::matches(pattern, name.as_bytes());
        }
    }
    let found = known.iter().zip(asked).filter(|(_, asked)| *asked);
    cx.out.map(found.clone().count());
    for ((name, value), _) in found {
        cx.out.bulk(name.as_bytes());
        cx.out.bulk(value.as_bytes());
    }
    Ok(())
}

pub(super) fn command<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    if cx.arguments.len() > 1 {
        match cx.word(1) {
            b"count" => cx.out.integer(COMMANDS.len() as i64),
            // Help for the interactive mode of redis-cli, which does without.
            b"docs" => cx.out.map(0),
            other => return Err(unknown_subcommand(other, "COMMAND")),
        }
        return Ok(());
    }
    cx.out.array(COMMANDS.len());
    for command in COMMANDS {
        cx.out.array(6);
        cx.out.bulk(command.name.as_bytes());
        cx.out.integer(command.arity.into());
        cx.out.array(command.flags.len());
        command.flags.iter().for_each(|flag| cx.out.simple(flag));
        command.keys.iter().for_each(|key| cx.out.integer((*key).into()));
    }
    Ok(())
}

pub(super) fn info<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    if cx.arguments.len() > 2 {
        return Err(SYNTAX);
    }
    let asked = if cx.arguments.len() == 2 { cx.word(1).to_vec() } else { b"default".to_vec() };
    let everything = matches!(&asked[..], b"default" | b"all" | b"everything");
    let About { port, uptime_s, clients, connections, requests, buffer_size, .. } = *cx.about;
    let (used, limit) = cx.store.buffers();
    let stats = cx.store.stats();
    let keys = cx.store.len();
    let status = if cx.about.failed { "err" } else { "ok" };
    let sections = [
        (
            "Server",
            format!(
                "redis_version:{VERSION}\r\nserver_name:pasted-kv\r\ntcp_port:{port}\r\n\
                 uptime_in_seconds:{uptime_s}\r\n"
            ),
        ),
        ("Clients", format!("connected_clients:{clients}\r\n")),
        (
            "Memory",
            format!(
                "used_memory:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\n\
                 used_buffers:{used}\r\nmax_buffers:{limit}\r\n",
                u64::from(used) * buffer_size,
                u64::from(limit) * buffer_size
            ),
        ),
        (
            "Persistence",
            format!(
                "loading:0\r\naof_enabled:1\r\naof_last_write_status:{status}\r\n\
                 flush_domain:{}\r\nlog_records:{}\r\nepochs:{}\r\ncopied_bytes:{}\r\n\
                 moved_bytes:{}\r\n",
                cx.about.flush_domain, stats.records, stats.epochs, stats.copied, stats.moved
            ),
        ),
        (
            "Stats",
            format!(
                "total_connections_received:{connections}\r\n\
                 total_commands_processed:{requests}\r\nexpired_keys:{}\r\n",
                stats.expired
            ),
        ),
        (
            "Keyspace",
            match keys {
                0 => String::new(),
                _ => format!("db0:keys={keys},expires={},avg_ttl=0\r\n", cx.store.mortal()),
            },
        ),
    ];
    let mut text = String::new();
    for (name, lines) in sections {
        if everything || name.to_ascii_lowercase().as_bytes() == asked {
            let gap = if text.is_empty() { "" } else { "\r\n" };
            // A string can grow.
            let _ = write!(text, "{gap}# {name}\r\n{lines}");
        }
    }
    cx.out.bulk(text.as_bytes());
    Ok(())
}
