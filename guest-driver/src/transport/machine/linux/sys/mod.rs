//! What Linux alone provides to an application in a virtual machine: packet sockets, and
//! PCI devices that it gives away. The rest is in [`crate::sys`].

pub(super) mod packet;
pub(super) mod pci;
