//! `paste:NIC`: the host's own TCP on a NIC, through PASTE's module. As the text of a VMM's
//! option, `paste=NIC` names the NIC alone and leaves the engine to the configuration; here
//! it names both.

use std::borrow::Cow;

use super::spec::check_name;
use super::{Attachment, Device, Kind, OpenContext, OpenError, SpecError, Unavailable, netmap};
use crate::engine::kernel::{self, PasteError, PasteOptions};
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
        let engine = kernel::open_paste(&PasteOptions {
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
        Ok(Attachment::StackPort(engine))
    }
}

/// Asks netmap which API it speaks, and whether it has PASTE. Nothing is made by asking.
fn probe() -> Result<Cow<'static, str>, Unavailable> {
    match kernel::probe_paste() {
        Ok(()) => Ok("netmap answers with PASTE, API 14".into()),
        Err(error) => Err(unavailable(&error)),
    }
}

fn unavailable(error: &PasteError) -> Unavailable {
    let (why, help): (Cow<'static, str>, _) = match error {
        PasteError::Unsupported { .. } => (
            "PASTE serves guests on Linux alone".into(),
            "use another kind of port, such as netmap:NIC".into(),
        ),
        PasteError::Port(PstError::Netmap(error)) => return netmap::unavailable(error),
        PasteError::Port(PstError::NoPaste { .. }) => (
            "the netmap module was built without PASTE".into(),
            "build the one of PASTE's branch (--enable-paste) for a kernel before Linux 6.5".into(),
        ),
        error => (error.to_string().into(), "see the kernel's log".into()),
    };
    Unavailable { why, help }
}

#[cfg(test)]
mod tests {
    use super::super::Spec;
    use super::*;

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
        if std::path::Path::new("/dev/netmap").exists() {
            return;
        }
        let found = probe().unwrap_err();
        let not_loaded = found.why == "netmap module not loaded";
        assert!(not_loaded || found == unavailable(&elsewhere()), "{found}");
        assert!(!not_loaded || found.help.contains("modprobe netmap"), "{found}");
    }

    fn elsewhere() -> PasteError {
        PasteError::Unsupported { port: "paste:ix0".to_owned(), nic: "ix0".to_owned() }
    }

    #[test]
    fn where_there_is_no_such_module_another_port_is_named() {
        assert_eq!(
            elsewhere().to_string(),
            "port paste:ix0: PASTE serves guests on Linux alone: use port netmap:ix0"
        );
        assert_eq!(
            unavailable(&elsewhere()).to_string(),
            "PASTE serves guests on Linux alone: use another kind of port, such as netmap:NIC"
        );
    }
}
