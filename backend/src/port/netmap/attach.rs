//! Binding a port: which memory it is laid out in, and what the kernel made of it.
//!
//! # Where everything lies
//!
//! Netmap lays a port out in one range of memory: interfaces, rings, buffers, each sort
//! from a page's start. Given memory of ours (`NETMAP_REQ_OPT_EXTMEM`), it takes the
//! pages that are mapped there, whatever they are. So the range is put together of two:
//!
//! ```text
//!  private memory of this process             │ the region's buffers, as the guest has them
//!  interfaces │ rings │ buffers 0 .. K-1      │ buffers K, K+1, ...  =  region's 0, 1, ...
//! ```
//!
//! The guest sees buffers and nothing else. Indices, lengths and offsets stay where only
//! the kernel and this process reach them; what netmap itself takes, it takes from the
//! lowest number up, and K is large enough for all rings. So no buffer of the region is
//! in a ring before the pool gave it to the port, and a value that a guest has stored is
//! never received into. Netmap's two reserved buffers are private too.
//!
//! Each sort of object may lie anywhere, but one object in pages that follow each other
//! physically. Buffers of up to a page do, wherever the region is kept; for larger ones
//! the region must be on huge pages or device DAX. Rings are longer than a page: they
//! need huge pages here, which is two of the kernel's reserve, or luck.
//!
//! # When it is not to be
//!
//! Netmap's own memory and one copy each way are what is left where the kernel takes no
//! memory or no offsets, for pipes (whose far end exchanges buffers, and must not have a
//! guest's), and with the host's own stack connected (its frames arrive in the same
//! buffers, and a guest must not see them).

use paste_stack::frame::HEAD_MAX;
use rustix::io::Errno;
use zerocopy::FromZeros;

use super::abi::{
    EXCLUSIVE, ExtMem, Header, INTERFACE_LEN, Interface, Offsets, PoolInfo, PoolsInfo, PortInfo,
    REG_ALL_NIC, REG_NIC_SW, REG_ONE_NIC, REQ_PORT_INFO_GET, REQ_REGISTER, RESERVED_BUFFERS,
    RING_SLOTS, RING_TIMESTAMP, RX_RINGS_ONLY, Register, Ring, SLOT_LEN, TX_RINGS_ONLY,
};
use super::area::Area;
use super::error::NetmapError;
use super::kernel::{Body, Descriptor, Kernel, Request, Shared};
use super::name::{Nature, PortName, Rings};
use super::rings::{Exchange, RingFault, RxRing, TxRing};
use crate::port::RX_OFFSET;

/// Rings in one direction, at most.
const RINGS_MAX: u32 = 512;
/// Bytes of the smallest buffer: a head fits, and then some.
const BUFFER_SIZE_MIN: usize = 2 * HEAD_MAX;
/// Slots of one ring, at most.
const SLOTS_MAX: u32 = 1 << 16;
/// Interfaces and rings beside those that are needed: the kernel passes over those that
/// lie badly.
const SPARE: u32 = 4;
/// Private buffers beside those that rings need.
const SPARE_BUFFERS: u32 = 64;
/// Every bit of a slot's word that may hold an offset ([`Offsets::bits`]).
const OFFSET_MASK: u64 = u32::MAX as u64;

/// What is to be bound.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    /// The port, as configured, for messages.
    pub(super) port: &'a str,
    /// The port.
    pub(super) name: &'a PortName,
    /// The region's buffers, if they may be netmap's.
    pub(super) shared: Option<Shared<'a>>,
}

/// Whose memory the buffers are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// The region's: its buffer 0 is netmap's buffer of this number.
    Region(u32),
    /// Netmap's; frames are copied.
    Netmap,
}

/// The rings to the host's own stack.
#[derive(Debug)]
pub(super) struct HostRings {
    /// What it sends.
    pub(super) rx: RxRing,
    /// What it is to receive.
    pub(super) tx: TxRing,
}

/// The memory that a port is laid out in.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) area: Area,
    pub(super) sharing: Sharing,
    /// Where buffer 0 lies in the area.
    buffers_at: usize,
    /// Bytes of a buffer.
    pub(super) buffer_size: usize,
}

