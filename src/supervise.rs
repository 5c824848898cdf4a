//! `nuage serve`: reads, binds, starts, follows the files and the signals, drains.

use std::{
    fmt::Write as _,
    fs,
    io::{self, ErrorKind, IsTerminal},
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use common::{
    Config, Declared, Problem, Published,
    journal::Journal,
    metrics::{Computed, Family},
    watch::{self, Looked, Reload},
};
use prometheus::{
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, process_collector::ProcessCollector,
};
use proxy::{authority::LocalAuthority, certificates::Certificates};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};
use tracing_subscriber::EnvFilter;

use crate::{
    admin::{self, Health},
    allocator,
    args::Role,
    commands::{self, site::Urls},
    control::Client,
    doh::OverHttps,
    link::Link,
    listeners::Listeners,
    output::{self, Done, complain, count},
};

/// Sites named at the start; the rest is a number.
const SITES_SHOWN: usize = 20;
/// Listeners, logs, zone files and the like.
const OTHER_FILES: usize = 512;
/// What still works on files when all else has ended.
const LAST_WORK: Duration = Duration::from_secs(2);
/// DNS answers are moments; this is for those on their way out at the end.
const LAST_ANSWERS: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT.
pub(crate) fn serve(config: &Path, role: Role) -> anyhow::Result<Done> {
    let started = Instant::now();
    let fixed = allocator::fix_threshold();
    log_to_stderr()?;
    if let Err(error) = fixed {
        tracing::debug!(%error, "more memory than needed may stay with this process");
    }
    let opened = match role {
        Role::Control => Declared::open(config),
        Role::Edge | Role::All => Declared::open_to_serve(config),
    };
    let mut declared = match opened {
        Ok(declared) => declared,
        Err(problems) => return refuse(&problems),
    };
    let problems = commands::problems(&declared);
    if problems.iter().any(Problem::is_error) {
        return refuse(&problems);
    }
    complain(&problems)?;

    let mut settings = declared.config().clone();
    raise_open_files(&settings);
    if role == Role::Control {
        // What the edge listens on is the edge's.
        (settings.dns.listen, settings.http, settings.https.listen) = Default::default();
        settings.admin.clone_from(&settings.containers.admin);
    }
    let listeners = match Listeners::bind(&settings) {
        Ok(listeners) => listeners,
        Err(refused) => {
            let lines: String = refused
                .iter()
                .map(|error| format!("{}: {error}\n", config.display()))
                .collect();
            output::write_all(io::stderr(), &lines)?;
            return Ok(Done::WithProblems);
        }
    };
    let addresses = Bound::of(&listeners)?;
    // Redirects name the port that is really there, also when the kernel chose it.
    settings.https.port = settings
        .https
        .port
        .or(addresses.https.first().map(SocketAddr::port));
    let authority = match role {
        Role::Edge => LocalAuthority::open_for_edge(&edge_authority(&settings))?,
        Role::All | Role::Control => LocalAuthority::open(&settings.state)?,
    };
    if role == Role::Control {
        declared.forget_serials();
        let user = settings.containers.edge_user.as_deref();
        authority.delegate(&edge_authority(&settings))?;
        if let Some(user) = user {
            admit_edge(&settings, user)?;
        }
    } else if let Err(error) = declared.save_serials() {
        // A wrong folder is told of before anything depends on it; a full disk ends nothing.
        use ErrorKind::{NotFound, PermissionDenied};
        if matches!(error.kind(), PermissionDenied | NotFound) {
            return Err(error).with_context(|| {
                format!(
                    "can't write the edge's folder {}, [paths] edge in {} (by default below [paths] state)",
                    settings.edge.display(),
                    config.display()
                )
            });
        }
        tracing::error!(%error, "can't keep the zones' serials in the edge's folder; serving all the same");
    }

    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let done = runtime.block_on(run(
        role, declared, &settings, listeners, addresses, authority, started,
    ));
    // Zones being signed need not be waited for: what is on disk bears a cut at any point.
    runtime.shutdown_timeout(LAST_WORK);
    done
}

