//! Conditional requests (RFC 9110 §13).

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap,
    header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE},
};

/// What the conditions of a GET or HEAD come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer as if there were none.
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
}

/// Evaluates in the order of RFC 9110 §13.2.2. `tag` is strong and in quotes.
pub(crate) fn evaluate(headers: &HeaderMap, tag: &str, modified: SystemTime) -> Verdict {
    let field = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(tags) = field(IF_MATCH) {
        if !lists(tags, |listed| listed == tag) {
            return Verdict::PreconditionFailed;
        }
    } else if let Some(date) =
        field(IF_UNMODIFIED_SINCE).and_then(|text| httpdate::parse_http_date(text).ok())
        && whole_seconds(modified) > date
    {
        return Verdict::PreconditionFailed;
    }
    if let Some(tags) = field(IF_NONE_MATCH) {
        // Weak comparison (RFC 9110 §13.1.2).
        if lists(tags, |listed| {
            listed.strip_prefix("W/").unwrap_or(listed) == tag
        }) {
            return Verdict::NotModified;
        }
    } else if let Some(date) =
        field(IF_MODIFIED_SINCE).and_then(|text| httpdate::parse_http_date(text).ok())
        && whole_seconds(modified) <= date
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Whether a Range field counts: If-Range is absent or names this very content (RFC 9110 §13.1.5).
pub(crate) fn range_applies(headers: &HeaderMap, tag: &str, modified: SystemTime) -> bool {
    let Some(value) = headers.get(IF_RANGE) else {
        return true;
    };
    value.to_str().is_ok_and(|text| {
        text == tag
            || httpdate::parse_http_date(text).is_ok_and(|date| date == whole_seconds(modified))
    })
}

fn lists(field: &str, matches: impl Fn(&str) -> bool) -> bool {
    field
        .split(',')
        .map(str::trim)
        .any(|listed| listed == "*" || matches(listed))
}

/// HTTP dates have no fractions.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn conditions_follow_their_order() {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_500);
        let (same, before, after) = (
            "Mon, 12 Jan 1970 13:46:40 GMT",
            "Mon, 12 Jan 1970 13:46:39 GMT",
            "Mon, 12 Jan 1970 13:46:41 GMT",
        );
        let cases: [(&[(HeaderName, &str)], Verdict); 11] = [
            (&[], Verdict::Proceed),
            (&[(IF_NONE_MATCH, "\"t\"")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "\"x\", W/\"t\"")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "*")], Verdict::NotModified),
            (
                &[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, after)],
                Verdict::Proceed,
            ),
            (&[(IF_MODIFIED_SINCE, same)], Verdict::NotModified),
            (&[(IF_MODIFIED_SINCE, before)], Verdict::Proceed),
            (&[(IF_MODIFIED_SINCE, "yesterday")], Verdict::Proceed),
            (&[(IF_MATCH, "\"x\"")], Verdict::PreconditionFailed),
            (&[(IF_MATCH, "W/\"t\"")], Verdict::PreconditionFailed),
            (
                &[(IF_UNMODIFIED_SINCE, before)],
                Verdict::PreconditionFailed,
            ),
        ];
        for (fields, want) in cases {
            let headers: HeaderMap = fields
                .iter()
                .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
                .collect();
            assert_eq!(evaluate(&headers, "\"t\"", modified), want, "{fields:?}");
        }
        let range = |value: &str| {
            range_applies(
                &HeaderMap::from_iter([(IF_RANGE, HeaderValue::from_str(value).unwrap())]),
                "\"t\"",
                modified,
            )
        };
        assert!(range("\"t\"") && range(same));
        assert!(!range("\"x\"") && !range(after) && !range("W/\"t\""));
    }
}
