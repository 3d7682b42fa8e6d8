//! What the RFCs promise of [`Control`], whichever the algorithm.

use proptest::prelude::*;

use super::*;
use crate::config::{MS, SEC};

const MSS: u32 = 1000;
const KINDS: [CongestionControl; 2] = [CongestionControl::Cubic, CongestionControl::NewReno];

/// A round trip: the whole window is acknowledged, a segment at a time.
fn round(cc: &mut Control, now: &mut u64, rtt: u64) {
    let segments = (cc.window() / MSS).max(1);
    for _ in 0..segments {
        *now += rtt / u64::from(segments);
        cc.on_ack(*now, MSS, rtt, MSS, true);
    }
}

/// A loss that one retransmission mends.
fn lose(cc: &mut Control, now: u64) {
    cc.on_loss(now, cc.window(), MSS);
    cc.on_recovery_ack(MSS, cc.ssthresh, true, MSS);
    cc.on_recovered(now, cc.ssthresh, MSS);
}

/// In congestion avoidance with a window of `cwnd`.
fn avoiding(kind: CongestionControl, cwnd: u32) -> Control {
    let mut cc = Control::new(kind, MSS);
    cc.cwnd = cwnd;
    cc.ssthresh = cwnd;
    cc.enter_phase();
    cc
}

#[test]
fn the_initial_window_is_that_of_rfc_6928() {
    for (mss, window) in [(536, 5360), (1460, 14_600), (4000, 14_600), (8960, 17_920)] {
        assert_eq!(Control::new(CongestionControl::Cubic, mss).window(), window);
    }
}

#[test]
fn slow_start_doubles_and_a_later_one_ends_at_the_threshold() {
    for kind in KINDS {
        let (mut cc, mut now) = (Control::new(kind, MSS), 0);
        round(&mut cc, &mut now, 100 * MS);
        assert_eq!(cc.window(), 20_000);
        cc.on_timeout(now, 20_000, MSS, true);
        assert_eq!(cc.window(), MSS);
        while cc.in_slow_start() {
            round(&mut cc, &mut now, 100 * MS);
        }
        let beta = if kind == CongestionControl::Cubic { 14_000 } else { 10_000 };
        assert_eq!(cc.window(), beta);
    }
}

#[test]
fn a_stretched_acknowledgement_is_no_burst() {
    // RFC 9406 section 4.2, L = 8; RFC 5681 equation (2) after a timeout.
    let mut cc = Control::new(CongestionControl::Cubic, MSS);
    cc.on_ack(0, 30 * MSS, 0, MSS, true);
    assert_eq!(cc.window(), 18 * MSS);
    cc.on_timeout(0, 40 * MSS, MSS, true);
    cc.on_ack(0, 30 * MSS, 0, MSS, true);
    assert_eq!(cc.window(), 2 * MSS);
}

#[test]
fn reno_adds_a_segment_per_round_trip() {
    let (mut cc, mut now) = (avoiding(CongestionControl::NewReno, 10_000), 0);
    for rounds in 1..20 {
        round(&mut cc, &mut now, 100 * MS);
        assert_eq!(cc.window(), 10_000 + rounds * MSS);
    }
    // Also for one acknowledgement of more than a window (RFC 3465 section 2.1).
    cc.on_ack(now, 5_000_000, 0, MSS, true);
    assert_eq!(cc.window(), 30_000);
}

#[test]
fn a_window_that_is_not_used_does_not_grow() {
    for kind in KINDS {
        for mut cc in [Control::new(kind, MSS), avoiding(kind, 10_000)] {
            for i in 0..1000 {
                cc.on_ack(i * 100 * MS, MSS, 100 * MS, MSS, false);
            }
            assert_eq!(cc.window(), 10_000);
        }
    }
}

#[test]
fn the_factor_is_seven_tenths_of_flight_or_one_half() {
    for (kind, remains) in KINDS.into_iter().zip([70_000, 50_000]) {
        let mut cc = avoiding(kind, 120_000);
        cc.on_loss(0, 100_000, MSS);
        assert_eq!(cc.ssthresh, remains);
        cc.on_recovered(0, remains, MSS);
        assert_eq!(cc.window(), remains);
        assert!(!cc.in_slow_start());
        let mut cc = avoiding(kind, 120_000);
        cc.on_ecn(0, 100_000, MSS);
        assert_eq!(cc.window(), remains);
        // RFC 5681 equation (4), RFC 9438 section 4.6: at least two segments,
        // and for a mark a window of one.
        let mut cc = avoiding(kind, 120_000);
        cc.on_loss(0, 500, MSS);
        assert_eq!(cc.ssthresh, 2 * MSS);
        let mut cc = avoiding(kind, 120_000);
        cc.on_ecn(0, 500, MSS);
        assert_eq!((cc.window(), cc.ssthresh), (MSS, 2 * MSS));
    }
}

