//! The ring to the kernel: `io_uring_setup(2)`, `io_uring_enter(2)`. All that is `unsafe`
//! about requests is here.
//!
//! A request names bytes by address, and who makes it must keep them. Here that is one
//! rule: what a request may name is a range of a buffer of the region, which the ring
//! keeps mapped for as long as it lives, or a place in the ring's own tables, which the
//! kernel reads when the request is submitted (`IORING_FEAT_SUBMIT_STABLE`) and which
//! are used anew only after that. Who owns a buffer meanwhile is the engine's affair; a
//! mistake there mixes up payload, and touches no other memory.
//!
//! The ring defers all work of the kernel's to [`Ring::enter`], and says by a flag in
//! shared memory whether there is any. So a turn in which nothing happened makes no
//! system call. For whoever sleeps meanwhile there is an eventfd, which the kernel signals
//! when there is work or a completion: the ring's own descriptor is not woken by work
//! that is put off.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};
use libc::{iovec, msghdr};
use paste_pmem::Buffers;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::SocketAddrAny;

use super::provided::Provided;

/// Ranges of buffers that are sent at once, at most (`UIO_MAXIOV` is 1024): 120 KiB of
/// small buffers, which is as much as a segment offload takes twice over.
pub const PARTS_MAX: usize = 64;
/// Requests that are made between two submissions, at most.
const REQUESTS_MAX: u32 = 4096;
/// Ranges in all sends between two submissions.
const PARTS_TOTAL: usize = 2 * REQUESTS_MAX as usize;
/// Sends of several ranges between two submissions.
const MESSAGES_MAX: usize = 1024;
/// Connections opened between two submissions.
const NAMES_MAX: usize = 64;
/// Completions taken from the kernel at once.
const INBOX: usize = 64;
/// The group of the provided buffers; there is one.
const GROUP: u16 = 0;
/// In the field `ioprio` of a send without a copy: say in the notification whether the
/// kernel copied all the same (`IORING_SEND_ZC_REPORT_USAGE`, since Linux 6.2).
const REPORT_USAGE: u16 = 1 << 3;
/// In that notification: it did (`IORING_NOTIF_USAGE_ZC_COPIED`).
const COPIED: u32 = 1 << 31;

/// What a completion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// A connection was accepted, or the listener failed.
    Accept,
    /// Bytes came.
    Receive,
    /// Bytes went.
    Send,
    /// A send without a copy: the index is that of its record.
    SendZc,
    /// A connection was opened.
    Connect,
    /// A socket was closed.
    Close,
    /// A request was cancelled.
    Cancel,
}

impl Op {
    const ALL: [Op; 7] =
        [Op::Accept, Op::Receive, Op::Send, Op::SendZc, Op::Connect, Op::Close, Op::Cancel];

    /// The word that comes back with the completion.
    fn token(self, index: u32) -> u64 {
        (self as u64) << 32 | u64::from(index)
    }
}

/// What the kernel says of a request. Not to be copied: it may stand for a descriptor.
#[derive(Debug)]
pub struct Completion {
    /// What it is of.
    pub op: Op,
    /// The index that the request was made with.
    pub index: u32,
    /// A number, or what failed as a negative `errno`.
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// Whether the request goes on, or for [`Op::SendZc`], a notification follows.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The identifier of the provided buffer that was filled.
    pub fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// The socket that was accepted.
    pub fn into_socket(self) -> Option<OwnedFd> {
        if self.op != Op::Accept || self.result < 0 {
            return None;
        }
        // SAFETY: the kernel has just opened it for this process, and nobody else is told
        // of it: a completion is taken once and consumed here.
        Some(unsafe { OwnedFd::from_raw_fd(self.result) })
    }

    /// Whether it is the notification of a send without a copy: the kernel reads the
    /// buffers no more. `copied`: it copied all the same.
    pub(super) fn notification(&self) -> Option<Notification> {
        let copied = self.result as u32 & COPIED != 0;
        cqueue::notif(self.flags).then_some(Notification { copied })
    }
}

/// See [`Completion::notification`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Notification {
    pub copied: bool,
}

