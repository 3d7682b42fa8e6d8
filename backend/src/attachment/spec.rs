//! The text that names a device, judged: `tap:tap0`, `pipe:wire0?loss=0.05`.

use std::fmt;
use std::sync::Arc;

use super::{Attachment, Device, KINDS, Kind, OpenContext, OpenError, vale};

/// A device as configured, and its kind.
#[derive(Clone, Debug)]
pub struct Spec {
    text: String,
    kind: &'static Kind,
    device: Arc<dyn Device>,
}

impl Spec {
    /// Judges the text.
    ///
    /// # Errors
    /// [`SpecError`], which says what to write.
    pub fn parse(text: &str) -> Result<Spec, SpecError> {
        let Some((prefix, rest)) = text.split_once(':') else {
            return Err(SpecError::NoPrefix { text: text.to_owned() });
        };
        let exact = KINDS.iter().find(|kind| kind.prefix == prefix).map(|kind| (kind, rest));
        // A switch has its name before the colon: `vale0:web1`.
        let switch = || text.strip_prefix(vale::KIND.prefix).map(|rest| (&vale::KIND, rest));
        let (kind, rest) = exact
            .or_else(switch)
            .ok_or_else(|| SpecError::UnknownKind { prefix: prefix.to_owned() })?;
        let device = Arc::from((kind.parse)(rest)?);
        Ok(Spec { text: text.to_owned(), kind, device })
    }

    /// The kind of device.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// The device's name, without prefix and parameters.
    pub fn device(&self) -> &str {
        self.device.name()
    }

    /// See [`Device::part`].
    pub fn part(&self) -> Option<u32> {
        self.device.part()
    }

    /// See [`Device::has_hosts_addresses`].
    pub fn has_hosts_addresses(&self) -> bool {
        self.device.has_hosts_addresses()
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`OpenError`], which names the port.
    pub fn open(&self, context: &mut OpenContext<'_>) -> Result<Attachment, OpenError> {
        self.device.open(context)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Spec {
    fn eq(&self, other: &Spec) -> bool {
        self.text == other.text
    }
}

/// What is wrong with the text of a port, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No colon.
    #[error("\"{text}\" does not say what kind of port it is: write {}", forms())]
    NoPrefix {
        /// The text.
        text: String,
    },
    /// The prefix is not in the table.
    #[error("there is no kind of port \"{prefix}\": write {}", forms())]
    UnknownKind {
        /// What stood before the colon.
        prefix: String,
    },
    /// Nothing behind the colon.
    #[error("the device's name is missing: write {form}")]
    NoName {
        /// The kind's form.
        form: &'static str,
    },
    /// The name is too long.
    #[error("\"{name}\" is too long: a {kind} name has at most {max} bytes")]
    NameTooLong {
        /// The name.
        name: String,
        /// The kind's prefix.
        kind: &'static str,
        /// The limit, in bytes.
        max: usize,
    },
    /// The name has a character that it must not have.
    #[error(
        "\"{name}\" is no {kind} name: begin with a letter or digit, and use these and any of \
         {allowed}"
    )]
    NameCharacter {
        /// The name.
        name: String,
        /// The kind's prefix.
        kind: &'static str,
        /// The characters allowed beside letters and digits.
        allowed: &'static str,
    },
    /// The kind has no devices to be named.
    #[error("a {kind} port has no name, \"{name}\" has to go: write {kind}:")]
    NameNotWanted {
        /// The name.
        name: String,
        /// The kind's prefix.
        kind: &'static str,
    },
    /// The kind takes no parameters.
    #[error("a {kind} port takes no parameters: remove \"?{parameters}\"")]
    NoParameters {
        /// The kind's prefix.
        kind: &'static str,
        /// What stood behind the question mark.
        parameters: String,
    },
    /// A parameter without a value.
    #[error("parameter \"{parameter}\" has no value: write {parameter}=VALUE")]
    NoValue {
        /// The parameter.
        parameter: String,
    },
    /// A parameter that the kind does not have.
    #[error("there is no parameter \"{parameter}\": a {kind} port has {known}")]
    UnknownParameter {
        /// The parameter.
        parameter: String,
        /// The kind's prefix.
        kind: &'static str,
        /// The parameters that exist.
        known: &'static str,
    },
    /// A parameter given twice.
    #[error("parameter \"{parameter}\" is given twice: give it once")]
    RepeatedParameter {
        /// The parameter.
        parameter: String,
    },
    /// A parameter's value is out of bounds.
    #[error("{parameter}={value} is not possible: it is {expected}")]
    BadValue {
        /// The parameter.
        parameter: String,
        /// The value.
        value: String,
        /// What the value has to be.
        expected: &'static str,
    },
}

