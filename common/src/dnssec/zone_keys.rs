//! All keys of one zone, each with where it stands in its life, and what follows for the zone.

use std::time::SystemTime;

use hickory_proto::{
    dnssec::rdata::{DNSKEY, DS},
    rr::{Name, RData},
};
use serde::{Deserialize, Serialize};

use super::{
    clock::{LAST, time},
    key::{Key, Role},
    policy::Policy,
};

/// No zone has more keys than this: two of each role, in the middle of both rollovers.
pub(super) const MOST_KEYS: usize = 4;

/// Where a key stands in its life (RFC 7583 §3.1). Every key here is in the DNSKEY set, and every KSK
/// signs it; a key that is neither is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In the DNSKEY set; not every resolver knows it yet.
    Published,
    /// A KSK every resolver knows; CDS asks the parent for its DS.
    Submitted,
    /// A ZSK that signs; a KSK the parent has the DS of.
    Active,
    /// Replaced; what resolvers hold may still need it.
    Retired,
}

/// One key and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub(super) key: Key,
    pub(super) state: State,
    /// When the state was really entered, in seconds since 1970.
    pub(super) since: u64,
    /// Seconds before the next step may be taken, by the policy in force when the state was entered.
    pub(super) wait: u64,
}

impl Held {
    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when.
    pub fn since(&self) -> SystemTime {
        time(self.since)
    }

    /// When the wait of this state is over.
    pub(super) fn ready(&self) -> u64 {
        self.since.saturating_add(self.wait).min(LAST)
    }
}

/// TTLs in force, and longer ones that were until lately: resolvers keep what they got under those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ttls {
    pub(super) key: u64,
    pub(super) sig: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) older: Option<OlderTtls>,
}

/// What may be held until then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OlderTtls {
    pub(super) key: u64,
    pub(super) sig: u64,
    pub(super) until: u64,
}

impl Ttls {
    pub(super) fn of(policy: &Policy) -> Self {
        Self {
            key: policy.ttl_key.as_secs(),
            sig: policy.ttl_sig.as_secs(),
            older: None,
        }
    }

    pub(super) fn are_of(&self, policy: &Policy) -> bool {
        (self.key, self.sig) == (policy.ttl_key.as_secs(), policy.ttl_sig.as_secs())
    }

    /// Takes up the policy's TTLs, remembering longer ones for as long as they matter.
    pub(super) fn follow(&mut self, policy: &Policy, now: u64) {
        let next = Self::of(policy);
        let mut older = self.older.take().filter(|older| older.until > now);
        if next.key < self.key || next.sig < self.sig {
            let spread = (policy.propagation + policy.signing).as_secs();
            let until = now
                .saturating_add(self.key.max(self.sig))
                .saturating_add(spread);
            let before = older.as_ref();
            older = Some(OlderTtls {
                key: before.map_or(0, |o| o.key).max(self.key),
                sig: before.map_or(0, |o| o.sig).max(self.sig),
                until: before.map_or(0, |o| o.until).max(until).min(LAST),
            });
        }
        *self = Self { older, ..next };
    }

    /// The longest TTLs of DNSKEY sets and of signatures that resolvers may hold.
    pub(super) fn longest(&self, now: u64) -> (u64, u64) {
        let older = self.older.as_ref().filter(|older| older.until > now);
        let (key, sig) = older.map_or((0, 0), |older| (older.key, older.sig));
        (self.key.max(key), self.sig.max(sig))
    }
}

/// The keys of one zone. Equal are those that make the same zone: the same keys published, signing
/// and asked of the parent, whatever their times.
#[derive(Clone, Debug)]
pub struct ZoneKeys {
    pub(super) origin: Name,
    /// KSKs, then ZSKs; of each the older first.
    pub(super) held: Vec<Held>,
    pub(super) ttls: Ttls,
}

impl PartialEq for ZoneKeys {
    fn eq(&self, other: &Self) -> bool {
        let what = |keys: &Self| -> Vec<(Key, bool)> {
            let held = keys.held.iter();
            held.map(|held| {
                let more = match held.key.role() {
                    Role::Ksk => keys.is_wanted(held),
                    Role::Zsk => held.state == State::Active,
                };
                (held.key.clone(), more)
            })
            .collect()
        };
        self.origin == other.origin && what(self) == what(other)
    }
}

impl Eq for ZoneKeys {}

impl ZoneKeys {
    /// The zone they belong to.
    pub fn origin(&self) -> &Name {
        &self.origin
    }

