use proptest::prelude::*;

use super::*;

const SIZE: usize = 64;

/// Buffers that are filled one after the other.
#[derive(Default)]
struct Memory(Vec<Vec<u8>>);

impl Bytes for Memory {
    fn bytes(&self, extent: Extent) -> &[u8] {
        let buffer = self.0.get(extent.buffer as usize).map_or(&[][..], |buffer| buffer);
        buffer
            .get(usize::from(extent.offset)..)
            .map_or(&[], |rest| &rest[..rest.len().min(extent.len.into())])
    }
}

/// What a parser finds in the parts, as they arrive one by one: requests, and how
/// it ends.
fn parse<'a>(
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    let (mut memory, mut chain, mut parser) = (Memory::default(), Chain::default(), Parser::new());
    let mut found = Vec::new();
    for part in parts {
        for part in part.chunks(SIZE) {
            // Something of another's before the bytes of this flow.
            let offset = memory.0.len() as u16 % 5;
            let mut buffer = vec![b'#'; offset.into()];
            buffer.extend_from_slice(part);
            memory.0.push(buffer);
            let buffer = memory.0.len() as u32 - 1;
            chain.push(Extent { buffer, offset, len: part.len() as u16 });
        }
        loop {
            match parser.step(&chain, &memory) {
                Ok(Progress::More) => break,
                Ok(Progress::Request) => {}
                Err(error) => return (found, Some(error)),
            }
            let request = parser.arguments().iter().map(|argument| {
                let mut bytes = Vec::new();
                argument.copy(parser.inline(), &chain, &memory, &mut bytes);
                assert_eq!(bytes.len(), argument.len());
                let mut raw = Vec::new();
                argument.raw(&chain, &mut raw);
                if let Argument::Bulk { .. } = argument {
                    let whole: Vec<u8> =
                        raw.iter().flat_map(|extent| memory.bytes(*extent)).copied().collect();
                    let mut expected = format!("${}\r\n", bytes.len()).into_bytes();
                    expected.extend_from_slice(&bytes);
                    expected.extend_from_slice(b"\r\n");
                    assert_eq!(whole, expected);
                    assert_eq!(whole.len(), bulk_len(bytes.len()));
                }
                bytes
            });
            found.push(request.collect());
            parser.done();
            while chain.drop_before(parser.place()).is_some() {}
            assert!(chain.pieces() <= chain.len() + 1);
        }
    }
    (found, None)
}

fn whole(bytes: &[u8]) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    parse([bytes])
}

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn encode(request: &[Vec<u8>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", request.len()).into_bytes();
    for argument in request {
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[test]
fn requests_of_both_kinds_follow_each_other() {
    let bytes = b"PING\r\n*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n\r\n*0\r\n*-1\r\n  set a 'b c' \n";
    let (found, error) = whole(bytes);
    assert_eq!(error, None);
    assert_eq!(found, [words(&["PING"]), words(&["ECHO", "hi"]), words(&["set", "a", "b c"])]);
}

#[test]
fn inline_quotes_are_as_in_redis() {
    let line = br#"a"b" "x\x41\n\"" 'it\'s' "" "#;
    let (found, error) = whole(&[&line[..], b"\r\n"].concat());
    assert_eq!(error, None);
    assert_eq!(found, [words(&["ab", "xA\n\"", "it's", ""])]);
    for bad in ["\"a\r\n", "'a\r\n", "\"a\"b\r\n"] {
        assert_eq!(whole(bad.as_bytes()).1, Some(ProtocolError::Quotes), "{bad}");
    }
}

#[test]
fn what_is_no_request_is_named() {
    for (bytes, error) in [
        ("*x\r\n", ProtocolError::ArgumentCount),
        ("*65537\r\n", ProtocolError::ArgumentCount),
        ("*9223372036854775808\r\n", ProtocolError::ArgumentCount),
        ("*01\r\n", ProtocolError::ArgumentCount),
        ("*1\r\nx", ProtocolError::NotBulk(b'x')),
        ("*1\r\n$-1\r\n", ProtocolError::BulkLength),
        ("*1\r\n$524289\r\n", ProtocolError::BulkLength),
        ("*1\r\n$05\r\n", ProtocolError::BulkLength),
        ("*1\r\n$1\r\nabc", ProtocolError::NoEnd),
        ("*1\r\n$1\r\na\rx", ProtocolError::NoEnd),
        ("*1111111111111111111111111", ProtocolError::CountLine),
        ("*1\r\n$111111111111111111111111111", ProtocolError::LengthLine),
    ] {
        assert_eq!(whole(bytes.as_bytes()), (Vec::new(), Some(error)), "{bytes}");
    }
    let long = vec![b'a'; INLINE_MAX + 1];
    assert_eq!(whole(&long).1, Some(ProtocolError::Inline));
    assert_eq!(whole(&[&long[1..], b"\n"].concat()).1, None);
}

#[test]
fn the_longest_value_is_read() {
    let request = vec![b"SET".to_vec(), b"k".to_vec(), vec![7; BULK_MAX]];
    assert_eq!(whole(&encode(&request)), (vec![request], None));
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let argument = proptest::collection::vec(any::<u8>(), 0..150);
    let array = proptest::collection::vec(argument, 1..6).prop_map(|request| encode(&request));
    let inline = "[a-z]{1,9}( [a-z\"'\\\\]{0,9}){0,3}\r?\n".prop_map(String::into_bytes);
    let noise = proptest::collection::vec(
        prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()],
        0..30,
    );
    let one = prop_oneof![6 => array, 2 => inline, 1 => noise];
    proptest::collection::vec(one, 0..8).prop_map(|all| all.concat())
}

proptest! {
    /// However the bytes are cut, the same requests are found, and the same end.
    #[test]
    fn any_split_gives_the_same_requests(
        bytes in requests(),
        mut cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let expected = whole(&bytes);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&parse(single), &expected);
        let mut at: Vec<usize> = cuts.drain(..).map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let parts = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        prop_assert_eq!(&parse(parts), &expected);
    }

    /// What a client meant is what is found.
    #[test]
    fn what_was_encoded_is_found(
        requests in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..5),
            0..6,
        ),
    ) {
        let bytes: Vec<u8> = requests.iter().flat_map(|request| encode(request)).collect();
        prop_assert_eq!(whole(&bytes), (requests, None));
    }
}