#[test]
fn the_same_timeout_again_keeps_the_threshold() {
    for kind in KINDS {
        let mut cc = avoiding(kind, 100_000);
        cc.on_timeout(0, 100_000, MSS, true);
        let ssthresh = cc.ssthresh;
        cc.on_timeout(SEC, MSS, MSS, false);
        assert_eq!((cc.window(), cc.ssthresh), (MSS, ssthresh));
        cc.undo(2 * SEC);
        assert_eq!((cc.window(), cc.ssthresh), (100_000, 100_000));
    }
}

#[test]
fn the_loss_of_a_retransmission_lowers_the_threshold_twice() {
    // RFC 5681 section 4.3.
    for (kind, remains) in KINDS.into_iter().zip([49_000, 25_000]) {
        let mut cc = avoiding(kind, 100_000);
        cc.on_loss(0, 100_000, MSS);
        cc.on_loss(0, 100_000, MSS);
        assert_eq!(cc.ssthresh, remains);
    }
}

#[test]
fn recovery_ends_without_a_burst() {
    let mut cc = avoiding(CongestionControl::Cubic, 200_000);
    cc.on_loss(0, 200_000, MSS);
    cc.on_recovered(0, 3_000, MSS);
    assert_eq!(cc.window(), 13_000);
    assert!(cc.in_slow_start());
}

#[test]
fn an_idle_flow_restarts_and_finds_back_in_slow_start() {
    for kind in KINDS {
        let (mut cc, mut now) = (avoiding(kind, 100_000), 0);
        cc.on_idle(now, MSS);
        assert_eq!((cc.window(), cc.ssthresh), (10_000, 100_000));
        for _ in 0..4 {
            round(&mut cc, &mut now, 100 * MS);
        }
        assert_eq!(cc.window(), 100_000);
        // A small window stays as it is (RFC 5681 section 4.1).
        let mut cc = avoiding(kind, 5000);
        cc.on_idle(0, MSS);
        assert_eq!(cc.window(), 5000);
    }
}

#[test]
fn a_smaller_mss_makes_the_initial_window_smaller_and_no_other() {
    let mut cc = Control::new(CongestionControl::Cubic, 1460);
    cc.on_mss(536);
    assert_eq!(cc.window(), 5360);
    cc.on_ack(0, 536, 0, 536, true);
    cc.on_mss(500);
    assert_eq!(cc.window(), 5896);
    let mut cc = avoiding(CongestionControl::Cubic, 100_000);
    cc.on_mss(500);
    assert_eq!(cc.window(), 100_000);
    cc.on_timeout(0, 1000, 500, true);
    cc.on_mss(8960);
    assert_eq!(cc.window(), 8960);
    assert!(!cc.in_slow_start());
}

#[test]
fn undo_gives_back_window_threshold_and_curve() {
    for kind in KINDS {
        let (mut cc, mut now) = (avoiding(kind, 100_000), SEC);
        lose(&mut cc, now);
        for _ in 0..10 {
            round(&mut cc, &mut now, 100 * MS);
        }
        let before = cc;
        cc.on_timeout(now, cc.window(), MSS, true);
        cc.on_ack(now, MSS, 100 * MS, MSS, true);
        cc.undo(now);
        assert_eq!(cc.window(), before.window());
        // It goes on as if nothing had been, but for a part of a segment.
        let (mut as_if, mut then) = (before, now);
        for _ in 0..20 {
            round(&mut cc, &mut now, 100 * MS);
            round(&mut as_if, &mut then, 100 * MS);
            assert!(cc.window().abs_diff(as_if.window()) <= MSS);
        }
        // There is nothing more to undo.
        let window = cc.window();
        cc.undo(now);
        assert_eq!(cc.window(), window);
    }
}

#[test]
fn undo_after_a_timeout_in_recovery_leaves_what_recovery_took() {
    let mut cc = avoiding(CongestionControl::NewReno, 100_000);
    cc.on_loss(0, 100_000, MSS);
    cc.on_recovery_ack(MSS, 90_000, false, MSS);
    cc.on_timeout(SEC, 100_000, MSS, true);
    cc.undo(SEC);
    assert_eq!((cc.window(), cc.ssthresh), (50_000, 50_000));
}

