//! Private memory with pages of a file right behind it, in one range of addresses.

use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// The range begins at a multiple of this, and private memory is one: the pages of a
/// file, too, may be huge.
pub const ALIGN: usize = 2 << 20;

/// Times that a place is looked for. Each is lost only to another thread that maps
/// something there in the moment between.
const ATTEMPTS: usize = 100;

/// What the private pages are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// The system's own.
    Small,
    /// Huge ones of the kernel's reserve, or as it finds them, or small ones.
    Huge,
}

/// The pages of a file that are mapped.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Where its first page starts, in bytes.
    pub offset: u64,
    /// Bytes of whole pages.
    pub len: usize,
}

/// The range, readable and writable. Dropping it unmaps it.
#[derive(Debug)]
pub struct Adjoined {
    private: Mapped,
    _file: Mapped,
}

impl Adjoined {
    /// Maps `private` bytes, zeroes, and the file's pages behind them, shared.
    ///
    /// # Errors
    /// As mmap(2), and `EINVAL` if `private` is no multiple of [`ALIGN`].
    pub fn map(private: usize, pages: Pages, extent: &Extent<'_>) -> Result<Adjoined, Errno> {
        if !private.is_multiple_of(ALIGN) {
            return Err(Errno::INVAL);
        }
        for _ in 0..ATTEMPTS {
            match Adjoined::attempt(private, pages, extent) {
                Err(Errno::EXIST) => {}
                settled => return settled,
            }
        }
        Err(Errno::EXIST)
    }

    /// `EEXIST` if another thread was quicker.
    ///
    /// Nothing is mapped over anything, not even over a reservation of our own: where
    /// that fails (huge pages do as a matter of course), the kernel may have removed
    /// what was there already, and other threads may have mapped something of theirs in
    /// its place.
    fn attempt(private: usize, pages: Pages, extent: &Extent<'_>) -> Result<Adjoined, Errno> {
        let whole = private.checked_add(extent.len).and_then(|len| len.checked_add(ALIGN));
        let whole = whole.ok_or(Errno::OVERFLOW)?;
        // Where there is room; given up at once.
        let none = ProtFlags::empty();
        let room = Mapped::anonymous(ptr::null_mut(), whole, none, MapFlags::NORESERVE)?;
        let place = room.start().map_addr(|addr| addr.next_multiple_of(ALIGN));
        drop(room);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let small = || Mapped::anonymous(place, private, prot, MapFlags::FIXED_NOREPLACE);
        let lead = match pages {
            Pages::Small => small()?,
            Pages::Huge => {
                let flags = MapFlags::FIXED_NOREPLACE | MapFlags::HUGETLB;
                match Mapped::anonymous(place, private, prot, flags) {
                    Ok(lead) => lead,
                    Err(Errno::EXIST) => return Err(Errno::EXIST),
                    Err(_) => {
                        let lead = small()?;
                        lead.prefer_huge_pages();
                        lead
                    }
                }
            }
        };
        let file = Mapped::file(place.wrapping_add(private), extent)?;
        Ok(Adjoined { private: lead, _file: file })
    }

    /// Where the private memory begins.
    pub fn start(&self) -> NonNull<u8> {
        self.private.start
    }
}

/// What was mapped, until it is dropped.
#[derive(Debug)]
struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address belongs to no thread.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps private memory where `at` says, or where the kernel chooses if that is null.
    fn anonymous(
        at: *mut u8,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<Mapped, Errno> {
        // SAFETY: nothing that exists is replaced: the kernel chooses the place, or is
        // told not to.
        let start =
            unsafe { rustix::mm::mmap_anonymous(at.cast(), len, prot, flags | MapFlags::PRIVATE) }?;
        Mapped::judge(at, start.cast(), len)
    }

    /// Maps pages of a file there.
    fn file(at: *mut u8, extent: &Extent<'_>) -> Result<Mapped, Errno> {
        let Extent { file, offset, len } = *extent;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE;
        // SAFETY: as in `anonymous`.
        let start = unsafe { rustix::mm::mmap(at.cast(), len, prot, flags, file, offset) }?;
        Mapped::judge(at, start.cast(), len)
    }

    /// Linux before 4.17 takes the place for a wish.
    fn judge(at: *mut u8, start: *mut u8, len: usize) -> Result<Mapped, Errno> {
        let start = NonNull::new(start).ok_or(Errno::NOMEM)?;
        let mapped = Mapped { start, len };
        if at.is_null() || at == start.as_ptr() { Ok(mapped) } else { Err(Errno::EXIST) }
    }

    fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    fn prefer_huge_pages(&self) {
        let advice = rustix::mm::Advice::LinuxHugepage;
        // SAFETY: advice about what was just mapped. A system without such pages refuses
        // it, and then there are none.
        let _ = unsafe { rustix::mm::madvise(self.start().cast(), self.len, advice) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nobody can use it any more. An error
        // would mean that it was not mapped, which cannot be.
        let _ = unsafe { rustix::mm::munmap(self.start().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Tells the other threads to stop, even by a failure: their scope waits for them.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_others_map_meanwhile_stays_theirs() {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let others = || {
                let len = ALIGN / 2;
                while !stop.load(Ordering::Relaxed) {
                    let prot = ProtFlags::READ | ProtFlags::WRITE;
                    let none = MapFlags::empty();
                    let mapped = Mapped::anonymous(ptr::null_mut(), len, prot, none).unwrap();
                    // SAFETY: just mapped, and this thread's alone.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(mapped.start(), len) };
                    for page in bytes.chunks_mut(4096) {
                        page[0] = 0x5a;
                    }
                    std::thread::yield_now();
                    assert!(bytes.chunks(4096).all(|page| page[0] == 0x5a));
                }
            };
            scope.spawn(others);
            scope.spawn(others);
            let _stop = Stop(&stop);
            let file = tempfile::tempfile().unwrap();
            file.set_len(ALIGN as u64).unwrap();
            for round in 0..2000_usize {
                let len = 4096 * (1 + round % 512);
                let extent = Extent { file: file.as_fd(), offset: 0, len };
                let made = Adjoined::map(ALIGN, Pages::Huge, &extent).unwrap();
                let start = made.start();
                assert!(start.as_ptr().addr().is_multiple_of(ALIGN));
                // SAFETY: the last private byte and the first of the file, both mapped
                // for writing; nobody else writes to either.
                unsafe {
                    start.add(ALIGN - 1).write(round as u8);
                    start.add(ALIGN).write(round as u8);
                }
                let mut first = [0];
                file.read_exact_at(&mut first, 0).unwrap();
                assert_eq!(first, [round as u8]);
            }
        });
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let extent = |offset, len| Extent { file: file.as_fd(), offset, len };
        let map = |private, extent| Adjoined::map(private, Pages::Small, &extent).map(drop);
        assert_eq!(map(ALIGN / 2, extent(0, 4096)), Err(Errno::INVAL));
        assert_eq!(map(ALIGN, extent(1, 4096)), Err(Errno::INVAL));
        assert_eq!(map(ALIGN, extent(0, 0)), Err(Errno::INVAL));
        assert_eq!(map(ALIGN, extent(0, usize::MAX)), Err(Errno::OVERFLOW));
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let pipe = Extent { file: pipe.as_fd(), offset: 0, len: 4096 };
        assert_eq!(map(ALIGN, pipe), Err(Errno::ACCESS));
    }
}
