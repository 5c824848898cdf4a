//! `nuage site`: naming, changing and listing sites by editing their zone file.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use common::{
    Backend, Config, Declared, HttpsPolicy, Problem, Route, Site, SiteName, Zone,
    durable::{self, Access},
    edit::{self, EditError, SiteChange},
};
use serde_json::{Value, json};

use super::{check::refuse, complain_of_errors, open, running};
use crate::{
    args::{Change, Named, SiteCommand},
    control::{self, Client, ControlError},
    output::{Done, Output, count, table},
};

/// Runs a command on sites.
pub(crate) fn run(command: SiteCommand, config: &Path, output: &Output) -> anyhow::Result<Done> {
    match command {
        SiteCommand::List { zone } => list(&open(config)?, zone.as_deref(), output),
        SiteCommand::Show { site } => show(&open(config)?, &site, output),
        SiteCommand::Add { site, change } => {
            let (wanted, dry_run) = (wanted(&change, false), change.dry_run);
            write(config, &site, dry_run, output, "added", |text, name| {
                edit::add(text, name, &wanted)
            })
        }
        SiteCommand::Set {
            site,
            change,
            container,
        } => {
            let (wanted, dry_run) = (wanted(&change, container), change.dry_run);
            if wanted == SiteChange::default() {
                bail!(
                    "nothing to change: name what to set, such as --owner or --upstream (see `nuage site set --help`)"
                );
            }
            write(config, &site, dry_run, output, "changed", |text, name| {
                edit::set(text, name, &wanted)
            })
        }
        SiteCommand::Remove { site, dry_run } => {
            write(config, &site, dry_run, output, "removed", edit::remove)
        }
        SiteCommand::Wake { site } => at_control(config, &site)?.wake("wake", output),
        SiteCommand::Restart { site } => at_control(config, &site)?.wake("restart", output),
        SiteCommand::Sleep { site } => at_control(config, &site)?.sleep(output),
        SiteCommand::Logs {
            site,
            lines,
            follow,
        } => at_control(config, &site)?.logs(lines, follow),
        SiteCommand::Exec { site, command } => at_control(config, &site)?.exec(&command),
        SiteCommand::Backup { site, output: to } => {
            at_control(config, &site)?.backup(to.as_deref(), output)
        }
        SiteCommand::Restore { site, file, bin: _ } => {
            at_control(config, &site)?.restore(file.as_deref(), output)
        }
        SiteCommand::Stats { name, zone } => match name {
            Some(name) => {
                let site = at_control(config, &Named { name, zone })?;
                running::stats(&site.client, Some(&site.name), output)
            }
            None => running::stats(&client(&Config::load(config)?), None, output),
        },
    }
}

fn client(config: &Config) -> Client {
    Client::new(&config.containers.socket)
}

/// A declared container site, to be asked for at control.
fn at_control(config: &Path, named: &Named) -> anyhow::Result<running::Site> {
    let declared = open(config)?;
    let place = Place::of(&declared, named)?;
    let site = declared
        .registry()
        .zone(&place.origin)
        .and_then(|zone| zone.site(place.name.as_str()))
        .ok_or_else(|| EditError::Missing(place.name.clone()))?;
    if !matches!(site.backend, Backend::Container(_)) {
        bail!(
            "{} is no container but `{}`: there is nothing to run",
            place.name,
            site.backend.kind()
        );
    }
    Ok(running::Site {
        client: client(declared.config()),
        // The site's own name, also where an alias was given.
        name: format!("{}.{}", site.name, place.origin),
    })
}

/// The URLs of sites as visitors type them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Urls {
    http: Option<u16>,
    https: Option<u16>,
}

impl Urls {
    pub(crate) fn new(
        http: &[SocketAddr],
        https: &[SocketAddr],
        public_https: Option<u16>,
    ) -> Self {
        Self {
            http: http.first().map(SocketAddr::port),
            https: public_https.or(https.first().map(SocketAddr::port)),
        }
    }

    fn of(config: &Config) -> Self {
        Self::new(&config.http, &config.https.listen, config.https.port)
    }

