//! Giving back pages and records, oldest first.

use super::{Found, Logged, Store};
use crate::kv::entry::{HEAD, Head, Kind, RUN_HEAD};
use crate::kv::extent::Extent;
use crate::kv::index::Spot;
use crate::kv::region::Region;

/// Pages that may hold nothing good whatever the rest is.
const SLACK_PAGES: usize = 16;

/// Visits the entries of a run; the answer is whether all of it was entries.
pub(super) fn entries(
    region: &impl Region,
    run: Extent,
    mut visit: impl FnMut(Spot, Head),
) -> bool {
    let end = usize::from(run.offset) + usize::from(run.len);
    let mut at = usize::from(run.offset) + RUN_HEAD;
    while at + HEAD <= end {
        let mut bytes = [0; HEAD];
        region.read(run.buffer, at as u16, &mut bytes);
        let Some(head) = Head::from_bytes(&bytes) else {
            return false;
        };
        let next = at + head.entry_len();
        if next > end {
            return false;
        }
        visit(Spot { buffer: run.buffer, offset: at as u16 }, head);
        at = next;
    }
    at == end
}

impl Store {
    /// Takes notice of what has become durable: drops the records of runs that
    /// hold nothing good, and gives buffers back.
    pub(super) fn release(&mut self, region: &mut impl Region) {
        let mut drop_before = 0;
        while let Some(&epoch) = self.epochs.front()
            && region.reached(epoch.ticket)
        {
            self.epochs.pop_front();
            self.pages.durable = epoch.next_record;
            drop_before = epoch.cleaned_before.max(drop_before);
        }
        while self.cleaned > 0
            && let Some(run) = self.log.pop_front_if(|run| run.number < drop_before)
        {
            self.cleaned -= 1;
            self.dropped.push_back(run);
        }
        if drop_before > 0 {
            region.truncate(drop_before);
        }
        let first = region.first();
        while let Some(Logged { extent, .. }) = self.dropped.pop_front_if(|run| run.number < first)
        {
            if extent.len > 0 && self.holds.drop_durably(region, extent.buffer) {
                self.pages.count -= 1;
                self.dirty = true;
            }
        }
        self.dirty |= self.holds.release(region);
    }

    /// Bytes that this batch should clean.
    fn cleaning_due(&self, region: &impl Region) -> usize {
        let page = self.pages.page_len();
        let dead = (self.pages.count * page).saturating_sub(self.live);
        let runs = self.log.len() - self.cleaned;
        let log_left = region.log_room() as usize;
        let log_capacity = log_left + self.log.len();
        let (used, limit) = self.buffers();
        let step = page + 2 * self.appended;
        // Runs that would fit into fewer records.
        let scattered = runs > 2 * self.pages.count + SLACK_PAGES;
        if scattered && log_left < log_capacity / 8 {
            return 8 * step;
        }
        if used > limit - limit / 8 && dead > self.live / 4 + SLACK_PAGES / 4 * page {
            return 4 * step;
        }
        let wasteful = dead > self.live + self.live / 4 + SLACK_PAGES * page;
        if wasteful || (scattered && log_left < log_capacity / 2) { step } else { 0 }
    }

    /// Writes what is good in the oldest runs again.
    pub(super) fn clean(&mut self, region: &mut impl Region) {
        let mut due = self.cleaning_due(region);
        let mut good = Vec::new();
        while due > 0
            && let Some(&Logged { extent, .. }) = self.log.get(self.cleaned)
        {
            good.clear();
            if extent.len > 0 {
                entries(region, extent, |spot, head| {
                    if matches!(head.kind, Kind::Packed | Kind::Extents | Kind::Lists) {
                        good.push((spot, head));
                    }
                });
            }
            for &(spot, head) in &good {
                let mut key = std::mem::take(&mut self.scratch);
                key.resize(head.key_len.into(), 0);
                region.read(spot.buffer, spot.offset + HEAD as u16, &mut key);
                let found = self.lookup(region, self.hash(&key), &key);
                self.scratch = key;
                let Some(found) = found.filter(|found: &Found| found.spot == spot) else {
                    continue;
                };
                let len = head.entry_len();
                if self.admit_bytes(region, len, 0, 0, true).is_err()
                    || self.rewrite(region, &found, head.expires_ms).is_err()
                {
                    return;
                }
                self.stats.moved += len as u64;
                due = due.saturating_sub(len);
            }
            self.cleaned += 1;
            self.dirty = true;
            due = due.saturating_sub(usize::from(extent.len / 8).max(1));
        }
    }
}
