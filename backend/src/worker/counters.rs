//! What a worker counts, and what is counted for each guest that it serves.

macro_rules! counters {
    ($(#[$about:meta])* $type:ident: $($(#[$doc:meta])* $name:ident,)*) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $type {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl $type {
            /// Every counter with its name.
            pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
                $(visit(stringify!($name), self.$name);)*
            }
        }
    };
}

counters! {
    /// Totals of a worker since it began.
    WorkerCounters:
    /// Rounds: a turn for each task that was awake and might have one.
    rounds,
    /// Rounds in which something moved.
    busy_rounds,
    /// Times that it went to sleep, because all tasks were.
    sleeps,
    /// Times that it asked which descriptors have something to say.
    looks,
    /// Times that it began to watch another set of descriptors.
    watches,
    /// Tasks that panicked and were taken out.
    lost,
}

counters! {
    /// Totals of a guest since its worker began.
    GuestCounters:
    /// Turns.
    turns,
    /// Turns in which something moved.
    busy_turns,
    /// Times that it went to sleep.
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
    /// Segments that packets of the guest's own kernel were cut into.
    plain_out_segments,
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
