//! What the kernel tells of network devices (rtnetlink(7)): one question, and news of
//! changes. Messages as in `linux/netlink.h`, `linux/rtnetlink.h` and `linux/if_link.h`,
//! native endian; what comes is taken apart with its lengths judged.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
/// Bits of an attribute's type that are not the type.
const NLA_FLAGS: u16 = 0xc000;

/// `RTEXT_FILTER_SKIP_STATS`.
const SKIP_STATS: u32 = 1 << 3;
/// The group of news of links, `RTMGRP_LINK`.
const GROUP_LINK: u32 = 1;
const IFF_UP: u32 = 1;

/// Bytes of `struct nlmsghdr`, `struct ifinfomsg` and `struct nlattr`.
const HEADER: usize = 16;
const IFINFO: usize = 16;
const ATTR: usize = 4;
/// Bytes of the longest answer that is taken.
const ANSWER_MAX: usize = 1 << 16;
/// News taken in one look.
const NEWS_MAX: usize = 64;

/// What the kernel knows of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Link {
    /// Its index, which no later device of the same name has.
    pub index: u32,
    /// Somebody brought it up.
    pub up: bool,
    /// Its Ethernet address; `None` if it has none of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Receive queues that it has at most.
    pub queues: u32,
    /// Its kind, as `ip -d link` shows it: `veth`; empty for hardware.
    pub kind: String,
    /// An XDP program is attached.
    pub has_program: bool,
}

/// Asks for the device of this name. ENODEV if there is none.
pub(in super::super) fn link(name: &str) -> Result<Link, Errno> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    send(&socket, &request(name), SendFlags::empty())?;
    let mut answer = vec![0; ANSWER_MAX];
    let (len, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    parse(&answer[..len])
}

fn request(name: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    message.extend(0u32.to_ne_bytes());
    message.extend(RTM_GETLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8 + IFINFO]);
    for (kind, value) in [
        (IFLA_IFNAME, [name.as_bytes(), &[0]].concat()),
        (IFLA_EXT_MASK, SKIP_STATS.to_ne_bytes().to_vec()),
    ] {
        message.extend(((ATTR + value.len()) as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn parse(answer: &[u8]) -> Result<Link, Errno> {
    let bad = Errno::BADMSG;
    let len = word(answer, 0).ok_or(bad)? as usize;
    let answer = answer.get(..len).ok_or(bad)?;
    match half(answer, 4).ok_or(bad)? {
        NLMSG_ERROR => {
            let errno = word(answer, HEADER).ok_or(bad)? as i32;
            return Err(Errno::from_raw_os_error(errno.saturating_neg()));
        }
        RTM_NEWLINK => {}
        _ => return Err(bad),
    }
    let mut link = Link {
        index: word(answer, HEADER + 4).ok_or(bad)?,
        up: word(answer, HEADER + 8).ok_or(bad)? & IFF_UP != 0,
        queues: 1,
        ..Link::default()
    };
    for (kind, value) in attributes(answer.get(HEADER + IFINFO..).ok_or(bad)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MTU => link.mtu = word(value, 0).ok_or(bad)?,
            IFLA_NUM_RX_QUEUES => link.queues = word(value, 0).ok_or(bad)?.max(1),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                let name = kind.map(|(_, name)| name.split(|&byte| byte == 0).next());
                link.kind = String::from_utf8_lossy(name.flatten().unwrap_or(&[])).into_owned();
            }
            IFLA_XDP => {
                let attached = attributes(value).find(|(kind, _)| *kind == IFLA_XDP_ATTACHED);
                link.has_program = attached.is_some_and(|(_, value)| value.first() != Some(&0));
            }
            _ => {}
        }
    }
    Ok(link)
}

/// The attributes in `bytes`, until the first whose length is wrong.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(half(bytes, 0)?), half(bytes, 2)? & !NLA_FLAGS);
        let value = bytes.get(ATTR..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// News of links: readable when some device has changed.
#[derive(Debug)]
pub(in super::super) struct News(OwnedFd);

impl News {
    /// Begins to listen.
    pub(in super::super) fn listen() -> Result<News, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP_LINK))?;
        Ok(News(socket))
    }

    /// Whether there was news since the last time. What it was is better asked: some
    /// may have been lost.
    pub(in super::super) fn drain(&self) -> bool {
        let mut any = false;
        for _ in 0..NEWS_MAX {
            match recv(&self.0, &mut [0; 64][..], RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS) => any = true,
                Err(_) => break,
            }
        }
        any
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_known_and_another_is_not() {
        let link = link("lo").unwrap();
        assert_eq!((link.mac, link.has_program), (Some([0; 6]), false));
        assert!(link.index > 0 && link.mtu > 0 && link.queues == 1);
        assert_eq!(super::link("nosuchdevice").unwrap_err(), Errno::NODEV);
    }

    #[test]
    fn an_answer_that_is_cut_anywhere_is_judged() {
        let attribute = |kind: u16, value: &[u8]| {
            let len = (ATTR + value.len()) as u16;
            let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let mut answer = [0u32.to_ne_bytes(), [0; 4]].concat();
        answer[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        answer.extend([0; 8]);
        answer.extend([0u32, 7, IFF_UP, 0].iter().flat_map(|word| word.to_ne_bytes()));
        answer.extend(attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 9]));
        answer.extend(attribute(IFLA_MTU, &1500u32.to_ne_bytes()));
        answer.extend(attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"veth\0")));
        answer.extend(attribute(IFLA_XDP, &attribute(IFLA_XDP_ATTACHED, &[1])));
        let len = answer.len();
        let set_len = |answer: &mut Vec<u8>, len: usize| {
            answer[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        };
        set_len(&mut answer, len);
        let expected = Link {
            index: 7,
            up: true,
            mac: Some([2, 0, 0, 0, 0, 9]),
            mtu: 1500,
            queues: 1,
            kind: "veth".to_owned(),
            has_program: true,
        };
        assert_eq!(parse(&answer).unwrap(), expected);
        for cut in 0..len {
            let mut short = answer[..cut].to_vec();
            // Nothing to compare: what counts is that no length leads outside.
            let _ = parse(&short);
            if cut >= 4 {
                set_len(&mut short, cut);
                let _ = parse(&short);
            }
        }
        // An attribute that says it is longer than the message.
        answer[HEADER + IFINFO..][..2].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(parse(&answer).unwrap().mac, None);
    }
}
