//! Templates: guests that are made when a VMM asks for one that is not configured.
//!
//! A template is a guest's table without what is each guest's own. What comes of it is
//! added to the configuration and judged as if it had been written there.

use std::net::IpAddr;
use std::ops::Range;

use toml::{Table, Value};

use super::read::is_name;
use super::{Config, ConfigErrors, Guest, Prefix};
use crate::attachment::Spec;

/// Guests of a template, where it does not say how many.
pub(super) const GUESTS_DEFAULT: u32 = 16;

/// A template, as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// The interface that it is for; every one, without.
    pub interface: Option<String>,
    /// Guests that it makes at most: each has addresses of its own.
    pub guests_max: u32,
    /// Those that it has made.
    pub(super) made: u32,
    /// Where it stands in the file.
    pub(super) at: Range<usize>,
    /// The keys of a guest.
    pub(super) table: Table,
}

/// What a VMM asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The guest's name.
    pub name: &'a str,
    /// The interface that it names, if it does.
    pub interface: Option<&'a str>,
    /// The device's address, if the VMM knows it.
    pub mac: Option<[u8; 6]>,
    /// The largest packet that the VMM was told of.
    pub mtu: Option<u16>,
}

/// Why there is no guest for a VMM.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It cannot be a guest's name.
    #[error("guest \"{0}\": a name has 1 to 63 of a-z, 0-9 and -: give guest=NAME")]
    Name(String),
    /// No template is for the interface.
    #[error(
        "there is no guest \"{name}\", and no template for interface \"{interface}\": add a \
         [[guest]] or a [[template]] to the configuration"
    )]
    NoTemplate {
        /// The guest.
        name: String,
        /// The interface.
        interface: String,
    },
    /// All its guests are there already.
    #[error("the template has its {0} guests already: raise guests_max")]
    Full(u32),
    /// The addresses run out.
    #[error("address {0} of the template has no {1} addresses behind it in its network")]
    Addresses(String, u32),
    /// What came of it is not good.
    #[error("what came of the template is not possible: {0}")]
    Invalid(ConfigErrors),
}

impl Config {
    /// Sets the limit of flows of every guest, also of those that are made later.
    pub fn set_flows_max(&mut self, flows_max: u32) {
        self.guests.iter_mut().for_each(|guest| guest.flows_max = flows_max);
        for template in &mut self.templates {
            template.table.insert("flows_max".to_owned(), Value::Integer(flows_max.into()));
        }
    }

    /// This configuration with one more guest, the last, made for a VMM that asks for it.
    pub fn with_guest(&self, wanted: &Wanted<'_>) -> Result<Config, TemplateError> {
        if !is_name(wanted.name) {
            return Err(TemplateError::Name(wanted.name.to_owned()));
        }
        let own =
            |t: &Template| t.interface.is_some() && t.interface.as_deref() == wanted.interface;
        let any = |t: &Template| t.interface.is_none();
        let index = self.templates.iter().position(own).or(self.templates.iter().position(any));
        let index = index.ok_or_else(|| TemplateError::NoTemplate {
            name: wanted.name.to_owned(),
            interface: wanted.interface.unwrap_or("").to_owned(),
        })?;
        let template = &self.templates[index];
        if template.made >= template.guests_max {
            return Err(TemplateError::Full(template.guests_max));
        }
        let table = template.guest(wanted, &self.guests)?;
        let mut document = self.document.clone();
        let guests = document.entry("guest").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(guests) = guests {
            guests.push(Value::Table(table));
        }
        let judged = Config::judge("the template", &document.to_string());
        let mut config = judged.map_err(TemplateError::Invalid)?;
        config.templates.clone_from(&self.templates);
        config.templates[index].made += 1;
        Ok(config)
    }

    /// The templates that no guest can come of, and why.
    pub(super) fn bad_templates(&self) -> Vec<(Range<usize>, TemplateError)> {
        let sample = |template: &Template| {
            let interface = template.interface.as_deref().or(Some("ix0"));
            let wanted = Wanted { name: "guest1", interface, mac: None, mtu: None };
            // Of its last guest, the addresses are the first to be impossible.
            let last = template.addresses(template.guests_max - 1).map(drop);
            let error = last.and_then(|()| self.with_guest(&wanted).map(drop)).err()?;
            Some((template.at.clone(), error))
        };
        self.templates.iter().filter_map(sample).collect()
    }
}

impl Template {
    /// The device that all of its guests name; `None` if each has one of its own, or it
    /// depends on what is asked for.
    pub fn port(&self) -> Option<Spec> {
        let text = self.table.get("port")?.as_str()?;
        let text = match &self.interface {
            Some(interface) => text.replace("{interface}", interface),
            None => text.to_owned(),
        };
        Spec::parse(&text).ok().filter(|_| !text.contains('{'))
    }