/// Where a ring failed to come about.
#[derive(Debug)]
pub struct SetupError {
    /// The call.
    pub call: &'static str,
    /// What the system said.
    pub source: io::Error,
}

/// A range of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The buffer.
    pub buf: u32,
    /// Where the range starts in it, bytes.
    pub offset: u16,
    /// Its length, bytes.
    pub len: u16,
}

/// How a send goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// The kernel copies, and is done with the buffers when the send is.
    Yes,
    /// It does not, and is done with them when it says so.
    No,
    /// Likewise, and it says then whether it has copied.
    NoAndTell,
}

/// The ring.
pub struct Ring {
    // Before everything that requests name: dropped first.
    uring: IoUring,
    provided: Provided,
    /// Signalled by the kernel.
    signal: OwnedFd,
    registered: bool,
    enabled: bool,
    buffers: Buffers,
    /// Ranges of the sends that were not submitted yet.
    parts: Vec<iovec>,
    /// Headers of those that have several.
    messages: Vec<msghdr>,
    /// Addresses of the connections that were not opened yet.
    names: Vec<SocketAddrAny>,
    /// Completions that were taken from the kernel, and not by the caller.
    inbox: VecDeque<cqueue::Entry>,
    /// Requests that were not submitted yet.
    waiting: u32,
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Requests that were submitted.
    pub requests: u64,
    /// Completions that were taken.
    pub completions: u64,
}

