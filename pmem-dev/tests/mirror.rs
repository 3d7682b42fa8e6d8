//! Regions with a mirror: made, left in every way, and found again.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use paste_abi::superblock::{COPY_OFFSETS, HOST_HEAD_LEN};
use paste_pmem::{
    Backing, Domain, FlushRange, Geometry, HugePages, Identity, Image, Opened, Origin, Provided,
    Region, RegionError, Spec, Uuid, provide,
};
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;
const CLEAN: Opened = Opened { clean: true, repaired: None };
const LEFT_OPEN: Opened = Opened { clean: false, repaired: None };

struct Place {
    _dir: TempDir,
    region: PathBuf,
    mirror: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let [region, mirror] = ["web1.region", "web1.mirror"].map(|name| dir.path().join(name));
        Place { _dir: dir, region, mirror }
    }

    fn spec(&self, memory: bool) -> Spec<'static> {
        Spec {
            backing: if memory {
                Backing::Memory(HugePages::No)
            } else {
                Backing::File(self.region.clone())
            },
            mirror: Some(self.mirror.clone()),
            geometry: Geometry::new(SIZE, 2048).unwrap(),
            identity: Identity { guest: "web1", uuid: Uuid::random().unwrap(), created_ns: 77 },
        }
    }

    fn journal(&self) -> PathBuf {
        self.mirror.with_extension("mirror.journal")
    }

    fn file(&self) -> Result<Provided, RegionError> {
        provide(&self.spec(false), &mut |_, _| {})
    }

    fn memory(&self) -> Result<Provided, RegionError> {
        provide(&self.spec(true), &mut |_, _| {})
    }

    /// Another start of the system wrote the region's superblocks, as far as they
    /// tell.
    fn reboot(&self) {
        let file = OpenOptions::new().read(true).write(true).open(&self.region).unwrap();
        for copy in COPY_OFFSETS {
            let mut block = [0; 512];
            file.read_exact_at(&mut block, copy).unwrap();
            let boot = std::mem::offset_of!(paste_abi::superblock::Superblock, boot);
            block[boot] ^= 1;
            let crc = crc32c::crc32c(&block[..508]);
            block[508..].copy_from_slice(&crc.to_le_bytes());
            file.write_all_at(&block, copy).unwrap();
        }
    }
}

fn store(region: &Region, offset: usize, data: &[u8]) {
    assert!(region.mapping().write_at(offset, data));
}

fn flush(region: &Region, offset: u64, len: u64) {
    let mut flusher = region.flusher().unwrap().unwrap();
    flusher.add(FlushRange { offset, len }).unwrap();
    flusher.commit(0).unwrap();
}

fn loaded<const N: usize>(region: &Region, offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    assert!(region.mapping().read_at(offset, &mut bytes));
    bytes
}

#[test]
fn memory_comes_back_from_its_mirror_after_a_loss_of_power() {
    let place = Place::new();
    let Provided { region, origin, made } = place.memory().unwrap();
    assert_eq!(origin, Origin::New);
    assert_eq!(made, [place.mirror.clone(), place.journal()]);
    assert_eq!(region.domain(), Domain::Mirror);
    let uuid = region.uuid();
    store(&region, 100_000, b"flushed");
    flush(&region, 100_000, 7);
    store(&region, 300_000, b"never flushed");
    drop(region);

    let Provided { region, origin, made } = place.memory().unwrap();
    assert_eq!(origin, Origin::Mirror(LEFT_OPEN));
    assert!(made.is_empty());
    assert_eq!(region.uuid(), uuid);
    assert_eq!(region.created_ns(), 77);
    assert_eq!(&loaded(&region, 100_000), b"flushed");
    assert_eq!(loaded(&region, 300_000), [0; 13]);
    // Closed in good order, all of it is kept.
    store(&region, 300_000, b"never flushed");
    region.close().unwrap();
    let Provided { region, origin, .. } = place.memory().unwrap();
    assert_eq!(origin, Origin::Mirror(CLEAN));
    assert_eq!(&loaded(&region, 300_000), b"never flushed");
}

