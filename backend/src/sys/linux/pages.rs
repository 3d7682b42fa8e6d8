//! Huge pages for what is read in no order.

use std::ops::Range;

/// Bytes of a huge page, on the machines that have them at all.
const HUGE: usize = 2 << 20;
/// Makes huge pages of what is there already (Linux 6.1, `linux/mman.h`).
const MADV_COLLAPSE: libc::c_int = 25;

/// Asks the kernel to have a range of memory on huge pages, where it can: a table
/// that is read in no order costs a walk through the page tables for each read
/// otherwise. Nothing is said when it cannot. The contents stay as they are.
pub fn prefer_huge_pages(range: Range<*const u8>) {
    let start = range.start.addr().next_multiple_of(HUGE);
    let end = range.end.addr() / HUGE * HUGE;
    let Some(len) = end.checked_sub(start).filter(|&len| len > 0) else {
        return;
    };
    for advice in [libc::MADV_HUGEPAGE, MADV_COLLAPSE] {
        // SAFETY: neither advice changes what any byte of the range holds, or
        // whether it can be reached; a range that is not mapped is refused.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), len, advice) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_stay_and_small_ranges_are_left_alone() {
        let bytes: Vec<u8> = (0..5 * HUGE).map(|i| (i % 251) as u8).collect();
        prefer_huge_pages(bytes.as_ptr_range());
        assert!(bytes.iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8));
        prefer_huge_pages(bytes[..100].as_ptr_range());
        prefer_huge_pages(bytes[..0].as_ptr_range());
    }
}
