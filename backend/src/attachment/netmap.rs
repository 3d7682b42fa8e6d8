//! `netmap:IF`, with what netmap's own syntax adds to it: one of its rings (`ix0-2`), the
//! host's own stack beside the guest (`ix0*`), or the end of a pipe (`ix0{7`, `ix0}7`).

use std::borrow::Cow;

use super::{Attachment, Device, Kind, OpenContext, OpenError, SpecError, Unavailable};
use crate::config::GUESTS_MAX;
use crate::port::netmap::{self, NameFault, NetmapError, NetmapOptions, PortName};

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    prefix: "netmap",
    form: "netmap:NAME[?fragments=on]",
    about: "a NIC or a pipe of netmap's, in the region's own buffers where the driver allows it",
    guests_max: GUESTS_MAX,
    shared: true,
    needs_addresses: false,
    cuts_packets: false,
    parse,
    probe,
};

const PARAMETERS: &str = "fragments";

/// A port of netmap's as configured.
#[derive(Debug)]
pub(super) struct NetmapDevice {
    /// The text without parameters, for messages.
    pub(super) text: String,
    /// The same without the kind.
    pub(super) label: String,
    pub(super) name: PortName,
    pub(super) fragments: bool,
}

fn parse(rest: &str) -> Result<Box<dyn Device>, SpecError> {
    let (name, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let judged = PortName::netmap(name).map_err(|fault| spec_error(&KIND, name, fault))?;
    let mut fragments = None;
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = parameter
            .split_once('=')
            .ok_or_else(|| SpecError::NoValue { parameter: parameter.to_owned() })?;
        let parameter = key.to_owned();
        if key != PARAMETERS {
            let kind = KIND.prefix;
            return Err(SpecError::UnknownParameter { parameter, kind, known: PARAMETERS });
        }
        if fragments.is_some() {
            return Err(SpecError::RepeatedParameter { parameter });
        }
        fragments = Some(match value {
            "on" => true,
            "off" => false,
            _ => {
                let (value, expected) = (value.to_owned(), "on, if the driver joins slots, or off");
                return Err(SpecError::BadValue { parameter, value, expected });
            }
        });
    }
    Ok(Box::new(NetmapDevice {
        text: format!("netmap:{name}"),
        label: name.to_owned(),
        name: judged,
        fragments: fragments.unwrap_or(false),
    }))
}

/// What is wrong with a name, in the words of the other kinds.
pub(super) fn spec_error(kind: &'static Kind, name: &str, fault: NameFault) -> SpecError {
    let (name, prefix) = (name.to_owned(), kind.prefix);
    match fault {
        NameFault::Missing => SpecError::NoName { form: kind.form },
        NameFault::TooLong(max) => SpecError::NameTooLong { name, kind: prefix, max },
        NameFault::Character => SpecError::NameCharacter { name, kind: prefix, allowed: "_." },
        NameFault::Ring => SpecError::BadValue {
            parameter: "ring".to_owned(),
            value: name,
            expected: "IF-RING, with a ring's number below 4095",
        },
    }
}

impl Device for NetmapDevice {
    fn name(&self) -> &str {
        &self.label
    }

    fn open(&self, context: &mut OpenContext<'_>) -> Result<Attachment, OpenError> {
        let options = NetmapOptions {
            port: &self.text,
            name: &self.name,
            fragments: self.fragments,
            mtu: context.mtu,
            stations: context.stations,
            spoof_check: context.spoof_check,
        };
        Ok(Attachment::Port(netmap::open(&options, context.region)?))
    }
}

/// Asks netmap which API it speaks.
pub(super) fn probe() -> Result<Cow<'static, str>, Unavailable> {
    netmap::probe().map(|()| "netmap answers, API 14".into()).map_err(|error| unavailable(&error))
}

/// What it means that netmap cannot be had.
pub(super) fn unavailable(error: &NetmapError) -> Unavailable {
    let (why, help): (Cow<'static, str>, Cow<'static, str>) = match error {
        NetmapError::NoModule { .. } => (
            "netmap module not loaded".into(),
            "build netmap for this kernel and `modprobe netmap`; FreeBSD's GENERIC kernel has it"
                .into(),
        ),
        NetmapError::Permission { .. } => (
            "this user may not open /dev/netmap".into(),
            "run as root, or `chgrp GROUP /dev/netmap && chmod 660 /dev/netmap`".into(),
        ),
        NetmapError::Version { .. } => (
            "the netmap module does not speak API 14".into(),
            "update netmap to one of 2019 or later".into(),
        ),
        error => (error.to_string().into(), "see the kernel's log".into()),
    };
    Unavailable { why, help }
}

#[cfg(test)]
mod tests {
    use super::super::{Spec, SpecError};

    #[test]
    fn what_is_wrong_is_said() {
        for (text, message) in [
            ("netmap:", "the device's name is missing: write netmap:NAME[?fragments=on]"),
            (
                "netmap:ix0^",
                "\"ix0^\" is no netmap name: begin with a letter or digit, and use these and any \
                 of _.",
            ),
            (
                "netmap:ix0-x",
                "ring=ix0-x is not possible: it is IF-RING, with a ring's number below 4095",
            ),
            (
                "netmap:ix0?queues=1",
                "there is no parameter \"queues\": a netmap port has fragments",
            ),
            (
                "netmap:ix0?fragments=yes",
                "fragments=yes is not possible: it is on, if the driver joins slots, or off",
            ),
            (
                "netmap:ix0?fragments=on&fragments=on",
                "parameter \"fragments\" is given twice: give it once",
            ),
            ("vale0:", "the device's name is missing: write vale[SWITCH]:PORT"),
            ("vale0:a?x=1", "a vale port takes no parameters: remove \"?x=1\""),
            (
                "vale0:a/b",
                "\"0:a/b\" is no vale name: begin with a letter or digit, and use these and any \
                 of _.",
            ),
        ] {
            assert_eq!(Spec::parse(text).unwrap_err().to_string(), message, "{text}");
        }
        assert!(matches!(Spec::parse("valet:a:b"), Err(SpecError::NameCharacter { .. })));
    }

    #[test]
    fn the_kinds_and_their_devices() {
        for (text, prefix, device) in [
            ("netmap:ix0", "netmap", "ix0"),
            ("netmap:ix0*", "netmap", "ix0*"),
            ("netmap:ix0-3?fragments=on", "netmap", "ix0-3"),
            ("netmap:web{1", "netmap", "web{1"),
            ("vale0:web1", "vale", "vale0:web1"),
            ("vale:a", "vale", "vale:a"),
        ] {
            let spec = Spec::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((spec.kind().prefix, spec.device()), (prefix, device));
            assert_eq!(spec.to_string(), text);
        }
    }
}
