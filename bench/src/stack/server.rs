//! A stack with its server, as the measurements see it.

use std::ops::Range;

use super::peer::Peers;

/// Peers that have their turn together, and frames that a turn takes.
pub const BATCH: usize = 64;

/// Serves the peers.
pub trait Server {
    /// The peers at these places connect.
    fn open(&mut self, peers: &mut Peers, places: &[usize]);

    /// All peers are connected.
    fn opened(&mut self, _peers: &Peers) {}

    /// Each of these peers sends a request and gets its response.
    fn exchange(&mut self, peers: &mut Peers, places: Range<usize>);

    /// These peers close, then the server, and nothing is left.
    fn close(&mut self, peers: &mut Peers, places: Range<usize>);

    /// All peers connect, in the order of their numbers.
    fn open_all(&mut self, peers: &mut Peers) {
        let numbers: Vec<usize> = (0..peers.count()).collect();
        for batch in numbers.chunks(BATCH) {
            let places: Vec<usize> = batch.iter().map(|&number| peers.place(number)).collect();
            self.open(peers, &places);
        }
        self.opened(peers);
    }

    /// Every flow has one turn.
    fn cycle(&mut self, peers: &mut Peers) {
        let count = peers.count();
        for start in (0..count).step_by(BATCH) {
            self.exchange(peers, start..(start + BATCH).min(count));
        }
    }

    /// A batch of connections from their beginning to their end. There are no
    /// other peers.
    fn connect_and_close(&mut self, peers: &mut Peers) {
        self.open_all(peers);
        self.cycle(peers);
        self.close(peers, 0..peers.count());
    }
}

/// How far the clock goes on in a turn with so many flows, in ns: as long as a
/// turn takes, but never so that a response would be sent again before the next
/// request acknowledges it.
pub fn step_ns(flows: u32) -> u64 {
    const TURN_NS: u64 = 20_000;
    const CYCLE_NS: u64 = 80_000_000;
    TURN_NS.min(CYCLE_NS / u64::from(flows).div_ceil(BATCH as u64))
}
