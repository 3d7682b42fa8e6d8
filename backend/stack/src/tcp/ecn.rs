//! Explicit congestion notification (RFC 3168): the agreement on it, and the
//! receiver's half, which is to echo what routers say. What a sender does about
//! an echo is the business of [`crate::tcp::recovery`].

use crate::flow::{FlowState, State};
use crate::stack::Stack;
use crate::tcp::input::Segment;
use crate::wire::ip::ecn;
use crate::wire::tcp::{Header, flag};

/// An ECN-setup SYN has both (RFC 3168 section 6.1.1).
const SETUP: u8 = flag::ECE | flag::CWR;

impl FlowState {
    /// Whether the peer's SYN, or its answer to ours, agrees to ECN. A SYN of
    /// ours that had to be sent again did not offer it any more (section
    /// 6.1.1.1); an answer with both flags is an echo of what we sent and not a
    /// word of a peer that knows them.
    pub(crate) fn agrees_to_ecn(&self, header: &Header) -> bool {
        if header.has(flag::ACK) {
            header.flags & SETUP == flag::ECE && self.rtt.backoff() == 0
        } else {
            header.flags & SETUP == SETUP
        }
    }

    /// The peer sends its SYN again. If it no longer asks for ECN, then because
    /// it thinks that asking is what got the first one lost.
    pub(crate) fn syn_repeated(&mut self, header: &Header) {
        self.set_ecn(self.ecn() && self.agrees_to_ecn(header));
    }

    /// Takes in what a segment with payload says of the way that it came.
    /// Returns whether the peer should hear of it at once.
    pub(crate) fn note_ecn(&mut self, segment: &Segment) -> bool {
        if !self.ecn() {
            return false;
        }
        let echoed = self.ecn_echo();
        // Section 6.1.3: echo until the peer says that it has reduced.
        if segment.header.has(flag::CWR) {
            self.set_ecn_echo(false);
        }
        if segment.ecn == ecn::CE {
            self.set_ecn_echo(true);
        }
        self.ecn_echo() && !echoed
    }
}

impl Stack {
    /// The ECN flags of a segment that is about to be written with `flags`.
    pub(crate) fn ecn_flags(&self, flow: &FlowState, flags: u8) -> u8 {
        let syn = flags & flag::SYN != 0;
        match flow.state {
            State::Closed => 0,
            // Section 6.1.1.1: one that is sent again goes without.
            State::SynSent if self.config.ecn && !flow.outstanding() => SETUP,
            _ if syn && flow.ecn() && flags & flag::ACK != 0 => flag::ECE,
            _ if !syn && flow.ecn_echo() => flag::ECE,
            _ => 0,
        }
    }
}