#[test]
fn a_mark_is_not_undone() {
    for kind in KINDS {
        let mut cc = avoiding(kind, 100_000);
        cc.on_ecn(0, 100_000, MSS);
        let marked = cc.window();
        cc.undo(0);
        assert_eq!(cc.window(), marked);
        // Nor is a loss beside it, which reduces no further for the mark.
        let mut cc = avoiding(kind, 100_000);
        cc.on_loss(0, 100_000, MSS);
        cc.on_ecn(0, 100_000, MSS);
        cc.on_recovered(0, 100_000, MSS);
        assert_eq!(cc.window(), marked);
        cc.undo(0);
        assert_eq!(cc.window(), marked);
    }
}

// CUBIC (RFC 9438).

/// A flow of 1000 segments that lost one, and the time.
fn cubic_after_loss() -> (Control, u64) {
    let (mut cc, now) = (avoiding(CongestionControl::Cubic, 1_000_000), 50 * SEC);
    lose(&mut cc, now);
    assert_eq!(cc.window(), 700_000);
    (cc, now)
}

#[test]
fn cubic_is_concave_up_to_w_max_at_k_and_convex_after() {
    let (mut cc, mut now) = cubic_after_loss();
    let start = now;
    let mut windows = vec![cc.window()];
    while now < start + 18 * SEC {
        round(&mut cc, &mut now, 100 * MS);
        windows.push(cc.window());
    }
    // K = cbrt(1000 * 0.3 / 0.4) = 9.086 s: 91 round trips.
    assert!(windows[91].abs_diff(1_000_000) < 2_000, "{}", windows[91]);
    let steps: Vec<u32> = windows.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(steps[5] > steps[30] && steps[30] > steps[60] && steps[60] > steps[85], "{steps:?}");
    assert!(steps[100] < steps[130] && steps[130] < steps[170], "{steps:?}");
    // As far above W_max at 2 K as below it at 0.
    assert!(windows[180].abs_diff(1_290_000) < 15_000, "{}", windows[180]);
}

#[test]
fn cubic_grows_by_no_more_than_half_a_window_per_round_trip() {
    // Section 4.2: the bound on target.
    let mut cc = avoiding(CongestionControl::Cubic, 10_000);
    cc.on_ack(0, MSS, 200 * SEC, MSS, true);
    assert!(cc.window() <= 10_500);
    cc.on_ack(0, WINDOW_MAX, 200 * SEC, MSS, true);
    assert!(cc.window() <= 15_750, "{}", cc.window());
}

#[test]
fn cubic_converges_fast_when_its_window_shrinks() {
    let w_max = |cc: &Control| match cc.algorithm {
        Chosen::Cubic(cubic) => format!("{cubic:?}"),
        Chosen::NewReno(_) => unreachable!(),
    };
    // Section 4.7: W_max = cwnd * (1 + beta) / 2 the second time.
    let (mut cc, now) = cubic_after_loss();
    assert!(w_max(&cc).contains("w_max: 1000000"), "{}", w_max(&cc));
    lose(&mut cc, now);
    assert!(w_max(&cc).contains("w_max: 595000"), "{}", w_max(&cc));
}

#[test]
fn after_a_timeout_cubic_begins_where_slow_start_ended() {
    // Section 4.8: K is 0, W_max and W_est are the window then.
    let (mut cc, mut now) = cubic_after_loss();
    cc.on_timeout(now, 700_000, MSS, true);
    while cc.in_slow_start() {
        round(&mut cc, &mut now, 100 * MS);
    }
    assert_eq!(cc.window(), 490_000);
    for _ in 0..10 {
        round(&mut cc, &mut now, 100 * MS);
    }
    // W_cubic(1 s) is W_max + 0.4 segments; alpha = 9/17 gives 5 segments.
    assert!((494_000..497_000).contains(&cc.window()), "{}", cc.window());
}

#[test]
fn time_that_the_flow_does_not_use_is_not_cubic_s() {
    // Section 4.2, in the concave and in the convex region.
    for rounds in [30, 150] {
        let (mut cc, mut now) = cubic_after_loss();
        for _ in 0..rounds {
            round(&mut cc, &mut now, 100 * MS);
        }
        let (mut paused, mut later) = (cc, now + 3600 * SEC);
        paused.on_ack(later, MSS, 100 * MS, MSS, false);
        for _ in 0..20 {
            round(&mut cc, &mut now, 100 * MS);
            round(&mut paused, &mut later, 100 * MS);
            let apart = paused.window().abs_diff(cc.window());
            assert!(apart < cc.window() / 100, "{} {}", paused.window(), cc.window());
        }
    }
}

