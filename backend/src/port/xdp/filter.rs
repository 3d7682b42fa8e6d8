//! Which frames are the guest's: the program that looks at each frame of the device
//! before the host's kernel does.
//!
//! Frames to the guest's Ethernet address are the guest's, whatever they carry: its own
//! kernel uses that address too. Of frames to groups, it gets those that ask for one of
//! its stack's addresses: ARP requests (RFC 826) and neighbour solicitations (RFC 4861
//! section 4.3). Everything else goes on to the host's kernel, as if nobody had looked;
//! so does what other stations announce to all.
//!
//! Where the guest has the device's own Ethernet address, as networks want it that
//! allow no other, the two are told apart by the addresses of their packets alone.
//!
//! A frame goes to one of the two, never to both: the hook in the kernel can hand a
//! frame over or let it pass, not double it.
//!
//! The addresses are numbers in the program, which is written for one guest and does
//! not outlive its port: nothing of it can be changed while it runs, and a frame costs
//! no look-up but that of the socket.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::program::{Assembler, If, Insn, Label, Reg, Verdict, Width};

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

/// Of the context that the program is given (`struct xdp_md`).
const CONTEXT_DATA: i16 = 0;
const CONTEXT_DATA_END: i16 = 4;
const CONTEXT_QUEUE: i16 = 16;

/// Which frames are the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
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
}

impl Filter {
    /// The program that hands the guest's frames to the sockets in `map`, a
    /// descriptor, by the queue that they came on. What is the guest's and came on a
    /// queue without a socket ends with `otherwise`.
    ///
    /// Registers: R2 is where the program is in the frame, R3 its end, R6 the context.
    pub(super) fn program(&self, map: i32, otherwise: Verdict) -> Vec<Insn> {
        let mut asm = Assembler::default();
        let (take, pass, group) = (asm.label(), asm.label(), asm.label());
        asm.copy(Reg::R6, Reg::R1);
        asm.load(Width::U32, Reg::R2, Reg::R1, CONTEXT_DATA);
        asm.load(Width::U32, Reg::R3, Reg::R1, CONTEXT_DATA_END);
        require(&mut asm, ETHERNET, pass);

        self.destination(&mut asm, [take, pass, group]);
        asm.place(group);
        self.packet(&mut asm, take, pass);

        asm.place(take);
        asm.load(Width::U32, Reg::R2, Reg::R6, CONTEXT_QUEUE);
        asm.exit_to_socket(map, otherwise);
        asm.place(pass);
        asm.exit_with(Verdict::Pass);
        asm.finish()
    }

    /// By the Ethernet destination: to the guest, not to it, or by what it carries.
    fn destination(&self, asm: &mut Assembler, [take, pass, look]: [Label; 3]) {
        let [a, b, c, d, e, f] = self.mac;
        let other = asm.label();
        asm.load(Width::U32, Reg::R4, Reg::R2, 0);
        asm.load(Width::U16, Reg::R5, Reg::R2, 4);
        asm.jump_if(Reg::R4, If::Differs, u32::from_ne_bytes([a, b, c, d]), other);
        asm.jump_if(
            Reg::R5,
            If::Equal,
            u16::from_ne_bytes([e, f]).into(),
            if self.shares_mac { look } else { take },
        );
        asm.place(other);
        // The first bit on the wire says that it is a group's.
        let is_group = u32::from_ne_bytes([1, 0, 0, 0]);
        asm.jump_if(Reg::R4, If::AnyOf, is_group, look);
        asm.jump(pass);
    }

    /// By the packet that a frame carries.
    fn packet(&self, asm: &mut Assembler, take: Label, pass: Label) {
        asm.load(Width::U16, Reg::R5, Reg::R2, 12);
        if let Some(id) = self.vlan {
            asm.jump_if(Reg::R5, If::Differs, number(VLAN), pass);
            require(asm, TAGGED, pass);
            asm.load(Width::U16, Reg::R5, Reg::R2, 14);
            asm.and(Reg::R5, VLAN_ID.to_be().into());
            asm.jump_if(Reg::R5, If::Differs, id.to_be().into(), pass);
            asm.load(Width::U16, Reg::R5, Reg::R2, 16);
        }
        // R2 goes on to the packet.
        asm.add(Reg::R2, if self.vlan.is_some() { TAGGED } else { ETHERNET });
        if let Some(address) = self.v4 {
            let (arp, other) = (asm.label(), asm.label());
            asm.jump_if(Reg::R5, If::Equal, number(ARP), arp);
            if self.shares_mac {
                asm.jump_if(Reg::R5, If::Differs, number(IPV4), other);
                require(asm, IPV4_LEN, pass);
                jump_unless(asm, IPV4_DESTINATION, &address.octets(), pass);
                asm.jump(take);
            } else {
                asm.jump(other);
            }
            asm.place(arp);
            require(asm, ARP_LEN, pass);
            jump_unless(asm, ARP_TARGET, &address.octets(), pass);
            asm.jump(take);
            asm.place(other);
        }
        let Some(address) = self.v6 else {
            asm.jump(pass);
            return;
        };
        asm.jump_if(Reg::R5, If::Differs, number(IPV6), pass);
        require(asm, IPV6_LEN, pass);
        if self.shares_mac {
            let other = asm.label();
            jump_unless(asm, IPV6_DESTINATION, &address.octets(), other);
            asm.jump(take);
            asm.place(other);
        }
        asm.load(Width::U8, Reg::R5, Reg::R2, IPV6_NEXT);
        asm.jump_if(Reg::R5, If::Differs, ICMPV6, pass);
        require(asm, SOLICITATION_LEN, pass);
        asm.load(Width::U8, Reg::R5, Reg::R2, IPV6_LEN as i16);
        asm.jump_if(Reg::R5, If::Differs, SOLICITATION, pass);
        jump_unless(asm, SOLICITATION_TARGET, &address.octets(), pass);
        asm.jump(take);
    }
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
