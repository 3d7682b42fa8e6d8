//! See `paste_tests::fuzz::sequence`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paste_tests::fuzz::sequence::sequence(data));
