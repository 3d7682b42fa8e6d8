//! Large pages for what is read in no order.

use std::ops::Range;

/// Nothing is to be asked for: the kernel makes large pages of a range that is all there
/// by itself (`vm.pmap.superpages_enabled`).
pub fn prefer_huge_pages(_range: Range<*const u8>) {}
