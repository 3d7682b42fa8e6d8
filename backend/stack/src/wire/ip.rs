//! What IPv4 and IPv6 have in common.

/// The ECN field of an IP header: the low two bits of the former TOS or
/// traffic class octet (RFC 3168 section 5).
pub(crate) mod ecn {
    /// The sender's transport does not know ECN.
    pub(crate) const NOT_ECT: u8 = 0;
    /// ECN-capable transport, ECT(0): what senders use.
    pub(crate) const ECT_0: u8 = 2;
    /// Congestion experienced: set by a router on the way.
    pub(crate) const CE: u8 = 3;
    /// The bits of the field within its octet.
    pub(crate) const MASK: u8 = 3;
}