/// Average window in segments with a loss for every `period` segments and
/// round trips of `rtt`.
fn average_window(kind: CongestionControl, period: u64, rtt: u64) -> f64 {
    let (mut cc, mut now) = (avoiding(kind, 10_000), SEC);
    lose(&mut cc, now);
    let (mut sent, mut losses) = (0, 0);
    let (mut windows, mut rounds) = (0.0, 0.0);
    while losses < 80 {
        if losses >= 40 {
            windows += f64::from(cc.window() / MSS);
            rounds += 1.0;
        }
        sent += u64::from(cc.window() / MSS);
        round(&mut cc, &mut now, rtt);
        if sent >= period {
            sent -= period;
            losses += 1;
            lose(&mut cc, now);
        }
    }
    windows / rounds
}

#[test]
fn the_response_functions_are_the_rfc_s() {
    let rtt: f64 = 0.1;
    for period in [100, 1000, 10_000, 100_000] {
        let p = 1.0 / period as f64;
        // RFC 9438 section 5.1 for Reno, and figure 6 with C = 0.4, beta = 0.7.
        let reno = (1.5 / p).sqrt();
        let cubic = (0.4 * 3.7 / 1.2f64).powf(0.25) * (rtt / p).powf(0.75);
        let measured = KINDS.map(|kind| average_window(kind, period, (rtt * 1e9) as u64));
        assert!((0.85..1.15).contains(&(measured[1] / reno)), "{p} {measured:?} {reno}");
        // The larger of the two regions counts (section 4.3).
        let expected = cubic.max(reno);
        assert!((0.8..1.25).contains(&(measured[0] / expected)), "{p} {measured:?} {expected}");
    }
}

#[test]
fn cubic_is_reno_s_peer_where_round_trips_are_short() {
    // Section 5.1: with 10 ms the Reno-friendly region reaches to 10^-4.
    for period in [100, 1000, 10_000] {
        let [cubic, reno] = KINDS.map(|kind| average_window(kind, period, 10 * MS));
        assert!((0.9..1.2).contains(&(cubic / reno)), "{period}: {cubic} {reno}");
    }
}

// HyStart++ (RFC 9406).

/// A round trip in which each segment's time is measured.
fn timed_round(cc: &mut Control, rtt: u64) {
    for _ in 0..cc.window() / MSS {
        cc.on_rtt(rtt);
        cc.on_ack(0, MSS, rtt, MSS, true);
    }
}

#[test]
fn slow_start_ends_when_a_queue_builds_up() {
    // The path holds 100 segments; what is more waits in a queue.
    let mut cc = Control::new(CongestionControl::Cubic, MSS);
    let mut rounds = 0;
    while cc.in_slow_start() {
        assert!(rounds < 11, "{}", cc.window());
        let rtt = 40 * MS * u64::from(cc.window().max(100_000)) / 100_000;
        timed_round(&mut cc, rtt);
        rounds += 1;
    }
    // Five rounds at a quarter of the rate: 1.25^5 = 3 where doubling is 32.
    assert!(rounds >= 9);
    assert!((160_000..1_000_000).contains(&cc.window()), "{}", cc.window());
    assert_eq!(cc.ssthresh, cc.window());
}

#[test]
fn a_rise_that_was_jitter_does_not_end_slow_start() {
    // Section 4.2: in conservative slow start a quarter, and back to slow start
    // when the time falls below what it rose to.
    let mut cc = Control::new(CongestionControl::Cubic, MSS);
    timed_round(&mut cc, 40 * MS);
    timed_round(&mut cc, 40 * MS);
    timed_round(&mut cc, 50 * MS);
    timed_round(&mut cc, 50 * MS);
    let before = cc.window();
    timed_round(&mut cc, 50 * MS);
    assert!(cc.window() < before + before / 3, "{before} {}", cc.window());
    timed_round(&mut cc, 40 * MS);
    timed_round(&mut cc, 40 * MS);
    let before = cc.window();
    timed_round(&mut cc, 40 * MS);
    assert!(cc.window() > 2 * before - MSS, "{before} {}", cc.window());
    assert!(cc.in_slow_start());
}

