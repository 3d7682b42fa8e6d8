//! An application in a virtual machine: by a network device of the machine's, and by the
//! region as its kernel shows it. The seam to what only Linux's kernel has for that.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::{packet, virtio_pci};

#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
pub(crate) use unsupported::{packet, virtio_pci};
