//! The structures and numbers of the header.

#![allow(non_camel_case_types, reason = "as C has them")]

use std::ffi::c_char;

/// The channel was opened anew after PASTE_LOST: open the log again, then listen again.
pub const PASTE_OPENED: u32 = 1;
/// The channel is gone, and with it every flow, listener and buffer. The log is closed: what
/// it records is in the region. `reason` is the host's, or 0. The channel is opened anew by
/// the polls that follow. Pointers into buffers are good until `head` passes this slot.
pub const PASTE_LOST: u32 = 2;
/// `listener` has a new flow from `peer`.
pub const PASTE_ACCEPTED: u32 = 3;
/// The flow that paste_connect was asked for, with its cookie, is open.
pub const PASTE_CONNECTED: u32 = 4;
/// `buf` holds in-order payload of the flow.
pub const PASTE_DATA: u32 = 5;
/// The peer sends no more. The flow can still be sent on.
pub const PASTE_FIN: u32 = 6;
/// The flow is gone, for `reason`.
pub const PASTE_RESET: u32 = 7;
/// Both sides have closed and everything is acknowledged.
pub const PASTE_CLOSED: u32 = 8;
/// The peer has acknowledged what was sent with PASTE_SEND_NOTIFY and this cookie; with
/// PASTE_SEND_KEEP, `buf` is its buffer. So end sends of stored buffers too, also when their
/// flow is gone.
pub const PASTE_ACKED: u32 = 9;
/// The flow takes data again after PASTE_REFUSED.
pub const PASTE_WRITABLE: u32 = 10;
/// The outcome of paste_connect, paste_request_listen or paste_unlisten with this cookie:
/// `reason` is 0, or why not. A connection is complete only with PASTE_CONNECTED.
pub const PASTE_REPLY: u32 = 11;
/// The host refused a request about the flow, for `reason`. `buf` is the buffer that was
/// to be sent, if there is one.
pub const PASTE_REFUSED: u32 = 12;
/// The host has answered what ended with the ticket in `cookie`: all that was flushed or
/// committed before it is durable, if `reason` is 0; else `reason` says why not, and it is
/// tried again with the next paste_flush or paste_log_commit. Nothing is told of tickets
/// of before PASTE_LOST.
pub const PASTE_FLUSHED: u32 = 13;

/// Say with PASTE_ACKED when the peer has acknowledged it.
pub const PASTE_SEND_NOTIFY: u32 = 1;
/// Give the buffer back with PASTE_ACKED, and not to the pool.
pub const PASTE_SEND_KEEP: u32 = 2;
/// Send it when everything that was flushed or appended to the log before is durable;
/// PASTE_REFUSED says so if that cannot be. What is sent on the flow later goes behind it.
/// It commits what was appended and not committed: of several records, commit them
/// together with paste_log_commit before the first such send.
pub const PASTE_SEND_DURABLE: u32 = 4;

/// A stack port. It belongs to one thread at a time.
pub struct paste_port {
    pub(crate) inner: crate::port::Port,
}

/// How a port is opened. All zeros, or no such structure, is what most want.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct paste_options {
    /// The application's name for the host's logs, of up to 32 bytes; NULL for none.
    pub name: *const c_char,
    /// Slots of the ring, from 2 to 65536; 0 for 1024.
    pub ring_slots: u32,
    /// Empty buffers to keep for paste_alloc; 0 for 256.
    pub reserve: u32,
    /// Microseconds to look for slots before a poll sleeps.
    pub poll_us: u32,
    /// The channel's number on this device, below 16.
    pub channel: u16,
    /// Unless 0, payload travels in the frames, which are copied, and the region need not
    /// be there.
    pub inline_slots: u16,
}

/// A buffer of the region that belongs to the application, and the range of it that
/// matters. Nothing of it but `off` and `len` is to be changed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct paste_buf {
    /// Where it starts; NULL: there is no buffer here. The range is at `p + off`.
    pub p: *mut u8,
    /// Where the range starts, in bytes from `p`.
    pub off: u32,
    /// Bytes of the range.
    pub len: u32,
    /// Bytes of all of it.
    pub size: u32,
    /// Its index in the region.
    pub index: u32,
    /// Which opening of the channel it is of.
    pub epoch: u32,
}