    /// Every key with its state: KSKs, then ZSKs; of each the older first.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    pub(super) fn of_role(&self, role: Role) -> impl Iterator<Item = &Held> {
        self.held.iter().filter(move |held| held.key.role() == role)
    }

    /// The DNSKEY set.
    pub fn dnskeys(&self) -> Vec<DNSKEY> {
        self.held.iter().map(|held| held.key.dnskey()).collect()
    }

    /// The keys that sign the DNSKEY, CDS and CDNSKEY sets: every KSK (RFC 7583 §3.3.1).
    pub fn signing_keys(&self) -> impl Iterator<Item = &Key> {
        self.of_role(Role::Ksk).map(|held| &held.key)
    }

    /// The key that signs everything else.
    pub fn zone_key(&self) -> &Key {
        let active = self
            .of_role(Role::Zsk)
            .find(|held| held.state == State::Active);
        active.map(|held| &held.key).unwrap_or_else(|| {
            unreachable!("one ZSK is always active: the store and rollovers see to it")
        })
    }

    /// Whether the parent should hold the DS of this KSK and no other.
    fn is_wanted(&self, held: &Held) -> bool {
        let submitted = |held: &Held| held.state == State::Submitted;
        match held.state {
            State::Submitted => true,
            State::Active => !self.of_role(Role::Ksk).any(submitted),
            State::Published | State::Retired => false,
        }
    }

    /// The CDS and CDNSKEY records (RFC 7344): none before every resolver knows the first KSK.
    pub fn cds(&self) -> Vec<RData> {
        let wanted = self.of_role(Role::Ksk).filter(|held| self.is_wanted(held));
        wanted
            .flat_map(|held| {
                [
                    RData::from(held.key.cds(&self.origin)),
                    RData::from(held.key.cdnskey()),
                ]
            })
            .collect()
    }

    /// What the parent should hold. That of a zone's first KSK is told from the start, though it
    /// should only be given to the parent from [`ZoneKeys::ds_not_before`] on.
    pub fn ds(&self) -> Vec<DS> {
        let wanted = self.of_role(Role::Ksk).filter(|held| self.is_wanted(held));
        let mut ds: Vec<DS> = wanted.map(|held| held.key.ds(&self.origin)).collect();
        if ds.is_empty() {
            let first = self.of_role(Role::Ksk).next();
            ds.extend(first.map(|held| held.key.ds(&self.origin)));
        }
        ds
    }

    /// Until when the first DS should wait: resolvers may hold what was not signed yet.
    pub fn ds_not_before(&self) -> Option<SystemTime> {
        let mut ksks = self.of_role(Role::Ksk);
        let first = ksks.next().filter(|held| held.state == State::Published)?;
        Some(time(first.ready()))
    }

    /// Whether somebody still has to tell that the parent holds [`ZoneKeys::ds`].
    pub fn ds_unconfirmed(&self) -> bool {
        self.of_role(Role::Ksk)
            .any(|held| matches!(held.state, State::Published | State::Submitted))
    }

    /// Whether the parent may hold a DS, so that resolvers refuse the zone unsigned: it was told that it
    /// does, or CDS asked for it.
    pub fn may_be_trusted(&self) -> bool {
        self.of_role(Role::Ksk)
            .any(|held| held.state != State::Published)
    }

    /// Moves the times of deeds along with a clock that was set by so many seconds.
    pub(super) fn move_times(&mut self, set: i64, policy: &Policy, now: u64) {
        // What the clock would say had nobody set it.
        let unset = now.saturating_add_signed(set.saturating_neg());
        let moved = |at: u64| {
            if set >= 0 && at > unset {
                // A deed the clock had not come to: another one told its time, before a start with a
                // wrong one.
                at
            } else if set >= 0 {
                at.saturating_add(set.unsigned_abs()).min(LAST)
            } else if at > now {
                // Another process may have set this time by the new clock already: what does not lie in
                // the future stays, which at worst waits longer.
                at.saturating_sub(set.unsigned_abs())
            } else {
                at
            }
        };
        for held in &mut self.held {
            held.since = moved(held.since);
        }
        if let Some(older) = &mut self.ttls.older {
            // It was written at least so long before.
            let spread = (policy.propagation + policy.signing).as_secs();
            let ahead = older.key.max(older.sig).saturating_add(spread);
            let written = older.until.saturating_sub(ahead);
            // Later is safer.
            older.until = older
                .until
                .max(moved(written).saturating_add(ahead).min(LAST));
        }
    }

    /// What is wrong with what was read; every other function relies on its being right.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let states = |role| -> Vec<State> { self.of_role(role).map(|held| held.state).collect() };
        use State::{Active, Published, Retired, Submitted};
        if self.held.len() > MOST_KEYS {
            return Err("it holds more keys than a zone can have");
        }
        match states(Role::Zsk)[..] {
            [Active] | [Active, Published] | [Retired, Active] => {}
            _ => return Err("it does not hold one active ZSK and at most one before or after it"),
        }
        match states(Role::Ksk)[..] {
            [Published | Submitted | Active]
            | [Active, Published | Submitted]
            | [Retired, Active] => {}
            _ => return Err("it does not hold one KSK, or two that replace each other"),
        }
        let order = |held: &Held| held.key.role() == Role::Zsk;
        if !self.held.iter().is_sorted_by_key(order) {
            return Err("its keys are out of order");
        }
        let mut tags: Vec<u16> = self.held.iter().map(|held| held.key.tag()).collect();
        tags.sort_unstable();
        tags.dedup();
        if tags.len() < self.held.len() {
            return Err("two of its keys have the same tag");
        }
        Ok(())
    }
}
