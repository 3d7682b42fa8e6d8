//! The little of rtnetlink that gives a network namespace its devices: set a
//! link up, give it an address, make a veth pair. Messages as in
//! `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_link.h`; native endian.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;

/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// One request, being written. Lengths are filled in as parts are closed.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, seq: u32) -> Message {
        let mut m = Message(Vec::with_capacity(256));
        m.u32(0).u16(kind).u16(NLM_F_REQUEST | NLM_F_ACK | flags).u32(seq).u32(0);
        m
    }

    fn u16(&mut self, v: u16) -> &mut Message {
        self.0.extend_from_slice(&v.to_ne_bytes());
        self
    }

    fn u32(&mut self, v: u32) -> &mut Message {
        self.0.extend_from_slice(&v.to_ne_bytes());
        self
    }

    /// `struct ifinfomsg`.
    fn link(&mut self, index: u32, flags: u32, change: u32) -> &mut Message {
        self.0.extend_from_slice(&[AF_UNSPEC, 0]);
        self.u16(0).u32(index).u32(flags).u32(change)
    }

    /// `struct ifaddrmsg`.
    fn address(&mut self, index: u32, prefix_len: u8) -> &mut Message {
        self.0.extend_from_slice(&[AF_INET, prefix_len, 0, 0]);
        self.u32(index)
    }

    /// An attribute holding `value`.
    fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Message {
        self.nest(kind, |m| m.0.extend_from_slice(value))
    }

    /// A name, with the zero byte that ends it.
    fn name(&mut self, kind: u16, name: &str) -> &mut Message {
        self.nest(kind, |m| {
            m.0.extend_from_slice(name.as_bytes());
            m.0.push(0);
        })
    }

    /// An attribute whose value is what `inner` writes. Its length excludes the
    /// padding to four bytes that follows.
    fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.0.len();
        self.u16(0).u16(kind);
        inner(self);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// Sets a link up, after giving it a MAC address if one is named.
fn set_up(seq: u32, index: u32, mac: Option<[u8; 6]>) -> Vec<u8> {
    let mut m = Message::new(RTM_NEWLINK, 0, seq);
    m.link(index, IFF_UP, IFF_UP);
    if let Some(mac) = mac {
        m.attr(IFLA_ADDRESS, &mac);
    }
    m.finish()
}

/// Gives a link an address.
fn add_address(seq: u32, index: u32, address: Ipv4Addr, prefix_len: u8) -> Vec<u8> {
    let mut m = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, seq);
    m.address(index, prefix_len)
        .attr(IFA_LOCAL, &address.octets())
        .attr(IFA_ADDRESS, &address.octets());
    m.finish()
}

/// Makes a veth pair: one end here, the other where thread `peer_pid` is.
fn add_veth(seq: u32, name: &str, peer: &str, peer_pid: u32) -> Vec<u8> {
    let mut m = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, seq);
    m.link(0, 0, 0).name(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
        info.attr(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |data| {
            data.nest(VETH_INFO_PEER, |end| {
                end.link(0, 0, 0)
                    .name(IFLA_IFNAME, peer)
                    .attr(IFLA_NET_NS_PID, &peer_pid.to_ne_bytes());
            });
        });
    });
    m.finish()
}

/// What the kernel answered to request `seq`: `None` if this is not the answer.
fn verdict(answer: &[u8], seq: u32) -> Option<io::Result<()>> {
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != NLMSG_ERROR || word(8)? != seq {
        return None;
    }
    Some(match word(HEADER_LEN)? as i32 {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    })
}