    /// Every URL that answers, plain HTTP only where it does not redirect.
    fn all(&self, zone: &Arc<Zone>, site: &Arc<Site>) -> Vec<String> {
        let host = zone.origin.child(&site.name);
        let at = |scheme: &str, port: u16, usual: u16| {
            if port == usual {
                format!("{scheme}://{host}/")
            } else {
                format!("{scheme}://{host}:{port}/")
            }
        };
        let plain = Route {
            zone,
            site,
            foreign: false,
        }
        .https()
            == HttpsPolicy::Both;
        let http = self.http.filter(|_| plain).map(|port| at("http", port, 80));
        let https = self.https.map(|port| at("https", port, 443));
        http.into_iter().chain(https).collect()
    }

    /// The URL that opens without a warning.
    pub(crate) fn preferred(&self, zone: &Arc<Zone>, site: &Arc<Site>) -> String {
        self.all(zone, site).into_iter().next().unwrap_or_default()
    }
}

fn list(declared: &Declared, zone: Option<&str>, output: &Output) -> anyhow::Result<Done> {
    complain_of_errors(declared)?;
    let registry = declared.registry();
    if let Some(zone) = zone
        && registry.zone(zone).is_none()
    {
        bail!("there is no zone {zone}; there are {}", origins(declared));
    }
    let urls = Urls::of(declared.config());
    let zones = registry
        .zones
        .iter()
        .filter(|each| zone.is_none_or(|wanted| each.origin.as_str() == wanted));
    let sites: Vec<(&Arc<Zone>, &Arc<Site>)> = zones
        .flat_map(|zone| zone.sites.iter().map(move |site| (zone, site)))
        .collect();
    let values: Vec<Value> = sites
        .iter()
        .map(|(zone, site)| describe(declared, zone, site, &urls))
        .collect();
    output.print(&values, || {
        if sites.is_empty() {
            return "no sites yet: name one with `nuage site add NAME`\n".to_owned();
        }
        let mut rows = vec![
            ["SITE", "URL", "BACKEND", "TARGET", "OWNER", "GROUP"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(sites.iter().map(|(zone, site)| {
            let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
            let target = Some(site.backend.target()).filter(|target| !target.is_empty());
            vec![
                site.name.to_string(),
                urls.preferred(zone, site),
                site.backend.kind().to_owned(),
                text(target.as_deref()),
                text(site.owner.as_deref()),
                text(site.group.as_deref()),
            ]
        }));
        table("", &rows)
    })?;
    Ok(Done::Well)
}

fn show(declared: &Declared, named: &Named, output: &Output) -> anyhow::Result<Done> {
    complain_of_errors(declared)?;
    let place = Place::of(declared, named)?;
    let zone = declared
        .registry()
        .zone(&place.origin)
        .ok_or_else(|| anyhow!("{} is not served while its file has errors", place.origin))?;
    let site = zone
        .site(place.name.as_str())
        .ok_or_else(|| EditError::Missing(place.name.clone()))?;
    let urls = Urls::of(declared.config());
    output.print(&describe(declared, zone, site, &urls), || {
        let list = |names: Vec<String>| names.join(" ");
        let mut rows = vec![
            ("site", zone.origin.child(&site.name).to_string()),
            ("urls", list(urls.all(zone, site))),
            (
                "backend",
                format!("{} {}", site.backend.kind(), site.backend.target()),
            ),
            (
                "aliases",
                list(
                    site.aliases
                        .iter()
                        .map(|alias| zone.origin.child(alias).to_string())
                        .collect(),
                ),
            ),
            (
                "domains",
                list(site.domains.iter().map(ToString::to_string).collect()),
            ),
            (
                "owner",
                site.owner.as_deref().unwrap_or_default().to_owned(),
            ),
            (
                "group",
                site.group.as_deref().unwrap_or_default().to_owned(),
            ),
            (
                "files",
                files(declared, zone, site)
                    .map(|folder| folder.display().to_string())
                    .unwrap_or_default(),
            ),
            (
                "declared",
                format!("{}:{}", zone.file.display(), site.position.line),
            ),
        ];
        rows.retain(|(_, value)| !value.is_empty());
        table(
            "",
            &rows
                .into_iter()
                .map(|(key, value)| vec![key.to_owned(), value])
                .collect::<Vec<_>>(),
        )
    })?;
    Ok(Done::Well)
}

fn describe(declared: &Declared, zone: &Arc<Zone>, site: &Arc<Site>, urls: &Urls) -> Value {
    json!({
        "name": site.name,
        "zone": zone.origin,
        "urls": urls.all(zone, site),
        "backend": site.backend.kind(),
        "target": site.backend.target(),
        "aliases": site.aliases,
        "domains": site.domains,
        "owner": site.owner,
        "group": site.group,
        "files": files(declared, zone, site),
        "https": Route { zone, site, foreign: false }.https(),
        "file": zone.file,
        "line": site.position.line,
    })
}

/// The folder of a container site's files.
fn files(declared: &Declared, zone: &Zone, site: &Site) -> Option<PathBuf> {
    matches!(site.backend, Backend::Container(_)).then(|| {
        containers::files_of(
            &declared.config().state,
            zone.origin.child(&site.name).as_str(),
        )
    })
}

fn wanted(change: &Change, container: bool) -> SiteChange {
    let backend = &change.backend;
    let target = if let Some(url) = &backend.upstream {
        Some(("upstream", url.clone()))
    } else if let Some(folder) = &backend.folder {
        // The zone file lies elsewhere: a path relative to the shell would change its meaning there.
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        Some(("static", absolute.display().to_string()))
    } else {
        backend.redirect.clone().map(|url| ("redirect", url))
    };
    let given = |list: &Vec<String>| {
        (!list.is_empty()).then(|| {
            list.iter()
                .filter(|name| !name.is_empty())
                .cloned()
                .collect()
        })
    };
    SiteChange {
        backend: if container {
            Some(None)
        } else {
            target.map(Some)
        },
        aliases: given(&change.aliases),
        domains: given(&change.domains),
        group: change.group.clone(),
        owner: change.owner.clone(),
        https: change.https.clone(),
        image: change.image.clone(),
        database: change.database.then_some(true),
    }
}

/// A site's name, its zone and the zone's file.
struct Place {
    name: SiteName,
    origin: String,
    file: PathBuf,
}

impl Place {
    fn of(declared: &Declared, named: &Named) -> anyhow::Result<Self> {
        let mut zone = named
            .zone
            .clone()
            .map(|zone| zone.trim_end_matches('.').to_ascii_lowercase());
        let mut label = named.name.as_str();
        // A full name brings its zone.
        if let Some((first, rest)) = label.split_once('.') {
            zone = zone.or_else(|| Some(rest.trim_end_matches('.').to_ascii_lowercase()));
            label = first;
        }
        let name = SiteName::parse(label)?;
        let origin = match zone {
            Some(origin) => origin,
            None => only_zone(declared)?,
        };
        let file = declared
            .file_of(&origin)
            .map(Path::to_owned)
            .ok_or_else(|| anyhow!("there is no zone {origin}; there are {}", origins(declared)))?;
        Ok(Self { name, origin, file })
    }
}

/// The zone that needs no naming: the only file there is.
fn only_zone(declared: &Declared) -> anyhow::Result<String> {
    match &*declared.files().collect::<Vec<_>>() {
        [(_, Some(zone))] => Ok(zone.origin.to_string()),
        [(file, None)] => bail!(
            "{} has errors: mend it first (see `nuage check`)",
            file.display()
        ),
        [] => bail!(
            "there is no zone yet: write a file {}/<origin>.toml first",
            declared.config().zones.display()
        ),
        _ => bail!(
            "there are several zones: name one with --zone, one of {}",
            origins(declared)
        ),
    }
}

fn origins(declared: &Declared) -> String {
    declared
        .files()
        .filter_map(|(_, zone)| zone)
        .map(|zone| zone.origin.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Edits a zone file: under a lock, rehearsed, and then in one rename.
fn write(
    config: &Path,
    named: &Named,
    dry_run: bool,
    output: &Output,
    verb: &str,
    change: impl FnOnce(&str, &SiteName) -> Result<String, EditError>,
) -> anyhow::Result<Done> {
    let folder = Config::load(config)?.zones;
    // Two edits at once would lose one: the second waits for the first.
    let lock = File::open(&folder)
        .with_context(|| format!("can't open the zones folder {}", folder.display()))?;
    lock.lock().context("can't lock the zones folder")?;

    let declared = open(config)?;
    let place = Place::of(&declared, named)?;
    let before = std::fs::read_to_string(&place.file)
        .with_context(|| format!("can't read {}", place.file.display()))?;
    let after = change(&before, &place.name)?;
    let problems: Vec<Problem> = declared
        .rehearse(&place.file, &after)
        .into_iter()
        .filter(Problem::is_error)
        .collect();
    if !problems.is_empty() {
        return refuse(
            &problems,
            output,
            &format!(
                "{} is unchanged: {} would be in it",
                place.file.display(),
                count(problems.len(), "error")
            ),
        );
    }
    if !dry_run {
        durable::replace(&place.file, after.as_bytes(), Access::Everybody)
            .with_context(|| format!("can't write {}", place.file.display()))?;
    }
    let seen = open(config)?;
    if !dry_run && verb == "added" {
        prepare(seen.config(), &format!("{}.{}", place.name, place.origin));
    }
    let urls = Urls::of(seen.config());
    let site = seen
        .registry()
        .zone(&place.origin)
        .and_then(|zone| Some((zone, zone.site(place.name.as_str())?)));
    let value = json!({
        "action": verb,
        "name": place.name,
        "zone": place.origin,
        "file": place.file,
        "dry_run": dry_run,
        "changes": differences(&before, &after),
        "site": site.map(|(zone, site)| describe(&seen, zone, site, &urls)),
    });
    output.print(&value, || {
        let (name, origin, file) = (&place.name, &place.origin, place.file.display());
        if dry_run {
            let lines: String = differences(&before, &after)
                .iter()
                .map(|line| format!("{line}\n"))
                .collect();
            return format!("would change {file}:\n{lines}");
        }
        let urls = site
            .map(|(zone, site)| urls.all(zone, site))
            .unwrap_or_default();
        let urls: String = urls.iter().map(|url| format!("  {url}\n")).collect();
        let files = site
            .and_then(|(zone, site)| files(&seen, zone, site))
            .map(|folder| format!("  files go to {}\n", folder.display()))
            .unwrap_or_default();
        format!("{verb} {name} in {origin} ({file})\n{urls}{files}")
    })?;
    Ok(Done::Well)
}

/// Has a running control make the folder of a new site, so that files can be put there before anybody
/// looks. Without control, or for a site that is no container, it is made later or never.
fn prepare(config: &Config, site: &str) {
    const LITTLE_WHILE: Duration = Duration::from_secs(3);
    let client = client(config);
    let asked = async {
        // Control reads the file a moment after it has landed.
        for _ in 0..20 {
            match client
                .act(&control::site(site, "prepare"), control::nothing())
                .await
            {
                Err(ControlError::Refused { reason, .. }) if reason == "unknown" => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                _ => return,
            }
        }
    };
    drop(running::block_on(async {
        tokio::time::timeout(LITTLE_WHILE, asked).await
    }));
}

/// Lines that go with `-`, lines that come with `+`: what lies between the common start and end.
fn differences(before: &str, after: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let start = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let end = old[start..]
        .iter()
        .rev()
        .zip(new[start..].iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let gone = old[start..old.len() - end]
        .iter()
        .map(|line| format!("-{line}"));
    gone.chain(
        new[start..new.len() - end]
            .iter()
            .map(|line| format!("+{line}")),
    )
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_the_lines_between_start_and_end() {
        assert_eq!(differences("a\nb\nc\n", "a\nx\nc\n"), ["-b", "+x"]);
        assert_eq!(differences("a\n", "a\nb\n"), ["+b"]);
        assert_eq!(differences("a\na\n", "a\n"), ["-a"]);
        assert!(differences("a\n", "a\n").is_empty());
    }
}
