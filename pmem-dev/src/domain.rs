//! What makes the bytes of a region durable. It is found out, never assumed, and
//! the host tells the guest which it is.

use std::os::fd::BorrowedFd;

use crate::sys::{self, Instruction, Shape, System};

/// How far a store has to get before it outlives a power failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// There is no such place: the region is memory without a mirror. Its bytes
    /// outlive the processes, not the machine.
    None,
    /// Out of the CPU's cache: device DAX, or a DAX file, which the kernel has
    /// mapped with `MAP_SYNC`. Who stores writes the cache back with this
    /// instruction. In a virtual machine that is as durable as what its host keeps
    /// the device in.
    CpuCache(Instruction),
    /// To the storage of the mirror file, or of the region's own file. The host
    /// writes and syncs what it is asked to.
    Mirror,
}

/// This CPU cannot make stores durable that are so once out of its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this CPU has no instruction that writes its cache back, so nothing can be durable")]
pub struct DomainError;

impl Domain {
    /// The domain of a region in this file, without a mirror.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub(crate) fn of(
        system: &dyn System,
        file: BorrowedFd<'_>,
        shape: &Shape,
    ) -> std::io::Result<Domain> {
        if system.is_dax(file, shape.page) {
            return Ok(Instruction::detect().map_or(Domain::None, Domain::CpuCache));
        }
        // A device can do nothing else for what is stored to it.
        let nothing = shape.is_device || sys::is_volatile(file)?;
        Ok(if nothing { Domain::None } else { Domain::Mirror })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::Os;

    fn of(file: &impl AsFd) -> Domain {
        let file = file.as_fd();
        Domain::of(&Os, file, &Os.shape(file).unwrap()).unwrap()
    }

    #[test]
    fn memory_has_no_domain_and_a_disk_has_one() {
        let memory = sys::memory_file("domain", 4096, Default::default()).unwrap();
        assert_eq!(of(&memory), Domain::None);
        let shared = tempfile::tempfile_in("/dev/shm").unwrap();
        assert_eq!(of(&shared), Domain::None);
        // Next to the executable is where the build wrote: a file system with
        // storage, DAX or not.
        let here = std::env::current_exe().unwrap();
        let file = tempfile::tempfile_in(here.parent().unwrap()).unwrap();
        file.set_len(4096).unwrap();
        assert_ne!(of(&file), Domain::None);
    }
}
