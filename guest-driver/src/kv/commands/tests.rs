use crate::kv::client::{Client, End, Pause, Shared};
use crate::kv::extent::Bytes;
use crate::kv::fake::Fake;
use crate::kv::region::Region;
use crate::kv::reply::Next;
use crate::kv::store::Store;

struct Rig {
    region: Fake,
    store: Store,
    shared: Shared,
    client: Client,
}

impl Rig {
    fn new() -> Rig {
        Rig::sized(2048, 1500)
    }

    fn sized(buffers: u32, limit: u32) -> Rig {
        let region = Fake::new(buffers, 2048, 4096);
        let store = Store::new(&region, limit, [3, 4]);
        let mut shared = Shared { request_max: 1 << 20, now_ms: 1_000_000, ..Shared::default() };
        shared.about.buffer_size = 2048;
        let client = Client::new(paste_abi::Flow::new(1, 1), 7);
        Rig { region, store, shared, client }
    }

    /// What is answered to these bytes, which arrive in segments.
    fn raw(&mut self, bytes: &[u8]) -> Vec<u8> {
        for part in bytes.chunks(1448) {
            let extent = self.region.arrive(130, part).expect("a buffer");
            self.store.hold(extent.buffer);
            self.client.arrived(extent);
        }
        self.go_on()
    }

    fn go_on(&mut self) -> Vec<u8> {
        let mut answer = Vec::new();
        loop {
            self.client.run(&mut self.region, &mut self.store, &mut self.shared);
            let pause = self.client.pause;
            self.store.commit(&mut self.region);
            while let Some(next) = self.client.output.next() {
                match next {
                    Next::Bytes(bytes) => {
                        answer.extend_from_slice(bytes);
                        let len = bytes.len();
                        self.client.output.took_bytes(len);
                    }
                    Next::Range(extent) => {
                        assert!(extent.offset >= self.region.headroom());
                        answer.extend_from_slice(self.region.bytes(extent));
                        self.client.output.took_range();
                        self.store.unhold(&mut self.region, extent.buffer);
                    }
                }
            }
            assert_ne!(pause, Pause::Starved);
            if pause == Pause::Idle {
                return answer;
            }
        }
    }

    fn ask(&mut self, words: &[&[u8]]) -> String {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        String::from_utf8_lossy(&self.raw(&bytes)).into_owned()
    }

    /// As typed, with spaces between words.
    fn say(&mut self, line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.ask(&words)
    }

    #[track_caller]
    fn check(&mut self, line: &str, answer: &str) {
        assert_eq!(self.say(line), format!("{answer}\r\n"), "{line}");
    }
}

#[test]
fn strings_are_set_and_got_as_in_redis() {
    let mut rig = Rig::new();
    for (line, answer) in [
        ("SET k v", "+OK"),
        ("get k", "$1\r\nv"),
        ("GET missing", "$-1"),
        ("SET k w NX", "$-1"),
        ("SET k w XX", "+OK"),
        ("SET new w XX", "$-1"),
        ("SET k x GET", "$1\r\nw"),
        ("SET k y NX GET", "$1\r\nx"),
        ("SET new y NX GET", "$-1"),
        ("GET new", "$1\r\ny"),
        ("SET k v NX XX", "-ERR syntax error"),
        ("SET k v EX", "-ERR syntax error"),
        ("SET k v EX 0", "-ERR invalid expire time in 'set' command"),
        ("SET k v EX x", "-ERR value is not an integer or out of range"),
        ("SET k v PX 9223372036854775807", "-ERR invalid expire time in 'set' command"),
        ("SET k v EX 10 PX 10", "-ERR syntax error"),
        ("SET k v EX 10", "+OK"),
        ("TTL k", ":10"),
        ("SET k w KEEPTTL", "+OK"),
        ("PTTL k", ":10000"),
        ("SET k w", "+OK"),
        ("TTL k", ":-1"),
        ("TTL missing", ":-2"),
        ("STRLEN k", ":1"),
        ("STRLEN missing", ":0"),
        ("APPEND k xyz", ":4"),
        ("GET k", "$4\r\nwxyz"),
        ("APPEND fresh ab", ":2"),
        ("GETDEL fresh", "$2\r\nab"),
        ("GETDEL fresh", "$-1"),
        ("MSET a 1 b 2", "+OK"),
        ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"),
        ("MGET a missing b", "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n2"),
        ("INCR a", ":2"),
        ("INCRBY a 40", ":42"),
        ("DECR a", ":41"),
        ("DECRBY a 41", ":0"),
        ("INCR k", "-ERR value is not an integer or out of range"),
        ("INCRBY a 9223372036854775807", ":9223372036854775807"),
        ("INCR a", "-ERR increment or decrement would overflow"),
        ("DECRBY a -9223372036854775808", "-ERR decrement would overflow"),
        ("EXISTS a b a missing", ":3"),
        ("DEL a b a missing", ":2"),
        ("DBSIZE", ":2"),
        ("TYPE k", "+string"),
        ("TYPE missing", "+none"),
        ("FLUSHALL", "+OK"),
        ("DBSIZE", ":0"),
        ("FLUSHALL NOW", "-ERR syntax error"),
    ] {
        rig.check(line, answer);
    }
}

