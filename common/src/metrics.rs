//! Metric families made from counters of our own, read only when Prometheus asks. Rows that are no
//! longer handed in are gone from the next scrape: a removed zone or site leaves nothing behind.

use std::collections::HashMap;

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

/// Label values and the number that goes with them.
pub type Row<'a> = (Vec<&'a str>, f64);

/// Name, help and labels of a family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Full name, `nuage_` included.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// Whether it only grows.
    pub counter: bool,
}

impl Family {
    /// The family with these rows.
    pub fn with_rows<'a>(&self, rows: impl IntoIterator<Item = Row<'a>>) -> MetricFamily {
        let metrics = rows.into_iter().map(|(values, number)| {
            let labels = self.labels.iter().zip(values).map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value(value.to_owned());
                pair
            });
            let mut metric = Metric::from_label(labels.collect());
            if self.counter {
                let mut counter = Counter::default();
                counter.set_value(number);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(number);
                metric.set_gauge(gauge);
            }
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(if self.counter {
            MetricType::COUNTER
        } else {
            MetricType::GAUGE
        });
        family.set_metric(metrics.collect());
        family
    }
}

/// Families computed at each scrape.
pub struct Computed<F> {
    descriptions: Vec<Desc>,
    compute: F,
}

impl<F: Fn() -> Vec<MetricFamily> + Send + Sync> Computed<F> {
    /// A collector of these families, computed by `compute`.
    ///
    /// # Errors
    /// A name or label that Prometheus does not allow.
    pub fn new(families: &[Family], compute: F) -> prometheus::Result<Self> {
        let describe = |family: &Family| {
            let labels = family
                .labels
                .iter()
                .map(|label| (*label).to_owned())
                .collect();
            Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                labels,
                HashMap::new(),
            )
        };
        let descriptions = families.iter().map(describe).collect::<Result<_, _>>()?;
        Ok(Self {
            descriptions,
            compute,
        })
    }
}

impl<F: Fn() -> Vec<MetricFamily> + Send + Sync> Collector for Computed<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // An empty family is an error to the registry.
        let mut families = (self.compute)();
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}
