//! `pasted region create`.

use std::os::unix::fs::FileTypeExt;

use paste_pmem::{Backing, Geometry, Identity, Image, Provided, RegionError, Spec, Uuid, provide};
use serde::Serialize;

use super::show::{Bar, Summary};
use super::{CreateArgs, RegionFailure, not_own_mirror, print};
use crate::config::is_guest_name;
use crate::sys::clock::realtime_ns;

#[derive(Serialize)]
struct Created {
    region: Summary,
    mirror: Option<String>,
}

pub(super) fn run(args: CreateArgs) -> Result<(), RegionFailure> {
    let CreateArgs { path, size, guest, buffer_size, mirror, json } = args;
    not_own_mirror(&path, mirror.as_deref())?;
    let guest = match guest {
        Some(guest) => guest,
        None => {
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        }
    };
    if !is_guest_name(&guest) {
        return Err(RegionFailure::Name(guest));
    }
    let spec = Spec {
        backing: Backing::File(path.clone()),
        mirror: mirror.clone(),
        geometry: Geometry::new(size, buffer_size)?,
        identity: Identity {
            guest: &guest,
            uuid: Uuid::random().map_err(RegionFailure::Random)?,
            created_ns: realtime_ns(),
        },
    };
    // What is there would be opened, or restored from: that is not to create.
    let is_device = path.metadata().is_ok_and(|found| found.file_type().is_char_device());
    if is_device && Image::open(&path).is_ok() {
        return Err(RegionError::Occupied { region: path.display().to_string() }.into());
    }
    for path in [Some(&path).filter(|_| !is_device), mirror.as_ref()].into_iter().flatten() {
        if path.symlink_metadata().is_ok() {
            return Err(RegionError::Exists { region: path.display().to_string() }.into());
        }
    }
    let bar = Bar::new("writing", json);
    let Provided { region, .. } = provide(&spec, &mut |done, total| bar.set(done, total))?;
    drop(bar);
    region.close()?;
    let region = Summary::of(&Image::open(&path)?);
    let mirror = mirror.map(|mirror| mirror.display().to_string());
    let mut text = region.text();
    if let Some(mirror) = &mirror {
        text.push_str(&format!("  mirror   {mirror}\n"));
    }
    print(json, &Created { region, mirror }, &text)
}