impl Memory {
    /// Where a buffer lies in the area.
    pub(super) fn buffer(&self, index: u32) -> usize {
        self.buffers_at + index as usize * self.buffer_size
    }
}

/// A port that is bound. Its fields are dropped in their order: the kernel lets go of
/// the memory before it goes.
#[derive(Debug)]
pub(super) struct Attached<D> {
    /// Bound to the rings for receiving; and to all, where `tx` is absent.
    pub(super) rx: D,
    /// Bound to the rings for sending.
    pub(super) tx: Option<D>,
    pub(super) rx_rings: Vec<RxRing>,
    pub(super) tx_rings: Vec<TxRing>,
    pub(super) host: Option<HostRings>,
    pub(super) memory: Memory,
    /// Why the buffers are not shared, if they were to be.
    pub(super) why_copied: Option<String>,
}

/// Opens a descriptor, and finds out whether netmap is there and speaks our API.
pub(super) fn open<K: Kernel>(kernel: &K, port: &str) -> Result<K::Descriptor, NetmapError> {
    let port = || port.to_owned();
    let descriptor = kernel.open().map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => NetmapError::NoModule { port: port() },
        Errno::ACCESS | Errno::PERM => NetmapError::Permission { port: port() },
        errno => failed(port(), "open /dev/netmap", errno),
    })?;
    match info(&descriptor, "") {
        Ok(_) => Ok(descriptor),
        Err(Errno::INVAL | Errno::NOTTY) => Err(NetmapError::Version { port: port() }),
        Err(errno) => Err(failed(port(), "NIOCCTRL", errno)),
    }
}

/// Binds a port.
pub(super) fn attach<K: Kernel>(
    kernel: &K,
    ask: &Ask<'_>,
) -> Result<Attached<K::Descriptor>, NetmapError> {
    let descriptor = open(kernel, ask.port)?;
    let why = match &ask.shared {
        None => None,
        Some(_) if ask.name.nature == Nature::Pipe => {
            Some("a pipe's far end must not have a guest's buffers".to_owned())
        }
        Some(_) if ask.name.rings == Rings::WithHost => {
            Some("the guest must not see the host's own frames".to_owned())
        }
        Some(shared) => match share(kernel, descriptor, ask, shared) {
            Ok(attached) => return Ok(attached),
            Err(NotShared::For(why)) => {
                // What was half bound is closed.
                return copy(kernel.open().map_err(|e| errno(ask, e))?, ask, Some(why));
            }
            Err(NotShared::Failed(error)) => return Err(error),
        },
    };
    copy(descriptor, ask, why)
}

/// Why the region's buffers are not netmap's.
enum NotShared {
    /// For a reason that does not keep the port from working with its own.
    For(String),
    /// For one that does.
    Failed(NetmapError),
}

