//! Regions as files: created, opened, damaged, cut, locked, and mapped by a
//! peer that means ill.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use paste_abi::superblock::{COPY_OFFSETS, HOST_HEAD_LEN, MAGIC, STATE_CLEAN, STATE_OPEN};
use paste_pmem::{
    Backing, Expect, Geometry, HugePages, Identity, MapError, Mapping, Opened, Region, RegionError,
    SIZE_MIN, SuperblockError, Uuid,
};
use tempfile::TempDir;

const UUID: Uuid = Uuid([0xa5; 16]);
const SIZE: u64 = 8 << 20;
const IDENTITY: Identity<'_> = Identity { guest: "web1", uuid: UUID, created_ns: 77 };
const EXPECT: Expect<'_> = Expect { guest: "web1", uuid: None, size: None, buffer_size: None };

struct Place {
    _dir: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web1.region");
    Place { _dir: dir, path }
}

fn create(path: &Path) -> Region {
    let geometry = Geometry::new(SIZE, 2048).unwrap();
    Region::create(&Backing::File(path.to_owned()), geometry, &IDENTITY).unwrap()
}

fn memory(size: u64) -> Region {
    let geometry = Geometry::new(size, 2048).unwrap();
    Region::create(&Backing::Memory(HugePages::No), geometry, &IDENTITY).unwrap()
}

