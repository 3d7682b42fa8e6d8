//! The block in the host's head that makes a Linux guest show what it maps as
//! `/dev/dax0.0` at boot, with no tool in the guest: the info block that the
//! `nd_pmem` driver looks for at offset 4096 of a namespace without labels.
//!
//! Layout and checksum are those of `struct nd_pfn_sb` in the kernel's
//! `drivers/nvdimm/pfn.h`. The pages' descriptors are kept in the guest's RAM
//! ("map=mem"), so the guest's kernel writes nothing to the region.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::uuid::Uuid;

/// Where the block lies in the file.
pub(crate) const BLOCK_OFFSET: u64 = 4096;
/// Bytes of the block.
pub(crate) const BLOCK_LEN: usize = 4096;
/// "DAX": what follows is a character device, not a block device.
const SIGNATURE: [u8; 16] = *b"NVDIMM_DAX_INFO\0";
/// Version 1.4: the first with `page_size` and `page_struct_size`.
const VERSION: (u16, u16) = (1, 4);
/// The pages' descriptors are in RAM.
const MODE_RAM: u32 = 1;
const PAGE: u32 = 4096;
/// Bytes of the kernel's `struct page`.
const PAGE_STRUCT: u16 = 64;
/// What the device is mapped in, as regions come in steps of it: descriptors of
/// small pages would cost the guest four times the RAM.
const ALIGN: u32 = 2 << 20;

/// The info block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Info {
    signature: [u8; 16],
    uuid: [u8; 16],
    /// Zero: there are no labels.
    parent_uuid: [u8; 16],
    flags: U32,
    version_major: U16,
    version_minor: U16,
    dataoff: U64,
    npfns: U64,
    mode: U32,
    start_pad: U32,
    end_trunc: U32,
    align: U32,
    page_size: U32,
    page_struct_size: U16,
    padding: [u8; 3994],
    checksum: U64,
}

const _: () = assert!(size_of::<Info>() == BLOCK_LEN);

/// The block of a region of `file_len` bytes whose guest maps from `data_offset` on.
pub(crate) fn block(uuid: Uuid, file_len: u64, data_offset: u64) -> [u8; BLOCK_LEN] {
    build(uuid, file_len, data_offset, MODE_RAM, ALIGN)
}

fn build(uuid: Uuid, file_len: u64, dataoff: u64, mode: u32, align: u32) -> [u8; BLOCK_LEN] {
    let mut info = Info::new_zeroed();
    info.signature = SIGNATURE;
    info.uuid = uuid.0;
    info.version_major = VERSION.0.into();
    info.version_minor = VERSION.1.into();
    info.dataoff = dataoff.into();
    info.npfns = (file_len.saturating_sub(dataoff) / u64::from(PAGE)).into();
    info.mode = mode.into();
    info.align = align.into();
    info.page_size = PAGE.into();
    info.page_struct_size = PAGE_STRUCT.into();
    info.checksum = checksum(&info).into();
    zerocopy::transmute!(info)
}

/// The kernel's Fletcher-64 over the block without its checksum.
fn checksum(info: &Info) -> u64 {
    let (words, _) = info.as_bytes()[..BLOCK_LEN - size_of::<u64>()].as_chunks::<4>();
    let (mut low, mut high) = (0u32, 0u32);
    // Two words of zeros stand where the checksum is.
    for word in words.iter().chain(&[[0; 4]; 2]) {
        low = low.wrapping_add(u32::from_le_bytes(*word));
        high = high.wrapping_add(low);
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Whether `bytes` are a block that a guest would take.
pub(crate) fn is_sound(bytes: &[u8; BLOCK_LEN]) -> bool {
    let info: Info = zerocopy::transmute!(*bytes);
    info.signature == SIGNATURE
        && info.parent_uuid == [0; 16]
        && info.checksum.get() == checksum(&info)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by ndctl on Linux 6.12 for 256 MiB.
    #[test]
    fn the_blocks_of_ndctl_are_made_byte_for_byte() {
        for (uuid, align, mode, dataoff, npfns, want) in [
            (
                "5268e23e-971b-46f2-ad7e-9b7338e55ca9",
                4096,
                1,
                0x20_0000,
                65024,
                0x78f7_1997_2598_483a,
            ),
            (
                "2ed7fe00-6ea6-4f46-9eef-cd3bccc04c97",
                2 << 20,
                1,
                0x20_0000,
                65024,
                0x37d2_3142_f200_7e72,
            ),
            (
                "824de63c-54ef-4190-aec6-3b68298d0003",
                4096,
                2,
                0x60_0000,
                64000,
                0x46d4_da77_101b_ed1a,
            ),
            (
                "dc3a7370-b8e5-4066-abba-c36d185cd48e",
                2 << 20,
                2,
                0x60_0000,
                64000,
                0x7267_eca4_ab23_83c4,
            ),
        ] {
            let bytes = build(uuid.parse().unwrap(), 256 << 20, dataoff, mode, align);
            let info: Info = zerocopy::transmute!(bytes);
            assert_eq!(info.npfns.get(), npfns);
            assert_eq!(info.checksum.get(), want, "{uuid}");
            assert!(is_sound(&bytes));
        }
    }

    #[test]
    fn the_fields_lie_where_the_kernel_reads_them() {
        let bytes = block(Uuid([7; 16]), 64 << 20, 2 << 20);
        assert_eq!(&bytes[..16], b"NVDIMM_DAX_INFO\0");
        assert_eq!(bytes[16..32], [7; 16]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(u32_at(52), 4 << 16 | 1);
        assert_eq!((u32_at(56), u32_at(60)), (2 << 20, 0));
        assert_eq!(u32_at(64), (62 << 20) / 4096);
        assert_eq!([72, 76, 80, 84, 88].map(u32_at), [1, 0, 0, 2 << 20, 4096]);
        assert_eq!(u16::from_le_bytes([bytes[92], bytes[93]]), 64);
        assert!(bytes[94..4088].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let sound = block(Uuid([7; 16]), 64 << 20, 2 << 20);
        for bit in (0..BLOCK_LEN * 8).step_by(7) {
            let mut bytes = sound;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_sound(&bytes), "bit {bit}");
        }
    }
}
