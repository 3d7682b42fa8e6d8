//! `pasted region recover`.

use std::sync::Arc;

use paste_pmem::{
    Backing, Claims, Geometry, Identity, Image, Origin, Provided, Region, RegionError,
    RegionMedium, Spec, Uuid, provide,
};
use serde::Serialize;

use super::log::Log;
use super::show::{Bar, Summary};
use super::{RecoverArgs, RegionFailure, not_own_mirror, print};

/// What was done.
#[derive(Serialize)]
struct Recovered {
    region: Summary,
    /// Where its bytes came from.
    from: &'static str,
    /// It had been closed in good order.
    was_clean: bool,
    /// Damages of the head that were repaired.
    repaired: Vec<&'static str>,
    /// Claims without a record that were given up.
    released: u32,
    /// What was promised and is not there.
    lost: Vec<String>,
}

pub(super) fn run(args: RecoverArgs) -> Result<(), RegionFailure> {
    let RecoverArgs { path, mirror, json } = args;
    not_own_mirror(&path, mirror.as_deref())?;
    // The one that there is tells what the region was.
    let image = match (Image::open(&path), &mirror) {
        (Err(RegionError::NotFound { .. }), Some(mirror)) => Image::open(mirror)?,
        (image, _) => image?,
    };
    let guest = image.guest().to_owned();
    let (size, buffer_size) = (image.geometry().file_len(), image.geometry().buffer_size());
    let spec = Spec {
        backing: Backing::File(path.clone()),
        mirror,
        geometry: Geometry::new(size, buffer_size)?,
        identity: Identity {
            guest: &guest,
            uuid: Uuid::random().map_err(RegionFailure::Random)?,
            created_ns: image.created_ns(),
        },
    };
    // It holds a lock.
    drop(image);
    let bar = Bar::new("copying between region and mirror", json);
    let Provided { mut region, origin, .. } =
        provide(&spec, &mut |done, total| bar.set(done, total))?;
    drop(bar);
    let (from, opened) = match origin {
        Origin::New => ("nothing", None),
        Origin::File(opened) => ("file", Some(opened)),
        Origin::Mirror(opened) => ("mirror", Some(opened)),
    };
    let mut repaired = Vec::new();
    if opened.is_some_and(|opened| opened.repaired.is_some()) {
        repaired.push("superblock");
    }
    repaired.extend(region.repair());
    let released = release_leaks(&region);
    region.close()?;
    let region = Summary::of(&Image::open(&path)?);
    let mut text = format!("{}: recovered from its {from}\n", region.path);
    if released > 0 {
        text.push_str(&format!("  released: {released} claims without a record\n"));
    }
    let faults = region.records.faults.clone();
    for fault in &faults {
        text.push_str(&format!("  lost: {fault}\n"));
    }
    let path = region.path.clone();
    for what in &repaired {
        text.push_str(&format!("  repaired: {what}\n"));
    }
    let was_clean = opened.is_some_and(|opened| opened.clean);
    let count = faults.len();
    print(json, &Recovered { region, from, was_clean, repaired, released, lost: faults }, &text)?;
    if count > 0 {
        return Err(RegionFailure::Faults { path, count });
    }
    Ok(())
}

/// Gives up claims that a crash left without a record. Whatever the log holds is
/// left to the application, which recovers it in the same way.
fn release_leaks(region: &Region) -> u32 {
    let geometry = region.geometry();
    // Closing the region makes it durable.
    let mut medium = RegionMedium::new(Arc::clone(region.mapping()), None);
    let log = Log::read(&medium, geometry, |_, _| ());
    if log.leaked.is_none_or(|leaked| leaked == 0) {
        return 0;
    }
    let claims = Claims::new(geometry);
    let leaks: Vec<u32> = log.leaks(&medium, geometry).collect();
    leaks.iter().filter(|&&buf| claims.clear(&mut medium, buf).is_ok()).count() as u32
}
