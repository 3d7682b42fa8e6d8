//! One flow: what it is in the middle of, and how it goes on.
//!
//! A flow consumes the buffers that wait on it, in order, until it is idle,
//! lacks something, or closes. It can be taken up again at any point: every
//! state between two steps is in [`Conn`].

use paste_abi::Flow;

use super::files::OpenFile;
use super::log::{Draft, Full, Log};
use super::parse::{self, Body, Chunks, HEAD_MAX, Method};
use super::respond::{CONTINUE, Content, RESPONSE_MAX, Response, Status};
use super::shared::{NONE, Shared, Waiting, headroom};
use crate::buffer::Buffer;
use crate::channel::{Channel, SendOptions};
use crate::error::SendCause;

/// Slots of one flow that the peer has not acknowledged. A peer that asks and
/// does not read is served no further. Below any host's own limit.
const UNACKED_MAX: u16 = 64;
/// One acknowledgement is asked for per so many slots: often enough to go on
/// before [`UNACKED_MAX`], and seldom enough not to cost an event per response.
const SLOTS_PER_ACK: u16 = 16;

/// What the flow is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests, or in a head.
    Head,
    /// In a body of known length, so many bytes before its end.
    Body(u64, Response),
    /// In a chunked body.
    Chunked(Chunks, Response),
    /// A body is to be invited, and comes as the inner phase says.
    Invite(Body, Response),
    /// The flow is to be reset, which could not be queued yet.
    Abort,
    /// A response is to be written.
    Respond(Response),
    /// The bytes of a file are to be sent; then the connection persists or not.
    File(bool),
    /// Everything is written, and the flow is to be closed.
    Close,
    /// Closed or aborted: what still arrives is not read.
    Done,
}

/// Why a flow does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// It waits for its peer.
    Idle,
    /// It waits for something that all flows share: a buffer to fill, or room
    /// in the channel's queue or in the log.
    Starved,
    /// Its answers wait for the log's next commit.
    Uncommitted,
}

/// A flow's state. Small, and without allocations of its own, but for the pieces of
/// a request that is to be logged.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) flow: Flow,
    /// Whether the server waits to take this flow up again.
    pub(super) waiting: bool,
    /// Whether its answers wait for the log's next commit.
    pub(super) uncommitted: bool,
    phase: Phase,
    /// The block that holds the beginning of a head, and its length.
    head: Option<(u32, usize)>,
    /// Buffers that wait to be read, as a list in [`Shared`].
    first: u32,
    last: u32,
    /// A buffer with responses in it that is not sent yet, and whether it is to come
    /// back: where requests are logged, no response goes from a request's own buffer.
    out: Option<Buffer>,
    comes_back: bool,
    unacked: u16,
    since_ack: u16,
    file: Option<OpenFile>,
    /// What the peer says that the body's CRC32C is, and what it is so far.
    digest: Option<(u32, u32)>,
    /// What has come of the present request; whether it is one to be logged; when it
    /// came.
    draft: Draft,
    logs: bool,
    came_ns: u64,
    /// A request was logged whose answer is not sent.
    recorded: bool,
    fin: bool,
}

impl Conn {
    pub(super) fn new(flow: Flow) -> Conn {
        Conn {
            flow,
            waiting: false,
            uncommitted: false,
            phase: Phase::Head,
            head: None,
            first: NONE,
            last: NONE,
            out: None,
            comes_back: false,
            unacked: 0,
            since_ack: 0,
            file: None,
            digest: None,
            draft: Draft::default(),
            logs: false,
            came_ns: 0,
            recorded: false,
            fin: false,
        }
    }

    /// Puts a buffer that has arrived at the end of the flow's list.
    pub(super) fn push(&mut self, shared: &mut Shared, buffer: Buffer) {
        let index = buffer.index();
        shared.lists[index as usize] = Waiting { buffer: Some(buffer), next: NONE };
        match self.last {
            NONE => self.first = index,
            last => shared.lists[last as usize].next = index,
        }
        self.last = index;
    }

    fn pop(&mut self, shared: &mut Shared) -> Option<Buffer> {
        let waiting = shared.lists.get_mut(self.first as usize)?;
        self.first = waiting.next;
        if self.first == NONE {
            self.last = NONE;
        }
        waiting.buffer.take()
    }

