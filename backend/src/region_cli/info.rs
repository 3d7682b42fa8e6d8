//! `pasted region info`.

use paste_pmem::Image;

use super::show::Summary;
use super::{PathArgs, RegionFailure, print};

pub(super) fn run(args: &PathArgs) -> Result<(), RegionFailure> {
    let summary = Summary::of(&Image::open(&args.path)?);
    print(args.json, &summary, &summary.text())
}
