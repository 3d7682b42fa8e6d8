//! `pasted region` as its user meets it: what it prints, how it ends, and that
//! it leaves alone what it should.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use paste_abi::superblock::{COPY_OFFSETS, HOST_HEAD_LEN};
use paste_pmem::wal::{Entry, Piece, Place as LogPlace, Wal};
use paste_pmem::{Claims, Expect, FlushRange, Medium, Region, RegionMedium, checksum};
use serde_json::Value;
use tempfile::TempDir;

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pasted"))
            .arg("region")
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    /// Runs a command that succeeds and is silent on stderr; its stdout.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Runs a command that fails with this code; stdout, and stderr with one line.
    #[track_caller]
    fn fails(&self, args: &[&str], code: i32) -> (String, String) {
        let output = self.run(args);
        let [out, errors] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{errors}");
        assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
        assert!(errors.starts_with("pasted: "), "{errors}");
        (out, errors)
    }

    fn create(&self, name: &str) {
        self.ok(&["create", name, "--size", "4MiB"]);
    }

    fn open(&self, name: &str) -> Region {
        let expect = Expect { guest: "web1", uuid: None, size: None, buffer_size: None };
        Region::open(&self.path(name), &expect).unwrap().0
    }

    fn write(&self, name: &str, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path(name)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn set_len(&self, name: &str, len: u64) {
        OpenOptions::new().write(true).open(self.path(name)).unwrap().set_len(len).unwrap();
    }
}

#[test]
fn a_region_is_not_made_on_a_device_that_is_no_device_dax() {
    let place = Place::new();
    let (_, errors) = place.fails(&["create", "/dev/null", "--size", "4MiB", "--guest", "web1"], 1);
    let want = "/dev/null: it is a character device, but not device DAX; name a device DAX";
    assert!(errors.contains(want), "{errors}");
}

#[test]
fn a_region_is_created_shown_and_sound() {
    let place = Place::new();
    let text = place.ok(&["create", "web1.region", "--size", "4MiB", "--mirror", "web1.mirror"]);
    assert!(text.starts_with("web1.region\n  guest    web1\n"), "{text}");
    assert!(text.contains("left     closed in good order"), "{text}");
    assert!(text.ends_with("mirror   web1.mirror\n"), "{text}");
    let region = place.json(&["info", "web1.region", "--json"]);
    let mirror = place.json(&["info", "web1.mirror", "--json"]);
    for key in ["guest", "uuid", "created_ns", "sequence", "size", "buffers", "claims", "log"] {
        assert_eq!(region[key], mirror[key], "{key}");
    }
    assert_eq!(region["size"], 4 << 20);
    assert_eq!(region["buffer_size"], 2048);
    assert_eq!(region["left"], "clean");
    assert_eq!(region["in_use"], false);
    for name in ["web1.region", "web1.mirror"] {
        let text = place.ok(&["check", name]);
        assert_eq!(
            text,
            format!("{name}: sound, 0 buffers claimed, 0 records, closed in good order\n")
        );
    }
    let checked = place.json(&["check", "web1.region", "--json"]);
    assert_eq!(checked["faults"], Value::Array(Vec::new()));
    let created = place.json(&[
        "create",
        "r",
        "--guest",
        "web-2",
        "--size",
        "6 MiB",
        "--buffer-size",
        "4096",
        "--json",
    ]);
    assert_eq!(created["region"]["guest"], "web-2");
    assert_eq!(created["region"]["buffer_size"], 4096);
    assert_eq!(created["mirror"], Value::Null);
}

#[test]
fn wrong_command_lines_end_with_2() {
    let place = Place::new();
    for (args, message) in [
        (vec!["create", "r", "--size", "5MiB"], "use a multiple of 2MiB from 4MiB to 64GiB"),
        (vec!["create", "r", "--size", "65GiB"], "use a multiple of 2MiB from 4MiB to 64GiB"),
        (vec!["create", "r", "--size", "big"], "write a size such as 256MiB or 1GiB"),
        (vec!["create", "r"], "--size <SIZE>"),
        (
            vec!["create", "r", "--size", "4MiB", "--buffer-size", "3000"],
            "use a power of two from 2048 to 65536",
        ),
        (vec!["create", "Web 1", "--size", "4MiB"], "\"Web 1\" is no guest's name: give --guest"),
        (vec!["create", "r", "--guest", "", "--size", "4MiB"], "give --guest"),
        (vec!["info"], "<PATH>"),
        (vec!["erase", "r"], "unrecognized subcommand"),
    ] {
        let output = place.run(&args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(errors.contains(message), "{args:?}: {errors}");
    }
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 0, "something was made");
}

