//! What the fleet makes of news, with an engine that is never asked.

use common::{Declared, observed::Live};
use tokio::sync::oneshot;

use super::*;
use crate::{
    database::Database,
    docker::DockerEngine,
    engine::{EngineError, Event, EventKind},
    files::Folders,
    networks::Networks,
    plan::Seen,
};

const ALICE: &str = "alice.w.example";

/// A fleet of one declared site, which has a container.
struct World {
    fleet: Fleet,
    site: Arc<str>,
    /// Wishes to look at everything the engine has.
    looks: mpsc::Receiver<()>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(status: Status, level: Level) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            common::durable::replace(&path, text.as_bytes(), common::durable::Access::Everybody)
                .unwrap();
        };
        std::fs::create_dir(folder.path().join("zones")).unwrap();
        write(
            "nuage.toml",
            "[address]\nipv4 = \"192.0.2.10\"\n[paths]\nstate = \"state\"\n",
        );
        write(
            "zones/w.example.toml",
            "origin = \"w.example\"\nnameservers = [\"ns1.w.example\"]\n[sites.alice]\n",
        );
        let declared = Declared::open(&folder.path().join("nuage.toml")).unwrap();
        let (state, config) = (
            &declared.config().state,
            declared.config().containers.clone(),
        );
        std::fs::create_dir_all(state).unwrap();
        let leases = Leases::open(state, &config).unwrap();
        let no_database: Option<Database> = None;
        let work = Work::new(
            Arc::new(DockerEngine::new(&config, &leases.instance)),
            Folders::new(state),
            no_database,
            Networks::new(&leases.instance, Vec::new(), None, Vec::new()),
            1,
        );
        let observed = watch::Sender::new(Arc::new(Observed::new()));
        let wakes = Wakes::register(&prometheus::Registry::new(), observed.subscribe()).unwrap();
        let (resync, looks) = mpsc::channel(1);
        let mut fleet = Fleet::new(
            config,
            Published::new(Arc::clone(declared.registry())),
            leases,
            Arc::new(work),
            broadcast::channel(NEWS).0,
            observed,
            watch::Sender::new(true),
            wakes,
            resync,
        );
        fleet.synced = true;
        let site: Arc<str> = ALICE.into();
        let tenant = fleet.declared_tenant(&site).unwrap();
        let digest = tenant.making.as_ref().unwrap().digest.to_string();
        tenant.seen = Some(Seen {
            id: "1".to_owned(),
            digest,
            status,
        });
        tenant.level = level;
        tenant.ready = status == Status::Running;
        Self {
            fleet,
            site,
            looks,
            _folder: folder,
        }
    }

    fn tenant(&mut self) -> &mut Tenant {
        self.fleet.tenants.get_mut(&self.site).unwrap()
    }

    fn event(&mut self, kind: EventKind, at: SystemTime) {
        self.fleet.command(Command::Engine(Event {
            id: "1".to_owned(),
            site: Arc::clone(&self.site),
            kind,
            at,
        }));
    }

    /// A visitor comes; what becomes of the job that starts for it.
    fn visited(&mut self, error: Option<WorkError>) -> Result<Live, Refusal> {
        let (waiter, mut answer) = oneshot::channel();
        let site = Arc::clone(&self.site);
        let tenant = self.tenant();
        (tenant.rest, tenant.not_before) = (None, None);
        self.fleet.command(Command::Wake(Arc::clone(&site), waiter));
        let job = self.fleet.due.pop().expect("a job");
        let mut seen = job.seen.unwrap();
        if error.is_none() {
            seen.status = Status::Running;
        }
        self.fleet.done(
            &site,
            Outcome {
                seen: Some(seen),
                failed: error.is_some().then_some(Step::Start),
                error,
                said: String::new(),
            },
        );
        answer.try_recv().expect("an answer")
    }
}

fn database_away() -> WorkError {
    WorkError::Database(std::io::Error::other("it does not answer"))
}

