//! Buffers that stay the guest's while they are sent.

use core::net::SocketAddr;

use paste_abi::slot::SHARE;
use paste_abi::{Event, Reason};

use super::harness::{Owner, PEER, Pair, config};
use crate::bufs::Place;
use crate::memory::Memory;
use crate::stack::Tx;
use crate::wire::tcp::flag::{ACK, RST};

const SHARED: Tx =
    Tx { buf: 0, offset: 128, len: 5, cookie: 7, notify: false, keep: false, share: true };

/// A pair, and a buffer of its guest's that holds "value".
fn stored(config: crate::Config) -> (Pair, Tx) {
    let mut pair = Pair::established(config);
    let buf = pair.host.mem.take_for(Owner::Guest).unwrap();
    pair.host.mem.write(buf, 128, b"value");
    (pair, Tx { buf, ..SHARED })
}

fn send(pair: &mut Pair, tx: &Tx) -> Result<(), Reason> {
    let host = &mut pair.host;
    let sent = host.stack.send(&mut host.mem, host.now, 0, pair.flow, tx);
    host.audit();
    sent
}

/// The guest gives the buffer back; it goes where the stack says.
fn give_back(pair: &mut Pair, buf: u32) {
    let host = &mut pair.host;
    if host.stack.release(host.now, buf) {
        host.mem.pass(Owner::Guest, Owner::Stack, buf);
        host.stack.retire(buf);
    } else {
        host.mem.give_from(Owner::Guest, buf);
    }
    host.audit();
}

#[test]
fn one_buffer_is_under_way_many_times_and_nothing_is_written_into_it() {
    let (mut pair, tx) = stored(crate::Config { header_in_buffer: true, ..config() });
    let before = pair.host.mem.bytes(tx.buf, 0, 2048).to_vec();
    for cookie in 0..3 {
        send(&mut pair, &Tx { cookie, ..tx }).unwrap();
    }
    let segments = pair.recv();
    assert_eq!(segments.iter().map(|s| &s.data[..]).collect::<Vec<_>>(), [b"value"; 3]);
    assert_eq!(pair.host.mem.bytes(tx.buf, 0, 2048), before);
    assert_eq!(pair.host.mem.owners[tx.buf as usize], Owner::Guest);
    pair.ack_more(10);
    let told: Vec<_> =
        pair.host.poll().iter().map(|s| (s.as_event(), s.cookie, s.buf_idx, s.modifiers)).collect();
    let acked = Some(Event::Acked);
    assert_eq!(told, [(acked, 0, tx.buf, SHARE), (acked, 1, tx.buf, SHARE)]);
    pair.ack_more(5);
    assert_eq!(pair.host.poll().len(), 1);
    assert_eq!(pair.host.stack.bufs.get(tx.buf).pins, 0);
    // Now it can be sent like any other.
    let (host, tx) = (&mut pair.host, Tx { share: false, ..tx });
    host.stack.send(&mut host.mem, host.now, 0, pair.flow, &tx).unwrap();
    host.mem.pass(Owner::Guest, Owner::Stack, tx.buf);
    assert_eq!(pair.recv_one().data, b"value");
}

#[test]
fn a_shared_segment_that_is_lost_is_sent_again() {
    let (mut pair, tx) = stored(config());
    send(&mut pair, &tx).unwrap();
    assert_eq!(pair.recv_one().data, b"value");
    pair.host.pass_time(3_000_000_000);
    let again = pair.recv();
    assert_eq!(again[0].data, b"value");
}

#[test]
fn while_it_is_under_way_it_is_neither_given_away_nor_freed() {
    let (mut pair, tx) = stored(config());
    pair.host.port_sends = false;
    send(&mut pair, &tx).unwrap();
    send(&mut pair, &tx).unwrap();
    let moved = send(&mut pair, &Tx { share: false, ..tx });
    assert_eq!(moved, Err(Reason::BadRequest));
    pair.recv();
    let free = pair.host.mem.free();
    give_back(&mut pair, tx.buf);
    assert_eq!(send(&mut pair, &tx), Err(Reason::ForeignBuffer));
    pair.ack_more(10);
    assert_eq!(pair.host.poll().len(), 2);
    assert_eq!(pair.host.mem.free(), free, "the port has it");
    pair.host.frames_sent();
    assert_eq!(pair.host.mem.free(), free + 1);
    assert_eq!(pair.host.stack.bufs.get(tx.buf).place, Place::Elsewhere);
}

