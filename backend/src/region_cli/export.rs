//! `pasted region export`: what the log holds, as one JSON object per line.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};

use paste_pmem::wal::{Piece, Record};
use paste_pmem::{Image, RegionError};
use serde::Serialize;

use super::log::Log;
use super::show::Bar;
use super::{ExportArgs, RegionFailure, print};

/// One record. Bytes that are UTF-8 are text; others are hexadecimal digits under
/// another name.
#[derive(Serialize)]
struct Line<'a> {
    sequence: u64,
    time_ns: u64,
    kind: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag_hex: Option<String>,
    /// Where the payload is.
    pieces: Vec<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
    /// Some of it is not what was recorded: none of it is given out.
    damaged: bool,
}

#[derive(Serialize)]
struct Place {
    buf: u32,
    offset: u16,
    len: u16,
}

/// What was written.
#[derive(Serialize)]
struct Exported<'a> {
    path: &'a str,
    output: Option<String>,
    records: u64,
    /// Records of which no payload was given out.
    damaged: u64,
    /// Bytes of payload that was.
    payload: u64,
    faults: &'a [String],
}

pub(super) fn run(args: &ExportArgs) -> Result<(), RegionFailure> {
    let image = Image::open(&args.path)?;
    if image.in_use() {
        return Err(RegionError::InUse { region: image.name().to_owned() }.into());
    }
    let output = args.output.as_ref().map(|path| path.display().to_string());
    let mut out: Box<dyn Write> = match (&args.output, &output) {
        // A file that is there is not overwritten: it may be an earlier export.
        (Some(path), Some(name)) => Box::new(BufWriter::new(
            File::create_new(path)
                .map_err(|source| RegionFailure::File { path: name.clone(), source })?,
        )),
        _ => Box::new(BufWriter::new(io::stdout().lock())),
    };
    // Where the records are on a terminal, nothing is drawn between them.
    let quiet = args.json || (args.output.is_none() && io::stdout().is_terminal());
    let bar = Bar::without_end("exporting", quiet);
    let (mut records, mut damaged, mut total) = (0, 0, 0);
    let mut written = Ok(());
    let mut payload = Vec::new();
    let log = Log::read(&image, image.geometry(), |record, pieces| {
        if written.is_ok() {
            let read = read(&image, &record, pieces, &mut payload);
            written = write(&mut out, &record, pieces, read.then_some(&payload));
            records += 1;
            damaged += u64::from(!read);
            total += if read { payload.len() as u64 } else { 0 };
            bar.add(payload.len() as u64);
        }
    });
    drop(bar);
    written.and_then(|()| out.flush()).map_err(RegionFailure::Output)?;
    drop(out);
    let path = image.name();
    if output.is_some() {
        let text = format!("{path}: {records} records, {total} bytes of payload\n");
        let faults = &log.faults;
        let exported = Exported { path, output, records, damaged, payload: total, faults };
        print(args.json, &exported, &text)?;
    }
    if !args.json {
        log.faults.iter().for_each(|fault| eprintln!("pasted: {path}: {fault}"));
    }
    match log.faults.len() {
        0 => Ok(()),
        count => Err(RegionFailure::Faults { path: path.to_owned(), count }),
    }
}

/// Reads what a record names; whether all of it is what was recorded.
fn read(image: &Image, record: &Record<'_>, pieces: &[Piece], payload: &mut Vec<u8>) -> bool {
    payload.clear();
    let mut sound = record.damaged().is_empty();
    for piece in pieces {
        let from = payload.len();
        payload.resize(from + usize::from(piece.len), 0);
        sound &= image.read_buffer(piece.buf, piece.offset, &mut payload[from..]);
    }
    sound
}

/// Writes a record's line; with its payload, unless some of that is damaged.
fn write(
    out: &mut dyn Write,
    record: &Record<'_>,
    pieces: &[Piece],
    payload: Option<&Vec<u8>>,
) -> io::Result<()> {
    let damaged = payload.is_none();
    let (tag, tag_hex) = text_or_hex(record.tag());
    let (payload, payload_hex) = payload.map_or((None, None), |bytes| text_or_hex(bytes));
    let place = |piece: &Piece| Place { buf: piece.buf, offset: piece.offset, len: piece.len };
    let line = Line {
        sequence: record.sequence(),
        time_ns: record.time(),
        kind: record.kind(),
        tag,
        tag_hex,
        pieces: pieces.iter().map(place).collect(),
        payload,
        payload_hex,
        damaged,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

fn text_or_hex(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())),
    }
}