#[test]
fn too_few_measurements_do_not_end_slow_start() {
    let mut cc = Control::new(CongestionControl::Cubic, MSS);
    for rtt in 1..10 {
        cc.on_rtt(rtt * 100 * MS);
        let before = cc.window();
        for _ in 0..before / MSS {
            cc.on_ack(0, MSS, rtt * 100 * MS, MSS, true);
        }
        assert_eq!(cc.window(), 2 * before);
    }
}

// Proportional rate reduction (RFC 9937).

/// Recovery of `flight` segments of which those of `lost` never arrive and are
/// sent again at once, as SACK tells of each. The sender has no end of payload.
/// Gives bytes delivered, sent and in flight after each acknowledgement.
fn recover(cc: &mut Control, flight: u32, lost: &[bool]) -> Vec<(u32, u32, u32)> {
    // What is on its way, in order; lost segments leave the pipe at once.
    let mut path: std::collections::VecDeque<bool> = lost.iter().copied().collect();
    let mut missing = lost.iter().filter(|l| **l).count() as u32;
    let mut pipe = flight - missing * MSS;
    let (mut delivered, mut sent) = (0, 0);
    let mut steps = Vec::new();
    cc.on_loss(0, flight, MSS);
    for _ in 0..lost.len() {
        let arrived = loop {
            match path.pop_front() {
                Some(true) => {}
                Some(false) => break true,
                None => break false,
            }
        };
        if !arrived {
            break;
        }
        pipe -= MSS;
        delivered += MSS;
        cc.on_recovery_ack(MSS, pipe, missing == 0, MSS);
        while cc.window() >= pipe + MSS {
            pipe += MSS;
            sent += MSS;
            missing = missing.saturating_sub(1);
            cc.on_sent_in_recovery(MSS);
            path.push_back(false);
        }
        steps.push((delivered, sent, pipe));
    }
    steps
}

#[test]
fn one_loss_ends_with_the_threshold_in_flight() {
    for (kind, target) in KINDS.into_iter().zip([70_000, 50_000]) {
        let mut lost = [false; 100];
        lost[0] = true;
        let mut cc = avoiding(kind, 100_000);
        let steps = recover(&mut cc, 100_000, &lost);
        let (_, _, pipe) = steps[98];
        assert!(pipe.abs_diff(target) <= MSS, "{pipe}");
        // Spread over the round trip: half of the sending in half of it.
        let (half, all) = (steps[49].1, steps[98].1);
        assert!(half.abs_diff(all / 2) <= 2 * MSS, "{half} {all}");
    }
}

#[test]
fn many_losses_are_mended_no_faster_than_segments_arrive() {
    // RFC 9937 section 6, PRR-CRB: strict packet conservation below ssthresh.
    let lost: Vec<bool> = (0..100).map(|i| i < 80).collect();
    let mut cc = avoiding(CongestionControl::Cubic, 100_000);
    let steps = recover(&mut cc, 100_000, &lost);
    // Until all holes are filled.
    let filled = steps.iter().position(|step| step.1 >= 80_000).unwrap();
    for (delivered, sent, _) in &steps[..filled] {
        assert!(*sent <= delivered + MSS, "{sent} {delivered}");
    }
}

#[test]
fn good_progress_is_slow_start_up_to_the_threshold() {
    // PRR-SSRB: a segment more for each acknowledgement that is safe.
    let mut cc = avoiding(CongestionControl::NewReno, 100_000);
    cc.on_loss(0, 100_000, MSS);
    let mut pipe = 10_000;
    for _ in 0..100 {
        pipe -= MSS;
        cc.on_recovery_ack(MSS, pipe, true, MSS);
        let sent = cc.window().saturating_sub(pipe);
        assert!(sent <= 2 * MSS);
        cc.on_sent_in_recovery(sent);
        pipe += sent;
    }
    assert_eq!(pipe, 50_000);
}

#[test]
fn the_first_acknowledgement_of_recovery_always_lets_one_segment_go() {
    let mut cc = avoiding(CongestionControl::Cubic, 100_000);
    cc.on_loss(0, 100_000, MSS);
    cc.on_recovery_ack(0, 99_000, false, MSS);
    assert_eq!(cc.window(), 100_000);
    cc.on_sent_in_recovery(MSS);
    cc.on_recovery_ack(0, 100_000, false, MSS);
    assert_eq!(cc.window(), 100_000);
}

