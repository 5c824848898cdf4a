//! The files of a folder as one declaration: what changed is read, what is broken keeps its last
//! good content, and the whole is compiled anew.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use crate::{
    config::Config,
    dnssec::{Dnssec, Signers, Store},
    problem::{Problem, Severity},
    registry::{self, Registry},
    serial::Serials,
    served::Served,
    stamp::Stamp,
    zone::{self, Zone},
};

/// Largest zone file read: 100,000 sites take about 3 MiB.
const FILE_BYTES: u64 = 64 << 20;

/// One zone file.
#[derive(Debug, Default)]
struct Declaration {
    stamp: Option<Stamp>,
    /// What the file holds now, when it is right.
    candidate: Option<Arc<Zone>>,
    /// What is served.
    good: Option<Arc<Zone>>,
    problems: Vec<Problem>,
}

/// `nuage.toml` and the folder of zone files, with the registry they make.
#[derive(Debug)]
pub struct Declared {
    path: PathBuf,
    config: Config,
    files: BTreeMap<PathBuf, Declaration>,
    /// Problems of the folder and between zones.
    common: Vec<Problem>,
    /// Problems of `nuage.toml` as it is now, while an older content of it is in force.
    refused: Vec<Problem>,
    serials: Serials,
    signers: Signers,
    registry: Arc<Registry>,
    /// The configuration the registry was compiled with.
    compiled: Option<Config>,
}

impl Declared {
    /// Reads everything once. What is wrong is in [`Declared::problems`].
    ///
    /// # Errors
    /// The problems of `nuage.toml` itself, without which there is nothing to read.
    pub fn open(path: &Path) -> Result<Self, Vec<Problem>> {
        Self::opened(path, |_| Signers::default())
    }

    /// Reads everything once, for a server of DNS: signed zones are signed, and keys made for those
    /// that have none.
    ///
    /// # Errors
    /// As [`Declared::open`].
    pub fn open_to_serve(path: &Path) -> Result<Self, Vec<Problem>> {
        Self::opened(path, |config| Signers::of(&config.edge, true))
    }

    /// Reads everything once, and signs what there are keys for.
    ///
    /// # Errors
    /// As [`Declared::open`].
    pub fn open_signed(path: &Path) -> Result<Self, Vec<Problem>> {
        Self::opened(path, |config| Signers::of(&config.edge, false))
    }

    fn opened(path: &Path, signers: impl Fn(&Config) -> Signers) -> Result<Self, Vec<Problem>> {
        let config = Config::load(path).map_err(|broken| {
            let mut problems = broken.problems;
            // What can be said of the zone files is said at once, not after the next try.
            if let Some(config) = broken.best_effort {
                problems.extend(Self::of(path, *config, Signers::default()).problems());
            }
            problems
        })?;
        let signers = signers(&config);
        Ok(Self::of(path, config, signers))
    }

    fn of(path: &Path, config: Config, signers: Signers) -> Self {
        let mut declared = Self {
            signers,
            serials: Serials::load(&config.edge),
            registry: Arc::new(Registry::empty(config.addresses)),
            compiled: None,
            path: path.to_owned(),
            config,
            files: BTreeMap::new(),
            common: Vec::new(),
            refused: Vec::new(),
        };
        declared.refresh();
        declared
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The registry of the last good contents.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Everything wrong now, errors and warnings, by file and place.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self
            .files
            .values()
            .flat_map(|file| file.problems.clone())
            .collect();
        problems.extend(self.common.iter().chain(&self.refused).cloned());
        problems.extend(registry::left_out(&self.registry, &self.config, &self.path));
        problems.extend(registry::warnings(&self.registry, &self.path));
        let keys = Store::open(&self.config.edge);
        for (served, _) in self.dnssec().filter(|(_, dnssec)| dnssec.is_none()) {
            let apex = &served.content.apex;
            if let Some(warning) = keys.warning_when_unsigned(&apex.into()) {
                let origin = apex.to_string();
                let file = self.file_of(origin.trim_end_matches('.'));
                problems.push(Problem {
                    severity: Severity::Warning,
                    ..Problem::whole_file(file.unwrap_or(&self.path), warning)
                });
            }
        }
        for (origin, trouble) in &self.signers.troubles {
            let file = self.file_of(origin).unwrap_or(&self.path);
            problems.push(Problem::whole_file(file, format!("{origin} {trouble}")));
        }
        problems.sort_by(|a, b| (&a.file, a.position).cmp(&(&b.file, b.position)));
        problems
    }