async fn run(
    role: Role,
    declared: Declared,
    config: &Config,
    listeners: Listeners,
    addresses: Bound,
    authority: LocalAuthority,
    started: Instant,
) -> anyhow::Result<Done> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;

    let published = Published::new(Arc::clone(declared.registry()));
    let metrics = Registry::new();
    let reloads = register(&metrics, &published)?;
    reloads.note(&declared.problems());
    let limits = dns::Limits {
        connections: config.dns.tcp_connections,
        connections_per_address: config.dns.tcp_connections_per_address,
        idle: config.dns.tcp_idle,
        rates: dns::Rates {
            answers: config.dns.rate_limit,
            slip: config.dns.rate_limit_slip,
            exempt: config.dns.rate_limit_exempt.clone(),
        },
        identity: config.dns.identity.clone(),
    };
    let mut control = if role != Role::Edge && config.containers.enabled {
        Some(containers::start(config, &published, &metrics)?)
    } else {
        None
    };
    // Control answers no DNS.
    let journal = (role != Role::Control)
        .then(|| Journal::open(&config.edge.join("journal"), declared.registry()));
    let mut edge = if let Some(journal) = &journal {
        let (sites, linked) = reach_sites(config, &published);
        let certificates = Certificates::new(authority, Arc::clone(&published));
        let dns = dns::start(
            listeners.dns,
            Arc::clone(&published),
            Arc::clone(journal),
            limits,
            Some(certificates.for_dns()),
            &metrics,
        )?;
        let web = proxy::start(
            listeners.web,
            config,
            &published,
            certificates,
            sites,
            Arc::new(OverHttps(dns.answerer())),
            &metrics,
        )?;
        Some((dns, web, linked))
    } else {
        None
    };
    let health = Health::new(metrics);
    let admin = admin::start(listeners.admin, &health)?;
    let (reload, requested) = mpsc::channel(1);
    let following = tokio::spawn(watch::follow(
        declared,
        Arc::clone(&published),
        journal,
        requested,
        move |looked| reloads.observe(looked),
    ));

    health.set_ready(true);
    output::write_all(
        io::stdout(),
        &greeting(role, &addresses, config, &published, started.elapsed()),
    )?;
    // Without systemd there is nobody to tell.
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).unwrap_or_default();

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // A full slot holds the same wish.
            _ = hang_up.recv() => reload.try_send(Reload).unwrap_or_default(),
            () = ends(edge.as_mut().map(|(dns, _, _)| dns.ended())) => {
                return Err(anyhow!("the DNS server ended unexpectedly"));
            }
            () = ends(control.as_mut().map(containers::Control::ended)) => {
                return Err(anyhow!("control ended unexpectedly"));
            }
        }
    }
    tracing::info!(at_most = ?config.limits.drain, "stopping: requests under way may finish");
    health.set_ready(false);
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).unwrap_or_default();
    following.abort();
    if let Some((dns, web, linked)) = edge {
        web.drain().await;
        tokio::time::sleep(LAST_ANSWERS).await;
        drop((dns, linked));
    }
    drop((control, admin));
    Ok(Done::Well)
}

/// Waits for the end of a part, where there is one.
async fn ends(part: Option<impl Future<Output = ()>>) {
    match part {
        Some(end) => end.await,
        None => std::future::pending().await,
    }
}

/// The way to container sites, followed until the set is dropped.
fn reach_sites(config: &Config, published: &Arc<Published>) -> (proxy::Sites, JoinSet<()>) {
    if !config.containers.enabled {
        return (proxy::Sites::default(), JoinSet::new());
    }
    let visits = Arc::new(proxy::Visits::default());
    let link = Link::new(
        Client::new(&config.containers.socket),
        Arc::clone(published),
        Arc::clone(&visits),
        &config.edge,
    );
    let tasks = link.start();
    let sites = proxy::Sites {
        waker: Some(link),
        visits,
    };
    (sites, tasks)
}

/// Where control leaves the edge's certificate authority: the edge reads there and writes nothing, as
/// root must not write where somebody else does.
fn edge_authority(config: &Config) -> PathBuf {
    config.state.join("edge-ca")
}

