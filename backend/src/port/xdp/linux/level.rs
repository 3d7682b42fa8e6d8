//! How many buffers a queue is given to be filled. Few, while they are read soon: they
//! stay in the caches. More as soon as many frames have waited at once, since what finds
//! no buffer is lost; and fewer again when they are not needed.

/// Buffers of a queue that nothing is known of.
const START: u32 = 2048;
/// How much less there is after a look that found little waiting: one part in so many. It
/// takes a second or two, since a burst seldom comes alone.
const DECAY: u32 = 128;

/// The level of one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    now: u32,
    least: u32,
    most: u32,
    /// Frames that have waited at once, at most, since the last look.
    peak: u32,
}

impl Level {
    /// Of a queue that may be given `least` at any time, and `most` when it needs them; one
    /// is the least.
    pub(super) fn new(least: u32, most: u32) -> Level {
        let least = least.clamp(1, START);
        Level { now: least, least, most: most.max(least), peak: 0 }
    }

    /// Buffers that the queue is to have.
    pub(super) fn get(&self) -> u32 {
        self.now
    }

    /// So many frames have waited at once. The next burst may be twice as long; and if they
    /// were nearly as many as there were buffers, others may have found none.
    pub(super) fn saw(&mut self, waiting: u32) {
        self.peak = self.peak.max(waiting);
        if waiting > self.now - self.now / 8 {
            self.now = self.most;
        } else if waiting > self.now / 2 {
            self.now = self.now.saturating_mul(2).min(self.most);
        }
    }

    /// Called now and then.
    pub(super) fn look(&mut self) {
        if self.peak < self.now / 8 {
            self.now = (self.now - self.now.div_ceil(DECAY)).max(self.least);
        }
        self.peak = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_with_bursts_and_falls_without() {
        let mut level = Level::new(10_000, 20_000);
        assert_eq!(level.get(), START);
        level.saw(START / 2);
        assert_eq!(level.get(), START);
        level.saw(START / 2 + 1);
        assert_eq!(level.get(), 2 * START);
        // In use: it stays.
        for _ in 0..1000 {
            level.saw(START / 2);
            level.look();
        }
        assert_eq!(level.get(), 2 * START);
        level.saw(START + 1);
        level.saw(2 * START + 1);
        assert_eq!(level.get(), 8 * START);
        level.saw(8 * START);
        assert_eq!(level.get(), 20_000);
        for _ in 0..1000 {
            level.saw(100);
            level.look();
        }
        assert_eq!(level.get(), START);
    }

    #[test]
    fn a_burst_that_took_all_there_was_is_followed_by_all_there_may_be() {
        let mut level = Level::new(START, 20_000);
        level.saw(START - START / 8);
        assert_eq!(level.get(), 2 * START);
        let mut level = Level::new(START, 20_000);
        level.saw(START - START / 8 + 1);
        assert_eq!(level.get(), 20_000);
    }

    #[test]
    fn a_small_share_is_all_there_is() {
        for most in [0, 1, 7, START] {
            let mut level = Level::new(most, most);
            level.saw(most);
            level.saw(u32::MAX);
            assert_eq!(level.get(), most.max(1));
            level.look();
            level.look();
            assert_eq!(level.get(), most.max(1));
        }
        let mut level = Level::new(512, 2048);
        assert_eq!(level.get(), 512);
        level.saw(512);
        assert_eq!(level.get(), 2048);
    }
}
