#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| relay_engine::fuzzing::tls_records(data));
