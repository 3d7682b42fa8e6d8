//! TCP (RFC 9293), by subject: what arrives ([`input`], [`ack`], [`receive`], [`held`]),
//! what leaves ([`output`], [`segment`], [`window`]), and what time does ([`timers`]). The
//! state that they share is [`crate::flow::FlowState`].

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
