//! A script as it is understood: events, each with its time.

/// When an event is due, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// From the script's start.
    At(i64),
    /// From the event before.
    After(i64),
    /// Between two times after the event before.
    Between(i64, i64),
    /// A call that starts so long after the event before, and returns so long
    /// after that event.
    During(i64, i64),
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub line: usize,
    pub when: When,
    pub action: Action,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A packet arrives.
    In(Packet),
    /// The stack is to send a packet.
    Out(Packet),
    /// The program makes a call.
    Call(Call),
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Tcp(Segment),
    /// ICMP: fragmentation needed, with this MTU, about the segment.
    TooBig {
        mtu: u16,
        seq: u32,
    },
}

/// ECN codepoints of RFC 3168 section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ecn {
    NotCapable = 0,
    Capable1 = 1,
    Capable0 = 2,
    Congested = 3,
}

/// A TCP segment, in the script's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub ecn: Option<Ecn>,
    pub flags: u8,
    pub seq: u32,
    pub len: u16,
    pub ack: u32,
    /// Not looked at when the script does not say.
    pub window: Option<u16>,
    /// `None`: any.
    pub options: Option<Vec<Opt>>,
}

/// A TCP option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opt {
    Nop,
    Mss(u16),
    Scale(u8),
    SackPermitted,
    Sack(Vec<(u32, u32)>),
    Timestamps { value: u32, echo: u32 },
}

/// Flags of RFC 9293 section 3.1.
pub(super) mod flag {
    pub(in crate::runner) const FIN: u8 = 1;
    pub(in crate::runner) const SYN: u8 = 2;
    pub(in crate::runner) const RST: u8 = 4;
    pub(in crate::runner) const PSH: u8 = 8;
    pub(in crate::runner) const ACK: u8 = 16;
    pub(in crate::runner) const ECE: u8 = 64;
    pub(in crate::runner) const CWR: u8 = 128;
}

/// A call and what it is to return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub name: String,
    pub arguments: Vec<Argument>,
    pub result: i64,
    /// The name of the error.
    pub error: Option<String>,
}

/// An argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// `...`
    Any,
    Number(i64),
    /// `[n]`, an `int` by its address.
    At(i64),
    /// `{onoff=n, linger=n}`
    Linger(i32, i32),
}
