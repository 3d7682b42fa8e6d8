//! `pasted region export`: what the log holds, as one JSON object per line.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use paste_pmem::wal::{Piece, Record};
use paste_pmem::{Image, RegionError};
use serde::Serialize;

use super::log::Log;
use super::{ExportArgs, RegionFailure};

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

pub(super) fn run(args: &ExportArgs) -> Result<(), RegionFailure> {
    let image = Image::open(&args.path)?;
    if image.in_use() {
        return Err(RegionError::InUse { region: image.name().to_owned() }.into());
    }
    let mut out: Box<dyn Write> =
        match &args.output {
            // A file that is there is not overwritten: it may be an earlier export.
            Some(path) => Box::new(BufWriter::new(File::create_new(path).map_err(|source| {
                RegionFailure::File { path: path.display().to_string(), source }
            })?)),
            None => Box::new(BufWriter::new(io::stdout().lock())),
        };
    let mut written = Ok(());
    let mut payload = Vec::new();
    let log = Log::read(&image, image.geometry(), |record, pieces| {
        if written.is_ok() {
            written = write(&mut out, &image, &record, pieces, &mut payload);
        }
    });
    written.and_then(|()| out.flush()).map_err(RegionFailure::Output)?;
    for fault in &log.faults {
        eprintln!("pasted: {}: {fault}", image.name());
    }
    match log.faults.len() {
        0 => Ok(()),
        count => Err(RegionFailure::Faults { path: image.name().to_owned(), count }),
    }
}

fn write(
    out: &mut dyn Write,
    image: &Image,
    record: &Record<'_>,
    pieces: &[Piece],
    payload: &mut Vec<u8>,
) -> io::Result<()> {
    payload.clear();
    let mut damaged = !record.damaged().is_empty();
    for piece in pieces {
        let from = payload.len();
        payload.resize(from + usize::from(piece.len), 0);
        damaged |= !image.read_buffer(piece.buf, piece.offset, &mut payload[from..]);
    }
    let (tag, tag_hex) = text_or_hex(record.tag());
    let (payload, payload_hex) = match damaged {
        true => (None, None),
        false => text_or_hex(payload),
    };
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
