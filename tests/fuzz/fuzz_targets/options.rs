//! See `paste_tests::fuzz::options`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paste_tests::fuzz::options::options(data));
