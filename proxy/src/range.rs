//! Range requests (RFC 9110 §14).

use std::ops::Range;

/// More ranges than this in one request are an attack, not a reader: the whole file answers.
const MOST_RANGES: usize = 16;

/// What a Range field asks of a body of a known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything: no field, or none that is understood.
    Whole,
    /// These parts, none empty, in the order asked for.
    Parts(Vec<Range<u64>>),
    /// Nothing that exists: 416.
    Unsatisfiable,
}

pub(crate) fn wanted(field: Option<&str>, length: u64) -> Wanted {
    let Some(specs) = field.and_then(|field| field.trim().strip_prefix("bytes=")) else {
        return Wanted::Whole;
    };
    let mut parts: Vec<Range<u64>> = Vec::new();
    for (index, spec) in specs.split(',').enumerate() {
        let Some(part) = part(spec.trim(), length) else {
            // A malformed set is ignored as a whole (RFC 9110 §14.2).
            return Wanted::Whole;
        };
        if index >= MOST_RANGES {
            return Wanted::Whole;
        }
        if !part.is_empty() {
            parts.push(part);
        }
    }
    // Overlapping parts could make a small file large (RFC 9110 §17.15).
    let asked: u64 = parts.iter().map(|part| part.end - part.start).sum();
    if parts.is_empty() {
        Wanted::Unsatisfiable
    } else if parts.len() > 1 && asked > length {
        Wanted::Whole
    } else {
        Wanted::Parts(parts)
    }
}

/// One `first-last`, `first-` or `-suffix`; empty when it lies past the end.
fn part(spec: &str, length: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // A number too large to hold is past every end.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let suffix: u64 = number(last)?;
        return Some(length.saturating_sub(suffix)..length);
    }
    let first = number(first)?;
    let end = if last.is_empty() {
        length
    } else {
        number(last)?.saturating_add(1)
    };
    if end <= first && !last.is_empty() {
        return None;
    }
    Some(first.min(length)..end.min(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::single_range_in_vec_init,
        reason = "one part is a list of one range"
    )]
    fn ranges_of_a_hundred_octets() {
        let parts = |parts: &[Range<u64>]| Wanted::Parts(parts.to_vec());
        for (field, want) in [
            ("bytes=0-0", parts(&[0..1])),
            ("bytes=10-", parts(&[10..100])),
            ("bytes=-10", parts(&[90..100])),
            ("bytes=-1000", parts(&[0..100])),
            ("bytes=90-1000", parts(&[90..100])),
            ("bytes=0-9, 20-29", parts(&[0..10, 20..30])),
            ("bytes=0-9, 200-300", parts(&[0..10])),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=9-1", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
            ("bytes=0-99,0-99", Wanted::Whole),
            ("bytes=99999999999999999999-", Wanted::Unsatisfiable),
        ] {
            assert_eq!(wanted(Some(field), 100), want, "{field}");
        }
        assert_eq!(wanted(None, 100), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
        assert_eq!(
            wanted(Some(&format!("bytes={}", vec!["0-0"; 17].join(","))), 100),
            Wanted::Whole
        );
    }
}
