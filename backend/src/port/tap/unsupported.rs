//! TAP devices where there is no port for them yet: opening one says so.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use paste_abi::net_hdr::NetHdr;
use paste_pmem::Buffers;
use paste_stack::TxFrame;

use super::{Link, TapError};

/// A device that cannot exist.
#[derive(Debug)]
pub(super) struct Tap(Infallible);

impl Tap {
    /// Says that there is no such port here.
    pub(super) fn open(name: &str, _mtu: u16) -> Result<(Tap, Link), TapError> {
        Err(TapError::Unsupported { name: name.to_owned() })
    }

    /// Never called.
    pub(super) fn read(
        &self,
        _header: &mut NetHdr,
        _buffers: &Buffers,
        _buf: u32,
        _offset: usize,
        _len: usize,
        _rest: &mut [u8],
    ) -> io::Result<usize> {
        match self.0 {}
    }

    /// Never called.
    pub(super) fn write(
        &self,
        _header: &NetHdr,
        _head: &[u8],
        _buffers: &Buffers,
        _frames: &[TxFrame],
    ) -> io::Result<()> {
        match self.0 {}
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.0 {}
    }
}
