//! The disk under a mirror is full, read-only, or cannot sync: no write is
//! acknowledged, everybody is told, reads go on, and whatever ends the processes
//! then, what was acknowledged before is there.

#![cfg(target_os = "linux")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use paste_tests::disk::{Disk, Failure, unmount};
use paste_tests::loop_disk::LoopDisk;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::resp::{Client, Reply};
use paste_tests::store::{Ledger, Random, Store};
use paste_tests::wait;
use tempfile::TempDir;

const NEEDS: [Need; 4] = [
    Need::Namespaces,
    Need::Device("/dev/fuse"),
    Need::Built("pasted"),
    Need::Built("examples/kv"),
];
const SIZE: &str = "16MiB";
const KEYS: u64 = 40;

/// A store, what it has acknowledged, and how its disk is broken and mended.
struct Bed<'a> {
    store: Store,
    ledger: Ledger,
    breaks: &'a dyn Fn(bool),
}

/// What became of writes.
#[derive(Debug, Default)]
struct Seen {
    refused: u64,
    reset: u64,
}

impl<'a> Bed<'a> {
    fn new(mirror: &Path, breaks: &'a dyn Fn(bool)) -> Bed<'a> {
        let mut bed =
            Bed { store: Store::start(SIZE, mirror), ledger: Ledger::new(1, KEYS), breaks };
        bed.write_all();
        bed
    }

    /// Writes every key, and each is acknowledged.
    fn write_all(&mut self) {
        let mut client = self.store.client();
        for number in 0..KEYS {
            let reply = self.ledger.write(&mut client, number).expect("an answer");
            assert_eq!(reply, Reply::Simple("OK".to_owned()));
        }
    }

    /// Every key is as it should be.
    fn check(&mut self) {
        self.store.wait_serving();
        assert_eq!(self.ledger.check(&mut self.store.client()), KEYS);
    }

    /// Tries to write while the disk is broken, for long enough that the flusher
    /// tries again and again.
    fn write_in_vain(&mut self) {
        let (mut seen, mut random) = (Seen::default(), Random(1 << 50));
        let end = Instant::now() + Duration::from_millis(700);
        while Instant::now() < end || seen.refused < 10 {
            let mut client = self.store.client();
            for _ in 0..4 {
                match self.ledger.write(&mut client, random.below(KEYS)) {
                    Ok(Reply::Error(text)) => {
                        assert!(text.starts_with("MISCONF "), "{text}");
                        seen.refused += 1;
                    }
                    // On a disk that is only full, what has its place there already.
                    Ok(Reply::Simple(_)) => assert_eq!((seen.refused, seen.reset), (0, 0)),
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => {
                        let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::InvalidData];
                        assert!(kinds.contains(&error.kind()), "{error}");
                        seen.reset += 1;
                        break;
                    }
                }
            }
            assert!(Instant::now() < end + wait::LIMIT, "{seen:?}");
        }
    }

    /// It is mended, and writes are acknowledged before long.
    fn mend(&mut self) {
        (self.breaks)(false);
        let Bed { store, ledger, .. } = self;
        wait::until("writes are acknowledged again", || {
            let reply = ledger.write(&mut store.client(), 0).ok()?;
            (reply == Reply::Simple("OK".to_owned())).then_some(())
        });
    }

    fn process(&mut self) -> &mut Process {
        &mut self.store.backend.as_mut().expect("the backend runs").process
    }

    /// Region and mirror are sound, as `pasted region check` says.
    fn assert_sound(&self) {
        for path in [self.store.region().as_path(), self.store.mirror()] {
            assert_sound(path);
        }
    }
}

