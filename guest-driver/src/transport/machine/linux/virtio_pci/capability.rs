//! Where a device has its structures: the vendor-specific capabilities in its
//! configuration space (VIRTIO 1.2 section 4.1.4; PCI 3.0 section 6.7). They say anything
//! that the device wants; what is found here lies in memory that the device has.

use crate::transport::PciError;
use crate::transport::machine::linux::sys::pci::CONFIG_LEN;

/// The status register, and the bit that says that there is a list.
const STATUS: usize = 0x06;
const HAS_LIST: u8 = 1 << 4;
/// Where the list starts; what the header before it leaves room for.
const FIRST: usize = 0x34;
const HEADER_LEN: usize = 0x40;
const VENDOR_SPECIFIC: u8 = 0x09;
/// Entries of a list that does not pass the same byte twice.
const ENTRIES_MAX: usize = (CONFIG_LEN - HEADER_LEN) / 4;
/// `struct virtio_pci_cap`, and what `virtio_pci_notify_cap` has behind it.
const CAP_LEN: usize = 16;
const MULTIPLIER_LEN: usize = 4;
/// Devices have six; other numbers are reserved.
const BARS: u8 = 6;

/// A part of a BAR, within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) bar: u8,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// The structures that a driver needs (section 4.1.4.3 to 4.1.4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Areas {
    pub(super) common: Area,
    pub(super) notify: Area,
    /// Bytes between the places to notify two queues that follow each other.
    pub(super) notify_multiplier: u32,
    pub(super) isr: Area,
    pub(super) device: Area,
}

/// A structure as a driver must find it.
struct Kind {
    cfg_type: u8,
    name: &'static str,
    /// Bytes that it has at least, and that its offset is a multiple of.
    least: u32,
    align: u32,
}

const COMMON: Kind = Kind { cfg_type: 1, name: "common configuration", least: 56, align: 4 };
const NOTIFY: Kind = Kind { cfg_type: 2, name: "notification", least: 2, align: 2 };
const ISR: Kind = Kind { cfg_type: 3, name: "ISR status", least: 1, align: 1 };
/// Of a network device, the address at its beginning (section 5.1.4).
const DEVICE: Kind = Kind { cfg_type: 4, name: "device configuration", least: 6, align: 4 };

/// Finds the structures in a configuration space. `bars` are the bytes of each BAR that is
/// memory which can be mapped.
pub(super) fn find(config: &[u8], bars: &[Option<u64>; 6]) -> Result<Areas, PciError> {
    let config: &[u8; CONFIG_LEN] = config.first_chunk().ok_or(PciError::Hidden)?;
    let find = |kind: Kind| first(config, &kind, bars);
    let (common, _) = find(COMMON)?;
    let (notify, notify_at) = find(NOTIFY)?;
    let (isr, _) = find(ISR)?;
    let (device, _) = find(DEVICE)?;
    let multiplier = word(config, notify_at + CAP_LEN).ok_or(PciError::Capabilities)?;
    Ok(Areas { common, notify, notify_multiplier: multiplier, isr, device })
}

/// The first structure of a kind, which is the one that the device prefers, and where its
/// capability is.
fn first(
    config: &[u8; CONFIG_LEN],
    kind: &Kind,
    bars: &[Option<u64>; 6],
) -> Result<(Area, usize), PciError> {
    if config[STATUS] & HAS_LIST == 0 {
        return Err(PciError::Missing(kind.name));
    }
    let mut at = usize::from(config[FIRST] & !3);
    for _ in 0..ENTRIES_MAX {
        if at == 0 {
            return Err(PciError::Missing(kind.name));
        }
        let Some([id, next, len, cfg_type, bar, ..]) =
            config.get(at..).filter(|_| at >= HEADER_LEN).and_then(|rest| rest.first_chunk::<5>())
        else {
            return Err(PciError::Capabilities);
        };
        // Of no other vendor, as the vendor of the device says; and of no kind that is to
        // come, or in a BAR of such.
        if *id == VENDOR_SPECIFIC && *cfg_type == kind.cfg_type && *bar < BARS {
            let more = if kind.cfg_type == NOTIFY.cfg_type { MULTIPLIER_LEN } else { 0 };
            let is_whole = usize::from(*len) >= CAP_LEN + more && at + CAP_LEN + more <= CONFIG_LEN;
            let (Some(offset), Some(len), true) =
                (word(config, at + 8), word(config, at + 12), is_whole)
            else {
                return Err(PciError::Capabilities);
            };
            let area = Area { bar: *bar, offset, len };
            judge(kind, area, bars)?;
            return Ok((area, at));
        }
        at = usize::from(*next & !3);
    }
    Err(PciError::Capabilities)
}

fn judge(kind: &Kind, area: Area, bars: &[Option<u64>; 6]) -> Result<(), PciError> {
    let Area { bar, offset, len } = area;
    let why = match bars[usize::from(bar)] {
        None => "is in no memory that could be mapped",
        Some(have) if u64::from(offset) + u64::from(len) > have => "does not lie within it",
        Some(_) if len < kind.least => "is too short",
        Some(_) if !offset.is_multiple_of(kind.align) => "is not aligned",
        Some(_) => return Ok(()),
    };
    Err(PciError::Structure { what: kind.name, bar, offset, len, why })
}