    /// The peer sends no more.
    pub(super) fn fin(&mut self) {
        self.fin = true;
    }

    /// The peer has acknowledged so many slots more.
    pub(super) fn acked(&mut self, slots: u64) {
        self.unacked = self.unacked.saturating_sub(slots.min(u64::from(u16::MAX)) as u16);
    }

    /// The flow is gone: gives back all that it has.
    pub(super) fn end(&mut self, shared: &mut Shared, channel: &mut Channel) {
        self.forget_draft(shared, channel);
        self.discard(shared, channel);
        if let Some(out) = self.out.take() {
            channel.give_back(out);
        }
        self.forget_head(shared);
        self.file = None;
        self.phase = Phase::Done;
    }

    /// Gives up on the flow, with the next [`Conn::run`].
    pub(super) fn abort(&mut self) {
        if self.phase != Phase::Done {
            self.phase = Phase::Abort;
        }
    }

    /// Gives back what waits to be read.
    fn discard(&mut self, shared: &mut Shared, channel: &mut Channel) {
        while let Some(buffer) = self.pop(shared) {
            shared.give_back(channel, buffer);
        }
    }

    fn forget_draft(&mut self, shared: &mut Shared, channel: &mut Channel) {
        if let Some(log) = &mut shared.log {
            log.forget(channel, &mut self.draft);
        }
    }

    fn forget_head(&mut self, shared: &mut Shared) {
        if let Some((block, _)) = self.head.take() {
            shared.heads.free.push(block);
        }
    }

    /// Goes on as far as it can.
    pub(super) fn run(&mut self, shared: &mut Shared, channel: &mut Channel) -> Pause {
        loop {
            if let Some(pause) = self.step(shared, channel) {
                return pause;
            }
        }
    }

    /// One step; `None` if there may be more to do.
    fn step(&mut self, shared: &mut Shared, channel: &mut Channel) -> Option<Pause> {
        match self.phase {
            Phase::Head | Phase::Body(..) | Phase::Chunked(..) => self.read(shared, channel),
            Phase::Invite(body, response) => {
                if let Err(pause) = self.room(CONTINUE.len(), shared, channel) {
                    return Some(pause);
                }
                self.write(channel, |out| {
                    out[..CONTINUE.len()].copy_from_slice(CONTINUE);
                    CONTINUE.len()
                });
                self.phase = after_head(body, response);
                // The peer waits for it, so it cannot wait for the response.
                self.flush(shared, channel).err()
            }
            Phase::Respond(response) => {
                let response = self.judge(response);
                // Remembered, so that a body is not judged again, whatever is lacking.
                self.phase = Phase::Respond(response);
                let ready = self.room(RESPONSE_MAX, shared, channel);
                if let Err(pause) = ready.and_then(|()| self.record(response, shared, channel)) {
                    return Some(pause);
                }
                let date = shared.date;
                self.write(channel, |out| response.write(&date, out));
                self.phase = match response.content {
                    Content::File { .. } if !response.head_only => Phase::File(response.keep_alive),
                    _ => after_response(response.keep_alive),
                };
                None
            }
            Phase::File(keep_alive) => self.send_file(keep_alive, shared, channel),
            Phase::Close => {
                if let Err(pause) = self.flush(shared, channel) {
                    return Some(pause);
                }
                if channel.close(self.flow).is_err() {
                    return Some(Pause::Starved);
                }
                self.end(shared, channel);
                Some(Pause::Idle)
            }
            Phase::Abort => {
                if channel.abort(self.flow).is_err() {
                    return Some(Pause::Starved);
                }
                self.end(shared, channel);
                Some(Pause::Idle)
            }
            Phase::Done => {
                self.discard(shared, channel);
                Some(Pause::Idle)
            }
        }
    }