fn assert_sound(path: &Path) {
    let output = Command::new(built("pasted")).args(["region", "check"]).arg(path).output();
    let output = output.expect("pasted runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("sound"), "{said}{output:?}");
}

/// The whole of it, for one way to fail. `says` is what the log says, and `advises`
/// what to do.
fn nothing_is_acknowledged(mirror: &Path, breaks: &dyn Fn(bool), says: &str, advises: &str) {
    let mut bed = Bed::new(mirror, breaks);

    // It fails. Clients are told, reads go on, and nobody ends.
    breaks(true);
    bed.write_in_vain();
    let mut client = bed.store.client();
    for number in 0..KEYS {
        bed.ledger.check_one(&mut client, number);
    }
    let log = bed.process().output();
    for text in ["stores could not be made durable", "web1", says, advises] {
        assert!(log.contains(text), "no \"{text}\" in {log}");
    }
    assert!(!log.contains("made durable again"), "{log}");

    // It is mended, and all goes on as before.
    bed.mend();
    bed.process().wait_output("made durable again");
    bed.write_all();
    bed.check();

    // Killed while it fails, and started anew: not before it is mended.
    breaks(true);
    bed.write_in_vain();
    bed.store.crash(true, true, false);
    let refusal = bed.store.refusal();
    assert!(refusal.contains("mirror") && refusal.contains(says), "{refusal}");
    assert!(bed.store.region().exists() && mirror.exists(), "it took the data away");
    breaks(false);
    bed.store.resume();
    bed.check();
    bed.write_all();

    // Stopped while it fails: it says that it is not in good order.
    breaks(true);
    bed.write_in_vain();
    bed.store.stop_application();
    let mut backend = bed.store.backend.take().expect("it runs");
    backend.process.terminate();
    assert_eq!(backend.process.wait().code(), Some(1));
    let log = backend.process.output();
    assert!(log.matches(says).count() >= 2 && log.contains(&*mirror.to_string_lossy()), "{log}");
    bed.store.put_back(backend);
    breaks(false);
    bed.store.resume();
    bed.check();
    bed.write_all();

    // Only the application ends while it fails.
    breaks(true);
    bed.write_in_vain();
    bed.store.crash(true, false, false);
    breaks(false);
    bed.store.resume();
    bed.check();
    bed.write_all();

    bed.store.stop_application();
    let stats = bed.store.backend.take().expect("it runs").stop();
    let count = |name| stats.get(&bed.store.guest, name);
    assert!(count("flush.failures") > 0);
    let owned = ["pool.free", "pool.port", "pool.claimed"].map(count).iter().sum::<u64>();
    assert_eq!(owned, count("pool.buffers"), "buffers are missing");
    bed.assert_sound();
}

fn on_a_faulty_disk(failure: Failure, says: &str, advises: &str) {
    let disk = Disk::new();
    let breaks = |broken: bool| disk.fail(broken.then_some(failure));
    nothing_is_acknowledged(&disk.path("mirror"), &breaks, says, advises);
    assert!(disk.failed() > 0);
}

#[test]
fn on_a_full_disk_nothing_is_acknowledged() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    on_a_faulty_disk(Failure::Full, "No space left on device", "make room on its file system");
}

#[test]
fn on_a_read_only_disk_nothing_is_acknowledged() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    on_a_faulty_disk(Failure::ReadOnly, "Read-only file system", "mount it writable");
}

#[test]
fn on_a_disk_that_cannot_sync_nothing_is_acknowledged() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    on_a_faulty_disk(Failure::Sync, "Input/output error", "see to its disk");
}

/// A file system in memory, with room for little more than the mirror and its
/// journal.
struct Small {
    dir: TempDir,
}

