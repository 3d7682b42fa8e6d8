//! Socket options, fcntl and ioctl.
//!
//! Where the stack has an option for a flow, it is passed on. What the stack
//! has for all flows together (windows, MSS, keepalive intervals) is taken over
//! when the stack is made, from the first socket that listens or connects: a
//! script has set it by then.

use paste_abi::slot::Opt;
use paste_stack::config::SEC;

use crate::errno::{Errno, Result};
use crate::flags::Settings;
use crate::info::{self, TcpInfo};
use crate::socket::Role;
use crate::world::World;

/// Linux's `SIOCOUTQNSD`, which libc lacks.
const SIOCOUTQNSD: u64 = 0x894b;
/// Linux's least send and receive buffers (`SOCK_MIN_SNDBUF` and its sibling).
const SNDBUF_MIN: u32 = 4608;
const RCVBUF_MIN: u32 = 2304;
/// TCP_INQ of Linux, and the control message of the same number.
pub(crate) const TCP_INQ: i32 = 36;
/// TCP_CC_INFO of Linux.
const TCP_CC_INFO: i32 = 26;
/// SO_MEMINFO of Linux, and how many numbers it has.
const SO_MEMINFO: i32 = 55;
const MEMINFO_LEN: usize = 9;

/// Options of one socket.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub nodelay: bool,
    pub cork: bool,
    pub reuse_address: bool,
    pub keepalive: bool,
    pub keepalive_idle: i32,
    pub keepalive_interval: i32,
    pub keepalive_probes: i32,
    pub user_timeout_ms: i32,
    /// Seconds; zero resets at close. `None` is off.
    pub linger: Option<i32>,
    pub sndbuf: u32,
    pub rcvbuf: u32,
    rcvbuf_set: bool,
    /// Unsent bytes at which a socket is no longer writable; zero for what all
    /// sockets have.
    notsent_lowat: u32,
    notsent_lowat_default: u32,
    pub maxseg: i32,
    syn_retries: i32,
    tos: i32,
    /// recvmsg tells how many bytes are left.
    inq: bool,
}

impl Options {
    pub(crate) fn new(settings: &Settings) -> Options {
        let seconds = |ns: u64| (ns / SEC).min(i32::MAX as u64) as i32;
        Options {
            nodelay: false,
            cork: false,
            reuse_address: false,
            keepalive: false,
            keepalive_idle: seconds(settings.keepalive_idle),
            keepalive_interval: seconds(settings.keepalive_interval),
            keepalive_probes: i32::from(settings.keepalive_probes),
            user_timeout_ms: 0,
            linger: None,
            sndbuf: settings.sndbuf,
            rcvbuf: settings.rcvbuf,
            rcvbuf_set: false,
            notsent_lowat: 0,
            notsent_lowat_default: settings.notsent_lowat,
            maxseg: 0,
            syn_retries: 6,
            tos: 0,
            inq: false,
        }
    }
}

impl Options {
    /// Unsent bytes at which the socket is no longer writable.
    pub(crate) fn unsent_max(&self) -> usize {
        match self.notsent_lowat {
            0 => self.notsent_lowat_default as usize,
            bytes => bytes as usize,
        }
    }
}

/// An `int`, as options mostly are.
fn int(value: &[u8]) -> Result<i32> {
    let bytes = value.first_chunk().ok_or(Errno(libc::EINVAL))?;
    Ok(i32::from_ne_bytes(*bytes))
}

/// One byte will do for options of IP (ip(7)).
fn int_or_byte(value: &[u8]) -> Result<i32> {
    match value {
        [byte] => Ok(i32::from(*byte)),
        _ => int(value),
    }
}

fn within(value: i32, least: i32, most: i32) -> Result<i32> {
    if (least..=most).contains(&value) { Ok(value) } else { Err(Errno(libc::EINVAL)) }
}

