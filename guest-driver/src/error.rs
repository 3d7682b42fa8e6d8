//! One small error type per operation.

use paste_abi::Reason;

use crate::buffer::Buffer;
use crate::event::LostCause;
use crate::transport::TransportError;

/// Why a channel could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The way to the host failed.
    #[error("cannot reach the backend: {0}")]
    Transport(#[from] TransportError),
    /// No channel was asked for.
    #[error("0 queue pairs were asked for: ask for 1, or for as many as there are threads")]
    NoPairs,
    /// There is no way to several pairs from there.
    #[error("{0} queue pairs were asked for, and an application in a machine has one: ask for 1")]
    OnePair(u16),
    /// The channel's number is too large.
    #[error("channel {0} is not below {max}", max = paste_abi::CHANNELS_MAX)]
    Channel(u16),
    /// The frame size is too small for the conversation.
    #[error("a frame size of {0} bytes is below {min}", min = paste_abi::frame::FRAME_SIZE_MIN)]
    FrameSize(u16),
    /// The host does not open the channel.
    #[error("the host does not open the channel: {0}")]
    Refused(Reason),
    /// The host closed the channel while it was being opened.
    #[error("the channel was lost while it was being opened: {0}")]
    Lost(LostCause),
    /// No answer in time.
    #[error("the host did not answer; is the guest's stack port configured?")]
    TimedOut,
}

/// The channel is gone, and the options say not to open it anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the channel is gone: {0}")]
pub struct PollError(pub LostCause);

/// The request was not queued, and nothing has changed: the channel's queue is
/// full, or the channel is not open now. Poll, and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the channel's queue is full or the channel is not open: poll and try again")]
pub struct Busy;

/// Why a listener could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// The host refused.
    #[error("the host refused to listen: {0}")]
    Refused(Reason),
    /// The channel was lost meanwhile.
    #[error("the channel was lost: {0}")]
    Lost(LostCause),
    /// No answer in time, or more events in the meantime than can be kept.
    #[error("the host did not answer in time")]
    TimedOut,
    /// The request could not be queued.
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// Why stored buffers could not be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// The host does not let buffers be stored ([`crate::Geometry::stores`]).
    #[error("the host does not let buffers be stored")]
    Unsupported,
    /// The channel is not open, or was lost meanwhile.
    #[error("the channel is not open")]
    Lost,
    /// No answer in time, or more events in the meantime than can be kept.
    #[error("the host did not answer in time")]
    TimedOut,
}

/// Why a ticket was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The channel is not open, or was lost meanwhile.
    #[error("the channel is not open")]
    Lost,
    /// Not in time, or more events in the meantime than can be kept.
    #[error("the host did not make it durable in time")]
    TimedOut,
}

/// Why a buffer was not sent; the buffer is still the application's.
#[derive(Debug, thiserror::Error)]
#[error("cannot send: {cause}")]
pub struct SendError {
    /// Why.
    pub cause: SendCause,
    /// The buffer, unchanged.
    pub buffer: Buffer,
}

/// What keeps a buffer from being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendCause {
    /// See [`Busy`].
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The range is empty, or starts in the headroom
    /// ([`crate::Geometry::headroom`]).
    #[error("the range is empty or begins before the headroom")]
    Range,
    /// The name is of another channel, or of an opening that was lost.
    #[error("the buffer belongs to another channel or to one that was lost")]
    Stale,
    /// The buffer is not one that the application has stored.
    #[error("the buffer is not stored")]
    NotStored,
    /// The host does not let buffers be stored ([`crate::Geometry::stores`]).
    #[error("the host does not let buffers be stored")]
    Unsupported,
}
