//! Too little of something: buffers, flows, places in a backlog, or a client's zeal.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use paste_abi::{Event, Flow, Reason};

use super::{CHANNEL, LOCAL, PATIENCE, Rig, Subject, client, pattern};

pub fn single_bytes_do_not_take_a_buffer_each<E: Subject>() {
    let mut rig = Rig::<E>::new(512, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    rig.turn();
    let sent = pattern(3000);
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            sent.iter().for_each(|byte| stream.write_all(&[*byte]).unwrap());
            stream
        }
    });
    // The guest takes nothing.
    let end = Instant::now() + PATIENCE;
    while rig.count("stack.bytes_in") < 3000 {
        rig.turn_with(0);
        assert!(Instant::now() < end);
    }
    drop(writer.join().unwrap());
    let charged = rig.engine.buffers_of(flow);
    assert!(charged <= 8, "{charged} buffers for 3000 bytes");
    let mut got = Vec::new();
    rig.until("all of it", |rig| {
        for slot in std::mem::take(&mut rig.told) {
            if slot.as_event() == Some(Event::Data) {
                got.extend(rig.bytes(&slot));
                rig.give_back(slot.buf_idx);
            }
        }
        (got.len() == sent.len()).then_some(())
    });
    assert!(got == sent, "what arrived differs");
    rig.end();
}

pub fn connections_beyond_the_flows_wait<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 2);
    let (_, port) = rig.listen(16);
    let (first, flow) = rig.accept(port);
    let (_second, _) = rig.accept(port);
    (0..10).for_each(|_| rig.turn());
    let third = client(port);
    (0..10).for_each(|_| rig.turn());
    assert_eq!(rig.count("stack.flows"), 2);
    assert!(!rig.told.iter().any(|slot| slot.as_event() == Some(Event::Accepted)));
    // One ends, and the one that waits has its turn.
    drop(first);
    rig.hear(Event::Fin);
    rig.close(flow).unwrap();
    rig.hear(Event::Closed);
    let slot = rig.hear(Event::Accepted);
    assert_eq!(slot.peer(), third.local_addr().unwrap());
    assert_ne!(slot.flow, flow, "another generation, or another place");
    rig.end();
}

pub fn a_full_backlog_is_left_to_the_kernel<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 64);
    let (_, port) = rig.listen(2);
    rig.turn();
    let clients: Vec<_> = (0..2).map(|_| client(port)).collect();
    let end = Instant::now() + PATIENCE;
    while rig.count("stack.accepted") < 2 {
        rig.turn_with(0);
        assert!(Instant::now() < end);
    }
    (0..10).for_each(|_| rig.turn_with(0));
    let late = client(port);
    (0..10).for_each(|_| rig.turn_with(0));
    assert_eq!(rig.count("stack.accepted"), 2, "the guest was not told of the first two");
    for _ in 0..3 {
        rig.hear(Event::Accepted);
    }
    drop((clients, late));
    rig.end();
}

pub fn listeners_are_named_and_their_ports_are_free_at_once<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 16);
    let (listener, port) = rig.listen(16);
    (0..3).for_each(|_| rig.turn());
    assert_eq!(rig.engine.listen(CHANNEL, port, 16), Err(Reason::PortInUse));
    assert_eq!(rig.engine.listen(CHANNEL, 0, 16), Err(Reason::BadAddress));
    assert_eq!(rig.engine.unlisten(CHANNEL + 1, listener), Err(Reason::StaleFlow));
    let (mut stream, flow) = rig.accept(port);
    rig.engine.unlisten(CHANNEL, listener).unwrap();
    assert_eq!(rig.engine.unlisten(CHANNEL, listener), Err(Reason::StaleFlow));
    assert!(TcpStream::connect((LOCAL, port)).is_err(), "nobody listens");
    let again = rig.engine.listen(CHANNEL, port, 16).expect("the port is free");
    assert_ne!(again, listener);
    rig.accept(port);
    // What the first accepted lives on.
    rig.send(flow, b"still", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    rig.engine.close_channel(rig.now, &mut rig.mem, CHANNEL);
    rig.engine.listen(CHANNEL, port, 16).expect("a channel that was opened anew may listen");
    assert_eq!(rig.send(flow, b"x", 0, 0), Err(Reason::StaleFlow));
    (0..3).for_each(|_| rig.turn());
    let error = stream.read(&mut got).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    rig.end();
}

