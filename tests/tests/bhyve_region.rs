//! bhyve's region device without bhyve: the unchanged C file of `backend/bhyve`, linked with
//! what stands in for bhyve (`tests/bhyve`), and the real program. A segment of a machine's
//! is a memory file here; its guest stores, and asks for what it stored to be durable.

#![cfg(target_os = "linux")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use paste_abi::superblock::HOST_HEAD_LEN;
use paste_pmem::{Backing, Geometry, HugePages, Identity, Region, Uuid};
use paste_tests::backend::mirrored;
use paste_tests::disk::{Disk, Failure};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require::{Need, built};
use paste_tests::{bhyve, require, wait};
use pasted::link::wire::{self, FLUSHES_MAX, Flushed, HEAD_LEN, Kind, Segment};
use pasted::sys::fds;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};
use tempfile::TempDir;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const SIZE: u64 = 16 << 20;
/// Bytes that a guest sees.
const LEN: u64 = SIZE - HOST_HEAD_LEN;

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| bhyve::build(Path::new(env!("CARGO_TARGET_TMPDIR")), "region", false))
}

/// A host with `pasted`, and a directory for it and its machines.
struct Host {
    net: Namespace,
    pasted: Process,
    dir: TempDir,
}

impl Host {
    /// With these keys of the region of its guest, web1.
    fn start(region: &str) -> Host {
        let net = Namespace::new();
        net.tap_with("tap0", "10.7.0.1/24");
        net.tap_with("tap1", "10.8.0.1/24");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("vmm.io")).expect("a directory");
        let guest = |number: u8, region: &str| {
            format!(
                "[[guest]]\nname = \"web{}\"\nmac = \"02:00:00:00:00:0{number}\"\n\
                 addresses = [\"10.{}.0.2/24\"]\nport = \"tap:tap{number}\"\n\
                 region = {{ size = \"16MiB\"{region} }}\n",
                number + 1,
                7 + number
            )
        };
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "control = \"{}\"\nstats = \"{}\"\n{}{}",
            at("control.sock"),
            at("stats.json"),
            guest(0, &format!(", segment = true{region}")),
            guest(1, ""),
        );
        std::fs::write(dir.path().join("pasted.toml"), config).expect("a file");
        let pasted = serve(&net, dir.path());
        Host { net, pasted, dir }
    }

    fn mirrored() -> Host {
        let files = tempfile::tempdir().expect("a directory").keep();
        let host = Host::start(&format!(", mirror = \"{}\"", files.join("mirror").display()));
        std::os::unix::fs::symlink(&files, host.dir.path().join("files")).expect("a link");
        host
    }

    fn mirror(&self) -> PathBuf {
        self.dir.path().join("files/mirror")
    }

    fn kept(&self, at: u64, len: usize) -> Vec<u8> {
        mirrored(&self.mirror(), at, len)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn option(&self, more: &str) -> String {
        format!("6,paste-region,socket={}{more}", self.socket().display())
    }

    fn machine(&self) -> Machine {
        let mut command = Command::new(program());
        command.current_dir(self.dir.path()).args(["web1", &self.option("")]);
        let mut process = Process::spawn("the machine", &mut command);
        process.wait_output("running\n");
        Machine { process, heard: 0 }
    }

    /// Starts a machine that ends at once, and says why.
    fn refused(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program());
        command.current_dir(self.dir.path()).args(arguments);
        command.stderr(Stdio::piped()).stdout(Stdio::null()).stdin(Stdio::null());
        let output = command.output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn restart(&mut self, crash: bool) {
        match crash {
            true => self.pasted.kill(),
            false => {
                self.pasted.terminate();
                assert_eq!(self.pasted.wait().code(), Some(0));
            }
        }
        self.pasted = serve(&self.net, self.dir.path());
    }

    /// The counters of web1.
    fn stop(mut self) -> serde_json::Value {
        self.pasted.terminate();
        assert_eq!(self.pasted.wait().code(), Some(0), "pasted's exit");
        let stats = std::fs::read(self.dir.path().join("stats.json")).expect("statistics");
        let stats: serde_json::Value = serde_json::from_slice(&stats).expect("JSON");
        let guests = stats["guests"].as_array().expect("guests");
        let guest = guests.iter().find(|guest| guest["name"] == "web1");
        guest.expect("it was there")["counters"].clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(files) = std::fs::read_link(self.dir.path().join("files")) {
            // Of a directory that is gone already there is nothing to remove.
            let _ = std::fs::remove_dir_all(files);
        }
    }
}