impl Small {
    fn new() -> Small {
        let dir = tempfile::tempdir().expect("a directory can be made");
        run("mount", &["-t", "tmpfs", "-o", "size=33m", "paste-tests"], dir.path());
        Small { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives the zeros of both back and takes all the room there is, or frees it.
    fn fill(&self, full: bool) {
        let filler = self.path("filler");
        if !full {
            return std::fs::remove_file(filler).expect("it was full");
        }
        for name in ["mirror", "mirror.journal"] {
            run("fallocate", &["--dig-holes"], &self.path(name));
        }
        let mut filler = std::fs::File::create(filler).expect("there is room");
        let chunk = [1; 4096];
        while io::Write::write_all(&mut filler, &chunk).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(self.dir.path());
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn on_a_small_disk_that_others_fill_nothing_is_acknowledged() {
    require!(NEEDS[0], NEEDS[2], NEEDS[3], Need::Program("fallocate"));
    let disk = Small::new();
    let says = ["No space left on device", "make room on its file system"];
    nothing_is_acknowledged(&disk.path("mirror"), &|full| disk.fill(full), says[0], says[1]);
}

/// Not a fault that we make up: the kernel has found damage, and writes nothing any
/// more. Only a start of the system mends that, so the memory is lost too.
#[test]
fn when_the_kernel_makes_the_disk_read_only_nothing_is_acknowledged() {
    require!(NEEDS[0], NEEDS[2], NEEDS[3], Need::Device("/dev/loop-control"));
    require!(Need::Program("mkfs.ext4"));
    let disk = LoopDisk::new(64 << 20);
    let mut bed = Bed::new(&disk.path("mirror"), &|_| ());
    disk.damage();
    bed.write_in_vain();
    let mut client = bed.store.client();
    for number in 0..KEYS {
        bed.ledger.check_one(&mut client, number);
    }
    let log = bed.process().output();
    for text in ["stores could not be made durable", "web1", "Read-only file system"] {
        assert!(log.contains(text), "no \"{text}\" in {log}");
    }
    drop(client);
    bed.store.crash(true, true, true);
    let refusal = bed.store.refusal();
    assert!(refusal.contains("Read-only file system"), "{refusal}");

    disk.repair();
    assert_sound(bed.store.mirror());
    bed.store.resume();
    bed.check();
    bed.write_all();
    drop(bed.store.stop());
}

#[test]
fn what_was_acknowledged_outlives_the_power_that_fails_with_the_disk() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let failures = [Failure::Sync, Failure::Full, Failure::ReadOnly];
    let (disk, mut random) = (Disk::new(), Random(1 << 40));
    let nothing = |_: bool| {};
    let mut bed = Bed::new(&disk.path("mirror"), &nothing);
    for failure in failures.into_iter().cycle().take(9) {
        disk.fail(Some(failure));
        bed.write_in_vain();
        bed.store.crash(true, true, true);
        disk.lose_power(|| random.below(2) == 0);
        assert_sound(bed.store.mirror());
        disk.fail(None);
        bed.store.resume();
        bed.check();
        bed.write_all();
    }
    drop(bed.store.stop());
}

/// The memory is lost with the processes, and the system lives on: what it shows of
/// the mirror may not be on its disk.
#[test]
fn what_a_failed_sync_left_in_the_systems_cache_is_not_taken_for_durable() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let disk = Disk::new();
    let nothing = |_: bool| {};
    let mut bed = Bed::new(&disk.path("mirror"), &nothing);
    for _ in 0..3 {
        disk.fail(Some(Failure::Sync));
        bed.write_in_vain();
        bed.store.crash(true, true, true);
        disk.fail(None);
        bed.store.resume();
        bed.check();
        // Of what was read out, this writes nothing again.
        bed.mend();
        bed.store.crash(true, true, true);
        disk.lose_power(|| false);
        bed.store.resume();
        bed.check();
    }
    drop(bed.store.stop());
}

/// An answer that is written waits for its client to read what is before it; the
/// write that it answers fails meanwhile.
#[test]
fn an_answer_that_waits_for_its_client_goes_with_its_write() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let disk = Disk::new();
    let nothing = |_: bool| {};
    let mut bed = Bed::new(&disk.path("mirror"), &nothing);
    let (value, ok) = (vec![b'v'; 20_000], Reply::Simple("OK".to_owned()));
    assert_eq!(bed.store.client().ask(&[b"SET", b"large", &value]).expect("an answer"), ok);
    let get = || vec![b"GET".to_vec(), b"large".to_vec()];
    let set = || vec![b"SET".to_vec(), b"late".to_vec(), b"x".to_vec()];
    let mut waited = 0;
    // Somewhere here is more than client and host hold together, and less than
    // stops the requests.
    for asked in (12..44).step_by(4) {
        let mut slow: Client = bed.store.slow_client();
        for _ in 0..asked {
            slow.send(&[get()]).expect("it is sent");
            std::thread::sleep(Duration::from_millis(5));
        }
        disk.fail(Some(Failure::Sync));
        slow.send(&[set()]).expect("it is sent");
        bed.write_in_vain();
        let mut answers = 0;
        while answers < asked
            && let Ok(Reply::Bulk(Some(_))) = slow.receive()
        {
            answers += 1;
        }
        if answers == asked {
            assert_ne!(slow.receive().ok(), Some(ok.clone()), "after {asked} answers");
        } else {
            waited += 1;
        }
        disk.fail(None);
        bed.mend();
    }
    assert!(waited > 0, "nothing waited");
    drop(bed.store.stop());
}
