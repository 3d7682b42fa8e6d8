//! See `paste_tests::fuzz::packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paste_tests::fuzz::packet::packet(data));
