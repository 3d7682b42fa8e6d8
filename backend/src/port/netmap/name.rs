//! A port of netmap's as an operator names it, judged: `ix0`, `ix0-2`, `ix0*`, `ix0{7`,
//! `vale0:web1`.
//!
//! The syntax is that of netmap's own library (netmap(4), `nmreq_header_decode` and
//! `nmreq_register_decode`), as far as it makes sense for a guest's port: rings alone
//! (`^`), monitors and memory chosen by number (`@`) do not.

/// Bytes of the longest interface name: IFNAMSIZ less the terminator.
const INTERFACE_MAX: usize = 15;
/// Bytes of the longest name of a switch's port or a pipe, each.
const IDENTIFIER_MAX: usize = 24;
/// Rings that one may be picked of (`NETMAP_RING_MASK`).
const RING_MAX: u16 = 0x0fff;

/// Which rings of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// All of the NIC's.
    All,
    /// One pair of the NIC's: `ix0-2`. The host keeps the others.
    One(u16),
    /// All of the NIC's, and the host's own stack stays connected: `ix0*`.
    WithHost,
}

/// What kind of port it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// An interface of the host.
    Nic,
    /// A port of a VALE switch.
    Vale,
    /// An end of a pipe.
    Pipe,
}

/// A port's name, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName {
    /// As the kernel wants it, without what names rings.
    pub kernel: String,
    /// What it is.
    pub nature: Nature,
    /// Which of its rings.
    pub rings: Rings,
}

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameFault {
    /// Nothing there.
    Missing,
    /// Too long: at most so many bytes.
    TooLong(usize),
    /// A character that does not belong there.
    Character,
    /// A number of a ring that is none.
    Ring,
}

fn identifier(name: &str, allowed: &str, max: usize) -> Result<(), NameFault> {
    if name.is_empty() {
        return Err(NameFault::Missing);
    }
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if !begins_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || allowed.contains(c)) {
        return Err(NameFault::Character);
    }
    if name.len() > max { Err(NameFault::TooLong(max)) } else { Ok(()) }
}

impl PortName {
    /// What stands behind `netmap:`.
    ///
    /// # Errors
    /// [`NameFault`].
    pub fn netmap(text: &str) -> Result<PortName, NameFault> {
        if let Some(at) = text.find(['{', '}']) {
            let (parent, pipe) = (&text[..at], &text[at + 1..]);
            identifier(parent, "_.", INTERFACE_MAX)?;
            identifier(pipe, "_", IDENTIFIER_MAX)?;
            return Ok(PortName { kernel: text.into(), nature: Nature::Pipe, rings: Rings::All });
        }
        // An interface may have a dash in its name, so a number behind the last is a ring.
        let (name, rings) = if let Some(name) = text.strip_suffix('*') {
            (name, Rings::WithHost)
        } else if let Some((name, ring)) = text.rsplit_once('-') {
            let ring = ring.parse().ok().filter(|&ring: &u16| ring < RING_MAX);
            (name, Rings::One(ring.ok_or(NameFault::Ring)?))
        } else {
            (text, Rings::All)
        };
        identifier(name, "_.", INTERFACE_MAX)?;
        Ok(PortName { kernel: name.into(), nature: Nature::Nic, rings })
    }

    /// What stands behind `vale`: the switch's name, a colon, the port's.
    ///
    /// # Errors
    /// [`NameFault`].
    pub fn vale(switch: &str, port: &str) -> Result<PortName, NameFault> {
        if !switch.is_empty() {
            identifier(switch, "_", IDENTIFIER_MAX)?;
        }
        identifier(port, "_", IDENTIFIER_MAX)?;
        let kernel = format!("vale{switch}:{port}");
        Ok(PortName { kernel, nature: Nature::Vale, rings: Rings::All })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmaps_own_syntax_is_taken() {
        for (text, kernel, nature, rings) in [
            ("ix0", "ix0", Nature::Nic, Rings::All),
            ("eth0.7-12", "eth0.7", Nature::Nic, Rings::One(12)),
            ("ix0*", "ix0", Nature::Nic, Rings::WithHost),
            ("ix0{7", "ix0{7", Nature::Pipe, Rings::All),
            ("web}a_1", "web}a_1", Nature::Pipe, Rings::All),
        ] {
            let name = PortName { kernel: kernel.into(), nature, rings };
            assert_eq!(PortName::netmap(text), Ok(name), "{text}");
        }
        let web = PortName::vale("0", "web1").unwrap();
        assert_eq!((web.kernel.as_str(), web.nature), ("vale0:web1", Nature::Vale));
        assert_eq!(PortName::vale("", "a").unwrap().kernel, "vale:a");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (text, fault) in [
            ("", NameFault::Missing),
            ("*", NameFault::Missing),
            ("{1", NameFault::Missing),
            ("ix0{", NameFault::Missing),
            ("ix0-", NameFault::Ring),
            ("ix0-4095", NameFault::Ring),
            ("ix0-x", NameFault::Ring),
            ("ix0^", NameFault::Character),
            ("ix0@1", NameFault::Character),
            ("ix0/x", NameFault::Character),
            ("ix0{a{b", NameFault::Character),
            ("../..", NameFault::Character),
            ("a23456789012345678", NameFault::TooLong(15)),
        ] {
            assert_eq!(PortName::netmap(text), Err(fault), "{text}");
        }
        assert_eq!(PortName::vale("0/1", "a"), Err(NameFault::Character));
        assert_eq!(PortName::vale("0", ""), Err(NameFault::Missing));
        assert_eq!(PortName::vale("0", "a{1"), Err(NameFault::Character));
    }
}
