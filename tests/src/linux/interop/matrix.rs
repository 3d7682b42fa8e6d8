//! The combinations of faults and features, and how each is run.

use std::time::Duration;

use pasted::port::wire::Faults;
use serde::Serialize;

use super::content::Content;
use super::path::{Family, Path, Settings, congestion_control, tcp_counter};
use super::peer::{Peer, PeerKind, Service};
use super::transfer::{self, Direction};

/// What each axis goes through.
#[derive(Clone, Debug)]
pub struct Axes {
    /// Chances that a frame is lost.
    pub loss: Vec<f64>,
    /// SACK on and off.
    pub sack: Vec<bool>,
    /// Timestamps on and off.
    pub timestamps: Vec<bool>,
    /// Versions of IP.
    pub family: Vec<Family>,
    /// MTUs.
    pub mtu: Vec<u16>,
    /// ECN on and off.
    pub ecn: Vec<bool>,
}

impl Axes {
    /// Everything.
    pub fn full() -> Axes {
        Axes {
            loss: vec![0.0, 0.01, 0.03, 0.1],
            sack: vec![true, false],
            timestamps: vec![true, false],
            family: vec![Family::V4, Family::V6],
            mtu: vec![1500, 1280, 9000],
            ecn: vec![false, true],
        }
    }

    /// Every combination; `common` has what is no axis.
    pub fn all(&self, common: Settings) -> Vec<Settings> {
        let mut all = vec![common];
        spread(&mut all, &self.family, |settings, &family| settings.family = family);
        spread(&mut all, &self.mtu, |settings, &mtu| settings.mtu = mtu);
        spread(&mut all, &self.ecn, |settings, &ecn| settings.ecn = ecn);
        spread(&mut all, &self.sack, |settings, &sack| settings.sack = sack);
        spread(&mut all, &self.timestamps, |settings, &on| settings.timestamps = on);
        spread(&mut all, &self.loss, |settings, &loss| settings.faults.loss = loss);
        all
    }

    /// One axis at a time, the others at their first value: every value of every
    /// axis once.
    pub fn star(&self, common: Settings) -> Vec<Settings> {
        let first = Axes {
            loss: first(&self.loss),
            sack: first(&self.sack),
            timestamps: first(&self.timestamps),
            family: first(&self.family),
            mtu: first(&self.mtu),
            ecn: first(&self.ecn),
        };
        let arms = [
            Axes { loss: self.loss.clone(), ..first.clone() },
            Axes { sack: self.sack.clone(), ..first.clone() },
            Axes { timestamps: self.timestamps.clone(), ..first.clone() },
            Axes { family: self.family.clone(), ..first.clone() },
            Axes { mtu: self.mtu.clone(), ..first.clone() },
            Axes { ecn: self.ecn.clone(), ..first },
        ];
        let mut all: Vec<Settings> = Vec::new();
        for settings in arms.iter().flat_map(|arm| arm.all(common)) {
            if !all.contains(&settings) {
                all.push(settings);
            }
        }
        all
    }
}

fn first<T: Clone>(values: &[T]) -> Vec<T> {
    values.iter().take(1).cloned().collect()
}

/// Each of `all` with each of the values.
fn spread<T>(all: &mut Vec<Settings>, values: &[T], set: impl Fn(&mut Settings, &T)) {
    let with = |settings: &Settings, value| {
        let mut settings = *settings;
        set(&mut settings, value);
        settings
    };
    *all = all.iter().flat_map(|one| values.iter().map(|value| with(one, value))).collect();
}

/// What one transfer showed.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `curl`, `wrk` or `iperf3`.
    pub tool: &'static str,
    /// Who served: `pasted` or `linux`.
    pub peer: &'static str,
    /// `get`: the server sent; `post`: the client did.
    pub direction: &'static str,
    /// Chance that a frame is lost, in each direction.
    pub loss: f64,
    /// SACK at the client, in [`PeerKind::Linux`] at both ends.
    pub sack: bool,
    /// Timestamps, likewise.
    pub timestamps: bool,
    /// The version of IP.
    pub family: u8,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// ECN, likewise.
    pub ecn: bool,
    /// Chance that an ECN-capable packet is marked.
    pub mark: f64,
    /// The other faults, per frame, and the delay of each direction.
    pub duplicate: f64,
    /// Likewise.
    pub reorder: f64,
    /// Likewise.
    pub corrupt: f64,
    /// In us.
    pub delay_us: u64,
    /// In us.
    pub jitter_us: u64,
    /// The wire's rate; zero is none.
    pub rate_mbps: u64,
    /// The seed of the faults.
    pub seed: u64,
    /// The shortest retransmission timeout that Linux's TCP was given, us; zero is what
    /// it has.
    pub linux_rto_min_us: u32,
    /// Bytes of content.
    pub bytes: u64,
    /// How long they took, in seconds.
    pub seconds: f64,
    /// Goodput.
    pub mbps: f64,
    /// Requests per second, for wrk.
    pub requests_per_s: f64,
    /// The congestion control of Linux's TCP.
    pub linux_congestion: String,
    /// Segments that the sender sent again.
    pub retransmits: u64,
    /// Frames that the wire lost by chance, in both directions.
    pub lost: u64,
    /// Frames that the wire marked "congestion experienced", likewise.
    pub marked: u64,
    /// How often `pasted` sent less because of marks.
    pub ecn_reductions: u64,
    /// Frames lost because too many were on the wire.
    pub overflowed: u64,
    /// Every byte arrived, and nothing is left over.
    pub ok: bool,
    /// What was wrong.
    pub error: Option<String>,
}

