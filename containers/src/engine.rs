//! What runs containers, as the rest of the crate sees it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::{lease::NetworkLease, spec::Spec};

/// A container of ours the engine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// The site's full name, as its label says.
    pub(crate) site: Arc<str>,
    /// What it was made from ([`Spec::digest`]).
    pub(crate) digest: String,
    pub(crate) status: Status,
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Running,
    Paused,
    /// Made and never started, or ended.
    Stopped,
}

/// Something that happened to a container of ours.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) site: Arc<str>,
    pub(crate) kind: EventKind,
    /// By the engine's clock.
    pub(crate) at: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Started,
    /// It ended, whoever ended it.
    Died,
    Paused,
    Unpaused,
    Removed,
}

/// A command running inside a container.
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) output: BoxStream<'static, Result<Output, EngineError>>,
    pub(crate) input: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
}

/// A piece of what a program printed.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) error: bool,
    pub(crate) bytes: Bytes,
}

/// What an engine did not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// It is not there, or stopped answering.
    #[error("the engine at {0} does not answer: {1}")]
    Unreachable(String, String),
    /// It has not answered in time.
    #[error("the engine has not answered within {0:?}")]
    Late(Duration),
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// What a container is made from is at fault: there is no such image, or no such command in it.
    #[error("{0}")]
    Unfit(String),
    /// It refuses.
    #[error("the engine refuses: {0}")]
    Refused(String),
}

/// A container engine. Every call ends within a bounded time; every container and network it lists
/// is one of ours.
#[async_trait]
pub(crate) trait Engine: Send + Sync + 'static {
    /// Every container of this instance.
    async fn containers(&self) -> Result<Vec<Found>, EngineError>;
    /// The names of every network of this instance.
    async fn networks(&self) -> Result<Vec<String>, EngineError>;
    async fn create_network(&self, network: &NetworkLease) -> Result<(), EngineError>;
    async fn remove_network(&self, name: &str) -> Result<(), EngineError>;
    /// Makes a stopped container; its id.
    async fn create(&self, spec: &Spec) -> Result<String, EngineError>;
    async fn start(&self, id: &str) -> Result<(), EngineError>;
    async fn pause(&self, id: &str) -> Result<(), EngineError>;
    async fn unpause(&self, id: &str) -> Result<(), EngineError>;
    /// Ends it: politely, and after `grace` by force. Works on paused ones.
    async fn stop(&self, id: &str, grace: Duration) -> Result<(), EngineError>;
    /// Removes it, running or not.
    async fn remove(&self, id: &str) -> Result<(), EngineError>;
    /// The process id of its first process.
    async fn pid(&self, id: &str) -> Result<Option<u32>, EngineError>;
    /// What it printed; `lines` from the end, all of it when `None`.
    fn logs(
        &self,
        id: &str,
        lines: Option<u32>,
        follow: bool,
    ) -> BoxStream<'static, Result<Output, EngineError>>;
    async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        terminal: Option<(u16, u16)>,
    ) -> Result<Running, EngineError>;
    /// The exit code of a command that has ended.
    async fn exit_code(&self, exec: &str) -> Result<i64, EngineError>;
    /// What happens after a time in seconds since 1970; ends when the engine goes.
    fn events(&self, since: u64) -> BoxStream<'static, Result<Event, EngineError>>;
}
