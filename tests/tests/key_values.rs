//! The `kv` example serves redis-cli and redis-benchmark, fills up, and is killed
//! under load: by itself, with its backend, and with all memory.

#![cfg(target_os = "linux")]

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::resp::{Client, Reply};
use paste_tests::store::{Ledger, PORT, Random, Store, redis_benchmark};
use paste_tests::wait;

const NEEDS: [Need; 3] = [Need::Namespaces, Need::Built("pasted"), Need::Built("examples/kv")];

/// A store whose mirror is in a directory of its own.
fn start(size: &str) -> (Store, tempfile::TempDir) {
    let disk = tempfile::tempdir().expect("a directory");
    let store = Store::start(size, &disk.path().join("mirror"));
    (store, disk)
}

#[test]
fn redis_cli_is_answered_and_finds_it_all_again() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("redis-cli"));
    let (mut store, _disk) = start("32MiB");
    for (words, answer) in [
        (&["PING"][..], "PONG"),
        (&["ECHO", "hello"], "hello"),
        (&["SET", "greeting", "hello"], "OK"),
        (&["SET", "greeting", "hi", "NX"], ""),
        (&["SET", "other", "x", "XX"], ""),
        (&["SET", "greeting", "hello there", "XX", "GET"], "hello"),
        (&["GET", "greeting"], "hello there"),
        (&["STRLEN", "greeting"], "11"),
        (&["APPEND", "greeting", "!"], "12"),
        (&["MSET", "a", "1", "b", "2"], "OK"),
        (&["MGET", "a", "missing", "b"], "1\n\n2"),
        (&["INCR", "a"], "2"),
        (&["INCRBY", "a", "40"], "42"),
        (&["INCR", "greeting"], "ERR value is not an integer or out of range"),
        (&["EXISTS", "a", "b", "missing"], "2"),
        (&["TYPE", "a"], "string"),
        (&["SET", "mortal", "x", "EX", "1000"], "OK"),
        (&["TTL", "mortal"], "1000"),
        (&["PERSIST", "mortal"], "1"),
        (&["TTL", "mortal"], "-1"),
        (&["EXPIRE", "mortal", "1"], "1"),
        (&["GETDEL", "b"], "2"),
        (&["DEL", "b", "missing"], "0"),
        (&["SELECT", "0"], "OK"),
        (&["CONFIG", "GET", "appendonly"], "appendonly\nyes"),
        (&["-3", "HELLO"], ""),
        (&["NONSENSE", "x"], "ERR unknown command 'NONSENSE', with args beginning with: 'x'"),
        (&["GET"], "ERR wrong number of arguments for 'get' command"),
    ] {
        let said = store.cli(words);
        let right = if words[0] == "-3" { said.contains("proto") } else { said.trim() == answer };
        assert!(right, "{words:?}: {said}");
    }
    assert!(store.cli(&["INFO"]).contains("flush_domain:host"));

    // The largest value, by stdin.
    let dir = tempfile::tempdir().expect("a directory");
    let (path, value) = (dir.path().join("value"), vec![b'v'; 512 * 1024]);
    std::fs::write(&path, &value).expect("a file");
    let mut command = store.net.command("redis-cli");
    command.args(["-h", store.guest.ip(), "-x", "SET", "large"]);
    command.stdin(std::fs::File::open(&path).expect("the file")).stderr(Stdio::inherit());
    assert_eq!(command.output().expect("redis-cli runs").stdout, b"OK\n");
    assert_eq!(store.cli(&["GET", "large"]).len(), value.len());
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(store.cli(&["GET", "mortal"]), "");

    // Kill everything, memory too, and start again.
    store.crash(true, true, true);
    store.resume();
    store.wait_serving();
    assert_eq!(store.cli(&["GET", "greeting"]), "hello there!");
    assert_eq!(store.cli(&["GET", "a"]), "42");
    assert!(store.cli(&["GET", "large"]).as_bytes() == value);
    assert_eq!(store.cli(&["EXISTS", "mortal", "b"]), "0");
    assert_eq!(store.cli(&["SCAN", "0", "MATCH", "g*", "COUNT", "1000"]), "0\ngreeting");
    assert_eq!(store.cli(&["FLUSHALL"]), "OK");
    assert_eq!(store.cli(&["DBSIZE"]), "0");
    store.stop();
}