    /// The table of a guest, with addresses that none of `guests` has.
    fn guest(&self, wanted: &Wanted<'_>, guests: &[Guest]) -> Result<Table, TemplateError> {
        let interface = wanted.interface.unwrap_or("");
        let mut table = self.table.clone();
        table.iter_mut().for_each(|(_, value)| fill_in(value, wanted.name, interface));
        let first = hash(wanted.name) % self.guests_max;
        let mut numbers = (0..self.guests_max).map(|step| (first + step) % self.guests_max);
        let addresses = numbers
            .find_map(|number| match self.addresses(number) {
                Ok(addresses) => is_free(&addresses, guests).then_some(Ok(addresses)),
                Err(error) => Some(Err(error)),
            })
            .ok_or(TemplateError::Full(self.guests_max))??;
        if let Some(addresses) = addresses {
            let addresses = addresses.iter().map(|prefix| Value::String(prefix.to_string()));
            table.insert("addresses".to_owned(), Value::Array(addresses.collect()));
        }
        table.insert("name".to_owned(), Value::String(wanted.name.to_owned()));
        let mac = wanted.mac.unwrap_or_else(|| made_up_mac(wanted.name));
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        table.insert("mac".to_owned(), Value::String(mac));
        if let Some(mtu) = wanted.mtu {
            table.insert("mtu".to_owned(), Value::Integer(mtu.into()));
        }
        Ok(table)
    }

    /// The addresses of its guest with this number; none if it is not said in a list of
    /// them, which is for the door to judge.
    fn addresses(&self, number: u32) -> Result<Option<Vec<Prefix>>, TemplateError> {
        let Some(Value::Array(texts)) = self.table.get("addresses") else { return Ok(None) };
        let mut addresses = Vec::with_capacity(texts.len());
        for text in texts.iter().filter_map(Value::as_str) {
            let Ok(prefix) = text.parse::<Prefix>() else { return Ok(None) };
            let next = match prefix.address() {
                IpAddr::V4(address) => {
                    address.to_bits().checked_add(number).map(|n| IpAddr::V4(n.into()))
                }
                IpAddr::V6(address) => {
                    address.to_bits().checked_add(number.into()).map(|n| IpAddr::V6(n.into()))
                }
            };
            let next = next
                .filter(|&address| prefix.is_host(address))
                .and_then(|address| format!("{address}/{}", prefix.prefix_len()).parse().ok());
            let wrong = || TemplateError::Addresses(text.to_owned(), self.guests_max);
            addresses.push(next.ok_or_else(wrong)?);
        }
        Ok(Some(addresses))
    }
}

fn is_free(addresses: &Option<Vec<Prefix>>, guests: &[Guest]) -> bool {
    let taken = guests.iter().flat_map(|guest| &guest.addresses).map(|prefix| prefix.address());
    let mut wanted = addresses.iter().flatten().map(|prefix| prefix.address());
    let taken: std::collections::HashSet<IpAddr> = taken.collect();
    !wanted.any(|address| taken.contains(&address))
}

/// Puts the guest's and the interface's name into every text that asks for it.
fn fill_in(value: &mut Value, guest: &str, interface: &str) {
    match value {
        Value::String(text) => {
            *text = text.replace("{guest}", guest).replace("{interface}", interface);
        }
        Value::Array(values) => values.iter_mut().for_each(|v| fill_in(v, guest, interface)),
        Value::Table(table) => {
            table.iter_mut().for_each(|(_, v)| fill_in(v, guest, interface));
        }
        _ => {}
    }
}

