//! The head of an HTTP/1 request, judged on its octets before any parser interprets them.
//!
//! Two readers of one message must never disagree about where it ends or whom it is for: what is
//! ambiguous is refused here (RFC 9112 §2.2, §3.2, §5, §6.3, §11.2).

use memchr::memchr;

/// More header fields than any browser sends.
const MOST_FIELDS: usize = 128;

/// Why a request is refused before it is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 400: malformed or ambiguous.
    Malformed(&'static str),
    /// 408: the head did not come in time.
    Slow,
    /// 431: the head is too large.
    TooLarge,
}

/// Where the head ends, when the octets hold all of it.
pub(crate) fn end(bytes: &[u8], searched: usize) -> Option<usize> {
    // The separator may straddle what was searched before.
    let mut from = searched.saturating_sub(3);
    while let Some(at) = memchr(b'\n', bytes.get(from..)?) {
        let at = from + at;
        let before = &bytes[..=at];
        // An empty line with a bare LF also ends a head for lenient readers: stop there, and let
        // `judge` refuse it.
        if before.ends_with(b"\r\n\r\n") || before.ends_with(b"\n\n") {
            return Some(at + 1);
        }
        from = at + 1;
    }
    None
}

/// Judges a whole head, the empty line included.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn judge(head: &[u8]) -> Result<(), Refusal> {
    let refuse = |why| Err(Refusal::Malformed(why));
    if memchr(0, head).is_some() {
        return refuse("a NUL octet");
    }
    let (mut hosts, mut lengths, mut encodings, mut fields) = (0, 0, 0, 0);
    let mut rest = head;
    let mut first = true;
    while let Some(at) = memchr(b'\n', rest) {
        let line = &rest[..at];
        rest = &rest[at + 1..];
        // A lone LF or CR is a line end to some and not to others (RFC 9112 §2.2).
        let Some(line) = line.strip_suffix(b"\r") else {
            return refuse("a line that ends in a bare LF");
        };
        if memchr(b'\r', line).is_some() {
            return refuse("a bare CR");
        }
        if line.is_empty() {
            break;
        }
        if std::mem::take(&mut first) {
            continue;
        }
        fields += 1;
        if fields > MOST_FIELDS {
            return Err(Refusal::TooLarge);
        }
        if matches!(line[0], b' ' | b'\t') {
            return refuse("a folded header line");
        }
        let Some(colon) = memchr(b':', line) else {
            return refuse("a header line without a colon");
        };
        let name = &line[..colon];
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return refuse("white space in a header name");
        }
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            lengths += 1;
            let value = line[colon + 1..].trim_ascii();
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return refuse("a Content-Length that is not a number");
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            encodings += 1;
            if !line[colon + 1..]
                .trim_ascii()
                .eq_ignore_ascii_case(b"chunked")
            {
                return refuse("a Transfer-Encoding other than chunked");
            }
        }
    }
    match (hosts, lengths, encodings) {
        (0, _, _) => refuse("no Host header"),
        (2.., _, _) => refuse("more than one Host header"),
        (_, 2.., _) | (_, _, 2..) => refuse("a message of two lengths"),
        (_, 1, 1) => refuse("both Content-Length and Transfer-Encoding"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(head: &str) -> Result<(), Refusal> {
        assert_eq!(end(head.as_bytes(), 0), Some(head.len()), "{head:?}");
        judge(head.as_bytes())
    }

    #[test]
    fn a_plain_request_passes() {
        assert_eq!(
            judged("GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"),
            Ok(())
        );
        assert_eq!(
            judged("POST / HTTP/1.1\r\nhost:a\r\nContent-Length: 3\r\n\r\n"),
            Ok(())
        );
        assert_eq!(
            judged("POST / HTTP/1.1\r\nhost:a\r\nTransfer-Encoding: Chunked\r\n\r\n"),
            Ok(())
        );
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for fields in [
            "Accept: x\r\n",
            "Host: a\r\nHost: b\r\n",
            "Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Host: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n",
            "Host: a\r\nContent-Length: +3\r\n",
            "Host: a\r\nContent-Length: 3, 3\r\n",
            "Host: a\r\nTransfer-Encoding: gzip, chunked\r\n",
            "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Host : a\r\n",
            "Host: a\r\n folded\r\n",
            "Host: a\r\nnonsense\r\n",
            "Host: a\r\nX: b\rc\r\n",
            "Host: a\r\nX: \0\r\n",
            "Host: a\nX: y\r\n",
            ": a\r\nHost: a\r\n",
        ] {
            let found = judged(&format!("GET / HTTP/1.1\r\n{fields}\r\n"));
            assert!(
                matches!(found, Err(Refusal::Malformed(_))),
                "{fields:?}: {found:?}"
            );
        }
        assert_eq!(
            judged("GET / HTTP/1.1\nHost: a\n\n"),
            Err(Refusal::Malformed("a line that ends in a bare LF"))
        );
        let many = "X: y\r\n".repeat(MOST_FIELDS + 1);
        assert_eq!(
            judged(&format!("GET / HTTP/1.1\r\n{many}\r\n")),
            Err(Refusal::TooLarge)
        );
    }

    #[test]
    fn the_end_is_found_wherever_the_pieces_are_cut() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        for cut in 0..head.len() {
            let first = end(&head[..cut], 0);
            assert_eq!(
                first.or_else(|| end(head, cut)),
                Some(head.len() - 4),
                "cut at {cut}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_octets_are_judged(octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            if let Some(end) = end(&octets, 0) {
                proptest::prop_assert!(octets[..end].ends_with(b"\n"));
            }
            // Whatever passes names one host and ends its lines as HTTP does.
            if judge(&octets).is_ok() {
                let text = octets.to_ascii_lowercase();
                proptest::prop_assert!(memchr::memmem::find(&text, b"\nhost:").is_some());
            }
        }
    }
}
