//! What the channels of one guest count.

/// Totals since the guest's worker began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelCounters {
    /// PASTE frames from the guest.
    pub frames_in: u64,
    /// PASTE frames to the guest.
    pub frames_out: u64,
    /// Requests from the guest, of every kind.
    pub slots_in: u64,
    /// Slots from the stack port to the guest.
    pub slots_out: u64,
    /// Of these, slots with payload.
    pub data_out: u64,
    /// Frames that carried slots of the stack port: `slots_out` over this is
    /// the mean batch.
    pub batches_out: u64,
    /// Slots with payload from the guest that were taken.
    pub data_in: u64,
    /// Buffers that the guest returned.
    pub returned: u64,
    /// Buffers granted.
    pub granted: u64,
    /// Channels opened.
    pub opened: u64,
    /// Channels closed, for whatever reason.
    pub closed: u64,
    /// Channels closed because the guest broke the protocol, and those that
    /// could not be opened.
    pub refused_channels: u64,
    /// Frames that do not parse or do not belong here.
    pub malformed: u64,
    /// Frames for a channel that is not open.
    pub not_open: u64,
    /// Requests refused: the buffer is not the guest's.
    pub foreign_buffer: u64,
    /// Requests refused: the range does not fit.
    pub bad_range: u64,
    /// Requests refused: no such flow or listener.
    pub stale_flow: u64,
    /// Requests refused: the flow's send queue is full.
    pub flow_full: u64,
    /// Requests refused for any other reason.
    pub refused: u64,
    /// Requests refused: what they waited for could not be made durable.
    pub not_durable: u64,
    /// Requests that waited for stores to be durable.
    pub held: u64,
    /// Epochs answered.
    pub flushed: u64,
    /// Buffers that the guest keeps its data in, as it said.
    pub stored: u64,
    /// Buffers that a guest got back.
    pub resumed: u64,
    /// Buffers that one asked for and did not get back.
    pub resume_refused: u64,
    /// Bytes of payload copied out of frames.
    pub inline_bytes_in: u64,
    /// Bytes of payload copied into frames.
    pub inline_bytes_out: u64,
    /// Applications that were asked whether they live.
    pub probes_out: u64,
    /// Channels closed because nobody answered.
    pub gone: u64,
}

impl ChannelCounters {
    /// Every counter with its name.
    pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
        let ChannelCounters {
            frames_in,
            frames_out,
            slots_in,
            slots_out,
            data_out,
            batches_out,
            data_in,
            returned,
            granted,
            opened,
            closed,
            refused_channels,
            malformed,
            not_open,
            foreign_buffer,
            bad_range,
            stale_flow,
            flow_full,
            refused,
            not_durable,
            held,
            flushed,
            stored,
            resumed,
            resume_refused,
            inline_bytes_in,
            inline_bytes_out,
            probes_out,
            gone,
        } = *self;
        visit("frames_in", frames_in);
        visit("frames_out", frames_out);
        visit("slots_in", slots_in);
        visit("slots_out", slots_out);
        visit("data_out", data_out);
        visit("batches_out", batches_out);
        visit("data_in", data_in);
        visit("returned", returned);
        visit("granted", granted);
        visit("opened", opened);
        visit("closed", closed);
        visit("refused_channels", refused_channels);
        visit("malformed", malformed);
        visit("not_open", not_open);
        visit("foreign_buffer", foreign_buffer);
        visit("bad_range", bad_range);
        visit("stale_flow", stale_flow);
        visit("flow_full", flow_full);
        visit("refused", refused);
        visit("not_durable", not_durable);
        visit("held", held);
        visit("flushed", flushed);
        visit("stored", stored);
        visit("resumed", resumed);
        visit("resume_refused", resume_refused);
        visit("inline_bytes_in", inline_bytes_in);
        visit("inline_bytes_out", inline_bytes_out);
        visit("probes_out", probes_out);
        visit("gone", gone);
    }
}
