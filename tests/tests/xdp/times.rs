//! When frames have arrived, by a clock that is not the worker's.

use std::net::UdpSocket;
use std::sync::OnceLock;

use paste_pmem::{
    BUFFER_SIZE_MIN, Backing, Geometry, HugePages, Identity, Owner, Pool, Region, Uuid,
};
use paste_stack::RxFrame;
use pasted::port::{
    ClockPair, DeviceClock, Now, Port, RxBatch, Stamps, Station, Timing, XdpDevices, XdpMode,
    XdpOptions, XdpPort,
};
use pasted::sys::clock::{monotonic_ns, realtime_ns};

use super::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 7, 11];
const ADDRESS: &str = "10.7.0.11";
/// The worker comes by so much later than frames have arrived, ns.
const LATER: u64 = 3_000_000_000;

/// The monotonic clock, in the place of a device's.
#[derive(Debug)]
struct Monotonic;

impl DeviceClock for Monotonic {
    fn compare(&mut self) -> Option<ClockPair> {
        let device_ns = monotonic_ns();
        Some(ClockPair { device_ns, real_ns: device_ns + offset() })
    }
}

/// Between the two clocks, ns, as if nobody set either.
fn offset() -> u64 {
    static OFFSET: OnceLock<u64> = OnceLock::new();
    *OFFSET.get_or_init(|| realtime_ns() - monotonic_ns())
}

/// Since the Unix epoch, ns.
fn real_ns() -> u64 {
    monotonic_ns() + offset()
}

fn timing(stamps: Stamps) -> Option<Timing> {
    Some(Timing { stamps, clock: Box::new(Monotonic) })
}

/// A port on the device, in the host's namespace.
struct Opened {
    port: XdpPort,
    pool: Pool,
    _region: Region,
}

impl Opened {
    fn new(devices: &XdpDevices, mode: Option<XdpMode>) -> Opened {
        let geometry = Geometry::new(16 << 20, BUFFER_SIZE_MIN).expect("a region's shape");
        let identity = Identity { guest: "times", uuid: Uuid([7; 16]), created_ns: realtime_ns() };
        let region = Region::create(&Backing::Memory(HugePages::No), geometry, &identity);
        let region = region.expect("a region");
        let addresses = vec![ADDRESS.parse().expect("an address")];
        let port = XdpPort::open(&XdpOptions {
            name: DEVICE,
            queue: None,
            mode,
            mtu: 9000,
            stations: &[Station { mac: MAC, vlan: None, addresses }],
            devices,
            region: &region,
        });
        let mut opened =
            Opened { port: port.expect("a port"), pool: region.pool(), _region: region };
        // Whether the clock is steady is known when it was read twice.
        opened.receive(0);
        opened.receive(LATER);
        opened
    }

    /// What is there, so much later, and what time it was then.
    fn receive(&mut self, later: u64) -> (Vec<RxFrame>, u64) {
        let (monotonic_ns, real_ns) = (monotonic_ns() + later, real_ns() + later);
        let now = Now { monotonic_ns, real_ns };
        let mut batch = RxBatch::new(256);
        self.port.receive(now, &mut self.pool, &mut batch).expect("the port works");
        let frames: Vec<_> = batch.frames().iter().map(|received| received.frame).collect();
        for frame in &frames {
            self.pool.give(frame.buf, Owner::Port).expect("it was the port's");
        }
        (frames, now.real_ns)
    }

    fn count(&self, name: &str) -> u64 {
        let mut found = None;
        self.port.each_counter(&mut |counter, value| {
            if counter == name {
                found = Some(value);
            }
        });
        found.expect("there is such a counter")
    }
}

/// Sends datagrams of these lengths, and returns what the port gives for them `LATER`, with
/// when it did; and between which times they were sent.
fn sent(
    net: &Net,
    opened: &mut Opened,
    lens: &[usize],
    frames: usize,
) -> (Vec<(RxFrame, u64)>, [u64; 2]) {
    let socket = net.far.run(|| UdpSocket::bind(("0.0.0.0", 0))).expect("a socket");
    let before = real_ns();
    for &len in lens {
        socket.send_to(&vec![7; len], (ADDRESS, 9)).expect("it leaves");
    }
    let mut got = Vec::new();
    wait::until("the frames come", || {
        let (frames_of_turn, now) = opened.receive(LATER);
        got.extend(frames_of_turn.into_iter().map(|frame| (frame, now)));
        (got.len() >= frames).then_some(())
    });
    assert_eq!(got.len(), frames);
    (got, [before, real_ns()])
}

/// A device with long packets, whose guest is known to its neighbours.
fn net() -> Net {
    let net = Net::new(1);
    net.host.ip(&format!("link set dev {DEVICE} mtu 9000"));
    net.far.ip("link set dev eth0 mtu 9000");
    net.far.ip(&format!("neigh add {ADDRESS} lladdr 52:54:00:00:07:0b dev eth0 nud permanent"));
    net
}

#[test]
fn a_frame_has_the_time_that_stands_in_front_of_it() {
    require!(NEEDS[0], NEEDS[5]);
    let net = net();
    net.host.run(|| {
        let devices = XdpDevices::timed_by(|_| timing(Stamps::Monotonic));
        let mut opened = Opened::new(&devices, None);
        assert_eq!(opened.count("xdp.device_time"), 1);
        // The second one is of two buffers.
        let (frames, [before, after]) = sent(&net, &mut opened, &[100, 3000, 200], 4);
        for (frame, _) in &frames {
            assert!((before..=after).contains(&frame.time), "{before} {} {after}", frame.time);
        }
        assert_eq!(frames[1].0.time, frames[2].0.time, "they came as one");
        assert!(frames[0].0.time < frames[1].0.time && frames[2].0.time < frames[3].0.time);
        assert_eq!((opened.count("xdp.rx_time_device"), opened.count("xdp.rx_time_host")), (3, 0));
        // The kernel's own path has no driver to ask.
        drop(opened);
        let opened = Opened::new(&devices, Some(XdpMode::Generic));
        assert_eq!(opened.count("xdp.device_time"), 0);
    });
    net.assert_nothing_attached();
}

/// A veth's driver can be asked, and knows no time.
#[test]
fn a_frame_without_a_time_came_when_it_was_taken() {
    require!(NEEDS[0], NEEDS[5]);
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        eprintln!("skipped: this kernel says nothing of its types");
        return;
    }
    let net = net();
    net.host.run(|| {
        let devices = XdpDevices::timed_by(|_| timing(Stamps::Device));
        let mut opened = Opened::new(&devices, None);
        assert_eq!(opened.count("xdp.device_time"), 1);
        let (frames, _) = sent(&net, &mut opened, &[100, 3000, 200], 4);
        assert!(frames.iter().all(|(frame, now)| frame.time == *now));
        assert_eq!((opened.count("xdp.rx_time_device"), opened.count("xdp.rx_time_host")), (0, 3));
        // One more guest comes to the device: the program is another one, and asks as well.
        let station =
            Station { mac: [2, 0, 0, 0, 0, 1], vlan: None, addresses: vec![[10, 7, 0, 12].into()] };
        opened.port.admit(&station).expect("it is let in");
        sent(&net, &mut opened, &[100], 1);
        assert_eq!(opened.count("xdp.rx_time_host"), 4);
        drop(opened);
        // Nor has it a clock, so that as a rule it is not asked at all.
        let opened = Opened::new(&XdpDevices::default(), None);
        assert_eq!((opened.count("xdp.device_time"), opened.count("xdp.driver_mode")), (0, 1));
    });
    net.assert_nothing_attached();
}
