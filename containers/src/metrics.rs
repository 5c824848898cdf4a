//! What control tells Prometheus.

use std::{sync::Arc, time::Duration};

use common::{
    metrics::{Computed, Family},
    observed::{Observed, State},
};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result,
};
use tokio::sync::watch;

use crate::fleet::Capacity;

/// Starts and what they took.
pub(crate) struct Wakes {
    seconds: HistogramVec,
    failures: IntCounter,
    evictions: IntCounter,
    refusals: IntCounterVec,
    budget: IntGauge,
    used: IntGauge,
    site: IntGauge,
    host: IntGauge,
}

impl Wakes {
    pub(crate) fn register(
        registry: &Registry,
        observed: watch::Receiver<Arc<Observed>>,
    ) -> Result<Arc<Self>> {
        const STATE: Family = Family {
            name: "nuage_site_state",
            help: "1 for the state each container site is in; sites that were never woken have none.",
            labels: &["site", "state"],
            counter: false,
        };
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let wakes = Self {
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "nuage_site_wake_duration_seconds",
                    "From the decision to wake a site to its first accepted connection, by what it woke from.",
                )
                .buckets(vec![
                    0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0,
                ]),
                &["from"],
            )?,
            failures: IntCounter::new(
                "nuage_site_wake_failures_total",
                "Sites that could not be made as they should be.",
            )?,
            evictions: IntCounter::new(
                "nuage_site_evictions_total",
                "Sites put to sleep so that another could wake.",
            )?,
            refusals: IntCounterVec::new(
                Opts::new(
                    "nuage_site_wake_refusals_total",
                    "Requests to wake a site that were refused, by reason.",
                ),
                &["reason"],
            )?,
            budget: gauge(
                "nuage_capacity_budget_bytes",
                "Memory for awake sites.",
            )?,
            used: gauge("nuage_capacity_used_bytes", "Memory awake and dozing sites take.")?,
            site: gauge(
                "nuage_capacity_site_bytes",
                "Memory one more awake site is expected to take.",
            )?,
            host: gauge(
                "nuage_capacity_host_bytes",
                "Memory of this machine, or of the cgroup Nuage runs in.",
            )?,
        };
        registry.register(Box::new(wakes.seconds.clone()))?;
        registry.register(Box::new(wakes.failures.clone()))?;
        registry.register(Box::new(wakes.evictions.clone()))?;
        registry.register(Box::new(wakes.refusals.clone()))?;
        for gauge in [&wakes.budget, &wakes.used, &wakes.site, &wakes.host] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for state in [State::Asleep, State::Dozing] {
            wakes.seconds.with_label_values(&[state.word()]);
        }
        let compute = move || {
            let observed = Arc::clone(&observed.borrow());
            let rows = observed
                .iter()
                .map(|(site, live)| (vec![&**site, live.state.word()], 1.0));
            vec![STATE.with_rows(rows)]
        };
        registry.register(Box::new(Computed::new(&[STATE], compute)?))?;
        Ok(Arc::new(wakes))
    }

    pub(crate) fn woken(&self, from: State, took: Duration) {
        self.seconds
            .with_label_values(&[from.word()])
            .observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self) {
        self.failures.inc();
    }

    pub(crate) fn evicted(&self) {
        self.evictions.inc();
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    pub(crate) fn capacity(&self, capacity: &Capacity) {
        let set =
            |gauge: &IntGauge, bytes: u64| gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        set(&self.budget, capacity.budget_bytes);
        set(&self.used, capacity.used_bytes);
        set(&self.site, capacity.site_bytes);
        set(&self.host, capacity.host_bytes);
    }
}