/// A conversation with the kernel about the network namespace in which it was
/// opened, wherever its process goes afterwards.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    seq: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Netlink> {
        // No protocol is protocol 0, which is NETLINK_ROUTE.
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Netlink { socket, seq: 0 })
    }

    pub fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.socket, name)?)
    }

    pub fn set_up(&mut self, index: u32, mac: Option<[u8; 6]>) -> io::Result<()> {
        self.call(|seq| set_up(seq, index, mac))
    }

    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.call(|seq| add_address(seq, index, address, prefix))
    }

    pub fn add_veth(&mut self, name: &str, peer: &str, peer_pid: u32) -> io::Result<()> {
        self.call(|seq| add_veth(seq, name, peer, peer_pid))
    }

    fn call(&mut self, request: impl FnOnce(u32) -> Vec<u8>) -> io::Result<()> {
        self.seq += 1;
        send(&self.socket, &request(self.seq), SendFlags::empty())?;
        let mut answer = [0; 4096];
        loop {
            let (n, _) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
            if let Some(verdict) = verdict(&answer[..n.min(4096)], self.seq) {
                return verdict;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that `ip link add va type veth peer name vb netns 7` sends,
    /// by the layouts of the headers named above.
    #[test]
    fn a_veth_request_is_byte_for_byte_right() {
        let got = add_veth(3, "va", "vb", 7);
        let mut want = Vec::new();
        let n = |v: &mut Vec<u8>, x: u16| v.extend_from_slice(&x.to_ne_bytes());
        want.extend_from_slice(&(16u32 + 16 + 8 + 60).to_ne_bytes());
        n(&mut want, 16);
        n(&mut want, 0x1 | 0x4 | 0x400 | 0x200);
        want.extend_from_slice(&3u32.to_ne_bytes());
        want.extend_from_slice(&[0; 4]);
        want.extend_from_slice(&[0; 16]);
        n(&mut want, 7);
        n(&mut want, 3);
        want.extend_from_slice(b"va\0\0");
        n(&mut want, 60);
        n(&mut want, 18);
        n(&mut want, 8);
        n(&mut want, 1);
        want.extend_from_slice(b"veth");
        n(&mut want, 48 - 4 + 4);
        n(&mut want, 2);
        n(&mut want, 44 - 4 + 4);
        n(&mut want, 1);
        want.extend_from_slice(&[0; 16]);
        n(&mut want, 7);
        n(&mut want, 3);
        want.extend_from_slice(b"vb\0\0");
        n(&mut want, 8);
        n(&mut want, 19);
        want.extend_from_slice(&7u32.to_ne_bytes());
        // Inner lengths, from the inside out: 4 + 16 + 8 + 8 = 36, 40, 52.
        let fix = |v: &mut [u8], at: usize, x: u16| v[at..at + 2].copy_from_slice(&x.to_ne_bytes());
        fix(&mut want, 40, 4 + 8 + 40);
        fix(&mut want, 52, 4 + 36);
        fix(&mut want, 56, 36);
        let total = want.len() as u32;
        want[..4].copy_from_slice(&total.to_ne_bytes());
        assert_eq!(got, want);
    }

    #[test]
    fn an_address_request_is_byte_for_byte_right() {
        let got = add_address(1, 9, Ipv4Addr::new(10, 1, 2, 3), 24);
        assert_eq!(got.len(), 16 + 8 + 8 + 8);
        assert_eq!(got[..4], 40u32.to_ne_bytes());
        assert_eq!(got[16..20], [2, 24, 0, 0]);
        assert_eq!(got[20..24], 9u32.to_ne_bytes());
        assert_eq!(got[28..32], [10, 1, 2, 3]);
        assert_eq!(got[36..40], [10, 1, 2, 3]);
    }

    #[test]
    fn only_the_answer_to_this_request_is_taken() {
        let mut answer = [0u8; 20];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        answer[8..12].copy_from_slice(&4u32.to_ne_bytes());
        assert!(matches!(verdict(&answer, 4), Some(Ok(()))));
        assert!(verdict(&answer, 5).is_none());
        assert!(verdict(&answer[..18], 4).is_none());
        answer[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        let refused = verdict(&answer, 4).unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(17));
    }
}
