//! The stack behind packetdrill's `--so_filename` interface.
//!
//! [packetdrill](https://github.com/google/packetdrill) runs scripts that say
//! which system calls a program makes, which packets arrive, and which packets
//! the TCP under test must answer with, and when. It can test a TCP in a shared
//! object instead of the kernel's: this crate builds that object,
//! `libpaste_packetdrill.so`.
//!
//! ```text
//! packetdrill --so_filename=target/release/libpaste_packetdrill.so \
//!             --ip_version=ipv4 --local_ip=192.168.0.1 script.pkt
//! ```
//!
//! Scripts with code fragments (`%{ ... }%`) need one thing more, because
//! packetdrill asks the kernel for what they look at: the feature `preload`, and
//! the library in `LD_PRELOAD` as well.
//!
//! Time is virtual. It passes when packetdrill sleeps or waits for a packet,
//! jumps from timer to timer, and is the same on every run.
//!
//! # Flags
//!
//! `--so_flags=name=value,...`; the defaults are Linux's, which scripts assume.
//!
//! | flag | meaning |
//! | --- | --- |
//! | `local` | our address, of either family, where a script connects without binding |
//! | `mtu` | largest IP packet |
//! | `sysctls` | directory whose files are followed as Linux follows its sysctls, such as `/proc/sys/net/ipv4` in a network namespace of the script's own |
//! | `delayed_ack_ms`, `rto_initial_ms`, `rto_min_ms` | times |
//! | `timestamps`, `sack` | 0 switches them off |
//! | `congestion` | `cubic` or `reno` |
//! | `ecn` | 0: never, 1: asked for, 2: accepted |
//! | `rcvbuf`, `sndbuf` | bytes |
//! | `seed` | keys hashes and initial sequence numbers |
//!
//! # Layers
//!
//! | modules | what they do |
//! | --- | --- |
//! | [`abi`], [`ffi`] | the table of functions as C has it |
//! | `harness` | threads, blocking, virtual time |
//! | `world`, `socket`, `options`, `ready`, `conn`, `info` | sockets: what the stack leaves to its user |
//! | `net`, `ndp`, `region` | the stack, its memory, its wire |
//! | [`runner`] | runs scripts without packetdrill |

#![cfg(target_os = "linux")]

pub mod abi;
mod conn;
pub mod errno;
pub mod ffi;
mod flags;
mod harness;
mod info;
mod ndp;
mod net;
mod options;
mod ready;
mod region;
pub mod runner;
mod socket;
mod world;
