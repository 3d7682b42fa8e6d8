//! What a program did to its medium, and what a program with a bug would
//! have done.

use crate::medium::Ticket;

/// One step of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Bytes stored.
    Store {
        /// Where.
        at: u64,
        /// What.
        data: Box<[u8]>,
    },
    /// A range flushed.
    Flush {
        /// Where it starts.
        at: u64,
        /// Its bytes.
        len: u64,
    },
    /// The end of an epoch.
    Seal(Ticket),
    /// Everything flushed before this ticket has become durable, and the program
    /// may know it.
    Reach(Ticket),
    /// The program died: what no reached ticket covers was flushed for nothing.
    Lose,
    /// The test's own note.
    Mark(u64),
}

/// What was done to a medium, from a durable image on.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The image before the first step.
    pub start: Vec<u8>,
    /// The steps.
    pub ops: Vec<Op>,
}

/// A bug to be found: what a trace is made to lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The flush at this step is left out.
    NoFlush(usize),
    /// The end of an epoch at this step is left out: its ticket is taken for
    /// reached and nothing has become durable by it.
    NoSeal(usize),
    /// The first store after the ticket reached at `wait` is done before the
    /// ticket is drawn at `seal`: the two sides of a barrier change places.
    NoWait {
        /// Step that draws the ticket.
        seal: usize,
        /// Step that reaches it.
        wait: usize,
        /// Step of the store that does not wait.
        store: usize,
    },
}

impl Mutant {
    /// The step that is not as it should be.
    pub fn step(self) -> usize {
        match self {
            Mutant::NoFlush(step) | Mutant::NoSeal(step) | Mutant::NoWait { store: step, .. } => {
                step
            }
        }
    }
}

impl Trace {
    /// Every bug that this trace can be given.
    pub fn mutants(&self) -> Vec<Mutant> {
        let mut mutants = Vec::new();
        for (step, op) in self.ops.iter().enumerate() {
            match op {
                Op::Flush { .. } => mutants.push(Mutant::NoFlush(step)),
                Op::Seal(_) => mutants.push(Mutant::NoSeal(step)),
                Op::Reach(ticket) => {
                    let seal = self.ops[..step].iter().position(|op| *op == Op::Seal(*ticket));
                    let store = self.ops[step..]
                        .iter()
                        .position(|op| matches!(op, Op::Store { .. }))
                        .map(|after| step + after);
                    if let (Some(seal), Some(store)) = (seal, store) {
                        mutants.push(Mutant::NoWait { seal, wait: step, store });
                    }
                }
                Op::Store { .. } | Op::Lose | Op::Mark(_) => {}
            }
        }
        mutants
    }

    /// This trace with a bug.
    pub fn mutate(&self, mutant: Mutant) -> Trace {
        let mut ops = self.ops.clone();
        match mutant {
            Mutant::NoFlush(step) | Mutant::NoSeal(step) => {
                ops.remove(step);
            }
            Mutant::NoWait { seal, store, .. } => {
                let op = ops.remove(store);
                ops.insert(seal, op);
            }
        }
        Trace { start: self.start.clone(), ops }
    }

    /// What has been marked before step `point`.
    pub fn marks(&self, point: usize) -> Vec<u64> {
        let mark = |op: &Op| if let Op::Mark(mark) = op { Some(*mark) } else { None };
        self.ops[..point].iter().filter_map(mark).collect()
    }
}