fn serve(net: &Namespace, dir: &Path) -> Process {
    let mut command = net.command(built("pasted"));
    command.args(["run", "--config"]).arg(dir.join("pasted.toml"));
    let mut pasted = Process::spawn("pasted", &mut command);
    pasted.wait_output("serving");
    pasted
}

/// A machine that does what it is told.
struct Machine {
    process: Process,
    /// Lines that it has answered.
    heard: usize,
}

impl Machine {
    fn tell(&mut self, line: &str) {
        self.process.tell(&format!("{line}\n"));
    }

    /// Its next answer, which is not what the device says beside it.
    fn hear(&mut self) -> String {
        let line = wait::until("the machine answers", || {
            let all = self.process.output();
            let whole = all.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let answers = |line: &&str| !line.starts_with("paste-region:") && *line != "running";
            whole.lines().filter(answers).nth(self.heard).map(str::to_owned)
        });
        self.heard += 1;
        line
    }

    #[track_caller]
    fn does(&mut self, line: &str, answer: &str) {
        self.tell(line);
        assert_eq!(self.hear(), answer, "{line}");
    }
}

#[test]
fn what_a_guest_stored_is_in_the_mirror_when_its_request_is_answered() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Built("pasted"));
    let host = Host::mirrored();
    let mut machine = host.machine();
    machine.does(
        "info",
        &format!(
            "id 1af4:1110 magic 52534150 version 1 length {LEN} use 1 bars 256 {} behind \
             ffffffffffffffff odd 0",
            LEN.next_power_of_two()
        ),
    );
    for round in 0..100u64 {
        let bytes = format!("round{round:04}");
        let places = [LEN - 64, LEN / 2 + round * 64];
        for at in places {
            machine.does(&format!("store {at} {bytes}"), "stored");
            assert_ne!(host.kept(at, bytes.len()), bytes.as_bytes(), "nobody asked for it yet");
        }
        machine.does("flush", "flushed");
        for at in places {
            assert_eq!(host.kept(at, bytes.len()), bytes.as_bytes());
        }
        if round == 50 {
            machine.does("move", "moved");
        }
    }
    // It ends where it was said to.
    machine.does(&format!("store {} x", LEN - 1), "stored");
    machine.does(&format!("store {LEN} x"), "outside");
    drop(machine);
    let counters = host.stop();
    assert_eq!((&counters["region.flushes"], &counters["region.failed"]), (&100.into(), &0.into()));
}

#[test]
fn a_restart_of_the_backend_is_survived_and_requests_wait_for_it() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Built("pasted"));
    let mut host = Host::mirrored();
    let mut machine = host.machine();
    let at = |round: u64| 8 << 20 | round << 12;
    for (round, crash) in [true, false, true].into_iter().enumerate() {
        let round = round as u64;
        machine.does(&format!("store {} before{round}", at(round)), "stored");
        machine.does("flush", "flushed");
        // Asked for while nobody may be there to answer.
        host.pasted.terminate();
        machine.does(&format!("store {} meanwhile{round}", at(round) + 100), "stored");
        machine.does("ask", "asked");
        host.restart(crash);
        machine.does("wait", "flushed");
        assert_eq!(host.kept(at(round), 7), format!("before{round}").as_bytes());
        assert_eq!(host.kept(at(round) + 100, 10), format!("meanwhile{round}").as_bytes());
        machine.does(&format!("load {} 7", at(round)), &format!("before{round}"));
    }
}

#[test]
fn another_machine_has_what_was_durable() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Built("pasted"));
    let mut host = Host::mirrored();
    let at = 9 << 20;
    let mut machine = host.machine();
    machine.does(&format!("store {at} durable"), "stored");
    machine.does("flush", "flushed");
    machine.process.kill();
    // It may take a moment until the other one is known to be gone.
    wait::until("the guest is free", || {
        let mut command = Command::new(program());
        command.current_dir(host.dir.path()).args(["web1", &host.option("")]);
        let output = command.stdin(Stdio::null()).output().expect("it runs");
        output.status.success().then_some(())
    });
    let mut machine = host.machine();
    machine.does(&format!("load {at} 7"), "durable");
    machine.process.kill();
    // And without a backend that remembers.
    host.restart(true);
    let mut machine = host.machine();
    machine.does(&format!("load {at} 7"), "durable");
    machine.does(&format!("store {at} another"), "stored");
    machine.does("flush", "flushed");
    assert_eq!(host.kept(at, 7), b"another");
}

