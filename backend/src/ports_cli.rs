//! `pasted ports`: which kinds of port this host can do for this user, and what to do
//! about the others. Every kind is tried, and nothing is left behind.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::Args;
use serde::Serialize;

use crate::attachment::{KINDS, Kind};

const EXAMPLES: &str = "\
Examples:
  pasted ports           a table
  pasted ports --json    one JSON object

The exit code is 0 whatever works and whatever does not.";

/// Arguments of `pasted ports`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PortsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found of all kinds.
#[derive(Debug, Serialize)]
struct Found {
    ports: Vec<Row>,
}

/// What was found of one kind.
#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    form: &'static str,
    about: &'static str,
    /// Guests that may name the same device.
    guests_max: usize,
    works: bool,
    /// What was found, or why it does not work.
    found: String,
    /// What to do where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Row {
    fn of(kind: &Kind) -> Row {
        let (works, found, help) = match (kind.probe)() {
            Ok(found) => (true, found, None),
            Err(unavailable) => (false, unavailable.why, Some(unavailable.help.into_owned())),
        };
        let &Kind { prefix, form, about, guests_max, .. } = kind;
        Row { kind: prefix, form, about, guests_max, works, found: found.into_owned(), help }
    }
}

/// Tries every kind, and prints what was found.
///
/// # Errors
/// What the system said when the result could not be written.
pub fn run(args: PortsArgs) -> io::Result<()> {
    let found = Found { ports: KINDS.iter().map(Row::of).collect() };
    let mut out = match args.json {
        true => serde_json::to_string_pretty(&found)?,
        false => table(&found.ports),
    };
    if !out.ends_with('\n') {
        out.push('\n');
    }
    io::stdout().write_all(out.as_bytes())
}

/// A line for each kind, with what was found below it.
fn table(rows: &[Row]) -> String {
    const HEAD: &str = "PORT";
    let width = rows.iter().map(|row| row.form.len()).chain([HEAD.len()]).max().unwrap_or(0);
    let mut text = format!("{HEAD:width$}  WORKS  WHAT IT IS\n");
    // Writing to a string cannot fail.
    for row in rows {
        let works = if row.works { "yes" } else { "no" };
        let _ = writeln!(text, "{:width$}  {works:5}  {}", row.form, row.about);
        let _ = writeln!(text, "{:width$}         {}", "", row.found);
        if let Some(help) = &row.help {
            let _ = writeln!(text, "{:width$}         to have it: {help}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up_and_says_what_to_do() {
        let row = |form, works, found: &str, help: Option<&str>| Row {
            kind: "k",
            form,
            about: "a device",
            guests_max: 1,
            works,
            found: found.to_owned(),
            help: help.map(str::to_owned),
        };
        let rows =
            [row("k:NAME", true, "all there", None), row("other:", false, "none", Some("get one"))];
        assert_eq!(
            table(&rows),
            "PORT    WORKS  WHAT IT IS\n\
             k:NAME  yes    a device\n               \
             all there\n\
             other:  no     a device\n               \
             none\n               \
             to have it: get one\n"
        );
    }
}
