//! A TCP echo service on a `pasted` device, without a copy: each buffer is
//! sent back from where its payload was received.
//!
//! ```text
//! echo (--socket PATH | --interface NAME | --device ADDRESS) [--region DEVICE | --inline]
//!      [--port 7] [--channel N] [--poll-us N] [--yield]
//! ```
//!
//! It shows how to meet back-pressure. While the channel is busy no further
//! events are taken: the host's credit does the rest. A flow whose peer does
//! not read keeps its buffers here, unsent, beyond a number in flight; they
//! are missing from the pool, so the stack closes that peer's window.

mod common;

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use paste_guest::{Buffer, Channel, Event, Flow, SendCause, SendOptions, Timeout};

/// Slots of one flow on their way; below the host's own limit, so that a
/// refusal never lets a later slot overtake an earlier one.
const IN_FLIGHT_MAX: usize = 64;

/// One flow's buffers that wait, and how it ends.
#[derive(Default)]
struct Echo {
    waiting: VecDeque<Buffer>,
    in_flight: usize,
    fin: bool,
}

struct Service {
    port: u16,
    flows: HashMap<Flow, Echo>,
}

impl Service {
    /// Sends what the flow has, as far as that goes now. `false`: the channel
    /// is busy.
    fn pump(&mut self, channel: &mut Channel, flow: Flow) -> bool {
        let Some(echo) = self.flows.get_mut(&flow) else {
            return true;
        };
        let options = SendOptions { notify: true, ..SendOptions::default() };
        while echo.in_flight < IN_FLIGHT_MAX
            && let Some(buffer) = echo.waiting.pop_front()
        {
            match channel.send(flow, buffer, options) {
                Ok(()) => echo.in_flight += 1,
                Err(error) if matches!(error.cause, SendCause::Busy(_)) => {
                    echo.waiting.push_front(error.buffer);
                    return false;
                }
                Err(error) => channel.give_back(error.buffer),
            }
        }
        if echo.fin && echo.waiting.is_empty() {
            echo.fin = channel.close(flow).is_err();
            return !echo.fin;
        }
        true
    }

    fn end(&mut self, channel: &mut Channel, flow: Flow) {
        for buffer in self.flows.remove(&flow).into_iter().flat_map(|echo| echo.waiting) {
            channel.give_back(buffer);
        }
    }

    /// Takes an event; returns the flow that may go on because of it.
    fn handle(&mut self, channel: &mut Channel, event: Event) -> Option<Flow> {
        match event {
            Event::Accepted { flow, .. } => {
                self.flows.insert(flow, Echo::default());
                None
            }
            Event::Data { flow, data } => {
                match self.flows.get_mut(&flow) {
                    Some(echo) => echo.waiting.push_back(data),
                    None => channel.give_back(data),
                }
                Some(flow)
            }
            Event::Fin { flow } => {
                self.flows.get_mut(&flow)?.fin = true;
                Some(flow)
            }
            Event::Acked { flow, .. } => {
                self.flows.get_mut(&flow)?.in_flight -= 1;
                Some(flow)
            }
            Event::Refused { flow, buffer, .. } => {
                // Cannot be put right once later slots are under way.
                if let Some(buffer) = buffer {
                    channel.give_back(buffer);
                    let _ = channel.abort(flow);
                    self.end(channel, flow);
                }
                None
            }
            Event::Reset { flow, .. } | Event::Closed { flow } => {
                self.end(channel, flow);
                None
            }
            Event::Lost { cause } => {
                eprintln!("{cause}");
                self.flows.clear();
                None
            }
            Event::Opened => {
                let _ = channel.request_listen(self.port, 128);
                None
            }
            // Of what is not asked for.
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    common::report(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = common::Arguments::parse(&["port"])?;
    let stop = common::stop_flag()?;
    let mut channel = arguments.open("echo")?;
    let mut service = Service { port: arguments.get("port")?.unwrap_or(7), flows: HashMap::new() };
    channel.listen(service.port, 128)?;
    let mut busy = None;
    while !stop.load(Ordering::Relaxed) {
        channel.poll(Timeout::After(Duration::from_millis(500)))?;
        if let Some(flow) = busy.take()
            && !service.pump(&mut channel, flow)
        {
            busy = Some(flow);
        }
        while busy.is_none()
            && let Some(event) = channel.next_event()
        {
            if let Some(flow) = service.handle(&mut channel, event)
                && !service.pump(&mut channel, flow)
            {
                busy = Some(flow);
            }
        }
    }
    channel.shutdown()?;
    Ok(())
}
