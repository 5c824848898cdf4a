//! The control socket: HTTP on a Unix socket, version 1.
//!
//! | request | who | answer |
//! |---|---|---|
//! | `GET /v1/observed` | edge | one JSON [`Change`] a line: everything known, then what changes |
//! | `POST /v1/activity` | edge | `[["site", requests under way], …]` of sites used since the last one |
//! | `POST /v1/sites/NAME/wake` | edge | the site's `Live` once it is awake |
//! | `POST /v1/sites/NAME/{sleep,restart,prepare}` | admin | when it is done |
//! | `GET /v1/sites/NAME/logs?lines&follow` | admin | what it printed |
//! | `POST /v1/sites/NAME/exec?command…` | admin | its output in [`frame`]s, while the body is its input |
//! | `GET /v1/sites/NAME/backup`, `POST …/restore` | admin | `tar.zst` |
//! | `GET /v1/capacity` | admin | [`Capacity`](crate::Capacity) |
//!
//! Who is who is the kernel's word: root and control's own user may do everything, the edge's user
//! what the edge does, and others can't open the socket.

mod backups;

use std::{
    convert::Infallible,
    io,
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Path as InPath, Query, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use common::{
    containers,
    observed::{Change, Observed},
};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt,
    net::UnixListener,
    sync::{broadcast, mpsc, oneshot, watch},
    time::{interval, timeout},
};

use crate::{
    engine::Output,
    fleet::Command,
    frame,
    metrics::Wakes,
    plan::Level,
    tenant::Refusal,
    work::{Making, Work},
};

/// How often a stream without news says that control is alive.
const ALIVE: Duration = Duration::from_secs(2);
/// The longest a wake may be waited for here; the edge gives up sooner.
const WAKE: Duration = Duration::from_secs(90);
/// The longest putting to sleep, holding or preparing may take.
const ACT: Duration = Duration::from_secs(60);

/// What requests are answered from.
#[derive(Clone)]
pub(crate) struct Socket {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) news: broadcast::Sender<Change>,
    pub(crate) observed: watch::Receiver<Arc<Observed>>,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) work: Arc<Work>,
    pub(crate) wakes: Arc<Wakes>,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
struct Peer {
    admin: bool,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let own = rustix::process::geteuid().as_raw();
        let admin = stream
            .io()
            .peer_cred()
            .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
        Self { admin }
    }
}

/// Binds the socket: for root and our own user, and for the edge's user where there is one.
///
/// # Errors
/// Another control listens there, the path can't be used, or the user is not known.
pub(crate) fn bind(path: &Path, edge_user: Option<&str>) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another nuage is in control of this state folder",
        ));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Nobody listens: what is there was left by one that was killed.
    std::fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let listener = UnixListener::bind(path)?;
    let mode = if let Some(user) = edge_user {
        let (_, group) = containers::edge_ids(user)?;
        chown(path, None, Some(group))?;
        0o660
    } else {
        0o600
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

impl Socket {
    pub(crate) async fn serve(self, listener: UnixListener) {
        let admin = Router::new()
            .route("/v1/sites/{site}/sleep", post(sleep))
            .route("/v1/sites/{site}/restart", post(restart))
            .route("/v1/sites/{site}/prepare", post(prepare))
            .route("/v1/sites/{site}/logs", get(logs))
            .route("/v1/sites/{site}/exec", post(exec))
            .route("/v1/sites/{site}/backup", get(backups::write))
            .route("/v1/sites/{site}/restore", post(backups::restore))
            .route("/v1/capacity", get(capacity))
            .layer(middleware::from_fn(admins_only));
        let all = Router::new()
            .route("/v1/observed", get(observed))
            .route("/v1/activity", post(activity))
            .route("/v1/sites/{site}/wake", post(wake))
            .merge(admin)
            .with_state(self);
        let service = all.into_make_service_with_connect_info::<Peer>();
        if let Err(error) = axum::serve(listener, service).await {
            tracing::error!(%error, "the control socket ended");
        }
    }

    async fn ask<T>(
        &self,
        within: Duration,
        command: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Command,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        match timeout(within, answer).await {
            Ok(Ok(answer)) => answer.map_err(|refusal| {
                self.wakes.refused(refusal.reason());
                Refused::Site(refusal)
            }),
            Ok(Err(_)) => Err(Refused::Stopping),
            Err(_) => Err(Refused::Late),
        }
    }

    async fn send(&self, command: Command) -> Result<(), Refused> {
        self.commands
            .send(command)
            .await
            .map_err(|_| Refused::Stopping)
    }

    /// Keeps a site still for as long as what comes back is held.
    async fn hold(&self, site: &Arc<str>, level: Level) -> Result<(Held, Making), Refused> {
        let (socket, site) = (self.clone(), Arc::clone(site));
        // In a task of its own: who asked may leave before there is an answer, and the hold ends all the
        // same with what the task comes to.
        let held = tokio::spawn(async move {
            let asked = socket
                .ask(ACT, |reply| Command::Hold(Arc::clone(&site), level, reply))
                .await;
            if let Err(refused @ Refused::Site(_)) = asked {
                // Nothing is held, or not by us.
                return Err(refused);
            }
            let held = Held {
                commands: socket.commands,
                site,
            };
            let making = asked?.ok_or(Refused::Site(Refusal::Unknown))?;
            Ok((held, making))
        });
        held.await
            .unwrap_or_else(|error| Err(Refused::Io(io::Error::other(error))))
    }

    async fn container(&self, site: Arc<str>) -> Result<String, Refused> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Container(site, reply)).await?;
        answer.await.ok().flatten().ok_or_else(|| {
            Refused::Site(Refusal::Failing(
                "the site has no container yet: wake it with `nuage site wake`".to_owned(),
            ))
        })
    }
}

