//! Goes through the images that a crash may leave.

use std::collections::{BTreeMap, VecDeque};

use crate::crash::Random;
use crate::crash::recorder::Recorder;
use crate::crash::trace::{Op, Trace};
use crate::medium::Ticket;

/// Bytes that are stored whole.
const WORD: usize = 8;
/// Words of a cache line.
const LINE: u64 = 8;

type Word = [u8; WORD];

/// How much of a trace is tried.
#[derive(Clone, Copy, Debug)]
pub struct Explorer {
    /// Seed of the choice among images.
    pub seed: u64,
    /// All images are tried up to this number of them after one prefix.
    pub exhaustive: u64,
    /// Images tried where there are more.
    pub samples: u64,
    /// Crashes of recovery itself that are tried after each image: 0 for none.
    pub recovery_samples: u64,
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cases {
    /// Prefixes of the trace.
    pub prefixes: u64,
    /// Of them, those of which every image was tried.
    pub exhausted: u64,
    /// Images judged.
    pub images: u64,
    /// Of them, those left by a crash of recovery.
    pub recoveries: u64,
}

impl Cases {
    /// Adds what was tried elsewhere.
    pub fn add(&mut self, other: Cases) {
        self.prefixes += other.prefixes;
        self.exhausted += other.exhausted;
        self.images += other.images;
        self.recoveries += other.recoveries;
    }
}

/// A crash that was not survived.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "seed {seed}: crash after step {point} of the trace, image {image}{}: {message}",
    .recovery_point.map(|point| format!(", again after step {point} of recovery")).unwrap_or_default()
)]
pub struct Failure {
    /// Seed of the explorer.
    pub seed: u64,
    /// Steps of the trace that were done.
    pub point: usize,
    /// Number of the image among those tried there.
    pub image: u64,
    /// Steps of recovery that were done, if that crashed as well.
    pub recovery_point: Option<usize>,
    /// The judge's words.
    pub message: String,
}

/// The values that one word may have: what is durable, and what was stored since.
#[derive(Debug, Default)]
struct History {
    /// Step and value of each store that need not be durable.
    stores: VecDeque<(usize, Word)>,
}

/// What is durable, and what may be, after a prefix of a trace.
struct Prefix {
    durable: Vec<u8>,
    pending: BTreeMap<u64, History>,
    /// Words flushed in the present epoch, and by which step.
    flushed: Vec<(u64, usize)>,
    /// The same of the epochs that are not reached.
    sealed: VecDeque<(Ticket, Vec<(u64, usize)>)>,
}

impl Prefix {
    fn new(trace: &Trace) -> Prefix {
        let mut durable = trace.start.clone();
        durable.resize(durable.len().next_multiple_of(WORD), 0);
        Prefix { durable, pending: BTreeMap::new(), flushed: Vec::new(), sealed: VecDeque::new() }
    }

    fn newest(&self, word: u64) -> Word {
        match self.pending.get(&word).and_then(|history| history.stores.back()) {
            Some((_, value)) => *value,
            None => {
                let start = word as usize * WORD;
                let mut value = [0; WORD];
                value.copy_from_slice(&self.durable[start..start + WORD]);
                value
            }
        }
    }

    fn apply(&mut self, step: usize, op: &Op) {
        match op {
            Op::Store { at, data } => {
                let mut at = *at as usize;
                let mut data = &data[..];
                while !data.is_empty() {
                    let word = (at / WORD) as u64;
                    let inside = at % WORD;
                    let (now, rest) = data.split_at(data.len().min(WORD - inside));
                    let mut value = self.newest(word);
                    value[inside..inside + now.len()].copy_from_slice(now);
                    self.pending.entry(word).or_default().stores.push_back((step, value));
                    at += now.len();
                    data = rest;
                }
            }
            Op::Flush { at, len } => {
                // Whole cache lines are flushed, but only the range is promised.
                let first = at / WORD as u64;
                let end = at.saturating_add(*len).div_ceil(WORD as u64);
                self.flushed.extend(self.pending.range(first..end).map(|(&word, _)| (word, step)));
            }
            Op::Seal(ticket) => {
                self.sealed.push_back((*ticket, std::mem::take(&mut self.flushed)));
            }
            Op::Reach(ticket) => {
                while self.sealed.front().is_some_and(|(sealed, _)| sealed <= ticket) {
                    let (_, words) = self.sealed.pop_front().expect("just seen");
                    for (word, step) in words {
                        self.settle(word, step);
                    }
                }
            }
            Op::Lose => {
                self.flushed.clear();
                self.sealed.clear();
            }
            Op::Mark(_) => {}
        }
    }

    /// Makes durable what was stored in `word` before `step`.
    fn settle(&mut self, word: u64, step: usize) {
        let Some(history) = self.pending.get_mut(&word) else { return };
        while history.stores.front().is_some_and(|(stored, _)| *stored < step) {
            let (_, value) = history.stores.pop_front().expect("just seen");
            let start = word as usize * WORD;
            self.durable[start..start + WORD].copy_from_slice(&value);
        }
        if history.stores.is_empty() {
            self.pending.remove(&word);
        }
    }

