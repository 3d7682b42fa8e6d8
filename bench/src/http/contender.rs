//! Who is compared: the servers, and how each of them is set up.

use std::str::FromStr;

use super::bed::GUESTS_MAX;

/// What the backend is attached to, and with it the network of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PortKind {
    /// A TAP device of a bridge.
    Tap,
    /// A veth, by AF_XDP.
    Xdp,
    /// The kernel's TCP, through io_uring; the client on a TAP device.
    Sockets,
    /// A wire that is memory, with the clients at its other end.
    Memory,
}

impl PortKind {
    /// As it is called in rows.
    pub fn name(self) -> &'static str {
        match self {
            PortKind::Tap => "tap",
            PortKind::Xdp => "xdp",
            PortKind::Sockets => "sockets",
            PortKind::Memory => "memory",
        }
    }
}

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kind {
    /// The backend and its guests.
    Pasted,
    /// An epoll server on the kernel's TCP.
    Epoll,
    /// An io_uring server on the kernel's TCP.
    #[value(name = "io_uring")]
    IoUring,
    /// nginx, as Debian has it.
    Nginx,
    /// smoltcp on a TAP device.
    Smoltcp,
    /// Answers every segment and remembers nothing: the ceiling of the device.
    Null,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] =
        [Kind::Pasted, Kind::Epoll, Kind::IoUring, Kind::Nginx, Kind::Smoltcp, Kind::Null];

    /// As it is called in rows, but for the port.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pasted => "pasted",
            Kind::Epoll => "epoll",
            Kind::IoUring => "io_uring",
            Kind::Nginx => "nginx",
            Kind::Smoltcp => "smoltcp",
            Kind::Null => "null",
        }
    }

    /// Whether it can be measured beside a backend on this port.
    pub fn fits(self, port: PortKind) -> bool {
        match (self, port) {
            (Kind::Pasted, _) => true,
            (_, PortKind::Memory) => false,
            (Kind::Smoltcp, port) => port == PortKind::Tap,
            (Kind::Null, port) => port != PortKind::Sockets,
            (Kind::Epoll | Kind::IoUring | Kind::Nginx, _) => true,
        }
    }

    /// Whether it is on the kernel's TCP.
    pub fn is_kernels(self, port: PortKind) -> bool {
        match self {
            Kind::Epoll | Kind::IoUring | Kind::Nginx => true,
            Kind::Pasted => port == PortKind::Sockets,
            Kind::Smoltcp | Kind::Null => false,
        }
    }

    /// Whether it can be told to poll.
    pub fn can_poll(self) -> bool {
        self != Kind::Nginx
    }

    /// The most connections that it is asked for: smoltcp walks all its sockets whenever it
    /// is polled, and would be waited for in vain.
    pub fn connections_max(self) -> usize {
        if self == Kind::Smoltcp { 1024 } else { usize::MAX }
    }
}

/// What a server does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It looks again, always.
    Poll,
    /// It sleeps at once.
    Block,
    /// It looks again for so many microseconds, and then sleeps.
    For(u64),
}

impl Waiting {
    /// How long it polls, in us; `None`: always.
    pub fn poll_us(self) -> Option<u64> {
        match self {
            Waiting::Poll => None,
            Waiting::Block => Some(0),
            Waiting::For(us) => Some(us),
        }
    }

    /// As it is called in rows.
    pub fn name(self) -> String {
        match self {
            Waiting::Poll => "poll".to_owned(),
            Waiting::Block => "block".to_owned(),
            Waiting::For(us) => format!("{us}us"),
        }
    }
}

impl FromStr for Waiting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Waiting, &'static str> {
        match text {
            "poll" => Ok(Waiting::Poll),
            "block" => Ok(Waiting::Block),
            _ => text
                .strip_suffix("us")
                .and_then(|us| us.parse().ok())
                .filter(|us| (1..=1_000_000).contains(us))
                .map(Waiting::For)
                .ok_or("write poll, block, or how long to poll before sleeping: 1us to 1000000us"),
        }
    }
}

