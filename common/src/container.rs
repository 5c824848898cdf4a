//! What a site may say of its container; saying nothing is the standard PHP image.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

/// The keys of a site that speak of its container.
pub(crate) const KEYS: &[&str] = &[
    "image",
    "command",
    "port",
    "environment",
    "secrets",
    "database",
];

/// How a site's container differs from the standard one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Container {
    /// The image; `None` is the group's.
    pub image: Option<String>,
    /// What to run instead of the image's own command.
    pub command: Vec<String>,
    /// Where its server listens; `None` is the group's.
    pub port: Option<u16>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Environment variables whose values are the contents of files nobody else can read.
    pub secrets: BTreeMap<String, PathBuf>,
    /// Whether it has a database of its own.
    pub database: bool,
}

/// Whether a program can be given this name in its environment (POSIX.1-2017 §8.1).
pub(crate) fn is_variable(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    name.len() <= 64
        && name.bytes().all(word)
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

/// Whether an engine could know an image by this reference.
pub(crate) fn is_image(reference: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b);
    (1..=255).contains(&reference.len())
        && reference.bytes().all(plain)
        && reference.as_bytes()[0].is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_images_are_what_programs_take() {
        for (name, is) in [
            ("A", true),
            ("_b9", true),
            ("9a", false),
            ("a-b", false),
            ("", false),
        ] {
            assert_eq!(is_variable(name), is, "{name:?}");
        }
        for (image, is) in [
            ("nuage-php:8.2", true),
            ("registry.example:5000/a/b@sha256:0123", true),
            ("", false),
            ("-x", false),
            ("a b", false),
        ] {
            assert_eq!(is_image(image), is, "{image:?}");
        }
    }
}