/// Binds the port in the region's memory.
fn share<K: Kernel>(
    kernel: &K,
    rx: K::Descriptor,
    ask: &Ask<'_>,
    shared: &Shared<'_>,
) -> Result<Attached<K::Descriptor>, NotShared> {
    let info = info(&rx, &ask.name.kernel).map_err(|e| NotShared::Failed(errno(ask, e)))?;
    let plan = Plan::new(&info, shared)
        .ok_or_else(|| NotShared::For("it has more rings than are served".into()))?;
    let area = kernel.reserve(plan.private_len, shared).map_err(NotShared::For)?;
    let mut extmem = ExtMem::new(area.start() as u64, plan.pools(shared));
    let mut offsets = Offsets::new(RX_OFFSET.into(), RX_OFFSET.into());
    let mut rx_bound = request(ask.name, RX_RINGS_ONLY, 0);
    register(&rx, ask, &mut rx_bound, Some(&mut extmem), Some(&mut offsets)).map_err(|e| {
        let unsupported = Errno::OPNOTSUPP.raw_os_error() as u32;
        match e {
            Errno::NXIO | Errno::BUSY => NotShared::Failed(errno(ask, e)),
            _ if extmem.option.status == unsupported => NotShared::For(
                "this netmap was built without external memory (configure --enable-extmem)".into(),
            ),
            _ if offsets.option.status == unsupported => NotShared::For(
                "the driver lets frames begin nowhere but at a buffer's start".into(),
            ),
            Errno::NOMEM => NotShared::For(
                "the rings need physically contiguous memory: set vm.nr_hugepages to 8 or more"
                    .into(),
            ),
            e => NotShared::For(format!("netmap refused the region's memory ({e})")),
        }
    })?;
    let tx = kernel.open().map_err(|e| NotShared::Failed(errno(ask, e)))?;
    let mut offsets = Offsets::new(shared.buffer_size as u64, 0);
    let mut tx_bound = request(ask.name, TX_RINGS_ONLY, rx_bound.mem_id);
    register(&tx, ask, &mut tx_bound, None, Some(&mut offsets))
        .map_err(|e| NotShared::For(format!("netmap refused the rings for sending ({e})")))?;

    let exchange = Exchange::Never;
    let broken = |what| NotShared::Failed(layout(ask, what));
    let (seen, rx_rings, _) = Seen::read(&area, &rx_bound, exchange).map_err(broken)?;
    let (_, _, tx_rings) = Seen::read(&area, &tx_bound, exchange).map_err(broken)?;
    let private = plan.private_buffers;
    let named = rx_rings.iter().flat_map(RxRing::buffers);
    let named = named.chain(tx_rings.iter().flat_map(TxRing::buffers));
    let strange = [
        ("the buffers' place", seen.buffers_at != plan.buffers_at),
        ("the buffers' size", seen.buffer_size != shared.buffer_size),
        ("a ring's place", seen.end > plan.buffers_at),
        ("the offsets", seen.offset_mask != OFFSET_MASK),
        ("a buffer's number", { named }.any(|b| !(RESERVED_BUFFERS..private).contains(b))),
        ("the rings", rx_rings.is_empty() || tx_rings.is_empty()),
    ];
    if let Some((what, _)) = strange.iter().find(|(_, strange)| *strange) {
        return Err(NotShared::For(format!("netmap laid {what} out otherwise than was asked for")));
    }
    Ok(Attached {
        rx,
        tx: Some(tx),
        rx_rings,
        tx_rings,
        host: None,
        memory: seen.memory(area, Sharing::Region(private)),
        why_copied: None,
    })
}

/// Binds the port in netmap's own memory.
fn copy<D: Descriptor>(
    descriptor: D,
    ask: &Ask<'_>,
    why_copied: Option<String>,
) -> Result<Attached<D>, NetmapError> {
    let mut bound = request(ask.name, 0, 0);
    register(&descriptor, ask, &mut bound, None, None).map_err(|e| errno(ask, e))?;
    let len = usize::try_from(bound.memsize).map_err(|_| layout(ask, "the memory's size"))?;
    let area = descriptor.map(len).map_err(|e| failed(ask.port.to_owned(), "mmap", e))?;
    let broken = |what| layout(ask, what);
    let (seen, mut rx_rings, mut tx_rings) =
        Seen::read(&area, &bound, Exchange::Below(u32::MAX)).map_err(broken)?;
    let host = if ask.name.rings == Rings::WithHost {
        let rx = (rx_rings.len() > seen.rx_rings).then(|| rx_rings.remove(seen.rx_rings));
        let tx = (tx_rings.len() > seen.tx_rings).then(|| tx_rings.remove(seen.tx_rings));
        let (rx, tx) = rx.zip(tx).ok_or_else(|| broken("the host's rings"))?;
        rx_rings.truncate(seen.rx_rings);
        tx_rings.truncate(seen.tx_rings);
        Some(HostRings { rx, tx })
    } else {
        None
    };
    if rx_rings.is_empty() || tx_rings.is_empty() {
        return Err(broken("the rings"));
    }
    Ok(Attached {
        rx: descriptor,
        tx: None,
        rx_rings,
        tx_rings,
        host,
        memory: seen.memory(area, Sharing::Netmap),
        why_copied,
    })
}

/// How memory of ours is divided.
#[derive(Debug)]
struct Plan {
    interfaces: PoolInfo,
    rings: PoolInfo,
    buffers_at: usize,
    private_buffers: u32,
    private_len: usize,
}

