//! One web site as its zone file declares it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use url::Url;

use crate::{
    container::Container,
    name::{HostName, SiteName},
    problem::Position,
};

/// A label in a zone, with an owner, a group and a backend. There may be a million: what is rare is boxed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The label.
    pub name: SiteName,
    /// Who may change it.
    pub owner: Option<Box<str>>,
    /// Tenants with common limits.
    pub group: Option<Box<str>>,
    /// Other labels of the same zone.
    pub aliases: Box<[SiteName]>,
    /// Foreign host names that also lead here.
    pub domains: Box<[HostName]>,
    /// Where its requests go.
    pub backend: Backend,
    /// What plain HTTP does; `None` follows the certificates in use.
    pub https: Option<HttpsPolicy>,
    /// Where the file declares it.
    pub position: Position,
}

/// Where a site's requests go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A container of its own; `None` is all as the group says.
    Container(Option<Box<Container>>),
    /// Files below a folder.
    Static(Box<Path>),
    /// Another HTTP server.
    Upstream(Box<Upstream>),
    /// Another place.
    Redirect(Box<Url>),
}

/// An HTTP server requests are forwarded to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Upstream {
    /// What carries the requests.
    pub protocol: Protocol,
    /// Where it listens.
    pub address: UpstreamAddress,
}

/// What carries requests to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 in clear, with prior knowledge (RFC 9113 §3.3).
    H2c,
    /// HTTP over TLS, the certificate verified.
    Https,
}

/// Where an upstream listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamAddress {
    /// Host (a name or an address, without brackets) and port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// What plain HTTP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpsPolicy {
    /// Redirects to HTTPS.
    Redirect,
    /// Answers like HTTPS.
    Both,
}

impl Site {
    /// What plain HTTP does at one of its names: what the site says, or else to redirect where visitors
    /// trust the certificate of that name, which they can't with the local authority's.
    pub fn https_where(&self, trusted: bool) -> HttpsPolicy {
        self.https.unwrap_or(if trusted {
            HttpsPolicy::Redirect
        } else {
            HttpsPolicy::Both
        })
    }
}

impl Backend {
    /// The word for it in tables and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Container(_) => "container",
            Self::Static(_) => "static",
            Self::Upstream(_) => "upstream",
            Self::Redirect(_) => "redirect",
        }
    }

    /// What it points at, as the zone file would say it.
    pub fn target(&self) -> String {
        match self {
            Self::Container(container) => container
                .as_ref()
                .and_then(|container| container.image.clone())
                .unwrap_or_default(),
            Self::Static(folder) => folder.display().to_string(),
            Self::Upstream(upstream) => upstream.to_string(),
            Self::Redirect(url) => url.to_string(),
        }
    }
}

impl Upstream {
    /// Parses `http://host:port`, `h2c://host:port`, `https://host` or `unix:/path`.
    ///
    /// # Errors
    /// What is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write \"http://127.0.0.1:9001\", \"h2c://127.0.0.1:9001\", \"https://host\" or \"unix:/run/app.sock\"";
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            // sockaddr_un holds 108 octets with the final NUL.
            return if path.is_absolute() && path.as_os_str().len() < 108 {
                Ok(Self {
                    protocol: Protocol::Http,
                    address: UpstreamAddress::Unix(path),
                })
            } else {
                Err(format!(
                    "a Unix socket needs an absolute path of at most 107 octets: {FORMS}"
                ))
            };
        }
        let url = Url::parse(text)
            .map_err(|error| format!("\"{text}\" is not a URL ({error}): {FORMS}"))?;
        let (protocol, default_port) = match url.scheme() {
            "http" => (Protocol::Http, Some(80)),
            "h2c" => (Protocol::H2c, None),
            "https" => (Protocol::Https, Some(443)),
            other => return Err(format!("no upstream speaks \"{other}\": {FORMS}")),
        };
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let Some(port) = url
            .port()
            .or(default_port)
            .filter(|port| *port > 0 && !host.is_empty())
        else {
            return Err(format!("an upstream needs a host and a port: {FORMS}"));
        };
        if !matches!(url.path(), "" | "/")
            || url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
        {
            return Err("an upstream is a server: leave out path, query and user, requests keep their own path".to_owned());
        }
        Ok(Self {
            protocol,
            address: UpstreamAddress::Tcp(host.to_owned(), port),
        })
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.protocol {
            Protocol::Http => "http",
            Protocol::H2c => "h2c",
            Protocol::Https => "https",
        };
        match &self.address {
            UpstreamAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            UpstreamAddress::Tcp(host, port) if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}")
            }
            UpstreamAddress::Tcp(host, port) => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_servers() {
        for (text, want) in [
            ("http://127.0.0.1:9001", "http://127.0.0.1:9001"),
            ("http://[::1]:9001/", "http://[::1]:9001"),
            ("h2c://localhost:50051", "h2c://localhost:50051"),
            ("https://example.org", "https://example.org:443"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(Upstream::parse(text).unwrap().to_string(), want);
        }
        for text in [
            "127.0.0.1:9001",
            "ftp://x",
            "h2c://x",
            "http://x/base",
            "http://u@x",
            "unix:app.sock",
            "http://",
            "http://x:0",
        ] {
            assert!(Upstream::parse(text).is_err(), "{text}");
        }
    }
}
