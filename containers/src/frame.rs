//! Frames of the output of a command: a kind, a length of four octets, and so many octets.

use bytes::{BufMut, Bytes, BytesMut};

/// Standard output.
pub const OUT: u8 = 1;
/// Standard error.
pub const ERROR: u8 = 2;
/// The exit code in decimal digits; the last frame.
pub const EXIT: u8 = 3;
/// Why the command can't be run; the last frame.
pub const FAILURE: u8 = 4;
/// The head of a frame, in octets.
pub const HEAD: usize = 5;

/// One frame.
pub fn of(kind: u8, octets: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + octets.len());
    frame.put_u8(kind);
    frame.put_u32(u32::try_from(octets.len()).unwrap_or(u32::MAX));
    frame.put_slice(octets);
    frame.freeze()
}
