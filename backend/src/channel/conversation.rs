//! One open channel: sequence numbers, credit both ways, and the replies that
//! wait for room.

use std::collections::VecDeque;

use paste_abi::control::{FEATURE_FLUSH, FEATURE_INLINE, FEATURE_PROBE, FEATURE_STORE, Welcome};
use paste_abi::frame::{self, RECORD_LEN};
use paste_abi::{Reason, Slot};

use super::inline::Inline;
use super::liveness::Liveness;
use super::sealing::Sealing;

/// The host's side of one conversation.
pub struct Conversation {
    /// Bytes of the largest frame, as agreed.
    pub frame_size: usize,
    /// The answer to HELLO, until it is said.
    pub welcome: Option<Box<Welcome>>,
    /// Buffers that the guest asked for and has not been granted.
    pub wanted: u32,
    window: u32,
    /// The sequence number that the guest's next frame must have.
    expected: u32,
    /// The limit that the guest was last told.
    told: u32,
    /// The sequence number of the host's next frame.
    next: u32,
    /// The first one that the guest has not allowed.
    limit: u32,
    /// Replies and refusals, at most one for each record that the guest may
    /// send: the limit sees to that.
    pub replies: VecDeque<Slot>,
    replies_max: usize,
    /// Epochs and what waits for them, where FLUSH was granted.
    pub sealing: Option<Box<Sealing>>,
    /// Whether STORE was granted.
    pub stores: bool,
    /// Payload that travels in frames, where INLINE was granted.
    pub inline: Option<Box<Inline>>,
    /// Whether the application lives, where PROBE was granted.
    pub liveness: Option<Liveness>,
    /// Answers to RESUME, record by record.
    resumed: VecDeque<[u8; RECORD_LEN]>,
}

impl Conversation {
    /// A conversation in which the guest may have `window` frames under way,
    /// and has itself room for frames up to `limit`. `welcome` says what was
    /// granted.
    pub fn new(
        frame_size: usize,
        window: u32,
        limit: u32,
        wanted: u32,
        welcome: Welcome,
    ) -> Conversation {
        let features = welcome.features.get();
        let flows_max = welcome.flows_max.get();
        let replies_max = window as usize * frame::records_in(frame_size);
        Conversation {
            frame_size,
            welcome: Some(Box::new(welcome)),
            wanted,
            window,
            expected: 0,
            told: 0,
            next: 0,
            limit,
            replies: VecDeque::with_capacity(REPLIES_AT_OPEN),
            replies_max,
            sealing: (features & FEATURE_FLUSH != 0).then(|| Box::new(Sealing::new(flows_max))),
            stores: features & FEATURE_STORE != 0,
            inline: (features & FEATURE_INLINE != 0).then(|| Box::new(Inline::new())),
            liveness: (features & FEATURE_PROBE != 0).then(|| Liveness::heard(0)),
            resumed: VecDeque::new(),
        }
    }

    /// A frame has come.
    #[inline]
    pub fn heard(&mut self, now: u64) {
        if let Some(liveness) = &mut self.liveness {
            *liveness = Liveness::heard(now);
        }
    }

    /// Checks the sequence number of a frame and moves on. The error is why the
    /// channel must close, and the number that was expected.
    pub fn take_sequence(&mut self, seq: u32) -> Result<(), (Reason, u32)> {
        if seq != self.expected {
            return Err((Reason::SequenceGap, self.expected));
        }
        if frame::credit(seq, self.told) == 0 {
            return Err((Reason::OverCredit, self.expected));
        }
        self.expected = self.expected.wrapping_add(1);
        Ok(())
    }

    /// Takes the guest's limit; one that lies behind the last is old news.
    pub fn take_limit(&mut self, limit: u32) {
        if frame::credit(self.limit, limit) > 0 {
            self.limit = limit;
        }
    }

    /// Whether the guest has room for a sequenced frame.
    pub fn may_send(&self) -> bool {
        frame::credit(self.next, self.limit) > 0
    }

    /// The sequence number for the frame that is being built.
    pub fn next_seq(&mut self) -> u32 {
        let seq = self.next;
        self.next = self.next.wrapping_add(1);
        seq
    }

    /// The sequence number of the next frame, without using it.
    pub fn peek_seq(&self) -> u32 {
        self.next
    }

