//! `pasted`: connects virtual machines' virtio rings to TCP stack ports on a
//! NIC.
//!
//! The control plane reads the configuration once ([`config`]), puts the parts
//! together in one place ([`wiring`]) and then waits for a signal. The data
//! plane are threads, each a [`worker`] with guests of its own: their devices
//! ([`vhost`]), conversations ([`channel`]), stack ports ([`engine`]) and NICs
//! ([`port`]). No worker shares any of that with another.
//!
//! | module | knows |
//! | --- | --- |
//! | [`port`] | a NIC, and frames as buffers; no flow, no guest |
//! | [`engine`] | TCP over a port, or in its place; no ring, no frame of a channel |
//! | [`attachment`] | the kinds of NIC and endpoint, and the text that names them |
//! | [`channel`] | what a guest's application may ask for; no ring, no NIC |
//! | [`durability`] | how a guest's stores become durable, beside its worker |
//! | [`link`] | frames of a guest in batches, from VMMs that give no rings away |
//! | [`vhost`] | the vhost-user session and its rings; not what they carry |
//! | [`worker`] | the turn, and when to sleep; the parts only by their traits |
//! | [`ethernet`] | the header of a frame, and no guest |
//! | [`lanes`] | how one guest is served by several workers |
//! | [`switch`] | frames of a NIC that several guests share |
//! | [`wiring`] | who is connected to whom |
//! | [`args_cli`] | what attaches a VMM to a guest |
//! | [`ports_cli`] | which kinds of port this host can do |
//! | [`region_cli`] | a region's file, while nobody serves it |
//! | [`sys`] | the operating system |

pub mod args_cli;
pub mod attachment;
pub mod channel;
pub mod cli;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod durability;
pub mod engine;
pub mod ethernet;
pub mod lanes;
pub mod link;
pub mod logging;
pub mod metrics;
pub mod port;
pub mod ports_cli;
pub mod region_cli;
pub mod switch;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod vhost;
pub mod wiring;
pub mod worker;
