//! Linux: the bridge's ioctls (`linux/sockios.h`), and what /proc tells. All
//! that is `unsafe` in the benchmarks is here.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use libc::{c_char, c_int, c_short, ifreq};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Makes a bridge (`linux/sockios.h`).
const SIOCBRADDBR: libc::Ioctl = 0x89a0;
/// Makes an interface a port of a bridge.
const SIOCBRADDIF: libc::Ioctl = 0x89a2;
/// Sets the length of an interface's queue, frames.
const SIOCSIFTXQLEN: libc::Ioctl = 0x8943;

/// Makes a bridge, makes `ports` its ports, each with a queue of `queue_len`
/// frames, and brings these up. The bridge has no spanning tree, so its ports
/// forward at once. In the network namespace of the calling thread; the bridge
/// goes with it.
pub fn bridge(name: &str, ports: &[&str], queue_len: i32) -> io::Result<()> {
    let control = control()?;
    let bridge = request(name)?;
    // SAFETY: SIOCBRADDBR reads a name of IFNAMSIZ bytes, and `ifr_name` is one.
    check(unsafe { libc::ioctl(control.as_raw_fd(), SIOCBRADDBR, bridge.ifr_name.as_ptr()) })?;
    ports.iter().try_for_each(|port| join(name, port, queue_len))
}

/// Makes `port` a port of a bridge that is there, as [`bridge`] does.
pub fn join(bridge: &str, port: &str, queue_len: i32) -> io::Result<()> {
    let control = control()?;
    let mut device = request(port)?;
    interface(&control, libc::SIOCGIFINDEX as _, &mut device)?;
    let mut member = request(bridge)?;
    // SAFETY: SIOCGIFINDEX filled in this member.
    member.ifr_ifru.ifru_ifindex = unsafe { device.ifr_ifru.ifru_ifindex };
    interface(&control, SIOCBRADDIF, &mut member)?;
    // The queue's length is in the place of the metric, an int.
    device.ifr_ifru.ifru_metric = queue_len;
    interface(&control, SIOCSIFTXQLEN, &mut device)?;
    interface(&control, libc::SIOCGIFFLAGS as _, &mut device)?;
    // SAFETY: SIOCGIFFLAGS filled in this member.
    let flags = unsafe { device.ifr_ifru.ifru_flags };
    device.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
    interface(&control, libc::SIOCSIFFLAGS as _, &mut device)
}

/// A socket to ask about interfaces.
fn control() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// A request about an interface, with nothing but its name.
fn request(name: &str) -> io::Result<ifreq> {
    // SAFETY: `ifreq` is made of integers, arrays of them, and pointers that
    // may be null.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    Ok(request)
}

