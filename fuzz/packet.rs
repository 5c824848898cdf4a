#![no_main]

#[expect(dead_code, reason = "a target uses one of the checks")]
mod checks;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| checks::packet(octets));
