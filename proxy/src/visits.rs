//! Who is looking at which site: what keeps it awake.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

/// Requests under way by site.
#[derive(Debug, Default)]
pub struct Visits {
    sites: RwLock<HashMap<Arc<str>, Arc<Use>>>,
}

#[derive(Debug, Default)]
struct Use {
    in_flight: AtomicU32,
    touched: AtomicBool,
}

/// One request, for as long as it lasts; an open WebSocket is one too.
#[derive(Debug)]
pub(crate) struct Visit(Arc<Use>);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
        self.0.touched.store(true, Relaxed);
    }
}

impl Visits {
    /// Notes that a request for a site begins.
    pub(crate) fn begin(&self, site: &str) -> Visit {
        let known = {
            let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
            sites.get(site).map(Self::enter)
        };
        known.unwrap_or_else(|| {
            let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
            Self::enter(sites.entry(site.into()).or_default())
        })
    }

    // Under the lock: `report` forgets only what nobody holds.
    fn enter(usage: &Arc<Use>) -> Visit {
        usage.in_flight.fetch_add(1, Relaxed);
        usage.touched.store(true, Relaxed);
        Visit(Arc::clone(usage))
    }

    /// Requests under way to a site.
    pub fn in_flight(&self, site: &str) -> u32 {
        let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
        sites
            .get(site)
            .map_or(0, |usage| usage.in_flight.load(Relaxed))
    }

    /// Sites used since the last report, with the requests under way; the others are forgotten.
    pub fn report(&self) -> Vec<(Arc<str>, u32)> {
        let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
        let mut report = Vec::new();
        sites.retain(|site, usage| {
            let in_flight = usage.in_flight.load(Relaxed);
            let used = usage.touched.swap(false, Relaxed) || in_flight > 0;
            if used {
                report.push((Arc::clone(site), in_flight));
            }
            used || Arc::strong_count(usage) > 1
        });
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visit_is_reported_while_it_lasts_and_once_after() {
        let visits = Visits::default();
        let visit = visits.begin("a.w.example");
        assert_eq!(visits.report(), [("a.w.example".into(), 1)]);
        assert_eq!(visits.report(), [("a.w.example".into(), 1)]);
        drop(visit);
        assert_eq!(visits.report(), [("a.w.example".into(), 0)]);
        assert!(visits.report().is_empty());
        assert_eq!(visits.in_flight("a.w.example"), 0);
    }
}
