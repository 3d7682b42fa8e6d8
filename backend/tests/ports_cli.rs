//! `pasted ports` as its user meets it.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

fn ports(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pasted")).arg("ports").args(args).output().unwrap()
}

/// Runs a command that succeeds and is silent on stderr; its stdout.
#[track_caller]
fn ok(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = ports(args);
    let errors = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""), "{args:?}");
    String::from_utf8(stdout).unwrap()
}

fn rows() -> Vec<Value> {
    let Value::Array(rows) =
        serde_json::from_str::<Value>(&ok(&["--json"])).unwrap()["ports"].take()
    else {
        panic!("\"ports\" is no array");
    };
    rows
}

#[test]
fn every_kind_works_or_says_what_to_do() {
    let rows = rows();
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap_or_else(|| panic!("{key}: {row}"));
        assert!(text("form").starts_with(text("kind")) && text("form").contains(':'), "{row}");
        assert!(!text("about").is_empty() && !text("found").is_empty(), "{row}");
        assert!(row["guests_max"].as_u64().unwrap() >= 1, "{row}");
        assert_eq!(row["works"].as_bool().unwrap(), row.get("help").is_none(), "{row}");
    }
    let pipe = rows.iter().find(|row| row["kind"] == "pipe").unwrap();
    assert_eq!(pipe["works"], true, "a wire needs nothing of the host");
}

#[test]
fn the_table_has_what_the_object_has() {
    let table = ok(&[]);
    assert!(table.starts_with("PORT "), "{table}");
    for row in rows() {
        let (form, works) = (row["form"].as_str().unwrap(), row["works"].as_bool().unwrap());
        let line = table.lines().find(|line| line.split(' ').next() == Some(form)).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[1], if works { "yes" } else { "no" }, "{line}");
        assert!(table.contains(row["found"].as_str().unwrap()), "{table}");
        assert_eq!(works, row["help"].is_null());
        assert!(row["help"].as_str().is_none_or(|help| table.contains(help)), "{table}");
    }
}

/// What is made to try a kind is gone again; other tests may be trying, too.
#[test]
fn nothing_is_left_behind() {
    const DEVICES: &str = "/sys/class/net";
    if !std::path::Path::new(DEVICES).exists() {
        assert!(std::env::var_os("PASTED_REQUIRE_ALL").is_none(), "cannot run: no {DEVICES}");
        eprintln!("skipped: there is no {DEVICES} to see devices in");
        return;
    }
    let is_trial = |name: &String| {
        name.strip_prefix("pasted").is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let trials = || -> Vec<String> {
        let devices = std::fs::read_dir(DEVICES).into_iter().flatten();
        let names = devices.filter_map(|device| device.ok()?.file_name().into_string().ok());
        names.filter(is_trial).collect()
    };
    let before = trials();
    ok(&[]);
    let end = Instant::now() + Duration::from_secs(20);
    while trials().iter().any(|name| !before.contains(name)) {
        assert!(Instant::now() < end, "left behind: {:?}, before: {before:?}", trials());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_it_does_not_know_is_refused() {
    let output = ports(&["tap"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("unexpected argument 'tap'"));
}
