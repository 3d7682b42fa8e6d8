//! A device that is being served: program, sockets and what holds them together. Made
//! when the port is opened and again when a device comes back; everything goes with it.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::btf;
use super::filter::{self, Addressee};
use super::program::{Function, Verdict};
use super::shared::{Seat, Time, XdpDevices};
use super::sys::bpf::{self, LoadError, Traits};
use super::sys::device::Membership;
use super::sys::netlink::{self, Link};
use super::sys::socket::{self, FRAME_OFFSET, Queue, Service, Unbound};
use super::sys::umem::Umem;
use super::time::Times;
use super::{Mode, Stamps, XdpError};
use crate::port::{FRAME_OVERHEAD, Station};

/// Kinds of device whose peers are on this machine, and whose frames may have a
/// checksum that nobody filled in.
const LOCAL_KINDS: [&str; 2] = ["veth", "tun"];

/// In which ways the first socket of a device is bound, the best first. With an older
/// kernel, or a driver that does not know frames of several pieces, one descriptor has
/// to be the whole frame.
const SERVICES: [Service; 4] = [
    Service { zero_copy: true, gather: true },
    Service { zero_copy: true, gather: false },
    Service { zero_copy: false, gather: true },
    Service { zero_copy: false, gather: false },
];

/// What the kernel says of its types, and its function that says when a frame has arrived.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
const TIMESTAMP: &str = "bpf_xdp_metadata_rx_timestamp";

/// Makes a socket, and a program that is attached to nothing.
pub(super) fn probe() -> Result<(), XdpError> {
    let wanted = Wanted {
        name: String::new(),
        queue: None,
        mode: None,
        mtu: 0,
        stations: vec![Station {
            mac: [2; 6],
            vlan: Some(1),
            addresses: vec![[10, 0, 0, 1].into(), IpAddr::from([0xfd; 16])],
        }],
        devices: XdpDevices::default(),
        region: String::new(),
        chunk_size: 0,
    };
    socket::probe().map_err(|errno| wanted.socket_error("a socket of AF_XDP", errno, 0))?;
    let map = wanted.map(1)?;
    wanted.load(map.as_fd(), &wanted.addressees([2; 6]), false, None).map(drop)
}

/// What is wanted of a device.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Its name.
    pub name: String,
    /// The one queue, or all.
    pub queue: Option<u32>,
    /// The mode, or the best.
    pub mode: Option<Mode>,
    /// Bytes of the guest's largest packet.
    pub mtu: u16,
    /// The guests that the port is for.
    pub stations: Vec<Station>,
    /// The devices that ports of this process are on.
    pub devices: XdpDevices,
    /// What the region is called.
    pub region: String,
    /// Bytes of a buffer.
    pub chunk_size: u32,
}

/// A device that is being served. The order of the fields is that of taking down: a
/// device that nobody else is on stops handing over frames before the sockets go.
#[derive(Debug)]
pub(super) struct Live {
    seat: Seat,
    /// The first one sends.
    pub queues: Vec<Queue>,
    _membership: Membership,
    /// What the device is.
    pub link: Link,
    /// How the sockets are served.
    pub service: Service,
    /// Tells the times that frames have in front of them.
    pub times: Option<Times>,
}

impl Live {
    /// Whether peers are on this machine.
    pub(super) fn is_local(&self) -> bool {
        LOCAL_KINDS.contains(&self.link.kind.as_str())
    }

    /// How the program is attached.
    pub(super) fn mode(&self) -> Mode {
        self.seat.mode()
    }

    /// Has the device let in what is for the guests that are wanted now.
    ///
    /// # Errors
    /// [`XdpError`]; those that it served are served as before.
    pub(super) fn renew(&mut self, wanted: &Wanted) -> Result<(), XdpError> {
        let own = self.link.mac.unwrap_or_default();
        let membership = wanted.join(&self.link, own)?;
        self.seat.renew(wanted, wanted.addressees(own))?;
        self._membership = membership;
        Ok(())
    }

    /// Frames that the kernel had no buffer or no room for.
    pub(super) fn missed(&self) -> u64 {
        self.queues.iter().map(Queue::dropped).sum()
    }
}

