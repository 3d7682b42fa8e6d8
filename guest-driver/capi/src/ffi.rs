//! The functions of the header. What is `unsafe` about pointers from C is here.

#![allow(unsafe_code, non_camel_case_types)]

use std::ffi::{CStr, CString, c_char};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use paste_abi::{Flow, Reason};
use paste_guest::{Endpoint, Timeout};

use crate::error::{self, Failure, PASTE_EINVAL, PASTE_OK, guard};
use crate::port::{Port, Wanted};
use crate::types::{paste_buf, paste_options, paste_port, paste_ring};

pub(crate) fn null(what: &str) -> Failure {
    Failure::new(PASTE_EINVAL, format!("{what} is NULL"))
}

/// Text of C's.
///
/// # Safety
/// It is null, or ends with a zero and stays as it is.
unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(null(what));
    }
    // SAFETY: not null; the rest is the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::new(PASTE_EINVAL, format!("{what} is not UTF-8")))
}

/// Does `work` with the port, unless there is none.
///
/// # Safety
/// The port is null, or was opened and is not closed, and no other call uses it.
pub(crate) unsafe fn with(
    port: *mut paste_port,
    work: impl FnOnce(&mut Port) -> Result<i32, Failure>,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; C has the ring's memory, and none of the port's.
        let port = unsafe { port.as_mut() }.ok_or_else(|| null("port"))?;
        port.inner.run(work)
    })
}

/// # Safety
/// As of [`paste_open`].
unsafe fn open(
    endpoint: impl FnOnce() -> Result<Endpoint, Failure>,
    options: *const paste_options,
    port: *mut *mut paste_port,
) -> i32 {
    guard(|| {
        if port.is_null() {
            return Err(null("port"));
        }
        // SAFETY: not null, and for us to write to.
        unsafe { port.write(ptr::null_mut()) };
        // SAFETY: null, or a structure that the caller lends for this call.
        let wanted = match unsafe { options.as_ref() } {
            None => Wanted::default(),
            Some(options) => Wanted {
                name: match options.name.is_null() {
                    true => None,
                    // SAFETY: ends with a zero, as the header says.
                    false => Some(unsafe { text(options.name, "options->name") }?.to_owned()),
                },
                ring_slots: options.ring_slots,
                reserve: options.reserve,
                poll_us: options.poll_us,
                channel: options.channel,
                inline: options.inline_slots != 0,
            },
        };
        let inner = Port::open(&endpoint()?, wanted)?;
        // SAFETY: as above.
        unsafe { port.write(Box::into_raw(Box::new(paste_port { inner }))) };
        Ok(PASTE_OK)
    })
}

/// Opens a stack port of the backend that listens at `socket`, a Unix socket: this
/// process is the guest. Waits until it is open. `options` may be NULL. Writes the port
/// to `*port`, or NULL on a failure.
///
/// # Safety
/// `socket` ends with a zero; the others are valid or, where that is allowed, NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_open(
    socket: *const c_char,
    options: *const paste_options,
    port: *mut *mut paste_port,
) -> i32 {
    // SAFETY: the caller's promises, and a socket that ends with a zero.
    let endpoint =
        || unsafe { text(socket, "socket") }.map(|s| Endpoint::vhost_user(PathBuf::from(s)));
    // SAFETY: the caller's promises are the ones asked for.
    unsafe { open(endpoint, options, port) }
}

/// As paste_open, inside a virtual machine: by its network device `interface`, with the
/// region that its kernel shows at `region`, such as "/dev/dax0.0"; or "pci", for the PCI
/// device that has it, an ivshmem or paste-region device, or "pci:0000:00:06.0", for the
/// one at this address. Without one, NULL, payload travels in the frames.
///
/// # Safety
/// As of [`paste_open`], for both texts; `region` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_open_device(
    interface: *const c_char,
    region: *const c_char,
    options: *const paste_options,
    port: *mut *mut paste_port,
) -> i32 {
    let endpoint = || {
        // SAFETY: the caller's promises.
        let (interface, region) = unsafe { in_machine(interface, "interface", region) }?;
        Ok(Endpoint::Packet { interface, region })
    };
    // SAFETY: the caller's promises are the ones asked for.
    unsafe { open(endpoint, options, port) }
}

/// As paste_open_device, by a virtio-net device that the machine's kernel has given away:
/// this process drives it, and alone. `address` is where it is on the PCI bus, such as
/// "0000:00:05.0". It is bound to uio_pci_generic; one huge page of 2 MiB is free; and it
/// takes root. PASTE_EINVAL if there is no such device, or one that cannot be driven so.
///
/// # Safety
/// As of [`paste_open`], for both texts; `region` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_open_pci(
    address: *const c_char,
    region: *const c_char,
    options: *const paste_options,
    port: *mut *mut paste_port,
) -> i32 {
    let endpoint = || {
        // SAFETY: the caller's promises.
        let (address, region) = unsafe { in_machine(address, "address", region) }?;
        Ok(Endpoint::VirtioPci { address, region })
    };
    // SAFETY: the caller's promises are the ones asked for.
    unsafe { open(endpoint, options, port) }
}

