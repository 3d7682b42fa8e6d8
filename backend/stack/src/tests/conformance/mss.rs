//! RFC 6691 and RFC 9293 section 3.7.1: the maximum segment size.

use crate::Config;
use crate::tests::harness::*;
use crate::wire::tcp::{Options, Timestamps};

/// The largest payload that the host sends to a peer with these SYN options.
fn largest(config: Config, options: Options) -> usize {
    let mut pair = Pair::listening(config);
    pair.send_with(SYN, options, &[]);
    pair.seq += 1;
    let syn_ack = pair.recv_one();
    pair.ack = syn_ack.seq.wrapping_add(1);
    pair.timestamps = options.timestamps;
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
    pair.host.send(pair.flow, &[5; 1900]);
    pair.host.send(pair.flow, &[5; 1900]);
    let sizes: Vec<usize> = pair.recv().iter().map(|s| s.data.len()).collect();
    sizes.into_iter().max().unwrap()
}

fn stamped() -> Option<Timestamps> {
    Some(Timestamps { value: 1, echo: 0 })
}

#[test]
fn we_tell_our_mss_without_options() {
    // RFC 6691 section 2: the MTU less the fixed headers, whatever options
    // follow.
    for mtu in [576, 1280, 1500] {
        for timestamps in [None, stamped()] {
            let config = Config { mtu, timestamps: true, ..config() };
            let mut pair = Pair::listening(config);
            pair.send_with(SYN, Options { timestamps, mss: Some(1460), ..Options::default() }, &[]);
            assert_eq!(pair.recv_one().options.mss, Some(mtu - 40));
        }
    }
}

#[test]
fn without_the_option_the_peer_s_is_536() {
    // MUST-15.
    assert_eq!(largest(config(), Options::default()), 536);
}

#[test]
fn no_segment_is_larger_than_the_peer_s_mss() {
    // MUST-16.
    for mss in [200, 536, 1000, 1460] {
        assert_eq!(largest(config(), Options { mss: Some(mss), ..Options::default() }), mss.into());
    }
    let more = Options { mss: Some(8960), ..Options::default() };
    assert_eq!(largest(config(), more), 1460, "nor than our MTU");
}

#[test]
fn the_sender_takes_options_off_the_segment() {
    // RFC 6691 section 2: 12 bytes of timestamps.
    let config = Config { timestamps: true, ..config() };
    for (mss, payload) in [(None, 524), (Some(536), 524), (Some(1460), 1448)] {
        let options = Options { mss, timestamps: stamped(), ..Options::default() };
        assert_eq!(largest(config.clone(), options), payload);
    }
}

#[test]
fn an_absurdly_small_mss_does_not_multiply_segments() {
    for mss in [0, 1, 40] {
        let size = largest(config(), Options { mss: Some(mss), ..Options::default() });
        assert!((64..=88).contains(&size), "{size}");
    }
}

#[test]
fn the_option_means_nothing_but_in_a_syn() {
    // RFC 9293 section 3.2: only in segments with SYN.
    let mut pair = Pair::established(config());
    pair.send_with(ACK, Options { mss: Some(100), ..Options::default() }, &[]);
    pair.host.send(pair.flow, &[5; 1460]);
    assert_eq!(pair.recv_one().data.len(), 1460);
}