/// A site kept still.
struct Held {
    commands: mpsc::Sender<Command>,
    site: Arc<str>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let (commands, site) = (self.commands.clone(), Arc::clone(&self.site));
        tokio::spawn(async move { drop(commands.send(Command::Release(site)).await) });
    }
}

/// Ends what it holds with itself.
struct Tasks([tokio::task::JoinHandle<()>; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// An answer that is no.
enum Refused {
    Site(Refusal),
    Late,
    Stopping,
    Io(io::Error),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, reason, detail) = match self {
            Self::Site(refusal) => {
                let status = match &refusal {
                    Refusal::Unknown => StatusCode::NOT_FOUND,
                    Refusal::Crowded => StatusCode::TOO_MANY_REQUESTS,
                    Refusal::Full => StatusCode::SERVICE_UNAVAILABLE,
                    Refusal::InUse => StatusCode::CONFLICT,
                    Refusal::Failing(_) => StatusCode::BAD_GATEWAY,
                };
                (status, refusal.reason(), refusal.to_string())
            }
            Self::Late => (
                StatusCode::GATEWAY_TIMEOUT,
                "late",
                "it has taken too long; it goes on in the background".to_owned(),
            ),
            Self::Stopping => (
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "control is stopping".to_owned(),
            ),
            Self::Io(error) => (StatusCode::INTERNAL_SERVER_ERROR, "io", error.to_string()),
        };
        let problem = serde_json::json!({ "reason": reason, "detail": detail });
        (status, Json(problem)).into_response()
    }
}

async fn admins_only(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if peer.admin {
        return next.run(request).await;
    }
    let problem = serde_json::json!({ "reason": "forbidden", "detail": "this is for root and the user control runs as" });
    (StatusCode::FORBIDDEN, Json(problem)).into_response()
}

/// Everything known, then what changes; a reader too far behind is cut off and begins anew.
async fn observed(State(mut socket): State<Socket>) -> Body {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut alive = interval(ALIVE);
        // A control that has just started knows nothing yet, which is not to say that nothing is awake.
        while !*socket.ready.borrow_and_update() {
            tokio::select! {
                changed = socket.ready.changed() => if changed.is_err() { return },
                _ = alive.tick() => {
                    if sender.send(Ok(line(&Change::Alive).into())).await.is_err() {
                        return;
                    }
                }
            }
        }
        // Heard first, then read: what changes in between is said twice, not never.
        let mut news = socket.news.subscribe();
        let known = Arc::clone(&socket.observed.borrow());
        let start = known
            .iter()
            .map(|(site, live)| Change::Site(Arc::clone(site), live.clone()))
            .chain([Change::Whole])
            .map(|change| line(&change))
            .collect::<Vec<_>>()
            .concat();
        let mut next = Some(Bytes::from(start));
        loop {
            if let Some(lines) = next.take()
                && sender.send(Ok(lines)).await.is_err()
            {
                return;
            }
            let change = tokio::select! {
                change = news.recv() => match change {
                    Ok(change) => change,
                    Err(_) => return,
                },
                _ = alive.tick() => Change::Alive,
            };
            next = Some(line(&change).into());
        }
    });
    Body::from_stream(received(receiver))
}

fn line(change: &Change) -> Vec<u8> {
    // Plain values always have a JSON form.
    let mut text = serde_json::to_vec(change).unwrap_or_default();
    text.push(b'\n');
    text
}

