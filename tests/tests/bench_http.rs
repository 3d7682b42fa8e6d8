//! A slice of `paste-bench http`: every server answers on every port, every byte is right,
//! and what is printed is whole. How fast it is does not matter here.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::process::{Command, Output};

use paste_tests::require;
use paste_tests::require::{Need, built};
use paste_tests::wait;
use serde_json::Value;

fn bench(arguments: &str) -> Output {
    let mut command = Command::new(built("paste-bench"));
    command.args(arguments.split_ascii_whitespace()).output().expect("paste-bench runs")
}

/// The rows of a run, which must be a success.
#[track_caller]
fn rows(arguments: &str) -> Vec<Value> {
    let output = bench(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    let last = text.lines().last().expect("a line");
    let mut value: Value = serde_json::from_str(last).expect("an object");
    for key in ["kernel", "cpu", "cores", "rounds", "steal_percent_max"] {
        assert!(!value["conditions"][key].is_null(), "{key}");
    }
    let Value::Array(rows) = value["rows"].take() else { panic!("no rows in {last}") };
    for row in &rows {
        for key in ["connections", "rps", "rps_per_server_core", "cpu_us_per_request"] {
            assert!(row[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {row}");
        }
        let (p50, p99) = (row["p50_us"].as_f64(), row["p99_us"].as_f64());
        assert!(p50 > Some(0.0) && p50 <= p99, "{row}");
        assert_eq!(row["errors"], 0, "{row}");
    }
    rows
}

/// The servers of all rows.
fn servers(rows: &[Value]) -> BTreeSet<&str> {
    rows.iter().filter_map(|row| row["server"].as_str()).collect()
}

/// One short round. Who sleeps soon is let run soon, on a machine that does much else.
const SHORT: &str = "--rounds 1 --seconds 0.5 --json";

#[test]
fn every_server_answers_on_every_port() {
    require!(Need::Built("paste-bench"), Need::Namespaces, Need::IoUring, Need::Program("nginx"));
    let _turn = wait::turn();
    let rows = rows(&format!(
        "http --port tap,xdp,sockets,memory --connections 16 --waiting 50us {SHORT}"
    ));
    let wanted = [
        "epoll",
        "io_uring",
        "nginx",
        "null",
        "pasted:memory",
        "pasted:sockets",
        "pasted:tap",
        "pasted:xdp",
        "smoltcp",
    ];
    assert_eq!(servers(&rows), BTreeSet::from(wanted));
    for row in rows.iter().filter(|row| row["server"].as_str().unwrap().starts_with("pasted")) {
        let split = &row["split"];
        for part in ["stack_us", "ring_us", "application_us"] {
            assert!(split[part].as_f64().is_some_and(|us| us >= 0.0), "{part} in {row}");
        }
        assert!(row["counters_per_request"]["worker.turns"].is_number(), "{row}");
    }
}

#[test]
fn an_open_loop_keeps_to_its_rate_and_all_wait_as_they_are_told() {
    require!(Need::Built("paste-bench"), Need::Namespaces);
    let _turn = wait::turn();
    let more = "--waiting block,20us --guests 1,3 --batch 4 --spoof-check off --loads 20";
    let rows =
        rows(&format!("http --port xdp --servers pasted,epoll --connections 8 {more} {SHORT}"));
    // Two ways of waiting, three servers, a closed and an open loop.
    assert_eq!(rows.len(), 2 * 3 * 2);
    for row in &rows {
        assert!(row["waiting"] == "block" || row["waiting"] == "20us", "{row}");
        if row["loop"] == "open" {
            let due = row["offered_rps"].as_f64().expect("a rate");
            let rps = row["rps"].as_f64().expect("a rate");
            assert!(rps < 1.1 * due + 50.0, "{row}");
        }
    }
    let guests: BTreeSet<u64> = rows.iter().filter_map(|row| row["guests"].as_u64()).collect();
    assert_eq!(guests, BTreeSet::from([1, 3]));
}

#[test]
fn wrk_sees_the_same_servers() {
    require!(Need::Built("paste-bench"), Need::Namespaces, Need::Program("wrk"));
    let _turn = wait::turn();
    for port in ["tap", "xdp"] {
        let rows = rows(&format!(
            "http --port {port} --client wrk --servers pasted,epoll,null --connections 8 --waiting 50us \
             {SHORT}"
        ));
        assert_eq!(servers(&rows).len(), 3);
        assert!(rows.iter().all(|row| row["client"] == "wrk"));
    }
}

#[test]
fn the_shortest_comparison_has_the_rows_that_it_always_had() {
    require!(Need::Built("paste-bench"), Need::Namespaces);
    let _turn = wait::turn();
    let rows = rows(&format!("quick --connections 1,8 {SHORT}"));
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row["server"].as_str().unwrap(), row["connections"].as_u64().unwrap()))
        .collect();
    assert_eq!(found, [("pasted", 1), ("epoll", 1), ("pasted", 8), ("epoll", 8)]);
}

#[test]
fn what_cannot_be_measured_is_said_in_one_line() {
    require!(Need::Built("paste-bench"), Need::Namespaces);
    for (arguments, expected) in [
        ("http --port memory --servers epoll", "none of the --servers can be measured"),
        ("http --guests 1,2,3,4,5,6,7,8,9,10,11,12,13,14", "name fewer --servers"),
    ] {
        let output = bench(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