#[test]
fn a_disk_that_fails_is_told_and_what_nothing_keeps_is_not_durable() {
    require!(
        Need::Namespaces,
        Need::Program("gcc"),
        Need::Built("pasted"),
        Need::Device("/dev/fuse")
    );
    let disk = Disk::new();
    let path = disk.path("mirror");
    let host = Host::start(&format!(", mirror = \"{}\"", path.display()));
    let mut machine = host.machine();
    let at = 10 << 20;
    machine.does(&format!("store {at} first"), "stored");
    machine.does("flush", "flushed");
    for (round, failure) in [Failure::Sync, Failure::Full, Failure::ReadOnly].iter().enumerate() {
        machine.does(&format!("store {at} broken{round}"), "stored");
        disk.fail(Some(*failure));
        machine.does("flush", "failed");
        machine.does("flush", "failed");
        disk.fail(None);
        // A failed disk is not tried at once.
        wait::until("the disk is tried again", || {
            machine.tell("flush");
            (machine.hear() == "flushed").then_some(())
        });
        assert_eq!(mirrored(&path, at, 7), format!("broken{round}").as_bytes());
    }
    drop(machine);
    let counters = host.stop();
    assert!(counters["region.failed"].as_u64().expect("a number") >= 6);

    // Without a mirror the guest is told so, and every request fails.
    let host = Host::start("");
    let mut machine = host.machine();
    machine.tell("info");
    assert!(machine.hear().contains(" use 0 "));
    machine.does("flush", "failed");
}

/// A VMM that is none.
struct Hostile(OwnedFd);

impl Hostile {
    fn connect(socket: &Path) -> Hostile {
        let flags = SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let hostile = Hostile(fd.expect("a socket"));
        connect(&hostile.0, &SocketAddrUnix::new(socket).expect("a path")).expect("it listens");
        hostile
    }

    fn say(&self, kind: Kind, body: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut record = vec![0; HEAD_LEN];
        wire::write_head(kind, 0, record.first_chunk_mut().expect("room"));
        record.extend(body);
        // It may have been cut off by what it said before.
        let _ = fds::send(&self.0, &record, descriptors);
    }

