//! Counters of the edge. What anybody could make up (hosts, methods) folds into one value, and a
//! removed site's series go.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{
    HostName, Registry,
    metrics::{Computed, Family, Row},
};
use http::Method;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, proto::MetricFamily};

const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::PATCH,
    Method::OPTIONS,
];
const METHOD_NAMES: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "other",
];
const OTHER: &str = "other";

const REQUESTS: Family = Family {
    name: "nuage_http_requests_total",
    help: "HTTP requests by site, method and status code.",
    labels: &["site", "method", "code"],
    counter: true,
};

/// Status codes are from 100 to 599.
const CODES: usize = 500;

/// Counts of one site, allotted when it is first asked for: by method, the codes that occurred.
#[derive(Debug, Default)]
struct Counters {
    by_method: [RwLock<HashMap<u16, AtomicU64>>; METHOD_NAMES.len()],
}

/// All counters of the edge.
#[derive(Debug)]
pub(crate) struct Metrics {
    sites: RwLock<HashMap<HostName, Arc<Counters>>>,
    elsewhere: Counters,
    duration: Histogram,
    /// Client connections open.
    pub(crate) connections: IntGauge,
    refused: IntCounterVec,
}

impl Metrics {
    pub(crate) fn register(registry: &prometheus::Registry) -> prometheus::Result<Arc<Self>> {
        let duration = HistogramOpts::new(
            "nuage_http_request_duration_seconds",
            "From a request's head to the end of its response.",
        )
        .buckets(vec![
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        ]);
        let metrics = Arc::new(Self {
            sites: RwLock::default(),
            elsewhere: Counters::default(),
            duration: Histogram::with_opts(duration)?,
            connections: IntGauge::new("nuage_http_connections", "Client connections open.")?,
            refused: IntCounterVec::new(
                Opts::new(
                    "nuage_http_connections_refused_total",
                    "Client connections closed before a request, by reason.",
                ),
                &["reason"],
            )?,
        });
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        let counters = Arc::clone(&metrics);
        registry.register(Box::new(Computed::new(&[REQUESTS], move || {
            counters.families()
        })?))?;
        Ok(metrics)
    }

    /// Counts a finished request; `site` is the full name of its site.
    pub(crate) fn request(
        &self,
        site: Option<&HostName>,
        method: &Method,
        code: u16,
        took: Duration,
    ) {
        self.duration.observe(took.as_secs_f64());
        let method = METHODS
            .iter()
            .position(|known| known == method)
            .unwrap_or(METHODS.len());
        let Some(site) = site else {
            self.elsewhere.add(method, code);
            return;
        };
        let known = self
            .sites
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(site)
            .cloned();
        let counters = known.unwrap_or_else(|| {
            let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(sites.entry(site.clone()).or_default())
        });
        counters.add(method, code);
    }

    /// Counts a connection that ended before a request.
    pub(crate) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Forgets the sites that are gone.
    pub(crate) fn keep(&self, registry: &Registry) {
        let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
        sites.retain(|site, _| registry.route(site.as_str()).is_some());
    }

    fn families(&self) -> Vec<MetricFamily> {
        let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
        let all = sites
            .iter()
            .map(|(site, counters)| (site.as_str(), &**counters));
        let mut counts: Vec<(&str, &str, String, f64)> = Vec::new();
        for (site, counters) in all.chain([(OTHER, &self.elsewhere)]) {
            for (method, codes) in METHOD_NAMES.iter().zip(&counters.by_method) {
                let codes = codes.read().unwrap_or_else(PoisonError::into_inner);
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a counter past 2^53 may be off by one"
                )]
                counts.extend(codes.iter().map(|(code, count)| {
                    (site, *method, code.to_string(), count.load(Relaxed) as f64)
                }));
            }
        }
        let rows = counts.iter().map(|(site, method, code, count)| -> Row<'_> {
            (vec![*site, *method, &**code], *count)
        });
        vec![REQUESTS.with_rows(rows)]
    }
}

impl Counters {
    fn add(&self, method: usize, code: u16) {
        // What an upstream makes up beyond the range of codes is one value.
        let code = if (100..100 + CODES).contains(&usize::from(code)) {
            code
        } else {
            0
        };
        let Some(codes) = self.by_method.get(method) else {
            return;
        };
        if let Some(count) = codes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&code)
        {
            count.fetch_add(1, Relaxed);
            return;
        }
        codes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(code)
            .or_default()
            .fetch_add(1, Relaxed);
    }
}
