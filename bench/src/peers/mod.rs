//! What is compared with, and what stands around the backend while it is measured.
//!
//! | module | is |
//! | --- | --- |
//! | `uring` | a server on the kernel's TCP by io_uring |
//! | `nginx` | nginx, as Debian has it |
//! | `null` | a server that remembers nothing: what the device alone can do |
//! | `smol` | a server on smoltcp over a TAP device |
//! | `timed` | port and engine of the backend, with a clock around them |
//! | `memory` | a port whose other end are clients in the same memory |
//! | `frames` | a port that is no limit, for frames of a guest's own driver |

pub mod frames;
pub mod memory;
pub mod nginx;
pub mod null;
pub mod smol;
pub mod timed;
pub mod uring;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A flag that is set when the process is to stop.
pub fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, stop.clone())?;
    Ok(stop)
}
