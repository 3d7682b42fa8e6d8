//! Regions on a device DAX, which here is a file whose kind, length and units are
//! what a test says.

use std::cell::Cell;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use super::provide::provide_on;
use super::*;
use crate::sys::{Instruction, ShapeError};

const LEN: u64 = 12 << 20;
const SIZE: u64 = 8 << 20;
const IDENTITY: Identity<'_> = Identity { guest: "web1", uuid: Uuid([7; 16]), created_ns: 77 };
const EXPECT: Expect<'_> = Expect { guest: "web1", uuid: None, size: None, buffer_size: None };

/// A machine on which every file is the device.
struct Machine {
    shape: Shape,
    refuses: Cell<Option<fn() -> ShapeError>>,
    dir: TempDir,
}

impl System for Machine {
    fn shape(&self, _: BorrowedFd<'_>) -> Result<Shape, ShapeError> {
        match self.refuses.get() {
            Some(error) => Err(error()),
            None => Ok(self.shape),
        }
    }

    fn is_dax(&self, _: BorrowedFd<'_>, page: usize) -> bool {
        assert_eq!(page, self.shape.page, "the kernel refuses other units");
        true
    }
}

impl Machine {
    /// With a device of [`LEN`] zeros.
    fn new() -> Machine {
        let shape = Shape { len: LEN, page: 2 << 20, is_device: true };
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine { shape, refuses: Cell::new(None), dir };
        machine.file().set_len(LEN).unwrap();
        machine
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("dax0.0")
    }

    fn file(&self) -> File {
        File::options().write(true).create(true).truncate(false).open(self.path()).unwrap()
    }

    fn spec(&self, size: u64) -> Spec<'static> {
        Spec {
            backing: Backing::File(self.path()),
            mirror: None,
            geometry: Geometry::new(size, 2048).unwrap(),
            identity: IDENTITY,
        }
    }

    fn provide(&self, size: u64) -> Result<Provided, RegionError> {
        provide_on(self, &self.spec(size), &mut |_, _| {})
    }

    fn load(&self) -> Result<(Region, Opened), RegionError> {
        Region::load(self, &self.path(), &EXPECT)
    }

    fn image(&self) -> Result<Image, RegionError> {
        Image::open_on(self, &self.path())
    }
}

#[test]
fn a_region_is_made_on_an_empty_device_and_found_again() {
    let machine = Machine::new();
    let Provided { region, origin, made } = machine.provide(SIZE).unwrap();
    assert_eq!(origin, Origin::New);
    assert!(made.is_empty(), "a device is not to be removed again");
    assert_eq!(region.domain(), Domain::CpuCache(Instruction::detect().unwrap()));
    assert!(region.flusher().unwrap().is_none(), "who stores makes durable");
    region.buffers().write(3, 0, b"stays").unwrap();
    assert!(matches!(machine.provide(SIZE), Err(RegionError::InUse { .. })));
    region.close().unwrap();

    assert_eq!(fs::metadata(machine.path()).unwrap().len(), LEN, "its length is not ours");
    let Provided { region, origin, .. } = machine.provide(SIZE).unwrap();
    assert_eq!(origin, Origin::File(Opened { clean: true, repaired: None }));
    let mut bytes = [0; 5];
    region.buffers().read(3, 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"stays");
}

#[test]
fn what_is_left_of_others_behind_the_first_bytes_is_cleared() {
    let machine = Machine::new();
    machine.file().write_all_at(b"somebody's", SIZE - 10).unwrap();
    let region = machine.provide(SIZE).unwrap().region;
    let mut bytes = [1; 10];
    region.buffers().read(region.geometry().buffer_count() - 1, 2038, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 10]);
}

#[test]
fn data_that_is_no_region_is_not_overwritten() {
    for at in [0, devdax::BLOCK_OFFSET + 4000, 9000, 3 << 20] {
        let machine = Machine::new();
        machine.file().write_all_at(b"precious", at).unwrap();
        let before = fs::read(machine.path()).unwrap();
        for result in [machine.provide(SIZE).map(|_| ()), machine.load().map(|_| ())] {
            let error = result.unwrap_err();
            assert!(matches!(error, RegionError::Occupied { .. }), "{at}: {error}");
        }
        assert_eq!(fs::read(machine.path()).unwrap(), before);
    }
}

#[test]
fn a_region_that_is_there_is_not_made_anew() {
    let machine = Machine::new();
    drop(machine.provide(SIZE).unwrap());
    let spec = machine.spec(SIZE);
    let made = Region::create_on(&machine, &spec.backing, spec.geometry, &IDENTITY, &mut |_, _| {});
    assert!(matches!(made, Err(RegionError::Occupied { .. })));
    assert!(machine.load().is_ok());
}

/// The superblock is written last, so a device whose region was never finished is
/// begun anew.
#[test]
fn a_region_that_was_not_finished_does_not_bar_the_device() {
    let machine = Machine::new();
    let block = devdax::block(Uuid([1; 16]), SIZE, HOST_HEAD_LEN);
    machine.file().write_all_at(&block, devdax::BLOCK_OFFSET).unwrap();
    assert_eq!(machine.provide(SIZE).unwrap().origin, Origin::New);
}