#[test]
fn a_mirror_is_a_region_s_file_itself() {
    let place = Place::new();
    let Provided { region, .. } = place.memory().unwrap();
    store(&region, 100_000, b"value");
    let uuid = region.uuid();
    region.close().unwrap();
    let expect = paste_pmem::Expect { guest: "web1", uuid: None, size: None, buffer_size: None };
    let (region, opened) = Region::open(&place.mirror, &expect).unwrap();
    assert_eq!(opened, CLEAN);
    assert_eq!(region.uuid(), uuid);
    assert_eq!(&loaded(&region, 100_000), b"value");
    let mut signature = [0; 15];
    File::open(&place.mirror).unwrap().read_exact_at(&mut signature, 4096).unwrap();
    assert_eq!(&signature, b"NVDIMM_DAX_INFO");
}

#[test]
fn after_a_crash_of_the_process_the_file_has_more_than_its_mirror() {
    let place = Place::new();
    let Provided { region, made, .. } = place.file().unwrap();
    assert_eq!(made, [place.region.clone(), place.mirror.clone(), place.journal()]);
    store(&region, 100_000, b"flushed");
    flush(&region, 100_000, 7);
    store(&region, 300_000, b"stored");
    drop(region);

    let Provided { region, origin, .. } = place.file().unwrap();
    assert_eq!(origin, Origin::File(LEFT_OPEN));
    assert_eq!(&loaded(&region, 300_000), b"stored");
    drop(region);
    // What was found there was made durable before anybody built on it.
    fs::remove_file(&place.region).unwrap();
    let Provided { region, origin, .. } = place.file().unwrap();
    assert_eq!(origin, Origin::Mirror(LEFT_OPEN));
    assert_eq!(&loaded(&region, 300_000), b"stored");
}

#[test]
fn after_another_start_of_the_system_only_the_mirror_is_believed() {
    let place = Place::new();
    let Provided { region, .. } = place.file().unwrap();
    store(&region, 100_000, b"flushed");
    flush(&region, 100_000, 7);
    // The file lost what its pages held.
    store(&region, 100_000, b"garbage");
    drop(region);
    place.reboot();
    let Provided { region, origin, .. } = place.file().unwrap();
    assert_eq!(origin, Origin::Mirror(LEFT_OPEN));
    assert_eq!(&loaded(&region, 100_000), b"flushed");
    region.close().unwrap();
    // Closed in good order, both are the same, whenever that was.
    place.reboot();
    let Provided { origin, .. } = place.file().unwrap();
    assert_eq!(origin, Origin::File(CLEAN));
}

#[test]
fn the_one_that_was_served_last_is_the_newer() {
    let place = Place::new();
    let Provided { region, .. } = place.file().unwrap();
    region.close().unwrap();
    // Served without its mirror for a while.
    let alone = Spec { mirror: None, ..place.spec(false) };
    let Provided { region, origin, made } = provide(&alone, &mut |_, _| {}).unwrap();
    assert_eq!(origin, Origin::File(CLEAN));
    assert!(made.is_empty());
    store(&region, 200_000, b"alone");
    region.close().unwrap();
    let mut copied = 0;
    let Provided { region, origin, .. } = provide(&place.spec(false), &mut |done, total| {
        assert_eq!(total, SIZE - HOST_HEAD_LEN);
        copied = done;
    })
    .unwrap();
    assert_eq!(origin, Origin::File(CLEAN));
    assert_eq!(copied, SIZE - HOST_HEAD_LEN);
    drop(region);

    // And the other way round: an old file is put in the place of the new one.
    let old = fs::read(&place.region).unwrap();
    let Provided { region, .. } = place.file().unwrap();
    store(&region, 200_000, b"newer");
    region.close().unwrap();
    fs::write(&place.region, old).unwrap();
    let Provided { region, origin, .. } = place.file().unwrap();
    assert_eq!(origin, Origin::Mirror(CLEAN));
    assert_eq!(&loaded(&region, 200_000), b"newer");
}

#[test]
fn a_first_copy_that_was_cut_short_is_made_again_or_refused() {
    let place = Place::new();
    let alone = Spec { mirror: None, ..place.spec(false) };
    let Provided { region, .. } = provide(&alone, &mut |_, _| {}).unwrap();
    store(&region, 200_000, b"only here");
    region.close().unwrap();
    let died = std::panic::catch_unwind(|| {
        provide(&place.spec(false), &mut |_, _| panic!("the process dies here"))
    });
    assert!(died.is_err());
    assert!(!place.mirror.exists(), "what was made for nothing is removed");

    // A process that dies for good removes nothing.
    let Provided { region, .. } = place.file().unwrap();
    drop(region);
    let file = OpenOptions::new().read(true).write(true).open(&place.mirror).unwrap();
    for copy in COPY_OFFSETS {
        let mut block = [0; 512];
        file.read_exact_at(&mut block, copy).unwrap();
        block[32..40].fill(0);
        let crc = crc32c::crc32c(&block[..508]);
        block[508..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&block, copy).unwrap();
    }
    file.write_all_at(&[0; 9], HOST_HEAD_LEN + 200_000).unwrap();
    let error = place.memory().unwrap_err();
    assert!(matches!(error, RegionError::Unfinished { .. }), "{error}");
    let Provided { region, origin, .. } = place.file().unwrap();
    assert_eq!(origin, Origin::File(LEFT_OPEN));
    region.close().unwrap();
    let Provided { region, .. } = place.memory().unwrap();
    assert_eq!(&loaded(&region, 200_000), b"only here");
}