    /// The limit now: as many frames as there is room for their replies.
    fn limit_now(&self) -> u32 {
        let per_frame = frame::records_in(self.frame_size);
        let due = self.sealing.as_ref().map_or(0, |sealing| sealing.replies_due());
        let replies = self.replies.len() + self.resumed.len() + due;
        let room = (self.replies_max - replies.min(self.replies_max)) / per_frame;
        let limit = self.expected.wrapping_add(self.window.min(room as u32));
        // What was told once stays told.
        if frame::credit(self.told, limit) > 0 { limit } else { self.told }
    }

    /// The limit, as it is about to be told.
    pub fn tell_limit(&mut self) -> u32 {
        self.told = self.limit_now();
        self.told
    }

    /// Whether enough room came free since the limit was last told that it is
    /// worth a frame of its own.
    pub fn owes_limit(&self) -> bool {
        self.limit_now().wrapping_sub(self.told) >= self.window / 2
    }

    /// Queues a reply.
    pub fn reply(&mut self, slot: Slot) {
        debug_assert!(self.replies.len() < self.replies_max, "more replies than the limit allows");
        self.replies.push_back(slot);
    }

    /// Queues the answer to a record of RESUME.
    pub fn resume(&mut self, record: [u8; RECORD_LEN]) {
        self.resumed.push_back(record);
    }

    /// Moves answers to RESUME into records; returns how many.
    pub fn take_resumed(&mut self, records: &mut [[u8; RECORD_LEN]]) -> usize {
        let count = self.resumed.len().min(records.len());
        for (answer, record) in self.resumed.drain(..count).zip(records) {
            *record = answer;
        }
        count
    }

    /// Moves replies into records; returns how many.
    pub fn take_replies(&mut self, records: &mut [[u8; RECORD_LEN]]) -> usize {
        let count = self.replies.len().min(records.len());
        for (slot, record) in self.replies.drain(..count).zip(records) {
            slot.write(record);
        }
        count
    }
}

/// Replies that a conversation has room for without growing: a well-behaved
/// guest causes few, and one that does not pays with its host's memory only up
/// to the limit.
const REPLIES_AT_OPEN: usize = 1024;

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn conversation() -> Conversation {
        let mut c = Conversation::new(32 + 4 * 32, 8, 4, 0, Welcome::new_zeroed());
        assert_eq!(c.tell_limit(), 8);
        c
    }

    #[test]
    fn a_gap_and_a_repetition_are_told_apart_from_order() {
        let mut c = conversation();
        assert_eq!(c.take_sequence(0), Ok(()));
        assert_eq!(c.take_sequence(2), Err((Reason::SequenceGap, 1)));
        assert_eq!(c.take_sequence(0), Err((Reason::SequenceGap, 1)));
        assert_eq!(c.take_sequence(1), Ok(()));
    }

    #[test]
    fn no_more_frames_than_the_limit_told() {
        let mut c = conversation();
        for seq in 0..8 {
            assert_eq!(c.take_sequence(seq), Ok(()));
        }
        assert_eq!(c.take_sequence(8), Err((Reason::OverCredit, 8)));
        assert!(c.owes_limit());
        assert_eq!(c.tell_limit(), 16);
        assert_eq!(c.take_sequence(8), Ok(()));
    }

    #[test]
    fn the_limit_is_owed_from_half_a_window_on() {
        let mut c = conversation();
        for seq in 0..3 {
            c.take_sequence(seq).unwrap();
        }
        assert!(!c.owes_limit());
        c.take_sequence(3).unwrap();
        assert!(c.owes_limit());
    }

    #[test]
    fn replies_that_wait_hold_the_limit_back() {
        let mut c = conversation();
        for seq in 0..8 {
            c.take_sequence(seq).unwrap();
            for _ in 0..4 {
                c.reply(Slot::default());
            }
        }
        assert_eq!(c.tell_limit(), 8, "all room is taken by replies");
        let mut records = [[0; 32]; 4];
        assert_eq!(c.take_replies(&mut records), 4);
        assert_eq!(c.tell_limit(), 9, "room for one frame's replies came free");
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut c = conversation();
        c.expected = u32::MAX;
        c.told = u32::MAX;
        c.tell_limit();
        assert_eq!(c.take_sequence(u32::MAX), Ok(()));
        assert_eq!(c.take_sequence(0), Ok(()));
    }

    #[test]
    fn a_stale_limit_takes_nothing_back() {
        let mut c = conversation();
        c.take_limit(2);
        for seq in 0..4 {
            assert!(c.may_send());
            assert_eq!(c.next_seq(), seq);
        }
        assert!(!c.may_send());
        c.take_limit(5);
        assert!(c.may_send());
    }
}
