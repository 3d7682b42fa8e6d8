//! Regions in memory that a VMM has made: new, found again, restored, and refused.

#![cfg(target_os = "linux")]

use std::os::fd::{AsFd, OwnedFd};

use paste_abi::superblock::HOST_HEAD_LEN;
use paste_pmem::{
    Backing, Domain, FlushRange, Geometry, Identity, Mapping, Opened, Origin, Provided, Region,
    RegionError, Segment, SegmentError, Spec, Uuid, provide,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

const SIZE: u64 = 4 << 20;

/// What a VMM makes.
fn memory(len: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("segment", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, len).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn segment(fd: &OwnedFd) -> Segment {
    Segment::new(fd.try_clone().unwrap(), SIZE).unwrap()
}

fn provided(
    fd: &OwnedFd,
    guest: &str,
    mirror: Option<&std::path::Path>,
) -> Result<Provided, RegionError> {
    let spec = Spec {
        backing: Backing::Segment(segment(fd)),
        mirror: mirror.map(ToOwned::to_owned),
        geometry: Geometry::new(SIZE, 2048).unwrap(),
        identity: Identity { guest, uuid: Uuid::random().unwrap(), created_ns: 77 },
    };
    provide(&spec, &mut |_, _| {})
}

fn loaded<const N: usize>(region: &Region, offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    assert!(region.mapping().read_at(offset, &mut bytes));
    bytes
}

#[test]
fn a_region_is_made_in_it_and_found_again() {
    let fd = memory(SIZE, SealFlags::SHRINK);
    let Provided { region, origin, made } = provided(&fd, "web1", None).unwrap();
    assert_eq!((origin, made.len()), (Origin::New, 0));
    assert_eq!(region.domain(), Domain::None);
    let uuid = region.uuid();
    assert!(region.mapping().write_at(100_000, b"stored"));
    // The guest maps what is behind the head.
    let len = region.guest_len() as usize;
    let guest = Mapping::from_fd(fd.as_fd(), HOST_HEAD_LEN, len, true).unwrap();
    let mut seen = [0; 6];
    assert!(guest.read_at(100_000, &mut seen));
    assert_eq!(&seen, b"stored");
    // Neither a crash nor a good end of the process is the end of the segment.
    drop(region);
    for clean in [false, true] {
        let Provided { region, origin, .. } = provided(&fd, "web1", None).unwrap();
        assert_eq!(origin, Origin::File(Opened { clean, repaired: None }));
        assert_eq!(region.uuid(), uuid);
        assert_eq!(&loaded(&region, 100_000), b"stored");
        region.close().unwrap();
    }
}

#[test]
fn a_new_one_is_restored_from_the_mirror_and_an_old_one_is_newer() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = dir.path().join("mirror");
    let first = memory(SIZE, SealFlags::SHRINK);
    let Provided { region, .. } = provided(&first, "web1", Some(&mirror)).unwrap();
    assert_eq!(region.domain(), Domain::Mirror);
    let uuid = region.uuid();
    assert!(region.mapping().write_at(100_000, b"flushed"));
    let mut flusher = region.flusher().unwrap().unwrap();
    flusher.add(FlushRange { offset: 100_000, len: 7 }).unwrap();
    flusher.commit(0).unwrap();
    drop(flusher);
    assert!(region.mapping().write_at(200_000, b"not flushed"));
    drop(region);
    // The same machine, another process: nothing that its guest stored is lost.
    let Provided { region, origin, .. } = provided(&first, "web1", Some(&mirror)).unwrap();
    assert!(matches!(origin, Origin::File(_)));
    assert_eq!(&loaded(&region, 200_000), b"not flushed");
    drop(region);
    // Another machine.
    let second = memory(SIZE, SealFlags::SHRINK);
    let Provided { region, origin, .. } = provided(&second, "web1", Some(&mirror)).unwrap();
    assert!(matches!(origin, Origin::Mirror(_)));
    assert_eq!(region.uuid(), uuid);
    assert_eq!(&loaded(&region, 100_000), b"flushed");
    region.close().unwrap();
    // The first one comes back, with what is older now.
    let Provided { region, origin, .. } = provided(&first, "web1", Some(&mirror)).unwrap();
    assert!(matches!(origin, Origin::Mirror(_)));
    assert_eq!(&loaded(&region, 100_000), b"flushed");
}

#[test]
fn what_is_no_segment_of_this_guest_is_refused() {
    let refused = |fd: OwnedFd| Segment::new(fd, SIZE).unwrap_err();
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    ftruncate(&file, SIZE).unwrap();
    assert!(matches!(refused(file), SegmentError::NotMemory | SegmentError::Unsealed));
    let null: OwnedFd = std::fs::File::open("/dev/zero").unwrap().into();
    assert!(matches!(refused(null), SegmentError::NotMemory));
    assert!(matches!(refused(memory(SIZE, SealFlags::empty())), SegmentError::Unsealed));
    for len in [SIZE / 2, SIZE + 4096] {
        let error = refused(memory(len, SealFlags::SHRINK));
        assert!(matches!(error, SegmentError::Size { want: SIZE, .. }), "{error}");
    }
    // Read-only memory cannot be served.
    let fd = memory(SIZE, SealFlags::SHRINK | SealFlags::WRITE);
    let error = provided(&fd, "web1", None).unwrap_err();
    assert!(matches!(error, RegionError::Map { .. }), "{error}");

    let fd = memory(SIZE, SealFlags::SHRINK);
    provided(&fd, "web1", None).unwrap();
    let error = provided(&fd, "web2", None).unwrap_err();
    assert!(error.to_string().contains("belongs to guest \"web1\""), "{error}");
    // Somebody's data is not written over.
    let fd = memory(SIZE, SealFlags::SHRINK);
    rustix::io::pwrite(&fd, b"precious", 3 << 20).unwrap();
    let error = provided(&fd, "web1", None).unwrap_err();
    assert!(matches!(error, RegionError::ForeignSegment { .. }), "{error}");
    let mut found = [0; 8];
    rustix::io::pread(&fd, &mut found, 3 << 20).unwrap();
    assert_eq!(&found, b"precious");
}