    /// Reads on in the first buffer that waits.
    fn read(&mut self, shared: &mut Shared, channel: &mut Channel) -> Option<Pause> {
        let Some(waiting) = shared.lists.get_mut(self.first as usize) else {
            // Nothing to read. Half a request before a FIN gets no answer.
            if self.fin {
                self.phase = Phase::Close;
                return None;
            }
            return Some(self.flush(shared, channel).err().unwrap_or(Pause::Idle));
        };
        let Some(mut buffer) = waiting.buffer.take() else {
            return Some(Pause::Idle);
        };
        if let Some(log) = &mut shared.log
            && !log.prepare(channel, buffer.len())
        {
            waiting.buffer = Some(buffer);
            return Some(Pause::Starved);
        }
        let outcome = self.consume(&buffer, shared, channel);
        let used = match outcome {
            Ok(used) => used,
            Err(status) => self.refuse(status, &buffer, shared, channel),
        };
        let used = match self.draft(&buffer, used, shared, channel) {
            Ok(()) => used,
            Err(status) => self.refuse(status, &buffer, shared, channel),
        };
        buffer.advance(used);
        if !buffer.is_empty() {
            shared.lists[self.first as usize].buffer = Some(buffer);
            return None;
        }
        let _ = self.pop(shared);
        let answers = matches!(self.phase, Phase::Respond(_) | Phase::Invite(..));
        let logged = shared.log.as_ref().is_some_and(|log| log.uses(&buffer));
        if answers && self.out.is_none() && !logged {
            // The request was the last thing in its buffer: answer from there.
            let headroom = headroom(channel);
            buffer.set_range(headroom..headroom);
            (self.out, self.comes_back) = (Some(buffer), false);
        } else {
            shared.give_back(channel, buffer);
        }
        None
    }

    /// Answers with an error: where the next request would begin is not known any
    /// more. Returns the bytes used up, which are all.
    fn refuse(
        &mut self,
        status: Status,
        buffer: &Buffer,
        shared: &mut Shared,
        channel: &mut Channel,
    ) -> usize {
        self.phase = Phase::Respond(Response::fatal(status));
        self.digest = None;
        self.logs = false;
        self.forget_head(shared);
        self.forget_draft(shared, channel);
        buffer.len()
    }

    /// Takes note of the part of a buffer that belongs to the present request, if
    /// that is to be logged or may turn out to be.
    fn draft(
        &mut self,
        buffer: &Buffer,
        used: usize,
        shared: &mut Shared,
        channel: &mut Channel,
    ) -> Result<(), Status> {
        let Some(log) = &mut shared.log else {
            return Ok(());
        };
        if self.phase != Phase::Head && !self.logs {
            log.forget(channel, &mut self.draft);
            return Ok(());
        }
        log.draft(channel, &mut self.draft, buffer, used)?;
        if matches!(self.phase, Phase::Respond(_)) {
            log.close(channel, &mut self.draft, buffer);
            self.came_ns = buffer.time_ns();
        }
        Ok(())
    }

    /// Logs the request that is to be answered, if it is to be logged.
    fn record(
        &mut self,
        response: Response,
        shared: &mut Shared,
        channel: &mut Channel,
    ) -> Result<(), Pause> {
        let Some(log) = shared.log.as_mut().filter(|_| self.logs) else {
            return Ok(());
        };
        if response.status == Status::Ok {
            log.record(channel, &mut self.draft, self.came_ns).map_err(|Full| Pause::Starved)?;
            self.recorded = true;
        } else {
            log.forget(channel, &mut self.draft);
        }
        self.logs = false;
        Ok(())
    }

    /// Reads what the buffer holds, up to the end of a head or body. Returns
    /// the bytes used up.
    fn consume(
        &mut self,
        buffer: &Buffer,
        shared: &mut Shared,
        channel: &mut Channel,
    ) -> Result<usize, Status> {
        match self.phase {
            Phase::Head => self.consume_head(buffer, shared, channel),
            Phase::Body(left, response) => {
                let used = left.min(buffer.len() as u64);
                sum(&mut self.digest, &channel.bytes(buffer)[..used as usize]);
                self.phase = match left - used {
                    0 => Phase::Respond(response),
                    left => Phase::Body(left, response),
                };
                Ok(used as usize)
            }
            Phase::Chunked(mut chunks, response) => {
                let digest = &mut self.digest;
                let bytes = channel.bytes(buffer);
                let (used, done) =
                    chunks.feed(bytes, shared.body_max, |content| sum(digest, content))?;
                self.phase =
                    if done { Phase::Respond(response) } else { Phase::Chunked(chunks, response) };
                Ok(used)
            }
            _ => Ok(0),
        }
    }