    /// The images that a crash here may leave; `None` for too many to count.
    fn count(&self) -> Option<u64> {
        self.pending
            .values()
            .try_fold(1u64, |images, history| images.checked_mul(history.stores.len() as u64 + 1))
    }

    fn image(&self, len: usize, mut choose: impl FnMut(u64, usize) -> usize) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (&word, history) in &self.pending {
            // 0 for what is durable.
            if let Some(store) = choose(word, history.stores.len()).checked_sub(1) {
                let start = word as usize * WORD;
                image[start..start + WORD].copy_from_slice(&history.stores[store].1);
            }
        }
        image.truncate(len);
        image
    }

    /// Image `number` of all.
    fn numbered(&self, len: usize, mut number: u64) -> Vec<u8> {
        self.image(len, |_, stores| {
            let options = stores as u64 + 1;
            let choice = number % options;
            number /= options;
            choice as usize
        })
    }

    /// Image `number` of a choice. The first are those that find the usual bugs:
    /// nothing or everything became durable, everything but one word, one word
    /// alone. The others mix by words, by cache lines, and with a bias.
    fn chosen(&self, len: usize, number: u64, random: &mut Random) -> Vec<u8> {
        let words = self.pending.len() as u64;
        let one = self.pending.keys().nth(random.below(words.max(1)) as usize).copied();
        let bias = random.below(7) + 1;
        let salt = random.draw();
        match number {
            0 => self.image(len, |_, _| 0),
            1 => self.image(len, |_, stores| stores),
            _ => match number % 5 {
                0 => self.image(len, |word, stores| if Some(word) == one { 0 } else { stores }),
                1 => self.image(len, |word, stores| if Some(word) == one { stores } else { 0 }),
                2 => self.image(len, |_, stores| random.below(stores as u64 + 1) as usize),
                3 => self.image(len, |word, stores| {
                    let new = Random::new(salt ^ (word / LINE)).below(8) < bias;
                    if new { stores } else { 0 }
                }),
                _ => self.image(len, |_, stores| {
                    if random.below(8) < bias { stores } else { random.below(2) as usize }
                }),
            },
        }
    }
}

impl Explorer {
    /// Goes through a trace. `judge` recovers from an image, which is durable as
    /// it gets it, and says what is wrong with it, given what was marked before
    /// the crash. It must end with the recovered state as it would be used.
    ///
    /// # Errors
    /// The first [`Failure`].
    pub fn explore<J>(&self, trace: &Trace, judge: J) -> Result<Cases, Failure>
    where
        J: Fn(&mut Recorder, &[u64]) -> Result<(), String>,
    {
        let mut cases = Cases::default();
        let mut prefix = Prefix::new(trace);
        let mut marks = Vec::new();
        for point in 0..=trace.ops.len() {
            if let Some(step) = point.checked_sub(1) {
                let op = &trace.ops[step];
                prefix.apply(step, op);
                match op {
                    Op::Mark(mark) => marks.push(*mark),
                    Op::Store { .. } | Op::Reach(_) => {}
                    // Neither what may be found nor what was promised has changed.
                    Op::Flush { .. } | Op::Seal(_) | Op::Lose => continue,
                }
            }
            self.prefix(trace, point, &prefix, &marks, &judge, &mut cases)?;
        }
        Ok(cases)
    }

