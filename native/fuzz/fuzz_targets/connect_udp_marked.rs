#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsule_core::fuzzing::connect_udp_marked(data));
