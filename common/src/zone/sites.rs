//! The `[sites]` of a zone file.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use url::Url;

use crate::{
    config::Config,
    container::{self, Container},
    group,
    labels::Labels,
    name::{HostName, NameError, SiteName},
    paths,
    problem::Position,
    site::{Backend, HttpsPolicy, Site, Upstream},
    table::{At, Reading, Table},
};

/// The keys of a site, beside those that speak of its container.
const KEYS: &[&str] = &[
    "owner", "group", "aliases", "domains", "static", "upstream", "redirect", "https",
];

/// Names in use within the zone, and where they were taken.
#[derive(Default)]
pub(super) struct Taken<'d> {
    /// Labels of sites and aliases.
    pub(super) labels: HashMap<Cow<'d, str>, Position>,
    /// Foreign domains, each with its site.
    domains: BTreeMap<HostName, (At<&'d str>, Position)>,
}

impl<'d> Taken<'d> {
    fn label(
        &mut self,
        name: &SiteName,
        written: &At<&'d str>,
        config: &Config,
        reading: &mut Reading<'_>,
    ) -> bool {
        let at = written.at;
        if let Some(reason) = config.reserved.reason(name) {
            reading.error(at, reason);
            return false;
        }
        if let Some(first) = self.labels.get(name.as_str()) {
            reading.error(
                at,
                format!(
                    "\"{name}\" is taken by line {}: a name belongs to one site",
                    first.line
                ),
            );
            return false;
        }
        // Most names stand in the file as they are kept.
        let key = if written.value == name.as_str() {
            Cow::Borrowed(written.value)
        } else {
            Cow::Owned(name.as_str().to_owned())
        };
        self.labels.insert(key, reading.position(at));
        true
    }

    /// Foreign domains: the site, the domain, and where it is written.
    pub(super) fn domains(&self) -> impl Iterator<Item = (&str, &HostName, usize)> {
        self.domains
            .iter()
            .map(|(domain, (site, _))| (site.value, domain, site.at))
    }
}

/// The sites, each checked against the names taken before it.
pub(super) fn read<'d>(
    root: &Table<'d>,
    base: &Path,
    config: &Config,
    taken: &mut Taken<'d>,
    reading: &mut Reading<'_>,
) -> Vec<Arc<Site>> {
    let mut sites = Vec::new();
    let tables = root.named_tables("sites", &[KEYS, container::KEYS].concat(), reading);
    // Names come before aliases, so that a conflict is told at the alias.
    let named: Vec<Option<SiteName>> = tables
        .iter()
        .map(|(key, _)| {
            SiteName::parse(key.value)
                .map_err(|error| reading.error(key.at, error.to_string()))
                .ok()
                .filter(|name| taken.label(name, key, config, reading))
        })
        .collect();
    sites.reserve(tables.len());
    for ((key, table), name) in tables.into_iter().zip(named) {
        let Some(name) = name else { continue };
        let position = reading.position(key.at);
        let backend = backend(&table, key.at, base, reading);
        let aliases = names(&table, "aliases", SiteName::parse, reading)
            .into_iter()
            .filter(|(alias, written)| taken.label(alias, written, config, reading))
            .map(|(alias, _)| alias)
            .collect();
        let mut domains = Vec::new();
        for (domain, At { at, .. }) in names(&table, "domains", HostName::parse, reading) {
            if let Some((_, first)) = taken.domains.get(&domain) {
                reading.error(
                    at,
                    format!(
                        "\"{domain}\" is taken by line {}: a name belongs to one site",
                        first.line
                    ),
                );
                continue;
            }
            taken.domains.insert(
                domain.clone(),
                (
                    At {
                        value: key.value,
                        at,
                    },
                    reading.position(at),
                ),
            );
            domains.push(domain);
        }
        let https = table
            .string("https", reading)
            .and_then(|written| match written.value {
                "redirect" => Some(HttpsPolicy::Redirect),
                "both" => Some(HttpsPolicy::Both),
                other => {
                    reading.error(
                        written.at,
                        format!("`https` must be \"redirect\" or \"both\", found \"{other}\""),
                    );
                    None
                }
            });
        let text = |key: &str, reading: &mut Reading<'_>| {
            let written = table.string(key, reading)?;
            let fits = !written.value.is_empty()
                && written.value.len() <= 255
                && !written.value.chars().any(char::is_control);
            if !fits {
                reading.error(
                    written.at,
                    format!("`{key}` must have 1 to 255 octets and no control characters"),
                );
            }
            fits.then(|| Box::<str>::from(written.value))
        };
        let owner = text("owner", reading);
        let group = text("group", reading);
        if let (Backend::Container(_), Some(name)) = (&backend, &group)
            && config.groups.of(Some(name)).0 != &**name
        {
            reading.warning(
                key.at,
                format!("there is no [groups.{name}] in nuage.toml: the limits are those of [groups.default]"),
            );
        }
        sites.push(Arc::new(Site {
            name,
            owner,
            group,
            aliases,
            domains: domains.into(),
            backend,
            https,
            position,
        }));
    }
    sites
}

