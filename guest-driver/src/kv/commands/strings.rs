//! Values: SET and GET and their relatives.

use std::borrow::Cow;

use super::{Arguments, Context, Done, Failure, NOT_INTEGER, SYNTAX};
use crate::kv::extent::{Bytes, Extent};
use crate::kv::region::Region;
use crate::kv::request::{self, Argument, BULK_MAX, bulk_len};
use crate::kv::store::Part;

/// When a key ends that a command sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    Never,
    Keep,
    At(u64),
}

pub(super) fn get<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let found = cx.find(1)?;
    cx.answer_value(found);
    Ok(())
}

pub(super) fn getdel<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let found = cx.find(1)?;
    cx.store.admit_deletions(cx.region, std::iter::once(cx.scratch.key.len()))?;
    cx.answer_value(found);
    cx.store.delete(cx.region, cx.now_ms, &cx.scratch.key, false)?;
    Ok(())
}

pub(super) fn strlen<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let len = cx.find(1)?.map_or(0, |found| found.len());
    cx.out.integer(len as i64);
    Ok(())
}

pub(super) fn mget<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    for number in 1..cx.arguments.len() {
        cx.key(number)?;
    }
    cx.out.array(cx.arguments.len() - 1);
    for number in 1..cx.arguments.len() {
        let found = cx.find(number)?;
        cx.answer_value(found);
    }
    Ok(())
}

pub(super) fn set<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let (mut must_be, mut get, mut expiry) = (None, false, None);
    let mut at = 3;
    while at < cx.arguments.len() {
        let more = at + 1 < cx.arguments.len();
        let unit = match cx.word(at) {
            b"nx" if must_be != Some(true) => {
                must_be = Some(false);
                None
            }
            b"xx" if must_be != Some(false) => {
                must_be = Some(true);
                None
            }
            b"get" => {
                get = true;
                None
            }
            b"keepttl" if expiry.is_none() => {
                expiry = Some(Expiry::Keep);
                None
            }
            b"ex" if more && expiry.is_none() => Some((1000, false)),
            b"px" if more && expiry.is_none() => Some((1, false)),
            b"exat" if more && expiry.is_none() => Some((1000, true)),
            b"pxat" if more && expiry.is_none() => Some((1, true)),
            _ => return Err(SYNTAX),
        };
        if let Some((unit, absolute)) = unit {
            at += 1;
            let ends = match cx.integer(at)? {
                number @ 1.. => number.checked_mul(unit),
                _ => None,
            };
            let base = if absolute { 0 } else { cx.now_ms as i64 };
            let ends = ends.and_then(|ends| ends.checked_add(base));
            let ends = ends
                .ok_or(Failure::Error(Cow::Borrowed("ERR invalid expire time in 'set' command")))?;
            expiry = Some(Expiry::At(ends as u64));
        }
        at += 1;
    }
    let found = cx.find(1)?;
    if must_be.is_some_and(|must_be| must_be != found.is_some()) {
        if get {
            cx.answer_value(found)
        } else {
            cx.out.nil()
        }
        return Ok(());
    }
    cx.store.admit(cx.region, std::iter::once((cx.arguments.len_of(1), cx.arguments.len_of(2))))?;
    if get {
        cx.answer_value(found);
    }
    let ends = match expiry.unwrap_or(Expiry::Never) {
        Expiry::Never => 0,
        Expiry::Keep => found.map_or(0, |found| found.expires_ms()),
        Expiry::At(ends) => ends,
    };
    set_argument(cx, 2, ends, false)?;
    if !get {
        cx.out.simple("OK");
    }
    Ok(())
}

pub(super) fn mset<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let count = cx.arguments.len();
    if count.is_multiple_of(2) {
        return Err(super::wrong_arity("mset"));
    }
    for number in (1..count).step_by(2) {
        cx.key(number)?;
    }
    let arguments = cx.arguments;
    let lens = |number| (arguments.len_of(number), arguments.len_of(number + 1));
    cx.store.admit(cx.region, (1..count).step_by(2).map(lens))?;
    for number in (1..count).step_by(2) {
        cx.key(number)?;
        set_argument(cx, number + 1, 0, number + 2 < count)?;
    }
    cx.out.simple("OK");
    Ok(())
}

/// Gives the key that was copied out the value of an argument.
fn set_argument<R: Region + Bytes>(
    cx: &mut Context<'_, R>,
    number: usize,
    ends: u64,
    more: bool,
) -> Done {
    let len = cx.arguments.len_of(number);
    let scratch = &mut *cx.scratch;
    if cx.store.packs(len) {
        cx.arguments.copy(cx.region, number, &mut scratch.value);
        cx.store.set_packed(cx.region, &scratch.key, &scratch.value, ends, more)?;
        return Ok(());
    }
    scratch.extents.clear();
    raw(cx.arguments, number, &mut scratch.extents);
    if scratch.extents.is_empty() {
        // An inline argument is nowhere in the region.
        cx.arguments.copy(cx.region, number, &mut scratch.value);
        let head = format!("${len}\r\n");
        let parts =
            [Part::Bytes(head.as_bytes()), Part::Bytes(&scratch.value), Part::Bytes(b"\r\n")];
        cx.store.set_bulk(cx.region, &scratch.key, len, &parts, ends, more)?;
        return Ok(());
    }
    let parts: Vec<Part<'_>> = scratch.extents.iter().map(|extent| Part::Range(*extent)).collect();
    cx.store.set_bulk(cx.region, &scratch.key, len, &parts, ends, more)?;
    Ok(())
}