/// An ioctl that reads and writes an `ifreq`.
fn interface(control: &OwnedFd, code: libc::Ioctl, request: &mut ifreq) -> io::Result<()> {
    // SAFETY: callers pass codes whose argument is a pointer to an `ifreq`, and
    // this one is a live exclusive borrow.
    check(unsafe { libc::ioctl(control.as_raw_fd(), code, std::ptr::from_mut(request)) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Settings of a network, below /proc/sys/net: devices that are made from now on
/// speak no IPv6, whose solicitations would be in the measurement; bridged frames
/// are not taken through the packet filter; and the kernel's TCP is as Linux has
/// it where nobody chose otherwise, without the timers of a paced one.
const SETTINGS: [(&str, &str); 5] = [
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("bridge/bridge-nf-call-arptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-iptables", "0"),
    (CONGESTION_CONTROL, "cubic"),
];

/// Names the congestion control of new sockets.
const CONGESTION_CONTROL: &str = "ipv4/tcp_congestion_control";

/// Keeps the calling thread's network from doing what would distort a
/// comparison: see [`SETTINGS`].
pub fn settle_network() {
    for (file, value) in SETTINGS {
        // A kernel that cannot do it has no such file, and nothing to settle.
        let _ = fs::write(format!("/proc/sys/net/{file}"), value);
    }
}

/// The congestion control of the kernel's TCP in the calling thread's network.
pub fn congestion_control() -> String {
    fs::read_to_string(format!("/proc/sys/net/{CONGESTION_CONTROL}"))
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// Waits until `fd` can be read, for at most `timeout`. A signal ends the wait.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Keeps idle cores from sleeping as long as the file is open
/// (Documentation/power/pm_qos_interface.rst). A core that sleeps in a virtual
/// machine is given back to the host, and who waits for the disk meanwhile is woken
/// late.
pub fn keep_awake() -> io::Result<File> {
    let mut file = File::options().write(true).open("/dev/cpu_dma_latency")?;
    // Microseconds that waking may take.
    io::Write::write_all(&mut file, &0i32.to_ne_bytes())?;
    Ok(file)
}

/// Time that the machine was not given, and all time that passed, summed over
/// its cores, in the kernel's ticks (proc_stat(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stolen {
    /// Ticks that another machine on the same hardware had.
    pub steal: u64,
    /// Ticks of any kind.
    pub all: u64,
}

impl Stolen {
    /// What passed since `earlier` that was stolen, in percent.
    pub fn percent_since(self, earlier: Stolen) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        100.0 * self.steal.saturating_sub(earlier.steal) as f64 / all as f64
    }
}

/// Reads what was stolen so far.
pub fn stolen() -> io::Result<Stolen> {
    parse_stolen(&fs::read_to_string("/proc/stat")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat: no cpu line"))
}

/// The first eight fields of the first line: user to steal. Those of virtual
/// machines of our own are in user already.
fn parse_stolen(stat: &str) -> Option<Stolen> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> =
        fields.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(Stolen { steal: *ticks.get(7)?, all: ticks.iter().sum() })
}

/// How long a core was busy, and all time that passed, in the kernel's ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreTime {
    busy: u64,
    all: u64,
}

impl CoreTime {
    /// Of this core, since the machine started.
    pub fn of(core: usize) -> io::Result<CoreTime> {
        parse_core(&fs::read_to_string("/proc/stat")?, core)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat: no such core"))
    }

    /// How long it was busy since `earlier`, in ns.
    pub fn busy_ns_since(self, earlier: CoreTime) -> u64 {
        self.busy.saturating_sub(earlier.busy) * tick_ns()
    }

    /// How much of the time since `earlier` it was busy, in percent.
    pub fn busy_percent_since(self, earlier: CoreTime) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        100.0 * self.busy.saturating_sub(earlier.busy) as f64 / all as f64
    }
}

/// Nanoseconds of one of the kernel's ticks.
fn tick_ns() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

/// CPU time of all threads of a process outside the kernel and in it, in ns, by the
/// kernel's ticks (proc_pid_stat(5)).
pub fn user_and_system_ns(pid: u32) -> io::Result<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_user_and_system(&stat)
        .map(|(user, system)| (user * tick_ns(), system * tick_ns()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat: no times"))
}

/// Fields 14 and 15. The second is a name, with whatever its process put there.
fn parse_user_and_system(stat: &str) -> Option<(u64, u64)> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse().ok();
    Some((next()?, next()?))
}

/// Lets this process, and those that it starts, have so many descriptors, if that is
/// allowed.
pub fn allow_descriptors(count: u64) {
    let limits = getrlimit(Resource::Nofile);
    let current = limits.current.unwrap_or(u64::MAX);
    if current >= count {
        return;
    }
    let raise = |maximum: u64| {
        let limits = Rlimit { current: Some(count.min(maximum)), maximum: Some(maximum) };
        setrlimit(Resource::Nofile, limits)
    };
    let maximum = limits.maximum.unwrap_or(u64::MAX);
    // Above the limit only who is privileged can go; who needs it and cannot is told when
    // a connection is refused.
    if raise(maximum.max(count)).is_err() {
        let _ = raise(maximum);
    }
}

/// All but idle and iowait of a core's line (proc_stat(5)).
fn parse_core(stat: &str, core: usize) -> Option<CoreTime> {
    let prefix = format!("cpu{core} ");
    let fields = stat.lines().find_map(|line| line.strip_prefix(&prefix))?;
    let ticks: Vec<u64> =
        fields.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let all = ticks.iter().sum();
    Some(CoreTime { busy: all - ticks.get(3)? - ticks.get(4)?, all })
}

