//! Proportional rate reduction (RFC 9937): how much recovery may send for what
//! the peer received, so that at its end `ssthresh` bytes are in flight.

/// One recovery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prr {
    /// prr_delivered: bytes delivered since recovery began.
    delivered: u32,
    /// prr_out: bytes sent since.
    out: u32,
    /// RecoverFS: bytes in flight when it began; not zero.
    flight: u32,
}

impl Prr {
    pub(super) fn new(flight: u32) -> Prr {
        Prr { delivered: 0, out: 0, flight: flight.max(1) }
    }

    pub(super) fn on_sent(&mut self, bytes: u32) {
        self.out = self.out.saturating_add(bytes);
    }

    /// An acknowledgement; gives the bytes that may be sent now (SndCnt).
    pub(super) fn on_ack(
        &mut self,
        delivered: u32,
        pipe: u32,
        safe: bool,
        ssthresh: u32,
        mss: u32,
    ) -> u32 {
        // RFC 9937 section 6, the computation on every ACK.
        self.delivered = self.delivered.saturating_add(delivered);
        let allowed = if pipe > ssthresh {
            let share = u64::from(self.delivered) * u64::from(ssthresh);
            let share = share.div_ceil(u64::from(self.flight)).min(u64::from(u32::MAX)) as u32;
            share.saturating_sub(self.out)
        } else {
            // PRR-CRB: no more than was delivered; or, when recovery makes good
            // progress, PRR-SSRB: a segment more, as slow start would.
            let owed = self.delivered.saturating_sub(self.out).max(delivered);
            let owed = if safe { owed.saturating_add(mss) } else { owed };
            owed.min(ssthresh - pipe)
        };
        if self.out == 0 && allowed == 0 {
            // Fast retransmit.
            return mss;
        }
        allowed
    }
}
