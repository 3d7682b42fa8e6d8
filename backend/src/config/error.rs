//! What is wrong with a configuration: where, what, and what to do.

use std::fmt;
use std::ops::Range;

use super::{FILE_LEN_MAX, GUESTS_MAX};

/// Errors that are reported of one file. More of them are rarely wanted: they
/// tend to have one cause.
const ERRORS_MAX: usize = 32;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line and column, from 1; `None` where it is about the whole file.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl ConfigError {
    pub(super) fn unreadable(source: std::io::Error) -> ConfigError {
        ConfigError { place: None, message: format!("cannot be read: {source}") }
    }

    pub(super) fn too_long() -> ConfigError {
        let message = format!(
            "is longer than {FILE_LEN_MAX} bytes: name a configuration of at most \
             {GUESTS_MAX} guests"
        );
        ConfigError { place: None, message }
    }

    pub(super) fn not_utf8(line: usize) -> ConfigError {
        ConfigError { place: Some((line, 1)), message: "is not UTF-8: save it as UTF-8".into() }
    }
}

/// All that is wrong with one file, in its order. Shown one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    errors: Vec<ConfigError>,
    /// Errors beyond those that are kept.
    more: usize,
}

impl ConfigErrors {
    pub(super) fn new(file: &str, errors: Vec<ConfigError>) -> ConfigErrors {
        ConfigErrors { file: file.to_owned(), errors, more: 0 }
    }

    /// The errors, in the order of the file.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.file)?;
            if let Some((line, column)) = error.place {
                write!(f, "{line}:{column}:")?;
            }
            write!(f, " {}", error.message)?;
        }
        if self.more > 0 {
            write!(f, "\n{}: and {} more", self.file, self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Errors as they are found, by byte range of the text.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: Vec<(Range<usize>, String)>,
}

impl Findings {
    /// Notes that `message` is to be said of `at`.
    pub(super) fn add(&mut self, at: Range<usize>, message: impl Into<String>) {
        self.found.push((at, message.into()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The errors in the order of the text.
    pub(super) fn into_errors(mut self, file: &str, text: &str) -> ConfigErrors {
        self.found.sort_by_key(|(at, _)| at.start);
        let more = self.found.len().saturating_sub(ERRORS_MAX);
        self.found.truncate(ERRORS_MAX);
        let errors = self
            .found
            .into_iter()
            .map(|(at, message)| ConfigError { place: Some(place(text, at.start)), message })
            .collect();
        ConfigErrors { file: file.to_owned(), errors, more }
    }
}

/// Line and column, from 1, of a byte of the text. Columns count characters.
pub(super) fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (1 + before.matches('\n').count(), 1 + before[line_start..].chars().count())
}
