//! A medium in memory that keeps a trace.

use crate::crash::trace::{Op, Trace};
use crate::medium::{Medium, Ticket};

/// A [`Medium`] in memory that keeps a [`Trace`] of what was done to it.
#[derive(Clone, Debug)]
pub struct Recorder {
    image: Vec<u8>,
    trace: Trace,
    sealed: u64,
    reached: u64,
    prompt: bool,
}

impl Recorder {
    /// A medium that holds `image`, durably. Tickets are reached as they are
    /// drawn, as with CPU caches.
    pub fn prompt(image: Vec<u8>) -> Recorder {
        let trace = Trace { start: image.clone(), ops: Vec::new() };
        Recorder { image, trace, sealed: 0, reached: 0, prompt: true }
    }

    /// As [`Recorder::prompt`], but a ticket is reached when [`Recorder::reach`]
    /// says so, as with a mirror file.
    pub fn waiting(image: Vec<u8>) -> Recorder {
        Recorder { prompt: false, ..Recorder::prompt(image) }
    }

    /// Lets everything up to `ticket` become durable.
    pub fn reach(&mut self, ticket: Ticket) {
        if ticket.0 > self.reached && ticket.0 <= self.sealed {
            self.reached = ticket.0;
            self.trace.ops.push(Op::Reach(ticket));
        }
    }

    /// Lets everything that was sealed become durable.
    pub fn reach_all(&mut self) {
        self.reach(Ticket(self.sealed));
    }

    /// Lets the program die, which takes with it what it flushed and has not been
    /// told to be durable. The memory stays.
    pub fn lose(&mut self) {
        self.trace.ops.push(Op::Lose);
    }

    /// Notes what the test's judge must know when a crash comes after here.
    pub fn mark(&mut self, mark: u64) {
        self.trace.ops.push(Op::Mark(mark));
    }

    /// What was done so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Ends the recording.
    pub fn into_trace(self) -> Trace {
        self.trace
    }

    /// What a load would show, whole.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    fn range(&self, at: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(at).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.image.len()).then_some(start..end)
    }
}

impl Medium for Recorder {
    fn len(&self) -> u64 {
        self.image.len() as u64
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        match self.range(at, out.len()) {
            Some(range) => out.copy_from_slice(&self.image[range]),
            None => out.fill(0),
        }
    }

    fn store(&mut self, at: u64, data: &[u8]) {
        if let Some(range) = self.range(at, data.len()) {
            self.image[range].copy_from_slice(data);
            self.trace.ops.push(Op::Store { at, data: data.into() });
        }
    }

    fn flush(&mut self, at: u64, len: u64) {
        self.trace.ops.push(Op::Flush { at, len });
    }

    fn seal(&mut self) -> Ticket {
        self.sealed += 1;
        let ticket = Ticket(self.sealed);
        self.trace.ops.push(Op::Seal(ticket));
        if self.prompt {
            self.reach(ticket);
        }
        ticket
    }

    fn reached(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.reached
    }
}