/// The forms of all kinds of port, for messages.
fn forms() -> String {
    KINDS.iter().map(|kind| kind.form).collect::<Vec<_>>().join(" or ")
}

/// Judges a device's name: up to `max` bytes of ASCII letters, digits and
/// `allowed`, the first of them a letter or digit (no kernel takes "..").
pub(super) fn check_name(
    kind: &'static Kind,
    name: &str,
    max: usize,
    allowed: &'static str,
) -> Result<(), SpecError> {
    if name.is_empty() {
        return Err(SpecError::NoName { form: kind.form });
    }
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !begins_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || allowed.contains(c)) {
        return Err(SpecError::NameCharacter { name: name.to_owned(), kind: kind.prefix, allowed });
    }
    if name.len() > max {
        return Err(SpecError::NameTooLong { name: name.to_owned(), kind: kind.prefix, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_and_their_devices() {
        for (text, prefix, device) in [
            ("tap:tap0", "tap", "tap0"),
            ("tap:br-web.7_a", "tap", "br-web.7_a"),
            ("pipe:wire0", "pipe", "wire0"),
            ("pipe:wire0?loss=0.05&seed=7", "pipe", "wire0"),
            ("sockets:", "sockets", ""),
        ] {
            let spec = Spec::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((spec.kind().prefix, spec.device()), (prefix, device));
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn text_without_a_kind_is_told_all_kinds() {
        for (text, message) in [
            ("tap0", "\"tap0\" does not say what kind of port it is: write "),
            ("pcap:ix0", "there is no kind of port \"pcap\": write "),
        ] {
            let said = Spec::parse(text).unwrap_err().to_string();
            let forms = said.strip_prefix(message).unwrap_or_else(|| panic!("{said}"));
            let known: Vec<_> = KINDS.iter().map(|kind| kind.form).collect();
            assert_eq!(forms.split(" or ").collect::<Vec<_>>(), known);
        }
    }

    #[test]
    fn kinds_have_prefixes_of_their_own() {
        for (index, kind) in KINDS.iter().enumerate() {
            assert!(KINDS[..index].iter().all(|other| other.prefix != kind.prefix), "{kind:?}");
            assert!(kind.form.starts_with(kind.prefix), "{kind:?}");
            assert!(kind.form.contains(':'), "{kind:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, message) in [
            ("tap:", "the device's name is missing: write tap:NAME"),
            ("pipe:?loss=1", "the device's name is missing: write pipe:NAME[?PARAMETER=VALUE&...]"),
            (
                "tap:averylongtapname",
                "\"averylongtapname\" is too long: a tap name has at most 15 bytes",
            ),
            (
                "tap:a/b",
                "\"a/b\" is no tap name: begin with a letter or digit, and use these and any of \
                 -_.",
            ),
            (
                "tap:..",
                "\"..\" is no tap name: begin with a letter or digit, and use these and any of \
                 -_.",
            ),
            (
                "tap:t%d",
                "\"t%d\" is no tap name: begin with a letter or digit, and use these and any of \
                 -_.",
            ),
            ("tap:tap0?queues=2", "a tap port takes no parameters: remove \"?queues=2\""),
            ("sockets:eth0", "a sockets port has no name, \"eth0\" has to go: write sockets:"),
            ("pipe:w?loss", "parameter \"loss\" has no value: write loss=VALUE"),
            (
                "pipe:w?lost=1",
                "there is no parameter \"lost\": a pipe port has loss, duplicate, reorder, \
                 corrupt, delay_us, jitter_us, rate_mbps, seed",
            ),
            ("pipe:w?seed=1&seed=2", "parameter \"seed\" is given twice: give it once"),
            ("pipe:w?loss=1.5", "loss=1.5 is not possible: it is a chance from 0 to 1"),
            ("pipe:w?loss=NaN", "loss=NaN is not possible: it is a chance from 0 to 1"),
            (
                "pipe:w?delay_us=-1",
                "delay_us=-1 is not possible: it is a whole number of microseconds up to 10000000",
            ),
            (
                "pipe:w?rate_mbps=0",
                "rate_mbps=0 is not possible: it is a whole number of Mbit/s from 1 to 1000000",
            ),
            ("pipe:w?seed=x", "seed=x is not possible: it is a whole number below 2^64"),
        ] {
            match Spec::parse(text) {
                Ok(spec) => panic!("{text} was accepted as {spec:?}"),
                Err(error) => assert_eq!(error.to_string(), message, "{text}"),
            }
        }
    }
}