#[test]
fn creating_touches_nothing_that_is_there() {
    let place = Place::new();
    fs::write(place.path("precious"), b"precious").unwrap();
    let (_, errors) = place.fails(&["create", "precious", "--size", "4MiB"], 1);
    assert!(errors.contains("precious: exists already"), "{errors}");
    let args = ["create", "web1.region", "--size", "4MiB", "--mirror", "precious"];
    let (_, errors) = place.fails(&args, 1);
    assert!(errors.contains("precious: exists already"), "{errors}");
    assert_eq!(fs::read(place.path("precious")).unwrap(), b"precious");
    assert!(!place.path("web1.region").exists());
    let args = ["create", "web1.region", "--size", "4MiB", "--mirror", "nowhere/web1.mirror"];
    place.fails(&args, 1);
    assert!(!place.path("web1.region").exists(), "made for nothing, and left");
    let args = ["create", "web1.region", "--size", "4MiB", "--mirror", "web1.region"];
    let (_, errors) = place.fails(&args, 2);
    assert!(errors.contains("--mirror is the region's own file"), "{errors}");
    assert!(!place.path("web1.region").exists());
}

#[test]
fn what_is_no_region_is_told_by_every_command() {
    let place = Place::new();
    fs::write(place.path("text"), b"precious").unwrap();
    File::create(place.path("zeros")).unwrap().set_len(8 << 20).unwrap();
    place.create("cut.region");
    place.set_len("cut.region", 4 << 20 | 4096);
    for command in ["info", "check", "recover"] {
        for (name, message) in [
            ("absent", "absent: no such file"),
            ("text", "text: has 8 bytes, 4194304 expected"),
            ("zeros", "zeros: it is not a region"),
            ("cut.region", "cut.region: has 4198400 bytes, 4194304 expected"),
            (".", ".: not a regular file"),
            ("/dev/null", "/dev/null: it is a character device, but not device DAX"),
        ] {
            let (out, errors) = place.fails(&[command, name], 1);
            assert!(errors.contains(message), "{command}: {errors}");
            assert_eq!(out, "");
        }
    }
    assert_eq!(fs::read(place.path("text")).unwrap(), b"precious");
}

#[test]
fn a_region_in_use_is_shown_and_not_touched() {
    let place = Place::new();
    place.create("web1.region");
    let region = place.open("web1.region");
    let info = place.json(&["info", "web1.region", "--json"]);
    assert_eq!((&info["in_use"], &info["left"]), (&Value::Bool(true), &"open".into()));
    assert!(place.ok(&["info", "web1.region"]).contains("in use by another process"));
    for command in ["check", "recover"] {
        let (_, errors) = place.fails(&[command, "web1.region"], 1);
        assert!(errors.contains("in use by another process"), "{errors}");
    }
    drop(region);
    assert!(place.ok(&["info", "web1.region"]).contains("open: its process died"));
    assert!(place.ok(&["check", "web1.region"]).contains("left open"));
}

