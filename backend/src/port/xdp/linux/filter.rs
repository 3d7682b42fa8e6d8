//! Which frames are the guest's: the program that looks at each frame of the device
//! before the host's kernel does.
//!
//! Frames to a guest's Ethernet address are the guest's, whatever they carry: its own
//! kernel uses that address too. Of frames to groups, it gets those that ask for one of
//! its stack's addresses: ARP requests (RFC 826) and neighbour solicitations (RFC 4861
//! section 4.3). Everything else goes on to the host's kernel, as if nobody had looked;
//! so does what other stations announce to all.
//!
//! Where a guest has the device's own Ethernet address, as networks want it that
//! allow no other, the two are told apart by the addresses of their packets alone.
//!
//! A frame goes to one of them, never to several: the hook in the kernel can hand a
//! frame over or let it pass, not double it.
//!
//! The addresses are numbers in the program, which is written anew when guests come to
//! the device, and is found through by halves: a frame costs no look-up but that of the
//! socket, and hardly more among many guests than for one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::program::{Assembler, Function, If, Insn, Label, Reg, Verdict, Width};

/// Ethernet types, as they stand in a frame.
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const VLAN: [u8; 2] = [0x81, 0x00];
/// Bits of a tag that are the VLAN's number (IEEE 802.1Q section 9.6).
const VLAN_ID: u16 = 0x0fff;

/// Bytes of the headers, with a tag and without.
const ETHERNET: i32 = 14;
const TAGGED: i32 = 18;
/// Of an ARP packet for IPv4 over Ethernet: its length, and where its target is.
const ARP_LEN: i32 = 28;
const ARP_TARGET: i16 = 24;
/// Of an IPv4 header: its least length, and where the destination is.
const IPV4_LEN: i32 = 20;
const IPV4_DESTINATION: i16 = 16;
/// Of an IPv6 header: its length, and where the next header's number and the
/// destination are.
const IPV6_LEN: i32 = 40;
const IPV6_NEXT: i16 = 6;
const IPV6_DESTINATION: i16 = 24;
/// Of a neighbour solicitation behind it: its length, and where its target is, both
/// from the start of the packet.
const SOLICITATION_LEN: i32 = IPV6_LEN + 24;
const SOLICITATION_TARGET: i16 = 48;
const ICMPV6: u32 = 58;
const SOLICITATION: u32 = 135;
/// So many numbers are compared one after the other; more are halved first.
const SEARCH_LEAF: usize = 3;

/// Of the context that the program is given (`struct xdp_md`).
const CONTEXT_DATA: i16 = 0;
const CONTEXT_DATA_END: i16 = 4;
const CONTEXT_META: i16 = 8;
const CONTEXT_QUEUE: i16 = 16;

/// `bpf_xdp_adjust_meta`.
const ADJUST_META: Function = Function::Helper(54);
/// `bpf_ktime_get_ns`: the monotonic clock.
pub(super) const MONOTONIC: Function = Function::Helper(5);
/// Bytes in front of a frame that its time takes.
pub(super) const TIME_LEN: usize = 8;

/// Which frames are one guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addressee {
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// It is the device's, and so the host kernel's, as well.
    pub shares_mac: bool,
    /// The VLAN that its stack is on.
    pub vlan: Option<u16>,
    /// The addresses of its stack.
    pub v4: Option<Ipv4Addr>,
    /// The addresses of its stack.
    pub v6: Option<Ipv6Addr>,
    /// The only queue that it is served on.
    pub queue: Option<u32>,
}

/// Where frames are handed over, by the queue that they have to come on.
type Takes = BTreeMap<Option<u32>, Label>;

