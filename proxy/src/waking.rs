//! Holding a request while its site wakes: who may wake a site, and for how long one waits.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use common::observed::Live;
use http::{HeaderMap, Method, header};
use pingora::http::RequestHeader;

/// A person sees the waking page after this.
pub(crate) const PATIENCE_OF_PEOPLE: Duration = Duration::from_secs(2);
/// A program is held for this long.
pub(crate) const PATIENCE_OF_PROGRAMS: Duration = Duration::from_secs(60);

/// Wakes sites; control does, at the other end of its socket.
#[async_trait]
pub trait Waker: Send + Sync + 'static {
    /// Returns once the site answers. Many may wait for one wake.
    ///
    /// # Errors
    /// Why it does not.
    async fn wake(&self, site: Arc<str>) -> Result<Live, Refusal>;
}

/// Why a site does not wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody is there to wake it.
    NoControl,
    /// No memory is left for it.
    Full,
    /// It fails.
    Failing,
}

/// Whether a page for people is an answer here: a browser that goes somewhere.
pub(crate) fn is_person(request: &RequestHeader) -> bool {
    let field = |name: &str| {
        request
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    matches!(request.method, Method::GET | Method::HEAD)
        && field("accept").is_some_and(|accept| accept.contains("text/html"))
        && field("sec-fetch-mode").is_none_or(|mode| mode == "navigate")
}

/// Whether a robot or a health probe asks, by what it says of itself: nobody to wake a site for.
pub(crate) fn is_robot(headers: &HeaderMap) -> bool {
    const WORDS: &[&str] = &[
        "bot",
        "crawl",
        "spider",
        "slurp",
        "archiver",
        "monitor",
        "uptime",
        "pingdom",
        "probe",
        "healthcheck",
        "prometheus",
        "zabbix",
        "nagios",
        "facebookexternalhit",
        "bingpreview",
        "scanner",
    ];
    let Some(agent) = headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let agent = agent.to_ascii_lowercase();
    // A browser on a "Cubot" telephone is a person.
    WORDS.iter().any(|word| agent.contains(word)) && !agent.contains("cubot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn robots_say_what_they_are() {
        for (agent, robot) in [
            (
                "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
                true,
            ),
            ("Prometheus/2.42.0", true),
            ("kube-probe/1.29", true),
            ("UptimeRobot/2.0", true),
            (
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/130.0 Safari/537.36",
                false,
            ),
            ("Mozilla/5.0 (Linux; Android 9; CUBOT_X19) Chrome/90", false),
            ("curl/7.88.1", false),
        ] {
            let headers = HeaderMap::from_iter([(header::USER_AGENT, agent.parse().unwrap())]);
            assert_eq!(is_robot(&headers), robot, "{agent}");
        }
        assert!(!is_robot(&HeaderMap::new()));
    }

    #[test]
    fn people_navigate() {
        let request = |fields: &[(&str, &str)], method: Method| {
            let mut request = RequestHeader::build(method, b"/", None).unwrap();
            for (name, value) in fields {
                request.insert_header((*name).to_owned(), *value).unwrap();
            }
            request
        };
        let html = ("accept", "text/html,application/xhtml+xml");
        assert!(is_person(&request(&[html], Method::GET)));
        assert!(is_person(&request(
            &[html, ("sec-fetch-mode", "navigate")],
            Method::GET
        )));
        assert!(!is_person(&request(
            &[html, ("sec-fetch-mode", "cors")],
            Method::GET
        )));
        assert!(
            !is_person(&request(&[html], Method::POST)),
            "a form is not sent twice"
        );
        assert!(!is_person(&request(&[("accept", "*/*")], Method::GET)));
    }
}
