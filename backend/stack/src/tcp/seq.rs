//! Sequence numbers: 32 bits that wrap (RFC 9293 section 3.4).

use core::ops::{Add, AddAssign};

/// A sequence number. Comparisons hold for numbers less than 2^31 apart, which
/// is why it is not `Ord`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Seq(pub u32);

impl Seq {
    /// How far `self` lies after `earlier`.
    #[inline]
    pub(crate) const fn since(self, earlier: Seq) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    #[inline]
    pub(crate) const fn before(self, other: Seq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    #[inline]
    pub(crate) const fn after(self, other: Seq) -> bool {
        other.before(self)
    }

    /// The earlier of the two.
    #[inline]
    pub(crate) const fn min(self, other: Seq) -> Seq {
        if other.before(self) { other } else { self }
    }

    /// The later of the two.
    #[inline]
    pub(crate) const fn max(self, other: Seq) -> Seq {
        if self.before(other) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Seq;

    #[inline]
    fn add(self, bytes: u32) -> Seq {
        Seq(self.0.wrapping_add(bytes))
    }
}

impl AddAssign<u32> for Seq {
    #[inline]
    fn add_assign(&mut self, bytes: u32) {
        *self = *self + bytes;
    }
}