/// What a virtual machine has: the device that is named, and the region if it has one.
///
/// # Safety
/// Both texts are null, or end with a zero.
unsafe fn in_machine(
    named: *const c_char,
    what: &str,
    region: *const c_char,
) -> Result<(String, Option<PathBuf>), Failure> {
    // SAFETY: the caller's promise.
    let named = unsafe { text(named, what) }?;
    let region = match region.is_null() {
        true => None,
        // SAFETY: likewise.
        false => Some(PathBuf::from(unsafe { text(region, "region") }?)),
    };
    Ok((named.to_owned(), region))
}

/// Ends the conversation in good order and frees the port, whatever it returns. The ring
/// and all buffers are gone. NULL is nothing to close.
///
/// # Safety
/// The port was opened and is not closed; nothing uses it or its ring any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_close(port: *mut paste_port) -> i32 {
    guard(|| {
        if port.is_null() {
            return Ok(PASTE_OK);
        }
        // SAFETY: came from a box in `open`, and is not used again.
        let port = unsafe { Box::from_raw(port) };
        port.inner.shutdown().map(|()| PASTE_OK)
    })
}

/// The ring of the port, which stays where it is until the port is closed. NULL for NULL.
///
/// # Safety
/// The port is open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_ring_of(port: *mut paste_port) -> *mut paste_ring {
    // SAFETY: the caller's promise.
    unsafe { port.as_ref() }.map_or(ptr::null_mut(), |port| port.inner.ring())
}

/// Gives back the buffers of all slots that `head` has passed, sends what was queued, takes
/// what has arrived, and puts it into the ring. If the ring was empty and nothing has
/// arrived, waits for up to `timeout_ms` milliseconds; -1: for ever; a signal ends the wait.
/// Returns how many slots are in the ring, which can be none.
///
/// # Safety
/// The port is open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_poll(port: *mut paste_port, timeout_ms: i32) -> i32 {
    let timeout = match u64::try_from(timeout_ms) {
        Err(_) => Timeout::Never,
        Ok(0) => Timeout::Now,
        Ok(ms) => Timeout::After(Duration::from_millis(ms)),
    };
    // SAFETY: the caller's promise.
    unsafe { with(port, |port| port.poll(timeout)) }
}

/// Accepts flows on a TCP port and waits for the host's answer. `backlog` flows may be on
/// their way to being established. Writes the listener's name to `*listener`, unless that
/// is NULL.
///
/// # Safety
/// The port is open, or NULL; `listener` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_listen(
    port: *mut paste_port,
    tcp_port: u16,
    backlog: u16,
    listener: *mut u32,
) -> i32 {
    let work = |port: &mut Port| {
        let Flow(name) = port.listen(tcp_port, backlog)?;
        if !listener.is_null() {
            // SAFETY: the caller's promise.
            unsafe { listener.write(name) };
        }
        Ok(PASTE_OK)
    };
    // SAFETY: the caller's promise.
    unsafe { with(port, work) }
}

/// As paste_listen, without waiting: PASTE_REPLY with the cookie that is written to
/// `*cookie`, unless that is NULL, names the listener or says why there is none. For a
/// server that listens again after PASTE_OPENED.
///
/// # Safety
/// The port is open, or NULL; `cookie` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_request_listen(
    port: *mut paste_port,
    tcp_port: u16,
    backlog: u16,
    cookie: *mut u64,
) -> i32 {
    // SAFETY: the caller's promises.
    unsafe { request(port, cookie, |port| port.request_listen(tcp_port, backlog)) }
}

/// Stops accepting. PASTE_REPLY with the cookie that is written to `*cookie`, unless that
/// is NULL, says when that is done.
///
/// # Safety
/// The port is open, or NULL; `cookie` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_unlisten(
    port: *mut paste_port,
    listener: u32,
    cookie: *mut u64,
) -> i32 {
    // SAFETY: the caller's promises.
    unsafe { request(port, cookie, |port| port.unlisten(Flow(listener))) }
}

/// Asks for a connection to `address`, IPv4 or IPv6 in text, from `local_port` or any (0).
/// PASTE_REPLY with the cookie that is written to `*cookie`, unless that is NULL, names the
/// flow, and PASTE_CONNECTED follows.
///
/// # Safety
/// The port is open, or NULL; `address` ends with a zero; `cookie` can be written to, or is
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_connect(
    port: *mut paste_port,
    address: *const c_char,
    tcp_port: u16,
    local_port: u16,
    cookie: *mut u64,
) -> i32 {
    let work = |port: &mut Port| {
        // SAFETY: ends with a zero.
        let said = unsafe { text(address, "address") }?;
        let ip: IpAddr = said
            .parse()
            .map_err(|_| Failure::new(PASTE_EINVAL, format!("{said:?} is no IP address")))?;
        port.connect(SocketAddr::new(ip, tcp_port), local_port)
    };
    // SAFETY: the caller's promises.
    unsafe { request(port, cookie, work) }
}

