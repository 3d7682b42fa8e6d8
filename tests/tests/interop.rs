//! A slice of the matrix of faults and features that the program `interop` runs
//! in full: Linux's TCP and ours over a wire that loses, every byte judged.

#![cfg(target_os = "linux")]

use std::time::Duration;

use paste_tests::interop::content::Content;
use paste_tests::interop::load;
use paste_tests::interop::matrix::{self, Axes};
use paste_tests::interop::path::{Family, Settings};
use paste_tests::interop::peer::PeerKind;
use paste_tests::interop::transfer::Direction;
use paste_tests::require::Need;
use paste_tests::{require, wait};
use pasted::port::wire::Faults;

/// How long one transfer may take on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(60);

fn common() -> Settings {
    Settings {
        family: Family::V4,
        mtu: 1500,
        sack: true,
        timestamps: true,
        ecn: false,
        faults: Faults { delay_ns: 100_000, ..Faults::default() },
        mark: 0.0,
        seed: 3,
        rto_min_us: None,
    }
}

/// Runs these both ways; fails with all rows that are wrong.
fn run(all: &[Settings], bytes: u64) {
    let _turn = wait::turn();
    let content = Content::write(bytes).expect("a file can be written");
    let mut wrong = Vec::new();
    for settings in all {
        for direction in [Direction::Get, Direction::Post] {
            let row = matrix::run_curl(PeerKind::Pasted, direction, settings, &content, LIMIT);
            if !row.ok || row.bytes != bytes {
                wrong.push(row);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn transfers_over_a_lossy_wire_arrive_whole() {
    require!(
        Need::Namespaces,
        Need::Built("pasted"),
        Need::Built("examples/http"),
        Need::Program("curl"),
    );
    let axes = Axes { loss: vec![0.01, 0.0, 0.03], ..Axes::full() };
    run(&axes.star(common()), 1 << 20);
}

#[test]
fn transfers_over_a_wire_with_every_fault_arrive_whole() {
    require!(
        Need::Namespaces,
        Need::Built("pasted"),
        Need::Built("examples/http"),
        Need::Program("curl"),
    );
    let faults = Faults {
        loss: 0.01,
        duplicate: 0.02,
        reorder: 0.02,
        corrupt: 0.01,
        delay_ns: 200_000,
        jitter_ns: 100_000,
        rate_bps: None,
    };
    run(&[Settings { faults, ..common() }], 2 << 20);
}

#[test]
fn marked_congestion_is_heard() {
    require!(
        Need::Namespaces,
        Need::Built("pasted"),
        Need::Built("examples/http"),
        Need::Program("curl"),
    );
    let _turn = wait::turn();
    let content = Content::write(4 << 20).expect("a file can be written");
    for family in [Family::V4, Family::V6] {
        let settings = Settings { family, ecn: true, mark: 0.02, ..common() };
        for direction in [Direction::Get, Direction::Post] {
            let row = matrix::run_curl(PeerKind::Pasted, direction, &settings, &content, LIMIT);
            assert!(row.ok && row.bytes == content.len(), "{row:#?}");
            // Of some 2900 segments; acknowledgements are not ECN-capable.
            assert!(row.marked > 10, "{row:#?}");
            if direction == Direction::Get {
                assert!(row.ecn_reductions > 0, "{row:#?}");
            }
        }
    }
}

#[test]
fn iperf3_and_wrk_run_over_a_lossy_wire() {
    require!(
        Need::Namespaces,
        Need::Built("pasted"),
        Need::Built("examples/http"),
        Need::Built("examples/iperf3"),
        Need::Program("iperf3"),
        Need::Program("wrk"),
    );
    let _turn = wait::turn();
    let faults = Faults { loss: 0.01, ..common().faults };
    let settings = Settings { faults, ..common() };
    for direction in [Direction::Get, Direction::Post] {
        let row = load::run_iperf3(PeerKind::Pasted, direction, &settings, 2, 3);
        assert!(row.ok && row.bytes > 0, "{row:#?}");
    }
    let row = load::run_wrk(PeerKind::Pasted, &settings, 2);
    assert!(row.ok && row.requests_per_s > 100.0, "{row:#?}");
}