/// The program that hands the guests' frames to the sockets in `map`, a descriptor, by
/// the queue that they came on. What came on a queue without a socket ends with
/// `otherwise`; what came for a guest on another than its only queue passes, because the
/// socket of that one is another guest's.
///
/// With `time`, a frame that is handed over has in front of it what that function says of
/// its arrival, or 0: `bpf_xdp_metadata_rx_timestamp`, or a clock.
///
/// Registers: R2 is where the program is in the frame, R3 its end, R6 the context.
pub(super) fn program(
    guests: &[Addressee],
    map: i32,
    otherwise: Verdict,
    time: Option<Function>,
) -> Vec<Insn> {
    let mut asm = Assembler::default();
    let (pass, group) = (asm.label(), asm.label());
    let mut takes = Takes::new();
    for guest in guests {
        takes.entry(guest.queue).or_insert_with(|| asm.label());
    }
    asm.copy(Reg::R6, Reg::R1);
    asm.load(Width::U32, Reg::R2, Reg::R1, CONTEXT_DATA);
    asm.load(Width::U32, Reg::R3, Reg::R1, CONTEXT_DATA_END);
    require(&mut asm, ETHERNET, pass);

    destination(&mut asm, guests, &takes, group, pass);
    asm.place(group);
    to_group(&mut asm, guests, &takes, pass);

    for (queue, take) in takes {
        asm.place(take);
        asm.load(Width::U32, Reg::R2, Reg::R6, CONTEXT_QUEUE);
        if let Some(queue) = queue {
            asm.jump_if(Reg::R2, If::Differs, queue, pass);
        }
        if let Some(function) = time {
            put_time(&mut asm, function);
            asm.load(Width::U32, Reg::R2, Reg::R6, CONTEXT_QUEUE);
        }
        asm.exit_to_socket(map, otherwise);
    }
    asm.place(pass);
    asm.exit_with(Verdict::Pass);
    asm.finish()
}

/// Puts the time of its arrival in front of the frame. Where there is no room for it, the
/// frame goes on without.
fn put_time(asm: &mut Assembler, function: Function) {
    let (without, len) = (asm.label(), TIME_LEN as i32);
    asm.copy(Reg::R1, Reg::R6);
    asm.set(Reg::R2, -len);
    asm.call(ADJUST_META);
    asm.jump_if(Reg::R0, If::Differs, 0, without);
    asm.set(Reg::R1, 0);
    asm.store(Width::U64, Reg::R10, -8, Reg::R1);
    match function {
        Function::Helper(_) => {
            asm.call(function);
            asm.store(Width::U64, Reg::R10, -8, Reg::R0);
        }
        // It writes where it is told to, or nothing.
        Function::Kernel(_) => {
            asm.copy(Reg::R1, Reg::R6);
            asm.copy(Reg::R2, Reg::R10);
            asm.add(Reg::R2, -8);
            asm.call(function);
        }
    }
    asm.load(Width::U32, Reg::R2, Reg::R6, CONTEXT_META);
    asm.load(Width::U32, Reg::R3, Reg::R6, CONTEXT_DATA);
    asm.copy(Reg::R4, Reg::R2);
    asm.add(Reg::R4, len);
    asm.jump_if_above(Reg::R4, Reg::R3, without);
    asm.load(Width::U64, Reg::R1, Reg::R10, -8);
    asm.store(Width::U64, Reg::R2, 0, Reg::R1);
    asm.place(without);
}

/// By the Ethernet destination: to a guest, to a group, or to neither.
fn destination(
    asm: &mut Assembler,
    guests: &[Addressee],
    takes: &Takes,
    group: Label,
    pass: Label,
) {
    let other = asm.label();
    asm.load(Width::U32, Reg::R4, Reg::R2, 0);
    let by_start = by_word(guests.iter().map(|guest| {
        let [a, b, c, d, ..] = guest.mac;
        (u32::from_ne_bytes([a, b, c, d]), guest)
    }));
    let starts = label_each(asm, &by_start);
    search(asm, Reg::R4, &starts, other);
    let mut own = Vec::new();
    for ((_, guests), &(_, start)) in by_start.iter().zip(&starts) {
        asm.place(start);
        asm.load(Width::U16, Reg::R5, Reg::R2, 4);
        let mut ends: Vec<_> = guests
            .iter()
            .map(|&guest| {
                let [.., e, f] = guest.mac;
                let to = if guest.shares_mac {
                    let look = asm.label();
                    own.push((guest, look));
                    look
                } else {
                    takes[&guest.queue]
                };
                (number([e, f]), to)
            })
            .collect();
        ends.sort_by_key(|&(end, _)| end);
        search(asm, Reg::R5, &ends, other);
    }
    for (guest, look) in own {
        asm.place(look);
        to_own(asm, guest, takes[&guest.queue], pass);
    }
    asm.place(other);
    // The first bit on the wire says that it is a group's.
    let is_group = u32::from_ne_bytes([1, 0, 0, 0]);
    asm.jump_if(Reg::R4, If::AnyOf, is_group, group);
    asm.jump(pass);
}