#[test]
fn every_damage_is_found_and_repaired() {
    let place = Place::new();
    place.create("web1.region");
    let info = place.json(&["info", "web1.region", "--json"]);
    let claims = info["claims"]["offset"].as_u64().unwrap();
    let beyond = info["buffer_count"].as_u64().unwrap() / 8 + 1;
    place.write("web1.region", COPY_OFFSETS[1] + 20, b"x");
    place.write("web1.region", 4096 + 100, b"x");
    place.write("web1.region", HOST_HEAD_LEN + claims + beyond, &[0x81]);
    let before = fs::read(place.path("web1.region")).unwrap();
    let (out, errors) = place.fails(&["check", "web1.region"], 1);
    assert_eq!(
        out,
        "web1.region: copy 1 of the superblock is damaged; recovery repairs it\n\
         web1.region: the block that shows it to guests as a DAX device is damaged; recovery \
         repairs it\n\
         web1.region: 2 claims are on buffers that do not exist; recovery clears them\n"
    );
    assert_eq!(errors, "pasted: web1.region: 3 faults found\n");
    let (out, _) = place.fails(&["check", "web1.region", "--json"], 1);
    let checked: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(checked["faults"].as_array().unwrap().len(), 3);
    assert!(fs::read(place.path("web1.region")).unwrap() == before, "a check wrote");

    let recovered = place.json(&["recover", "web1.region", "--json"]);
    assert_eq!(recovered["from"], "file");
    assert_eq!(recovered["was_clean"], true);
    let repaired: Vec<&str> =
        recovered["repaired"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(repaired, ["superblock", "DAX block", "claim table"]);
    place.ok(&["check", "web1.region"]);
    let text = place.ok(&["recover", "web1.region"]);
    assert_eq!(text, "web1.region: recovered from its file\n");
}

#[test]
fn two_damaged_superblocks_are_beyond_repair_without_a_mirror() {
    let place = Place::new();
    place.ok(&["create", "web1.region", "--size", "4MiB", "--mirror", "web1.mirror"]);
    for copy in COPY_OFFSETS {
        place.write("web1.region", copy + 20, b"x");
    }
    for command in ["info", "check", "recover"] {
        let (_, errors) = place.fails(&[command, "web1.region"], 1);
        assert!(errors.contains("both copies of its superblock are damaged"), "{errors}");
    }
}

#[test]
fn a_lost_region_comes_back_from_its_mirror() {
    let place = Place::new();
    place.ok(&["create", "web1.region", "--size", "4MiB", "--mirror", "web1.mirror"]);
    let uuid = place.json(&["info", "web1.region", "--json"])["uuid"].clone();
    place.write("web1.mirror", HOST_HEAD_LEN + 100_000, b"durable");
    fs::remove_file(place.path("web1.region")).unwrap();
    place.fails(&["recover", "web1.region"], 1);
    let args = ["recover", "web1.region", "--mirror", "web1.mirror", "--json"];
    let recovered = place.json(&args);
    assert_eq!(recovered["from"], "mirror");
    assert_eq!(recovered["region"]["uuid"], uuid);
    let mut bytes = [0; 7];
    let file = File::open(place.path("web1.region")).unwrap();
    file.read_exact_at(&mut bytes, HOST_HEAD_LEN + 100_000).unwrap();
    assert_eq!(&bytes, b"durable");

    // A mirror that belongs to another region is refused.
    fs::remove_file(place.path("web1.region")).unwrap();
    place.create("web1.region");
    let (_, errors) = place.fails(&["recover", "web1.region", "--mirror", "web1.mirror"], 1);
    assert!(errors.contains("web1.mirror: is region"), "{errors}");
}

#[test]
fn a_file_that_may_not_be_written_can_be_checked() {
    let place = Place::new();
    place.create("web1.region");
    let path = place.path("web1.region");
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    place.ok(&["check", "web1.region"]);
    place.ok(&["info", "web1.region"]);
}

/// An application that stores each value in a buffer of its own, and the host that
/// makes durable what it is told.
struct Store {
    region: Region,
    medium: RegionMedium,
    wal: Wal,
}

impl Store {
    fn new(region: Region) -> Store {
        let mut medium = RegionMedium::new(Arc::clone(region.mapping()), None);
        let place = LogPlace::from(region.geometry());
        let wal = Wal::create(&mut medium, place, 0x6b1f_93d2_0c57_aa01).unwrap();
        let mut store = Store { region, medium, wal };
        while !store.wal.is_ready(&store.medium) {
            store.commit();
        }
        store
    }

    fn put(&mut self, buf: u32, key: &[u8], value: &[u8]) {
        let start = self.region.geometry().buffers().offset;
        let at = start + u64::from(buf) * 2048 + 130;
        self.medium.store(at, value);
        Claims::new(self.region.geometry()).set(&mut self.medium, buf).unwrap();
        let len = value.len() as u16;
        let piece = Piece { buf, offset: 130, len, csum: checksum::of(value) };
        let entry = Entry { kind: 1, time: 77, pieces: &[piece], ends: &[], tag: key };
        self.wal.append(&mut self.medium, &entry).unwrap();
        self.commit();
    }

    fn commit(&mut self) {
        let ticket = self.wal.commit(&mut self.medium);
        if let Some(mut flusher) = self.region.flusher().unwrap() {
            flusher.add(FlushRange { offset: 0, len: self.medium.len() }).unwrap();
            flusher.commit(0).unwrap();
        }
        assert!(self.medium.reached(ticket));
    }
}

#[test]
fn what_an_application_was_promised_outlives_everything_and_is_shown() {
    let place = Place::new();
    let memory = "/dev/shm";
    let dir = tempfile::tempdir_in(memory).unwrap();
    let region = dir.path().join("web1.region");
    let region = region.to_str().unwrap();
    place.ok(&["create", region, "--size", "4MiB", "--mirror", "web1.mirror"]);
    // Served with its mirror, and the power is lost.
    let spec = paste_pmem::Spec {
        backing: paste_pmem::Backing::File(region.into()),
        mirror: Some(place.path("web1.mirror")),
        geometry: paste_pmem::Geometry::new(4 << 20, 2048).unwrap(),
        identity: paste_pmem::Identity {
            guest: "web1",
            uuid: paste_pmem::Uuid([0; 16]),
            created_ns: 0,
        },
    };
    let served = paste_pmem::provide(&spec, &mut |_, _| {}).unwrap().region;
    let mut store = Store::new(served);
    store.put(7, b"greeting", b"hello");
    store.put(8, b"bytes", &[0xff, 0x00]);
    // Claimed, and the application died before there was a record.
    Claims::new(store.region.geometry()).set(&mut store.medium, 9).unwrap();
    store.commit();
    drop(store);
    drop(dir);

    let args = ["recover", "web1.region", "--mirror", "web1.mirror", "--json"];
    let checked = place.ok(&["check", "web1.mirror"]);
    assert_eq!(
        checked,
        "web1.mirror: sound, 3 buffers claimed, 2 records, left open\n  claims without a \
         record: 1; recovery releases them\n"
    );
    let recovered = place.json(&args);
    assert_eq!(recovered["from"], "mirror");
    assert_eq!(recovered["was_clean"], false);
    assert_eq!(recovered["released"], 1);
    assert_eq!(recovered["lost"], Value::Array(Vec::new()));
    let records = &recovered["region"]["records"];
    assert_eq!((&records["records"], &records["payload"]), (&2.into(), &7.into()));
    assert_eq!(records["leaked"], 0);
    assert_eq!(recovered["region"]["claimed"], 2);
    assert!(place.ok(&["info", "web1.region"]).contains("records  sound, 2 records from 1 to 3"));

    let lines = place.ok(&["export", "web1.region"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["tag"], &lines[0]["payload"]), (&"greeting".into(), &"hello".into()));
    assert_eq!(lines[0]["pieces"][0]["buf"], 7);
    assert_eq!(lines[1]["payload_hex"], "ff00");
    let said = place.ok(&["export", "web1.region", "--output", "web1.jsonl"]);
    assert_eq!(said, "web1.region: 2 records, 7 bytes of payload\n");
    assert_eq!(fs::read_to_string(place.path("web1.jsonl")).unwrap().lines().count(), 2);
    let (_, errors) = place.fails(&["export", "web1.region", "--output", "web1.jsonl"], 1);
    assert!(errors.contains("web1.jsonl: cannot be created: File exists"), "{errors}");
    let said = place.json(&["export", "web1.region", "--output", "again.jsonl", "--json"]);
    let said = ["output", "records", "damaged", "payload"].map(|name| said[name].clone());
    assert_eq!(said, ["again.jsonl".into(), 2.into(), 0.into(), 7.into()] as [Value; 4]);
    let usage = place.run(&["export", "web1.region", "--json"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn lost_payload_is_reported_and_never_given_out() {
    let place = Place::new();
    place.create("web1.region");
    let mut store = Store::new(place.open("web1.region"));
    store.put(7, b"greeting", b"hello");
    // A later record proves that the one before was promised.
    store.put(8, b"other", b"value");
    let at = HOST_HEAD_LEN + store.region.geometry().buffers().offset + 7 * 2048 + 130;
    drop(store);
    place.write("web1.region", at, b"j");

    let (out, errors) = place.fails(&["check", "web1.region"], 1);
    assert_eq!(
        out,
        "web1.region: payload of record 1 is damaged: bytes 130+5 of buffer 7 have another \
         checksum\n"
    );
    assert_eq!(errors, "pasted: web1.region: 1 fault found\n");
    let output = place.run(&["export", "web1.region"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = String::from_utf8(output.stdout).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["damaged"], &first["payload"]), (&true.into(), &Value::Null));
    assert!(!lines.contains("jello"), "{lines}");
    let (said, _) = place.fails(&["export", "web1.region", "--output", "web1.jsonl", "--json"], 1);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["records"], &said["damaged"]), (&2.into(), &1.into()), "{said}");
    assert_eq!(said["faults"].as_array().map(Vec::len), Some(1), "{said}");
    let (out, _) = place.fails(&["recover", "web1.region"], 1);
    assert!(out.contains("lost: payload of record 1 is damaged"), "{out}");
    // What is lost is kept: another program may read more of it.
    assert_eq!(place.json(&["info", "web1.region", "--json"])["claimed"], 2);
}

#[test]
fn a_damaged_index_is_found() {
    use paste_pmem::index::Index;

    let place = Place::new();
    // A smaller one has no room for an index.
    place.ok(&["create", "web1.region", "--size", "16MiB"]);
    let region = place.open("web1.region");
    let geometry = *region.geometry();
    let mut medium = RegionMedium::new(Arc::clone(region.mapping()), None);
    let place_of_payload = LogPlace::from(&geometry);
    let mut index = Index::create(&mut medium, geometry.index(), place_of_payload).unwrap();
    assert!(index.commit(&mut medium).is_some());
    region.close().unwrap();
    place.ok(&["check", "web1.region"]);
    place.write("web1.region", HOST_HEAD_LEN + geometry.index().offset, &[0x5a; 8192]);
    let (out, _) = place.fails(&["check", "web1.region"], 1);
    assert_eq!(
        out,
        "web1.region: all root slots of the index are damaged, so its pages cannot be found\n"
    );
}
