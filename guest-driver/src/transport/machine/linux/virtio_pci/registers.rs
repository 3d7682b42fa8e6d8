//! How a driver begins with a device (VIRTIO 1.2 section 3.1.1), by its common
//! configuration structure (section 4.1.4.3). What the device says in it is judged here.

use std::time::Duration;

use crate::sys;
use crate::transport::PciError;
use crate::transport::virtqueue::{F_EVENT_IDX, F_MAC, F_VERSION_1, Layout};

/// Fields of `struct virtio_pci_common_cfg`, by their offsets.
mod field {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0c;
    pub(super) const NUM_QUEUES: usize = 0x12;
    pub(super) const DEVICE_STATUS: usize = 0x14;
    pub(super) const CONFIG_GENERATION: usize = 0x15;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_ENABLE: usize = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub(super) const QUEUE_DESC: usize = 0x20;
    pub(super) const QUEUE_DRIVER: usize = 0x28;
    pub(super) const QUEUE_DEVICE: usize = 0x30;
}

// Bits of the status (section 2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

/// Addresses in rings are not physical ones (section 6).
const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// How long a device may take to be reset.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);
const RESET_STEP: Duration = Duration::from_millis(1);
/// How often the address is read that changes meanwhile.
const READS_MAX: usize = 100;

/// A structure of a device's, accessed in fields by their width. Offsets are in bytes from
/// its start, and lie within it.
pub(super) trait Registers {
    fn load8(&self, at: usize) -> u8;
    fn load16(&self, at: usize) -> u16;
    fn load32(&self, at: usize) -> u32;
    fn store8(&self, at: usize, value: u8);
    fn store16(&self, at: usize, value: u16);
    fn store32(&self, at: usize, value: u32);
}

/// Resets the device, and waits until it is: it has no access to memory then.
pub(super) fn reset(common: &impl Registers) -> Result<(), PciError> {
    let start = sys::monotonic();
    common.store8(field::DEVICE_STATUS, 0);
    while common.load8(field::DEVICE_STATUS) != 0 {
        if sys::monotonic().saturating_sub(start) > RESET_TIMEOUT {
            return Err(PciError::Reset);
        }
        // What ends the sleep early costs a look.
        let _ = sys::sleep(RESET_STEP);
    }
    Ok(())
}

fn add_status(common: &impl Registers, bit: u8) {
    let status = common.load8(field::DEVICE_STATUS);
    common.store8(field::DEVICE_STATUS, status | bit);
}

/// Resets the device, agrees on features with it, and reads its address from its own
/// configuration.
pub(super) fn negotiate(
    common: &impl Registers,
    device: &impl Registers,
) -> Result<[u8; 6], PciError> {
    reset(common)?;
    add_status(common, ACKNOWLEDGE);
    add_status(common, DRIVER);
    let offered = (0..2).fold(0, |all, half| {
        common.store32(field::DEVICE_FEATURE_SELECT, half);
        all | u64::from(common.load32(field::DEVICE_FEATURE)) << (32 * half)
    });
    if offered & F_ACCESS_PLATFORM != 0 {
        return Err(PciError::Iommu);
    }
    for (bit, name) in [
        (F_VERSION_1, "VIRTIO_F_VERSION_1"),
        (F_EVENT_IDX, "VIRTIO_F_EVENT_IDX"),
        (F_MAC, "VIRTIO_NET_F_MAC"),
    ] {
        if offered & bit == 0 {
            return Err(PciError::Unsupported(name));
        }
    }
    // A frame is in one buffer, and is complete: no buffers are merged, and nothing is left
    // to either side.
    let wanted = F_VERSION_1 | F_EVENT_IDX | F_MAC;
    for half in 0..2 {
        common.store32(field::DRIVER_FEATURE_SELECT, half);
        common.store32(field::DRIVER_FEATURE, (wanted >> (32 * half)) as u32);
    }
    add_status(common, FEATURES_OK);
    if common.load8(field::DEVICE_STATUS) & FEATURES_OK == 0 {
        return Err(PciError::Features);
    }
    read_mac(common, device)
}

/// Reads the address in one piece (section 2.5.1).
fn read_mac(common: &impl Registers, device: &impl Registers) -> Result<[u8; 6], PciError> {
    for _ in 0..READS_MAX {
        let before = common.load8(field::CONFIG_GENERATION);
        let mac = std::array::from_fn(|at| device.load8(at));
        if common.load8(field::CONFIG_GENERATION) == before {
            return Ok(mac);
        }
    }
    Err(PciError::Unsupported("an address that stays"))
}

/// The most entries that this queue can have.
pub(super) fn queue_size_max(common: &impl Registers, index: u16) -> Result<u16, PciError> {
    if index >= common.load16(field::NUM_QUEUES) {
        return Err(PciError::Queue(index));
    }
    common.store16(field::QUEUE_SELECT, index);
    match common.load16(field::QUEUE_SIZE) {
        0 => Err(PciError::Queue(index)),
        // No split queue is larger.
        size => Ok(size.min(1 << 15)),
    }
}

/// Tells the device of a queue at this address, and has it used. Returns the number of the
/// place where it is notified.
pub(super) fn enable_queue(
    common: &impl Registers,
    index: u16,
    layout: Layout,
    address: u64,
) -> u16 {
    common.store16(field::QUEUE_SELECT, index);
    common.store16(field::QUEUE_SIZE, layout.size);
    for (field, offset) in [
        (field::QUEUE_DESC, 0),
        (field::QUEUE_DRIVER, layout.avail),
        (field::QUEUE_DEVICE, layout.used),
    ] {
        let address = address + offset as u64;
        common.store32(field, address as u32);
        common.store32(field + 4, (address >> 32) as u32);
    }
    let place = common.load16(field::QUEUE_NOTIFY_OFF);
    common.store16(field::QUEUE_ENABLE, 1);
    place
}

/// Has the device work.
pub(super) fn run(common: &impl Registers) -> Result<(), PciError> {
    add_status(common, DRIVER_OK);
    check(common)
}

/// Whether the device still works for us.
pub(super) fn check(common: &impl Registers) -> Result<(), PciError> {
    let status = common.load8(field::DEVICE_STATUS);
    // A device that was taken out says all ones.
    if status & DRIVER_OK == 0 || status == u8::MAX {
        return Err(PciError::WasReset);
    }
    if status & NEEDS_RESET != 0 {
        return Err(PciError::NeedsReset);
    }
    Ok(())
}

#[cfg(test)]
#[path = "registers_tests.rs"]
mod tests;
