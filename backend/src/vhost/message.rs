//! The message table: one row for each vhost-user message that this back end
//! knows.
//!
//! A row says what a message may carry, whether it is always answered, what it
//! does to running rings, which protocol feature it needs, and who handles it.
//! Nothing about a message is decided anywhere else; numbers and layouts are
//! those of QEMU's `docs/interop/vhost-user.rst`.

use std::os::fd::OwnedFd;

use paste_abi::vhost_user::{
    CONFIG_MAX, ConfigHeader, MEM_TABLE_MAX, MemRegion, MemTableHeader, SingleMemRegion,
    VRING_NO_FD, VringAddr, VringState, protocol, request as id,
};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::control::{Control, Refusal};
use super::handlers::{config, features, memory, rings};

/// Bytes of payload that a message may have, known or not.
pub const PAYLOAD_MAX: usize = 4096;

/// A message of the front end whose payload and descriptors are as its row says.
#[derive(Debug)]
pub struct Request<'a> {
    /// The payload.
    pub payload: &'a [u8],
    /// The descriptors.
    pub descriptors: Vec<OwnedFd>,
}

impl Request<'_> {
    /// The payload's first bytes as a layout.
    pub fn read<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, Refusal> {
        T::read_from_prefix(self.payload)
            .map(|(value, _)| value)
            .map_err(|_| Refusal::Short { have: self.payload.len(), want: size_of::<T>() })
    }

    /// The payload as a number.
    pub fn number(&self) -> Result<u64, Refusal> {
        self.read::<U64>().map(U64::get)
    }

    /// The only descriptor, if there is one.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop()
    }
}

/// What a handler answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; nothing to tell.
    Done,
    /// The payload of the reply.
    Data(Vec<u8>),
}

impl Answer {
    /// A number as the payload of the reply.
    pub fn number(value: u64) -> Answer {
        Answer::Data(value.to_le_bytes().to_vec())
    }
}

/// How many bytes of payload a message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Exactly so many.
    Exactly(usize),
    /// A [`MemTableHeader`] and as many regions as it says.
    MemTable,
    /// A [`ConfigHeader`] and as many bytes as it says.
    Config,
}

impl Payload {
    /// The length that `payload` should have, if it differs from the length
    /// that it has.
    pub fn expected_instead(self, payload: &[u8]) -> Option<usize> {
        let want = match self {
            Payload::Exactly(len) => len,
            Payload::MemTable => {
                let count = MemTableHeader::read_from_prefix(payload)
                    .map_or(0, |(header, _)| header.count.get() as usize);
                size_of::<MemTableHeader>() + count.min(MEM_TABLE_MAX) * size_of::<MemRegion>()
            }
            Payload::Config => {
                let size = ConfigHeader::read_from_prefix(payload)
                    .map_or(0, |(header, _)| header.size.get() as usize);
                size_of::<ConfigHeader>() + size.min(CONFIG_MAX)
            }
        };
        (want != payload.len()).then_some(want)
    }
}

/// How many descriptors a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// None.
    None,
    /// One.
    One,
    /// One, unless the payload says that there is none.
    UnlessNoFd,
    /// One for each region of the table.
    PerRegion,
    /// None is needed; one is closed unused, for front ends that send it.
    Ignored,
}

impl Descriptors {
    /// The number of descriptors that the message should carry, if it differs
    /// from `have`. `payload` has the length that its row asks for.
    pub fn expected_instead(self, payload: &[u8], have: usize) -> Option<usize> {
        let want = match self {
            Descriptors::None => 0,
            Descriptors::One => 1,
            Descriptors::UnlessNoFd => {
                let value = U64::read_from_prefix(payload).map_or(0, |(value, _)| value.get());
                usize::from(value & VRING_NO_FD == 0)
            }
            Descriptors::PerRegion => MemTableHeader::read_from_prefix(payload)
                .map_or(0, |(header, _)| header.count.get() as usize),
            Descriptors::Ignored => have.min(1),
        };
        (want != have).then_some(want)
    }
}

/// How a message is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With 0 or 1, if the front end asks and REPLY_ACK is negotiated.
    Ack,
    /// With data. A refusal cannot be told and ends the session.
    Data,
    /// With data; a refusal is a reply without payload.
    DataOrNothing,
}

/// What a message does to rings that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// Nothing.
    Run,
    /// What was used is published first, because where it is may change.
    Settle,
    /// They are settled and stopped first.
    Stop,
}