/// By the packet of a frame to the address that guest and device have in common.
fn to_own(asm: &mut Assembler, guest: &Addressee, take: Label, pass: Label) {
    asm.load(Width::U16, Reg::R5, Reg::R2, 12);
    if let Some(id) = guest.vlan {
        asm.jump_if(Reg::R5, If::Differs, number(VLAN), pass);
        require(asm, TAGGED, pass);
        asm.load(Width::U16, Reg::R5, Reg::R2, 14);
        asm.and(Reg::R5, VLAN_ID.to_be().into());
        asm.jump_if(Reg::R5, If::Differs, id.to_be().into(), pass);
        asm.load(Width::U16, Reg::R5, Reg::R2, 16);
    }
    // R2 goes on to the packet.
    asm.add(Reg::R2, if guest.vlan.is_some() { TAGGED } else { ETHERNET });
    if let Some(address) = guest.v4 {
        let (arp, other) = (asm.label(), asm.label());
        asm.jump_if(Reg::R5, If::Equal, number(ARP), arp);
        asm.jump_if(Reg::R5, If::Differs, number(IPV4), other);
        require(asm, IPV4_LEN, pass);
        jump_unless(asm, IPV4_DESTINATION, &address.octets(), pass);
        asm.jump(take);
        asm.place(arp);
        require(asm, ARP_LEN, pass);
        jump_unless(asm, ARP_TARGET, &address.octets(), pass);
        asm.jump(take);
        asm.place(other);
    }
    let Some(address) = guest.v6 else {
        asm.jump(pass);
        return;
    };
    let other = asm.label();
    asm.jump_if(Reg::R5, If::Differs, number(IPV6), pass);
    require(asm, IPV6_LEN, pass);
    jump_unless(asm, IPV6_DESTINATION, &address.octets(), other);
    asm.jump(take);
    asm.place(other);
    require_solicitation(asm, pass);
    jump_unless(asm, SOLICITATION_TARGET, &address.octets(), pass);
    asm.jump(take);
}

/// By whom a frame to a group asks for.
fn to_group(asm: &mut Assembler, guests: &[Addressee], takes: &Takes, pass: Label) {
    let (tagged, untagged): (Vec<_>, Vec<_>) =
        guests.iter().partition(|guest| guest.vlan.is_some());
    asm.load(Width::U16, Reg::R5, Reg::R2, 12);
    let has_tag = asm.label();
    if !tagged.is_empty() {
        asm.jump_if(Reg::R5, If::Equal, number(VLAN), has_tag);
    }
    asm.add(Reg::R2, ETHERNET);
    asks_for(asm, &untagged, takes, pass);
    if tagged.is_empty() {
        return;
    }
    asm.place(has_tag);
    require(asm, TAGGED, pass);
    asm.load(Width::U16, Reg::R4, Reg::R2, 14);
    asm.and(Reg::R4, VLAN_ID.to_be().into());
    asm.load(Width::U16, Reg::R5, Reg::R2, 16);
    asm.add(Reg::R2, TAGGED);
    let by_id =
        by_word(tagged.into_iter().filter_map(|guest| Some((guest.vlan?.to_be().into(), guest))));
    let ids = label_each(asm, &by_id);
    search(asm, Reg::R4, &ids, pass);
    for ((_, guests), &(_, id)) in by_id.iter().zip(&ids) {
        asm.place(id);
        asks_for(asm, guests, takes, pass);
    }
}

