//! AF_XDP where there is none: opening a device says so.

use std::convert::Infallible;
use std::os::fd::BorrowedFd;

use paste_pmem::Pool;
use paste_stack::{Origin, TxBatch};

use super::super::{Caps, Now, Port, PortCounters, PortError, RxBatch};
use super::{Timing, XdpError, XdpOptions};

/// Devices that no port is on.
#[derive(Clone, Debug, Default)]
pub struct XdpDevices;

impl XdpDevices {
    /// Likewise.
    pub fn timed_by(_: fn(&str) -> Option<Timing>) -> XdpDevices {
        XdpDevices
    }
}

/// A port that cannot exist.
#[derive(Debug)]
pub struct XdpPort(Infallible);

impl XdpPort {
    /// Says that there is no such port here.
    ///
    /// # Errors
    /// [`XdpError::Unsupported`].
    pub fn open(options: &XdpOptions<'_>) -> Result<XdpPort, XdpError> {
        Err(XdpError::Unsupported { name: options.name.to_owned() })
    }

    /// Likewise.
    ///
    /// # Errors
    /// [`XdpError::Unsupported`].
    pub fn probe() -> Result<(), XdpError> {
        Err(XdpError::Unsupported { name: String::new() })
    }
}

impl Port for XdpPort {
    fn caps(&self) -> Caps {
        match self.0 {}
    }

    fn receive(&mut self, _: Now, _: &mut Pool, _: &mut RxBatch) -> Result<usize, PortError> {
        match self.0 {}
    }

    fn send(
        &mut self,
        _: Now,
        _: &Pool,
        _: &mut TxBatch,
        _: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        match self.0 {}
    }

    fn release(&mut self, _: &mut Pool) {
        match self.0 {}
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self.0 {}
    }

    fn next_deadline(&self) -> Option<u64> {
        match self.0 {}
    }

    fn counters(&self) -> &PortCounters {
        match self.0 {}
    }
}
