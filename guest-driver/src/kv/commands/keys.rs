//! Keys: whether they are there, and how long.

use super::{Context, Done, Failure, NOT_INTEGER, SYNTAX, glob};
use crate::kv::extent::Bytes;
use crate::kv::region::Region;
use crate::kv::request;

/// Keys that one SCAN asks for at most, whatever its COUNT.
const COUNT_MAX: usize = 1024;

pub(super) fn dbsize<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    cx.out.integer(cx.store.len() as i64);
    Ok(())
}

pub(super) fn exists<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let mut count = 0;
    for number in 1..cx.arguments.len() {
        count += i64::from(cx.find(number)?.is_some());
    }
    cx.out.integer(count);
    Ok(())
}

pub(super) fn del<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    for number in 1..cx.arguments.len() {
        cx.key(number)?;
    }
    let (arguments, count) = (cx.arguments, cx.arguments.len());
    let lens = (1..count).map(|number| arguments.len_of(number));
    cx.store.admit_deletions(cx.region, lens)?;
    let several = count > 2;
    let mut deleted = 0;
    for number in 1..count {
        cx.key(number)?;
        let was = cx.store.delete(cx.region, cx.now_ms, &cx.scratch.key, several)?;
        deleted += i64::from(was);
    }
    if several {
        cx.store.end_request(cx.region)?;
    }
    cx.out.integer(deleted);
    Ok(())
}

pub(super) fn flushall<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    if cx.arguments.len() > 2 || (cx.arguments.len() == 2 && !is_flush_mode(cx.word(1))) {
        return Err(SYNTAX);
    }
    cx.store.clear(cx.region)?;
    cx.out.simple("OK");
    Ok(())
}

fn is_flush_mode(word: &[u8]) -> bool {
    matches!(word, b"sync" | b"async")
}

pub(super) fn type_of<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let there = cx.find(1)?.is_some();
    cx.out.simple(if there { "string" } else { "none" });
    Ok(())
}

pub(super) fn ttl<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    left(cx, |ms| (ms + 500) / 1000)
}

pub(super) fn pttl<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    left(cx, |ms| ms)
}

fn left<R: Region + Bytes>(cx: &mut Context<'_, R>, unit: impl Fn(u64) -> u64) -> Done {
    let left = match cx.find(1)? {
        None => -2,
        Some(found) if found.expires_ms() == 0 => -1,
        Some(found) => unit(found.expires_ms().saturating_sub(cx.now_ms)) as i64,
    };
    cx.out.integer(left);
    Ok(())
}

pub(super) fn persist<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let done = match cx.find(1)? {
        Some(found) if found.expires_ms() != 0 => {
            cx.store.set_expiry(cx.region, &found, 0)?;
            1
        }
        _ => 0,
    };
    cx.out.integer(done);
    Ok(())
}

pub(super) fn expire<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    expire_in(cx, "expire", 1000)
}

pub(super) fn pexpire<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    expire_in(cx, "pexpire", 1)
}

fn expire_in<R: Region + Bytes>(cx: &mut Context<'_, R>, name: &str, unit: i64) -> Done {
    let ends = cx.integer(2)?.checked_mul(unit);
    let ends = ends
        .and_then(|ends| ends.checked_add(cx.now_ms as i64))
        .ok_or_else(|| Failure::error(format!("ERR invalid expire time in '{name}' command")))?;
    if cx.arguments.len() > 4 {
        return Err(SYNTAX);
    }
    let option = if cx.arguments.len() == 4 { Some(cx.word(3).to_vec()) } else { None };
    let Some(found) = cx.find(1)? else {
        cx.out.integer(0);
        return Ok(());
    };
    let old = found.expires_ms();
    let wanted = match option.as_deref() {
        None => true,
        Some(b"nx") => old == 0,
        Some(b"xx") => old != 0,
        Some(b"gt") => old != 0 && ends > old as i64,
        Some(b"lt") => old == 0 || ends < old as i64,
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            return Err(Failure::error(format!("ERR Unsupported option {other}")));
        }
    };
    if wanted && ends <= cx.now_ms as i64 {
        cx.store.delete(cx.region, cx.now_ms, &cx.scratch.key, false)?;
    } else if wanted {
        cx.store.set_expiry(cx.region, &found, ends as u64)?;
    }
    cx.out.integer(wanted.into());
    Ok(())
}

pub(super) fn scan<R: Region + Bytes>(cx: &mut Context<'_, R>) -> Done {
    let cursor = std::str::from_utf8(cx.word(1)).ok().and_then(|text| text.parse::<u64>().ok());
    let mut cursor = cursor.ok_or_else(|| Failure::error("ERR invalid cursor"))?;
    let (mut pattern, mut count, mut of_type) = (None, 10, true);
    for at in (2..cx.arguments.len()).step_by(2) {
        if at + 1 == cx.arguments.len() {
            return Err(SYNTAX);
        }
        match cx.word(at) {
            b"match" => {
                let mut bytes = Vec::new();
                cx.arguments.copy(cx.region, at + 1, &mut bytes);
                pattern = Some(bytes);
            }
            b"count" => {
                let asked = request::integer(cx.word(at + 1)).ok_or(NOT_INTEGER)?;
                if asked < 1 {
                    return Err(SYNTAX);
                }
                count = (asked as usize).min(COUNT_MAX);
            }
            b"type" => of_type = cx.word(at + 1) == b"string",
            _ => return Err(SYNTAX),
        }
    }
    let mut keys: Vec<Vec<u8>> = Vec::new();
    for _ in 0..count * 10 {
        cursor = cx.store.scan(cx.region, cx.now_ms, cursor, |key| {
            let like = pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, key));
            if of_type && like {
                keys.push(key.to_vec());
            }
        });
        if cursor == 0 || keys.len() >= count {
            break;
        }
    }
    cx.out.array(2);
    cx.out.bulk(cursor.to_string().as_bytes());
    cx.out.array(keys.len());
    keys.iter().for_each(|key| cx.out.bulk(key));
    Ok(())
}
