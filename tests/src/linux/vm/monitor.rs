//! The machine's monitor: what is done to a machine from outside, by QEMU's QMP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::wait;

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: BufReader<UnixStream>,
    /// Events that came while something else was waited for.
    events: Vec<String>,
}

impl Monitor {
    /// Connects to the monitor at this socket, which may not be there yet.
    pub(super) fn connect(path: &Path) -> Monitor {
        let stream = wait::until("the monitor is there", || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(super::LIMIT)).expect("a timeout");
        let mut monitor = Monitor { stream: BufReader::new(stream), events: Vec::new() };
        let greeting = monitor.read();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        monitor.execute("qmp_capabilities", &json!({}));
        monitor
    }

    /// Runs a command, which must succeed; what it returned.
    #[track_caller]
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).expect("the monitor listens");
        loop {
            let answer = self.read();
            if let Some(event) = answer["event"].as_str() {
                self.events.push(event.to_owned());
            } else {
                let value = answer.get("return");
                return value.unwrap_or_else(|| panic!("{command}: {answer}")).clone();
            }
        }
    }

    /// Waits until an event has come since the last command that asked for it.
    pub(super) fn wait_event(&mut self, name: &str) {
        while !self.events.iter().any(|event| event == name) {
            let said = self.read();
            self.events.extend(said["event"].as_str().map(str::to_owned));
        }
        self.events.retain(|event| event != name);
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        let len = self.stream.read_line(&mut line).expect("the monitor answers");
        assert_ne!(len, 0, "the monitor has gone");
        serde_json::from_str(&line).expect("JSON")
    }
}