fn open(path: &Path) -> Result<(Region, Opened), RegionError> {
    Region::open(path, &EXPECT)
}

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn flip(path: &Path, offset: u64) {
    let file = writable(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
}

#[test]
fn what_is_written_is_found_again() {
    let place = place();
    let region = create(&place.path);
    let geometry = *region.geometry();
    let last = geometry.buffer_count() - 1;
    region.buffers().write(last, 2040, b"the end!").unwrap();
    region.close().unwrap();

    let (region, opened) = open(&place.path).unwrap();
    assert_eq!(opened, Opened { clean: true, repaired: None });
    assert_eq!(region.uuid(), UUID);
    assert_eq!(region.guest(), "web1");
    assert_eq!(region.created_ns(), 77);
    assert_eq!(*region.geometry(), geometry);
    assert_eq!(region.guest_len(), SIZE - HOST_HEAD_LEN);
    let mut tail = [0; 8];
    region.buffers().read(last, 2040, &mut tail).unwrap();
    assert_eq!(&tail, b"the end!");
}

#[test]
fn a_region_that_was_not_closed_says_so() {
    let place = place();
    drop(create(&place.path));
    let (region, opened) = open(&place.path).unwrap();
    assert!(!opened.clean);
    region.close().unwrap();
    assert!(open(&place.path).unwrap().1.clean);
    assert!(!open(&place.path).unwrap().1.clean);
}

#[test]
fn the_file_holds_three_superblocks_and_the_dax_block() {
    let place = place();
    let state = |at: u64| {
        let mut bytes = [0; 16];
        File::open(&place.path).unwrap().read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(bytes[..8], MAGIC);
        u32::from_le_bytes(bytes[12..16].try_into().unwrap())
    };
    let region = create(&place.path);
    let places = [COPY_OFFSETS[0], COPY_OFFSETS[1], HOST_HEAD_LEN];
    assert_eq!(places.map(state), [STATE_OPEN; 3]);
    region.close().unwrap();
    assert_eq!(places.map(state), [STATE_CLEAN; 3]);

    let head = &fs::read(&place.path).unwrap()[..COPY_OFFSETS[0] as usize];
    assert!(head[..4096].iter().chain(&head[8192..]).all(|&b| b == 0));
    // Its every byte is judged beside its code; here, that it is this region's.
    assert_eq!(&head[4096..4112], b"NVDIMM_DAX_INFO\0");
    assert_eq!(head[4112..4128], UUID.0);
    assert_eq!(head[4096 + 64..4096 + 72], ((SIZE - HOST_HEAD_LEN) / 4096).to_le_bytes());
}

#[test]
fn creating_never_touches_a_file_that_is_there() {
    let place = place();
    fs::write(&place.path, b"precious").unwrap();
    let geometry = Geometry::new(SIZE, 2048).unwrap();
    let error =
        Region::create(&Backing::File(place.path.clone()), geometry, &IDENTITY).unwrap_err();
    assert!(matches!(error, RegionError::Exists { .. }), "{error}");
    assert_eq!(fs::read(&place.path).unwrap(), b"precious");
}

#[test]
fn a_creation_that_fails_leaves_no_file() {
    let place = place();
    let geometry = Geometry::new(SIZE, 2048).unwrap();
    let nameless = Identity { guest: "", ..IDENTITY };
    let error =
        Region::create(&Backing::File(place.path.clone()), geometry, &nameless).unwrap_err();
    assert!(matches!(error, RegionError::Name { .. }), "{error}");
    assert!(!place.path.exists());
}

#[test]
fn two_cannot_serve_one_region() {
    let place = place();
    let region = create(&place.path);
    assert!(matches!(open(&place.path), Err(RegionError::InUse { .. })));
    // A guest that keeps its descriptor does not keep the lock.
    let guests = region.fd().try_clone_to_owned().unwrap();
    region.close().unwrap();
    let (region, _) = open(&place.path).unwrap();
    assert!(matches!(open(&place.path), Err(RegionError::InUse { .. })));
    drop((region, guests));
}

#[test]
fn a_damaged_copy_is_repaired_and_reported() {
    let place = place();
    create(&place.path).close().unwrap();
    for (copy, offset) in COPY_OFFSETS.into_iter().enumerate() {
        // Every bit is tried beside the superblock's code; here the way to the file.
        for byte in (0..512).step_by(31) {
            flip(&place.path, offset + byte);
            let (region, opened) = open(&place.path).unwrap();
            assert_eq!(opened, Opened { clean: true, repaired: Some(copy) }, "byte {byte}");
            region.close().unwrap();
            let (region, opened) = open(&place.path).unwrap();
            assert_eq!(opened, Opened { clean: true, repaired: None }, "byte {byte}");
            region.close().unwrap();
        }
    }
}

#[test]
fn two_damaged_copies_are_an_error_and_nothing_is_written() {
    let place = place();
    create(&place.path).close().unwrap();
    flip(&place.path, COPY_OFFSETS[0] + 100);
    flip(&place.path, COPY_OFFSETS[1] + 101);
    let before = fs::read(&place.path).unwrap();
    let error = open(&place.path).unwrap_err();
    assert!(
        matches!(error, RegionError::Superblock { error: SuperblockError::Damaged, .. }),
        "{error}"
    );
    assert!(fs::read(&place.path).unwrap() == before);
}

#[test]
fn a_write_torn_between_the_copies_leaves_the_newer_one() {
    let place = place();
    drop(create(&place.path));
    let mut old = [0; 512];
    writable(&place.path).read_exact_at(&mut old, COPY_OFFSETS[1]).unwrap();
    let (region, _) = open(&place.path).unwrap();
    region.close().unwrap();
    writable(&place.path).write_all_at(&old, COPY_OFFSETS[1]).unwrap();
    // The old copy says open, the newer one clean.
    assert_eq!(open(&place.path).unwrap().1, Opened { clean: true, repaired: None });
}

#[test]
fn what_the_guest_writes_over_its_copy_is_never_believed() {
    let place = place();
    create(&place.path).close().unwrap();
    writable(&place.path).write_all_at(&[0xff; 4096], HOST_HEAD_LEN).unwrap();
    assert_eq!(open(&place.path).unwrap().1, Opened { clean: true, repaired: None });
}

#[test]
fn each_wrong_expectation_has_its_error() {
    let place = place();
    create(&place.path).close().unwrap();
    let expecting = |expect: Expect<'_>| Region::open(&place.path, &expect).map(|_| ());
    let other = Uuid([1; 16]);
    let size = Some(SIZE + (2 << 20));
    assert!(matches!(
        expecting(Expect { guest: "web2", ..EXPECT }),
        Err(RegionError::Guest { have, want, .. }) if have == "web1" && want == "web2"
    ));
    assert!(matches!(
        expecting(Expect { uuid: Some(other), ..EXPECT }),
        Err(RegionError::Identity { have: UUID, want, .. }) if want == other
    ));
    assert!(matches!(
        expecting(Expect { size, ..EXPECT }),
        Err(RegionError::Size { have: SIZE, .. })
    ));
    assert!(matches!(
        expecting(Expect { buffer_size: Some(4096), ..EXPECT }),
        Err(RegionError::BufferSize { have: 2048, want: 4096, .. })
    ));
    let all = Expect { uuid: Some(UUID), size: Some(SIZE), buffer_size: Some(2048), guest: "web1" };
    expecting(all).unwrap();
}

#[test]
fn files_that_were_cut_or_grown_are_refused() {
    let place = place();
    create(&place.path).close().unwrap();
    let file = writable(&place.path);
    for len in [SIZE + 1, SIZE + (2 << 20), SIZE - 1, SIZE_MIN] {
        file.set_len(len).unwrap();
        let error = open(&place.path).unwrap_err();
        assert!(
            matches!(error, RegionError::Size { have, want: SIZE, .. } if have == len),
            "{len}: {error}"
        );
    }
    for len in [SIZE_MIN - 1, COPY_OFFSETS[0], 1, 0] {
        file.set_len(len).unwrap();
        let error = open(&place.path).unwrap_err();
        assert!(
            matches!(error, RegionError::Size { have, want: SIZE_MIN, .. } if have == len),
            "{len}: {error}"
        );
    }
    // Long enough again, but with nothing in it.
    file.set_len(SIZE).unwrap();
    assert!(matches!(
        open(&place.path),
        Err(RegionError::Superblock { error: SuperblockError::Absent, .. })
    ));
}

#[test]
fn what_is_no_region_is_refused_without_waiting() {
    let place = place();
    let dir = place.path.parent().unwrap();
    assert!(matches!(open(&dir.join("absent")), Err(RegionError::NotFound { .. })));
    assert!(matches!(open(dir), Err(RegionError::NotAFile { .. })));
    assert!(matches!(open(Path::new("/dev/null")), Err(RegionError::Device { .. })));
    let fifo = dir.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    assert!(matches!(open(&fifo), Err(RegionError::NotAFile { .. })));
}

#[test]
fn messages_say_which_what_and_what_to_do() {
    let place = place();
    let region = create(&place.path);
    let message = open(&place.path).unwrap_err().to_string();
    drop(region);
    assert!(message.contains("web1.region"), "{message}");
    assert!(message.contains("in use by another process"), "{message}");
    assert!(message.contains("stop that one"), "{message}");
}

#[test]
fn memory_is_sealed_against_cutting_and_growing() {
    let region = memory(SIZE);
    let file = File::from(region.fd().try_clone_to_owned().unwrap());
    assert!(file.set_len(SIZE - 4096).is_err());
    assert!(file.set_len(SIZE + 4096).is_err());
    assert_eq!(file.metadata().unwrap().len(), SIZE);
}

#[test]
fn huge_pages_are_there_or_their_lack_is_said() {
    let geometry = Geometry::new(SIZE, 2048).unwrap();
    match Region::create(&Backing::Memory(HugePages::TwoMiB), geometry, &IDENTITY) {
        Ok(region) => {
            let last = region.geometry().buffer_count() - 1;
            region.buffers().write(last, 0, b"x").unwrap();
            region.close().unwrap();
        }
        Err(error) => assert!(matches!(error, RegionError::NoRoom { .. }), "{error}"),
    }
}

#[test]
fn two_mappings_of_one_region_show_the_same_bytes() {
    let region = memory(SIZE);
    let guest =
        Mapping::from_fd(region.fd(), region.guest_offset(), region.guest_len() as usize, true)
            .unwrap();
    let at = region.geometry().buffers().offset as usize + 3 * 2048 + 130;
    assert!(guest.write_at(at, b"GET / HTTP/1.1"));
    let mut request = [0; 14];
    region.buffers().read(3, 130, &mut request).unwrap();
    assert_eq!(&request, b"GET / HTTP/1.1");
}

#[test]
fn mappings_are_judged_against_the_file() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let map = |offset, len| Mapping::from_fd(file.as_fd(), offset, len, true);
    assert!(matches!(map(0, 0), Err(MapError::Empty)));
    assert!(matches!(map(1, 4096), Err(MapError::Unaligned { .. })));
    assert!(matches!(map(0, 8193), Err(MapError::TooShort { have: 8192, .. })));
    assert!(matches!(map(8192, 1), Err(MapError::TooShort { .. })));
    assert!(matches!(map(u64::MAX - 4095, 8192), Err(MapError::TooShort { .. })));
    let mapping = map(4096, 4096).unwrap();
    assert!(mapping.write_at(4095, b"x"));
    assert!(!mapping.write_at(4095, b"xy"));
    assert!(!mapping.read_at(usize::MAX, &mut [0; 2]));

    let read_only = File::open("/proc/self/exe").unwrap();
    assert!(matches!(
        Mapping::from_fd(read_only.as_fd(), 0, 4096, true),
        Err(MapError::System { call: "mmap", .. })
    ));
}