fn received(receiver: mpsc::Receiver<io::Result<Bytes>>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
}

async fn activity(
    State(socket): State<Socket>,
    Json(sites): Json<Vec<(Arc<str>, u32)>>,
) -> Result<(), Refused> {
    socket.send(Command::Activity(sites)).await
}

async fn wake(State(socket): State<Socket>, InPath(site): InPath<Arc<str>>) -> Response {
    match socket.ask(WAKE, |reply| Command::Wake(site, reply)).await {
        Ok(live) => Json(live).into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn restart(State(socket): State<Socket>, InPath(site): InPath<Arc<str>>) -> Response {
    match socket
        .ask(WAKE, |reply| Command::Restart(site, reply))
        .await
    {
        Ok(live) => Json(live).into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn sleep(
    State(socket): State<Socket>,
    InPath(site): InPath<Arc<str>>,
) -> Result<(), Refused> {
    socket.ask(ACT, |reply| Command::Sleep(site, reply)).await
}

async fn prepare(
    State(socket): State<Socket>,
    InPath(site): InPath<Arc<str>>,
) -> Result<(), Refused> {
    socket.ask(ACT, |reply| Command::Prepare(site, reply)).await
}

async fn capacity(State(socket): State<Socket>) -> Response {
    let (reply, answer) = oneshot::channel();
    if let Err(refused) = socket.send(Command::Capacity(reply)).await {
        return refused.into_response();
    }
    match answer.await {
        Ok(capacity) => Json(capacity).into_response(),
        Err(_) => Refused::Stopping.into_response(),
    }
}

#[derive(Deserialize)]
struct Logs {
    lines: Option<u32>,
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(socket): State<Socket>,
    InPath(site): InPath<Arc<str>>,
    Query(logs): Query<Logs>,
) -> Result<Body, Refused> {
    let id = socket.container(site).await?;
    let lines = socket
        .work
        .engine
        .logs(&id, logs.lines, logs.follow)
        .map(|piece| piece.map(|piece| piece.bytes).map_err(io::Error::other));
    Ok(Body::from_stream(lines))
}

#[derive(Deserialize)]
struct Exec {
    /// A JSON list of words.
    command: String,
    height: Option<u16>,
    width: Option<u16>,
}

async fn exec(
    State(socket): State<Socket>,
    InPath(site): InPath<Arc<str>>,
    Query(exec): Query<Exec>,
    body: Body,
) -> Result<Body, Refused> {
    let command: Vec<String> = serde_json::from_str(&exec.command)
        .map_err(|error| Refused::Io(io::Error::other(error)))?;
    // Also counts as a visit.
    socket
        .ask(WAKE, |reply| Command::Wake(Arc::clone(&site), reply))
        .await?;
    let id = socket.container(Arc::clone(&site)).await?;
    let engine = Arc::clone(&socket.work.engine);
    let failing =
        |error: crate::engine::EngineError| Refused::Site(Refusal::Failing(error.to_string()));
    let running = engine
        .exec(&id, command, exec.height.zip(exec.width))
        .await
        .map_err(failing)?;
    let mut input = running.input;
    let feeding = tokio::spawn(async move {
        let mut body = body.into_data_stream();
        while let Some(Ok(piece)) = body.next().await {
            if input.write_all(&piece).await.is_err() {
                return;
            }
            // The program may wait for it.
            input.flush().await.unwrap_or_default();
        }
        input.shutdown().await.unwrap_or_default();
    });
    let output = running.output.map(move |piece| match piece {
        Ok(Output { error, bytes }) => {
            frame::of(if error { frame::ERROR } else { frame::OUT }, &bytes)
        }
        Err(error) => frame::of(frame::FAILURE, error.to_string().as_bytes()),
    });
    // As long as it runs, the site is in use; also when whoever asked leaves, all ends.
    let commands = socket.commands.clone();
    let busy = tokio::spawn(async move {
        let mut tick = interval(ALIVE);
        loop {
            tick.tick().await;
            let news = Command::Activity(vec![(Arc::clone(&site), 1)]);
            if commands.send(news).await.is_err() {
                return;
            }
        }
    });
    let tasks = Tasks([feeding, busy]);
    let end = stream::once(async move {
        drop(tasks);
        match engine.exit_code(&running.id).await {
            Ok(code) => frame::of(frame::EXIT, code.to_string().as_bytes()),
            Err(error) => frame::of(frame::FAILURE, error.to_string().as_bytes()),
        }
    });
    Ok(Body::from_stream(
        output.chain(end).map(Ok::<_, Infallible>),
    ))
}
