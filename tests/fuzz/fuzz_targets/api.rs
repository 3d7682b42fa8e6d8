//! See `paste_tests::fuzz::api`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paste_tests::fuzz::api::api(data));