fn raw(arguments: Arguments<'_>, number: usize, out: &mut Vec<Extent>) {
    if let Some(argument @ Argument::Bulk { .. }) = arguments.at(number) {
        argument.raw(arguments.chain, out);
    }
}

pub(super) fn append<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let found = cx.find(1)?;
    let Some(found) = found else {
        cx.store
            .admit(cx.region, std::iter::once((cx.arguments.len_of(1), cx.arguments.len_of(2))))?;
        set_argument(cx, 2, 0, false)?;
        cx.out.integer(cx.arguments.len_of(2) as i64);
        return Ok(());
    };
    let (old, added) = (found.len(), cx.arguments.len_of(2));
    let len = old + added;
    if len > BULK_MAX {
        return Err(Failure::error("ERR string exceeds maximum allowed size (proto-max-bulk-len)"));
    }
    cx.store.admit(cx.region, std::iter::once((cx.scratch.key.len(), len)))?;
    let (ends, scratch) = (found.expires_ms(), &mut *cx.scratch);
    cx.arguments.copy(cx.region, 2, &mut scratch.word);
    if cx.store.packs(len) {
        scratch.value.clear();
        if let Some(extent) = found.packed() {
            scratch.value.extend_from_slice(cx.region.bytes(extent));
        }
        scratch.value.extend_from_slice(&scratch.word);
        cx.store.set_packed(cx.region, &scratch.key, &scratch.value, ends, false)?;
        cx.out.integer(len as i64);
        return Ok(());
    }
    let head = format!("${len}\r\n");
    scratch.extents.clear();
    scratch.value.clear();
    match found.packed() {
        Some(extent) => scratch.value.extend_from_slice(cx.region.bytes(extent)),
        None => {
            cx.store.bulk(cx.region, &found, &mut scratch.extents);
            trim(&mut scratch.extents, bulk_len(old) - old - 2, 2);
        }
    }
    // What is added stays where it is, if it is long enough.
    let mut tail = Vec::new();
    raw(cx.arguments, 2, &mut tail);
    trim(&mut tail, bulk_len(added) - added - 2, 0);
    let mut parts = vec![Part::Bytes(head.as_bytes()), Part::Bytes(&scratch.value)];
    parts.extend(scratch.extents.iter().map(|extent| Part::Range(*extent)));
    if tail.is_empty() {
        parts.extend([Part::Bytes(&scratch.word), Part::Bytes(b"\r\n")]);
    } else {
        parts.extend(tail.iter().map(|extent| Part::Range(*extent)));
    }
    cx.store.set_bulk(cx.region, &scratch.key, len, &parts, ends, false)?;
    cx.out.integer(len as i64);
    Ok(())
}

/// Cuts bytes off both ends of a chain of extents.
fn trim(extents: &mut Vec<Extent>, mut front: usize, mut back: usize) {
    extents.retain_mut(|extent| {
        let cut = front.min(extent.len.into());
        front -= cut;
        *extent = extent.skip(cut);
        extent.len > 0
    });
    while let Some(last) = extents.last_mut()
        && back > 0
    {
        let cut = back.min(last.len.into());
        back -= cut;
        *last = last.first(usize::from(last.len) - cut);
        if last.len == 0 {
            extents.pop();
        }
    }
}

pub(super) fn incr<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    add(cx, 1)
}

pub(super) fn decr<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    add(cx, -1)
}

pub(super) fn incrby<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let by = cx.integer(2)?;
    add(cx, by)
}

pub(super) fn decrby<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    match cx.integer(2)?.checked_neg() {
        Some(by) => add(cx, by),
        None => Err(Failure::error("ERR decrement would overflow")),
    }
}

fn add<R: Region + Bytes>(cx: &mut Context<'_, R>, by: i64) -> Done {
    let found = cx.find(1)?;
    let old = match &found {
        None => 0,
        Some(found) => {
            let extent = found.packed().ok_or(NOT_INTEGER)?;
            request::integer(cx.region.bytes(extent)).ok_or(NOT_INTEGER)?
        }
    };
    let new = old
        .checked_add(by)
        .ok_or_else(|| Failure::error("ERR increment or decrement would overflow"))?;
    let text = new.to_string();
    cx.store.admit(cx.region, std::iter::once((cx.scratch.key.len(), text.len())))?;
    let ends = found.map_or(0, |found| found.expires_ms());
    cx.store.set_packed(cx.region, &cx.scratch.key, text.as_bytes(), ends, false)?;
    cx.out.integer(new);
    Ok(())
}