#[test]
fn devices_that_cannot_hold_the_region_say_why() {
    let machine = Machine::new();
    let error = machine.provide(LEN + (2 << 20)).unwrap_err();
    let want = LEN + (2 << 20);
    assert!(
        matches!(error, RegionError::DeviceSize { have: LEN, want: w, .. } if w == want),
        "{error}"
    );

    let mut machine = Machine::new();
    machine.shape.len = 2 << 20;
    for result in [machine.provide(SIZE).map(|_| ()), machine.image().map(|_| ())] {
        assert!(matches!(result, Err(RegionError::DeviceSize { have: 0x20_0000, .. })));
    }

    let mut machine = Machine::new();
    machine.shape.page = 1 << 30;
    let error = machine.provide(SIZE).unwrap_err().to_string();
    assert!(error.contains("--align=2097152"), "{error}");

    let machine = Machine::new();
    machine.refuses.set(Some(|| ShapeError::NotDax));
    let error = machine.provide(SIZE).unwrap_err().to_string();
    assert!(error.contains("not device DAX; name a device DAX (/dev/daxN.M)"), "{error}");
}

#[test]
fn a_region_on_a_device_that_shrank_is_refused() {
    let mut machine = Machine::new();
    machine.provide(SIZE).unwrap().region.close().unwrap();
    machine.shape.len = SIZE - (2 << 20);
    for result in [machine.load().map(|_| ()), machine.image().map(|_| ())] {
        assert!(matches!(result, Err(RegionError::DeviceSize { want: SIZE, .. })));
    }
}

#[test]
fn an_image_of_a_device_is_that_of_its_region() {
    let machine = Machine::new();
    assert!(matches!(
        machine.image().unwrap_err(),
        RegionError::Superblock { error: SuperblockError::Absent, .. }
    ));
    machine.provide(SIZE).unwrap().region.close().unwrap();
    let image = machine.image().unwrap();
    assert!(image.is_clean());
    assert_eq!(image.domain(), Domain::CpuCache(Instruction::detect().unwrap()));
    let mut last = 0;
    let findings = image.check(&mut |done, _| last = done);
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(last, SIZE, "of a longer device only the region");

    machine.file().write_all_at(&[0xff; 8], devdax::BLOCK_OFFSET).unwrap();
    assert!(matches!(machine.image().unwrap().check(&mut |_, _| {})[..], [Finding::DaxBlock]));
}

/// A device that ends before its length, as a bad block of memory would: the
/// access faults.
#[test]
fn bytes_that_cannot_be_read_are_found() {
    let machine = Machine::new();
    machine.provide(SIZE).unwrap().region.close().unwrap();
    machine.file().set_len(6 << 20).unwrap();
    let findings = machine.image().unwrap().check(&mut |_, _| {});
    assert!(matches!(findings[..], [Finding::Unreadable { at: 0x60_0000, .. }]), "{findings:?}");
}

/// What a guest's device shows of a region begins behind the host's head.
#[test]
fn a_guest_can_look_at_what_it_was_given_and_not_take_it() {
    let host = Machine::new();
    let region = host.provide(SIZE).unwrap().region;
    region.buffers().write(0, 0, b"from the host").unwrap();
    region.close().unwrap();
    let mut guest = Machine::new();
    guest.shape.len = SIZE - HOST_HEAD_LEN;
    let whole = fs::read(host.path()).unwrap();
    fs::write(guest.path(), &whole[HOST_HEAD_LEN as usize..SIZE as usize]).unwrap();

    let image = guest.image().unwrap();
    assert_eq!((image.guest(), image.uuid()), ("web1", IDENTITY.uuid));
    let mut bytes = [0; 13];
    assert!(image.read_buffer(0, 0, &mut bytes));
    assert_eq!(&bytes, b"from the host");
    assert!(image.check(&mut |_, _| {}).is_empty());
    drop(image);
    assert!(matches!(guest.load(), Err(RegionError::OfGuest { .. })));
    assert!(matches!(guest.provide(4 << 20), Err(RegionError::OfGuest { .. })));
    guest.shape.len -= 2 << 20;
    assert!(matches!(guest.image(), Err(RegionError::DeviceSize { .. })));
}

#[test]
fn a_lost_device_is_restored_from_its_mirror() {
    let machine = Machine::new();
    let spec = Spec { mirror: Some(machine.dir.path().join("mirror")), ..machine.spec(SIZE) };
    // The mirror is a file and opened as one: the machine is not asked.
    let provided = provide_on(&machine, &spec, &mut |_, _| {}).unwrap();
    assert_eq!(provided.region.domain(), Domain::Mirror);
    assert_eq!(provided.made.len(), 2, "mirror and journal: {:?}", provided.made);
    provided.region.buffers().write(5, 0, b"kept").unwrap();
    provided.region.close().unwrap();

    machine.file().set_len(0).unwrap();
    machine.file().set_len(LEN).unwrap();
    let provided = provide_on(&machine, &spec, &mut |_, _| {}).unwrap();
    assert!(matches!(provided.origin, Origin::Mirror(_)));
    let mut bytes = [0; 4];
    provided.region.buffers().read(5, 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");
}
