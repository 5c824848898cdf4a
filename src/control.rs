//! Speaking to control through its Unix socket: what the edge and the command line share.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Largest answer read whole.
const MOST: usize = 16 << 20;
/// The longest control may take to begin an answer: a restore answers when it is done.
const PATIENCE: Duration = Duration::from_secs(6 * 3_600);

/// Where control listens.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

/// What a request sends.
pub(crate) type Sent = BoxBody<Bytes, std::io::Error>;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody listens.
    #[error("control does not answer at {0}: is `nuage serve` running, as root or as your user?")]
    Absent(PathBuf, #[source] anyhow::Error),
    /// It says no.
    #[error("{detail}")]
    Refused {
        /// One word for programs.
        reason: String,
        /// A sentence for people.
        detail: String,
    },
    /// It speaks otherwise than we do.
    #[error("control's answer makes no sense: is it another version?")]
    Odd(#[source] anyhow::Error),
}

impl Client {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Asks, and hands out the answer as it comes.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        body: Sent,
    ) -> Result<Response<Incoming>, ControlError> {
        let absent = |error: anyhow::Error| ControlError::Absent(self.socket.clone(), error);
        let answer = tokio::time::timeout(PATIENCE, self.send(method, path, body))
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")))
            .map_err(absent)?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let text = read_whole(answer.into_body())
            .await
            .map_err(ControlError::Odd)?;
        let word = |value: &serde_json::Value, key: &str| {
            value
                .get(key)
                .and_then(|word| word.as_str())
                .map(str::to_owned)
        };
        let problem: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        Err(ControlError::Refused {
            reason: word(&problem, "reason").unwrap_or_default(),
            detail: word(&problem, "detail")
                .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned()),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Sent,
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the answer's body, or when nobody holds it any more.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "control")
            .header("content-type", "application/json")
            .body(body)?;
        Ok(sender.send_request(request).await?)
    }

    /// Asks, and reads the answer whole.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Sent,
    ) -> Result<T, ControlError> {
        let answer = self.open(method, path, body).await?;
        let text = read_whole(answer.into_body())
            .await
            .map_err(ControlError::Odd)?;
        serde_json::from_slice(&text).map_err(|error| ControlError::Odd(error.into()))
    }

    /// Asks for something to be done.
    pub(crate) async fn act(&self, path: &str, body: Sent) -> Result<(), ControlError> {
        self.open(Method::POST, path, body).await.map(drop)
    }
}

/// Nothing to send.
pub(crate) fn nothing() -> Sent {
    whole(Bytes::new())
}

/// A body that is there already.
pub(crate) fn whole(octets: impl Into<Bytes>) -> Sent {
    Full::new(octets.into())
        .map_err(|never| match never {})
        .boxed()
}

/// The path of a site's resource.
pub(crate) fn site(name: &str, what: &str) -> String {
    format!("/v1/sites/{name}/{what}")
}

async fn read_whole(body: Incoming) -> anyhow::Result<Bytes> {
    if body.size_hint().lower() > MOST as u64 {
        bail!("an answer of more than {MOST} octets");
    }
    let body = http_body_util::Limited::new(body, MOST);
    let read = body
        .collect()
        .await
        .map_err(|error| anyhow!("{error}"))
        .context("reading control's answer")?;
    Ok(read.to_bytes())
}