/// The little-endian word there.
fn word(config: &[u8; CONFIG_LEN], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*config.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BARS: [Option<u64>; 6] = [None, Some(4096), None, None, Some(0x4000), None];

    /// Adds a capability at `at`, with `next` behind it.
    fn add(config: &mut [u8], at: usize, next: u8, kind: u8, bar: u8, offset: u32, len: u32) {
        let cap_len = if kind == NOTIFY.cfg_type { 20 } else { 16 };
        config[at..at + 5].copy_from_slice(&[VENDOR_SPECIFIC, next, cap_len, kind, bar]);
        config[at + 8..at + 12].copy_from_slice(&offset.to_le_bytes());
        config[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
    }

    /// As QEMU has them.
    fn config() -> Vec<u8> {
        let mut config = vec![0; CONFIG_LEN];
        config[STATUS] = HAS_LIST;
        config[FIRST] = 0x98;
        config[0x98..0x9a].copy_from_slice(&[0x11, 0x84]);
        add(&mut config, 0x84, 0x70, 5, 0, 0, 0);
        add(&mut config, 0x70, 0x60, 2, 4, 0x3000, 0x1000);
        config[0x80..0x84].copy_from_slice(&4u32.to_le_bytes());
        add(&mut config, 0x60, 0x50, 4, 4, 0x2000, 0x1000);
        add(&mut config, 0x50, 0x40, 3, 4, 0x1000, 0x1000);
        add(&mut config, 0x40, 0, 1, 4, 0, 0x1000);
        config
    }

    #[test]
    fn the_structures_are_found_where_the_device_says() {
        let area = |offset| Area { bar: 4, offset, len: 0x1000 };
        let found = find(&config(), &BARS).unwrap();
        let all = [found.common, found.isr, found.device, found.notify].map(|area| area.offset);
        assert_eq!(all, [0, 0x1000, 0x2000, 0x3000]);
        assert_eq!((found.common, found.notify_multiplier), (area(0), 4));
    }

    #[test]
    fn the_first_of_a_kind_counts_and_those_in_reserved_bars_do_not() {
        let mut config = config();
        // Before all others: one in a BAR that there cannot be, and then another one.
        config[FIRST] = 0xa4;
        add(&mut config, 0xa4, 0xb8, 3, 6, 0, 0x1000);
        add(&mut config, 0xb8, 0x98, 3, 1, 8, 4);
        let found = find(&config, &BARS).unwrap();
        assert_eq!(found.isr, Area { bar: 1, offset: 8, len: 4 });
        assert_eq!(found.common.bar, 4);
    }

    #[test]
    fn a_structure_that_is_not_there_or_elsewhere_is_refused() {
        type Spoil = fn(&mut Vec<u8>);
        let cases: [(Spoil, &str); 11] = [
            (|c| c[STATUS] = 0, "no common configuration structure"),
            (|c| c[0x43] = 9, "no common configuration structure"),
            (|c| c[0x53] = 0, "no ISR status structure"),
            (|c| c[0x44] = 0, "is in no memory"),
            (|c| c[0x64] = 1, "device configuration structure, 4096 bytes at 0x2000 of BAR 1"),
            (|c| c[0x4c..0x50].copy_from_slice(&55u32.to_le_bytes()), "is too short"),
            (|c| c[0x48..0x50].fill(0xff), "does not lie within"),
            (|c| c[0x48] = 2, "is not aligned"),
            (|c| c[0x72] = 16, "list of capabilities"),
            // A list that leads into the header, and one that has no end.
            (|c| c[0x51] = 0x20, "list of capabilities"),
            (|c| c[0x41..0x44].copy_from_slice(&[0x98, 16, 9]), "list of capabilities"),
        ];
        for (number, (spoil, says)) in cases.into_iter().enumerate() {
            let mut config = config();
            spoil(&mut config);
            let said = find(&config, &BARS).unwrap_err().to_string();
            assert!(said.contains(says), "{number}: {said}");
        }
        assert!(matches!(find(&config()[..64], &BARS), Err(PciError::Hidden)));
    }

    proptest! {
        /// Whatever is in it: what is found lies in a BAR, and the search ends.
        #[test]
        fn what_is_found_lies_in_memory(
            bytes in prop::collection::vec(any::<u8>(), CONFIG_LEN),
            changes in prop::collection::vec((0x34usize..0xa8, any::<u8>()), 0..12),
            valid in any::<bool>(),
        ) {
            let mut config = if valid { config() } else { bytes };
            for (at, byte) in changes {
                config[at] = byte;
            }
            if let Ok(found) = find(&config, &BARS) {
                for area in [found.common, found.notify, found.isr, found.device] {
                    let have = BARS[usize::from(area.bar)].unwrap();
                    prop_assert!(u64::from(area.offset) + u64::from(area.len) <= have);
                    prop_assert!(area.len >= 1);
                }
            }
        }
    }
}