/// Sends on a flow that its client does not read until the kernel takes no more. Returns how
/// many times the same 1900 bytes.
pub fn fill<E: Subject>(rig: &mut Rig<E>, flow: Flow) -> usize {
    let part = pattern(1900);
    let (mut sent, mut full) = (0, false);
    let end = Instant::now() + PATIENCE;
    while !full {
        match rig.send(flow, &part, 0, 0) {
            Ok(_) => sent += 1,
            Err(reason) => {
                assert_eq!(reason, Reason::FlowFull);
                rig.give_all_back();
                // Full is full when the kernel takes no more.
                let before = rig.count("stack.bytes_out");
                (0..100).for_each(|_| rig.turn());
                full = rig.count("stack.bytes_out") == before;
                assert!(Instant::now() < end);
            }
        }
    }
    sent
}

/// The client of a flow that [`fill`] has filled reads, and the flow goes on where it was.
pub fn drain<E: Subject>(rig: &mut Rig<E>, mut client: TcpStream, flow: Flow, sent: usize) {
    rig.told.clear();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 1900 * sent];
        client.read_exact(&mut got).unwrap();
        assert!(got.chunks(1900).all(|chunk| chunk == pattern(1900)), "what arrived differs");
        client
    });
    let slot = rig.hear(Event::Writable);
    assert_eq!(slot.flow, flow);
    rig.until("all is read", |_| reader.is_finished().then_some(()));
    drop(reader.join().unwrap());
}

/// A guest that keeps everything stops those who send to it, and nothing is lost: `stopped`
/// says when, and `look` is called then.
pub fn keep_everything<E: Subject>(
    stopped: impl Fn(&Rig<E>) -> bool,
    look: impl FnOnce(&Rig<E>),
) -> (Rig<E>, Vec<Flow>) {
    const CLIENTS: usize = 8;
    const LEN: usize = 400_000;
    let mut rig = Rig::<E>::new(256, 16);
    let (_, port) = rig.listen(16);
    let mut flows = Vec::new();
    let mut writers = Vec::new();
    for client in 0..CLIENTS {
        let (mut stream, flow) = rig.accept(port);
        flows.push(flow);
        writers.push(std::thread::spawn(move || {
            let mut bytes = pattern(LEN);
            bytes.iter_mut().for_each(|byte| *byte ^= client as u8);
            stream.write_all(&bytes).unwrap();
            stream
        }));
    }
    rig.until("they stop", |rig| stopped(rig).then_some(()));
    look(&rig);
    // Then it gives back, and everything comes.
    let mut got = vec![Vec::new(); CLIENTS];
    rig.until("everything", |rig| {
        for slot in std::mem::take(&mut rig.told) {
            let client = flows.iter().position(|flow| *flow == slot.flow).unwrap();
            assert_eq!(slot.as_event(), Some(Event::Data), "{slot:?}");
            got[client].extend(rig.bytes(&slot));
            rig.give_back(slot.buf_idx);
        }
        got.iter().all(|bytes| bytes.len() == LEN).then_some(())
    });
    for (client, bytes) in got.iter().enumerate() {
        let right = bytes.iter().zip(pattern(LEN)).all(|(got, byte)| *got == byte ^ client as u8);
        assert!(right, "client {client} sent something else");
    }
    writers.into_iter().for_each(|writer| drop(writer.join().unwrap()));
    (rig, flows)
}