/// FNV-1a, as a name's number is to be the same in every process.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A locally administered address that follows from the name.
fn made_up_mac(name: &str) -> [u8; 6] {
    let [a, b, c, d] = hash(name).to_be_bytes();
    [0x02, b'P', a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
        control = \"/run/pasted/control.sock\"
        [[template]]
        interface = \"ix0\"
        guests_max = 4
        addresses = [\"10.7.0.16/24\"]
        port = \"tap:{guest}\"
        region = { size = \"16MiB\", path = \"/dev/shm/{interface}-{guest}.region\" }
        spoof_check = false
        [[template]]
        addresses = [\"10.8.0.16/24\"]
        port = \"tap:{guest}\"
        region = { size = \"16MiB\" }
    ";

    fn wanted<'a>(name: &'a str, interface: &'a str) -> Wanted<'a> {
        Wanted { name, interface: Some(interface), mac: None, mtu: None }
    }

    #[test]
    fn a_guest_comes_of_the_template_of_its_interface() {
        let config = Config::parse("t", TEXT).unwrap();
        assert!(config.guests.is_empty());
        let asked =
            Wanted { mac: Some([2, 0, 0, 0, 0, 9]), mtu: Some(1400), ..wanted("web1", "ix0") };
        let guest = config.with_guest(&asked).unwrap().guests.pop().unwrap();
        assert_eq!((guest.name.as_str(), guest.mtu), ("web1", 1400));
        assert_eq!(guest.mac.octets(), [2, 0, 0, 0, 0, 9]);
        assert_eq!(guest.port.to_string(), "tap:web1");
        let path = guest.region.path.as_ref().unwrap();
        assert_eq!(path.to_str(), Some("/dev/shm/ix0-web1.region"));
        assert!(guest.socket.is_none());
        assert!(guest.address().to_string().starts_with("10.7.0."));
        // Another interface has the other one, and its own rules.
        let guest = config.with_guest(&wanted("web1", "ix9")).unwrap().guests.pop().unwrap();
        assert!(guest.address().to_string().starts_with("10.8.0."));
        assert!(guest.spoof_check);
        let mut config = config;
        config.set_flows_max(77);
        let guest = config.with_guest(&wanted("web1", "ix9")).unwrap().guests.pop().unwrap();
        assert_eq!(guest.flows_max, 77);
    }

    #[test]
    fn guests_have_addresses_of_their_own_until_there_are_none() {
        let mut config = Config::parse("t", TEXT).unwrap();
        for name in ["a", "b", "c", "d"] {
            config = config.with_guest(&wanted(name, "ix0")).unwrap();
        }
        let mut addresses: Vec<_> = config.guests.iter().map(Guest::address).collect();
        addresses.sort_unstable();
        let expected: Vec<IpAddr> =
            (16..20).map(|n| std::net::Ipv4Addr::new(10, 7, 0, n).into()).collect();
        assert_eq!(addresses, expected);
        let error = config.with_guest(&wanted("e", "ix0")).unwrap_err();
        assert!(matches!(error, TemplateError::Full(4)), "{error}");
        // Alone, a name has the same address in every process.
        let fresh = Config::parse("t", TEXT).unwrap();
        let first = fresh.with_guest(&wanted("a", "ix0")).unwrap();
        assert_eq!(first.guests[0].address(), config.guests[0].address());
    }

    #[test]
    fn a_template_is_full_whatever_its_guests_addresses_are() {
        let text = TEXT
            .replace("addresses = [\"10.7.0.16/24\"]", "addresses = \"guest\"")
            .replace("tap:{guest}", "tap:{interface}");
        let mut config = Config::parse("t", &text).unwrap();
        let port = config.templates[0].port().unwrap();
        assert_eq!((port.device(), config.templates[1].port().is_none()), ("ix0", true));
        for name in ["a", "b", "c", "d"] {
            config = config.with_guest(&wanted(name, "ix0")).unwrap();
            assert!(config.guests.last().unwrap().shares_addresses);
        }
        let error = config.with_guest(&wanted("e", "ix0")).unwrap_err();
        assert!(matches!(error, TemplateError::Full(4)), "{error}");
    }

    #[test]
    fn what_is_not_possible_is_said() {
        let config = Config::parse("t", TEXT).unwrap();
        let error = config.with_guest(&wanted("Web 1", "ix0")).unwrap_err();
        assert!(matches!(error, TemplateError::Name(_)), "{error}");
        // 16 characters are no name of a device.
        let error = config.with_guest(&wanted("a-much-longer-name", "ix0")).unwrap_err();
        assert!(error.to_string().contains("tap"), "{error}");
        let one = TEXT.split("[[template]]").take(2).collect::<Vec<_>>().join("[[template]]");
        let error = Config::parse("t", &one).unwrap().with_guest(&wanted("a", "ix9")).unwrap_err();
        assert!(matches!(error, TemplateError::NoTemplate { .. }), "{error}");
        let named = config.with_guest(&wanted("a", "ix0")).unwrap();
        let error = named.with_guest(&wanted("a", "ix0")).unwrap_err();
        assert!(error.to_string().contains("name"), "{error}");
    }

    #[test]
    fn a_bad_template_is_found_when_the_file_is_read() {
        for (from, to, says) in [
            ("tap:{guest}", "tpa:{guest}", "tpa"),
            ("10.7.0.16/24", "10.7.0.253/24", "10.7.0.253/24"),
            ("guests_max = 4", "guest_max = 4", "guest_max"),
            ("guests_max = 4", "guests_max = 0", "guests_max"),
            ("guests_max = 4", "name = \"x\"", "name"),
            ("control = \"/run/pasted/control.sock\"", "", "control"),
            ("\"16MiB\", path", "\"16MiB\", paht", "paht"),
        ] {
            let text = TEXT.replacen(from, to, 1);
            let errors = Config::parse("t", &text).unwrap_err().to_string();
            assert!(errors.contains(says), "{to}: {errors}");
        }
    }
}
