//! Whatever clients and guests do, from seeds.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use paste_abi::slot::{KEEP, SHARE};
use paste_abi::{Event, Flow};

use super::{LOCAL, Rig, Subject, pattern};
use crate::engine::kernel::linux::socket;
use crate::port::prng::Prng;

/// Clients and a guest that do anything, from a seed: no buffer and no flow is lost, and
/// what a flow says is in order.
pub fn anything_may_happen_and_nothing_is_lost<E: Subject>() {
    for seed in 0..12 {
        anything::<E>(seed);
    }
}

fn anything<E: Subject>(seed: u64) {
    let mut random = Prng::new(seed);
    let mut below = move |n: u32| (random.next_u64() % u64::from(n)) as u32;
    let mut rig = Rig::<E>::new(64 << below(4), 4 + below(20));
    E::vary(&rig.host, &mut Prng::new(seed));
    let (_, port) = rig.listen(1 + below(8) as u16);
    let mut clients: Vec<TcpStream> = Vec::new();
    let mut flows: Vec<(Flow, bool)> = Vec::new();
    for step in 0..600u64 {
        match below(12) {
            0 | 1 if clients.len() < 24 => {
                // The backlog may be full: then the kernel does not answer.
                let to = SocketAddr::new(LOCAL, port);
                if let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(5)) {
                    stream.set_nonblocking(true).unwrap();
                    clients.push(stream);
                }
            }
            2..=5 if !clients.is_empty() => {
                let at = below(clients.len() as u32) as usize;
                let client = &mut clients[at];
                let _ = client.write(&pattern(1 + below(60_000) as usize));
            }
            6 if !clients.is_empty() => {
                let client = clients.swap_remove(below(clients.len() as u32) as usize);
                if below(2) == 0 {
                    socket::reset_on_close(&client);
                }
            }
            7 if !clients.is_empty() => {
                let at = below(clients.len() as u32) as usize;
                let client = &mut clients[at];
                let _ = client.read(&mut vec![0; 1 + below(100_000) as usize]);
            }
            8 if !clients.is_empty() => {
                let _ = clients[below(clients.len() as u32) as usize].shutdown(Shutdown::Write);
            }
            9 | 10 if !flows.is_empty() => {
                let (flow, _) = flows[below(flows.len() as u32) as usize];
                for _ in 0..below(40) {
                    if rig.mem.pool().free() < 4 {
                        break;
                    }
                    let how = [0, 2, KEEP, SHARE][below(4) as usize];
                    let len = 1 + below(1900) as usize;
                    let _ = rig.send(flow, &pattern(len), step, how);
                }
            }
            11 if !flows.is_empty() => {
                let (flow, _) = flows[below(flows.len() as u32) as usize];
                let _ = if below(3) == 0 { rig.abort(flow) } else { rig.close(flow) };
            }
            _ => {}
        }
        rig.turn_with(below(20) as usize);
        for slot in std::mem::take(&mut rig.told) {
            let known = flows.iter().position(|(flow, _)| *flow == slot.flow);
            let event = slot.as_event().unwrap();
            assert_eq!(known.is_none(), event == Event::Accepted, "seed {seed}: {slot:?}");
            let at = known.unwrap_or(flows.len());
            match event {
                Event::Accepted => flows.push((slot.flow, false)),
                Event::Data => assert!(!flows[at].1, "seed {seed}: payload after FIN"),
                Event::Fin => flows[at].1 = true,
                Event::Reset | Event::Closed => drop(flows.swap_remove(at)),
                _ => {}
            }
        }
        // Now and then the guest gives back what it has.
        if below(4) == 0 {
            rig.give_all_back();
        }
    }
    drop(clients);
    rig.engine.settle(&rig.host);
    rig.end();
}
