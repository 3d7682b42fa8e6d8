//! The numbers that a kernel gives its functions, which a program calls them by: found in
//! what the kernel says of its own types (`Documentation/bpf/btf.rst` of Linux,
//! `/sys/kernel/btf/vmlinux`). Whatever stands there, nothing is read beyond it.

/// Bytes of a type without what may follow it, and of the header that is known here.
const TYPE_LEN: usize = 12;
const HEADER_LEN: usize = 24;
const MAGIC: u16 = 0xeb9f;
const KIND_FUNC: u32 = 12;

/// Why no number was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BtfError {
    /// It is of another version or order of bytes, or cut short.
    #[error("what the kernel says of its types is not of a form that is known here")]
    Form,
    /// There is no such function.
    #[error("the kernel has no function for it (Linux 6.3)")]
    Absent,
}

/// The number of the function of this name. Linear in all types.
pub(super) fn function(btf: &[u8], name: &str) -> Result<u32, BtfError> {
    let header = btf.get(..HEADER_LEN).ok_or(BtfError::Form)?;
    let (magic, version) = (u16::from_ne_bytes([header[0], header[1]]), header[2]);
    if magic != MAGIC || version != 1 {
        return Err(BtfError::Form);
    }
    let header_len = word(header, 4)? as usize;
    let section = |offset, len| {
        let (offset, len) = (word(header, offset)? as usize, word(header, len)? as usize);
        let rest = btf.get(header_len..).and_then(|rest| rest.get(offset..));
        rest.and_then(|rest| rest.get(..len)).ok_or(BtfError::Form)
    };
    let (mut rest, names) = (section(8, 12)?, section(16, 20)?);
    // Type 0 is `void`, and stands nowhere.
    for number in 1u32.. {
        if rest.is_empty() {
            break;
        }
        let (at, info) = (word(rest, 0)?, word(rest, 4)?);
        let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        if kind == KIND_FUNC && is_name(names, at, name) {
            return Ok(number);
        }
        let more = match kind {
            // An integer, a variable, a tag of a declaration; an array.
            1 | 14 | 17 => 4,
            3 => 12,
            // Members, values, parameters and sections.
            4 | 5 | 15 | 19 => 12 * count,
            6 | 13 => 8 * count,
            2 | 7..=12 | 16 | 18 => 0,
            _ => return Err(BtfError::Form),
        };
        rest = rest.get(TYPE_LEN + more..).ok_or(BtfError::Form)?;
    }
    Err(BtfError::Absent)
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|word| u32::from_ne_bytes(*word)).ok_or(BtfError::Form)
}

/// Whether the name at `at` of all is this one, with the zero behind it.
fn is_name(names: &[u8], at: u32, name: &str) -> bool {
    let rest = usize::try_from(at).ok().and_then(|at| names.get(at..)).unwrap_or_default();
    rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel has it: an integer, functions among structures, and their names.
    fn small() -> Vec<u8> {
        let names = b"\0int\0first\0first_of_all\0last\0";
        let (first, of_all, last) = (5u32, 11, 24);
        let mut types = Vec::new();
        let mut put = |words: &[u32]| words.iter().for_each(|w| types.extend(w.to_ne_bytes()));
        put(&[1, 1 << 24, 4, 32]);
        put(&[0, 13 << 24 | 2, 1, 0, 1, 0, 1]);
        put(&[of_all, 12 << 24, 2]);
        put(&[first, 4 << 24 | 1, 4, 1, 1, 0]);
        put(&[first, 12 << 24 | 1, 2]);
        put(&[last, 12 << 24, 2]);
        let mut btf = MAGIC.to_ne_bytes().to_vec();
        btf.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, names.len() as u32] {
            btf.extend(word.to_ne_bytes());
        }
        [&btf, &types, &names[..]].concat()
    }

    #[test]
    fn functions_are_found_by_their_whole_names() {
        let btf = small();
        assert_eq!(function(&btf, "first_of_all"), Ok(3));
        assert_eq!(function(&btf, "first"), Ok(5));
        assert_eq!(function(&btf, "last"), Ok(6));
        for name in ["int", "firs", "all", "absent"] {
            assert_eq!(function(&btf, name), Err(BtfError::Absent), "{name}");
        }
        for len in 0..btf.len() {
            assert!(function(&btf[..len], "last").is_err(), "{len}");
        }
        for (at, byte) in [(0, 0), (2, 2), (24 + 7, 31), (4, 255), (13, 255), (17, 255)] {
            let mut wrong = btf.clone();
            wrong[at] = byte;
            assert_eq!(function(&wrong, "last"), Err(BtfError::Form), "{at}");
        }
    }

    #[test]
    fn the_kernels_own_is_understood() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("skipped: this kernel says nothing of its types");
            return;
        };
        assert!(function(&btf, "bpf_xdp_metadata_rx_hash").is_ok());
        assert_eq!(function(&btf, "no_function_of_the_kernels"), Err(BtfError::Absent));
    }

    proptest! {
        #[test]
        fn whatever_stands_there_is_judged(
            changes in proptest::collection::vec((0usize..300, any::<u8>()), 1..8),
        ) {
            let mut btf = small();
            let len = btf.len();
            for (at, byte) in changes {
                btf[at % len] = byte;
            }
            let _ = function(&btf, "last");
        }
    }
}
