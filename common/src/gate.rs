//! How many connections there may be, in all and from one address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Counts connections; an IPv6 customer is a /64.
#[derive(Debug)]
pub struct Gate {
    total: AtomicUsize,
    most: usize,
    most_per_address: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    /// Room for this many in all, and from one address.
    pub fn new(most: usize, most_per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            total: AtomicUsize::new(0),
            most,
            most_per_address,
            by_address: Mutex::default(),
        })
    }

    /// A place for a connection from `address`, unless there is none left.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Pass> {
        let address = customer(address);
        let mut counts = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let here = counts.get(&address).copied().unwrap_or(0);
        if here >= self.most_per_address || self.total.load(Relaxed) >= self.most {
            return None;
        }
        counts.insert(address, here + 1);
        self.total.fetch_add(1, Relaxed);
        Some(Pass {
            gate: Arc::clone(self),
            address,
        })
    }

    /// Connections now.
    pub fn total(&self) -> usize {
        self.total.load(Relaxed)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self
            .gate
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
        self.gate.total.fetch_sub(1, Relaxed);
    }
}

fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_by_customer_and_given_back() {
        let gate = Gate::new(3, 2);
        let at = |text: &str| gate.enter(text.parse().unwrap());
        let (first, second) = (at("2001:db8::1").unwrap(), at("2001:db8::2").unwrap());
        assert!(at("2001:db8::3").is_none(), "the same /64");
        let third = at("192.0.2.1").unwrap();
        assert!(at("192.0.2.2").is_none(), "three in all");
        drop((first, second, third));
        assert_eq!(gate.total(), 0);
        assert!(gate.by_address.lock().unwrap().is_empty());
    }
}
