//! Frames as they pass between a port and the stack: names of buffers, and on
//! the way out a header in host-private memory in front of them.

/// Bytes of header that a frame can carry in front of its payload: Ethernet
/// with a VLAN tag (18), IPv6 (40) and TCP with all options (60), rounded up.
pub const HEAD_MAX: usize = 128;

/// What is known of the checksum of a received frame's TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RxCsum {
    /// Nothing: it must be verified.
    #[default]
    Unknown,
    /// The device verified it, and the field holds it.
    Valid,
    /// The sender is on this machine and never filled it in; the field holds
    /// the pseudo-header's sum only.
    Partial,
}

/// A frame that arrived: an Ethernet frame in a buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct RxFrame {
    /// The buffer.
    pub buf: u32,
    /// Where the Ethernet header starts in the buffer.
    pub offset: u16,
    /// Bytes of the frame, without the frame check sequence.
    pub len: u16,
    /// What is known of the checksum.
    pub csum: RxCsum,
    /// Arrival, ns since the Unix epoch.
    pub time: u64,
}

/// Where the device is to complete a checksum, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxCsum {
    /// First byte summed, from the frame's start.
    pub start: u16,
    /// Where the checksum is stored, from `start`; it holds the
    /// pseudo-header's sum.
    pub offset: u16,
}

/// A range of a buffer that a frame carries after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The buffer.
    pub buf: u32,
    /// Where the range starts in the buffer.
    pub offset: u16,
    /// Bytes.
    pub len: u16,
}

/// Whose frame it is, and so who is told when the port has sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The stack's: [`crate::Stack::frame_sent`] is told.
    Stack,
    /// A plain frame of the guest's: its buffer returns to the pool.
    Bridge,
}

/// A frame to send: a head in host-private memory, then a range of a buffer.
/// Either may be empty: a pure ACK has no payload, and a segment whose header
/// lies in its buffer's headroom has no head.
#[derive(Clone, Copy, Debug)]
pub struct TxFrame {
    head: [u8; HEAD_MAX],
    head_len: u8,
    /// What follows the head.
    pub payload: Option<Payload>,
    /// The checksum that the device is to complete, if any.
    pub csum: Option<TxCsum>,
    /// Payload bytes that a segment of this one's flow may have. Segments that follow
    /// each other may go as one packet that is cut on its way, but none longer than
    /// this. Zero if this one is to go for itself, or is no segment.
    pub mss: u16,
    /// Whose frame it is.
    pub origin: Origin,
}

impl TxFrame {
    /// A frame with nothing in it.
    pub const EMPTY: TxFrame = TxFrame {
        head: [0; HEAD_MAX],
        head_len: 0,
        payload: None,
        csum: None,
        mss: 0,
        origin: Origin::Stack,
    };

    /// The head.
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// Makes the head `len` bytes long and lends it for writing. `len` is cut
    /// to [`HEAD_MAX`].
    #[inline]
    pub fn head_mut(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(HEAD_MAX);
        self.head_len = len as u8;
        &mut self.head[..len]
    }

    /// Bytes of the whole frame.
    pub fn len(&self) -> usize {
        usize::from(self.head_len) + self.payload.map_or(0, |p| usize::from(p.len))
    }

    /// Whether the frame has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Frames on their way to a port, allocated once. The stack appends, the port
/// takes from the front; what a full port leaves behind stays for the next turn.
#[derive(Debug)]
pub struct TxBatch {
    frames: Box<[TxFrame]>,
    start: usize,
    end: usize,
}

impl TxBatch {
    /// A batch of at most `capacity` frames.
    pub fn new(capacity: usize) -> TxBatch {
        TxBatch { frames: vec![TxFrame::EMPTY; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The frames that wait, in order.
    #[inline]
    pub fn frames(&self) -> &[TxFrame] {
        &self.frames[self.start..self.end]
    }

    /// Whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Frames that can still be appended before something is sent.
    #[inline]
    pub fn room(&self) -> usize {
        self.frames.len() - self.end
    }

    /// Appends an empty frame of `origin` and lends it for filling in; `None`
    /// when there is no room.
    #[inline]
    pub fn push(&mut self, origin: Origin) -> Option<&mut TxFrame> {
        let frame = self.frames.get_mut(self.end)?;
        self.end += 1;
        frame.head_len = 0;
        frame.payload = None;
        frame.csum = None;
        frame.mss = 0;
        frame.origin = origin;
        Some(frame)
    }

    /// Takes back the frame appended last.
    pub fn pop(&mut self) {
        if self.end > self.start {
            self.end -= 1;
        }
    }

    /// Removes the first `count` frames: the port has taken them.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }
}