impl World {
    pub(crate) fn set_option(
        &mut self,
        fd: i32,
        level: i32,
        name: i32,
        value: &[u8],
    ) -> Result<()> {
        let socket = self.socket(fd)?;
        let options = &mut socket.options;
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_LINGER) => {
                let on = int(value)?;
                let seconds = int(value.get(4..).unwrap_or_default())?;
                options.linger = (on != 0).then_some(seconds);
            }
            (libc::SOL_SOCKET, libc::SO_REUSEADDR) => options.reuse_address = int(value)? != 0,
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => options.keepalive = int(value)? != 0,
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => {
                options.sndbuf = (int(value)?.max(0) as u32).saturating_mul(2).max(SNDBUF_MIN);
            }
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => {
                options.rcvbuf = (int(value)?.max(0) as u32).saturating_mul(2).max(RCVBUF_MIN);
                options.rcvbuf_set = true;
            }
            // Accepted and of no effect here, as for most connections of Linux.
            (libc::SOL_SOCKET, libc::SO_REUSEPORT | libc::SO_PRIORITY | libc::SO_MARK) => {
                int(value)?;
            }
            (libc::IPPROTO_TCP, libc::TCP_NODELAY) => options.nodelay = int(value)? != 0,
            (libc::IPPROTO_TCP, libc::TCP_CORK) => options.cork = int(value)? != 0,
            // RFC 9293 section 3.7.1; Linux's least is 88 less its own slack.
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => {
                options.maxseg = within(int(value)?, 88, 32_767)?;
            }
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => {
                options.keepalive_idle = within(int(value)?, 1, 32_767)?;
            }
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => {
                options.keepalive_interval = within(int(value)?, 1, 32_767)?;
            }
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => {
                options.keepalive_probes = within(int(value)?, 1, 127)?;
            }
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => {
                options.user_timeout_ms = within(int(value)?, 0, i32::MAX)?;
            }
            (libc::IPPROTO_TCP, TCP_INQ) => options.inq = within(int(value)?, 0, 1)? != 0,
            (libc::IPPROTO_TCP, libc::TCP_SYNCNT) => {
                options.syn_retries = within(int(value)?, 1, 127)?;
            }
            (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) => {
                options.notsent_lowat = int(value)? as u32;
            }
            (libc::IPPROTO_TCP, libc::TCP_QUICKACK | libc::TCP_DEFER_ACCEPT) => {
                int(value)?;
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                options.tos = int_or_byte(value)?;
            }
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER | libc::IP_FREEBIND) => {
                int_or_byte(value)?;
            }
            _ => return Err(Errno(libc::ENOPROTOOPT)),
        }
        let pushes = name == libc::TCP_NODELAY && level == libc::IPPROTO_TCP && options.nodelay;
        if let (true, Role::Connection(id)) = (pushes, &socket.role) {
            let id = *id;
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.push = true;
            }
        }
        self.apply_options(fd)
    }

    /// Passes options on to the connection and the stack.
    pub(crate) fn apply_options(&mut self, fd: i32) -> Result<()> {
        let socket = self.socket(fd)?;
        let options = socket.options.clone();
        let Role::Connection(id) = socket.role else {
            if self.net.is_none() {
                self.shape_stack(&options);
            }
            return Ok(());
        };
        let now = self.now;
        let (Some(net), Some(conn)) = (self.net.as_mut(), self.conns.get_mut(&id)) else {
            return Ok(());
        };
        conn.nodelay = options.nodelay;
        conn.cork = options.cork;
        let Some(flow) = conn.flow else { return Ok(()) };
        let idle = if options.keepalive { options.keepalive_idle as u64 } else { 0 };
        let timeout = options.user_timeout_ms as u64;
        for (option, value) in [(Opt::KeepAlive, idle), (Opt::UserTimeout, timeout)] {
            net.stack.set_option(now, 0, flow, option, value).map_err(Errno::of_refusal)?;
        }
        Ok(())
    }

    /// What the stack is to have for all flows.
    fn shape_stack(&mut self, options: &Options) {
        if options.rcvbuf_set {
            // Half of it is for Linux's own records (tcp_adv_win_scale = 1).
            self.settings.rcvbuf_max = options.rcvbuf / 2;
        }
        if options.maxseg > 0 {
            // Without options, IPv4 and TCP headers are 40 bytes.
            self.settings.mtu = self.settings.mtu.min(options.maxseg as u16 + 40);
        }
        self.settings.keepalive_interval = options.keepalive_interval as u64 * SEC;
        self.settings.keepalive_probes = options.keepalive_probes as u8;
    }

    /// Writes an option's value into `out`, and returns its length.
    pub(crate) fn get_option(
        &mut self,
        fd: i32,
        level: i32,
        name: i32,
        out: &mut [u8],
    ) -> Result<usize> {
        let socket = self.socket(fd)?;
        let options = &socket.options;
        let listening = matches!(socket.role, Role::Listening { .. });
        let number = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_ERROR) => self.take_error(fd)?,
            (libc::SOL_SOCKET, libc::SO_TYPE) => libc::SOCK_STREAM,
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => socket.family,
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => libc::IPPROTO_TCP,
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => i32::from(listening),
            (libc::SOL_SOCKET, libc::SO_REUSEADDR) => i32::from(options.reuse_address),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => i32::from(options.keepalive),
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => options.sndbuf as i32,
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => options.rcvbuf as i32,
            (libc::SOL_SOCKET, libc::SO_LINGER) => {
                let seconds = options.linger;
                return Ok(put(out, &[i32::from(seconds.is_some()), seconds.unwrap_or(0)]));
            }
            (libc::SOL_SOCKET, SO_MEMINFO) => return Ok(put(out, &[0; MEMINFO_LEN])),
            (libc::IPPROTO_TCP, libc::TCP_NODELAY) => i32::from(options.nodelay),
            (libc::IPPROTO_TCP, libc::TCP_CORK) => i32::from(options.cork),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => options.keepalive_idle,
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => options.keepalive_interval,
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => options.keepalive_probes,
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => options.user_timeout_ms,
            (libc::IPPROTO_TCP, TCP_INQ) => i32::from(options.inq),
            (libc::IPPROTO_TCP, libc::TCP_SYNCNT) => options.syn_retries,
            (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) => options.notsent_lowat as i32,
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => self.max_segment(fd)?,
            (libc::IPPROTO_TCP, libc::TCP_INFO) => {
                let info = self.tcp_info(fd)?;
                return Ok(put_bytes(out, &info.bytes()));
            }
            // Congestion controls that say nothing of themselves.
            (libc::IPPROTO_TCP, TCP_CC_INFO) => return Ok(0),
            (libc::IPPROTO_IP, libc::IP_TOS) => options.tos,
            _ => return Err(Errno(libc::ENOPROTOOPT)),
        };
        Ok(put(out, &[number]))
    }

    /// SO_ERROR: the error, once.
    fn take_error(&mut self, fd: i32) -> Result<i32> {
        let Ok(id) = self.conn_of(fd) else { return Ok(0) };
        let error = self.conns.get_mut(&id).and_then(|conn| conn.error.take());
        Ok(error.map_or(0, |e| e.0))
    }

    /// TCP_MAXSEG: of the connection, or what was asked for.
    fn max_segment(&mut self, fd: i32) -> Result<i32> {
        let asked = self.socket(fd)?.options.maxseg;
        let flow = self.conn_of(fd).ok().and_then(|id| self.conns.get(&id)?.flow);
        Ok(match (&self.net, flow) {
            (Some(net), Some(flow)) => {
                net.stack.flow_info(0, flow).map_or(asked, |info| i32::from(info.mss))
            }
            // RFC 9293 section 3.7.1: what is assumed of a peer that does not say.
            _ if asked == 0 => 536,
            _ => asked,
        })
    }

    /// With TCP_INQ: bytes that can be read now, or one for the end of them.
    pub(crate) fn inq(&mut self, fd: i32) -> Result<Option<i32>> {
        if !self.socket(fd)?.options.inq {
            return Ok(None);
        }
        let id = self.conn_of(fd)?;
        Ok(self.conns.get(&id).map(|conn| match conn.readable() {
            0 => i32::from(conn.read_ended()),
            bytes => bytes.min(i32::MAX as usize) as i32,
        }))
    }

    fn tcp_info(&mut self, fd: i32) -> Result<TcpInfo> {
        let socket = self.socket(fd)?;
        let id = match socket.role {
            Role::Idle => return Ok(TcpInfo::in_state(info::CLOSE)),
            Role::Listening { .. } => return Ok(TcpInfo::in_state(info::LISTEN)),
            Role::Connection(id) => id,
        };
        let Some(conn) = self.conns.get(&id) else {
            return Ok(TcpInfo::in_state(info::CLOSE));
        };
        Ok(match (&self.net, conn.flow) {
            (Some(net), Some(flow)) => {
                TcpInfo::of(conn, net.stack.flow_info(0, flow).ok(), self.now)
            }
            _ => TcpInfo::in_state(info::CLOSE),
        })
    }

    pub(crate) fn fcntl(&mut self, fd: i32, command: i32, argument: i32) -> Result<i32> {
        let socket = self.socket(fd)?;
        match command {
            libc::F_GETFL => {
                let nonblocking = if socket.nonblocking { libc::O_NONBLOCK } else { 0 };
                Ok(libc::O_RDWR | nonblocking)
            }
            libc::F_SETFL => {
                socket.nonblocking = argument & libc::O_NONBLOCK != 0;
                Ok(0)
            }
            libc::F_GETFD | libc::F_SETFD => Ok(0),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// ioctl: what to write to the argument, if anything. `argument` is the
    /// number there.
    pub(crate) fn ioctl(&mut self, fd: i32, request: u64, argument: i32) -> Result<Option<i32>> {
        let socket = self.socket(fd)?;
        if request == libc::FIONBIO {
            socket.nonblocking = argument != 0;
            return Ok(None);
        }
        let listening = matches!(socket.role, Role::Listening { .. });
        let conn = self.conn_of(fd).ok().and_then(|id| self.conns.get(&id));
        let (unsent, queued) = conn.map_or((0, 0), |conn| conn.queued(self.net.as_ref()));
        let number = match request {
            libc::FIONREAD | libc::TIOCOUTQ | SIOCOUTQNSD if listening => {
                return Err(Errno(libc::EINVAL));
            }
            libc::FIONREAD => conn.map_or(0, |conn| conn.readable()),
            libc::TIOCOUTQ => queued,
            SIOCOUTQNSD => unsent,
            _ => return Err(Errno(libc::ENOTTY)),
        };
        Ok(Some(number.min(i32::MAX as usize) as i32))
    }
}

/// Writes numbers as far as there is room, and returns how many bytes.
fn put(out: &mut [u8], numbers: &[i32]) -> usize {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
    put_bytes(out, &bytes)
}

fn put_bytes(out: &mut [u8], bytes: &[u8]) -> usize {
    let len = bytes.len().min(out.len());
    out[..len].copy_from_slice(&bytes[..len]);
    len
}