/// Processes that want a core, in the mean of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Bytes that were ever written to the disk that a file is on, by whoever, the file
/// system's journal included; `None` if the file is on no one disk. What the kernel
/// counts for a process (proc_pid_io(5)) would not do: it counts a page of up to 2 MiB
/// for the first byte in it.
pub fn written_bytes(file: &File) -> io::Result<Option<u64>> {
    /// Bytes of what the kernel counts, whatever the disk has.
    const SECTOR: u64 = 512;
    let device = rustix::fs::fstat(file)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(text) = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")) else {
        return Ok(None);
    };
    // The seventh (Documentation/block/stat.rst).
    let sectors = text.split_ascii_whitespace().nth(6).and_then(|word| word.parse::<u64>().ok());
    Ok(sectors.map(|count| count * SECTOR))
}

/// The type of file systems in memory (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Whether a file or directory is in memory alone.
pub fn is_in_memory(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type as i64 == TMPFS_MAGIC)
}

/// Writes back what the file system with this file or directory holds.
pub fn sync(file: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}

/// What describes the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Name and release of the kernel.
    pub kernel: String,
    /// The processor, as it calls itself.
    pub cpu: String,
    /// Whether it is a virtual machine.
    pub is_virtual: bool,
}

impl Machine {
    /// The machine that this process is on.
    pub fn this() -> Machine {
        let uname = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Machine {
            kernel: format!("{} {}", text(uname.sysname()), text(uname.release())),
            cpu: field(&info, "model name").unwrap_or("unknown").to_owned(),
            is_virtual: field(&info, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        }
    }
}

/// The first value of a field of /proc/cpuinfo.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_the_eighth_field() {
        let stat = "cpu  10 20 30 4000 500 6 7 80 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let all = 10 + 20 + 30 + 4000 + 500 + 6 + 7 + 80;
        assert_eq!(parse_stolen(stat), Some(Stolen { steal: 80, all }));
        assert_eq!(parse_stolen("cpu 1 2 3"), None);
        let later = Stolen { steal: 90, all: all + 40 };
        assert_eq!(later.percent_since(Stolen { steal: 80, all }), 25.0);
        assert_eq!(later.percent_since(later), 0.0);
        assert!(stolen().unwrap().all > 0);
    }

    #[test]
    fn a_core_is_busy_when_it_neither_idles_nor_waits() {
        let stat = "cpu  1 1 1 1 1 1 1 1\ncpu0 9 9 9 9 9 9 9 9\ncpu1 1 2 3 40 50 6 7 8 0 0\n";
        let (earlier, all) = (parse_core(stat, 1).unwrap(), 117);
        assert_eq!(earlier, CoreTime { busy: 27, all });
        assert_eq!(parse_core(stat, 2), None);
        let later = CoreTime { busy: 30, all: all + 4 };
        assert_eq!(later.busy_percent_since(earlier), 75.0);
        assert!(CoreTime::of(0).unwrap().all > 0);
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) R 1 7 7 0 -1 4194304 1 0 0 0 12 34 0 0 20 0 1 0 5";
        assert_eq!(parse_user_and_system(stat), Some((12, 34)));
        assert_eq!(parse_user_and_system("7 (a) R 1"), None);
        assert!(user_and_system_ns(std::process::id()).is_ok());
    }

    #[test]
    fn descriptors_are_never_taken_away() {
        let before = getrlimit(Resource::Nofile).current;
        allow_descriptors(1);
        assert_eq!(getrlimit(Resource::Nofile).current, before);
    }

    #[test]
    fn what_is_written_is_counted() {
        assert!(written_bytes(&File::open("/").unwrap()).is_ok());
        assert!(load() >= 0.0);
        let file = File::open("/dev/shm").unwrap();
        assert!(is_in_memory(&file).unwrap());
        assert_eq!(written_bytes(&file).unwrap(), None);
        assert!(!is_in_memory(&File::open("/proc").unwrap()).unwrap());
        sync(&file).unwrap();
    }

    #[test]
    fn the_processor_says_its_name() {
        let info = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(info, "model name"), Some("Some CPU"));
        assert_eq!(field(info, "flags"), Some("fpu hypervisor"));
        assert_eq!(field(info, "bogomips"), None);
    }

    #[test]
    fn a_name_that_is_too_long_is_refused() {
        assert!(request("fifteen-letters").is_ok());
        assert!(request("sixteen-letters!").is_err());
    }
}