impl Plan {
    /// For a port with these rings; `None` if it has more than are served.
    fn new(info: &PortInfo, shared: &Shared<'_>) -> Option<Plan> {
        let page = rustix::param::page_size();
        let (tx, rx) = (u32::from(info.tx_rings), u32::from(info.rx_rings));
        // The host's rings count at least one each, bound or not.
        let host = u32::from(info.host_tx_rings.max(1)) + u32::from(info.host_rx_rings.max(1));
        let slots = info.tx_slots.max(info.rx_slots);
        if tx + rx + host > RINGS_MAX || slots > SLOTS_MAX {
            return None;
        }
        let pool = |count: u32, size: usize| PoolInfo { offset: 0, count, size: size as u32 };
        let ring_words = size_of::<i64>() * (tx + rx + host) as usize;
        let interfaces = pool(SPARE, (INTERFACE_LEN + ring_words).next_multiple_of(64));
        let ring_len = RING_SLOTS + slots as usize * SLOT_LEN;
        let rings = pool(tx + rx + host + SPARE, ring_len.next_multiple_of(page));
        let len =
            |pool: &PoolInfo| (pool.count as usize * pool.size as usize).next_multiple_of(page);
        let buffers_at = len(&interfaces) + len(&rings);
        let needed = RESERVED_BUFFERS + SPARE_BUFFERS + tx * info.tx_slots + rx * info.rx_slots;
        // The region's buffers begin at a page, as they do in its file.
        let per_page = (page / shared.buffer_size).max(1) as u32;
        let private_buffers = needed.next_multiple_of(per_page);
        let private_len = buffers_at + private_buffers as usize * shared.buffer_size;
        Some(Plan { interfaces, rings, buffers_at, private_buffers, private_len })
    }

    /// As the kernel is asked for it.
    fn pools(&self, shared: &Shared<'_>) -> PoolsInfo {
        let memsize = self.private_len + shared.len;
        let buffers = (memsize - self.buffers_at) / shared.buffer_size;
        PoolsInfo {
            memsize: memsize as u64,
            interfaces: self.interfaces,
            rings: self.rings,
            buffers: PoolInfo { offset: 0, count: buffers as u32, size: shared.buffer_size as u32 },
            ..PoolsInfo::new_zeroed()
        }
    }
}

/// What was found in the memory of a port that is bound.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Rings of the NIC that are bound, each way.
    tx_rings: usize,
    rx_rings: usize,
    buffers_at: usize,
    buffer_size: usize,
    offset_mask: u64,
    /// Where the last ring ends.
    end: usize,
}

impl Seen {
    /// The memory that it was found in.
    pub(super) fn memory(&self, area: Area, sharing: Sharing) -> Memory {
        Memory { area, sharing, buffers_at: self.buffers_at, buffer_size: self.buffer_size }
    }

    /// Which bits of a slot's word hold where the frame begins.
    pub(super) fn offset_mask(&self) -> u64 {
        self.offset_mask
    }