#[test]
fn keys_end_when_they_were_told_to() {
    let mut rig = Rig::new();
    rig.check("SET k v", "+OK");
    rig.check("PERSIST k", ":0");
    rig.check("EXPIRE missing 10", ":0");
    rig.check("EXPIRE k 10", ":1");
    rig.check("EXPIRE k 5 GT", ":0");
    rig.check("EXPIRE k 20 GT", ":1");
    rig.check("EXPIRE k 9223372036854775807", "-ERR invalid expire time in 'expire' command");
    rig.check("EXPIRE k 10 ZZ", "-ERR Unsupported option zz");
    rig.check("PERSIST k", ":1");
    rig.check("PEXPIRE k 1500", ":1");
    rig.check("TTL k", ":2");
    rig.shared.now_ms += 1499;
    rig.check("PTTL k", ":1");
    rig.shared.now_ms += 1;
    rig.check("GET k", "$-1");
    rig.check("SET k w NX", "+OK");
    rig.check("TTL k", ":-1");
    rig.check("EXPIRE k -1", ":1");
    rig.check("EXISTS k", ":0");
}

#[test]
fn the_server_tells_of_itself() {
    let mut rig = Rig::new();
    for (line, answer) in [
        ("PING", "+PONG"),
        ("PING hi", "$2\r\nhi"),
        ("PING a b", "-ERR wrong number of arguments for 'ping' command"),
        ("ECHO hi", "$2\r\nhi"),
        ("SELECT 0", "+OK"),
        ("SELECT 1", "-ERR DB index is out of range"),
        ("SELECT x", "-ERR value is not an integer or out of range"),
        ("CLIENT ID", ":7"),
        ("CLIENT SETNAME me", "+OK"),
        ("CLIENT GETNAME", "$2\r\nme"),
        ("CLIENT SETNAME", "-ERR wrong number of arguments for 'client|setname' command"),
        ("CLIENT KILL", "-ERR unknown subcommand 'kill'. Try CLIENT HELP."),
        ("CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n"),
        ("CONFIG SET save x", "-ERR unknown subcommand 'set'. Try CONFIG HELP."),
        ("COMMAND COUNT", ":33"),
        ("COMMAND DOCS", "*0"),
        ("HELLO 4", "-NOPROTO unsupported protocol version"),
        ("GET", "-ERR wrong number of arguments for 'get' command"),
        ("foo a b", "-ERR unknown command 'foo', with args beginning with: 'a' 'b' "),
    ] {
        rig.check(line, answer);
    }
    assert!(rig.say("HELLO 3").starts_with("%7\r\n$6\r\nserver\r\n"));
    rig.check("GET missing", "_");
    rig.check("CONFIG GET appendonly", "%1\r\n$10\r\nappendonly\r\n$3\r\nyes");
    assert!(rig.say("HELLO 2 SETNAME you").starts_with("*14\r\n"));
    rig.check("CLIENT GETNAME", "$3\r\nyou");
    let info = rig.say("INFO");
    assert!(info.contains("# Server\r\nredis_version:") && info.contains("maxmemory:"), "{info}");
    assert!(rig.say("INFO memory").starts_with("$"));
    assert!(rig.say("COMMAND").starts_with("*33\r\n*6\r\n$6\r\nappend\r\n:3\r\n*2\r\n+write"));
    rig.check("QUIT", "+OK");
    assert_eq!(rig.client.end, End::Closing);
    assert_eq!(rig.raw(b"PING\r\n"), b"", "nothing is answered after QUIT");
}

