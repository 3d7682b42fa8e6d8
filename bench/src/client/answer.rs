//! Whether what came since a request is its answer.

use pasted::demo::http::{BODY, Judgement, judge};

/// The longest response, as a response that is right never is.
pub(super) const RESPONSE_LEN_MAX: usize = 4096;

/// What the bytes since a request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Unfinished,
    Wrong,
}

/// Judges a piece of an answer whose bytes are known and of which `matched` have
/// come: nothing may be behind it.
pub(super) fn progress(piece: &[u8], answer: &[u8], matched: &mut usize) -> Verdict {
    let end = *matched + piece.len();
    if answer.get(*matched..end) != Some(piece) {
        return Verdict::Wrong;
    }
    *matched = end;
    if end == answer.len() { Verdict::Right } else { Verdict::Unfinished }
}

/// Judges all bytes that came since a request: one right response and nothing
/// behind it. Bytes that equal `right`, which were judged right before, are
/// right; others are judged anew, and take its place if they are.
pub(super) fn verdict(bytes: &[u8], right: &mut Vec<u8>) -> Verdict {
    if !bytes.is_empty() && bytes == right.as_slice() {
        return Verdict::Right;
    }
    match judge(bytes, BODY) {
        Judgement::Right(len) if len == bytes.len() => {
            right.clear();
            right.extend_from_slice(bytes);
            Verdict::Right
        }
        Judgement::Unfinished if bytes.len() < RESPONSE_LEN_MAX => Verdict::Unfinished,
        _ => Verdict::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use pasted::demo::http::response;

    use super::*;

    #[test]
    fn known_bytes_may_come_in_pieces_and_nothing_else_may() {
        let mut matched = 0;
        for (piece, wanted) in [
            (&b"+O"[..], Verdict::Unfinished),
            (b"K\r", Verdict::Unfinished),
            (b"\n", Verdict::Right),
        ] {
            assert_eq!(progress(piece, b"+OK\r\n", &mut matched), wanted);
        }
        for piece in [&b"-"[..], b"+OK\r\n+"] {
            assert_eq!(progress(piece, b"+OK\r\n", &mut 0), Verdict::Wrong);
        }
    }

    #[test]
    fn what_was_right_is_right_again_and_no_other_bytes_are() {
        let good = response(BODY);
        let mut right = Vec::new();
        assert_eq!(verdict(&[], &mut right), Verdict::Unfinished);
        for _ in 0..2 {
            assert_eq!(verdict(&good, &mut right), Verdict::Right);
            assert_eq!(right, good);
        }
        for at in 0..BODY.len() {
            let mut wrong = good.clone();
            let last = wrong.len() - 1 - at;
            wrong[last] ^= 1;
            assert_eq!(verdict(&wrong, &mut right), Verdict::Wrong);
        }
        assert_eq!(right, good);
    }

    #[test]
    fn a_beginning_is_unfinished_and_more_than_one_response_is_wrong() {
        let good = response(BODY);
        let mut right = good.clone();
        for len in 1..good.len() {
            assert_eq!(verdict(&good[..len], &mut right), Verdict::Unfinished);
        }
        let two = [good.clone(), good].concat();
        assert_eq!(verdict(&two, &mut right), Verdict::Wrong);
    }

    #[test]
    fn another_date_is_right_too() {
        let first = response(BODY);
        let text = String::from_utf8(first.clone()).unwrap();
        let second = text.replace("00:00:00", "00:00:01").into_bytes();
        assert_ne!(first, second);
        let mut right = first;
        assert_eq!(verdict(&second, &mut right), Verdict::Right);
        assert_eq!(right, second);
    }
}