    fn prefix<J>(
        &self,
        trace: &Trace,
        point: usize,
        prefix: &Prefix,
        marks: &[u64],
        judge: &J,
        cases: &mut Cases,
    ) -> Result<(), Failure>
    where
        J: Fn(&mut Recorder, &[u64]) -> Result<(), String>,
    {
        let len = trace.start.len();
        cases.prefixes += 1;
        let all = prefix.count().filter(|&images| images <= self.exhaustive);
        cases.exhausted += u64::from(all.is_some());
        let mut random = Random::new(self.seed ^ (point as u64).wrapping_mul(0x9e37_79b9));
        for number in 0..all.unwrap_or(self.samples) {
            let image = match all {
                Some(_) => prefix.numbered(len, number),
                None => prefix.chosen(len, number, &mut random),
            };
            let failure = |message, recovery_point| Failure {
                seed: self.seed,
                point,
                image: number,
                recovery_point,
                message,
            };
            let mut medium = Recorder::prompt(image);
            cases.images += 1;
            judge(&mut medium, marks).map_err(|message| failure(message, None))?;
            let recovery = medium.into_trace();
            let steps = recovery.ops.len() as u64;
            if steps == 0 {
                continue;
            }
            for _ in 0..self.recovery_samples {
                let until = random.below(steps) as usize + 1;
                let mut again = Prefix::new(&recovery);
                for (step, op) in recovery.ops[..until].iter().enumerate() {
                    again.apply(step, op);
                }
                let image = match again.count().filter(|&images| images <= self.exhaustive) {
                    Some(images) => again.numbered(len, random.below(images)),
                    None => again.chosen(len, random.draw(), &mut random),
                };
                cases.images += 1;
                cases.recoveries += 1;
                judge(&mut Recorder::prompt(image), marks)
                    .map_err(|message| failure(message, Some(until)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;
    use crate::crash::trace::Mutant;
    use crate::medium::Medium;

    const ALL: Explorer =
        Explorer { seed: 1, exhaustive: u64::MAX, samples: 0, recovery_samples: 0 };

    /// The images found after the whole trace.
    fn images(trace: &Trace) -> BTreeSet<Vec<u8>> {
        let found = RefCell::new(BTreeSet::new());
        let whole = trace.marks(trace.ops.len()).len();
        ALL.explore(trace, |medium, marks| {
            if marks.len() == whole {
                found.borrow_mut().insert(medium.image().to_vec());
            }
            Ok(())
        })
        .unwrap();
        found.into_inner()
    }

    #[test]
    fn words_become_durable_one_by_one_and_whole() {
        let mut medium = Recorder::waiting(vec![0; 24]);
        medium.store(0, &[1; 16]);
        medium.store(8, &[2; 8]);
        medium.store(17, &[3; 2]);
        medium.mark(0);
        let image = |a: u8, b: u8, c: u8| {
            let mut image = [[a; 8], [b; 8], [0; 8]].concat();
            image[17..19].fill(c);
            image
        };
        let mut expected = BTreeSet::new();
        for a in [0, 1] {
            for b in [0, 1, 2] {
                for c in [0, 3] {
                    expected.insert(image(a, b, c));
                }
            }
        }
        assert_eq!(images(medium.trace()), expected);
    }

    #[test]
    fn what_was_flushed_is_durable_when_its_ticket_is_reached_and_not_before() {
        let mut medium = Recorder::waiting(vec![0; 16]);
        medium.store(0, &[1; 8]);
        medium.flush(0, 8);
        medium.store(0, &[2; 8]);
        let ticket = medium.seal();
        medium.store(8, &[9; 8]);
        medium.flush(8, 8);
        medium.mark(0);
        assert_eq!(images(medium.trace()).len(), 3 * 2);
        assert!(!medium.reached(ticket));
        medium.reach(ticket);
        medium.mark(1);
        let left: BTreeSet<_> = images(medium.trace());
        let expected = [(1, 0), (1, 9), (2, 0), (2, 9)];
        let expected = expected.map(|(a, b): (u8, u8)| [[a; 8], [b; 8]].concat());
        assert_eq!(left, BTreeSet::from(expected));
    }

    /// A counter in two words with a rule between them: the second never exceeds
    /// the first.
    fn counter() -> Trace {
        let mut medium = Recorder::waiting(vec![0; 128]);
        for value in 1..=3u64 {
            medium.store(0, &value.to_le_bytes());
            medium.flush(0, 8);
            let ticket = medium.seal();
            medium.reach(ticket);
            medium.store(64, &value.to_le_bytes());
            medium.flush(64, 8);
            let ticket = medium.seal();
            medium.reach(ticket);
            medium.mark(value);
        }
        medium.into_trace()
    }

    fn judge(medium: &mut Recorder, marks: &[u64]) -> Result<(), String> {
        let word = |at: usize| u64::from_le_bytes(medium.image()[at..at + 8].try_into().unwrap());
        let (first, second) = (word(0), word(64));
        let promised = marks.last().copied().unwrap_or(0);
        if second > first || second < promised || first > promised + 1 {
            return Err(format!("{first} and {second} with {promised} promised"));
        }
        Ok(())
    }

    #[test]
    fn the_right_order_passes_and_every_mutant_fails() {
        let trace = counter();
        let cases = ALL.explore(&trace, judge).unwrap();
        assert_eq!(cases.prefixes, cases.exhausted);
        assert!(cases.images > 20, "{cases:?}");
        let mutants = trace.mutants();
        assert_eq!(mutants.len(), 6 + 6 + 5);
        for mutant in mutants {
            let failure = ALL.explore(&trace.mutate(mutant), judge);
            assert!(failure.is_err(), "{mutant:?} was not found");
        }
    }

    #[test]
    fn a_choice_of_images_finds_them_too_and_names_the_place() {
        let some = Explorer { seed: 7, exhaustive: 0, samples: 8, recovery_samples: 0 };
        let trace = counter();
        some.explore(&trace, judge).unwrap();
        let failure = some.explore(&trace.mutate(Mutant::NoFlush(1)), judge).unwrap_err();
        let text = failure.to_string();
        assert!(text.starts_with("seed 7: crash after step "), "{text}");
    }

    #[test]
    fn a_crash_of_recovery_is_tried() {
        let mut medium = Recorder::waiting(vec![0; 16]);
        medium.store(0, &[1; 8]);
        let trace = medium.into_trace();
        // This recovery forgets that it may be cut between its two stores.
        let judge = |medium: &mut Recorder, _: &[u64]| {
            if medium.image()[0] == 0 && medium.image()[8] == 7 {
                return Err("half recovered".to_owned());
            }
            medium.store(0, &[2; 8]);
            medium.store(8, &[7; 8]);
            Ok(())
        };
        ALL.explore(&trace, judge).unwrap();
        let failure = Explorer { recovery_samples: 20, ..ALL }.explore(&trace, judge).unwrap_err();
        assert!(failure.recovery_point.is_some());
    }
}
