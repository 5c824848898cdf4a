//! Whom a request is for.

use http::header::HOST;
use pingora::http::RequestHeader;

/// The host of a request in the registry's form: lower case, without port and final dot. `None`
/// when it names none, or two different ones (RFC 9112 §3.2.2, RFC 9113 §8.3.1).
pub(crate) fn of(request: &RequestHeader) -> Option<String> {
    let field = {
        let mut fields = request.headers.get_all(HOST).iter();
        match (fields.next(), fields.next()) {
            (None, _) => None,
            (Some(one), None) => Some(one.to_str().ok()?),
            (Some(_), Some(_)) => return None,
        }
    };
    match (request.uri.authority(), field) {
        (Some(authority), None) => normal(authority.as_str()),
        (None, Some(field)) => normal(field),
        (Some(authority), Some(field)) => {
            let (authority, field) = (normal(authority.as_str())?, normal(field)?);
            (authority == field).then_some(authority)
        }
        (None, None) => None,
    }
}

/// `Host.Example.:8080` becomes `host.example`.
pub(crate) fn normal(authority: &str) -> Option<String> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        // An IPv6 address in brackets, or nothing a site could be called.
        Some(_) => authority,
        None => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'[' | b']' | b':');
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(plain))
        .then(|| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_port_case_and_final_dot() {
        for (written, want) in [
            ("A.Example", Some("a.example")),
            ("a.example:8080", Some("a.example")),
            ("a.example.:80", Some("a.example")),
            ("a.example:", Some("a.example")),
            ("[::1]:80", Some("[::1]")),
            ("", None),
            (":80", None),
            ("a example", None),
            ("user@a.example", None),
            ("a/b", None),
        ] {
            assert_eq!(normal(written).as_deref(), want, "{written:?}");
        }
    }

    #[test]
    fn two_hosts_are_none() {
        let request = |uri: &'static str, host: &str| {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            // HTTP/2 requests bring their authority in the URI.
            request.set_uri(http::Uri::from_static(uri));
            request.insert_header("host", host).unwrap();
            of(&request)
        };
        assert_eq!(request("/", "a.example").as_deref(), Some("a.example"));
        assert_eq!(
            request("http://a.example/", "A.example:80").as_deref(),
            Some("a.example")
        );
        assert_eq!(request("http://a.example/", "b.example"), None);
    }
}
