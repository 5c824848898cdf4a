//! What the fuzzers found, asked again: each file of the corpus through the checks of its target.

use std::{fs, path::Path};

#[path = "../fuzz/checks.rs"]
mod checks;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let files = fs::read_dir(folder).unwrap();
    let mut count = 0;
    for file in files {
        let path = file.unwrap().path();
        let octets = fs::read(&path).unwrap();
        let held = std::panic::catch_unwind(|| check(&octets));
        assert!(held.is_ok(), "see above: {}", path.display());
        count += 1;
    }
    assert!(count > 20, "the corpus of {target} has {count} files");
}

#[test]
fn any_octets_are_answered_well() {
    replay("packet", checks::packet);
}

#[test]
fn answers_do_not_depend_on_how_octets_come() {
    replay("framing", checks::framing);
}

#[test]
fn records_come_back_from_the_wire_and_from_text() {
    replay("record", checks::record);
}