    /// Reads `nuage.toml` again, and every zone file with it; whether there is a new registry. A broken
    /// `nuage.toml` leaves the one in force as it is.
    pub fn reload(&mut self) -> bool {
        match Config::load(&self.path) {
            Ok(config) => {
                for section in config.restart_needed(&self.config) {
                    tracing::warn!(
                        section,
                        "a change of this section takes effect at the next start"
                    );
                }
                self.refused.clear();
                self.config = config;
                for file in self.files.values_mut() {
                    file.stamp = None;
                }
            }
            Err(broken) => self.refused = broken.problems,
        }
        self.refresh()
    }

    /// Reads what changed in the folder; whether there is a new registry.
    pub fn refresh(&mut self) -> bool {
        self.common.clear();
        match zone_files(&self.config.zones) {
            Ok(found) => self.read(&found),
            Err(problem) => self.common.push(problem),
        }
        let mut chosen = self.choose();
        chosen.sort_unstable_by(|a, b| a.origin.cmp(&b.origin));
        let served = self.registry.zones.iter();
        let same = self.compiled.as_ref() == Some(&self.config)
            && chosen.len() == self.registry.zones.len()
            && chosen
                .iter()
                .zip(served)
                .all(|(new, old)| Arc::ptr_eq(new, old));
        if same && !self.wants_signing() {
            return false;
        }
        self.signers.troubles.clear();
        self.registry = Arc::new(registry::compile(
            &self.config,
            chosen,
            &self.registry,
            &mut self.signers,
            &mut self.serials,
            SystemTime::now(),
        ));
        self.compiled = Some(self.config.clone());
        true
    }

    /// Each zone as it is served, with how it is to be signed.
    fn dnssec(&self) -> impl Iterator<Item = (&Arc<Served>, Option<Dnssec>)> {
        let reverse = self.config.reverse.dnssec.then(Dnssec::default);
        let forward = self.registry.zones.iter().map(|zone| zone.dnssec.clone());
        // Forward zones come first.
        self.registry
            .served
            .iter()
            .zip(forward.chain(std::iter::repeat(reverse)))
    }

    /// Whether signatures end soon, or keys have changed.
    fn wants_signing(&self) -> bool {
        let now = SystemTime::now();
        self.signers.signs()
            && self.dnssec().any(|(served, dnssec)| {
                dnssec.is_some_and(|dnssec| self.signers.wants(served, &dnssec, now))
            })
    }

    /// Keeps the serials handed out; call before publishing.
    ///
    /// # Errors
    /// The state folder can't be written.
    pub fn save_serials(&mut self) -> io::Result<()> {
        self.serials.save()
    }

    /// Leaves the serials' file alone: another process answers DNS.
    pub fn forget_serials(&mut self) {
        self.serials.forget_file();
    }

    /// What would be wrong if the file at `path` held `text`: its own problems, and conflicts with
    /// the zones that are served.
    pub fn rehearse(&self, path: &Path, text: &str) -> Vec<Problem> {
        let parsed = zone::parse(path, text, &self.config);
        let mut problems = parsed.problems;
        if let Some(zone) = parsed.zone {
            let others = self.files.iter().filter(|(other, _)| *other != path);
            let mut zones: Vec<Arc<Zone>> =
                others.filter_map(|(_, file)| file.good.clone()).collect();
            zones.push(Arc::new(zone));
            problems.extend(
                registry::conflicts(&zones)
                    .into_iter()
                    .map(|conflict| conflict.problem),
            );
        }
        problems
    }

    /// The file that declares a zone, or that is named after it while it is broken.
    pub fn file_of(&self, origin: &str) -> Option<&Path> {
        let holds = |file: &Declaration| {
            let zone = file.candidate.as_ref().or(file.good.as_ref());
            zone.map(|zone| zone.origin.as_str() == origin)
        };
        let named = |path: &Path| path.file_stem().is_some_and(|stem| stem == origin);
        let mut files = self.files.iter();
        files
            .find(|(path, file)| holds(file).unwrap_or_else(|| named(path)))
            .map(|(path, _)| path.as_path())
    }

    /// Zone files with what they hold, when that is right.
    pub fn files(&self) -> impl Iterator<Item = (&Path, Option<&Arc<Zone>>)> {
        self.files
            .iter()
            .map(|(path, file)| (path.as_path(), file.candidate.as_ref()))
    }

