//! Processes that end with the test that started them, and tell what they said
//! if it fails.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::wait;

/// Bytes of output that are kept of each process.
const OUTPUT_MAX: usize = 1 << 20;

/// A process with its output captured. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Kept open: some programs end when they can read no more.
    stdin: Option<ChildStdin>,
    output: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a program.
    pub fn spawn(name: &str, command: &mut Command) -> Process {
        let spawned =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = Arc::new(Mutex::new(Vec::new()));
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|s| Box::new(s) as _),
            child.stderr.take().map(|s| Box::new(s) as _),
        ];
        let readers = streams
            .into_iter()
            .flatten()
            .map(|stream| {
                let output = Arc::clone(&output);
                std::thread::spawn(move || capture(stream, &output))
            })
            .collect();
        let stdin = child.stdin.take();
        Process { name: name.to_owned(), child, stdin, output, readers }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Says something to it, on its stdin.
    pub fn tell(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is a pipe");
        let written = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
        written.unwrap_or_else(|error| panic!("{} does not listen: {error}", self.name));
    }

    /// What it has said so far, on stdout and stderr.
    pub fn output(&self) -> String {
        let output = self.output.lock().expect("no reader panics");
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Waits until it has said `text`.
    pub fn wait_output(&mut self, text: &str) {
        let name = self.name.clone();
        wait::until(&format!("{name} says \"{text}\""), || {
            if self.output().contains(text) {
                return Some(());
            }
            assert!(self.is_alive(), "{name} ended before it said \"{text}\"");
            None
        });
    }

    /// Asks it to end: SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Holds it still, and returns when it is.
    pub fn hold(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.id());
        wait::until(&format!("{} is still", self.name), || {
            let stat = std::fs::read_to_string(&stat).expect("the process lives");
            // "PID (NAME) STATE ...", and a name may hold anything.
            let (_, state) = stat.rsplit_once(')').expect("a name in brackets");
            state.trim_start().starts_with('T').then_some(())
        });
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it as a crash would: SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_for(wait::LIMIT)
    }

    /// Waits for its end, at most `limit`.
    pub fn wait_for(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let status = wait::until_for(limit, &what, || {
            self.child.try_wait().expect("a child can be waited for")
        });
        for reader in self.readers.drain(..) {
            // Ends with the last process that holds the other end.
            let _ = reader.join();
        }
        status
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // An error means that it has ended already.
        let _ = rustix::process::kill_process(pid.expect("a process has a number"), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {} said:\n{}----", self.name, self.output());
        }
    }
}

fn capture(mut stream: Box<dyn Read + Send>, output: &Mutex<Vec<u8>>) {
    let mut part = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut part) {
        let mut output = output.lock().expect("no reader panics");
        let room = OUTPUT_MAX.saturating_sub(output.len());
        output.extend_from_slice(&part[..len.min(room)]);
    }
}
