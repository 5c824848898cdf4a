//! Who is looking at which site: what keeps it awake.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{Relaxed, SeqCst},
        },
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
    /// Of these, robots'.
    robots: AtomicU32,
    touched: AtomicBool,
}

/// One request, for as long as it lasts; an open WebSocket is one too.
#[derive(Debug)]
pub(crate) struct Visit {
    usage: Arc<Use>,
    visitor: Visitor,
}

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visitor {
    /// Somebody a site is kept awake for.
    Anyone,
    /// A robot or a probe: its site stays only until it is answered, and is as idle as before.
    Robot,
}

impl Visit {
    fn touch(&self) {
        if self.visitor == Visitor::Anyone {
            self.usage.touched.store(true, Relaxed);
        }
    }
}

impl Use {
    /// Requests a site is kept awake for.
    fn wanted(&self) -> u32 {
        let robots = self.robots.load(Relaxed);
        self.in_flight.load(Relaxed).saturating_sub(robots)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.usage.in_flight.fetch_sub(1, Relaxed);
        if self.visitor == Visitor::Robot {
            self.usage.robots.fetch_sub(1, Relaxed);
        }
        self.touch();
    }
}

impl Visits {
    /// Notes that a request for a site begins.
    pub(crate) fn begin(&self, site: &str, visitor: Visitor) -> Visit {
        let known = {
            let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
            sites.get(site).map(|usage| Self::enter(usage, visitor))
        };
        known.unwrap_or_else(|| {
            let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
            Self::enter(sites.entry(site.into()).or_default(), visitor)
        })
    }

    // Under the lock: `report` forgets only what nobody holds.
    fn enter(usage: &Arc<Use>, visitor: Visitor) -> Visit {
        // One order with what is published: either a request sees that its site dozes, or whoever
        // published that sees the request.
        if visitor == Visitor::Robot {
            usage.robots.fetch_add(1, Relaxed);
        }
        usage.in_flight.fetch_add(1, SeqCst);
        let visit = Visit {
            usage: Arc::clone(usage),
            visitor,
        };
        visit.touch();
        visit
    }

    /// Requests under way to a site.
    pub fn in_flight(&self, site: &str) -> u32 {
        let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
        sites
            .get(site)
            .map_or(0, |usage| usage.in_flight.load(SeqCst))
    }

    /// Sites used since the last report but for robots, with the requests under way; the others are
    /// forgotten.
    pub fn report(&self) -> Vec<(Arc<str>, u32)> {
        let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
        let mut report = Vec::new();
        sites.retain(|site, usage| {
            let in_flight = usage.wanted();
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
        let visit = visits.begin("a.w.example", Visitor::Anyone);
        assert_eq!(visits.report(), [("a.w.example".into(), 1)]);
        assert_eq!(visits.report(), [("a.w.example".into(), 1)]);
        drop(visit);
        assert_eq!(visits.report(), [("a.w.example".into(), 0)]);
        assert!(visits.report().is_empty());
        assert_eq!(visits.in_flight("a.w.example"), 0);
    }

    #[test]
    fn a_robot_is_under_way_and_leaves_no_trace() {
        let visits = Visits::default();
        drop(visits.begin("a.w.example", Visitor::Robot));
        assert!(visits.report().is_empty());
        let visit = visits.begin("a.w.example", Visitor::Robot);
        assert_eq!(visits.in_flight("a.w.example"), 1);
        assert!(visits.report().is_empty());
        let person = visits.begin("a.w.example", Visitor::Anyone);
        assert_eq!(visits.in_flight("a.w.example"), 2);
        assert_eq!(visits.report(), [("a.w.example".into(), 1)]);
        drop((visit, person));
        assert_eq!(visits.report(), [("a.w.example".into(), 0)]);
        assert!(visits.report().is_empty());
    }
}
