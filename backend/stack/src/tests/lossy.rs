//! Two stacks on a wire that loses, repeats, reorders, delays and corrupts
//! frames, from a seed. Every byte must arrive, once, in order, and nothing may
//! be left behind.

use core::net::{IpAddr, SocketAddr};

use paste_abi::{Event, Flow};

use super::harness::*;
use crate::config::{Config, MS, Network, SEC};
use crate::stack::Tx;

/// xorshift64*: a fault is reproduced from its seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// Faults in percent.
#[derive(Clone, Copy, Debug)]
struct Faults {
    loss: u64,
    repeat: u64,
    reorder: u64,
    corrupt: u64,
}

/// One direction: frames with the time at which they arrive.
struct Wire {
    frames: Vec<(u64, Vec<u8>)>,
    /// The right edge of the window that the sender last advertised.
    edges: std::collections::HashMap<(u16, u16), u32>,
}

impl Wire {
    fn new() -> Wire {
        Wire { frames: Vec::new(), edges: std::collections::HashMap::new() }
    }

    fn carry(&mut self, now: u64, frame: Vec<u8>, faults: Faults, random: &mut Random) {
        let copies = if random.percent(faults.loss) {
            0
        } else if random.percent(faults.repeat) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let mut delay = 2 * MS;
            if random.percent(faults.reorder) {
                delay += random.below(20) * MS;
            }
            let mut frame = frame.clone();
            if random.percent(faults.corrupt) {
                let at = random.below(frame.len() as u64) as usize;
                frame[at] ^= 1 << random.below(8);
            }
            self.frames.push((now + delay, frame));
        }
    }

    /// What the sender promised is never taken back.
    fn watch_window(&mut self, frame: &[u8], scale: u32) {
        let Some(seg) = Seg::read(frame) else { return };
        if seg.flags & (SYN | RST) != 0 || seg.flags & ACK == 0 {
            self.edges.remove(&(seg.src_port, seg.dst_port));
            return;
        }
        let right = seg.ack.wrapping_add(u32::from(seg.window) << scale);
        let edge = self.edges.entry((seg.src_port, seg.dst_port)).or_insert(right);
        // After FIN the window says nothing: it may shrink by FIN's own number.
        assert!(right.wrapping_sub(*edge) as i32 >= -1, "the window shrank");
        *edge = right;
    }
}

struct World {
    hosts: [Host; 2],
    wires: [Wire; 2],
    random: Random,
    faults: Faults,
}

impl World {
    fn new(seed: u64, faults: Faults, alter: impl Fn(Config) -> Config) -> World {
        let client = peer_config(PEER_MAC, PEER);
        World {
            hosts: [Host::new(alter(config()), 256), Host::new(alter(client), 256)],
            wires: [Wire::new(), Wire::new()],
            random: Random(seed | 1),
            faults,
        }
    }

    /// One turn of both hosts; afterwards time stands at the next event.
    fn turn(&mut self) {
        for side in 0..2 {
            let host = &mut self.hosts[side];
            let scale = u32::from(host.stack.rcv_scale);
            for frame in host.transmit() {
                self.wires[side].watch_window(&frame, scale);
                self.wires[side].carry(host.now, frame, self.faults, &mut self.random);
            }
        }
        let now = self.hosts[0].now;
        let mut next = now + 100 * MS;
        for wire in &self.wires {
            next = wire.frames.iter().map(|f| f.0).fold(next, u64::min);
        }
        for host in &self.hosts {
            next = host.stack.next_deadline().map_or(next, |d| d.min(next));
        }
        let step = next.saturating_sub(now).max(MS / 4);
        for side in 0..2 {
            self.hosts[side].pass_time(step);
            let now = self.hosts[side].now;
            let due: Vec<Vec<u8>> =
                self.wires[1 - side].frames.extract_if(.., |f| f.0 <= now).map(|f| f.1).collect();
            for frame in due {
                self.hosts[side].input(&frame);
            }
        }
    }
}

fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// A sender with so much to send, in slots of random sizes.
struct Source {
    sent: usize,
    total: usize,
    closed: bool,
}

impl Source {
    fn feed(&mut self, host: &mut Host, flow: Flow, random: &mut Random) {
        while self.sent < self.total {
            let len = (1 + random.below(1900) as usize).min(self.total - self.sent);
            let data: Vec<u8> = (self.sent..self.sent + len).map(pattern).collect();
            // Leaves buffers for receiving.
            if host.mem.owners.iter().filter(|o| **o == Owner::Pool).count() < 100 {
                return;
            }
            let tx = Tx { notify: random.below(4) == 0, ..Tx::default() };
            if host.try_send(flow, &data, tx).is_err() {
                return;
            }
            self.sent += len;
        }
        if !self.closed {
            host.close(flow);
            self.closed = true;
        }
    }
}

/// Both sides send and close over IPv4; gives how long it took.
fn transfer(seed: u64, faults: Faults, total: usize, alter: impl Fn(Config) -> Config) -> u64 {
    transfer_to(HOST.into(), seed, faults, total, alter)
}

