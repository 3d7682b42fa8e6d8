//! `paste:NIC`: the host's own TCP on a NIC, through PASTE's module. As the text of a VMM's
//! option, `paste=NIC` names the NIC alone and leaves the engine to the configuration; here
//! it names both.

use std::borrow::Cow;

use super::spec::check_name;
use super::{Attachment, Device, Kind, OpenContext, OpenError, SpecError, Unavailable, netmap};
use crate::engine::paste::{self, Options, PasteEngine};
use crate::port::netmap::pst::PstError;

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    prefix: "paste",
    form: "paste:NIC",
    about: "the host's own TCP on a NIC, through PASTE's kernel module; copies once each way",
    guests_max: 1,
    shared: false,
    needs_addresses: false,
    cuts_packets: false,
    parse,
    probe,
};

/// Bytes of the longest interface name: IFNAMSIZ less the terminator.
const NAME_MAX: usize = 15;

/// A NIC with PASTE.
#[derive(Debug)]
struct Paste {
    /// The whole text, for messages.
    text: String,
    nic: String,
}

fn parse(rest: &str) -> Result<Box<dyn Device>, SpecError> {
    if let Some((_, parameters)) = rest.split_once('?') {
        let parameters = parameters.to_owned();
        return Err(SpecError::NoParameters { kind: KIND.prefix, parameters });
    }
    check_name(&KIND, rest, NAME_MAX, "-_.")?;
    Ok(Box::new(Paste { text: format!("paste:{rest}"), nic: rest.to_owned() }))
}

impl Device for Paste {
    fn name(&self) -> &str {
        &self.nic
    }

    fn has_hosts_addresses(&self) -> bool {
        true
    }

    fn open(&self, context: &mut OpenContext<'_>) -> Result<Attachment, OpenError> {
        let station = context.station();
        let engine = PasteEngine::new(&Options {
            port: &self.text,
            nic: &self.nic,
            addresses: &station.addresses,
            vlan: station.vlan,
            mtu: context.mtu,
            flows_max: context.flows_max,
            shared_sends_max: context.shared_sends_max,
            headroom: context.headroom,
            buffers: &context.region.buffers(),
        })?;
        Ok(Attachment::StackPort(Box::new(engine)))
    }
}

/// Asks netmap which API it speaks, and whether it has PASTE. Nothing is made by asking.
fn probe() -> Result<Cow<'static, str>, Unavailable> {
    match paste::probe() {
        Ok(()) => Ok("netmap answers with PASTE, API 14".into()),
        Err(PstError::Netmap(error)) => Err(netmap::unavailable(&error)),
        Err(PstError::NoPaste { .. }) => Err(Unavailable {
            why: "the netmap module was built without PASTE".into(),
            help: "build the one of PASTE's branch (--enable-paste) for a kernel before Linux 6.5"
                .into(),
        }),
        Err(error) => {
            Err(Unavailable { why: error.to_string().into(), help: "see the kernel's log".into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KINDS, Spec};

    #[test]
    fn the_nic_is_named_and_nothing_else() {
        for nic in ["ix0", "eth0.7", "enp0s31f6-a_b"] {
            let spec = Spec::parse(&format!("paste:{nic}")).unwrap();
            assert_eq!((spec.kind().prefix, spec.device()), ("paste", nic));
            assert!(spec.has_hosts_addresses());
        }
        for (text, message) in [
            ("paste:", "the device's name is missing: write paste:NIC"),
            ("paste:ix0?queues=1", "a paste port takes no parameters: remove \"?queues=1\""),
            (
                "paste:averylonginterface",
                "\"averylonginterface\" is too long: a paste name has at most 15 bytes",
            ),
            (
                "paste:ix0*",
                "\"ix0*\" is no paste name: begin with a letter or digit, and use these and any \
                 of -_.",
            ),
        ] {
            assert_eq!(Spec::parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    /// On a host without the module, which is where the tests run as a rule.
    #[test]
    fn without_the_module_the_host_cannot_do_it() {
        let kind = KINDS.iter().find(|kind| kind.prefix == "paste").unwrap();
        let found = (kind.probe)();
        if std::path::Path::new("/dev/netmap").exists() {
            return drop(found);
        }
        let unavailable = found.unwrap_err();
        assert_eq!(unavailable.why, "netmap module not loaded");
        assert!(unavailable.help.contains("modprobe netmap"), "{unavailable}");
    }
}