impl Wanted {
    /// Bytes of a frame that one buffer takes: the kernel keeps room in front of it.
    pub(super) fn piece_size(&self) -> u32 {
        self.chunk_size.saturating_sub(FRAME_OFFSET)
    }

    /// Whether the longest frames lie in several buffers.
    pub(super) fn is_long(&self) -> bool {
        u32::from(self.mtu) + u32::from(FRAME_OVERHEAD) > self.piece_size()
    }

    /// Frames in several buffers are not to be had.
    pub(super) fn too_long(&self) -> XdpError {
        let page = rustix::param::page_size() as u32;
        let larger = self.chunk_size < page;
        XdpError::MtuOfBuffer {
            name: self.name.clone(),
            mtu: self.mtu,
            buffer_size: self.chunk_size,
            reserved: FRAME_OFFSET,
            max: self.piece_size().saturating_sub(FRAME_OVERHEAD.into()),
            larger: if larger { ", or make the region's buffers larger" } else { "" },
        }
    }

    pub(super) fn failed(&self, call: &'static str) -> impl Fn(Errno) -> XdpError {
        let name = self.name.clone();
        move |errno| match errno {
            Errno::PERM | Errno::ACCESS => XdpError::Permission { name: name.clone(), call },
            errno => XdpError::Failed { name: name.clone(), call, source: errno.into() },
        }
    }

    /// Asks for the device, which must be there and up.
    pub(super) fn link(&self) -> Result<Link, XdpError> {
        let name = || self.name.clone();
        let link = netlink::link(&self.name).map_err(|errno| match errno {
            Errno::NODEV => XdpError::NoDevice { name: name() },
            errno => self.failed("RTM_GETLINK")(errno),
        })?;
        if !link.up {
            return Err(XdpError::Down { name: name() });
        }
        Ok(link)
    }

    /// Serves the device: attaches a program, binds sockets to its queues.
    ///
    /// # Errors
    /// [`XdpError`]; nothing is left attached.
    pub(super) fn serve(&self, umem: &Umem) -> Result<Live, XdpError> {
        let name = || self.name.clone();
        let link = self.link()?;
        let Some(own) = link.mac else { return Err(XdpError::NotEthernet { name: name() }) };
        if link.mtu < u32::from(self.mtu) {
            return Err(XdpError::Mtu { name: name(), mtu: link.mtu, wanted: self.mtu });
        }
        if let Some(queue) = self.queue.filter(|&queue| queue >= link.queues) {
            return Err(XdpError::NoQueue { name: name(), queue });
        }
        let queues = self.queue.map_or(0..link.queues, |queue| queue..queue + 1);

        let timing = self.devices.timing(&self.name);
        let stamps = timing.as_ref().map(|timing| timing.stamps);
        let seat = self.devices.join(self, &link, self.addressees(own), stamps)?;
        let timing = timing.filter(|timing| seat.stamps() == Some(timing.stamps));
        let times = timing.map(|timing| Times::new(timing.clock));
        let membership = self.join(&link, own)?;
        let (service, queues) = self.bind(umem, &link, seat.mode(), queues)?;
        for (id, queue) in &queues {
            bpf::set_socket(seat.map(), *id, queue.as_fd())
                .map_err(self.failed("BPF_MAP_UPDATE_ELEM"))?;
        }
        let queues = queues.into_iter().map(|(_, queue)| queue).collect();
        Ok(Live { seat, queues, _membership: membership, link, service, times })
    }

    /// Makes a map of sockets for so many queues.
    pub(super) fn map(&self, queues: u32) -> Result<OwnedFd, XdpError> {
        bpf::create_socket_map(queues).map_err(self.failed("BPF_MAP_CREATE"))
    }