/// Gives the edge's user a folder of its own, and its authority's key to read.
fn admit_edge(config: &Config, user: &str) -> anyhow::Result<()> {
    let (uid, gid) = common::containers::edge_ids(user)?;
    let refused = |path: &Path| format!("can't give {} to {user}", path.display());
    if !config.edge.exists() {
        fs::create_dir_all(&config.edge).with_context(|| refused(&config.edge))?;
        chown(&config.edge, Some(uid), Some(gid)).with_context(|| refused(&config.edge))?;
    }
    let key = edge_authority(config).join("ca.key");
    chown(&key, None, Some(gid)).with_context(|| refused(&key))?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).with_context(|| refused(&key))
}

fn refuse(problems: &[Problem]) -> anyhow::Result<Done> {
    complain(problems)?;
    let errors = problems.iter().filter(|problem| problem.is_error()).count();
    Err(anyhow!(
        "not started: {} in the files above",
        count(errors, "error")
    ))
}

/// Takes as many open files as the system grants, and says when they are too few for the limits.
fn raise_open_files(config: &Config) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "can't raise the limit of open files");
    }
    // A client's connection, and one to its site's server.
    let wanted = config.limits.connections * 2 + config.dns.tcp_connections + OTHER_FILES;
    let granted = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if granted < wanted as u64 {
        tracing::warn!(
            granted,
            wanted,
            "fewer open files than [limits] connections may take: raise LimitNOFILE or `ulimit -n`, or lower the limit"
        );
    }
}

