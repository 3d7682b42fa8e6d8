//! The stack's methods in any order with any arguments that its contract allows,
//! while peers answer as peers do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use paste_abi::Flow;
use paste_abi::slot::Opt;
use paste_stack::{Memory, Tx};

use super::bed::{Bed, CHANNELS, MS, PEERS};
use super::bytes::Bytes;
use super::frames::flag;
use super::sharing::{self, SHARING};
use crate::sim::Owner;

/// Steps of one run.
const STEPS_MAX: usize = 256;

/// Three bytes choose the settings, then steps follow.
pub fn api(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut bed = Bed::new(&mut bytes);
    let mut listeners = Vec::new();
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        step(&mut bed, &mut bytes, &mut listeners);
        bed.check();
    }
    bed.wind_down();
}

/// A flow that guests know, or any number.
fn any_name(bed: &Bed, bytes: &mut Bytes<'_>) -> (u16, Flow) {
    match bytes.u8() {
        0xff => (bytes.u16(), Flow(bytes.u32())),
        choice => bed.name(choice.into()),
    }
}

fn any_channel(bytes: &mut Bytes<'_>) -> u16 {
    match bytes.u8() {
        0xff => bytes.u16(),
        choice => u16::from(choice) % CHANNELS,
    }
}

fn step(bed: &mut Bed, bytes: &mut Bytes<'_>, listeners: &mut Vec<(u16, Flow)>) {
    let now = bed.now;
    let choice = bytes.u8();
    if choice >= SHARING {
        return sharing::step(bed, bytes, choice);
    }
    match choice % 20 {
        0 => {
            let (channel, port, backlog) = (any_channel(bytes), bytes.u16() % 100, bytes.u16());
            if let Ok(listener) = bed.stack.listen(channel, port, backlog) {
                listeners.push((channel, listener));
            }
        }
        1 => {
            let any = (bytes.u16(), Flow(bytes.u32()));
            let choice = usize::from(bytes.u8()) % (listeners.len() + 1);
            let (channel, listener) = listeners.get(choice).copied().unwrap_or(any);
            let _ = bed.stack.unlisten(channel, listener);
        }
        2 => connect(bed, bytes),
        3 | 4 => {
            let name = any_name(bed, bytes);
            let tx = Tx {
                offset: bytes.u16() % 2100,
                len: bytes.u16() % 2100,
                cookie: bytes.u64(),
                notify: bytes.flag(),
                keep: bytes.flag(),
                ..Tx::default()
            };
            let _ = bed.guest_send(name, tx, bytes.flag());
        }
        5 => send_what_is_not_the_guests(bed, bytes),
        6 => {
            let (channel, flow) = any_name(bed, bytes);
            let _ = bed.stack.close(&mut bed.mem, now, channel, flow);
        }
        7 => {
            let (channel, flow) = any_name(bed, bytes);
            let _ = bed.stack.abort(&mut bed.mem, now, channel, flow);
        }
        8 => {
            let (channel, flow) = any_name(bed, bytes);
            let option = if bytes.flag() { Opt::KeepAlive } else { Opt::UserTimeout };
            let value = match bytes.u8() % 4 {
                0 => 0,
                1 => 1,
                2 => bytes.u16().into(),
                _ => bytes.u64(),
            };
            let _ = bed.stack.set_option(now, channel, flow, option, value);
        }
        9 => bed.give_back(bytes.u8().into()),
        // Harmless for a buffer that is not the guest's.
        10 => {
            let buf = bytes.u32() % 64;
            let free = buf >= bed.mem.buffer_count() || bed.mem.owner(buf) != Owner::Guest;
            if free {
                bed.stack.release(now, buf);
            }
        }
        11 => {
            let channel = any_channel(bytes);
            bed.close_channel(channel);
        }
        12 => {
            let channel = bytes.u16() % CHANNELS;
            assert!(bed.poll(channel, bytes.below(4)) == 0 || channel < CHANNELS);
        }
        13 => bed.transmit(bytes.below(20)),
        14 => bed.frames_sent(1 + bytes.below(4), bytes.u8().into()),
        15 => {
            let ns = match bytes.u8() % 4 {
                0 => u64::from(bytes.u16()) * 1000,
                1 => u64::from(bytes.u16()) * MS,
                2 => u64::from(bytes.u8()) * 1000 * MS,
                // A clock that steps back stands still.
                _ => {
                    let earlier = now - u64::from(bytes.u16()) * MS;
                    bed.stack.advance(&mut bed.mem, earlier);
                    0
                }
            };
            bed.pass(ns);
        }
        16 => bed.pass_to_deadline(),
        17 => {
            let (channel, flow) = any_name(bed, bytes);
            let _ = bed.stack.flow_info(channel, flow);
            let _ = bed.stack.has_slots(channel);
        }
        18 => {
            let peer = bytes.below(PEERS);
            bed.open(peer, &[2, 4, 5, 0xb4]);
            bed.send(peer, flag::ACK, &[]);
        }
        _ => answer(bed, bytes),
    }
}

fn connect(bed: &mut Bed, bytes: &mut Bytes<'_>) {
    let channel = any_channel(bytes);
    if bytes.flag() {
        let _ = bed.connect(channel, bytes.below(PEERS), bytes.u16() % 4);
        return;
    }
    let address: IpAddr = match bytes.u8() % 8 {
        0 => Ipv6Addr::from(u128::from(bytes.u64())).into(),
        1 => Ipv4Addr::from(bytes.u32()).into(),
        last => Ipv4Addr::new(10, 0, 0, last).into(),
    };
    let remote = SocketAddr::new(address, bytes.u16());
    let port = bytes.u16();
    if let Ok(flow) = bed.stack.connect(bed.now, channel, remote, port, bytes.u32()) {
        bed.remember(channel, flow);
    }
}

/// A buffer that is the stack's own, or that does not exist, is refused.
fn send_what_is_not_the_guests(bed: &mut Bed, bytes: &mut Bytes<'_>) {
    let (channel, flow) = any_name(bed, bytes);
    let buf = bytes.u32() % 64;
    let exists = buf < bed.mem.buffer_count();
    if exists && bed.mem.owner(buf) != Owner::Stack {
        return;
    }
    let tx = Tx { buf, offset: 200, len: 10, ..Tx::default() };
    let sent = bed.stack.send(&mut bed.mem, bed.now, channel, flow, &tx);
    assert!(sent.is_err(), "buffer {buf} was sent and is not the guest's");
}

/// A peer answers what it heard last: with what it has and something of its own.
fn answer(bed: &mut Bed, bytes: &mut Bytes<'_>) {
    let peer = bytes.below(PEERS);
    let len = usize::from(bytes.u8()) * 4;
    let bits = bytes.u8();
    let flags = match bits % 8 {
        0 => flag::ACK | flag::FIN,
        1 => flag::RST | flag::ACK,
        2 | 3 => flag::SYN | flag::ACK,
        _ => flag::ACK,
    };
    bed.transmit(usize::MAX);
    bed.send(peer, flags, &vec![bits; if flags & flag::SYN == 0 { len } else { 0 }]);
}
