//! The seam between the port and netmap: the few system calls that there are. What is
//! behind it is the kernel (`os`) or, in tests, a model of it.

use std::fmt::Debug;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::abi::{Attach, ExtMem, FdReg, Header, Offsets, PortInfo, Register};
use super::area::Area;

/// A request with what belongs to it. The pointers of the header are the seam's to fill
/// in.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) header: Header,
    pub(super) body: Body<'a>,
    pub(super) extmem: Option<&'a mut ExtMem>,
    pub(super) offsets: Option<&'a mut Offsets>,
}

/// What a request is about; the kernel fills in answers.
#[derive(Debug)]
pub(super) enum Body<'a> {
    Register(&'a mut Register),
    PortInfo(&'a mut PortInfo),
    Attach(&'a mut Attach),
    FdReg(&'a mut FdReg),
}

/// Where descriptors of netmap come from.
pub(super) trait Kernel: Debug {
    /// One that is bound to nothing.
    type Descriptor: Descriptor + 'static;

    /// Opens `/dev/netmap`.
    fn open(&self) -> Result<Self::Descriptor, Errno>;

    /// Memory that the kernel is to lay a port out in: `private` bytes that only this
    /// process sees, and straight behind them the buffers of a region.
    ///
    /// # Errors
    /// In words, what stands in the way.
    fn reserve(&self, private: usize, shared: &Shared<'_>) -> Result<Area, String>;
}

/// The buffers of a region, as a range of its file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared<'a> {
    /// The region's file.
    pub(super) fd: BorrowedFd<'a>,
    /// Where the buffers begin in it.
    pub(super) offset: u64,
    /// Bytes of all buffers.
    pub(super) len: usize,
    /// Bytes of one.
    pub(super) buffer_size: usize,
}

/// A descriptor of `/dev/netmap`, which is bound to some rings of one port. Closing it
/// lets go of them: what the NIC then no longer reads or writes is ours.
pub(super) trait Descriptor: AsFd + Send + Debug {
    /// `NIOCCTRL`.
    fn control(&self, request: &mut Request<'_>) -> Result<(), Errno>;

    /// Maps the memory that the port is laid out in.
    fn map(&self, len: usize) -> Result<Area, Errno>;

    /// `NIOCTXSYNC`: what is ahead of the kernel goes out, what is sent comes back.
    fn txsync(&self) -> Result<(), Errno>;

    /// `NIOCRXSYNC`: what was read goes back, what arrived becomes visible.
    fn rxsync(&self) -> Result<(), Errno>;
}