    fn consume_head(
        &mut self,
        buffer: &Buffer,
        shared: &mut Shared,
        channel: &mut Channel,
    ) -> Result<usize, Status> {
        let bytes = channel.bytes(buffer);
        let Some((block, before)) = self.head else {
            if let Some(head) = parse::head(bytes)? {
                let (used, phase) = (head.len, decide(&head, shared, &mut self.file)?);
                self.logs = head.method == Method::Post;
                self.digest = head.digest.map(|digest| (digest, 0));
                self.phase = phase;
                return Ok(used);
            }
            // Incomplete, so shorter than the longest head: keep it whole.
            let block = shared.heads.free.pop().ok_or(Status::Unavailable)?;
            let len = bytes.len();
            shared.heads.block(block)[..len].copy_from_slice(bytes);
            self.head = Some((block, len));
            channel.count_copied(len);
            return Ok(len);
        };
        let taken = bytes.len().min(HEAD_MAX - before);
        let len = before + taken;
        shared.heads.block(block)[before..len].copy_from_slice(&bytes[..taken]);
        channel.count_copied(taken);
        self.head = Some((block, len));
        // The block is lent out of `shared` while the head is judged.
        let heads = std::mem::take(&mut shared.heads.bytes);
        let start = block as usize * HEAD_MAX;
        let judged = match parse::head(&heads[start..start + len]) {
            Ok(Some(head)) => {
                self.digest = head.digest.map(|digest| (digest, 0));
                self.logs = head.method == Method::Post;
                decide(&head, shared, &mut self.file).map(|phase| Some((head.len, phase)))
            }
            Ok(None) => Ok(None),
            Err(status) => Err(status),
        };
        shared.heads.bytes = heads;
        let Some((head_len, phase)) = judged? else {
            return Ok(taken);
        };
        self.phase = phase;
        self.forget_head(shared);
        // It was incomplete without this buffer, so it ends in it.
        Ok(head_len.saturating_sub(before))
    }

    /// The response, once the body is whole: another one, if the body is not the
    /// one whose digest the peer gave (RFC 9530 section 2).
    fn judge(&mut self, response: Response) -> Response {
        match self.digest.take() {
            Some((said, found)) if said != found => {
                self.file = None;
                Response { status: Status::BadRequest, content: Content::Status, ..response }
            }
            _ => response,
        }
    }

    /// Makes room for `len` bytes in the buffer that is being filled.
    fn room(
        &mut self,
        len: usize,
        shared: &mut Shared,
        channel: &mut Channel,
    ) -> Result<(), Pause> {
        if self.out.as_ref().is_some_and(|out| out.offset() + out.len() + len > end_of(out)) {
            self.flush(shared, channel)?;
        }
        if self.out.is_none() {
            if self.unacked >= UNACKED_MAX {
                return Err(Pause::Idle);
            }
            self.out = Some(shared.take_buffer(channel).ok_or(Pause::Starved)?);
            self.comes_back = shared.log.is_some();
        }
        Ok(())
    }

    /// Appends what `fill` writes to the buffer that is being filled.
    fn write(&mut self, channel: &mut Channel, fill: impl FnOnce(&mut [u8]) -> usize) {
        if let Some(out) = &mut self.out {
            let (start, at, end) = (out.offset(), out.offset() + out.len(), end_of(out));
            let len = fill(channel.bytes_mut(out, at..end));
            out.set_range(start..at + len);
        }
    }