proptest! {
    #[test]
    fn recovery_sends_in_proportion_to_what_is_delivered(
        lost in proptest::collection::vec(any::<bool>(), 4..300),
        newreno in any::<bool>(),
    ) {
        let flight = lost.len() as u32 * MSS;
        let mut cc = avoiding(KINDS[usize::from(newreno)], flight);
        let steps = recover(&mut cc, flight, &lost);
        let ssthresh = cc.ssthresh;
        for (delivered, sent, pipe) in steps {
            let share = u64::from(delivered) * u64::from(ssthresh) / u64::from(flight);
            if pipe > ssthresh {
                prop_assert!(u64::from(sent) <= share + u64::from(MSS), "{sent} {share}");
            }
            // Whatever is sent, a segment more than was delivered is the most
            // while holes remain, and the threshold is while none do.
            prop_assert!(sent <= 2 * delivered + MSS);
            prop_assert!(sent <= delivered + MSS || pipe <= ssthresh + MSS);
        }
    }
}

// Whatever the caller does.

#[derive(Clone, Debug)]
enum Call {
    Ack(u32, u64, bool),
    Rtt(u64),
    Loss(u32),
    Ecn(u32),
    RecoveryAck(u32, u32, bool),
    Sent(u32),
    Recovered(u32),
    Timeout(u32, bool),
    Undo,
    Idle,
    Mss(u32),
}

fn call() -> impl Strategy<Value = Call> {
    let bytes = prop_oneof![0..100_000u32, any::<u32>(), Just(u32::MAX), Just(WINDOW_MAX)];
    let time = prop_oneof![0..SEC, any::<u64>()];
    let (a, b, c) = (bytes.clone(), bytes.clone(), bytes.clone());
    prop_oneof![
        8 => (a, time.clone(), any::<bool>()).prop_map(|(a, t, l)| Call::Ack(a, t, l)),
        2 => time.prop_map(Call::Rtt),
        2 => b.prop_map(Call::Loss),
        1 => c.prop_map(Call::Ecn),
        4 => (bytes.clone(), bytes.clone(), any::<bool>())
            .prop_map(|(d, p, s)| Call::RecoveryAck(d, p, s)),
        2 => bytes.clone().prop_map(Call::Sent),
        2 => bytes.clone().prop_map(Call::Recovered),
        1 => (bytes, any::<bool>()).prop_map(|(f, first)| Call::Timeout(f, first)),
        1 => Just(Call::Undo),
        1 => Just(Call::Idle),
        1 => (88..=65_535u32).prop_map(Call::Mss),
    ]
}

proptest! {
    #[test]
    fn no_order_of_calls_breaks_the_window(
        calls in proptest::collection::vec((call(), 0..1u64 << 40), 1..200),
        start in prop_oneof![Just(0u64), any::<u64>()],
        newreno in any::<bool>(),
        mss in 88..=65_535u32,
    ) {
        let (mut cc, mut now, mut mss) = (Control::new(KINDS[usize::from(newreno)], mss), start, mss);
        for (call, passed) in calls {
            now = now.saturating_add(passed);
            let before = cc;
            match call {
                Call::Ack(acked, srtt, limited) => {
                    cc.on_ack(now, acked, srtt, mss, limited);
                    prop_assert!(cc.window() >= before.window());
                }
                Call::Rtt(rtt) => cc.on_rtt(rtt),
                Call::Loss(flight) => {
                    cc.on_loss(now, flight, mss);
                    prop_assert_eq!(cc.window(), cc.ssthresh);
                }
                Call::Ecn(flight) => cc.on_ecn(now, flight, mss),
                Call::RecoveryAck(delivered, pipe, safe) => {
                    cc.on_recovery_ack(delivered, pipe, safe, mss);
                }
                Call::Sent(bytes) => cc.on_sent_in_recovery(bytes),
                Call::Recovered(pipe) => cc.on_recovered(now, pipe, mss),
                Call::Timeout(flight, first) => {
                    cc.on_timeout(now, flight, mss, first);
                    prop_assert_eq!(cc.window(), mss);
                }
                Call::Undo => {
                    cc.undo(now);
                    prop_assert!(cc.window() >= before.window());
                }
                Call::Idle => cc.on_idle(now, mss),
                Call::Mss(new) => {
                    mss = new;
                    cc.on_mss(mss);
                }
            }
            prop_assert!(cc.window() <= WINDOW_MAX);
            prop_assert!((88..=WINDOW_MAX).contains(&cc.ssthresh));
            if !matches!(cc.phase, Phase::Recovery(_)) {
                prop_assert!(cc.window() >= 88);
                prop_assert_eq!(cc.in_slow_start(), cc.window() < cc.ssthresh);
            }
        }
    }
}
