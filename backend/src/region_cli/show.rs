//! How regions are shown: progress, times, and what there is to say of each.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paste_pmem::{Domain, Image, Part};
use serde::Serialize;

use super::log::Log;
use crate::config::show_size;

/// How often a bar is drawn that nothing moves.
const TICK: Duration = Duration::from_millis(100);

/// A progress bar on stderr, if that is a terminal and wanted.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new(what: &'static str, json: bool) -> Bar {
        let template = "{msg} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        Bar::of(ProgressBar::new(0), what, template, json)
    }

    /// For work of which nobody knows how much it is.
    pub(super) fn without_end(what: &'static str, json: bool) -> Bar {
        let template = "{msg} {spinner} {bytes} {bytes_per_sec}";
        let bar = Bar::of(ProgressBar::no_length(), what, template, json);
        bar.0.enable_steady_tick(TICK);
        bar
    }

    fn of(bar: ProgressBar, what: &'static str, template: &str, json: bool) -> Bar {
        // Hides itself where stderr is no terminal.
        bar.set_draw_target(match json {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        });
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Bar(bar)
    }

    pub(super) fn add(&self, done: u64) {
        self.0.inc(done);
    }

    pub(super) fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A part of what the guest maps.
#[derive(Serialize)]
pub(super) struct Place {
    offset: u64,
    len: u64,
}

impl From<Part> for Place {
    fn from(part: Part) -> Place {
        Place { offset: part.offset, len: part.len }
    }
}

/// What there is to say of a region.
#[derive(Serialize)]
pub(super) struct Summary {
    pub(super) path: String,
    pub(super) guest: String,
    pub(super) uuid: String,
    pub(super) created_ns: u64,
    pub(super) in_use: bool,
    pub(super) left: &'static str,
    pub(super) sequence: u64,
    pub(super) durable: &'static str,
    pub(super) size: u64,
    pub(super) buffer_size: u32,
    pub(super) buffer_count: u32,
    pub(super) claimed: u32,
    pub(super) records: Log,
    pub(super) claims: Place,
    pub(super) log: Place,
    pub(super) index: Place,
    pub(super) rings: Place,
    pub(super) buffers: Place,
}

impl Summary {
    pub(super) fn of(image: &Image) -> Summary {
        let geometry = image.geometry();
        Summary {
            path: image.name().to_owned(),
            guest: image.guest().to_owned(),
            uuid: image.uuid().to_string(),
            created_ns: image.created_ns(),
            in_use: image.in_use(),
            left: match (image.sequence(), image.is_clean()) {
                (0, _) => "unfinished",
                (_, true) => "clean",
                (_, false) => "open",
            },
            sequence: image.sequence(),
            durable: durable(image.domain()),
            size: geometry.file_len(),
            buffer_size: geometry.buffer_size(),
            buffer_count: geometry.buffer_count(),
            claimed: image.claimed(),
            records: Log::read(image, geometry, |_, _| ()),
            claims: geometry.claims().into(),
            log: geometry.log().into(),
            index: geometry.index().into(),
            rings: geometry.rings().into(),
            buffers: geometry.buffers().into(),
        }
    }

    pub(super) fn text(&self) -> String {
        let left = match (self.in_use, self.left) {
            (true, _) => "in use by another process",
            (false, "clean") => "closed in good order",
            (false, "unfinished") => "a mirror whose first copy was never finished",
            (false, _) => "open: its process died",
        };
        let durable = match self.durable {
            "cpu-cache" => "its memory is, once written back from the CPU's cache",
            "file" => "by a sync of the file",
            _ => "not without a mirror: it goes with the machine",
        };
        let place = |place: &Place| format!("{} at {:#x}", show_size(place.len), place.offset);
        format!(
            "{}\n  guest    {}\n  identity {}\n  created  {}\n  left     {left}\n  \
             durable  {durable}\n  size     {}\n  buffers  {} of {} bytes at {:#x}, {} claimed\n  \
             records  {}\n  claims   {}\n  log      {}\n  index    {}\n  rings    {}\n",
            self.path,
            self.guest,
            self.uuid,
            utc(self.created_ns),
            show_size(self.size),
            self.buffer_count,
            self.buffer_size,
            self.buffers.offset,
            self.claimed,
            self.records.text(),
            place(&self.claims),
            place(&self.log),
            place(&self.index),
            place(&self.rings),
        )
    }
}

fn durable(domain: Domain) -> &'static str {
    match domain {
        Domain::None => "none",
        Domain::CpuCache(_) => "cpu-cache",
        Domain::Mirror => "file",
    }
}

/// A time as RFC 3339 writes it, in whole seconds.
pub(super) fn utc(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of the year 0, in eras of 400 years: a leap day is then
    // the last of its year (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds * 1_000_000_000 + 999), text);
        }
    }
}
