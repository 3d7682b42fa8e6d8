//! TCP (RFC 9293), by subject. The state that they share is
//! [`crate::flow::FlowState`].
//!
//! - how a connection begins: [`open`], [`cookie`];
//! - what arrives: [`input`] judges a segment, [`ack`] takes its
//!   acknowledgement, [`receive`] its payload, [`held`] what came too early,
//!   [`charge`] says who may have buffers for it, [`window`] what is promised;
//! - what an acknowledgement means: [`scoreboard`] keeps the books, [`rack`] and
//!   [`rtt`] the times, [`recovery`] draws the conclusions, [`repair`] holds what
//!   only a repair needs, [`congestion`] says how much may be in flight, [`ecn`]
//!   and [`pmtu`] what the path says;
//! - what leaves: [`output`] chooses a segment, [`segment`] writes it;
//! - what time does: [`timers`].

pub(crate) mod ack;
pub(crate) mod charge;
pub(crate) mod congestion;
pub(crate) mod cookie;
pub(crate) mod ecn;
pub(crate) mod held;
pub(crate) mod input;
pub(crate) mod open;
pub(crate) mod output;
pub(crate) mod pmtu;
pub(crate) mod rack;
pub(crate) mod receive;
pub(crate) mod recovery;
pub(crate) mod repair;
pub(crate) mod rtt;
pub(crate) mod scoreboard;
pub(crate) mod segment;
pub(crate) mod seq;
pub(crate) mod timers;
pub(crate) mod window;