#[test]
fn what_is_no_request_is_answered_and_ends_the_client() {
    let mut rig = Rig::new();
    let answer = rig.raw(b"*1\r\n$4\r\nPING\r\n*1\r\nPING\r\n");
    let expected = "+PONG\r\n-ERR Protocol error: expected '$', got 'P'\r\n";
    assert_eq!(String::from_utf8_lossy(&answer), expected);
    assert_eq!((rig.client.end, rig.client.pieces()), (End::Closing, 0));
}

#[test]
fn a_request_that_does_not_end_is_cut_off() {
    let mut rig = Rig::new();
    rig.shared.request_max = 10_000;
    let answer =
        rig.raw(&[&b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$20000\r\n"[..], &[0; 15_000]].concat());
    assert_eq!(answer, b"-ERR Protocol error: too big request\r\n");
    assert_eq!(rig.region.free(), 2048);
}

#[test]
fn values_of_any_length_are_sent_from_where_they_are() {
    let mut rig = Rig::new();
    for len in [1000, 1023, 1024, 1025, 1436, 5000, 100_000, 512 * 1024] {
        let value: Vec<u8> = (0..len).map(|at| (at * 7 % 251) as u8).collect();
        assert_eq!(rig.ask(&[b"SET", b"k", &value]), "+OK\r\n");
        let mut expected = format!("${len}\r\n").into_bytes();
        expected.extend_from_slice(&value);
        expected.extend_from_slice(b"\r\n");
        assert!(rig.raw(b"GET k\r\n") == expected, "{len}");
        assert!(rig.raw(b"SET k x GET\r\n") == expected, "{len}");
    }
    let long = vec![b'x'; 512 * 1024 + 1];
    assert_eq!(rig.ask(&[b"SET", b"k", &long]), "-ERR Protocol error: invalid bulk length\r\n");
}

#[test]
fn appending_grows_a_value_without_limit_but_the_largest() {
    let mut rig = Rig::new();
    let mut value = Vec::new();
    for step in 0..300 {
        let piece: Vec<u8> = (0..step * 11 % 2500).map(|at| (at + step) as u8).collect();
        value.extend_from_slice(&piece);
        assert_eq!(rig.ask(&[b"APPEND", b"k", &piece]), format!(":{}\r\n", value.len()));
    }
    let mut expected = format!("${}\r\n", value.len()).into_bytes();
    expected.extend_from_slice(&value);
    expected.extend_from_slice(b"\r\n");
    assert!(rig.raw(b"GET k\r\n") == expected);
    // Not one extent for each piece.
    let used = rig.store.buffers().0 as usize;
    assert!(used < 3 * value.len() / 2048, "{used} buffers for {} bytes", value.len());
    let rest = vec![b'x'; 512 * 1024 - value.len() + 1];
    assert_eq!(
        rig.ask(&[b"APPEND", b"k", &rest]),
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"
    );
    assert_eq!(rig.ask(&[b"APPEND", b"k", &rest[1..]]), ":524288\r\n");
}

#[test]
fn a_pipeline_is_answered_in_order() {
    let mut rig = Rig::new();
    let mut bytes = Vec::new();
    let mut expected = Vec::new();
    for number in 0..2000 {
        bytes.extend_from_slice(
            format!("SET key:{number} {number}\r\nGET key:{number}\r\n").as_bytes(),
        );
        let text = number.to_string();
        expected.extend_from_slice(format!("+OK\r\n${}\r\n{text}\r\n", text.len()).as_bytes());
    }
    assert!(rig.raw(&bytes) == expected);
    assert_eq!(rig.say("DBSIZE"), ":2000\r\n");
    let mut keys = Vec::new();
    let mut cursor = "0".to_owned();
    loop {
        let answer = rig.say(&format!("SCAN {cursor} MATCH key:* COUNT 100"));
        let lines: Vec<&str> = answer.split("\r\n").collect();
        cursor = lines[2].to_owned();
        keys.extend(
            lines[4..].iter().filter(|line| line.starts_with("key:")).map(|l| l.to_string()),
        );
        if cursor == "0" {
            break;
        }
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 2000);
    for (line, answer) in [
        ("SCAN x", "-ERR invalid cursor"),
        ("SCAN 0 COUNT 0", "-ERR syntax error"),
        ("SCAN 0 COUNT", "-ERR syntax error"),
        ("SCAN 0 TYPE list COUNT 1000", ""),
    ] {
        assert!(rig.say(line).starts_with(answer), "{line}");
    }
}

#[test]
fn a_full_store_says_oom_and_reads_and_deletions_go_on() {
    let mut rig = Rig::sized(512, 200);
    let value = vec![b'v'; 3000];
    let mut keys = 0;
    let oom = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    loop {
        let answer = rig.ask(&[b"SET", format!("k{keys}").as_bytes(), &value]);
        if answer == oom {
            break;
        }
        assert_eq!(answer, "+OK\r\n");
        keys += 1;
    }
    assert!(keys > 40, "{keys}");
    assert_eq!(rig.ask(&[b"SET", b"k0", &value]), oom);
    assert_eq!(rig.ask(&[b"APPEND", b"k0", &value]), oom);
    assert_eq!(rig.ask(&[b"MSET", b"a", b"1", b"b", &value]), oom);
    rig.check("EXISTS a b", ":0");
    for number in 0..keys {
        assert_eq!(rig.say(&format!("STRLEN k{number}")), ":3000\r\n");
        assert!(rig.say(&format!("GET k{number}")).contains("vvvv"));
    }
    for number in 0..keys / 2 {
        assert_eq!(rig.say(&format!("DEL k{number}")), ":1\r\n");
    }
    for _ in 0..5 {
        rig.store.commit(&mut rig.region);
    }
    assert_eq!(rig.ask(&[b"SET", b"again", &value]), "+OK\r\n");
}

#[test]
fn nothing_is_written_while_nothing_can_be_made_durable() {
    let mut rig = Rig::new();
    rig.check("SET k v", "+OK");
    rig.shared.about.failed = true;
    let answer = "-MISCONF Errors writing to the log: it could not be made durable";
    for line in ["SET k w", "DEL k", "FLUSHALL", "EXPIRE k 10", "GETDEL k"] {
        rig.check(line, answer);
    }
    rig.check("GET k", "$1\r\nv");
    rig.shared.about.failed = false;
    rig.check("SET k w", "+OK");
}

#[test]
fn nothing_is_left_of_what_was_asked() {
    let mut rig = Rig::new();
    for len in [10usize, 3000] {
        let value = vec![b'v'; len];
        rig.ask(&[b"SET", b"a", &value]);
        rig.ask(&[b"MSET", b"b", &value, b"c", &value]);
        rig.ask(&[b"APPEND", b"b", &value]);
        rig.raw(b"MGET a b c\r\nGET a\r\nGETDEL a\r\nDEL b c\r\n");
    }
    rig.raw(b"*2\r\n$3\r\nGET\r\n$10\r\nabc");
    rig.client.forget(&mut rig.region, &mut rig.store);
    for _ in 0..20 {
        rig.store.commit(&mut rig.region);
    }
    let used = 2048 - rig.region.free();
    assert!(used <= 12, "{used} buffers are still taken");
}