    /// Sends the buffer that is being filled, if there is one.
    fn flush(&mut self, shared: &Shared, channel: &mut Channel) -> Result<(), Pause> {
        let Some(out) = self.out.take() else {
            return Ok(());
        };
        if out.is_empty() {
            channel.give_back(out);
            return Ok(());
        }
        if self.unacked >= UNACKED_MAX {
            self.out = Some(out);
            return Err(Pause::Idle);
        }
        if self.recorded && shared.log.as_ref().is_some_and(Log::is_fresh) {
            self.out = Some(out);
            return Err(Pause::Uncommitted);
        }
        let keep = self.comes_back;
        let notify = keep || self.since_ack + 1 >= SLOTS_PER_ACK;
        let cookie = u64::from(self.since_ack + 1);
        let durable = self.recorded;
        let options = SendOptions { cookie, notify, keep, durable };
        match channel.send(self.flow, out, options) {
            Ok(()) => {
                self.recorded = false;
                self.since_ack = if notify { 0 } else { self.since_ack + 1 };
                self.unacked += 1;
                Ok(())
            }
            Err(error) if matches!(error.cause, SendCause::Busy(_)) => {
                self.out = Some(error.buffer);
                Err(Pause::Starved)
            }
            Err(error) => {
                // A name from before the channel was lost: the flow is gone too.
                channel.give_back(error.buffer);
                self.phase = Phase::Done;
                Ok(())
            }
        }
    }

    /// Sends on from the file, after what the buffer being filled holds.
    fn send_file(
        &mut self,
        keep_alive: bool,
        shared: &mut Shared,
        channel: &mut Channel,
    ) -> Option<Pause> {
        let left = self.file.as_ref().map_or(0, OpenFile::left);
        if left == 0 {
            self.file = None;
            self.phase = after_response(keep_alive);
            return None;
        }
        let chunk = shared.chunk;
        if self.out.as_ref().is_some_and(|out| out.len() >= chunk) {
            return self.flush(shared, channel).err();
        }
        if let Err(pause) = self.room(1, shared, channel) {
            return Some(pause);
        }
        let (Some(out), Some(file)) = (&mut self.out, &mut self.file) else {
            return Some(Pause::Idle);
        };
        let (start, at) = (out.offset(), out.offset() + out.len());
        let end = (start + chunk).min(end_of(out));
        match file.read(channel.bytes_mut(out, at..end)) {
            Ok(len) => {
                out.set_range(start..at + len);
                None
            }
            // Less than was promised: the peer must not take it for the whole.
            Err(_) => {
                self.abort();
                None
            }
        }
    }
}

/// Goes on with the body's digest, if the peer gave one.
fn sum(digest: &mut Option<(u32, u32)>, content: &[u8]) {
    if let Some((_, found)) = digest {
        *found = crc32c::crc32c_append(*found, content);
    }
}

/// The end of the part of a buffer that a slot can name.
fn end_of(buffer: &Buffer) -> usize {
    buffer.capacity().min(usize::from(u16::MAX))
}

fn after_response(keep_alive: bool) -> Phase {
    if keep_alive { Phase::Head } else { Phase::Close }
}

fn after_head(body: Body, response: Response) -> Phase {
    match body {
        Body::Length(0) => Phase::Respond(response),
        Body::Length(len) => Phase::Body(len, response),
        Body::Chunked => Phase::Chunked(Chunks::start(), response),
    }
}

/// What a head leads to. Opens the file if one is asked for.
fn decide(
    head: &parse::Head<'_>,
    shared: &Shared,
    file: &mut Option<OpenFile>,
) -> Result<Phase, Status> {
    if matches!(head.body, Body::Length(len) if len > shared.body_max) {
        return Err(Status::ContentTooLarge);
    }
    let head_only = head.method == Method::Head;
    let mut response = Response {
        status: Status::Ok,
        content: Content::Fixed,
        head_only,
        keep_alive: head.keep_alive,
        allow: if shared.root.is_some() { "GET, HEAD" } else { "GET, HEAD, POST" },
    };
    match (head.method, &shared.root) {
        (Method::Get | Method::Head, Some(root)) => match root.find(head.target) {
            Some(found) => {
                let media_type = found.media_type;
                response.content = Content::File { len: found.left(), media_type };
                *file = (!head_only).then_some(found);
            }
            None => {
                response.status = Status::NotFound;
                response.content = Content::Status;
            }
        },
        (Method::Get | Method::Head | Method::Post, None) => {}
        (Method::Post | Method::Other, _) => {
            response.status = Status::MethodNotAllowed;
            response.content = Content::Status;
        }
    }
    Ok(match head.body {
        body if head.expects_continue => Phase::Invite(body, response),
        body => after_head(body, response),
    })
}