/// What `kv --check` says of a file, and whether it finds it sound.
fn check(file: &Path) -> (bool, String) {
    let output = Command::new(require::built("examples/kv")).arg("--check").arg(file).output();
    let output = output.expect("it runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_store_is_verified_where_it_lies() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let (mut store, _disk) = start("32MiB");
    let mark = b"again and again in a large value ";
    let large = mark.repeat(10_000);
    let mut client = store.client();
    for (key, value) in [(&b"greeting"[..], &b"hello"[..]), (b"large", &large), (b"gone", b"x")] {
        let reply = client.ask(&[b"SET", key, value]).expect("an answer");
        assert_eq!(reply, Reply::Simple("OK".to_owned()));
    }
    assert_eq!(client.ask(&[b"DEL", b"gone"]).expect("an answer"), Reply::Integer(1));
    let (sound, said) = check(&store.region());
    assert!(!sound && said.contains("in use"), "while it is served: {said}");

    store.crash(true, true, false);
    for file in [store.region(), store.mirror().to_owned()] {
        let before = std::fs::read(&file).expect("the file");
        let (sound, said) = check(&file);
        assert!(sound && said.contains("recovered 2 keys"), "{}: {said}", file.display());
        assert!(std::fs::read(&file).expect("the file") == before, "it was written to");
    }

    // One bit of the value, which no log knows of.
    let mut bytes = std::fs::read(store.region()).expect("the region");
    let at = bytes.windows(mark.len()).position(|window| window == mark).expect("the value");
    bytes[at] ^= 1;
    std::fs::write(store.region(), &bytes).expect("the region");
    let (sound, said) = check(&store.region());
    assert!(!sound && said.contains("DAMAGED: large") && !said.contains("greeting"), "{said}");
    assert!(check(store.mirror()).0, "the mirror is whole");
}

#[test]
fn redis_benchmark_finds_no_error() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("redis-benchmark"));
    let _turn = wait::turn();
    let (store, _disk) = start("32MiB");
    for more in [&["-n", "4000"][..], &["-n", "20000", "-P", "16"], &["-n", "1000", "-d", "4096"]] {
        let tests = ["PING_MBULK", "SET", "GET", "INCR", "MSET"];
        let more = [&["-c", "32", "-r", "1000"], more].concat();
        redis_benchmark(&store.net, store.guest.ip(), &tests, &more);
    }
    store.stop();
}

#[test]
fn a_full_region_refuses_writes_and_goes_on() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let (store, _disk) = start("8MiB");
    let mut client = store.client();
    let value = vec![b'v'; 50_000];
    let ok = Reply::Simple("OK".to_owned());
    let mut keys: Vec<String> = Vec::new();
    let refusal = loop {
        let key = format!("key {}", keys.len());
        match client.ask(&[b"SET", key.as_bytes(), &value]).expect("an answer") {
            reply if reply == ok => keys.push(key),
            other => break other,
        }
        assert!(keys.len() < 200, "it never fills");
    };
    let oom = "OOM command not allowed when used memory > 'maxmemory'.";
    assert_eq!(refusal, Reply::Error(oom.to_owned()));
    assert!(keys.len() > 10, "{} values", keys.len());
    for key in &keys {
        let reply = client.ask(&[b"GET", key.as_bytes()]).expect("an answer");
        assert!(reply == Reply::Bulk(Some(value.clone())), "{key}");
    }
    for key in &keys[..5] {
        assert_eq!(client.ask(&[b"DEL", key.as_bytes()]).expect("an answer"), Reply::Integer(1));
    }
    wait::until("there is room again", || {
        (client.ask(&[b"SET", b"again", &value]).ok()? == ok).then_some(())
    });
    for key in &keys[5..] {
        let reply = client.ask(&[b"STRLEN", key.as_bytes()]).expect("an answer");
        assert_eq!(reply, Reply::Integer(50_000));
    }
    store.stop();
}

const WRITERS: u64 = 8;
const KEYS: u64 = 24;

