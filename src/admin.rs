//! The admin listener: metrics and health, for Prometheus and systemd, never for the public.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use anyhow::Context;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{Html, IntoResponse},
    routing::get,
};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::task::JoinSet;

const INDEX: &str = "<!doctype html><title>Nuage</title><h1>Nuage</h1>\
<ul><li><a href=\"/metrics\">metrics</a><li><a href=\"/healthz\">healthz</a><li><a href=\"/readyz\">readyz</a></ul>\n";

/// What the pages read.
#[derive(Debug)]
pub(crate) struct Health {
    metrics: Registry,
    ready: AtomicBool,
}

impl Health {
    pub(crate) fn new(metrics: Registry) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            ready: AtomicBool::new(false),
        })
    }

    /// Whether new requests are welcome.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Relaxed);
    }
}

/// Serves on each listener until the set is dropped.
pub(crate) fn start(
    listeners: Vec<TcpListener>,
    health: &Arc<Health>,
) -> anyhow::Result<JoinSet<()>> {
    let pages = Router::new()
        .route("/", get(async || Html(INDEX)))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(Arc::clone(health));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        listener
            .set_nonblocking(true)
            .context("can't use the admin socket")?;
        let listener =
            tokio::net::TcpListener::from_std(listener).context("can't use the admin socket")?;
        let pages = pages.clone();
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, pages).await {
                tracing::error!(%error, "the admin listener ended");
            }
        });
    }
    Ok(tasks)
}

async fn metrics(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&health.metrics.gather(), &mut text) {
        Ok(()) => (
            StatusCode::OK,
            [(CONTENT_TYPE, encoder.format_type().to_owned())],
            text,
        ),
        Err(error) => {
            let text = format!("can't encode the metrics: {error}\n").into_bytes();
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                [(CONTENT_TYPE, "text/plain".to_owned())],
                text,
            )
        }
    }
}

async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.ready.load(Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or draining\n")
    }
}
