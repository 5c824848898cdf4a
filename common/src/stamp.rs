//! Telling one content of a file from another without reading it.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

/// When a file was written and changed, its size, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    written: (i64, i64),
    changed: (i64, i64),
    octets: u64,
    inode: u64,
}

impl From<&Metadata> for Stamp {
    fn from(of: &Metadata) -> Self {
        Self {
            written: (of.mtime(), of.mtime_nsec()),
            changed: (of.ctime(), of.ctime_nsec()),
            octets: of.size(),
            inode: of.ino(),
        }
    }
}