// SAFETY: the pointers in `parts` and `messages` are to the region and to these tables,
// which move with the value or are shared by all threads; they are read by the kernel
// only. The ring itself is used by the thread that enables it alone, which the kernel
// checks.
unsafe impl Send for Ring {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for about `flows` flows, which may have `provided` buffers to receive into.
    /// It does nothing before [`Ring::enable`].
    ///
    /// # Errors
    /// [`SetupError`] says which call failed, and how.
    pub fn new(flows: u32, provided: u16, buffers: Buffers) -> Result<Ring, SetupError> {
        let at = |call| move |source| SetupError { call, source };
        let requests = flows.next_power_of_two().clamp(64, REQUESTS_MAX);
        let uring = IoUring::builder()
            .dontfork()
            .setup_cqsize(4 * requests)
            .setup_submit_all()
            // One thread uses it, and takes completions when it asks for them.
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            // That thread is not started yet.
            .setup_r_disabled()
            .build(requests)
            .map_err(at("io_uring_setup"))?;
        if !(uring.params().is_feature_nodrop() && uring.params().is_feature_submit_stable()) {
            let source = io::ErrorKind::Unsupported.into();
            return Err(SetupError { call: "io_uring_setup", source });
        }
        let provided = Provided::new(provided).map_err(at("mmap"))?;
        let entries = provided.entries();
        // SAFETY: the memory is `entries` long, and the ring is dropped before it.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(provided.address(), entries, GROUP, 0)
        }
        .map_err(at("io_uring_register (IORING_REGISTER_PBUF_RING)"))?;
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let signal = signal.map_err(|errno| at("eventfd")(errno.into()))?;
        let registered = uring.submitter().register_eventfd(signal.as_raw_fd());
        registered.map_err(at("io_uring_register (IORING_REGISTER_EVENTFD)"))?;
        Ok(Ring {
            uring,
            provided,
            signal,
            registered: true,
            enabled: false,
            buffers,
            parts: Vec::with_capacity(PARTS_TOTAL),
            messages: Vec::with_capacity(MESSAGES_MAX),
            names: Vec::with_capacity(NAMES_MAX),
            inbox: VecDeque::with_capacity(INBOX),
            waiting: 0,
            enters: 0,
            requests: 0,
            completions: 0,
        })
    }

    /// Makes the calling thread the one that uses the ring. Once is enough.
    pub fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.uring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// The buffers that the kernel may fill.
    pub(super) fn provided(&self) -> &Provided {
        &self.provided
    }

    /// Adds a buffer that the kernel may fill from `offset` on, after
    /// [`Ring::publish_provided`]. False if there is no room, or no such range.
    pub fn provide(&mut self, buf: u32, offset: u16) -> bool {
        let len = self.buffers.size().saturating_sub(offset.into());
        let data = self.buffers.as_mut_ptr(buf, offset.into(), len);
        data.is_ok_and(|data| self.provided.push(buf, data, len as u32))
    }

    /// Lets the kernel see the buffers that were added.
    pub fn publish_provided(&mut self) {
        self.provided.publish();
    }

    /// The buffer that a completion names. `None` if the kernel has no such.
    pub fn take_provided(&mut self, id: u16) -> Option<u32> {
        self.provided.take(id)
    }

    /// Takes all buffers back from the kernel, which receives nothing any more.
    pub(super) fn withdraw_provided(&mut self) -> impl Iterator<Item = u32> {
        if self.registered {
            let gone = self.uring.submitter().unregister_buf_ring(GROUP);
            self.registered = gone.is_err();
        }
        // A buffer that the kernel could still fill stays with it.
        (!self.registered).then(|| self.provided.drain()).into_iter().flatten()
    }

    /// Whether `requests` can be made before [`Ring::enter`] is called, one of them a
    /// send or a connection.
    pub fn has_room(&mut self, requests: usize) -> bool {
        let queue = self.uring.submission();
        queue.capacity() - queue.len() >= requests
            && self.parts.capacity() - self.parts.len() >= PARTS_MAX
            && self.messages.len() < self.messages.capacity()
            && self.names.len() < self.names.capacity()
    }

    /// Whether [`Ring::enter`] would do anything.
    pub fn has_work(&mut self) -> bool {
        let queue = self.uring.submission();
        self.waiting > 0 || queue.taskrun() || queue.cq_overflow()
    }

    /// Whether a completion waits.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.inbox.is_empty() || !self.uring.completion().is_empty()
    }

    /// Has the descriptor say what comes from now on. True if something is there already.
    pub(super) fn arm(&mut self) -> bool {
        // What was said so far is taken first, and then looked for.
        let taken = rustix::io::read(&self.signal, &mut [0; 8]);
        debug_assert!(matches!(taken, Ok(8) | Err(Errno::AGAIN)), "{taken:?}");
        self.has_work() || self.has_completions()
    }

    /// Gives the kernel all requests, and has it do what it has put off. Never blocks.
    ///
    /// # Errors
    /// What the system said. Where it was only short of something, that is no error: the
    /// rest waits for the next call.
    pub fn enter(&mut self) -> io::Result<()> {
        self.enters += 1;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument follows, and what the requests name lives as said above.
        let entered =
            unsafe { self.uring.submitter().enter::<libc::sigset_t>(self.waiting, 0, flags, None) };
        self.submitted(entered)
    }

    /// As [`Ring::enter`], but waits for a completion, `limit` at most.
    pub fn enter_and_wait(&mut self, limit: Duration) -> io::Result<()> {
        self.enters += 1;
        let time = Timespec::from(limit);
        let args = SubmitArgs::new().timespec(&time);
        let entered = self.uring.submitter().submit_with_args(1, &args);
        self.submitted(entered)
    }

    fn submitted(&mut self, entered: io::Result<usize>) -> io::Result<()> {
        match entered.as_ref().map_err(io::Error::raw_os_error) {
            Ok(_) => {}
            // EBUSY: completions are to be taken first. ETIME: the wait is over.
            Err(Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME)) => {}
            Err(_) => return entered.map(drop),
        }
        let left = self.uring.submission().len() as u32;
        self.requests += u64::from(self.waiting.saturating_sub(left));
        self.waiting = left;
        if left == 0 {
            self.parts.clear();
            self.messages.clear();
            self.names.clear();
        }
        Ok(())
    }

    /// The next completion, if one waits.
    pub fn take_completion(&mut self) -> Option<Completion> {
        if self.inbox.is_empty() {
            self.inbox.extend(self.uring.completion().take(INBOX));
        }
        let entry = self.inbox.pop_front()?;
        self.completions += 1;
        let token = entry.user_data();
        // A token of ours, as the kernel gives it back.
        let op = *Op::ALL.get((token >> 32) as usize)?;
        Some(Completion { op, index: token as u32, result: entry.result(), flags: entry.flags() })
    }

    /// Makes a request. There is room: see [`Ring::has_room`].
    fn push(&mut self, entry: Entry, op: Op, index: u32) {
        let entry = entry.user_data(op.token(index));
        // SAFETY: all entries are made below, by the rule at the top.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "has_room was asked");
        self.waiting += u32::from(pushed.is_ok());
    }

    /// Accepts connections until it is cancelled.
    pub fn accept(&mut self, listener: BorrowedFd<'_>, index: u32) {
        let entry = opcode::AcceptMulti::new(raw(listener)).flags(libc::SOCK_CLOEXEC);
        self.push(entry.build(), Op::Accept, index);
    }

    /// Receives into provided buffers until it is cancelled, or there are none.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, index: u32) {
        self.push(opcode::RecvMulti::new(raw(socket), GROUP).build(), Op::Receive, index);
    }

    /// Sends ranges of buffers, all of them if nothing fails: at most [`PARTS_MAX`].
    /// Ranges that lie in no buffer, and what follows them, are left out. `index` is
    /// that of the flow, or of the record of a send without a copy.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        parts: impl Iterator<Item = Part>,
        copying: Copying,
        index: u32,
    ) {
        let start = self.parts.len();
        for Part { buf, offset, len } in parts.take(PARTS_MAX) {
            let (offset, len) = (usize::from(offset), usize::from(len));
            let Ok(data) = self.buffers.as_ptr(buf, offset, len) else { break };
            debug_assert!(self.parts.len() < self.parts.capacity(), "has_room was asked");
            self.parts.push(iovec { iov_base: data.cast_mut().cast(), iov_len: len });
        }
        let count = self.parts.len() - start;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let told = if copying == Copying::NoAndTell { REPORT_USAGE } else { 0 };
        let (entry, op) = if let [part] = &self.parts[start..] {
            let (data, len) = (part.iov_base.cast::<u8>().cast_const(), part.iov_len as u32);
            match copying {
                Copying::Yes => {
                    let send = opcode::Send::new(raw(socket), data, len).flags(flags);
                    (send.build(), Op::Send)
                }
                Copying::No | Copying::NoAndTell => {
                    let send = opcode::SendZc::new(raw(socket), data, len).flags(flags);
                    (send.zc_flags(told).build(), Op::SendZc)
                }
            }
        } else {
            // SAFETY: `msghdr` is made of integers and of pointers that may be null.
            let mut message: msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = self.parts[start..].as_ptr().cast_mut();
            message.msg_iovlen = count as _;
            debug_assert!(self.messages.len() < self.messages.capacity(), "has_room was asked");
            let at = self.messages.len();
            self.messages.push(message);
            let message = &raw const self.messages[at];
            let flags = flags as u32;
            match copying {
                Copying::Yes => {
                    let send = opcode::SendMsg::new(raw(socket), message).flags(flags);
                    (send.build(), Op::Send)
                }
                Copying::No | Copying::NoAndTell => {
                    let send = opcode::SendMsgZc::new(raw(socket), message).flags(flags);
                    (send.ioprio(told).build(), Op::SendZc)
                }
            }
        };
        self.push(entry, op, index);
    }

    /// Opens a connection.
    pub(super) fn connect(&mut self, socket: BorrowedFd<'_>, to: SocketAddrAny, index: u32) {
        debug_assert!(self.names.len() < self.names.capacity(), "has_room was asked");
        let at = self.names.len();
        self.names.push(to);
        let name = &self.names[at];
        let entry = opcode::Connect::new(raw(socket), name.as_ptr().cast(), name.addr_len());
        self.push(entry.build(), Op::Connect, index);
    }

    /// Closes a socket.
    pub fn close(&mut self, socket: OwnedFd, index: u32) {
        self.push(opcode::Close::new(Fd(socket.into_raw_fd())).build(), Op::Close, index);
    }

    /// Cancels a request; both complete.
    pub(super) fn cancel(&mut self, op: Op, index: u32) {
        self.push(opcode::AsyncCancel::new(op.token(index)).build(), Op::Cancel, index);
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

fn raw(fd: BorrowedFd<'_>) -> Fd {
    Fd(fd.as_raw_fd())
}