#[test]
fn one_that_is_given_back_goes_to_the_pool_with_its_last_acknowledgement() {
    let (mut pair, tx) = stored(config());
    send(&mut pair, &tx).unwrap();
    pair.recv();
    let free = pair.host.mem.free();
    give_back(&mut pair, tx.buf);
    assert_eq!(pair.host.mem.free(), free);
    pair.ack_more(5);
    pair.host.poll();
    assert_eq!(pair.host.mem.free(), free + 1);
}

#[test]
fn a_flow_that_ends_tells_of_its_shared_sends() {
    let (mut pair, tx) = stored(config());
    send(&mut pair, &tx).unwrap();
    pair.recv();
    pair.send(RST, b"");
    let slots = pair.host.poll();
    let acked = slots[0];
    assert_eq!((acked.as_event(), acked.buf_idx), (Some(Event::Acked), tx.buf));
    assert_eq!(acked.len, Reason::PeerReset as u16);
    assert_eq!(slots[1].as_event(), Some(Event::Reset));
    give_back(&mut pair, tx.buf);
    assert_eq!(pair.host.mem.free(), 256);
}

#[test]
fn what_was_never_sent_is_not_told_as_acknowledged() {
    let (mut pair, tx) = stored(config());
    let host = &mut pair.host;
    let remote = SocketAddr::from((PEER, 8080));
    pair.flow = host.stack.connect(host.now, 0, remote, 0, 1).unwrap();
    send(&mut pair, &tx).unwrap();
    let host = &mut pair.host;
    host.stack.close(&mut host.mem, host.now, 0, pair.flow).unwrap();
    let told: Vec<_> = pair.host.poll().iter().map(|s| (s.as_event(), s.len)).collect();
    let (acked, closed) = (Some(Event::Acked), Some(Event::Closed));
    assert_eq!(told, [(acked, Reason::Aborted as u16), (closed, 0)]);
}

#[test]
fn a_channel_that_closes_ends_its_shared_sends() {
    let (mut pair, tx) = stored(config());
    for _ in 0..4 {
        send(&mut pair, &tx).unwrap();
    }
    pair.recv();
    let host = &mut pair.host;
    host.stack.close_channel(&mut host.mem, host.now, 0);
    host.audit();
    assert_eq!(host.stack.bufs.get(tx.buf).pins, 0);
    give_back(&mut pair, tx.buf);
    assert_eq!(pair.host.mem.free(), 256);
}

#[test]
fn no_more_are_under_way_than_configured() {
    let (mut pair, tx) = stored(crate::Config { shared_sends_max: 2, ..config() });
    send(&mut pair, &tx).unwrap();
    send(&mut pair, &tx).unwrap();
    assert_eq!(send(&mut pair, &tx), Err(Reason::NoRoom));
    pair.recv();
    pair.ack_more(5);
    pair.host.poll();
    send(&mut pair, &tx).unwrap();
    assert_eq!(send(&mut pair, &tx), Err(Reason::NoRoom));
    let (mut pair, tx) = stored(crate::Config { shared_sends_max: 0, ..config() });
    assert_eq!(send(&mut pair, &tx), Err(Reason::NoRoom));
}

#[test]
fn a_received_buffer_that_is_kept_opens_the_window_and_can_be_shared() {
    let mut pair = Pair::established(config());
    pair.host.reads = false;
    pair.send(ACK, b"store me");
    let slot = pair.host.poll()[0];
    let index = pair.flow.index();
    assert_eq!(pair.host.stack.flows[index].rx_bufs, 1);
    assert!(!pair.host.stack.release(pair.host.now, slot.buf_idx));
    assert_eq!(pair.host.stack.flows[index].rx_bufs, 0);
    // The harness has no headroom before what it receives.
    send(&mut pair, &Tx { buf: slot.buf_idx, offset: 128, ..SHARED }).unwrap();
    assert_eq!(pair.host.mem.owners[slot.buf_idx as usize], Owner::Guest);
    assert_eq!(pair.recv_one().data.len(), 5);
}
