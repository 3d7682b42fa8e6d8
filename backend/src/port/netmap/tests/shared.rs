//! A port that several guests share: one copy, and none by netmap or the port.

use super::*;
use crate::port::{Now, Received, RxBatch};
use crate::switch::{Switch, SwitchPort, buffers_needed};
use crate::sys::wake;
use crate::worker::Task;

const NOW: Now = Now { monotonic_ns: 1, real_ns: 2 };
const SECOND: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x22];

struct Guest {
    port: SwitchPort,
    buffered: Buffered,
    batch: TxBatch,
}

impl Guest {
    fn send(&mut self, frame: &[u8]) {
        let buf = self.buffered.pool.take(Owner::Stack).unwrap();
        self.buffered.pool.buffers().write(buf, 131, &frame[54..]).unwrap();
        let out = self.batch.push(Origin::Stack).unwrap();
        out.head_mut(54).copy_from_slice(&frame[..54]);
        out.payload = Some(Payload { buf, offset: 131, len: (frame.len() - 54) as u16 });
        let mut done = Vec::new();
        let Self { port, buffered, batch } = self;
        let sent = port.send(NOW, &buffered.pool, batch, &mut |_, buf| done.push(buf)).unwrap();
        assert_eq!((sent, &done[..]), (1, &[buf][..]), "it is copied at once");
        buffered.pool.give(buf, Owner::Stack).unwrap();
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut out = RxBatch::new(64);
        let pool = &mut self.buffered.pool;
        self.port.receive(NOW, pool, &mut out).unwrap();
        let bytes = |received: &Received| {
            let frame = received.frame;
            let mut bytes = vec![0; usize::from(frame.len)];
            pool.buffers().read(frame.buf, usize::from(frame.offset), &mut bytes).unwrap();
            pool.give(frame.buf, Owner::Port).unwrap();
            bytes
        };
        out.frames().iter().map(bytes).collect()
    }
}

/// A switch on a port of the model, and its guests.
fn shared(model: &Model, opening: &Opening) -> (Switch, [Guest; 2]) {
    let macs = [GUEST, SECOND];
    let count = 2 * buffers_needed(2) as u32;
    let nic = Buffered::new(count, 2048);
    let opening = Opening { macs: macs.to_vec(), ..opening.clone() };
    let port = opening.open(model, &nic).unwrap();
    let pair = || wake::pair().unwrap();
    let mut switch = Switch::new("shared".to_owned(), Box::new(port), nic.pool, 0, pair());
    let guests = macs.map(|mac| {
        let station = Station { mac, vlan: None, addresses: Vec::new() };
        let port = switch.join("web", &station, 1500, pair());
        let batch = TxBatch::new(64);
        Guest { port, buffered: Buffered::new(64, 2048), batch }
    });
    switch.turn(NOW);
    (switch, guests)
}

fn count(switch: &Switch, wanted: &str) -> u64 {
    let mut found = None;
    switch.each_counter(&mut |name, value| {
        if name == wanted {
            found = Some(value);
        }
    });
    found.unwrap_or_else(|| panic!("there is no counter {wanted}"))
}

#[test]
fn guests_share_a_nic_and_a_port_of_a_switch() {
    let nic = [Opening::netmap("ix0"), Opening::netmap("ix1")];
    let vale = [Opening::vale("a"), Opening::vale("b")];
    for (what, [near, far], fragments) in
        [("a NIC", nic.clone(), true), ("a NIC", nic, false), ("VALE", vale, false)]
    {
        let model = nics(NicKind::default());
        let near = Opening { fragments, ..near };
        let (mut switch, [mut one, mut two]) = shared(&model, &near);
        let mut far = End::open(&model, &Opening { macs: vec![OTHER], fragments, ..far });
        let all = [0xff; 6];
        for turn in 0..300u32 {
            let f = |to, from: [u8; 6], len| {
                let mut frame = frame(to, len, turn as u8);
                frame[6..12].copy_from_slice(&from);
                frame
            };
            for to in [GUEST, SECOND, all] {
                far.push(&f(to, OTHER, 700), 54);
                far.send();
            }
            switch.turn(NOW);
            assert_eq!(one.receive(), [f(GUEST, OTHER, 700), f(all, OTHER, 700)], "{what}");
            assert_eq!(two.receive(), [f(SECOND, OTHER, 700), f(all, OTHER, 700)], "{what}");
            // Out, to each other, and to everybody.
            one.send(&f(OTHER, GUEST, 1400));
            one.send(&f(SECOND, GUEST, 400));
            two.send(&f(all, SECOND, 300));
            switch.turn(NOW);
            assert_eq!(two.receive(), [f(SECOND, GUEST, 400)], "{what}");
            assert_eq!(one.receive(), [f(all, SECOND, 300)], "{what}");
            // Whose turn is first changes.
            let mut received = far.receive();
            received.sort();
            assert!(received == [f(OTHER, GUEST, 1400), f(all, SECOND, 300)], "{what}");
            switch.turn(NOW);
        }
        assert_eq!(count(&switch, "switch.switched"), 300, "{what}");
        // Once for each buffer that the rings were made with, and VALE's have more than came.
        let made_with = if what == "VALE" { 900 } else { 64 };
        assert!(count(&switch, "port.rx_bytes_copied") <= made_with * 700, "{what}");
        assert_eq!(count(&switch, "port.tx_bytes_copied"), 0, "{what}");
        switch.finish(NOW);
        // All that is not with the guests' ends.
        let credit = (buffers_needed(1) - buffers_needed(0)) as u64 / 2;
        let free = count(&switch, "pool.free");
        assert_eq!(free, count(&switch, "pool.buffers") - 2 * credit, "{what}");
        far.close();
    }
}