    /// Offers memory for the region of web1: status, and what was said.
    fn offer(&self, len: u64, descriptors: &[BorrowedFd<'_>]) -> (u16, String) {
        let mut region = wire::Region::new_zeroed();
        region.name[..4].copy_from_slice(b"web1");
        region.len = len.into();
        self.say(Kind::Region, region.as_bytes(), descriptors);
        let record = self.hear();
        let (Kind::Segment, _, body) = wire::head(&record).expect("a record") else {
            panic!("{record:?}")
        };
        let segment = Segment::read_from_bytes(body).expect("whole");
        let text = wire::text(&segment.text.map(|b| if b == b' ' { b'_' } else { b }))
            .unwrap_or_default()
            .to_owned();
        (segment.status.get(), text)
    }

    fn hear(&self) -> Vec<u8> {
        let mut record = vec![0; 1024];
        let (_, len) = recv(&self.0, &mut *record, RecvFlags::empty()).unwrap_or_default();
        record.truncate(len);
        record
    }
}

fn memory(len: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("segment", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let fd = fd.expect("memory");
    ftruncate(&fd, len).expect("it can grow");
    fcntl_add_seals(&fd, seals).expect("it can be sealed");
    fd
}

/// Memory with a region of another guest's.
fn of_another() -> OwnedFd {
    let geometry = Geometry::new(SIZE, 2048).expect("a size");
    let identity = Identity { guest: "web2", uuid: Uuid([7; 16]), created_ns: 1 };
    let region = Region::create(&Backing::Memory(HugePages::No), geometry, &identity);
    let region = region.expect("memory for a region");
    let fd = region.fd().try_clone_to_owned().expect("a descriptor");
    region.close().expect("it is whole");
    fd
}

#[test]
fn who_cannot_be_served_is_told_why() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Built("pasted"));
    let host = Host::start("");
    let with = |more: &str| host.option(more);
    for (arguments, says) in [
        (vec!["web9", &*with("")], "there is no guest \"web9\" yet"),
        (vec!["vm", &*with(",guest=web2")], "segment = true"),
        (vec!["Web 1", &*with("")], "plain ASCII"),
        (vec!["web1", "6,paste-region,socket=/nowhere/x"], "is pasted running"),
        (vec!["web1", "6,paste-region,socket=relative"], "absolute"),
        (vec!["", &*with("")], "1 to 63 characters"),
    ] {
        let said = host.refused(&arguments);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    let mut machine = host.machine();
    assert!(host.refused(&["web1", &with("")]).contains("in use"), "a second machine");
    machine.does("store 9000000 stored", "stored");
    // The second device of one machine, which goes on with the first one.
    machine.process.kill();
    let option = with("");
    let mut machine = wait::until("the guest is free", || {
        let mut command = Command::new(program());
        command.current_dir(host.dir.path()).args(["web1", &option, &option]);
        let mut process = Process::spawn("the machine", &mut command);
        wait::until("it begins, or ends", || {
            let is_over = process.output().contains("running") || !process.is_alive();
            is_over.then_some(())
        });
        process.is_alive().then_some(Machine { process, heard: 0 })
    });
    machine.does("flush", "failed");
    drop(machine);

    // What a VMM may give in the place of memory.
    let file: OwnedFd = tempfile::tempfile().expect("a file").into();
    ftruncate(&file, SIZE).expect("it can grow");
    for (fd, len, says) in [
        (memory(SIZE, SealFlags::empty()), SIZE, "F_SEAL_SHRINK"),
        (memory(SIZE / 2, SealFlags::SHRINK), SIZE, "8388608_bytes"),
        (memory(SIZE / 2, SealFlags::SHRINK), SIZE / 2, "16777216_expected"),
        (memory(SIZE, SealFlags::SHRINK | SealFlags::WRITE), SIZE, "cannot_be_mapped"),
        (file, SIZE, "segment"),
        (std::fs::File::open("/dev/null").expect("it is there").into(), SIZE, "not_a_segment"),
        (of_another(), SIZE, "belongs_to_guest_\"web2\""),
    ] {
        let (status, text) = wait::until("the guest is free", || {
            let answer = Hostile::connect(&host.socket()).offer(len, &[fd.as_fd()]);
            (!answer.1.contains("in_use")).then_some(answer)
        });
        assert!(status == wire::STATUS_REFUSED && text.contains(says), "{says}: {text}");
    }
    // None of it has harmed anybody.
    let mut machine = host.machine();
    machine.does("store 9000000 again", "stored");
    machine.does("load 9000000 5", "again");
}

#[test]
fn a_device_that_breaks_the_protocol_loses_its_link_alone() {
    require!(Need::Namespaces, Need::Program("gcc"), Need::Built("pasted"));
    let host = Host::mirrored();
    let fd = memory(SIZE, SealFlags::SHRINK);
    let attach = || {
        wait::until("the guest is free", || {
            let hostile = Hostile::connect(&host.socket());
            (hostile.offer(SIZE, &[fd.as_fd()]).0 == 0).then_some(hostile)
        })
    };
    type Attack = fn(&Hostile);
    let attacks: [Attack; 4] = [
        |h| h.say(Kind::Flush, &[0; 7], &[]),
        |h| h.say(Kind::Frames, &[0; 60], &[]),
        |h| h.say(Kind::Region, &[0; 96], &[]),
        |h| (0..10 * FLUSHES_MAX as u64).for_each(|n| h.say(Kind::Flush, &n.to_le_bytes(), &[])),
    ];
    for attack in attacks {
        let hostile = attach();
        attack(&hostile);
        // Whatever was answered, then it is over.
        while !hostile.hear().is_empty() {}
    }
    // The memory stays where it was, and who behaves is served: answers come in order.
    let hostile = attach();
    for number in [7u64, 9, 1] {
        hostile.say(Kind::Flush, &number.to_le_bytes(), &[]);
    }
    for number in [7, 9, 1] {
        let record = hostile.hear();
        let (Kind::Flushed, _, body) = wire::head(&record).expect("a record") else { panic!() };
        let flushed = Flushed::read_from_bytes(body).expect("whole");
        assert_eq!((flushed.number.get(), flushed.outcome), (number, [0; 4]));
    }
    drop(hostile);
    host.machine().does("flush", "flushed");
}

#[test]
fn random_interleavings_find_no_race() {
    require!(Need::Program("gcc"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = bhyve::build(dir, "region_interleave", true);
    let output = Command::new(program).args(["10000", "1"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("WARNING"), "{said}");
    print!("{}", String::from_utf8_lossy(&output.stdout));
}
