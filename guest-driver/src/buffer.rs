//! A buffer as the application holds it: a name that cannot be copied.
//!
//! This module knows nothing of memory. The bytes are reached through the
//! channel ([`crate::Channel::bytes`]), which first checks that the name is
//! still good.

/// A buffer of the region that belongs to the application, and the range of it
/// that matters: received payload, or what is to be sent.
///
/// It can be moved but not copied, so two parts of an application cannot both
/// believe that it is theirs. It ends in one of two ways: sent
/// ([`crate::Channel::send`]), or given back ([`crate::Channel::give_back`]).
/// There is no `Drop`, because giving back needs the channel: a buffer that is
/// merely dropped is missing from the pool until the channel closes, and shows
/// in [`crate::Stats::held`].
///
/// A name is good for one opening of one channel. After
/// [`crate::Event::Lost`], and with another channel, it is refused wherever it
/// is used, and shows no bytes.
#[derive(Debug)]
#[must_use = "a dropped buffer is missing from the pool: send it or give it back"]
pub struct Buffer {
    pub(crate) index: u32,
    pub(crate) epoch: u32,
    pub(crate) offset: u16,
    pub(crate) len: u16,
    pub(crate) size: u32,
    pub(crate) csum: u16,
    pub(crate) csum_valid: bool,
    pub(crate) time: u64,
}

impl Buffer {
    /// The buffer's index in the region: the name under which a claim or a log
    /// record keeps it.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Where the range starts in the buffer, in bytes.
    pub fn offset(&self) -> usize {
        usize::from(self.offset)
    }

    /// Bytes of the range.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether the range has no bytes, as in a buffer that was just granted.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The Internet checksum (RFC 1071, complemented as on the wire) of the
    /// payload as it arrived, if the host passed it on. It covers the range as
    /// received, and is forgotten when the range changes.
    pub fn csum(&self) -> Option<u16> {
        self.csum_valid.then_some(self.csum)
    }

    /// When the payload arrived, ns since the Unix epoch; 0 in a granted buffer.
    pub fn time_ns(&self) -> u64 {
        self.time
    }

    /// Bytes of the whole buffer.
    pub fn capacity(&self) -> usize {
        self.size as usize
    }

    /// Sets the range, in bytes from the buffer's start; what lies beyond the
    /// buffer's end is cut off.
    pub fn set_range(&mut self, range: std::ops::Range<usize>) {
        let last = self.capacity().min(usize::from(u16::MAX));
        let start = range.start.min(last);
        let end = range.end.clamp(start, last.max(start));
        self.offset = start as u16;
        self.len = (end - start) as u16;
        self.csum_valid = false;
    }

    /// Removes up to `count` bytes from the front of the range.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.len()) as u16;
        self.offset += count;
        self.len -= count;
        self.csum_valid &= count == 0;
    }

    /// Cuts the range to at most `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.len = len as u16;
            self.csum_valid = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_and_truncating_stay_inside_and_forget_the_checksum() {
        let fresh = || Buffer {
            index: 1,
            epoch: 1,
            offset: 130,
            len: 100,
            size: 2048,
            csum: 7,
            csum_valid: true,
            time: 9,
        };
        let mut buffer = fresh();
        buffer.advance(0);
        buffer.truncate(100);
        assert_eq!((buffer.offset(), buffer.len(), buffer.csum()), (130, 100, Some(7)));
        buffer.advance(40);
        assert_eq!((buffer.offset(), buffer.len(), buffer.csum()), (170, 60, None));
        buffer.advance(1000);
        assert_eq!((buffer.offset(), buffer.len()), (230, 0));
        let mut buffer = fresh();
        buffer.truncate(10);
        assert_eq!((buffer.offset(), buffer.len(), buffer.csum()), (130, 10, None));
        let mut buffer = fresh();
        buffer.set_range(128..5000);
        assert_eq!((buffer.offset(), buffer.len(), buffer.csum()), (128, 1920, None));
    }
}
