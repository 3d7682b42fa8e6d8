//! `pipe:NAME`: a virtual wire between two guests of this process. The parameters are
//! the faults of what is sent from this end.

use std::num::NonZeroU64;

use super::spec::check_name;
use super::{Attachment, Device, Kind, OpenContext, OpenError, SpecError};
use crate::port::wire::Faults;

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    prefix: "pipe",
    form: "pipe:NAME[?PARAMETER=VALUE&...]",
    about: "a virtual wire between two guests, with faults on demand",
    guests_max: 2,
    shared: false,
    needs_addresses: false,
    cuts_packets: false,
    parse,
    probe: || Ok("inside this process".into()),
};

/// Bytes of the longest name of a wire.
const NAME_MAX: usize = 32;
/// The longest delay and jitter, in us.
const DELAY_US_MAX: u64 = 10_000_000;
/// The highest rate, in Mbit/s.
const RATE_MBPS_MAX: u64 = 1_000_000;

const CHANCE: &str = "a chance from 0 to 1";
const MICROSECONDS: &str = "a whole number of microseconds up to 10000000";
const MBPS: &str = "a whole number of Mbit/s from 1 to 1000000";
const SEED: &str = "a whole number below 2^64";
const PARAMETERS: &str = "loss, duplicate, reorder, corrupt, delay_us, jitter_us, rate_mbps, seed";

/// A wire as configured at one end.
#[derive(Debug)]
struct PipeDevice {
    name: String,
    faults: Faults,
    seed: u64,
}

fn parse(rest: &str) -> Result<Box<dyn Device>, SpecError> {
    let (name, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    check_name(&KIND, name, NAME_MAX, "-_.")?;
    let mut device = PipeDevice { name: name.to_owned(), faults: Faults::default(), seed: 0 };
    let mut seen: Vec<&str> = Vec::new();
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = parameter
            .split_once('=')
            .ok_or_else(|| SpecError::NoValue { parameter: parameter.to_owned() })?;
        if seen.contains(&key) {
            return Err(SpecError::RepeatedParameter { parameter: key.to_owned() });
        }
        seen.push(key);
        device.set(key, value)?;
    }
    Ok(Box::new(device))
}

impl PipeDevice {
    fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        let bad = |expected| SpecError::BadValue {
            parameter: key.to_owned(),
            value: value.to_owned(),
            expected,
        };
        let chance = || {
            let chance = value.parse().ok().filter(|chance: &f64| (0.0..=1.0).contains(chance));
            chance.ok_or_else(|| bad(CHANCE))
        };
        let whole = |min: u64, max: u64, expected| {
            let number = value.parse().ok().filter(|number| (min..=max).contains(number));
            number.ok_or_else(|| bad(expected))
        };
        match key {
            "loss" => self.faults.loss = chance()?,
            "duplicate" => self.faults.duplicate = chance()?,
            "reorder" => self.faults.reorder = chance()?,
            "corrupt" => self.faults.corrupt = chance()?,
            "delay_us" => self.faults.delay_ns = 1_000 * whole(0, DELAY_US_MAX, MICROSECONDS)?,
            "jitter_us" => self.faults.jitter_ns = 1_000 * whole(0, DELAY_US_MAX, MICROSECONDS)?,
            "rate_mbps" => {
                let rate_mbps = whole(1, RATE_MBPS_MAX, MBPS)?;
                self.faults.rate_bps = NonZeroU64::new(rate_mbps * 1_000_000);
            }
            "seed" => self.seed = whole(0, u64::MAX, SEED)?,
            _ => {
                return Err(SpecError::UnknownParameter {
                    parameter: key.to_owned(),
                    kind: KIND.prefix,
                    known: PARAMETERS,
                });
            }
        }
        Ok(())
    }
}

impl Device for PipeDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, context: &mut OpenContext<'_>) -> Result<Attachment, OpenError> {
        let port = context.common.wires.attach(&self.name, self.faults, self.seed, context.mtu)?;
        Ok(Attachment::Port(Box::new(port)))
    }
}
