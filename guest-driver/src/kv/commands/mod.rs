//! What a client can ask: a table of commands, and the answers.
//!
//! Knows the store and the format of answers, and neither flows nor channels. A
//! command is done whole, or not at all: one that finds no empty buffer at hand
//! changes nothing, says nothing, and is tried again.

mod glob;
mod keys;
mod server;
mod strings;

use std::borrow::Cow;

use super::chain::Chain;
use super::extent::{Bytes, Extent};
use super::region::Region;
use super::reply::Output;
use super::request::{self, Argument, Parser};
use super::store::{Found, KEY_MAX, Refused, Store};

pub(super) use server::About;

/// Words of an unknown command that the answer repeats, in bytes.
const REPEATED_MAX: usize = 128;

const SYNTAX: Failure = Failure::Error(Cow::Borrowed("ERR syntax error"));
const NOT_INTEGER: Failure =
    Failure::Error(Cow::Borrowed("ERR value is not an integer or out of range"));

/// What a client is, besides its flow.
#[derive(Debug)]
pub(super) struct Session {
    /// Its number.
    pub(super) id: u64,
    /// The name that it gave itself.
    pub(super) name: Vec<u8>,
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The client is told.
    Error(Cow<'static, str>),
    /// No empty buffer is at hand: to be tried again.
    Starved,
    /// Done, and the client wants to end.
    Quit,
}

impl Failure {
    fn error(text: impl Into<Cow<'static, str>>) -> Failure {
        Failure::Error(text.into())
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        match refused {
            Refused::Full => {
                Failure::error("OOM command not allowed when used memory > 'maxmemory'.")
            }
            Refused::Starved => Failure::Starved,
        }
    }
}

/// Memory that commands use again and again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    key: Vec<u8>,
    value: Vec<u8>,
    word: Vec<u8>,
    extents: Vec<Extent>,
}

/// The request, and all that it can touch.
pub(super) struct Context<'a, R> {
    pub(super) region: &'a mut R,
    pub(super) store: &'a mut Store,
    pub(super) session: &'a mut Session,
    pub(super) about: &'a About,
    pub(super) out: &'a mut Output,
    pub(super) scratch: &'a mut Scratch,
    pub(super) arguments: Arguments<'a>,
    pub(super) now_ms: u64,
}

/// The arguments of a request, the command's name first.
#[derive(Clone, Copy)]
pub(super) struct Arguments<'a> {
    pub(super) chain: &'a Chain,
    pub(super) parser: &'a Parser,
}

impl Arguments<'_> {
    fn len(&self) -> usize {
        self.parser.arguments().len()
    }

    fn at(&self, number: usize) -> Option<Argument> {
        self.parser.arguments().get(number).copied()
    }

    fn len_of(&self, number: usize) -> usize {
        self.at(number).map_or(0, Argument::len)
    }

    /// Copies an argument out.
    fn copy(&self, memory: &impl Bytes, number: usize, out: &mut Vec<u8>) {
        out.clear();
        if let Some(argument) = self.at(number) {
            argument.copy(self.parser.inline(), self.chain, memory, out);
        }
    }
}

type Done = Result<(), Failure>;

impl<R: Region + Bytes> Context<'_, R> {
    /// An argument as a word in small letters; the empty word if it is too long to
    /// be one.
    fn word(&mut self, number: usize) -> &[u8] {
        self.scratch.word.clear();
        if self.arguments.len_of(number) <= 64 {
            self.arguments.copy(self.region, number, &mut self.scratch.word);
            self.scratch.word.make_ascii_lowercase();
        }
        &self.scratch.word
    }

    fn integer(&mut self, number: usize) -> Result<i64, Failure> {
        request::integer(self.word(number)).ok_or(NOT_INTEGER)
    }

    /// Copies the key out, for the calls that follow.
    fn key(&mut self, number: usize) -> Done {
        if self.arguments.len_of(number) > KEY_MAX {
            return Err(Failure::error(format!(
                "ERR keys of more than {KEY_MAX} bytes have no room"
            )));
        }
        self.arguments.copy(self.region, number, &mut self.scratch.key);
        Ok(())
    }

    /// Finds the key of this argument.
    fn find(&mut self, number: usize) -> Result<Option<Found>, Failure> {
        self.key(number)?;
        Ok(self.store.find(self.region, self.now_ms, &self.scratch.key))
    }

    /// Answers with a value.
    fn answer_value(&mut self, found: Option<Found>) {
        let Some(found) = found else {
            self.out.nil();
            return;
        };
        match found.packed() {
            Some(extent) => {
                let region = &*self.region;
                self.out.bulk_with(extent.len.into(), |out| {
                    region.read(extent.buffer, extent.offset, out);
                });
            }
            None => {
                self.scratch.extents.clear();
                self.store.bulk(self.region, &found, &mut self.scratch.extents);
                for &extent in &self.scratch.extents {
                    self.store.hold(extent.buffer);
                    self.out.range(extent);
                }
            }
        }
    }
}

/// A command.
struct Command {
    name: &'static str,
    /// Arguments, the name included; negative: at least so many.
    arity: i8,
    /// As COMMAND tells it: write, denyoom, readonly, fast, admin.
    flags: &'static [&'static str],
    /// First key, last key (negative: from the end), step.
    keys: [i8; 3],
}

