//! Taking up a log: what was claimed is asked for again, the records are read, and what
//! they name is claimed again.

use std::collections::VecDeque;
use std::time::Duration;

use paste_pmem::wal::{Place, Record, Recovery, Wal, WalError};
use paste_pmem::{Claims, Ticket};

use super::{Holder, Holding, Log};
use crate::channel::Channel;
use crate::error::{ResumeError, WaitError};
use crate::sys;

/// How long the host may take to give back what is still on its way out, and to
/// make the log's header durable.
const OPEN_TIME: Duration = Duration::from_secs(10);

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The host lets nobody store buffers.
    #[error("the host does not let buffers be stored, so nothing can be logged")]
    Unsupported,
    /// The log is one channel's, and that is one on the first queue pair.
    #[error("the region's log belongs to the first queue pair, and this channel is on pair {0}")]
    FurtherPair(u16),
    /// The channel is not open any more.
    #[error("the channel was lost while its log was looked at")]
    Lost,
    /// There is a log, and it cannot be read.
    #[error("the region's log cannot be used: {0}")]
    Log(#[from] WalError),
    /// The host does not say which buffers are still ours.
    #[error("the host does not give logged buffers back: {0}")]
    Resume(ResumeError),
    /// The host keeps buffers that are claimed.
    #[error(
        "the host keeps back {0} claimed buffers: has another channel this region, or the guest \
         more workers than before?"
    )]
    KeptBack(usize),
    /// The host does not make the log's header durable.
    #[error("the host did not make the log's header durable in time")]
    NotDurable,
}

impl From<ResumeError> for LogError {
    fn from(error: ResumeError) -> LogError {
        match error {
            ResumeError::Lost => LogError::Lost,
            other => LogError::Resume(other),
        }
    }
}

impl From<WaitError> for LogError {
    fn from(error: WaitError) -> LogError {
        match error {
            WaitError::Lost => LogError::Lost,
            WaitError::TimedOut => LogError::NotDurable,
        }
    }
}

/// A log that was taken up.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub log: Log,
    /// What was found; `None`: there was no log, and this one is new.
    pub recovery: Option<Recovery>,
}

impl Log {
    /// Takes up the log of a channel's region, or makes one. A guest on several workers has
    /// it on its first queue pair, with that one's buffers. `visit` gets the records
    /// that hold, oldest first; what they hold may be served when this has returned.
    /// Waits for the host, 10 s and as long again at most; events that arrive meanwhile
    /// are kept for [`Channel::next_event`].
    pub fn open(
        channel: &mut Channel,
        mut visit: impl FnMut(&Record<'_>),
    ) -> Result<Opened, LogError> {
        if channel.pair() > 0 {
            return Err(LogError::FurtherPair(channel.pair()));
        }
        let opening = channel.opening().ok_or(LogError::Lost)?;
        if !channel.geometry().is_some_and(|geometry| geometry.stores) {
            return Err(LogError::Unsupported);
        }
        let geometry = *channel.layout().ok_or(LogError::Unsupported)?;
        let claims = Claims::new(&geometry);
        let medium = channel.medium().ok_or(LogError::Lost)?;
        let claimed: Vec<u32> = claims.iter(medium).collect();
        let refused = channel.resume_within(&claimed, OPEN_TIME)?;
        if !refused.is_empty() {
            return Err(LogError::KeptBack(refused.len()));
        }
        let count = geometry.buffer_count() as usize;
        let mut holdings: Box<[Holding]> = (0..count).map(|_| Holding::default()).collect();
        for &buf in &claimed {
            let held = &mut holdings[buf as usize];
            (held.holder, held.claimed) = (Holder::Stored, true);
        }
        let place = Place::from(&geometry);
        // As many as a server that keeps within most of the region ever has.
        let mut records = VecDeque::with_capacity(count * 5 / 8);
        let mut named = VecDeque::with_capacity(count * 5 / 8);
        let medium = channel.medium().ok_or(LogError::Lost)?;
        let is_claimed = |buf: u32| holdings.get(buf as usize).is_some_and(|held| held.claimed);
        let recovered = Wal::recover(medium, place, is_claimed, |record| {
            let before = named.len();
            named.extend(record.pieces().map(|piece| piece.buf).filter(|&buf| is_claimed(buf)));
            records.push_back((record.position(), named.len() - before));
            visit(&record);
        });
        let (wal, recovery) = match recovered {
            Ok((wal, recovery)) => (wal, Some(recovery)),
            Err(WalError::Absent) => (Wal::create(medium, place, sys::random_u64())?, None),
            Err(error) => return Err(error.into()),
        };
        for &buf in &named {
            holdings[buf as usize].users += 1;
            // The program that died may have claimed it, and not durably.
            let _ = claims.set(medium, buf);
        }
        let is_unnamed = |buf: &u32| holdings[*buf as usize].users == 0;
        let unnamed: Vec<u32> = claimed.iter().copied().filter(is_unnamed).collect();
        let mut log = Log {
            opening,
            place,
            claims,
            wal,
            holdings,
            held: claimed.len() as u32,
            claimed: claimed.len(),
            filling: None,
            records,
            named,
            fresh: Vec::new(),
            fresh_records: 0,
            unsaid: Vec::new(),
            heads: VecDeque::new(),
            unnamed: Vec::new(),
            leaving: VecDeque::new(),
            last: Ticket::default(),
            marks: Vec::new(),
        };
        log.wait_ready(channel)?;
        // Not before: the record that ended them need not have been durable.
        unnamed.iter().for_each(|&buf| log.holdings[buf as usize].unnamed = true);
        log.unnamed = unnamed;
        Ok(Opened { log, recovery })
    }

    /// Waits until the log takes records, its header being durable. It gets there by
    /// commits, each after the one before is durable.
    fn wait_ready(&mut self, channel: &mut Channel) -> Result<(), LogError> {
        let deadline = sys::monotonic() + OPEN_TIME;
        loop {
            let medium = self.medium(channel).ok_or(LogError::Lost)?;
            if self.wal.is_ready(medium) {
                return Ok(());
            }
            let ticket = self.wal.commit(medium);
            channel.wait_durable(ticket, deadline.saturating_sub(sys::monotonic()))?;
        }
    }
}
