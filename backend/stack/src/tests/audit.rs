//! The audit finds what it looks for: one thing after another is put out of
//! order in a stack that is busy.

use super::harness::*;
use crate::audit::Violation;
use crate::bufs::{NIL, Place};
use crate::clock::Deadline;
use crate::flow::{Links, State};
use crate::stack::Stack;

/// A flow with payload in each of its queues but the last, and one buffer with
/// the guest.
fn busy() -> Pair {
    let mut pair = Pair::established(config());
    pair.host.reads = false;
    let flow = pair.flow;
    pair.send(ACK, b"first");
    pair.seq += 5;
    pair.host.poll();
    pair.send(ACK, b"second");
    pair.seq += 6;
    pair.send_ahead(10, ACK, b"held");
    pair.host.send(flow, b"sent");
    pair.host.send(flow, b"sent as well");
    pair.recv();
    pair.host.audit();
    pair
}

/// What the audit says of a busy stack after `spoil` has been at its flow.
fn spoiled(spoil: impl FnOnce(&mut Stack, u32)) -> Result<(), Violation> {
    let mut pair = busy();
    spoil(&mut pair.host.stack, pair.flow.index());
    let owners = &pair.host.mem.owners;
    pair.host.stack.audit(|buf| owners[buf as usize] == Owner::Stack)
}

macro_rules! finds {
    ($pattern:pat, $spoil:expr) => {
        let result = spoiled($spoil);
        assert!(matches!(result, Err($pattern)), "{result:?}");
    };
}

#[test]
fn a_stack_in_order_passes() {
    assert_eq!(spoiled(|_, _| ()), Ok(()));
}

#[test]
fn buffers_out_of_place_are_found() {
    finds!(Violation::Misplaced { queue: "readable", .. }, |stack, flow| {
        let buf = stack.flows[flow].rx.head;
        stack.bufs.get_mut(buf).place = Place::Held;
    });
    finds!(Violation::Misplaced { queue: "send", .. }, |stack, flow| {
        let buf = stack.flows[flow].tx.head;
        stack.bufs.get_mut(buf).flow += 1;
    });
    finds!(Violation::Twice { queue: "held", .. }, |stack, flow| {
        let buf = stack.flows[flow].held.head;
        stack.bufs.get_mut(buf).next = buf;
    });
    finds!(Violation::Torn { queue: "readable", .. }, |stack, flow| {
        stack.flows[flow].rx.tail = NIL;
    });
    finds!(Violation::Torn { queue: "held", .. }, |stack, flow| {
        let buf = stack.flows[flow].held.tail;
        stack.bufs.get_mut(buf).back = NIL;
    });
    finds!(Violation::Stray { .. }, |stack, _| {
        let buf = (0..256).find(|&b| stack.bufs.get(b).place == Place::Elsewhere).unwrap();
        stack.bufs.get_mut(buf).place = Place::Pinned;
    });
    finds!(Violation::Stray { .. }, |stack, flow| {
        stack.bufs.pop(&mut stack.flows[flow].rx);
        stack.flows[flow].rx_bufs -= 1;
    });
    finds!(Violation::Owner { .. }, |stack, _| {
        let buf = (0..256).find(|&b| stack.bufs.get(b).place == Place::Elsewhere).unwrap();
        stack.bufs.get_mut(buf).place = Place::Pinned;
        stack.bufs.get_mut(buf).pins = 1;
    });
}

#[test]
fn wrong_counts_are_found() {
    finds!(Violation::Count { what: "rx_bufs", .. }, |stack, flow| {
        stack.flows[flow].rx_bufs -= 1;
    });
    finds!(Violation::Count { what: "held_blocks", .. }, |stack, flow| {
        stack.flows[flow].held_blocks += 1;
    });
    finds!(Violation::Count { what: "tx_len", .. }, |stack, flow| {
        stack.flows[flow].tx_len += 1;
    });
    finds!(Violation::Count { what: "open", .. }, |stack, _| stack.open += 1);
    finds!(Violation::Count { what: "promised", .. }, |stack, _| stack.promised -= 1);
    finds!(Violation::Count { what: "half_open", .. }, |stack, _| {
        let door = stack.listeners.of_port(80).unwrap();
        stack.listeners.enter(door.name);
    });
    finds!(Violation::Count { what: "time_wait_len", .. }, |stack, _| stack.time_wait_len += 1);
}

#[test]
fn a_promise_that_cannot_be_kept_is_found() {
    finds!(Violation::Promise { .. }, |stack, flow| {
        stack.flows[flow].rcv_adv += 256 * 1460;
        stack.promised += 256 * 1460;
    });
}

#[test]
fn sequence_numbers_out_of_order_are_found() {
    finds!(Violation::Sequence { what: "SND.UNA <= SND.NXT", .. }, |stack, flow| {
        let flow = &mut stack.flows[flow];
        flow.snd_una = flow.snd_nxt + 1;
    });
    finds!(Violation::Sequence { what: "the send queue has no gap", .. }, |stack, flow| {
        let buf = stack.flows[flow].tx.tail;
        stack.bufs.get_mut(buf).seq += 1;
    });
    finds!(Violation::Sequence { what: "held payload lies in the window", .. }, |stack, flow| {
        let flow = &mut stack.flows[flow];
        stack.promised -= u64::from(flow.rcv_wnd()) - 11;
        flow.rcv_adv = flow.rcv_nxt + 11;
    });
    finds!(Violation::Sequence { what: "readable payload ends at RCV.NXT", .. }, |stack, flow| {
        stack.flows[flow].rcv_nxt += 1;
        stack.promised -= 1;
    });
}

#[test]
fn lost_timers_are_found() {
    finds!(Violation::Timer { rings: None, .. }, |stack, flow| stack.wheel.cancel(flow));
    finds!(Violation::Timer { rings: Some(_), .. }, |stack, flow| {
        stack.flows[flow].rexmit_at = Deadline::after(0, 0);
        stack.wheel.cancel(flow);
        stack.wheel.set_earlier(flow, u64::MAX / 2);
    });
    finds!(Violation::Asleep { what: "not all is acknowledged", .. }, |stack, flow| {
        stack.flows[flow].rexmit_at = Deadline::NEVER;
    });
    finds!(Violation::Asleep { what: "the guest is to be told", .. }, |stack, flow| {
        let mut ready = stack.channels[0].ready;
        stack.flows.remove(&mut ready, Links::Ready, flow);
        stack.channels[0].ready = ready;
    });
}

#[test]
fn a_flow_that_is_lost_is_found() {
    finds!(Violation::Listed { what: "is not found by its key", .. }, |stack, flow| {
        let hash = stack.key_hash(&stack.flows[flow].key);
        stack.table.remove(hash, flow);
    });
    finds!(Violation::Listed { .. }, |stack, flow| {
        stack.channels[0].ready = crate::flow::List::EMPTY;
        assert!(stack.flows.linked(Links::Ready, flow));
    });
    finds!(Violation::Listed { .. }, |stack, flow| stack.flows[flow].state = State::TimeWait);
}

#[test]
#[should_panic(expected = "from Established to SynSent")]
fn an_edge_that_figure_5_does_not_have_is_found() {
    let _ = spoiled(|stack, flow| stack.flows[flow].enter(State::SynSent));
}