#[test]
fn a_file_cut_under_a_mapping_poisons_it_and_nothing_else() {
    const LEN: usize = 4 * 4096;
    let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let [cut, whole] = files.each_ref().map(|file| {
        file.set_len(LEN as u64).unwrap();
        let mapping = Mapping::from_fd(file.as_fd(), 0, LEN, true).unwrap();
        assert!(mapping.write_at(0, &[0xee; LEN]));
        mapping
    });
    files[0].set_len(4096).unwrap();

    let mut bytes = [1; LEN];
    assert!(cut.read_at(0, &mut bytes[..4096]));
    assert!(bytes[..4096].iter().all(|&b| b == 0xee));
    assert!(!cut.is_poisoned(), "nothing beyond the end was touched yet");

    assert!(cut.read_at(4096, &mut bytes[4096..]));
    assert!(bytes[4096..].iter().all(|&b| b == 0));
    assert!(cut.is_poisoned());
    assert!(cut.write_at(LEN - 1, &[7]));

    assert!(whole.read_at(0, &mut bytes));
    assert!(bytes.iter().all(|&b| b == 0xee));
    assert!(!whole.is_poisoned());
}

#[test]
fn a_mapping_after_a_poisoned_one_starts_clean() {
    for _ in 0..3 {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mapping = Mapping::from_fd(file.as_fd(), 0, 4096, true).unwrap();
        assert!(!mapping.is_poisoned());
        file.set_len(0).unwrap();
        assert!(mapping.write_at(0, &[1]));
        assert!(mapping.is_poisoned());
    }
}

#[test]
fn many_threads_survive_cut_files_at_once() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..200 {
                    let file = tempfile::tempfile().unwrap();
                    file.set_len(16384).unwrap();
                    let mapping = Mapping::from_fd(file.as_fd(), 4096, 12288, true).unwrap();
                    file.set_len(0).unwrap();
                    let mut bytes = [1; 12288];
                    assert!(mapping.read_at(0, &mut bytes));
                    assert_eq!(bytes, [0; 12288]);
                    assert!(mapping.is_poisoned());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
