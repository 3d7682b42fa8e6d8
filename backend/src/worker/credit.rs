//! Who may have a turn: deficit round robin (Shreedhar and Varghese, 1995) over time.
//!
//! In every round a task is given [`QUANTUM`] and may have a turn if it then owes
//! nothing; what the turn took is taken from what it has. Turns that are shorter than
//! that are had in every round; a longer one is paid off by passing over as many rounds
//! as it was too long. Rounds in which the others have nothing to do are short, so
//! that nobody who is alone waits for long, and nobody saves up for later.

/// The time that each task has in a round, ns.
pub(super) const QUANTUM: i64 = 50_000;

/// What a task may use, ns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Credit(i64);

impl Credit {
    /// A round begins. True if the task may have a turn in it.
    pub(super) fn round(&mut self) -> bool {
        self.0 = (self.0 + QUANTUM).min(QUANTUM);
        self.0 > 0
    }

    /// Nobody else wants anything: what is owed is owed to nobody.
    pub(super) fn forgive(&mut self) {
        self.0 = self.0.max(0);
    }

    /// The task has used this time.
    pub(super) fn charge(&mut self, ns: u64) {
        self.0 = self.0.saturating_sub_unsigned(ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of tasks whose turns take so long: the turns that each had when so much
    /// time has passed.
    fn turns(lengths: &[u64], time: u64) -> Vec<u64> {
        let mut credits = vec![Credit::default(); lengths.len()];
        let mut turns = vec![0; lengths.len()];
        let mut passed = 0;
        while passed < time {
            for (index, &length) in lengths.iter().enumerate() {
                if credits[index].round() {
                    credits[index].charge(length);
                    turns[index] += 1;
                    passed += length;
                }
            }
        }
        turns
    }

    #[test]
    fn tasks_that_want_the_same_get_the_same() {
        assert_eq!(turns(&[10_000; 4], 4_000_000), [100; 4]);
        assert_eq!(turns(&[200_000; 4], 80_000_000), [100; 4]);
    }

    #[test]
    fn one_with_long_turns_gets_no_more_time_than_the_others() {
        let long = 20_000_000;
        let turns = turns(&[long, 50_000, 50_000], 6_000_000_000);
        let time = [turns[0] * long, turns[1] * 50_000, turns[2] * 50_000];
        for share in time {
            let third = 2_000_000_000;
            assert!(share.abs_diff(third) <= long, "{time:?}");
        }
    }

    #[test]
    fn one_with_little_to_do_waits_for_no_more_than_a_quantum_of_each_other() {
        // It has a turn in every round, and in a round nobody has two.
        let turns = turns(&[1_000, 50_000, 50_000], 101_000_000);
        assert_eq!(turns, [1000; 3]);
    }

    #[test]
    fn nothing_is_saved_up() {
        let mut credit = Credit::default();
        (0..100).for_each(|_| assert!(credit.round()));
        credit.charge(3 * QUANTUM as u64);
        assert_eq!([(); 4].map(|()| credit.round()), [false, false, true, true]);
    }

    #[test]
    fn whatever_is_owed_can_be_forgiven() {
        let mut credit = Credit::default();
        credit.charge(u64::MAX);
        assert!(!credit.round());
        credit.forgive();
        assert!(credit.round());
    }
}