/// How the backend and its guests are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Guests on the port.
    pub guests: usize,
    /// Slots in a PASTE frame, at most.
    pub batch: u16,
    /// Whether headers are kept from the guest.
    pub spoof_check: bool,
    /// Whether guests have a core of their own.
    pub own_core: bool,
}

/// Slots in a PASTE frame, as a guest has it if it is told nothing.
pub const BATCH_DEFAULT: u16 = 127;

impl Default for Shape {
    fn default() -> Shape {
        Shape { guests: 1, batch: BATCH_DEFAULT, spoof_check: true, own_core: false }
    }
}

impl Shape {
    /// What differs from the default, in words.
    pub fn differences(&self) -> Vec<String> {
        let usual = Shape::default();
        let mut words = Vec::new();
        if self.guests != usual.guests {
            words.push(format!("{} guests", self.guests));
        }
        if self.batch != usual.batch {
            words.push(format!("batch {}", self.batch));
        }
        if self.spoof_check != usual.spoof_check {
            words.push("no spoof_check".to_owned());
        }
        if self.own_core != usual.own_core {
            words.push("guest's own core".to_owned());
        }
        words
    }
}

/// One of the compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Who it is.
    pub kind: Kind,
    /// What the backend is attached to here.
    pub port: PortKind,
    /// How it is set up, if it is the backend.
    pub shape: Shape,
    /// What it does when there is nothing to do.
    pub waiting: Waiting,
}

impl Contender {
    /// As it is called in rows.
    pub fn name(&self) -> String {
        match self.kind {
            Kind::Pasted => format!("pasted:{}", self.port.name()),
            kind => kind.name().to_owned(),
        }
    }

    /// As it is called in tables and plots, where its shape is not named apart.
    pub fn label(&self) -> String {
        let mut words = self.shape.differences();
        if self.waiting == Waiting::Block && !self.kind.can_poll() {
            words.push("blocks".to_owned());
        }
        if words.is_empty() {
            return self.name();
        }
        format!("{} ({})", self.name(), words.join(", "))
    }

    /// Its processes by name, in their order.
    pub fn parts(&self) -> Vec<&'static str> {
        match self.kind {
            Kind::Pasted => {
                let guests = std::iter::repeat_n("guest", self.shape.guests.min(GUESTS_MAX));
                std::iter::once("backend").chain(guests).collect()
            }
            kind => vec![kind.name()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_of_waiting_are_judged() {
        for (text, waiting) in
            [("poll", Waiting::Poll), ("block", Waiting::Block), ("50us", Waiting::For(50))]
        {
            assert_eq!(text.parse(), Ok(waiting));
            assert_eq!(waiting.name(), text);
        }
        for bad in ["", "50", "0us", "1000001us", "always"] {
            assert!(bad.parse::<Waiting>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn everybody_fits_somewhere_and_nobody_but_ours_on_memory() {
        for kind in Kind::ALL {
            assert!(kind.fits(PortKind::Tap));
            assert_eq!(kind.fits(PortKind::Memory), kind == Kind::Pasted);
        }
        assert!(!Kind::Smoltcp.fits(PortKind::Xdp) && !Kind::Null.fits(PortKind::Sockets));
    }

    #[test]
    fn a_label_says_what_is_unusual() {
        let usual = Contender {
            kind: Kind::Pasted,
            port: PortKind::Xdp,
            shape: Shape::default(),
            waiting: Waiting::Poll,
        };
        assert_eq!((usual.name().as_str(), usual.label().as_str()), ("pasted:xdp", "pasted:xdp"));
        let shape = Shape { guests: 4, spoof_check: false, ..Shape::default() };
        let other = Contender { shape, ..usual };
        assert_eq!(other.label(), "pasted:xdp (4 guests, no spoof_check)");
        assert_eq!(other.parts(), ["backend", "guest", "guest", "guest", "guest"]);
        let nginx = Contender { kind: Kind::Nginx, waiting: Waiting::Block, ..usual };
        assert_eq!((nginx.label().as_str(), nginx.parts()), ("nginx (blocks)", vec!["nginx"]));
    }
}
