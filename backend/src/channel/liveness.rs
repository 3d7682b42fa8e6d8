//! Whether the application on a channel still lives. One in a machine may end without a word,
//! and without anything that the host could see, as its device stays: so it is asked.
//!
//! After [`SILENCE`] without a frame of the channel's it is asked by a PROBE every
//! [`INTERVAL`]; when [`PROBES`] of them were not answered, the channel is closed as if it
//! had said BYE. A frame of any kind is an answer.
//!
//! A machine that stands still (stopped by its VMM, or starved) must not lose its flows for
//! it. So only what the guest's driver has taken from its ring counts as asked: until it has,
//! nobody is asked again, and no time passes for the application.

/// How long an application may be silent before it is asked, ns.
pub const SILENCE: u64 = 5_000_000_000;
/// Time between questions, and how long the last one may stay unanswered, ns.
pub const INTERVAL: u64 = 5_000_000_000;
/// Questions without an answer, at most.
pub const PROBES: u8 = 6;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing, or a question is to be asked.
    Lives,
    /// It is gone.
    Gone,
}

/// One channel's.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    /// When something is to be done, unless something is heard, ns.
    due_at: u64,
    /// Questions since something was heard.
    asked: u8,
    /// One is to be put into a frame.
    is_asking: bool,
}

impl Liveness {
    /// Something has been heard.
    pub fn heard(now: u64) -> Liveness {
        Liveness { due_at: now.saturating_add(SILENCE), asked: 0, is_asking: false }
    }

    /// When to look again, ns.
    pub fn due_at(&self) -> u64 {
        self.due_at
    }

    /// Looks at the time. `was_taken`: the guest's driver has taken everything that it was
    /// sent.
    pub fn look(&mut self, now: u64, was_taken: bool) -> Verdict {
        if now < self.due_at {
            return Verdict::Lives;
        }
        self.due_at = now.saturating_add(INTERVAL);
        if self.is_asking || (self.asked > 0 && !was_taken) {
            return Verdict::Lives;
        }
        if self.asked >= PROBES {
            return Verdict::Gone;
        }
        self.asked += 1;
        self.is_asking = true;
        Verdict::Lives
    }

    /// Whether a question is to be asked, which then is.
    pub fn take_question(&mut self) -> bool {
        std::mem::take(&mut self.is_asking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every second; when it is gone, and how often it was asked.
    fn run(mut liveness: Liveness, mut taken: impl FnMut(u64) -> bool) -> (Option<u64>, u32) {
        let mut asked = 0;
        for second in 0..1000 {
            if liveness.look(second * 1_000_000_000, taken(second)) == Verdict::Gone {
                return (Some(second), asked);
            }
            asked += u32::from(taken(second) && liveness.take_question());
        }
        (None, asked)
    }

    #[test]
    fn the_silent_are_asked_and_then_given_up() {
        assert_eq!(run(Liveness::heard(0), |_| true), (Some(35), 6));
    }

    #[test]
    fn no_time_passes_while_the_machine_stands_still() {
        // It took two questions, and then nothing for most of the time.
        let (gone, asked) = run(Liveness::heard(0), |second| !(12..500).contains(&second));
        assert_eq!(asked, 6);
        assert!(gone.is_some_and(|second| (520..=530).contains(&second)), "{gone:?}");
        assert_eq!(run(Liveness::heard(0), |second| second < 5), (None, 0));
    }

    #[test]
    fn an_answer_begins_it_anew() {
        let mut liveness = Liveness::heard(0);
        for second in 0..100 {
            let now = second * 1_000_000_000;
            assert_eq!(liveness.look(now, true), Verdict::Lives);
            if liveness.take_question() {
                liveness = Liveness::heard(now);
            }
        }
    }
}