#[test]
fn what_cannot_be_the_mirror_is_refused_and_left_alone() {
    let place = Place::new();
    let Provided { region, .. } = place.memory().unwrap();
    assert!(matches!(place.memory(), Err(RegionError::InUse { .. })), "by this one");
    region.close().unwrap();
    let other = Spec {
        identity: Identity { guest: "web2", ..place.spec(true).identity },
        ..place.spec(true)
    };
    let error = provide(&other, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, RegionError::Guest { .. }), "{error}");
    let larger = Spec { geometry: Geometry::new(2 * SIZE, 2048).unwrap(), ..place.spec(true) };
    let error = provide(&larger, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, RegionError::Size { have: SIZE, .. }), "{error}");

    // A region of the same guest that it is not the mirror of.
    let alone = Spec { mirror: None, ..place.spec(false) };
    provide(&alone, &mut |_, _| {}).unwrap().region.close().unwrap();
    let before = fs::read(&place.mirror).unwrap();
    let error = place.file().unwrap_err();
    assert!(matches!(error, RegionError::Identity { .. }), "{error}");
    assert!(fs::read(&place.mirror).unwrap() == before);

    fs::write(&place.mirror, b"precious").unwrap();
    let error = place.memory().unwrap_err();
    assert!(matches!(error, RegionError::Size { have: 8, .. }), "{error}");
    assert_eq!(fs::read(&place.mirror).unwrap(), b"precious");
    fs::remove_file(&place.mirror).unwrap();
    fs::create_dir(&place.mirror).unwrap();
    assert!(matches!(place.memory(), Err(RegionError::NotAFile { .. })));
}

#[test]
fn a_mirror_that_was_left_open_needs_its_journal() {
    let place = Place::new();
    let Provided { region, .. } = place.memory().unwrap();
    store(&region, 100_000, b"flushed");
    flush(&region, 100_000, 7);
    drop(region);
    let aside = place.journal().with_extension("aside");
    fs::rename(place.journal(), &aside).unwrap();
    let before = fs::read(&place.mirror).unwrap();
    let error = place.memory().unwrap_err();
    assert!(matches!(error, RegionError::Journal { .. }), "{error}");
    assert!(error.to_string().contains("put the journal back"), "{error}");
    assert!(matches!(Image::open(&place.mirror), Err(RegionError::Journal { .. })));
    // Neither does another region's do.
    let other = Place::new();
    drop(other.memory().unwrap());
    fs::copy(other.journal(), place.journal()).unwrap();
    assert!(matches!(place.memory(), Err(RegionError::Journal { .. })));
    assert!(fs::read(&place.mirror).unwrap() == before);

    fs::rename(aside, place.journal()).unwrap();
    let Provided { region, .. } = place.memory().unwrap();
    assert_eq!(&loaded(&region, 100_000), b"flushed");
    region.close().unwrap();
    // One that was closed in good order is whole.
    fs::remove_file(place.journal()).unwrap();
    let Provided { region, made, .. } = place.memory().unwrap();
    assert_eq!(&loaded(&region, 100_000), b"flushed");
    assert!(made.is_empty() && place.journal().exists());
}

