//! The keys of one table, with what is said of a missing, unknown or mistyped
//! one. Knows TOML; knows nothing of what the keys mean.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Findings;

/// A value and the bytes of the text that it came from.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) at: Range<usize>,
    pub(super) value: T,
}

/// A table, with the keys that it may have.
pub(super) struct Fields<'t, 'i> {
    table: &'t DeTable<'i>,
    /// Where to point when a key is missing.
    pub(super) at: Range<usize>,
    /// What stands before messages: `guest "web1": `.
    pub(super) who: String,
}

impl<'t, 'i> Fields<'t, 'i> {
    /// Refuses every key that is not in `known`.
    pub(super) fn new(
        table: &'t DeTable<'i>,
        at: Range<usize>,
        who: String,
        known: &[&str],
        findings: &mut Findings,
    ) -> Fields<'t, 'i> {
        for key in table.keys() {
            let name = key.get_ref();
            if !known.contains(&name.as_ref()) {
                let hint = suggest(name, known);
                findings.add(key.span(), format!("{who}unknown key \"{name}\": {hint}"));
            }
        }
        Fields { table, at, who }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.table.get(key)
    }

    /// The value of a key that must be there.
    pub(super) fn require(
        &self,
        key: &str,
        example: &str,
        findings: &mut Findings,
    ) -> Option<&'t Spanned<DeValue<'i>>> {
        let value = self.get(key);
        if value.is_none() {
            let who = &self.who;
            findings.add(self.at.clone(), format!("{who}{key} is missing: write {example}"));
        }
        value
    }

    /// Reports a value of the wrong type.
    pub(super) fn wrong_type(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        example: &str,
        f: &mut Findings,
    ) {
        let (who, found) = (&self.who, article(value.get_ref().type_str()));
        f.add(value.span(), format!("{who}{key} is {found}: write {example}"));
    }

    /// Reports what is wrong with a value.
    pub(super) fn wrong(
        &self,
        at: &Range<usize>,
        message: impl std::fmt::Display,
        findings: &mut Findings,
    ) {
        findings.add(at.clone(), format!("{}{message}", self.who));
    }

    /// A string, as `value` of `key`.
    pub(super) fn text(
        &self,
        key: &str,
        value: &'t Spanned<DeValue<'i>>,
        example: &str,
        findings: &mut Findings,
    ) -> Option<At<&'t str>> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, example, findings);
            return None;
        };
        Some(At { at: value.span(), value: text })
    }

    /// A string that must be there.
    pub(super) fn required_text(
        &self,
        key: &str,
        example: &str,
        findings: &mut Findings,
    ) -> Option<At<&'t str>> {
        let value = self.require(key, example, findings)?;
        self.text(key, value, example, findings)
    }

    /// A whole number within bounds, or `default`.
    pub(super) fn number(
        &self,
        key: &str,
        (min, max): (u32, u32),
        default: u32,
        findings: &mut Findings,
    ) -> Option<At<u32>> {
        let Some(value) = self.get(key) else {
            return Some(At { at: self.at.clone(), value: default });
        };
        let example = format!("{key} = {default}");
        let number = self.whole(key, value, (min, max), &example, findings);
        number.map(|number| At { at: value.span(), value: number })
    }

    /// A whole number within bounds, as `value` of `key`.
    pub(super) fn whole(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        (min, max): (u32, u32),
        example: &str,
        findings: &mut Findings,
    ) -> Option<u32> {
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, example, findings);
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| (min..=max).contains(number));
        if number.is_none() {
            let message =
                format!("{key} {integer} is not possible: use a number from {min} to {max}");
            self.wrong(&value.span(), message, findings);
        }
        number
    }

    /// One of a few words, or the default.
    pub(super) fn word<T: Copy + Default>(
        &self,
        key: &str,
        words: &[(&str, T)],
        findings: &mut Findings,
    ) -> Option<T> {
        let Some(value) = self.get(key) else {
            return Some(T::default());
        };
        let names = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>();
        let names = names.join(" or ");
        let text = self.text(key, value, &format!("{key} = {names}"), findings)?;
        let found = words.iter().find(|(word, _)| *word == text.value);
        if found.is_none() {
            let message = format!("{key} \"{}\" is unknown: use {names}", text.value);
            self.wrong(&text.at, message, findings);
        }
        found.map(|&(_, meaning)| meaning)
    }
}

/// The type of a value, as a message has it.
fn article(type_str: &str) -> String {
    let article = if type_str.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {type_str}")
}

/// What to say of an unknown key: the nearest known one, or all.
fn suggest(unknown: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|&key| (distance(unknown, key), key))
        .min()
        .filter(|&(distance, _)| distance <= 1 + unknown.len() / 3);
    match nearest {
        Some((_, key)) => format!("did you mean \"{key}\"?"),
        None => format!("the keys here are {}", known.join(", ")),
    }
}

/// The edit distance (Levenshtein) between two texts.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
