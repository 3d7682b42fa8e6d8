//! Too little of something, as io_uring has it.

use std::io::Read;

use super::super::*;
use super::Rig;
use crate::engine::kernel::linux::contract::pressure::{drain, fill, keep_everything};

#[test]
fn a_client_that_never_reads_holds_up_its_own_flow_only() {
    let mut rig = Rig::new(4096, 16);
    let (_, port) = rig.listen(16);
    let (slow, flow) = rig.accept(port);
    let sent = fill(&mut rig, flow);
    assert!(rig.engine.flows[flow.index()].tx_len >= 1000);
    // Another is served meanwhile.
    let (mut other, second) = rig.accept(port);
    rig.send(second, b"hello", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    other.read_exact(&mut got).unwrap();
    drain(&mut rig, slow, flow, sent);
    rig.end();
}

#[test]
fn slow_guests_exhaust_the_pool_and_nothing_is_lost() {
    let busy = |rig: &Rig| {
        let flows = &rig.engine.flows;
        (0..flows.used()).filter(|index| flows[*index].receiving != Busy::No).count()
    };
    let (rig, _) = keep_everything::<SocketsEngine>(
        |rig| busy(rig) == 0 && rig.engine.counters.bytes_in > 0,
        |rig| {
            let flows = &rig.engine.flows;
            let most = (0..flows.used()).map(|index| flows[index].rx_bufs).max().unwrap();
            assert!(most < 200, "one flow has {most} of 256 buffers");
            assert!(rig.mem.pool().free() >= rig.engine.reserve, "the reserve was touched");
        },
    );
    let counters = rig.end();
    assert!(counters.flow_share + counters.pool_empty > 0);
}