/// # Safety
/// The port is open, or null; `cookie` can be written to, or is null.
unsafe fn request(
    port: *mut paste_port,
    cookie: *mut u64,
    ask: impl FnOnce(&mut Port) -> Result<u64, Failure>,
) -> i32 {
    let work = |port: &mut Port| {
        let word = ask(port)?;
        if !cookie.is_null() {
            // SAFETY: the caller's promise.
            unsafe { cookie.write(word) };
        }
        Ok(PASTE_OK)
    };
    // SAFETY: the caller's promise.
    unsafe { with(port, work) }
}

/// Does `work` with a buffer that C names, which is no longer there afterwards if `moves`.
///
/// # Safety
/// The port is open, or null; `buf` is null or valid.
pub(crate) unsafe fn with_buf(
    port: *mut paste_port,
    buf: *mut paste_buf,
    moves: bool,
    work: impl FnOnce(&mut Port, &paste_buf) -> Result<(), Failure>,
) -> i32 {
    let work = |port: &mut Port| {
        if buf.is_null() {
            return Err(null("buf"));
        }
        // SAFETY: not null, and valid: read once.
        let named = unsafe { buf.read() };
        work(port, &named)?;
        if moves {
            // SAFETY: as above.
            unsafe { buf.write(paste_buf::NONE) };
        }
        Ok(PASTE_OK)
    };
    // SAFETY: the caller's promise.
    unsafe { with(port, work) }
}

/// Sends the range of `buf` on `flow`. On success the buffer is the host's and `buf` holds
/// none; otherwise nothing has changed. `flags` are of PASTE_SEND_NOTIFY,
/// PASTE_SEND_KEEP and PASTE_SEND_DURABLE; `cookie` comes back with PASTE_ACKED and
/// PASTE_REFUSED. It goes with the next poll.
///
/// # Safety
/// The port is open, or NULL; `buf` is valid, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_send(
    port: *mut paste_port,
    flow: u32,
    buf: *mut paste_buf,
    cookie: u64,
    flags: u32,
) -> i32 {
    // SAFETY: the caller's promises.
    unsafe { with_buf(port, buf, true, |port, buf| port.send(Flow(flow), buf, cookie, flags)) }
}

/// Writes an empty buffer to fill to `*buf`, its `off` at the first byte that may be sent.
/// PASTE_EBUSY when none is left: the next polls bring more.
///
/// # Safety
/// The port is open, or NULL; `buf` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_alloc(port: *mut paste_port, buf: *mut paste_buf) -> i32 {
    let work = |port: &mut Port| {
        if buf.is_null() {
            return Err(null("buf"));
        }
        // SAFETY: not null, and for us to write to.
        unsafe { buf.write(port.alloc()?) };
        Ok(PASTE_OK)
    };
    // SAFETY: the caller's promise.
    unsafe { with(port, work) }
}

/// Keeps the buffer of a slot when `head` passes it. It has to be sent or released later,
/// by a copy of `*buf`.
///
/// # Safety
/// The port is open, or NULL; `buf` is valid, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_keep(port: *mut paste_port, buf: *mut paste_buf) -> i32 {
    // SAFETY: the caller's promises.
    unsafe { with_buf(port, buf, false, Port::keep) }
}

/// Gives a buffer back. `buf` then holds none.
///
/// # Safety
/// The port is open, or NULL; `buf` is valid, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_release(port: *mut paste_port, buf: *mut paste_buf) -> i32 {
    // SAFETY: the caller's promises.
    unsafe { with_buf(port, buf, true, Port::release) }
}

/// Sends no more on `flow`: FIN follows what was sent so far.
///
/// # Safety
/// The port is open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_finish(port: *mut paste_port, flow: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { with(port, |port| port.finish(Flow(flow)).map(|()| PASTE_OK)) }
}

/// Resets `flow`.
///
/// # Safety
/// The port is open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_abort(port: *mut paste_port, flow: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { with(port, |port| port.abort(Flow(flow)).map(|()| PASTE_OK)) }
}

/// What was said of the calling thread's last failure: one line, never NULL, good until
/// that thread's next one.
#[unsafe(no_mangle)]
pub extern "C" fn paste_error() -> *const c_char {
    error::last()
}

/// Words for a `reason`; never NULL, and good for ever.
#[unsafe(no_mangle)]
pub extern "C" fn paste_reason(reason: u16) -> *const c_char {
    static WORDS: OnceLock<Vec<CString>> = OnceLock::new();
    let words = WORDS.get_or_init(|| {
        let all = (0..REASONS_MAX).map(|number| match Reason::from_u16(number) {
            Some(reason) => CString::new(reason.to_string()).unwrap_or_default(),
            None => c"unknown".to_owned(),
        });
        all.collect()
    });
    words.get(usize::from(reason)).unwrap_or(&words[usize::from(REASONS_MAX) - 1]).as_ptr()
}

/// All reasons are below, and the last number is none's.
const REASONS_MAX: u16 = 256;
