//! The functions of the header for durable data, and their pointers from C.

#![allow(unsafe_code, non_camel_case_types)]

use std::ffi::c_void;
use std::slice;

use paste_abi::Flow;
use paste_pmem::wal::{PIECES_MAX, TAG_MAX};

use crate::error::{Failure, PASTE_EINVAL, PASTE_OK};
use crate::ffi::{null, with, with_buf};
use crate::port::{Appended, Port};
use crate::types::{paste_buf, paste_found, paste_log_usage, paste_port, paste_record};

/// An array of C's, of at most `max`.
///
/// # Safety
/// `from` is null, or has `count` values that stay as they are.
unsafe fn array<'a, T>(
    from: *const T,
    count: u32,
    max: usize,
    what: &str,
) -> Result<&'a [T], Failure> {
    if count as usize > max {
        let message = format!("{what} has {count}: at most {max} are possible");
        return Err(Failure::new(PASTE_EINVAL, message));
    }
    if count == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(null(what));
    }
    if !from.is_aligned() {
        return Err(Failure::new(PASTE_EINVAL, format!("{what} is not aligned")));
    }
    // SAFETY: not null and aligned; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(from, count as usize) })
}

/// Does `work`, and writes what it returns to `out`, unless that is null.
///
/// # Safety
/// The port is open, or null; `out` can be written to, or is null.
unsafe fn into<T>(
    port: *mut paste_port,
    out: *mut T,
    work: impl FnOnce(&mut Port) -> Result<T, Failure>,
) -> i32 {
    let work = |port: &mut Port| {
        let value = work(port)?;
        if !out.is_null() {
            // SAFETY: the caller's promise.
            unsafe { out.write(value) };
        }
        Ok(PASTE_OK)
    };
    // SAFETY: the caller's promise.
    unsafe { with(port, work) }
}

/// Asks for the ranges of `num_ranges` buffers, the application's or stored ones, to be
/// made durable, with everything that was appended to the log before. PASTE_FLUSHED with the
/// ticket that is written to `*ticket`, unless that is NULL, tells when they are, or why not;
/// where the host has nothing to do for that, nothing is told, and paste_is_durable says so
/// at once. What it survives is the region's matter: with a mirror or in persistent memory
/// a loss of power, and otherwise the end of this program and of the backend.
///
/// # Safety
/// The port is open, or NULL; `range` has `num_ranges` values, or is NULL; `ticket` can be
/// written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_flush(
    port: *mut paste_port,
    range: *const paste_buf,
    num_ranges: u32,
    ticket: *mut u64,
) -> i32 {
    // SAFETY: the caller's promises.
    let work =
        |port: &mut Port| port.flush(unsafe { array(range, num_ranges, usize::MAX, "range") }?);
    // SAFETY: the caller's promises.
    unsafe { into(port, ticket, work) }
}

/// 1 if everything that ended with the ticket is durable, otherwise 0.
///
/// # Safety
/// The port is open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_is_durable(port: *mut paste_port, ticket: u64) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { with(port, |port| Ok(port.is_durable(ticket).into())) }
}

/// Stores a buffer: it leaves the application's hands, as with paste_send, and stays as it
/// is, to be read, and sent any number of times, by its index, which is written to `*index`,
/// unless that is NULL. On success `buf` holds none. A stored buffer is missing from the pool
/// until paste_unstore; with PASTE_LOST all are given back but those of the log, so what is
/// to survive that has to be appended. PASTE_ENOTSUP: the host lets nobody store.
///
/// # Safety
/// The port is open, or NULL; `buf` is valid, or NULL; `index` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_store(
    port: *mut paste_port,
    buf: *mut paste_buf,
    index: *mut u32,
) -> i32 {
    let work = |port: &mut Port, buf: &paste_buf| {
        let stored = port.store(buf)?;
        if !index.is_null() {
            // SAFETY: the caller's promise.
            unsafe { index.write(stored) };
        }
        Ok(())
    };
    // SAFETY: the caller's promises.
    unsafe { with_buf(port, buf, true, work) }
}

/// Writes a stored buffer, the application's or the log's, to `*buf`, its range all of it.
/// It is to be read only; it, with a range, can be given to paste_flush and in a record to
/// paste_log_append.
///
/// # Safety
/// The port is open, or NULL; `buf` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_stored(
    port: *mut paste_port,
    index: u32,
    buf: *mut paste_buf,
) -> i32 {
    let work = |port: &mut Port| {
        if buf.is_null() {
            return Err(null("buf"));
        }
        port.stored(index)
    };
    // SAFETY: the caller's promises.
    unsafe { into(port, buf, work) }
}

/// Sends `len` bytes at `off` of a stored buffer, the application's or the log's, on `flow`,
/// from where they are. It may be on its way any number of times. PASTE_ACKED or
/// PASTE_REFUSED with the cookie, and no buffer, ends each. `flags` are of PASTE_SEND_NOTIFY,
/// which goes without saying, and PASTE_SEND_DURABLE.
///
/// # Safety
/// The port is open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_send_stored(
    port: *mut paste_port,
    flow: u32,
    index: u32,
    off: u32,
    len: u32,
    cookie: u64,
    flags: u32,
) -> i32 {
    let work = |port: &mut Port| {
        port.send_stored(Flow(flow), index, (off, len), cookie, flags).map(|()| PASTE_OK)
    };
    // SAFETY: the caller's promise.
    unsafe { with(port, work) }
}

