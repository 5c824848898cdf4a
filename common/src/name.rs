//! Host names, parsed once at the border.
//!
//! A name here is LDH (RFC 1123 §2.1): letters, digits and hyphens, lower-cased, labels of 1 to 63
//! octets, at most 253 characters. International names are accepted and kept as A-labels
//! (RFC 5890, UTS 46).

use std::{borrow::Borrow, fmt, net::IpAddr};

use serde::Serialize;

/// Longest label in octets (RFC 1035 §2.3.4).
const LABEL_OCTETS: usize = 63;
/// Longest name in presentation form without the final dot (RFC 1035 §2.3.4: 255 octets on the wire).
pub(crate) const NAME_OCTETS: usize = 253;

/// Why a text is not a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No text, or nothing between two dots.
    #[error("\"{0}\" has an empty label")]
    Empty(String),
    /// A label over 63 octets.
    #[error("\"{0}\" has a label of more than 63 octets")]
    LabelTooLong(String),
    /// A name over 253 characters.
    #[error("\"{0}\" is longer than 253 characters")]
    TooLong(String),
    /// A character outside letters, digits and hyphens, or a hyphen at an end.
    #[error("\"{0}\" is not a host name: use letters, digits and inner hyphens")]
    NotLdh(String),
    /// More than one label where a site's single label is wanted.
    #[error("\"{0}\" has a dot: a site's name is one label, a foreign name goes under `domains`")]
    NotOneLabel(String),
    /// An address where a name is wanted.
    #[error("\"{0}\" is an address, not a name")]
    Address(String),
}

/// A site's or alias's name: one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SiteName(Box<str>);

/// A full host name, lower case, without the final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct HostName(Box<str>);

impl SiteName {
    /// Parses one label, in Unicode or ASCII.
    ///
    /// # Errors
    /// Says what the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.contains('.') {
            return Err(NameError::NotOneLabel(text.to_owned()));
        }
        canonical(text).map(Self)
    }

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HostName {
    /// Parses a name of one or more labels; a final dot is allowed and dropped.
    ///
    /// # Errors
    /// Says what the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.parse::<IpAddr>().is_ok() {
            return Err(NameError::Address(text.to_owned()));
        }
        canonical(text.strip_suffix('.').unwrap_or(text)).map(Self)
    }

    /// The name of `label` inside this domain.
    pub fn child(&self, label: &SiteName) -> Self {
        Self(format!("{label}.{self}").into())
    }

    /// The part of the name before `.origin`, when it lies below `origin`.
    pub fn below<'n>(&'n self, origin: &Self) -> Option<&'n str> {
        self.0.strip_suffix(&*origin.0)?.strip_suffix('.')
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lower-cases, converts to A-labels and checks. Plain ASCII takes the short way: a file may hold
/// 100,000 names.
fn canonical(text: &str) -> Result<Box<str>, NameError> {
    let plain = text.is_ascii()
        && !text
            .split('.')
            .any(|l| l.as_bytes().get(2..4) == Some(b"--"));
    let ascii = if plain {
        text.to_ascii_lowercase()
    } else {
        idna::domain_to_ascii_strict(text).map_err(|_| NameError::NotLdh(text.to_owned()))?
    };
    if ascii.len() > NAME_OCTETS {
        return Err(NameError::TooLong(text.to_owned()));
    }
    for label in ascii.split('.') {
        let bytes = label.as_bytes();
        if bytes.is_empty() {
            return Err(NameError::Empty(text.to_owned()));
        }
        if bytes.len() > LABEL_OCTETS {
            return Err(NameError::LabelTooLong(text.to_owned()));
        }
        let ldh = bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || *b == b'-');
        if !ldh || bytes[0] == b'-' || bytes[bytes.len() - 1] == b'-' {
            return Err(NameError::NotLdh(text.to_owned()));
        }
    }
    Ok(ascii.into())
}

/// Names that no site, alias or domain can take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved(Vec<SiteName>);

impl Reserved {
    /// The built-in rules and those of `[names] reserved`.
    pub fn with(names: Vec<SiteName>) -> Self {
        Self(names)
    }

    /// Why `name` is reserved, when it is.
    pub fn reason(&self, name: &SiteName) -> Option<String> {
        let name = name.as_str();
        if name.starts_with("ns") {
            Some(format!(
                "\"{name}\" is reserved: names in ns* belong to name servers"
            ))
        } else if name == "portal" {
            Some(format!("\"{name}\" is reserved for Nuage's own pages"))
        } else if self.0.iter().any(|reserved| reserved.as_str() == name) {
            Some(format!(
                "\"{name}\" is reserved by [names] reserved in nuage.toml"
            ))
        } else {
            None
        }
    }
}

macro_rules! text_of {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}
text_of!(SiteName);
text_of!(HostName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_cased_and_international_ones_become_a_labels() {
        assert_eq!(SiteName::parse("Alice").unwrap().as_str(), "alice");
        assert_eq!(SiteName::parse("école").unwrap().as_str(), "xn--cole-9oa");
        assert_eq!(
            SiteName::parse("XN--COLE-9OA").unwrap().as_str(),
            "xn--cole-9oa"
        );
        assert_eq!(
            HostName::parse("WWW.Bücher.example.").unwrap().as_str(),
            "www.xn--bcher-kva.example"
        );
    }

    #[test]
    fn what_is_no_host_name_is_refused_with_its_reason() {
        let long = "a".repeat(64);
        for (text, want) in [
            ("", NameError::Empty(String::new())),
            (&*long, NameError::LabelTooLong(long.clone())),
            ("a_b", NameError::NotLdh("a_b".into())),
            ("-a", NameError::NotLdh("-a".into())),
            ("a-", NameError::NotLdh("a-".into())),
            ("a b", NameError::NotLdh("a b".into())),
            ("a.b", NameError::NotOneLabel("a.b".into())),
            ("xn--\u{0}", NameError::NotLdh("xn--\u{0}".into())),
        ] {
            assert_eq!(SiteName::parse(text), Err(want), "{text:?}");
        }
        assert!(matches!(
            HostName::parse("192.0.2.1"),
            Err(NameError::Address(_))
        ));
        assert!(matches!(HostName::parse("a..b"), Err(NameError::Empty(_))));
        assert!(HostName::parse(&"a.".repeat(127)).is_ok());
        assert!(matches!(
            HostName::parse(&"a.".repeat(128)),
            Err(NameError::TooLong(_))
        ));
    }

    #[test]
    fn reserved_names_say_why() {
        let reserved = Reserved::with(vec![SiteName::parse("www").unwrap()]);
        let reason = |name: &str| reserved.reason(&SiteName::parse(name).unwrap());
        assert!(reason("ns1").unwrap().contains("name servers"));
        assert!(reason("portal").is_some());
        assert!(reason("www").unwrap().contains("nuage.toml"));
        assert_eq!(reason("alice"), None);
    }
}
