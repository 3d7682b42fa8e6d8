//! `tap:NAME`: a TAP device of the host.

use std::borrow::Cow;

use super::spec::check_name;
use super::{Attachment, Device, Kind, OpenContext, OpenError, SpecError, Unavailable};
use crate::config::GUESTS_MAX;
use crate::port::{TapError, TapPort};

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    prefix: "tap",
    form: "tap:NAME",
    about: "a TAP device of the host",
    guests_max: GUESTS_MAX,
    shared: true,
    needs_addresses: false,
    cuts_packets: false,
    parse,
    probe,
};

/// Bytes of the longest interface name: IFNAMSIZ less the terminator.
const NAME_MAX: usize = 15;

/// A TAP device as configured.
#[derive(Debug)]
struct TapDevice {
    name: String,
}

fn parse(rest: &str) -> Result<Box<dyn Device>, SpecError> {
    let (name, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    check_name(&KIND, name, NAME_MAX, "-_.")?;
    if !parameters.is_empty() {
        return Err(SpecError::NoParameters {
            kind: KIND.prefix,
            parameters: parameters.to_owned(),
        });
    }
    Ok(Box::new(TapDevice { name: name.to_owned() }))
}

impl Device for TapDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, context: &mut OpenContext<'_>) -> Result<Attachment, OpenError> {
        Ok(Attachment::Port(Box::new(TapPort::open(&self.name, context.mtu)?)))
    }
}

/// Makes a device, which goes with its descriptor.
fn probe() -> Result<Cow<'static, str>, Unavailable> {
    let (why, help): (Cow<'static, str>, Cow<'static, str>) = match TapPort::probe() {
        Ok(()) => return Ok("devices can be made here".into()),
        Err(TapError::NoDriver { .. }) => {
            ("/dev/net/tun does not exist".into(), "load the kernel's tun module".into())
        }
        Err(TapError::Permission { .. }) => (
            "this user may not make TAP devices".into(),
            "name one that was made for this user with `ip tuntap add dev NAME mode tap user \
             USER`, or run with CAP_NET_ADMIN"
                .into(),
        ),
        Err(TapError::Unsupported { .. }) => {
            ("there is no TAP port on this system".into(), "use another kind of port".into())
        }
        Err(TapError::Failed { call, source, .. }) => (
            format!("{call} failed ({source})").into(),
            "see whether a container or a system-call filter forbids it".into(),
        ),
        Err(error @ (TapError::Busy { .. } | TapError::NotTap { .. } | TapError::Mtu { .. })) => {
            (error.to_string().into(), "try again".into())
        }
    };
    Err(Unavailable { why, help })
}