/// One thing that happened. Those of a flow come in order.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct paste_slot {
    /// What: PASTE_DATA or another.
    pub kind: u32,
    /// The flow that it is about; it is dead after PASTE_RESET and PASTE_CLOSED. 0 is a
    /// name as any other.
    pub flow: u32,
    /// The word given with what this is about.
    pub cookie: u64,
    /// When the payload arrived, in ns since the Unix epoch.
    pub time_ns: u64,
    /// The buffer, if there is one.
    pub buf: paste_buf,
    /// With PASTE_ACCEPTED, who took the flow.
    pub listener: u32,
    /// Why: 0, or a number that paste_reason has words for.
    pub reason: u16,
    /// With PASTE_ACCEPTED, the port that it came to.
    pub local_port: u16,
    /// With PASTE_ACCEPTED, the peer's port.
    pub peer_port: u16,
    /// With PASTE_ACCEPTED, 4 or 6.
    pub peer_family: u16,
    /// With PASTE_ACCEPTED, the peer's address, in network byte order; of IPv4 the first
    /// four bytes.
    pub peer: [u8; 16],
}

/// A record of the log: what is to be appended, or what was found.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct paste_record {
    /// Its number, which is greater than that of those before; not read by
    /// paste_log_append.
    pub id: u64,
    /// When its request arrived, in ns since the Unix epoch, or what else is to be kept.
    pub time_ns: u64,
    /// Bytes of the application's, which are copied into the record.
    pub tag: *const u8,
    /// The ranges of buffers that it names, in order. Of a record that was found, `p` of
    /// each that is damaged is NULL: its bytes are not what was recorded.
    pub piece: *const paste_buf,
    /// Bytes of the tag, up to 16384.
    pub tag_len: u32,
    /// How many ranges there are, up to 1024.
    pub num_pieces: u32,
    /// How many of them are damaged; not read by paste_log_append.
    pub num_damaged: u32,
    /// A word of the application's, below 65535.
    pub kind: u16,
}

/// What paste_log_open has found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct paste_found {
    /// Records that hold.
    pub records: u64,
    /// Records that nobody was promised, as no commit of them was durable, and whose
    /// bytes were not all there: they are left out.
    pub dropped: u64,
    /// Records that were durable and cannot be read.
    pub lost_records: u64,
    /// Ranges that were durable and are damaged: see paste_record.
    pub damaged_pieces: u64,
    /// 1: there was no log, and an empty one was made.
    pub created: u32,
    /// 1: records that were being written when it ended were cut off.
    pub torn: u32,
}

/// How much the log has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct paste_log_usage {
    /// Records that are there: those that were given up count until that is durable.
    pub records: u64,
    /// Bytes for records.
    pub bytes: u64,
    /// Those of them that are free.
    pub bytes_free: u64,
    /// Buffers that are the log's: named by records, or not given back yet.
    pub buffers: u32,
    /// Buffers of the region. A log that takes most of them leaves none for requests.
    pub region_buffers: u32,
}

/// The slots of a port. Those from `head` up to, but without, `tail` are the
/// application's.
#[repr(C)]
#[derive(Debug)]
pub struct paste_ring {
    /// All slots.
    pub slot: *mut paste_slot,
    /// How many there are.
    pub num_slots: u32,
    /// The first slot that the application wants to see again. It is the application's to
    /// move, up to `tail`: the next poll gives back the buffers of what it has passed,
    /// unless they were sent or kept.
    pub head: u32,
    /// Where the slots end.
    pub tail: u32,
}

impl paste_buf {
    pub(crate) const NONE: paste_buf =
        paste_buf { p: std::ptr::null_mut(), off: 0, len: 0, size: 0, index: 0, epoch: 0 };
}

impl paste_slot {
    pub(crate) const EMPTY: paste_slot = paste_slot {
        kind: 0,
        flow: 0,
        cookie: 0,
        time_ns: 0,
        buf: paste_buf::NONE,
        listener: 0,
        reason: 0,
        local_port: 0,
        peer_port: 0,
        peer_family: 0,
        peer: [0; 16],
    };
}