#[tokio::test]
async fn late_news_of_a_stop_starts_nothing() {
    let mut world = World::new(Status::Stopped, Level::Asleep);
    let before = SystemTime::now();
    world.tenant().settled = before + Duration::from_millis(1);
    // A frozen site is unfrozen to be stopped, and this is heard when all that is over.
    for kind in [EventKind::Unpaused, EventKind::Died] {
        world.event(kind, before);
        let tenant = world.tenant();
        assert_eq!(tenant.status(), Some(Status::Stopped), "{kind:?}");
        assert_eq!(tenant.level, Level::Asleep, "{kind:?}");
    }
    assert!(world.looks.try_recv().is_ok(), "the engine is asked");
    assert!(world.fleet.due.is_empty());
    // Somebody else does it, and it counts.
    world.event(EventKind::Started, before + Duration::from_secs(1));
    assert_eq!(world.tenant().level, Level::Awake);
}

#[tokio::test]
async fn late_news_of_an_end_is_no_crash() {
    let mut world = World::new(Status::Running, Level::Awake);
    let before = SystemTime::now();
    let tenant = world.tenant();
    tenant.settled = before + Duration::from_millis(1);
    tenant.started = Some(Instant::now());
    world.event(EventKind::Died, before);
    assert_eq!(world.tenant().crashes, 0);
    assert!(world.looks.try_recv().is_ok(), "the engine is asked");
    world.event(EventKind::Died, before + Duration::from_secs(1));
    assert_eq!(world.tenant().crashes, 1, "this one is news");
}

#[tokio::test]
async fn what_is_not_the_sites_fault_is_no_crash_and_forgotten_when_it_is_over() {
    let mut world = World::new(Status::Stopped, Level::Asleep);
    for _ in 0..6 {
        let refused = world.visited(Some(database_away())).unwrap_err();
        assert!(refused.to_string().contains("database"), "{refused}");
        let live = world.tenant().live(Instant::now());
        assert_eq!(live.state, State::Asleep);
        assert!(live.trouble.is_some_and(|why| why.contains("database")));
    }
    let live = world.visited(None).unwrap();
    assert_eq!((live.state, live.trouble), (State::Awake, None));
    assert_eq!(world.tenant().hindrances, 0);
}

#[tokio::test]
async fn what_goes_on_hindering_a_site_is_told_to_its_visitors_at_once() {
    let mut world = World::new(Status::Stopped, Level::Asleep);
    for _ in 0..6 {
        world.visited(Some(database_away())).unwrap_err();
    }
    let (waiter, mut answer) = oneshot::channel();
    let site = Arc::clone(&world.site);
    world.fleet.command(Command::Wake(site, waiter));
    assert!(world.fleet.due.is_empty());
    assert!(answer.try_recv().unwrap().is_err());
    let now = Instant::now();
    assert!(world.tenant().waits(now + Duration::from_secs(6)));
    assert!(!world.tenant().waits(now + Duration::from_secs(9)));
}

#[tokio::test]
async fn a_site_that_can_not_run_is_left_alone_in_the_end() {
    let unfit = || WorkError::Engine(EngineError::Unfit("no image".to_owned()));
    for error in [|| WorkError::Ended, unfit] {
        let mut world = World::new(Status::Stopped, Level::Asleep);
        for _ in 0..5 {
            world.visited(Some(error())).unwrap_err();
        }
        let live = world.tenant().live(Instant::now());
        assert_eq!(live.state, State::Crashed);
    }
}

#[tokio::test]
async fn requests_under_way_in_a_frozen_site_wake_it() {
    for (status, level, woken) in [
        (Status::Paused, Level::Dozing, true),
        (Status::Running, Level::Dozing, true),
        // They are gone with their connections.
        (Status::Stopped, Level::Asleep, false),
    ] {
        let mut world = World::new(status, level);
        let site = Arc::clone(&world.site);
        let nobody = Command::Activity(vec![(Arc::clone(&site), 0)]);
        world.fleet.command(nobody);
        assert_eq!(world.tenant().level, level);
        world.fleet.command(Command::Activity(vec![(site, 1)]));
        assert_eq!(world.tenant().level == Level::Awake, woken, "{status:?}");
    }
}