fn names<'d, N>(
    table: &Table<'d>,
    key: &str,
    parse: impl Fn(&str) -> Result<N, NameError>,
    reading: &mut Reading<'_>,
) -> Vec<(N, At<&'d str>)> {
    let mut names = Vec::new();
    for written in table.strings(key, reading) {
        match parse(written.value) {
            Ok(name) => names.push((name, written)),
            Err(error) => reading.error(written.at, error.to_string()),
        }
    }
    names
}

fn backend(table: &Table<'_>, site_at: usize, base: &Path, reading: &mut Reading<'_>) -> Backend {
    let kinds: Vec<&str> = ["static", "upstream", "redirect"]
        .into_iter()
        .filter(|key| table.has(key))
        .collect();
    if let Some(kind) = kinds.first() {
        for key in container::KEYS.iter().filter(|key| table.has(key)) {
            reading.error(
                site_at,
                format!("`{key}` is for containers, and this site is `{kind}`: keep one of them"),
            );
        }
    }
    if kinds.len() > 1 {
        reading.error(
            site_at,
            format!("a site has one backend: keep one of {}", kinds.join(", ")),
        );
    }
    match kinds.first() {
        Some(&"static") => table.string("static", reading).map(|written| {
            let folder = paths::join(base, written.value);
            if !folder.is_dir() {
                reading.warning(
                    written.at,
                    format!(
                        "there is no folder {}: the site answers 404 until there is",
                        folder.display()
                    ),
                );
            }
            Backend::Static(folder.into())
        }),
        Some(&"upstream") => table.string("upstream", reading).and_then(|written| {
            Upstream::parse(written.value)
                .map_err(|error| reading.error(written.at, error))
                .ok()
                .map(|upstream| Backend::Upstream(upstream.into()))
        }),
        Some(&"redirect") => {
            table
                .string("redirect", reading)
                .and_then(|written| match Url::parse(written.value) {
                    Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
                        Some(Backend::Redirect(url.into()))
                    }
                    _ => {
                        reading.error(
                            written.at,
                            format!(
                                "`redirect` must be an http or https URL, found \"{}\"",
                                written.value
                            ),
                        );
                        None
                    }
                })
        }
        _ => None,
    }
    .unwrap_or_else(|| Backend::Container(container(table, base, reading)))
}

/// What the site says of its container, if anything.
fn container(table: &Table<'_>, base: &Path, reading: &mut Reading<'_>) -> Option<Box<Container>> {
    if !container::KEYS.iter().any(|key| table.has(key)) {
        return None;
    }
    let variables = |key: &str, reading: &mut Reading<'_>| {
        let mut written = table.map(key, reading);
        written.retain(|(name, value)| {
            let right = container::is_variable(name.value)
                && value.value.len() <= 32_768
                && !value.value.contains('\0');
            if !right {
                reading.error(
                    name.at,
                    format!("\"{}\" can't be an environment variable: write letters, digits and _, and a value without NUL", name.value),
                );
            }
            right
        });
        written
    };
    let environment = variables("environment", reading)
        .into_iter()
        .map(|(name, value)| (name.value.to_owned(), value.value.to_owned()))
        .collect();
    let secrets = variables("secrets", reading)
        .into_iter()
        .map(|(name, file)| (name.value.to_owned(), paths::join(base, file.value)))
        .collect();
    Some(Box::new(Container {
        image: group::image(table, reading),
        command: table
            .strings("command", reading)
            .into_iter()
            .map(|word| word.value.to_owned())
            .collect(),
        port: table
            .integer("port", 1..=65_535, reading)
            .and_then(|port| u16::try_from(port).ok()),
        environment,
        secrets,
        database: table.boolean("database", reading).unwrap_or(false),
    }))
}

/// Labels of sites and aliases, each with its site's index, as far as they are wanted.
pub(super) fn labels(sites: &[Arc<Site>], wanted: impl Fn(&[u8]) -> bool) -> Labels {
    let named = (0..).zip(sites).flat_map(|(index, site)| {
        let names = std::iter::once(&site.name).chain(&site.aliases);
        names.map(move |name| (name, index))
    });
    Labels::new(named.filter(|(name, _)| wanted(name.as_str().as_bytes())))
}