impl Row {
    /// A row with its conditions, and nothing measured.
    pub fn new(tool: &'static str, kind: PeerKind, direction: Direction, of: &Settings) -> Row {
        let Settings { family, mtu, sack, timestamps, ecn, faults, mark, seed, rto_min_us } = *of;
        let Faults { loss, duplicate, reorder, corrupt, delay_ns, jitter_ns, rate_bps } = faults;
        Row {
            tool,
            peer: kind.name(),
            direction: match direction {
                Direction::Get => "get",
                Direction::Post => "post",
            },
            loss,
            sack,
            timestamps,
            family: family.number(),
            mtu,
            ecn,
            mark,
            duplicate,
            reorder,
            corrupt,
            delay_us: delay_ns / 1_000,
            jitter_us: jitter_ns / 1_000,
            rate_mbps: rate_bps.map_or(0, |rate| rate.get() / 1_000_000),
            seed,
            linux_rto_min_us: rto_min_us.unwrap_or(0),
            bytes: 0,
            seconds: 0.0,
            mbps: 0.0,
            requests_per_s: 0.0,
            linux_congestion: String::new(),
            retransmits: 0,
            lost: 0,
            marked: 0,
            ecn_reductions: 0,
            overflowed: 0,
            ok: false,
            error: None,
        }
    }
}

/// One transfer on a path of its own.
pub fn run_curl(
    kind: PeerKind,
    direction: Direction,
    settings: &Settings,
    content: &Content,
    limit: Duration,
) -> Row {
    let service = match direction {
        Direction::Get => Service::Files(content.dir()),
        Direction::Post => Service::Fixed(content.len()),
    };
    run("curl", kind, direction, settings, service, |path, row| {
        let transfer = transfer::run(path, settings.family, direction, content, limit);
        row.bytes = transfer.bytes;
        row.seconds = transfer.seconds;
        row.mbps = transfer.mbps();
        transfer.error.map_or(Ok(()), Err)
    })
}

/// Lays a path, starts a peer, runs a tool, and takes all down again.
pub(super) fn run(
    tool: &'static str,
    kind: PeerKind,
    direction: Direction,
    settings: &Settings,
    service: Service<'_>,
    measure: impl FnOnce(&Path, &mut Row) -> Result<(), String>,
) -> Row {
    let path = Path::lay(settings);
    let mut peer = Peer::start(kind, &path, settings, service);
    let mut row = Row::new(tool, kind, direction, settings);
    row.linux_congestion = congestion_control(&path.near);
    let before = tcp_counter(&path.near, "RetransSegs");
    row.error = measure(&path, &mut row).err();
    let near_retransmits = tcp_counter(&path.near, "RetransSegs") - before;
    if peer.is_alive() {
        let counters = peer.stop(&path);
        row.retransmits = match direction {
            Direction::Get => counters.retransmits,
            Direction::Post => near_retransmits,
        };
        if let Some((stats, guest)) = counters.stats {
            row.ecn_reductions = stats.get(&guest, "stack.ecn_reductions");
        }
    } else {
        row.error = Some(format!("{kind} ended: {}", row.error.unwrap_or_default()));
    }
    row.ok = row.error.is_none();
    let bridge = path.take_down();
    row.lost = bridge.lanes.iter().map(|lane| lane.lost).sum();
    row.overflowed = bridge.lanes.iter().map(|lane| lane.overflowed).sum();
    row.marked = bridge.marked.iter().sum();
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common() -> Settings {
        Settings {
            family: Family::V4,
            mtu: 1500,
            sack: true,
            timestamps: true,
            ecn: false,
            faults: Faults::default(),
            mark: 0.0,
            seed: 1,
            rto_min_us: None,
        }
    }

    #[test]
    fn the_full_matrix_has_every_combination_once() {
        let all = Axes::full().all(common());
        assert_eq!(all.len(), 4 * 2 * 2 * 2 * 3 * 2);
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{one:?} twice");
        }
    }

    #[test]
    fn the_star_has_every_value_and_no_combination_twice() {
        let axes = Axes::full();
        let all = axes.star(common());
        // The centre, and what lies beside it on each axis.
        assert_eq!(all.len(), 1 + 3 + 1 + 1 + 1 + 2 + 1);
        for loss in axes.loss {
            assert!(all.iter().any(|one| one.faults.loss == loss));
        }
        for mtu in axes.mtu {
            assert!(all.iter().any(|one| one.mtu == mtu));
        }
        assert!(all.iter().any(|one| !one.sack) && all.iter().any(|one| !one.timestamps));
        assert!(all.iter().any(|one| one.ecn) && all.iter().any(|one| one.family == Family::V6));
    }
}
