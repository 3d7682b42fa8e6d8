//! `pasted region check`.

use paste_pmem::{Image, RegionError};
use serde::Serialize;

use super::log::index_faults;
use super::show::{Bar, Summary};
use super::{PathArgs, RegionFailure, print};

#[derive(Serialize)]
struct Checked {
    region: Summary,
    faults: Vec<String>,
}

pub(super) fn run(args: &PathArgs) -> Result<(), RegionFailure> {
    let image = Image::open(&args.path)?;
    if image.in_use() {
        // What its process is writing now would look like damage.
        return Err(RegionError::InUse { region: image.name().to_owned() }.into());
    }
    let bar = Bar::new("reading", args.json);
    let found = image.check(&mut |done, total| bar.set(done, total));
    drop(bar);
    let region = Summary::of(&image);
    let mut faults: Vec<String> = found.iter().map(ToString::to_string).collect();
    faults.extend(region.records.faults.iter().cloned());
    faults.extend(index_faults(&image, image.geometry()));
    let mut text = String::new();
    for fault in &faults {
        text.push_str(&format!("{}: {fault}\n", region.path));
    }
    if faults.is_empty() {
        text = format!(
            "{}: sound, {} buffers claimed, {} records, {}\n",
            region.path,
            region.claimed,
            region.records.records,
            if image.is_clean() { "closed in good order" } else { "left open" },
        );
        if let Some(leaked) = region.records.leaked.filter(|&leaked| leaked > 0) {
            text.push_str(&format!(
                "  claims without a record: {leaked}; recovery releases them\n"
            ));
        }
    }
    let (path, count) = (region.path.clone(), faults.len());
    print(args.json, &Checked { region, faults }, &text)?;
    if count > 0 {
        return Err(RegionFailure::Faults { path, count });
    }
    Ok(())
}