    /// Reads the interface and the rings that are bound, the host's behind the NIC's.
    /// Says what cannot be.
    pub(super) fn read(
        area: &Area,
        bound: &Register,
        exchange: Exchange,
    ) -> Result<(Seen, Vec<RxRing>, Vec<TxRing>), &'static str> {
        let at = usize::try_from(bound.offset).map_err(|_| "the interface's place")?;
        let interface: Interface = area.read(at).ok_or("the interface's place")?;
        let counts = [
            interface.tx_rings,
            interface.host_tx_rings,
            interface.rx_rings,
            interface.host_rx_rings,
        ];
        if counts.iter().any(|&count| count > RINGS_MAX) {
            return Err("the number of rings");
        }
        let [tx, host_tx, rx, host_rx] = counts.map(|count| count as usize);
        let mut seen = Seen::default();
        let mut first = None;
        let mut ring = |index: usize| -> Result<Option<_>, &'static str> {
            let place: i64 = area.read(at + INTERFACE_LEN + index * 8).ok_or("the interface")?;
            if place == 0 {
                return Ok(None);
            }
            let offset = at.checked_add_signed(place as isize).ok_or("a ring's place")?;
            let head: Ring = area.read(offset).ok_or("a ring's place")?;
            let buffers_at = offset.checked_add_signed(head.buf_ofs as isize);
            let buffers_at =
                buffers_at.filter(|&at| at < area.len()).ok_or("the buffers' place")?;
            let size = head.buf_size as usize;
            if *first.get_or_insert((buffers_at, size)) != (buffers_at, size)
                || !(BUFFER_SIZE_MIN..=65536).contains(&size)
            {
                return Err("the buffers' size");
            }
            let slots = head.num_slots;
            let memory = area.ring(offset, slots).filter(|_| slots <= SLOTS_MAX);
            let memory = memory.ok_or("a ring's size")?;
            memory.set_flags(RING_TIMESTAMP);
            (seen.buffers_at, seen.buffer_size) = (buffers_at, size);
            seen.offset_mask = head.offset_mask;
            seen.end = seen.end.max(offset + RING_SLOTS + slots as usize * SLOT_LEN);
            let count = ((area.len() - buffers_at) / size) as u32;
            let exchange = match exchange {
                Exchange::Never => Exchange::Never,
                Exchange::Below(_) => Exchange::Below(count),
            };
            Ok(Some((memory, exchange)))
        };
        let fault = |_: RingFault| "a ring's indices";
        let (mut tx_rings, mut rx_rings) = (Vec::new(), Vec::new());
        let (mut tx_nic, mut rx_nic) = (0, 0);
        for index in 0..tx + host_tx {
            if let Some((memory, exchange)) = ring(index)? {
                tx_rings.push(TxRing::new(memory, exchange).map_err(fault)?);
                tx_nic += usize::from(index < tx);
            }
        }
        for index in 0..rx + host_rx {
            if let Some((memory, exchange)) = ring(tx + host_tx + index)? {
                rx_rings.push(RxRing::new(memory, exchange).map_err(fault)?);
                rx_nic += usize::from(index < rx);
            }
        }
        (seen.tx_rings, seen.rx_rings) = (tx_nic, rx_nic);
        Ok((seen, rx_rings, tx_rings))
    }
}

/// Asks what a port has; without a name, whether netmap answers.
pub(super) fn info<D: Descriptor + ?Sized>(descriptor: &D, name: &str) -> Result<PortInfo, Errno> {
    let mut info = PortInfo::new_zeroed();
    descriptor.control(&mut Request {
        header: Header::new(REQ_PORT_INFO_GET, name),
        body: Body::PortInfo(&mut info),
        extmem: None,
        offsets: None,
    })?;
    Ok(info)
}

/// The request for a port's rings, one direction of them or both.
fn request(name: &PortName, direction: u64, mem_id: u16) -> Register {
    let (mode, ringid) = match name.rings {
        Rings::All => (REG_ALL_NIC, 0),
        Rings::One(ring) => (REG_ONE_NIC, ring),
        Rings::WithHost => (REG_NIC_SW, 0),
    };
    Register { mode, ringid, mem_id, flags: EXCLUSIVE | direction, ..Register::new_zeroed() }
}

fn register<D: Descriptor>(
    descriptor: &D,
    ask: &Ask<'_>,
    bound: &mut Register,
    extmem: Option<&mut ExtMem>,
    offsets: Option<&mut Offsets>,
) -> Result<(), Errno> {
    descriptor.control(&mut Request {
        header: Header::new(REQ_REGISTER, &ask.name.kernel),
        body: Body::Register(bound),
        extmem,
        offsets,
    })
}

fn failed(port: String, call: &'static str, errno: Errno) -> NetmapError {
    NetmapError::Failed { port, call, source: errno.into() }
}

fn layout(ask: &Ask<'_>, what: &'static str) -> NetmapError {
    NetmapError::Layout { port: ask.port.to_owned(), what }
}

/// What the kernel's refusal of a port means (`netmap_get_na`, `netmap_do_regif`).
fn errno(ask: &Ask<'_>, errno: Errno) -> NetmapError {
    let (port, name) = (ask.port.to_owned(), ask.name.kernel.clone());
    match errno {
        Errno::NXIO | Errno::NODEV => NetmapError::NotFound { port, name },
        Errno::BUSY => NetmapError::Busy { port },
        Errno::NOMEM => NetmapError::NoMemory { port },
        Errno::OPNOTSUPP => NetmapError::Unsupported { port, name },
        Errno::INVAL => NetmapError::Refused { port, name },
        errno => failed(port, "NIOCCTRL (register)", errno),
    }
}