/// Writes until told to stop, some requests at a time, and connects again whenever
/// the connection breaks.
fn write(
    ip: &str,
    writer: u64,
    seed: u64,
    ledger: &Mutex<Ledger>,
    gate: &RwLock<()>,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
) {
    let mut random = Random((seed << 8) | (writer + 1));
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::connect(ip, PORT) else {
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            // Held while requests are under way: whoever checks waits for them.
            let _open = gate.read().expect("nobody fails with it");
            let mut batch = Vec::new();
            let mut requests = Vec::new();
            for _ in 0..=random.below(6) {
                let number = random.below(KEYS);
                if batch.iter().any(|(other, _)| *other == number) {
                    continue;
                }
                let (version, words) = lock(ledger).ask(number);
                batch.push((number, version));
                requests.push(words);
            }
            let answered = client.send(&requests).and_then(|()| {
                for &(number, version) in &batch {
                    match client.receive()? {
                        Reply::Simple(ok) if ok == "OK" => {}
                        other => return Err(io::Error::other(format!("{other:?}"))),
                    }
                    lock(ledger).acknowledge(number, version);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
            if answered.is_err() {
                break;
            }
        }
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("nobody fails with it")
}

/// Kills under load, again and again, and checks after each time.
fn kill_under_load(rounds: u64, seed: u64) {
    let (mut store, _disk) = start("32MiB");
    let ledgers: Vec<Mutex<Ledger>> =
        (0..WRITERS).map(|writer| Mutex::new(Ledger::new(writer, KEYS))).collect();
    let (gate, stop, acknowledged) = (RwLock::new(()), AtomicBool::new(false), AtomicU64::new(0));
    let mut random = Random(seed | (1 << 60));
    let mut checked = 0;
    let mut kills = [0; 4];
    let ip = store.guest.ip().to_owned();
    std::thread::scope(|scope| {
        let _ending = wait::Ending(&stop);
        for (writer, ledger) in (0..).zip(&ledgers) {
            let (ip, gate, stop, acknowledged) = (&ip, &gate, &stop, &acknowledged);
            let net = Arc::clone(&store.net);
            scope.spawn(move || {
                net.enter();
                write(ip, writer, seed, ledger, gate, stop, acknowledged);
            });
        }
        for round in 0..rounds {
            let before = acknowledged.load(Ordering::Relaxed);
            wait::until("writes are acknowledged", || {
                (acknowledged.load(Ordering::Relaxed) > before + 20).then_some(())
            });
            std::thread::sleep(Duration::from_millis(random.below(120)));
            let kind = random.below(4) as usize;
            kills[kind] += 1;
            match kind {
                0 => store.crash(true, false, false),
                1 => store.crash(false, true, false),
                2 => store.crash(true, true, false),
                _ => store.crash(true, true, true),
            }
            store.resume();
            let closed = gate.write().expect("nobody fails with it");
            store.wait_serving();
            let mut client = store.client();
            checked += ledgers.iter().map(|ledger| lock(ledger).check(&mut client)).sum::<u64>();
            drop(closed);
            if round % 20 == 19 {
                println!("round {}: {checked} acknowledged writes checked", round + 1);
            }
        }
    });
    let all = acknowledged.load(Ordering::Relaxed);
    let [guest, backend, both, machine] = kills;
    println!(
        "seed {seed}: killed {guest} guests, {backend} backends, {both} times both, {machine} \
         times both with all memory; {all} writes acknowledged, {checked} checks of the last one \
         of a key, none missing"
    );
    assert!(checked > rounds * 50, "{checked} checks in {rounds} rounds");
    let output = store.application.as_ref().map(Process::output).unwrap_or_default();
    assert!(!output.contains("DAMAGED"), "{output}");
    store.stop();
}

#[test]
fn what_was_acknowledged_outlives_any_kill() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    kill_under_load(8, 1);
}

/// `PASTE_KV_SEED=7 cargo test --release -p paste-tests --test key_values -- --ignored`
#[test]
#[ignore = "long: 200 kills"]
fn what_was_acknowledged_outlives_two_hundred_kills() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    let seed = std::env::var("PASTE_KV_SEED").ok().and_then(|seed| seed.parse().ok());
    kill_under_load(200, seed.unwrap_or(2));
}
