//! `sockets:`: the host's own TCP, through io_uring. There is nothing to name: what is
//! bound are the guest's addresses, which are the host's.

use std::borrow::Cow;

use super::{Attachment, Device, Kind, OpenContext, OpenError, SpecError, Unavailable};
use crate::config::GUESTS_MAX;
use crate::engine::kernel::{self, SocketsError, SocketsOptions};

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    prefix: "sockets",
    form: "sockets:",
    about: "the host's own TCP, through io_uring; needs no privilege and no NIC",
    guests_max: GUESTS_MAX,
    shared: false,
    needs_addresses: false,
    cuts_packets: false,
    parse,
    probe,
};

/// The host's TCP.
#[derive(Debug)]
struct Sockets;

fn parse(rest: &str) -> Result<Box<dyn Device>, SpecError> {
    if let Some(parameters) = rest.strip_prefix('?') {
        let parameters = parameters.to_owned();
        return Err(SpecError::NoParameters { kind: KIND.prefix, parameters });
    }
    if !rest.is_empty() {
        return Err(SpecError::NameNotWanted { name: rest.to_owned(), kind: KIND.prefix });
    }
    Ok(Box::new(Sockets))
}

impl Device for Sockets {
    fn name(&self) -> &str {
        ""
    }

    fn has_hosts_addresses(&self) -> bool {
        true
    }

    fn open(&self, context: &mut OpenContext<'_>) -> Result<Attachment, OpenError> {
        if let Some(vlan) = context.station().vlan {
            return Err(SocketsError::Vlan { vlan }.into());
        }
        let engine = kernel::open_sockets(&SocketsOptions {
            addresses: &context.station().addresses,
            mtu: context.mtu,
            flows_max: context.flows_max,
            shared_sends_max: context.shared_sends_max,
            headroom: context.headroom,
            buffers: &context.region.buffers(),
        })?;
        Ok(Attachment::StackPort(engine))
    }
}

/// Makes a ring, which goes with its descriptor.
fn probe() -> Result<Cow<'static, str>, Unavailable> {
    let found = kernel::probe_sockets().map(Cow::from);
    found.map_err(|error| Unavailable { why: error.why().into(), help: error.help() })
}
