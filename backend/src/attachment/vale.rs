//! `vale0:web1`: a port of one of netmap's VALE switches. Switch and port come into being
//! when they are named.

use super::netmap::{NetmapDevice, probe, spec_error};
use super::{Device, Kind, SpecError};
use crate::config::GUESTS_MAX;
use crate::port::netmap::PortName;

/// The row of the table of kinds. The switch's name stands before the colon, so what
/// [`Kind::parse`] is given begins with it.
pub(super) const KIND: Kind = Kind {
    prefix: "vale",
    form: "vale[SWITCH]:PORT",
    about: "a port of a VALE switch of netmap's; the kernel copies between ports",
    guests_max: GUESTS_MAX,
    shared: true,
    needs_addresses: false,
    cuts_packets: false,
    parse,
    probe,
};

fn parse(rest: &str) -> Result<Box<dyn Device>, SpecError> {
    let (name, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    if !parameters.is_empty() {
        let parameters = parameters.to_owned();
        return Err(SpecError::NoParameters { kind: KIND.prefix, parameters });
    }
    // `vale:PORT` has lost its colon by now.
    let (switch, port) = name.split_once(':').unwrap_or(("", name));
    let judged = PortName::vale(switch, port).map_err(|fault| spec_error(&KIND, name, fault))?;
    let text = judged.kernel.clone();
    Ok(Box::new(NetmapDevice { label: text.clone(), text, name: judged, fragments: false }))
}
