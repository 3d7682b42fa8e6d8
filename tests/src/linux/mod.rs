//! Linux: namespaces, virtual machines, and the programs that run in them.

pub mod backend;
pub mod bhyve;
pub mod c;
pub mod client;
pub mod disk;
pub mod interop;
pub mod loop_disk;
pub mod mirrored;
pub mod netns;
pub mod packet;
pub mod process;
pub mod require;
pub mod resp;
pub mod store;
pub mod vm;