    /// Loads the filter for these guests, with their map of sockets.
    pub(super) fn load(
        &self,
        map: BorrowedFd<'_>,
        guests: &[Addressee],
        is_long: bool,
        time: Option<Time>,
    ) -> Result<OwnedFd, XdpError> {
        let function = time.map(|time| time.function);
        let program = filter::program(guests, map.as_raw_fd(), Verdict::Pass, function);
        let traits = Traits { has_pieces: is_long, device: time.and_then(|time| time.device) };
        bpf::load(&program, traits).map_err(|LoadError::Refused { errno, log }| match errno {
            // A flag that it does not know, before it has looked at the program.
            Errno::INVAL if log.is_empty() && is_long => self.too_long(),
            Errno::PERM | Errno::ACCESS if log.is_empty() => self.failed("BPF_PROG_LOAD")(errno),
            errno => XdpError::Program { name: self.name.clone(), source: errno.into(), log },
        })
    }

    /// The frames of the guests of this port, on a device with this address.
    fn addressees(&self, own: [u8; 6]) -> Vec<Addressee> {
        let addressee = |station: &Station| {
            let v4 = station.addresses.iter().find_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            });
            let (mac, vlan, queue) = (station.mac, station.vlan, self.queue);
            Addressee { mac, shares_mac: own == mac, vlan, v4, v6: v6(station), queue }
        };
        self.stations.iter().map(addressee).collect()
    }

    /// Attaches a program in the driver that puts their times in front of frames; `None`,
    /// and it is said why, if that is not to be had.
    pub(super) fn attach_timed(
        &self,
        map: BorrowedFd<'_>,
        link: &Link,
        guests: &[Addressee],
        stamps: Stamps,
    ) -> Option<(Time, OwnedFd)> {
        if self.mode == Some(Mode::Generic) {
            return None;
        }
        let timed = || {
            let (function, device) = match stamps {
                Stamps::Monotonic => (filter::MONOTONIC, None),
                Stamps::Device => {
                    let types = std::fs::read(TYPES).map_err(|error| error.to_string())?;
                    let number = btf::function(&types, TIMESTAMP);
                    let number = number.map_err(|error| error.to_string())?;
                    (Function::Kernel(number), Some(link.index))
                }
            };
            let time = Time { stamps, function, device };
            let program = self.load(map, guests, self.is_long(), Some(time));
            let program = program.map_err(|error| match error {
                XdpError::Program { source, .. } => source.to_string(),
                error => error.to_string(),
            })?;
            let attached = bpf::attach(program.as_fd(), link.index, Mode::Driver);
            let attached = attached.map_err(|errno| io::Error::from(errno).to_string())?;
            Ok::<_, String>((time, attached))
        };
        let refused = |why| {
            let device = &self.name;
            tracing::info!(device, why, "frames have no times of the device's own");
        };
        timed().map_err(refused).ok()
    }

    pub(super) fn attach(
        &self,
        program: &OwnedFd,
        link: &Link,
    ) -> Result<(OwnedFd, Mode), XdpError> {
        let name = || self.name.clone();
        let modes = match self.mode {
            Some(Mode::Driver) => &[Mode::Driver][..],
            Some(Mode::Generic) => &[Mode::Generic],
            None => &[Mode::Driver, Mode::Generic],
        };
        let mut refused = Errno::OPNOTSUPP;
        for &mode in modes {
            match bpf::attach(program.as_fd(), link.index, mode) {
                Ok(attached) => return Ok((attached, mode)),
                // EEXIST: one in the other mode.
                Err(Errno::BUSY | Errno::EXIST) => return Err(XdpError::Busy { name: name() }),
                Err(errno @ (Errno::PERM | Errno::ACCESS)) => {
                    return Err(self.failed("attaching a program")(errno));
                }
                Err(errno) => {
                    refused = errno;
                    if mode == Mode::Driver && self.mode.is_none() {
                        tracing::info!(
                            device = self.name,
                            error = %io::Error::from(errno),
                            "the driver takes no XDP program; the kernel's generic way is tried"
                        );
                    }
                }
            }
        }
        if link.has_program {
            return Err(XdpError::Busy { name: name() });
        }
        let (mode, help) = match self.mode {
            Some(Mode::Driver) => ("driver", "leave out `mode`, and the generic one is used"),
            Some(Mode::Generic) => ("generic", "use another kind of port"),
            None => ("any", "use another kind of port"),
        };
        Err(XdpError::Mode { name: name(), mode, source: refused.into(), help })
    }

    /// Has the device let in what is for the guests.
    fn join(&self, link: &Link, own: [u8; 6]) -> Result<Membership, XdpError> {
        let failed = self.failed("PACKET_ADD_MEMBERSHIP");
        let membership = Membership::new().map_err(self.failed("a packet socket"))?;
        for station in &self.stations {
            if own != station.mac {
                membership.add(link.index, station.mac).map_err(&failed)?;
            }
            if let Some(address) = v6(station) {
                // The solicited-node group (RFC 4291 section 2.7.1) as RFC 2464 section 7
                // has it on Ethernet.
                let [.., a, b, c] = address.octets();
                membership.add(link.index, [0x33, 0x33, 0xff, a, b, c]).map_err(&failed)?;
            }
        }
        Ok(membership)
    }

    fn bind(
        &self,
        umem: &Umem,
        link: &Link,
        mode: Mode,
        queues: std::ops::Range<u32>,
    ) -> Result<(Service, Vec<(u32, Queue)>), XdpError> {
        let first_id = queues.start;
        let (service, first) = self.bind_first(umem, link, mode, first_id)?;
        let map = |unbound: Unbound| unbound.map().map_err(self.failed("mmap of a ring"));
        let mut bound = vec![(first_id, map(first)?)];
        for id in queues.skip(1) {
            let unbound = Unbound::new(None).map_err(|(call, errno)| self.failed(call)(errno))?;
            match unbound.bind_shared(link.index, id, &bound[0].1) {
                Ok(()) => bound.push((id, map(unbound)?)),
                // What is told is how many queues the device may have; these it has now.
                Err(Errno::INVAL) => break,
                Err(Errno::BUSY) => {
                    return Err(XdpError::QueueBusy { name: self.name.clone(), queue: id });
                }
                Err(errno) => return Err(self.failed("bind")(errno)),
            }
        }
        Ok((service, bound))
    }

    fn bind_first(
        &self,
        umem: &Umem,
        link: &Link,
        mode: Mode,
        queue: u32,
    ) -> Result<(Service, Unbound), XdpError> {
        let name = || self.name.clone();
        let mut refused = Errno::OPNOTSUPP;
        // What the driver does not see it cannot put into our memory.
        let mut services = SERVICES;
        if self.is_long() {
            // Where frames do not come in pieces, it is to be known that this is all that
            // is wrong.
            services.sort_by_key(|service| !service.gather);
        }
        for service in services.into_iter().filter(|s| !(s.zero_copy && mode == Mode::Generic)) {
            // A socket of its own for each try: the kernel may have kept something.
            let unbound = Unbound::new(Some((umem, self.chunk_size)))
                .map_err(|(call, errno)| self.socket_error(call, errno, umem.len()))?;
            match unbound.bind(link.index, queue, service) {
                Ok(()) if self.is_long() && !service.gather => return Err(self.too_long()),
                Ok(()) => return Ok((service, unbound)),
                Err(Errno::BUSY) => return Err(XdpError::QueueBusy { name: name(), queue }),
                Err(Errno::NETDOWN) => return Err(XdpError::Down { name: name() }),
                Err(Errno::NODEV) => return Err(XdpError::NoDevice { name: name() }),
                Err(errno) => refused = errno,
            }
        }
        match refused {
            Errno::INVAL if self.queue.is_some() => Err(XdpError::NoQueue { name: name(), queue }),
            errno => Err(self.failed("bind")(errno)),
        }
    }

    fn socket_error(&self, call: &'static str, errno: Errno, bytes: u64) -> XdpError {
        let name = self.name.clone();
        match (call, errno) {
            ("a socket of AF_XDP", Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT) => {
                XdpError::Unsupported { name }
            }
            // NOMEM: the private pages in front could be pinned, and then no more.
            ("XDP_UMEM_REG", Errno::FAULT | Errno::OPNOTSUPP | Errno::NOMEM) => {
                XdpError::Backing { name, region: self.region.clone(), source: errno.into() }
            }
            ("XDP_UMEM_REG", Errno::NOBUFS) => {
                XdpError::Locked { name, bytes, source: errno.into() }
            }
            _ => self.failed(call)(errno),
        }
    }
}

fn v6(station: &Station) -> Option<Ipv6Addr> {
    station.addresses.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    })
}