/// Whether a packet asks for one of these guests. R5 is its Ethernet type, and R2 where it
/// begins.
fn asks_for(asm: &mut Assembler, guests: &[&Addressee], takes: &Takes, pass: Label) {
    let mut v4: Vec<_> = guests
        .iter()
        .filter_map(|guest| Some((u32::from_ne_bytes(guest.v4?.octets()), takes[&guest.queue])))
        .collect();
    v4.sort_by_key(|&(target, _)| target);
    let v6 = by_word(guests.iter().filter_map(|&guest| {
        let [.., a, b, c, d] = guest.v6?.octets();
        Some((u32::from_ne_bytes([a, b, c, d]), guest))
    }));
    let (arp, ipv6) = (asm.label(), asm.label());
    if !v4.is_empty() {
        asm.jump_if(Reg::R5, If::Equal, number(ARP), arp);
    }
    if !v6.is_empty() {
        asm.jump_if(Reg::R5, If::Equal, number(IPV6), ipv6);
    }
    asm.jump(pass);
    if !v4.is_empty() {
        asm.place(arp);
        require(asm, ARP_LEN, pass);
        asm.load(Width::U32, Reg::R4, Reg::R2, ARP_TARGET);
        search(asm, Reg::R4, &v4, pass);
    }
    if !v6.is_empty() {
        asm.place(ipv6);
        require(asm, IPV6_LEN, pass);
        require_solicitation(asm, pass);
        let ends = label_each(asm, &v6);
        asm.load(Width::U32, Reg::R4, Reg::R2, SOLICITATION_TARGET + 12);
        search(asm, Reg::R4, &ends, pass);
        for ((_, guests), &(_, end)) in v6.iter().zip(&ends) {
            asm.place(end);
            for guest in guests {
                let (next, octets) = (asm.label(), guest.v6.map(|v6| v6.octets()));
                jump_unless(asm, SOLICITATION_TARGET, &octets.unwrap_or_default()[..12], next);
                asm.jump(takes[&guest.queue]);
                asm.place(next);
            }
            asm.jump(pass);
        }
    }
}

/// Guests by a word that a frame has of theirs.
fn by_word<'g>(
    guests: impl Iterator<Item = (u32, &'g Addressee)>,
) -> BTreeMap<u32, Vec<&'g Addressee>> {
    let mut sorted = BTreeMap::<_, Vec<_>>::new();
    guests.for_each(|(word, guest)| sorted.entry(word).or_default().push(guest));
    sorted
}

/// A label for each word, in their order.
fn label_each<T>(asm: &mut Assembler, words: &BTreeMap<u32, T>) -> Vec<(u32, Label)> {
    words.keys().map(|&word| (word, asm.label())).collect()
}

/// Goes to where the number in a register is to go, or to `miss` if it is none of these,
/// which are in their order.
fn search(asm: &mut Assembler, reg: Reg, numbers: &[(u32, Label)], miss: Label) {
    if numbers.len() <= SEARCH_LEAF {
        for &(number, label) in numbers {
            asm.jump_if(reg, If::Equal, number, label);
        }
        asm.jump(miss);
        return;
    }
    let (low, high) = numbers.split_at(numbers.len() / 2);
    let above = asm.label();
    asm.jump_if(reg, If::Above, low[low.len() - 1].0, above);
    search(asm, reg, low, miss);
    asm.place(above);
    search(asm, reg, high, miss);
}

/// Goes to `pass` unless the IPv6 packet, whose header is there, is a neighbour
/// solicitation.
fn require_solicitation(asm: &mut Assembler, pass: Label) {
    asm.load(Width::U8, Reg::R5, Reg::R2, IPV6_NEXT);
    asm.jump_if(Reg::R5, If::Differs, ICMPV6, pass);
    require(asm, SOLICITATION_LEN, pass);
    asm.load(Width::U8, Reg::R5, Reg::R2, IPV6_LEN as i16);
    asm.jump_if(Reg::R5, If::Differs, SOLICITATION, pass);
}

/// Goes to `pass` unless the frame has `len` more bytes.
fn require(asm: &mut Assembler, len: i32, pass: Label) {
    asm.copy(Reg::R4, Reg::R2);
    asm.add(Reg::R4, len);
    asm.jump_if_above(Reg::R4, Reg::R3, pass);
}

/// Goes to `label` unless `address`, of whole words, is at `offset`.
fn jump_unless(asm: &mut Assembler, offset: i16, address: &[u8], label: Label) {
    for (word, offset) in address.as_chunks().0.iter().zip((offset..).step_by(4)) {
        asm.load(Width::U32, Reg::R4, Reg::R2, offset);
        asm.jump_if(Reg::R4, If::Differs, u32::from_ne_bytes(*word), label);
    }
}

/// Two bytes of a frame as a load gives them.
fn number(bytes: [u8; 2]) -> u32 {
    u16::from_ne_bytes(bytes).into()
}

#[cfg(test)]
mod tests;