/// A handler. It runs when the message is as its row says.
pub type Handler = fn(&mut Control, Request<'_>) -> Result<Answer, Refusal>;

/// Everything about one message.
pub struct Row {
    /// Number of the request.
    pub id: u32,
    /// Its name, without the prefix VHOST_USER_.
    pub name: &'static str,
    /// Bytes of payload.
    pub payload: Payload,
    /// Descriptors.
    pub descriptors: Descriptors,
    /// The answer.
    pub reply: Reply,
    /// What happens to the rings before it is handled.
    pub rings: Rings,
    /// Protocol features that must have been negotiated; 0: none.
    pub needs: u64,
    /// Who handles it.
    pub handler: Handler,
}

const NOTHING: Payload = Payload::Exactly(0);
const NUMBER: Payload = Payload::Exactly(8);
const STATE: Payload = Payload::Exactly(size_of::<VringState>());
const ADDRESSES: Payload = Payload::Exactly(size_of::<VringAddr>());
const REGION: Payload = Payload::Exactly(size_of::<SingleMemRegion>());

macro_rules! table {
    ($($name:ident: $payload:expr, $descriptors:expr, $reply:expr, $rings:expr, $needs:expr,
        $handler:expr;)*) => {
        &[$(Row {
            id: id::$name,
            name: stringify!($name),
            payload: $payload,
            descriptors: $descriptors,
            reply: $reply,
            rings: $rings,
            needs: $needs,
            handler: $handler,
        }),*]
    };
}

/// The table, in the order of the numbers.
#[rustfmt::skip]
pub static TABLE: &[Row] = {
    use Descriptors::{Ignored, None, One, PerRegion, UnlessNoFd};
    use Payload::{Config, MemTable};
    use Reply::{Ack, Data, DataOrNothing};
    use Rings::{Run, Settle, Stop};
    use protocol as p;
    table! {
        GET_FEATURES:          NOTHING,   None,       Data, Run,    0, features::get;
        SET_FEATURES:          NUMBER,    None,       Ack,  Settle, 0, features::set;
        SET_OWNER:             NOTHING,   None,       Ack,  Run,    0, features::set_owner;
        RESET_OWNER:           NOTHING,   None,       Ack,  Stop,   0, rings::reset_owner;
        SET_MEM_TABLE:         MemTable,  PerRegion,  Ack,  Settle, 0, memory::set_table;
        SET_VRING_NUM:         STATE,     None,       Ack,  Run,    0, rings::set_num;
        SET_VRING_ADDR:        ADDRESSES, None,       Ack,  Settle, 0, rings::set_addr;
        SET_VRING_BASE:        STATE,     None,       Ack,  Run,    0, rings::set_base;
        GET_VRING_BASE:        STATE,     None,       Data, Settle, 0, rings::get_base;
        SET_VRING_KICK:        NUMBER,    UnlessNoFd, Ack,  Settle, 0, rings::set_kick;
        SET_VRING_CALL:        NUMBER,    UnlessNoFd, Ack,  Run,    0, rings::set_call;
        SET_VRING_ERR:         NUMBER,    UnlessNoFd, Ack,  Run,    0, rings::set_err;
        GET_PROTOCOL_FEATURES: NOTHING,   None,       Data, Run,    0, features::get_protocol;
        SET_PROTOCOL_FEATURES: NUMBER,    None,       Ack,  Run,    0, features::set_protocol;
        GET_QUEUE_NUM:         NOTHING,   None,       Data, Run,    p::MQ, features::get_queue_num;
        SET_VRING_ENABLE:      STATE,     None,       Ack,  Run,    0, rings::set_enable;
        NET_SET_MTU:           NUMBER,    None,       Ack,  Run,    p::MTU, config::set_mtu;
        SET_BACKEND_REQ_FD:    NOTHING,   One,        Ack,  Run,    p::BACKEND_REQ, memory::set_backend_channel;
        GET_CONFIG:            Config,    None,       DataOrNothing, Run, p::CONFIG, config::get;
        SET_CONFIG:            Config,    None,       Ack,  Run,    p::CONFIG, config::set;
        RESET_DEVICE:          NOTHING,   None,       Ack,  Stop,   p::RESET_DEVICE, rings::reset_device;
        GET_MAX_MEM_SLOTS:     NOTHING,   None,       Data, Run,    p::CONFIGURE_MEM_SLOTS, memory::get_max_slots;
        ADD_MEM_REG:           REGION,    One,        Ack,  Settle, p::CONFIGURE_MEM_SLOTS, memory::add;
        REM_MEM_REG:           REGION,    Ignored,    Ack,  Settle, p::CONFIGURE_MEM_SLOTS, memory::remove;
        SET_STATUS:            NUMBER,    None,       Ack,  Settle, p::STATUS, config::set_status;
        GET_STATUS:            NOTHING,   None,       Data, Run,    p::STATUS, config::get_status;
        GET_SHMEM_CONFIG:      NOTHING,   None,       Data, Run,    p::SHMEM, memory::get_shmem_config;
    }
};

/// The row of a request.
pub fn row_of(id: u32) -> Option<&'static Row> {
    TABLE.binary_search_by_key(&id, |row| row.id).ok().map(|index| &TABLE[index])
}