fn log_to_stderr() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("NUAGE_LOG").unwrap_or_else(|_| {
        EnvFilter::new("info,pingora=off,pingora_core=off,pingora_proxy=off,h2=off")
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .try_init()
        .map_err(|error| anyhow!("can't start logging: {error}"))
}

/// What is told of each look at the files.
struct Reloads {
    total: IntCounterVec,
    problems: IntGaugeVec,
    seconds: IntGauge,
}

impl Reloads {
    fn note(&self, problems: &[Problem]) {
        let errors = problems.iter().filter(|problem| problem.is_error()).count();
        let set = |severity, number: usize| {
            self.problems
                .with_label_values(&[severity])
                .set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        set("error", errors);
        set("warning", problems.len() - errors);
    }

    fn observe(&self, looked: &Looked) {
        self.note(&looked.problems);
        let failed = looked.problems.iter().any(Problem::is_error);
        self.total
            .with_label_values(&[if failed { "failure" } else { "success" }])
            .inc();
        for problem in &looked.problems {
            if problem.is_error() {
                tracing::error!("{problem}; the last good content is still served");
            } else {
                tracing::warn!("{problem}");
            }
        }
        if looked.published {
            self.seconds.set(now_seconds());
            tracing::info!(took = ?looked.took, "the new content is live");
        }
    }
}

fn now_seconds() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn register(metrics: &Registry, published: &Arc<Published>) -> anyhow::Result<Reloads> {
    const GENERATION: Family = Family {
        name: "nuage_registry_generation",
        help: "How many registries have been published since the start.",
        labels: &[],
        counter: false,
    };
    const SITES: Family = Family {
        name: "nuage_sites",
        help: "Declared sites by zone.",
        labels: &["zone"],
        counter: false,
    };
    let reloads = Reloads {
        total: IntCounterVec::new(
            Opts::new(
                "nuage_config_reloads_total",
                "Looks at changed files by result; a failure leaves the last good content in force.",
            ),
            &["result"],
        )?,
        problems: IntGaugeVec::new(
            Opts::new(
                "nuage_config_problems",
                "Problems in the files now, by severity.",
            ),
            &["severity"],
        )?,
        seconds: IntGauge::new(
            "nuage_config_last_publication_timestamp_seconds",
            "When the registry last changed, in seconds since 1970.",
        )?,
    };
    for result in ["success", "failure"] {
        reloads.total.with_label_values(&[result]).reset();
    }
    reloads.seconds.set(now_seconds());
    let build = IntGaugeVec::new(
        Opts::new(
            "nuage_build_info",
            "Always 1; the labels tell which build this is.",
        ),
        &["version"],
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    metrics.register(Box::new(reloads.total.clone()))?;
    metrics.register(Box::new(reloads.problems.clone()))?;
    metrics.register(Box::new(reloads.seconds.clone()))?;
    metrics.register(Box::new(build))?;
    metrics.register(Box::new(ProcessCollector::for_self()))?;
    let published = Arc::clone(published);
    let compute = move || {
        #[expect(clippy::cast_precision_loss, reason = "gauges are doubles")]
        let number = |value: u64| value as f64;
        let registry = published.load();
        let sites = registry
            .zones
            .iter()
            .map(|zone| (vec![zone.origin.as_str()], number(zone.sites.len() as u64)));
        vec![
            GENERATION.with_rows([(vec![], number(published.generation()))]),
            SITES.with_rows(sites),
        ]
    };
    metrics.register(Box::new(Computed::new(&[GENERATION, SITES], compute)?))?;
    Ok(reloads)
}

/// Where we really listen, port 0 resolved.
struct Bound {
    dns: Vec<SocketAddr>,
    dns_tls: Vec<SocketAddr>,
    http: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
    admin: Vec<SocketAddr>,
}

impl Bound {
    fn of(listeners: &Listeners) -> io::Result<Self> {
        let all = |sockets: &[std::net::TcpListener]| {
            sockets
                .iter()
                .map(std::net::TcpListener::local_addr)
                .collect::<io::Result<Vec<_>>>()
        };
        Ok(Self {
            dns: all(&listeners.dns.tcp)?,
            dns_tls: all(&listeners.dns.tls)?,
            http: all(&listeners.web.http)?,
            https: all(&listeners.web.https)?,
            admin: all(&listeners.admin)?,
        })
    }
}

/// What listens where, and which sites there are.
fn greeting(
    role: Role,
    bound: &Bound,
    config: &Config,
    published: &Published,
    took: Duration,
) -> String {
    let registry = published.load();
    let urls = Urls::new(&bound.http, &bound.https, config.https.port);
    let list = |addresses: &[SocketAddr]| {
        addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("  ")
    };
    let (sites, zones) = (registry.site_count(), registry.zones.len());
    let mut text = format!(
        "Nuage {} serves {} in {} at {} (ready in {took:.0?})\n\n",
        env!("CARGO_PKG_VERSION"),
        count(sites, "site"),
        count(zones, "zone"),
        registry.addresses,
    );
    let mut rows = vec![
        vec!["DNS".to_owned(), list(&bound.dns)],
        vec!["DoT".to_owned(), list(&bound.dns_tls)],
        vec!["HTTP".to_owned(), list(&bound.http)],
        vec!["HTTPS".to_owned(), list(&bound.https)],
    ];
    if bound.dns_tls.is_empty() {
        rows.remove(1);
    }
    if role == Role::Control {
        rows.clear();
    }
    if role != Role::Edge && config.containers.enabled {
        let socket = config.containers.socket.display().to_string();
        rows.push(vec!["control".to_owned(), socket]);
    }
    if let Some(admin) = bound.admin.first() {
        rows.push(vec!["admin".to_owned(), format!("http://{admin}/metrics")]);
    }
    text.push_str(&output::table("  ", &rows));
    let all = || {
        registry
            .zones
            .iter()
            .flat_map(|zone| zone.sites.iter().map(move |site| (zone, site)))
    };
    let rows: Vec<Vec<String>> = all()
        .take(SITES_SHOWN)
        .map(|(zone, site)| {
            vec![
                site.name.to_string(),
                site.backend.kind().to_owned(),
                urls.preferred(zone, site),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&output::table("  ", &rows));
    if sites > SITES_SHOWN {
        // Writing to a String can't fail.
        writeln!(
            text,
            "  and {} more: see `nuage site list`",
            sites - SITES_SHOWN
        )
        .unwrap_or_default();
    }
    text
}
