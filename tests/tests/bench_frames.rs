//! A slice of `paste-bench frames`: frames go through both backends' devices each way, and
//! what is printed is whole. How many does not matter here.

#![cfg(target_os = "linux")]

use std::process::Command;

use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::wait;
use serde_json::Value;

#[test]
fn frames_go_each_way_through_both_devices() {
    require!(Need::Built("paste-bench"), Need::Program("dpdk-testpmd"));
    let _turn = wait::turn();
    let output = Command::new(built("paste-bench"))
        .args(["frames", "--frame-bytes", "64,1514", "--rounds", "1", "--json"])
        .output()
        .expect("paste-bench runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    let value: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let mut found = Vec::new();
    for row in value["rows"].as_array().expect("rows") {
        assert!(row["mpps"].as_f64().is_some_and(|mpps| mpps > 0.0), "{row}");
        let text = |key: &str| row[key].as_str().expect(key).to_owned();
        found.push((text("direction"), row["frame_bytes"].as_u64(), text("backend")));
    }
    let mut wanted = Vec::new();
    for direction in ["rx", "tx", "loop"] {
        for bytes in [64, 1514] {
            for backend in ["pasted", "dpdk"] {
                wanted.push((direction.to_owned(), Some(bytes), backend.to_owned()));
            }
        }
    }
    assert_eq!(found, wanted);
}
