//! Who goes to sleep so that another may wake: pure.

use std::time::Duration;

/// A site that takes memory now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taking<K> {
    pub(crate) site: K,
    pub(crate) bytes: u64,
    /// Since somebody last looked.
    pub(crate) idle: Duration,
    /// Requests under way, or somebody waiting for it: it stays.
    pub(crate) needed: bool,
    /// On its way to sleep already.
    pub(crate) leaving: bool,
}

/// What makes room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room<K> {
    /// There is room.
    Enough,
    /// There will be, once these sleep (none: once those on their way do).
    After(Vec<K>),
    /// Every site is needed.
    None,
}

/// Sites in use for less than this are not put to sleep for another: two busy crowds would otherwise
/// take turns and nobody be served.
pub(crate) const LEAST_STAY: Duration = Duration::from_secs(2);

/// How to make room for `bytes` more in `budget`: the least recently used goes first.
pub(crate) fn room<K: Copy>(budget: u64, bytes: u64, taking: &[Taking<K>]) -> Room<K> {
    let taken: u64 = taking.iter().map(|taking| taking.bytes).sum();
    if taken + bytes <= budget {
        return Room::Enough;
    }
    match leaving(budget, bytes, taking) {
        (leave, true) => Room::After(leave),
        (_, false) => Room::None,
    }
}

/// Who goes when sites take more than `budget`, though those that stay may take more than it still.
pub(crate) fn excess<K: Copy>(budget: u64, taking: &[Taking<K>]) -> Vec<K> {
    leaving(budget, 0, taking).0
}

/// The least recently used that have to go for `bytes` more, and whether that is enough.
fn leaving<K: Copy>(budget: u64, bytes: u64, taking: &[Taking<K>]) -> (Vec<K>, bool) {
    let staying = taking.iter().filter(|taking| !taking.leaving);
    let mut left: u64 = staying.map(|taking| taking.bytes).sum();
    let mut idle: Vec<_> = taking
        .iter()
        .filter(|taking| !taking.needed && !taking.leaving && taking.idle >= LEAST_STAY)
        .collect();
    idle.sort_by_key(|taking| std::cmp::Reverse(taking.idle));
    let mut leave = Vec::new();
    for taking in idle {
        if left + bytes <= budget {
            break;
        }
        left -= taking.bytes;
        leave.push(taking.site);
    }
    (leave, left + bytes <= budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taking(site: u32, bytes: u64, idle: u64) -> Taking<u32> {
        Taking {
            site,
            bytes,
            idle: Duration::from_secs(idle),
            needed: false,
            leaving: false,
        }
    }

    #[test]
    fn the_longest_idle_leaves_and_no_more_than_needed() {
        let all = [taking(1, 10, 5), taking(2, 10, 50), taking(3, 10, 20)];
        assert_eq!(room(40, 10, &all), Room::Enough);
        assert_eq!(room(35, 10, &all), Room::After(vec![2]));
        assert_eq!(room(25, 10, &all), Room::After(vec![2, 3]));
        assert_eq!(room(9, 10, &all), Room::None);
    }

    #[test]
    fn past_the_budget_the_idle_go_though_it_is_not_enough() {
        let grown = Taking {
            needed: true,
            ..taking(1, 50, 0)
        };
        let all = [grown, taking(2, 10, 5), taking(3, 10, 50), taking(4, 10, 1)];
        assert_eq!(room(40, 0, &all), Room::None);
        assert_eq!(excess(40, &all), [3, 2], "all but the new");
        assert_eq!(excess(70, &all), [3], "no more than needed");
        assert_eq!(excess(80, &all), [0; 0]);
    }

    #[test]
    fn the_needed_and_the_new_stay() {
        let needed = Taking {
            needed: true,
            ..taking(1, 10, 99)
        };
        assert_eq!(room(20, 10, &[needed, taking(2, 10, 1)]), Room::None);
        let leaving = Taking {
            leaving: true,
            ..taking(3, 10, 60)
        };
        assert_eq!(
            room(20, 10, &[needed, leaving]),
            Room::After(vec![]),
            "wait for the one that goes"
        );
    }
}