/// Gives a stored buffer back, once the last of its sends has ended. PASTE_EBUSY: it is the
/// log's, which gives it back itself.
///
/// # Safety
/// The port is open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_unstore(port: *mut paste_port, index: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { with(port, |port| port.unstore(index).map(|()| PASTE_OK)) }
}

/// Opens the log of the port's region, which a crash of this program, of the backend or of
/// the machine leaves whole, or makes one. Waits for the host, for up to 20 seconds. Then
/// `visit`, unless it is NULL, is called with `arg` for each record that holds, oldest first;
/// what it is given is good during that call, `p` of each range as long as the record is
/// there. It may use the port, but not close it. What was found and what was lost is written
/// to `*found`, unless that is NULL, before.
///
/// There is one log per region, and one program may have it open. PASTE_LOST closes it:
/// after PASTE_OPENED open it again, before listening. Records, their numbers and the
/// indices of their buffers are then as they are here, so that the application begins anew
/// with what `visit` is given. PASTE_ENOTSUP: the host lets nobody store, or the region has
/// no log. PASTE_EDAMAGED: there is one and it cannot be read. PASTE_EREFUSED: the host keeps
/// back buffers of it.
///
/// # Safety
/// The port is open, or NULL; `visit` can be called with `arg` and a record, or is NULL;
/// `found` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_log_open(
    port: *mut paste_port,
    visit: Option<unsafe extern "C" fn(arg: *mut c_void, record: *const paste_record)>,
    arg: *mut c_void,
    found: *mut paste_found,
) -> i32 {
    let mut records = Vec::new();
    let work = |port: &mut Port| {
        let report;
        (report, records) = port.open_log()?;
        Ok(report)
    };
    // SAFETY: the caller's promises.
    let opened = unsafe { into(port, found, work) };
    // The port is borrowed no more: `visit` may use it.
    if let Some(visit) = visit {
        for record in &records {
            let shown = paste_record {
                id: record.id,
                time_ns: record.time_ns,
                tag: record.tag.as_ptr(),
                piece: record.pieces.as_ptr(),
                tag_len: record.tag.len() as u32,
                num_pieces: record.pieces.len() as u32,
                num_damaged: record.damaged,
                kind: record.kind,
            };
            // SAFETY: the caller's promise.
            unsafe { visit(arg, &raw const shown) };
        }
    }
    opened
}

/// Appends a record and writes its number to `*id`, unless that is NULL. Its ranges lie in
/// buffers of the application's or in stored ones; whatever they were, they are then stored,
/// and the log's, until the last record that names them is given up. So nothing is to be
/// written to them any more, and to answer takes another buffer; they can still be read, and
/// sent with paste_send_stored; and other ranges of them can be named in other records. On a
/// failure nothing has changed. Durable with the next paste_log_commit, paste_flush or send
/// with PASTE_SEND_DURABLE. PASTE_EFULL: give up records.
///
/// # Safety
/// The port is open, or NULL; `record` is valid, with what it points to, or NULL; `id` can
/// be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_log_append(
    port: *mut paste_port,
    record: *const paste_record,
    id: *mut u64,
) -> i32 {
    let work = |port: &mut Port| {
        if record.is_null() {
            return Err(null("record"));
        }
        // SAFETY: not null, and valid: read once.
        let record = unsafe { record.read() };
        // SAFETY: the caller's promise.
        let tag = unsafe { array(record.tag, record.tag_len, TAG_MAX, "record->tag") }?;
        let pieces =
            // SAFETY: the caller's promise.
            unsafe { array(record.piece, record.num_pieces, PIECES_MAX, "record->piece") }?;
        port.append(&Appended { kind: record.kind, time_ns: record.time_ns, tag, pieces })
    };
    // SAFETY: the caller's promises.
    unsafe { into(port, id, work) }
}

/// Ends the epoch: everything that was appended is durable when the ticket that is written to
/// `*ticket`, unless that is NULL, is reached, as with paste_flush.
///
/// # Safety
/// The port is open, or NULL; `ticket` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_log_commit(port: *mut paste_port, ticket: *mut u64) -> i32 {
    // SAFETY: the caller's promises.
    unsafe { into(port, ticket, Port::commit) }
}

/// Gives up the record with this number and all before it; what replaces them was appended
/// before. That is made durable, and their room is free and their buffers given back, by the
/// polls that follow. Until then a crash may leave them in the log.
///
/// # Safety
/// The port is open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_log_give_up(port: *mut paste_port, id: u64) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { with(port, |port| port.give_up(id).map(|()| PASTE_OK)) }
}

/// Writes how much the log has to `*usage`: what tells when to give up records.
///
/// # Safety
/// The port is open, or NULL; `usage` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paste_log_usage_of(
    port: *mut paste_port,
    usage: *mut paste_log_usage,
) -> i32 {
    let work = |port: &mut Port| {
        if usage.is_null() {
            return Err(null("usage"));
        }
        port.log_usage()
    };
    // SAFETY: the caller's promises.
    unsafe { into(port, usage, work) }
}
