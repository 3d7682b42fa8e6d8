//! RFC 6528 and RFC 9293 section 3.4.1: initial sequence numbers.

use std::collections::HashSet;

use crate::config::{MS, SEC};
use crate::tests::harness::*;

/// The ISN of a connection from `port` now, which the peer then resets.
fn isn(pair: &mut Pair, port: u16) -> u32 {
    pair.peer_port = port;
    pair.send(SYN, &[]);
    let isn = pair.recv_one().seq;
    pair.seq += 1;
    pair.send(RST, &[]);
    pair.seq -= 1;
    isn
}

#[test]
fn a_tuple_s_numbers_advance_by_one_each_four_microseconds() {
    // RFC 9293 section 3.4.1: M is a timer of about 4 us per increment; RFC
    // 6528 section 3: ISN = M + F(tuple, key), so that TIME-WAIT can judge a
    // new incarnation.
    let mut pair = Pair::listening(config());
    let first = isn(&mut pair, 40000);
    let mut last = 0;
    for ms in [1u64, 4, 100, 1000, 30_000] {
        pair.host.pass_time(ms * MS);
        last += ms * 250;
        let advanced = u64::from(isn(&mut pair, 40000).wrapping_sub(first));
        assert!(advanced.abs_diff(last) <= 1, "{advanced} {last}");
    }
}

#[test]
fn numbers_of_other_tuples_cannot_be_guessed() {
    // RFC 6528 section 3: F is a keyed hash of the tuple.
    let mut pair = Pair::listening(config());
    let numbers: Vec<u32> = (0..4096).map(|i| isn(&mut pair, 10_000 + i)).collect();
    assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), numbers.len());
    // Differences of neighbours are spread as those of random numbers: all
    // sixteenths of the space hold about as many.
    let mut sixteenths = [0u32; 16];
    for pair in numbers.windows(2) {
        sixteenths[(pair[1].wrapping_sub(pair[0]) >> 28) as usize] += 1;
    }
    assert!(sixteenths.iter().all(|n| (180..340).contains(n)), "{sixteenths:?}");
    // Each bit is set in about half of them.
    for bit in 0..32 {
        let set = numbers.iter().filter(|n| **n >> bit & 1 == 1).count();
        assert!((1850..2250).contains(&set), "bit {bit}: {set}");
    }
}

#[test]
fn another_key_gives_other_numbers() {
    let mut a = Pair::listening(config());
    let mut b = Pair::listening(config());
    assert_eq!(isn(&mut a, 40000), isn(&mut b, 40000));
    b.host.stack = crate::Stack::new(config(), 256, [8; 16]);
    b.host.stack.listen(0, 80, 8).unwrap();
    assert_ne!(isn(&mut a, 40000), isn(&mut b, 40000));
}

#[test]
fn a_quiet_host_s_clock_wraps_with_the_sequence_space() {
    let mut pair = Pair::listening(config());
    let first = isn(&mut pair, 40000);
    // 2^32 increments of 4 us.
    pair.host.pass_time((1u64 << 32) * 4_000);
    assert!(isn(&mut pair, 40000).wrapping_sub(first) <= 1);
    pair.host.pass_time(SEC);
    assert!(isn(&mut pair, 40000).wrapping_sub(first).abs_diff(250_000) <= 1);
}
