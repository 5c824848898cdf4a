//! The `[sites]` of a zone file.

use std::{fmt::Display, path::Path, sync::Arc};

use url::Url;

use crate::{
    config::Config,
    container::{self, Container},
    group,
    labels::Labels,
    name::{HostName, NAME_OCTETS, NameError, SiteName},
    paths,
    problem::Position,
    site::{Backend, HttpsPolicy, Site, Upstream},
    table::{Reading, Table},
};

/// The keys of a site, beside those that speak of its container.
const KEYS: &[&str] = &[
    "owner", "group", "aliases", "domains", "static", "upstream", "redirect", "https",
];

/// The sites of a file, gathered piece by piece.
#[derive(Default)]
pub(super) struct Sites {
    sites: Vec<Arc<Site>>,
    /// Every alias, and where it is written.
    aliases: Vec<(SiteName, Position)>,
    /// Every foreign domain, and where it is written.
    domains: Vec<(HostName, Position)>,
}

impl Sites {
    /// Reads those of one piece.
    pub(super) fn read(
        &mut self,
        root: &Table<'_>,
        base: &Path,
        config: &Config,
        reading: &mut Reading<'_>,
    ) {
        let tables = root.named_tables("sites", &[KEYS, container::KEYS].concat(), reading);
        self.sites.reserve(tables.len());
        for (key, table) in tables {
            let name = SiteName::parse(key.value)
                .map_err(|error| reading.error(key.at, error.to_string()))
                .ok()
                .filter(|name| is_free(name, key.at, config, reading));
            if let Some(name) = name {
                let site = self.site(name, key.at, &table, base, config, reading);
                self.sites.push(Arc::new(site));
            }
        }
    }

    /// All of them in the order of their names. A name belongs to one site, and a domain in `zone` is
    /// none of its sites'.
    pub(super) fn complete(
        mut self,
        zone: Option<&HostName>,
        reading: &mut Reading<'_>,
    ) -> Vec<Arc<Site>> {
        self.sites
            .sort_unstable_by(|a, b| (&a.name, a.position).cmp(&(&b.name, b.position)));
        for same in self.sites.chunk_by(|a, b| a.name == b.name) {
            for site in &same[1..] {
                taken(&site.name, same[0].position, site.position, reading);
            }
        }
        if let Some(zone) = zone {
            let sites = self.sites.iter().map(|site| (&site.name, site.position));
            let aliases = self.aliases.iter().map(|(name, at)| (name, *at));
            for (name, at) in sites.chain(aliases) {
                if name.as_str().len() + 1 + zone.as_str().len() > NAME_OCTETS {
                    reading.error_at(
                        at,
                        format!("{name}.{zone} is longer than {NAME_OCTETS} characters: choose a shorter name"),
                    );
                }
            }
        }
        // A conflict of a name and an alias is told at the alias, wherever the two stand.
        self.aliases.sort_unstable();
        for same in self.aliases.chunk_by(|a, b| a.0 == b.0) {
            let (alias, first) = &same[0];
            let site = self.sites.binary_search_by(|site| site.name.cmp(alias));
            let (first, rest) = match site.ok().and_then(|at| self.sites.get(at)) {
                Some(site) => (site.position, same),
                None => (*first, &same[1..]),
            };
            for (_, again) in rest {
                taken(alias, first, *again, reading);
            }
        }
        self.domains.sort_unstable();
        for same in self.domains.chunk_by(|a, b| a.0 == b.0) {
            let (domain, first) = &same[0];
            if zone.is_some_and(|zone| domain == zone || domain.below(zone).is_some()) {
                reading.error_at(
                    *first,
                    format!("\"{domain}\" lies inside this zone: make it an alias"),
                );
            }
            for (_, again) in &same[1..] {
                taken(domain, *first, *again, reading);
            }
        }
        self.sites
    }

    fn site(
        &mut self,
        name: SiteName,
        at: usize,
        table: &Table<'_>,
        base: &Path,
        config: &Config,
        reading: &mut Reading<'_>,
    ) -> Site {
        let backend = backend(table, at, base, reading);
        let mut aliases = Vec::new();
        for (alias, written) in names(table, "aliases", SiteName::parse, reading) {
            if is_free(&alias, written, config, reading) {
                let position = reading.position(written);
                self.aliases.push((alias.clone(), position));
                aliases.push(alias);
            }
        }
        let mut domains = Vec::new();
        for (domain, written) in names(table, "domains", HostName::parse, reading) {
            let position = reading.position(written);
            self.domains.push((domain.clone(), position));
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
                at,
                format!("there is no [groups.{name}] in nuage.toml: the limits are those of [groups.default]"),
            );
        }
        Site {
            name,
            owner,
            group,
            aliases: aliases.into(),
            domains: domains.into(),
            backend,
            https,
            position: reading.position(at),
        }
    }
}

/// Whether nothing is reserved that has this name; told if it is.
fn is_free(name: &SiteName, at: usize, config: &Config, reading: &mut Reading<'_>) -> bool {
    let reason = config.reserved.reason(name);
    let free = reason.is_none();
    if let Some(reason) = reason {
        reading.error(at, reason);
    }
    free
}

fn taken(name: &impl Display, first: Position, again: Position, reading: &mut Reading<'_>) {
    let line = first.line;
    reading.error_at(
        again,
        format!("\"{name}\" is taken by line {line}: a name belongs to one site"),
    );
}

/// The names of a list, each with its place.
fn names<N>(
    table: &Table<'_>,
    key: &str,
    parse: impl Fn(&str) -> Result<N, NameError>,
    reading: &mut Reading<'_>,
) -> Vec<(N, usize)> {
    let mut names = Vec::new();
    for written in table.strings(key, reading) {
        match parse(written.value) {
            Ok(name) => names.push((name, written.at)),
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