const READ: &[&str] = &["readonly", "fast"];
const WRITE: &[&str] = &["write", "denyoom"];
const CHANGE: &[&str] = &["write", "fast"];
const OTHER: &[&str] = &["loading", "stale", "fast"];
const ONE: [i8; 3] = [1, 1, 1];
const ALL: [i8; 3] = [1, -1, 1];
const NO_KEY: [i8; 3] = [0, 0, 0];

macro_rules! commands {
    ($($name:literal $arity:literal $flags:ident $keys:expr => $run:path;)*) => {
        /// Sorted by name.
        const COMMANDS: &[Command] = &[$(Command {
            name: $name, arity: $arity, flags: $flags, keys: $keys,
        }),*];

        /// Does what a command of the table does.
        fn dispatch<R: Region + Bytes>(name: &str, context: &mut Context<'_, R>) -> Done {
            match name {
                $($name => $run(context),)*
                _ => Ok(()),
            }
        }
    };
}

commands! {
    "append" 3 WRITE ONE => strings::append;
    "client" -2 OTHER NO_KEY => server::client;
    "command" -1 OTHER NO_KEY => server::command;
    "config" -2 OTHER NO_KEY => server::config;
    "dbsize" 1 READ NO_KEY => keys::dbsize;
    "decr" 2 WRITE ONE => strings::decr;
    "decrby" 3 WRITE ONE => strings::decrby;
    "del" -2 CHANGE ALL => keys::del;
    "echo" 2 OTHER NO_KEY => server::echo;
    "exists" -2 READ ALL => keys::exists;
    "expire" -3 CHANGE ONE => keys::expire;
    "flushall" -1 CHANGE NO_KEY => keys::flushall;
    "flushdb" -1 CHANGE NO_KEY => keys::flushall;
    "get" 2 READ ONE => strings::get;
    "getdel" 2 CHANGE ONE => strings::getdel;
    "hello" -1 OTHER NO_KEY => server::hello;
    "incr" 2 WRITE ONE => strings::incr;
    "incrby" 3 WRITE ONE => strings::incrby;
    "info" -1 OTHER NO_KEY => server::info;
    "mget" -2 READ ALL => strings::mget;
    "mset" -3 WRITE [1, -1, 2] => strings::mset;
    "persist" 2 CHANGE ONE => keys::persist;
    "pexpire" -3 CHANGE ONE => keys::pexpire;
    "ping" -1 OTHER NO_KEY => server::ping;
    "pttl" 2 READ ONE => keys::pttl;
    "quit" -1 OTHER NO_KEY => server::quit;
    "scan" -2 READ NO_KEY => keys::scan;
    "select" 2 OTHER NO_KEY => server::select;
    "set" -3 WRITE ONE => strings::set;
    "strlen" 2 READ ONE => strings::strlen;
    "ttl" 2 READ ONE => keys::ttl;
    "type" 2 READ ONE => keys::type_of;
    "unlink" -2 CHANGE ALL => keys::del;
}

/// Does what the request asks, and answers. The failure is told already, if it is
/// one to tell.
pub(super) fn run<R: Region + Bytes>(context: &mut Context<'_, R>) -> Done {
    let word = context.word(0);
    let found = std::str::from_utf8(word)
        .ok()
        .and_then(|name| COMMANDS.binary_search_by(|command| command.name.cmp(name)).ok());
    let done = match found.map(|at| &COMMANDS[at]) {
        None => Err(unknown(context)),
        Some(command) => {
            let given = context.arguments.len();
            let wanted = usize::from(command.arity.unsigned_abs());
            let writes = command.flags.contains(&"write");
            if given != wanted && (command.arity > 0 || given < wanted) {
                Err(wrong_arity(command.name))
            } else if writes && context.about.failed {
                Err(Failure::error(
                    "MISCONF Errors writing to the log: it could not be made durable",
                ))
            } else {
                dispatch(command.name, context)
            }
        }
    };
    if let Err(Failure::Error(text)) = &done {
        context.out.error(text);
        return Ok(());
    }
    done
}

fn wrong_arity(name: &str) -> Failure {
    Failure::error(format!("ERR wrong number of arguments for '{name}' command"))
}

/// As Redis words it, with the first of the arguments.
fn unknown<R: Region + Bytes>(context: &mut Context<'_, R>) -> Failure {
    let mut word = Vec::new();
    let mut repeat = |number: usize, room: usize| {
        context.arguments.copy(context.region, number, &mut word);
        String::from_utf8_lossy(&word[..word.len().min(room)]).into_owned()
    };
    let name = repeat(0, REPEATED_MAX);
    let mut beginning = String::new();
    for number in 1..context.arguments.len() {
        if beginning.len() >= REPEATED_MAX {
            break;
        }
        let argument = repeat(number, REPEATED_MAX - beginning.len());
        beginning.push_str(&format!("'{argument}' "));
    }
    Failure::error(format!("ERR unknown command '{name}', with args beginning with: {beginning}"))
}

#[cfg(test)]
mod tests;