#[test]
fn a_mirror_that_is_whole_is_served_however_the_making_of_its_journal_ended() {
    let place = Place::new();
    let Provided { region, .. } = place.file().unwrap();
    store(&region, 100_000, b"flushed");
    flush(&region, 100_000, 7);
    drop(region);
    // The mirror is brought up to date, and then no journal can be made for it.
    fs::remove_file(place.journal()).unwrap();
    std::os::unix::fs::symlink("/dev/full", place.journal()).unwrap();
    let error = place.file().unwrap_err();
    assert!(matches!(error, RegionError::System { .. }), "{error}");
    // As a process leaves it that dies over it, and the machine with it.
    fs::remove_file(place.journal()).unwrap();
    fs::write(place.journal(), [0; 4096]).unwrap();
    fs::remove_file(&place.region).unwrap();
    let Provided { region, origin, .. } = place.memory().unwrap();
    assert_eq!(origin, Origin::Mirror(LEFT_OPEN));
    assert_eq!(&loaded(&region, 100_000), b"flushed");
}

#[test]
fn what_the_journal_has_is_shown_and_served() {
    let place = Place::new();
    let Provided { region, .. } = place.memory().unwrap();
    let geometry = *region.geometry();
    let at = geometry.buffers().offset as usize + 3 * 2048;
    store(&region, at, b"in the journal");
    flush(&region, at as u64, 14);
    drop(region);
    let image = Image::open(&place.mirror).unwrap();
    let mut bytes = [0; 14];
    assert!(image.read_buffer(3, 0, &mut bytes));
    assert_eq!(&bytes, b"in the journal");
    drop(image);
    // The mirror in the place of its region.
    let expect = paste_pmem::Expect { guest: "web1", uuid: None, size: None, buffer_size: None };
    let (region, opened) = Region::open(&place.mirror, &expect).unwrap();
    assert_eq!(opened, LEFT_OPEN);
    assert_eq!(&loaded(&region, at), b"in the journal");
    region.close().unwrap();
    fs::remove_file(place.journal()).unwrap();
    let (region, opened) = Region::open(&place.mirror, &expect).unwrap();
    assert_eq!(opened, CLEAN);
    assert_eq!(&loaded(&region, at), b"in the journal");
}

#[test]
fn a_journal_that_is_used_again_and_again_loses_nothing() {
    let place = Place::new();
    let Provided { region, .. } = place.memory().unwrap();
    let mut flusher = region.flusher().unwrap().unwrap();
    let slot = |round: u32| 8192 + (round.wrapping_mul(2_654_435_761) % 400) as usize * 4096;
    let mut last = std::collections::BTreeMap::new();
    for round in 1..=700u32 {
        store(&region, slot(round), &round.to_le_bytes());
        // Of up to nine blocks: the areas of this mirror hold 64.
        let len = 4 + u64::from(round % 9) * 4096;
        let len = len.min(region.guest_len() - slot(round) as u64);
        flusher.add(FlushRange { offset: slot(round) as u64, len }).unwrap();
        flusher.commit(0).unwrap();
        if round % 5 != 0 {
            flusher.tidy();
        }
        last.insert(slot(round), round);
    }
    drop((flusher, region));
    let Provided { region, origin, .. } = place.memory().unwrap();
    assert_eq!(origin, Origin::Mirror(LEFT_OPEN));
    for (at, round) in last {
        assert_eq!(u32::from_le_bytes(loaded(&region, at)), round);
    }
}

#[test]
fn claims_come_back_with_the_mirror() {
    let place = Place::new();
    let Provided { region, .. } = place.memory().unwrap();
    let claims = region.geometry().claims();
    store(&region, claims.offset as usize, &[0b101]);
    flush(&region, claims.offset, 8);
    drop(region);
    let pool = place.memory().unwrap().region.pool();
    assert_eq!(pool.count_of(paste_pmem::Owner::Claimed), 2);
    assert_eq!(pool.owner(0), Some(paste_pmem::Owner::Claimed));
    assert_eq!(pool.owner(1), Some(paste_pmem::Owner::Pool));
}

#[test]
fn a_region_on_a_disk_is_its_own_storage_and_memory_alone_has_none() {
    let place = Place::new();
    let alone = |memory| Spec { mirror: None, ..place.spec(memory) };
    let memory = provide(&alone(true), &mut |_, _| {}).unwrap().region;
    assert_eq!(memory.domain(), Domain::None);
    assert!(memory.flusher().unwrap().is_none());

    let here = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(here.parent().unwrap()).unwrap();
    let path = dir.path().join("web1.region");
    let spec = Spec { backing: Backing::File(path), ..alone(false) };
    let region = provide(&spec, &mut |_, _| {}).unwrap().region;
    assert_eq!(region.domain(), Domain::Mirror, "a test on a DAX file system would say CpuCache");
    store(&region, 100_000, b"here");
    flush(&region, 100_000, 4);
}