    fn read(&mut self, found: &[(PathBuf, Result<Stamp, Problem>)]) {
        self.files
            .retain(|path, _| found.binary_search_by(|(other, _)| other.cmp(path)).is_ok());
        for (path, stamp) in found {
            let file = self.files.entry(path.clone()).or_default();
            let stamp = match stamp {
                Ok(stamp) => stamp,
                Err(problem) => {
                    (file.stamp, file.candidate, file.problems) =
                        (None, None, vec![problem.clone()]);
                    continue;
                }
            };
            if file.stamp == Some(*stamp) {
                continue;
            }
            file.stamp = Some(*stamp);
            (file.candidate, file.problems) = match fs::read_to_string(path) {
                Ok(text) => {
                    let parsed = zone::parse(path, &text, &self.config);
                    (parsed.zone.map(Arc::new), parsed.problems)
                }
                Err(error) => (None, vec![Problem::whole_file(path, unreadable(&error))]),
            };
            // The same content under a new stamp is no change; records compare equal whatever their TTL,
            // digests don't.
            if let (Some(new), Some(good)) = (&file.candidate, &file.good)
                && new.digest == good.digest
                && new == good
            {
                file.candidate = file.good.clone();
            }
        }
    }

    /// The new content of each zone where it is right, else the last good one. Of two zones in
    /// conflict the one that changed steps back.
    fn choose(&mut self) -> Vec<Arc<Zone>> {
        let mut chosen: BTreeMap<&PathBuf, Arc<Zone>> = self
            .files
            .iter()
            .filter_map(|(path, file)| {
                Some((path, file.candidate.clone().or_else(|| file.good.clone())?))
            })
            .collect();
        let changed = |path: &PathBuf, zone: &Arc<Zone>| {
            let good = self.files.get(path).and_then(|file| file.good.as_ref());
            good.is_none_or(|good| !Arc::ptr_eq(good, zone))
        };
        loop {
            // What is served comes first, so that a conflict is told at what changed.
            let mut zones: Vec<(bool, Arc<Zone>)> = chosen
                .iter()
                .map(|(path, zone)| (changed(path, zone), Arc::clone(zone)))
                .collect();
            zones.sort_by_key(|(changed, _)| *changed);
            let zones: Vec<Arc<Zone>> = zones.into_iter().map(|(_, zone)| zone).collect();
            let conflicts = registry::conflicts(&zones);
            if conflicts.is_empty() {
                break;
            }
            for conflict in conflicts {
                for (path, file) in &self.files {
                    let steps_back = chosen.get(path).is_some_and(|zone| {
                        conflict.origins.contains(&zone.origin) && changed(path, zone)
                    });
                    if steps_back {
                        match &file.good {
                            Some(good) => chosen.insert(path, Arc::clone(good)),
                            None => chosen.remove(path),
                        };
                    }
                }
                self.common.push(conflict.problem);
            }
        }
        let chosen: Vec<(PathBuf, Arc<Zone>)> = chosen
            .into_iter()
            .map(|(path, zone)| (path.clone(), zone))
            .collect();
        for (path, zone) in &chosen {
            if let Some(file) = self.files.get_mut(path) {
                file.good = Some(Arc::clone(zone));
            }
        }
        chosen.into_iter().map(|(_, zone)| zone).collect()
    }
}

/// The zone files of a folder in order, each with its stamp or what keeps it from being read.
#[expect(
    clippy::type_complexity,
    reason = "a list of paths and results, used once"
)]
fn zone_files(folder: &Path) -> Result<Vec<(PathBuf, Result<Stamp, Problem>)>, Problem> {
    let refuse = |error: io::Error| {
        let cure = match error.kind() {
            io::ErrorKind::NotFound => {
                "there is no such folder: make it, or name another as [paths] zones in nuage.toml"
                    .to_owned()
            }
            _ => format!("can't list the zone files: {error}"),
        };
        Problem::whole_file(folder, cure)
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let stamp = match fs::metadata(&path) {
            Ok(meta) if meta.len() > FILE_BYTES => {
                Err(format!("the file is larger than {} MiB", FILE_BYTES >> 20))
            }
            Ok(meta) if meta.is_file() => Ok(Stamp::from(&meta)),
            Ok(_) => continue,
            // A file that goes between the listing and here is a file that is not there; a link whose
            // target is gone is a problem.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => continue,
            Err(error) => Err(unreadable(&error)),
        };
        let stamp = stamp.map_err(|message| Problem::whole_file(&path, message));
        files.push((path, stamp));
    }
    files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(files)
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::InvalidData => "the file is not UTF-8 text".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "the file can't be read: give the user nuage runs as permission to read it".to_owned()
        }
        _ => format!("the file can't be read: {error}"),
    }
}
