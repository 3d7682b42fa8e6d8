//! The engine over the model of PASTE, whose NIC is loopback: sockets, TCP and epoll are
//! the kernel's, and the rings are the model's. Time is the tests' own.

mod flows;
mod pressure;
mod traps;

use paste_pmem::{Buffers, Pool};

use super::*;
use crate::engine::kernel::linux::contract::{HEADROOM, LOCAL, Subject, contract};
use crate::port::netmap::model::{Host, Model, NicKind};
use crate::port::prng::Prng;
use crate::testing;

contract!(PasteEngine);

type Rig = crate::engine::kernel::linux::contract::Rig<PasteEngine>;

const NIC: &str = "lo";

fn new_model() -> Model {
    let model = Model::new(Host::default());
    model.add_nic(NIC, NicKind::default());
    model
}

fn open(model: &Model, options: &Options<'_>) -> Result<PasteEngine, PasteError> {
    PasteEngine::with(options, |text, nic| PstPort::open_in(model, text, nic))
}

fn options(buffers: &Buffers) -> Options<'_> {
    Options {
        port: "paste:lo",
        nic: NIC,
        addresses: &[LOCAL],
        vlan: None,
        mtu: 1500,
        flows_max: 16,
        shared_sends_max: 16,
        headroom: HEADROOM,
        buffers,
    }
}

impl Subject for PasteEngine {
    type Host = Model;
    type Counters = Counters;
    const STEP: u64 = 100_000;

    fn open(buffers: &Buffers, flows_max: u32) -> (PasteEngine, Model) {
        let model = new_model();
        let engine = open(&model, &Options { flows_max, ..options(buffers) }).unwrap();
        (engine, model)
    }

    fn buffers_of(&self, flow: Flow) -> u32 {
        self.flows[flow.index()].rx_bufs
    }

    fn vary(model: &Model, random: &mut Prng) {
        let linger = (random.next_u64() % 2) as u32;
        let keep = random.next_u64().is_multiple_of(2).then(|| 1 + (random.next_u64() % 20) as u32);
        model.pst(NIC, |pst| {
            pst.manner().linger = linger;
            pst.manner().keep_max = keep;
        });
    }

    fn settle(&self, model: &Model) {
        model.pst(NIC, |pst| pst.manner().linger = 0);
        let counts = model.pst(NIC, |pst| pst.counts());
        assert_eq!((counts.stops_bad, counts.nobodys, counts.lost), (0, 0, 0));
        assert_eq!(self.counters.lost, 0);
    }

    fn end(self, model: Model) -> Counters {
        let counters = self.counters;
        drop(self);
        assert_eq!(model.users(NIC), 0, "the kernel still waits for sockets");
        assert_eq!(model.complaints(), 0, "somebody wrote into the kernel's blocks");
        counters
    }
}

#[test]
fn what_is_in_the_way_is_said_and_nothing_is_left() {
    let pool = Pool::new(testing::buffers(64));
    let good = options(pool.buffers());
    let model = new_model();
    let v6: IpAddr = "fe80::1".parse().unwrap();
    let far: IpAddr = "192.0.2.7".parse().unwrap();
    for (options, message) in [
        (
            Options { addresses: &[LOCAL, v6], ..good },
            "port paste:lo: fe80::1 is an IPv6 address, and PASTE knows IPv4 alone: give the guest \
             an IPv4 address of lo, or use port netmap:lo",
        ),
        (
            Options { vlan: Some(7), ..good },
            "port paste:lo: PASTE knows no VLANs: remove `vlan`, or use port netmap:lo",
        ),
        (
            Options { addresses: &[far], ..good },
            "port paste:lo: 192.0.2.7 cannot be bound on lo (Cannot assign requested address (os \
             error 99)): give the guest an address that lo has, as in `ip addr add 192.0.2.7/24 \
             dev lo`",
        ),
    ] {
        let error = open(&model, &options).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(model.users(NIC), 0, "{message}");
    }
    let none = Model::new(Host { module: false, ..Host::default() });
    let error = open(&none, &good).unwrap_err().to_string();
    assert!(error.starts_with("port paste:lo: netmap module not loaded"), "{error}");
    open(&model, &good).expect("nothing is in the way");
}
