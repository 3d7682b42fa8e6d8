//! What AF_XDP needs of the kernel, one file for each kind of call. All that is
//! `unsafe` about the port is here: rings that the kernel writes too, the memory that
//! it reads and fills, and system calls that no library wraps. Nothing here knows of
//! buffers, frames or guests.

pub(super) mod bpf;
pub(super) mod device;
pub(super) mod netlink;
mod option;
pub(super) mod ptp;
pub(super) mod rings;
pub(super) mod socket;
pub(super) mod umem;