/// Both sides send and close over IPv6.
fn transfer_v6(seed: u64, faults: Faults, total: usize, alter: impl Fn(Config) -> Config) -> u64 {
    transfer_to(HOST6.into(), seed, faults, total, |config| {
        let own = if config.mac == HOST_MAC { HOST6 } else { PEER6 };
        let network = Network { address: own, prefix_len: 64, gateway: None };
        alter(Config { ipv4: None, ipv6: Some(network), ..config })
    })
}

fn transfer_to(
    server: IpAddr,
    seed: u64,
    faults: Faults,
    total: usize,
    alter: impl Fn(Config) -> Config,
) -> u64 {
    let mut world = World::new(seed, faults, alter);
    world.hosts[0].stack.listen(0, 80, 4).unwrap();
    let (now, client) = (world.hosts[1].now, &mut world.hosts[1]);
    let flow = client.stack.connect(now, 0, SocketAddr::new(server, 80), 0, 3).unwrap();
    let mut flows = [None, None];
    let mut sources = [total, total].map(|total| Source { sent: 0, total, closed: false });
    for turn in 0.. {
        assert!(turn < 200_000, "seed {seed} {faults:?}: no end");
        world.turn();
        for side in 0..2 {
            let host = &mut world.hosts[side];
            host.poll();
            for slot in &host.events {
                match slot.as_event().unwrap() {
                    Event::Accepted => flows[0] = Some(slot.flow),
                    Event::Connected => flows[1] = Some(flow),
                    Event::Reset => panic!("seed {seed} {faults:?}: reset by {}", slot.len),
                    _ => {}
                }
            }
            if let Some(flow) = flows[side] {
                sources[side].feed(host, flow, &mut world.random);
            }
        }
        if world.hosts.iter().all(|h| h.kinds().contains(&Event::Closed)) {
            break;
        }
    }
    for (host, flow) in world.hosts.iter().zip(flows) {
        let data = &host.data[&flow.unwrap()];
        assert_eq!(data.len(), total, "seed {seed} {faults:?}");
        let intact = data.iter().enumerate().all(|(i, b)| *b == pattern(i));
        assert!(intact, "seed {seed} {faults:?}");
    }
    let took = world.hosts[0].now;
    // Then nothing is left but time.
    for host in &mut world.hosts {
        host.pass_time(70 * SEC);
        host.transmit();
        host.pass_time(70 * SEC);
        host.poll();
        host.check_empty();
    }
    took
}

const NONE: Faults = Faults { loss: 0, repeat: 0, reorder: 0, corrupt: 0 };

#[test]
fn a_good_wire_needs_no_retransmission() {
    let took = transfer(1, NONE, 2_000_000, |c| c);
    assert!(took < 1_000_000 * MS + 10 * SEC);
}

#[test]
fn bytes_survive_a_bad_wire() {
    let kinds = [
        Faults { loss: 5, ..NONE },
        Faults { loss: 20, ..NONE },
        Faults { repeat: 30, ..NONE },
        Faults { reorder: 40, ..NONE },
        Faults { corrupt: 10, ..NONE },
        Faults { loss: 8, repeat: 8, reorder: 20, corrupt: 4 },
    ];
    for (i, faults) in kinds.into_iter().enumerate() {
        for seed in 0..6 {
            let seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed * 10 + i as u64 + 1);
            transfer(seed, faults, 120_000, |c| Config {
                timestamps: seed & 2 != 0,
                header_in_buffer: seed & 4 != 0,
                tx_csum_offload: seed & 8 != 0,
                recv_window_max: if seed & 16 != 0 { 6000 } else { 1 << 20 },
                held_blocks_max: if seed & 32 != 0 { 2 } else { 64 },
                ..c
            });
        }
    }
}

#[test]
fn bytes_survive_a_bad_wire_over_ipv6() {
    let kinds = [
        NONE,
        Faults { loss: 10, ..NONE },
        Faults { corrupt: 10, ..NONE },
        Faults { loss: 8, repeat: 8, reorder: 20, corrupt: 4 },
    ];
    for (i, faults) in kinds.into_iter().enumerate() {
        for seed in 0..6 {
            let seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed * 10 + i as u64 + 1);
            transfer_v6(seed, faults, 120_000, |c| Config {
                timestamps: seed & 2 != 0,
                header_in_buffer: seed & 4 != 0,
                tx_csum_offload: seed & 8 != 0,
                mtu: if seed & 16 != 0 { 1280 } else { 1500 },
                vlan: (seed & 32 != 0).then_some(7),
                ..c
            });
        }
    }
}

#[test]
fn small_mtus_and_tiny_windows_still_move() {
    for (seed, mtu, window) in [(3, 576, 1000), (4, 1500, 500), (5, 296, 100_000)] {
        let faults = Faults { loss: 3, ..NONE };
        transfer(seed, faults, 30_000, |c| Config { mtu, recv_window_max: window, ..c });
    }
}
