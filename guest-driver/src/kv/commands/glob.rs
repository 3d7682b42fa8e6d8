//! Patterns of SCAN and CONFIG GET.

/// Whether `text` is like `pattern`: `*`, `?`, `[a-z]`, `[^a]`, `\` before any of
/// them. Takes at most as many steps as the product of both lengths.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Where to go on after the last `*`, if what follows it does not fit here.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some(rest) = pattern.strip_prefix(b"*") {
            pattern = rest;
            retry = Some((rest, text));
            continue;
        }
        if text.is_empty() && pattern.is_empty() {
            return true;
        }
        if let Some((&byte, after)) = text.split_first()
            && let Some(rest) = one(pattern, byte)
        {
            (pattern, text) = (rest, after);
            continue;
        }
        match retry {
            Some((after_star, [_, later @ ..])) => {
                (pattern, text) = (after_star, later);
                retry = Some((after_star, later));
            }
            _ => return false,
        }
    }
}

/// What of the pattern is left after its first element has taken `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [] => None,
        [b'?', rest @ ..] => Some(rest),
        [b'[', set @ ..] => class(set, byte),
        [b'\\', escaped, rest @ ..] => (*escaped == byte).then_some(rest),
        [plain, rest @ ..] => (*plain == byte).then_some(rest),
    }
}

/// As [`one`], behind a `[`.
fn class(set: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut set) = match set {
        [b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let mut found = false;
    loop {
        match set {
            [] => return (found != negated).then_some(set),
            [b']', rest @ ..] => return (found != negated).then_some(rest),
            [b'\\', escaped, rest @ ..] => {
                found |= *escaped == byte;
                set = rest;
            }
            [low, b'-', high, rest @ ..] => {
                found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                set = rest;
            }
            [plain, rest @ ..] => {
                found |= *plain == byte;
                set = rest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_redis() {
        for (pattern, text, like) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("*a*b*", "xxaxxbxx", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h\\*llo", "h*llo", true),
            ("h\\*llo", "hello", false),
            ("[\\]]", "]", true),
            ("[a", "a", true),
            ("key:*", "key:1", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), like, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_of_stars_takes_no_time() {
        let pattern = b"*a".repeat(500);
        assert!(!matches(&pattern, &b"a".repeat(499)));
        assert!(!matches(&[&pattern[..], b"b"].concat(), &b"a".repeat(5000)));
    }
}
