//! The process's own log: lines with a time on stderr, as text or as JSON.
//!
//! Only the control plane logs; what the data path does is counted.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{Log, LogFormat, LogLevel};

/// The variable that chooses what is logged when the command line does not.
pub const ENV: &str = "PASTED_LOG";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be understood.
    #[error("log filter \"{filter}\": {source}: write a level such as debug, or pasted=debug,info")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
}

impl LogLevel {
    /// The level as a filter has it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// What is logged: the command line's filter goes before that of [`ENV`], and
/// both before the configuration's level.
fn filter(
    log: Log,
    command_line: Option<&str>,
    environment: Option<&str>,
) -> Result<EnvFilter, LoggingError> {
    let text = command_line
        .or(environment.filter(|filter| !filter.trim().is_empty()))
        .unwrap_or(log.level.as_str());
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| LoggingError::Filter { filter: text.to_owned(), source })
}

/// Starts the log. A second start, as in tests, changes nothing.
pub fn init(log: Log, command_line: Option<&str>) -> Result<(), LoggingError> {
    let environment = std::env::var(ENV).ok();
    let filter = filter(log, command_line, environment.as_deref())?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error means that there is a log already.
    let _ = match log.format {
        LogFormat::Text => {
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(command_line: Option<&str>, environment: Option<&str>) -> String {
        filter(Log::default(), command_line, environment).unwrap().to_string()
    }

    #[test]
    fn the_nearest_to_the_operator_wins() {
        assert_eq!(chosen(None, None), "info");
        assert_eq!(chosen(None, Some("")), "info");
        assert_eq!(chosen(None, Some("warn")), "warn");
        assert_eq!(chosen(Some("debug"), Some("warn")), "debug");
    }

    #[test]
    fn a_wrong_filter_says_what_to_write() {
        let error = filter(Log::default(), Some("pasted=loud"), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "log filter \"pasted=loud\": error parsing level filter: expected one of \"off\", \
             \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5: write a level such \
             as debug, or pasted=debug,info"
        );
    }
}
