//! What a worker counts.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Totals since the worker began.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct WorkerCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl WorkerCounters {
            /// Every counter with its name.
            pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
                $(visit(stringify!($name), self.$name);)*
            }
        }
    };
}

counters! {
    /// Turns.
    turns,
    /// Turns in which something moved.
    busy_turns,
    /// Times that the worker went to sleep.
    sleeps,
    /// Kicks of the guest's that woke it.
    kicks,
    /// Plain frames to the guest's own kernel.
    plain_in,
    /// Of these, frames whose checksum was completed on the way.
    plain_in_completed,
    /// Frames from the network that were made up to look like the host's own.
    plain_in_forged,
    /// Plain frames that the guest had no room for.
    plain_in_dropped,
    /// Plain frames from the guest's own kernel.
    plain_out,
    /// Plain frames that the port had no room for.
    plain_out_dropped,
    /// Plain frames with a bad header or length.
    plain_out_refused,
    /// Plain frames from somebody that the guest is not.
    plain_out_spoofed,
    /// Bytes of plain frames, each copied once between ring and region.
    bytes_copied,
    /// Times that the driver broke its ring.
    ring_errors,
    /// Times that the port failed.
    port_errors,
}
