//! `xdp:DEVICE`: a network device of the host's, by AF_XDP.

use std::borrow::Cow;

use super::spec::check_name;
use super::{Attachment, Device, Kind, OpenContext, OpenError, SpecError, Unavailable};
use crate::config::GUESTS_MAX;
use crate::port::{XdpError, XdpMode, XdpOptions, XdpPort};

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    prefix: "xdp",
    form: "xdp:DEVICE[@QUEUE][?mode=driver|generic]",
    about: "a NIC that the host keeps using, by AF_XDP",
    guests_max: GUESTS_MAX,
    shared: true,
    needs_addresses: true,
    cuts_packets: true,
    parse,
    probe,
};

/// Bytes of the longest interface name: IFNAMSIZ less the terminator.
const NAME_MAX: usize = 15;
/// The highest number of a queue.
const QUEUE_MAX: u32 = 4095;

/// A network device as configured.
#[derive(Debug)]
struct XdpDevice {
    name: String,
    queue: Option<u32>,
    mode: Option<XdpMode>,
}

fn parse(rest: &str) -> Result<Box<dyn Device>, SpecError> {
    let (device, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (name, queue) = match device.split_once('@') {
        None => (device, None),
        Some((name, queue)) => {
            let number = queue.parse().ok().filter(|&queue| queue <= QUEUE_MAX);
            let bad = || SpecError::BadValue {
                parameter: "@".to_owned(),
                value: queue.to_owned(),
                expected: "the number of a receive queue, from 0",
            };
            (name, Some(number.ok_or_else(bad)?))
        }
    };
    check_name(&KIND, name, NAME_MAX, "-_.")?;
    let mut mode = None;
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let Some((key, value)) = parameter.split_once('=') else {
            return Err(SpecError::NoValue { parameter: parameter.to_owned() });
        };
        if key != "mode" {
            return Err(SpecError::UnknownParameter {
                parameter: key.to_owned(),
                kind: KIND.prefix,
                known: "mode",
            });
        }
        if mode.is_some() {
            return Err(SpecError::RepeatedParameter { parameter: key.to_owned() });
        }
        let named = [XdpMode::Driver, XdpMode::Generic].into_iter().find(|m| m.name() == value);
        mode = Some(named.ok_or_else(|| SpecError::BadValue {
            parameter: key.to_owned(),
            value: value.to_owned(),
            expected: "driver or generic; left out, the best that the device has",
        })?);
    }
    Ok(Box::new(XdpDevice { name: name.to_owned(), queue, mode }))
}

impl Device for XdpDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn part(&self) -> Option<u32> {
        self.queue
    }

    fn open(&self, context: &mut OpenContext<'_>) -> Result<Attachment, OpenError> {
        let port = XdpPort::open(&XdpOptions {
            name: &self.name,
            queue: self.queue,
            mode: self.mode,
            mtu: context.mtu,
            stations: context.stations,
            devices: &context.common.xdp,
            region: context.region,
        })?;
        Ok(Attachment::Port(Box::new(port)))
    }
}

/// Makes a socket and loads a program, neither of which touches a device.
fn probe() -> Result<Cow<'static, str>, Unavailable> {
    let (why, help): (Cow<'static, str>, _) = match XdpPort::probe() {
        Ok(()) => return Ok("sockets and programs can be made here".into()),
        Err(XdpError::Unsupported { .. }) => (
            "this kernel has no AF_XDP".into(),
            "use another kind of port, or a kernel with CONFIG_XDP_SOCKETS".into(),
        ),
        Err(XdpError::Permission { call, .. }) => (
            format!("{call} is not permitted").into(),
            "run with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF".into(),
        ),
        Err(XdpError::Program { source, .. }) => (
            format!("the kernel refuses the filter ({source})").into(),
            "use a kernel from 5.10 on".into(),
        ),
        Err(XdpError::Failed { call, source, .. }) => (
            format!("{call} failed ({source})").into(),
            "see whether a container or a system-call filter forbids it".into(),
        ),
        Err(error) => (error.to_string().into(), "use another kind of port".into()),
    };
    Err(Unavailable { why, help })
}
