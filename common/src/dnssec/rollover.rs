//! When keys come, change places and go: pre-publication for ZSKs (RFC 7583 §3.2.1), double-KSK for
//! KSKs (§3.3.1). All of it pure: keys, policy and time in, keys out.
//!
//! A step is taken when the wait of the step before is over, counted from when that was really done; so
//! however late a step is, or far the clock has jumped, the next one keeps its distance. A clock that
//! goes backwards only makes waits longer. Of each role one step is taken at a time.

use std::time::{Duration, SystemTime};

use hickory_proto::rr::Name;

use super::{
    clock::{LAST, seconds, time},
    key::{Key, KeyFailure, Role},
    policy::Policy,
    zone_keys::{Held, State, Ttls, ZoneKeys},
};

/// Tags collide once in ten thousand zones; that often in a row is a broken generator.
const MOST_TRIES: usize = 16;

/// Something a rollover does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new key joins the DNSKEY set.
    Publish,
    /// CDS asks the parent for the DS of a new KSK.
    Submit,
    /// A new ZSK signs, and the old one retires.
    Activate,
    /// A retired key leaves the DNSKEY set.
    Remove,
}

/// The next step of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// What is done.
    pub step: Step,
    /// The key it is done to; the one to be replaced for [`Step::Publish`].
    pub tag: u16,
    at: u64,
}

impl Next {
    /// When.
    pub fn at(&self) -> SystemTime {
        time(self.at)
    }
}

/// Why something asked for can't be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// One rollover of a role at a time.
    #[error("a rollover of the {0} is under way: `nuage zone keys` says how far it is")]
    UnderWay(Role),
    /// A KSK is only replaced once the parent is known to hold its DS.
    #[error(
        "nobody has confirmed yet that the parent zone holds the DS record of the present KSK: give it to the parent (`nuage zone ds`), and say so with `nuage zone ds --published`"
    )]
    Unconfirmed,
    /// There is no new DS to confirm.
    #[error("there is no DS record to confirm: the parent's was confirmed already")]
    Confirmed,
    /// Resolvers would not find the key the DS points at.
    #[error(
        "the parent zone should not hold the new DS record before {}: resolvers may hold what is older than the key",
        humantime::format_rfc3339_seconds(*.0)
    )]
    TooEarly(SystemTime),
}

impl ZoneKeys {
    /// The first keys of a zone, which sign at once.
    pub(super) fn first(
        origin: Name,
        policy: &Policy,
        now: SystemTime,
        make_key: &mut impl FnMut(Role) -> Result<Key, KeyFailure>,
    ) -> Result<Self, KeyFailure> {
        let now = seconds(now);
        let mut keys = Self {
            origin,
            held: Vec::new(),
            ttls: Ttls::of(policy),
        };
        let ksk = keys.new_key(Role::Ksk, make_key)?;
        // Whatever was not signed must have left all caches before a DS says that everything is
        // (RFC 7583 §3.2.1 and §3.3.1 meet; RFC 6781 §4.4.2.1 for the order).
        let unsigned = policy.ttl_key.max(policy.ttl_sig);
        keys.insert(
            ksk,
            State::Published,
            now,
            policy.signing + policy.propagation + unsigned,
        );
        let zsk = keys.new_key(Role::Zsk, make_key)?;
        keys.insert(zsk, State::Active, now, Duration::ZERO);
        Ok(keys)
    }

    /// A key whose tag no other key of the zone has: a tag should lead to one key.
    fn new_key(
        &self,
        role: Role,
        make_key: &mut impl FnMut(Role) -> Result<Key, KeyFailure>,
    ) -> Result<Key, KeyFailure> {
        for _ in 0..MOST_TRIES {
            let key = make_key(role)?;
            if !self.held.iter().any(|held| held.key.tag() == key.tag()) {
                return Ok(key);
            }
        }
        Err(KeyFailure::Random)
    }

    /// Adds a key after the last of its role.
    fn insert(&mut self, key: Key, state: State, since: u64, wait: Duration) {
        let at = match key.role() {
            Role::Ksk => self.of_role(Role::Ksk).count(),
            Role::Zsk => self.held.len(),
        };
        let wait = wait.as_secs();
        self.held.insert(
            at,
            Held {
                key,
                state,
                since,
                wait,
            },
        );
    }

    fn enter(&mut self, tag: u16, state: State, since: u64, wait: Duration) {
        if let Some(held) = self.held.iter_mut().find(|held| held.key.tag() == tag) {
            (held.state, held.since, held.wait) = (state, since, wait.as_secs());
        }
    }

    /// When the next step of any rollover is due.
    pub fn next_event(&self, policy: &Policy) -> Option<SystemTime> {
        let steps = [Role::Ksk, Role::Zsk].map(|role| next(self, role, policy));
        steps.into_iter().flatten().map(|next| next.at()).min()
    }

    /// Whether [`advance`] would change anything.
    pub(super) fn is_due(&self, policy: &Policy, now: SystemTime) -> bool {
        let due = self.next_event(policy).is_some_and(|at| at <= now);
        due || !self.ttls.are_of(policy)
    }
}

/// The next step of a role that time alone brings; `None` while somebody has to act, or for ever.
pub fn next(keys: &ZoneKeys, role: Role, policy: &Policy) -> Option<Next> {
    let of = |state| keys.of_role(role).find(move |held| held.state == state);
    let step = |step, held: &Held, at| {
        let tag = held.key.tag();
        Some(Next { step, tag, at })
    };
    if let Some(held) = of(State::Retired) {
        return step(Step::Remove, held, held.ready());
    }
    if let Some(held) = of(State::Published) {
        let what = match role {
            Role::Ksk => Step::Submit,
            Role::Zsk => Step::Activate,
        };
        return step(what, held, held.ready());
    }
    if of(State::Submitted).is_some() {
        return None;
    }
    let held = of(State::Active)?;
    let lifetime = match role {
        Role::Ksk => policy.ksk_lifetime,
        Role::Zsk => policy.zsk_lifetime,
    }?;
    // The next key has to be known when this one's life ends: Tpub <= Tact + L - Ipub (RFC 7583 §3.2.1).
    let known = policy.propagation + policy.ttl_key;
    let lead = lifetime.saturating_sub(known).as_secs();
    step(
        Step::Publish,
        held,
        held.since.saturating_add(lead).min(LAST),
    )
}

/// Takes the steps that are due, at most one of each role; whether there was any.
///
/// # Errors
/// A key can't be made; the keys are then as they were, or one role's step further.
pub fn advance(
    keys: &mut ZoneKeys,
    policy: &Policy,
    now: SystemTime,
    make_key: &mut impl FnMut(Role) -> Result<Key, KeyFailure>,
) -> Result<bool, KeyFailure> {
    let mut changed = follow_ttls(keys, policy, now);
    for role in [Role::Ksk, Role::Zsk] {
        let Some(next) = next(keys, role, policy).filter(|next| next.at <= seconds(now)) else {
            continue;
        };
        changed = true;
        let now = seconds(now);
        match next.step {
            Step::Publish => publish(keys, role, policy, now, make_key)?,
            Step::Submit => keys.enter(next.tag, State::Submitted, now, Duration::ZERO),
            Step::Activate => {
                // Iret = Dsgn + Dprp + TTLsig (RFC 7583 §3.2.1).
                let (_, ttl_sig) = keys.ttls.longest(now);
                let wait = policy.signing + policy.propagation + Duration::from_secs(ttl_sig);
                retire_active(keys, role, now, wait);
                keys.enter(next.tag, State::Active, now, Duration::ZERO);
            }
            Step::Remove => keys.held.retain(|held| held.key.tag() != next.tag),
        }
    }
    Ok(changed)
}

/// Starts a rollover now, whatever the lifetimes say.
///
/// # Errors
/// One is under way, or the present KSK was never confirmed ([`Refusal`]); or no key can be made.
pub fn start(
    keys: &mut ZoneKeys,
    role: Role,
    policy: &Policy,
    now: SystemTime,
    make_key: &mut impl FnMut(Role) -> Result<Key, KeyFailure>,
) -> Result<Result<(), Refusal>, KeyFailure> {
    let states: Vec<State> = keys.of_role(role).map(Held::state).collect();
    match states[..] {
        [State::Active] => {}
        [_] => return Ok(Err(Refusal::Unconfirmed)),
        _ => return Ok(Err(Refusal::UnderWay(role))),
    }
    follow_ttls(keys, policy, now);
    publish(keys, role, policy, seconds(now), make_key)?;
    Ok(Ok(()))
}

/// Takes somebody's word that every server of the parent holds the DS of the newest KSK and no other
/// of ours; the KSK before it, if any, retires.
///
/// # Errors
/// There is nothing to confirm, or not yet.
pub fn confirm(keys: &mut ZoneKeys, policy: &Policy, now: SystemTime) -> Result<(), Refusal> {
    let new = keys.of_role(Role::Ksk).find(|held| {
        let state = held.state;
        state == State::Published || state == State::Submitted
    });
    let new = new.ok_or(Refusal::Confirmed)?;
    let tag = new.key.tag();
    // What `advance` would do first may not have been done yet.
    if new.state == State::Published && new.ready() > seconds(now) {
        return Err(Refusal::TooEarly(time(new.ready())));
    }
    // Iret = DprpP + TTLds (RFC 7583 §3.3.1).
    let wait = policy.propagation + policy.ds_ttl;
    retire_active(keys, Role::Ksk, seconds(now), wait);
    keys.enter(tag, State::Active, seconds(now), Duration::ZERO);
    Ok(())
}

fn follow_ttls(keys: &mut ZoneKeys, policy: &Policy, now: SystemTime) -> bool {
    let changed = !keys.ttls.are_of(policy);
    if changed {
        keys.ttls.follow(policy, seconds(now));
    }
    changed
}

fn publish(
    keys: &mut ZoneKeys,
    role: Role,
    policy: &Policy,
    now: u64,
    make_key: &mut impl FnMut(Role) -> Result<Key, KeyFailure>,
) -> Result<(), KeyFailure> {
    let key = keys.new_key(role, make_key)?;
    // Ipub = Dprp + TTLkey (RFC 7583 §3.2.1 and §3.3.1).
    let (ttl_key, _) = keys.ttls.longest(now);
    let wait = policy.propagation + Duration::from_secs(ttl_key);
    keys.insert(key, State::Published, now, wait);
    Ok(())
}

fn retire_active(keys: &mut ZoneKeys, role: Role, now: u64, wait: Duration) {
    let active = keys.of_role(role).find(|held| held.state == State::Active);
    if let Some(tag) = active.map(|held| held.key.tag()) {
        keys.enter(tag, State::Retired, now, wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dnssec::{Dnssec, Moment, Store};

    const HOUR: u64 = 3_600;
    /// In hours since 1970.
    const START: u64 = 500_000;

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * HOUR)
    }

    fn policy() -> Policy {
        Policy {
            ttl_key: hours(4),
            ttl_sig: hours(6),
            ds_ttl: hours(24),
            ..Policy::new(&Dnssec::default(), 0, 0)
        }
    }

    fn origin() -> Name {
        Name::from_ascii("w.example.").unwrap()
    }

    /// What the servers say from some hour on.
    struct View {
        hour: u64,
        keys: Vec<Key>,
        signers: Vec<Key>,
        zone_key: Option<Key>,
    }

    /// One zone, its parent, and every resolver there could be, in real hours.
    struct World {
        folder: tempfile::TempDir,
        store: Store,
        policy: Policy,
        /// The wall clock's error, in hours.
        error: i64,
        views: Vec<View>,
        /// The parent's DS, by the keys they are of.
        ds: Vec<(u64, Vec<Key>)>,
    }

    impl World {
        /// A zone that has not been signed so far.
        fn new(policy: Policy) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let unsigned = View {
                hour: START - 1,
                keys: Vec::new(),
                signers: Vec::new(),
                zone_key: None,
            };
            Self {
                store: Store::open(folder.path()),
                folder,
                policy,
                error: 0,
                views: vec![unsigned],
                ds: vec![(START - 1, Vec::new())],
            }
        }

        fn restart(&mut self) {
            self.store = Store::open(self.folder.path());
        }

        fn moment(&self, hour: u64) -> Moment {
            Moment {
                wall: time(hour.checked_add_signed(self.error).unwrap() * HOUR),
                steady: hours(hour - START),
            }
        }

        /// Lets the server look, and checks all that resolvers could do until the next hour.
        fn look(&mut self, hour: u64) -> ZoneKeys {
            let now = self.moment(hour);
            let keys = self.store.keys(&origin(), &self.policy, now).unwrap();
            self.views.push(View {
                hour,
                keys: keys.held.iter().map(|held| held.key.clone()).collect(),
                signers: keys.signing_keys().cloned().collect(),
                zone_key: Some(keys.zone_key().clone()),
            });
            self.check(hour);
            ZoneKeys::clone(&keys)
        }

        /// The parent gets the DS that the zone asks for.
        fn follow(&mut self, hour: u64, keys: &ZoneKeys) {
            let wanted = keys.ds();
            let of = |key: &&Key| wanted.contains(&key.ds(&origin()));
            self.ds
                .push((hour, keys.signing_keys().filter(of).cloned().collect()));
        }

        /// Someone says so.
        fn confirm(&mut self, hour: u64) -> Result<(), crate::dnssec::KeyError> {
            let now = self.moment(hour).wall;
            self.store
                .confirm_ds(&origin(), &self.policy, now)
                .map(drop)
        }

        /// Everything a resolver may hold fits together (RFC 7583 §3.2.1 and §3.3.1).
        fn check(&self, hour: u64) {
            // What was said until an hour before `next` is held until after that.
            let end = |next: Option<u64>, wait: Duration| next.map(|n| n + wait.as_secs() / HOUR);
            let p = &self.policy;
            let held = |wait: Duration| {
                let nexts = self
                    .views
                    .iter()
                    .skip(1)
                    .map(|view| Some(view.hour))
                    .chain([None]);
                self.views
                    .iter()
                    .zip(nexts)
                    .filter(move |(_, next)| end(*next, wait).is_none_or(|end| end > hour))
                    .map(|(view, _)| view)
            };
            let nexts = self
                .ds
                .iter()
                .skip(1)
                .map(|(hour, _)| Some(*hour))
                .chain([None]);
            let trusted: Vec<&Key> = self
                .ds
                .iter()
                .zip(nexts)
                .filter(|(_, next)| {
                    end(*next, p.propagation + p.ds_ttl).is_none_or(|end| end > hour)
                })
                .flat_map(|((_, keys), _)| keys)
                .collect();
            for view in held(p.propagation + p.ttl_key) {
                for key in &trusted {
                    assert!(
                        view.signers.contains(key),
                        "hour {hour}: DS of {key:?}, set of {} signed by {:?}",
                        view.hour,
                        view.signers
                    );
                }
                for signed in held(p.signing + p.propagation + p.ttl_sig) {
                    match &signed.zone_key {
                        Some(key) => assert!(
                            view.keys.contains(key) || view.keys.is_empty(),
                            "hour {hour}: signed by {key:?} at {}, set of {} is {:?}",
                            signed.hour,
                            view.hour,
                            view.keys
                        ),
                        None => {
                            assert!(trusted.is_empty(), "hour {hour}: unsigned answers are held");
                        }
                    }
                }
            }
        }
    }

    fn states(keys: &ZoneKeys, role: Role) -> Vec<State> {
        keys.of_role(role).map(|held| held.state).collect()
    }

    /// Every hour of ten weeks: the first DS, two ZSK rollovers by the clock, one of the KSK by hand.
    fn live(mut each: impl FnMut(&mut World, u64), restarts: bool) {
        use State::{Active, Published, Retired, Submitted};
        let mut world = World::new(policy());
        let mut seen: [Vec<Vec<State>>; 2] = Default::default();
        let mut zone_keys = Vec::new();
        for hour in START..START + 70 * 24 {
            each(&mut world, hour);
            if restarts {
                world.restart();
            }
            let keys = world.look(hour);
            for (seen, role) in seen.iter_mut().zip([Role::Ksk, Role::Zsk]) {
                let now = states(&keys, role);
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
            }
            zone_keys.push(keys.zone_key().clone());
            let day = hour.is_multiple_of(24);
            if day && !keys.cds().is_empty() && keys.ds_unconfirmed() {
                world.follow(hour, &keys);
                world.check(hour);
                // Somebody says so when every server of the parent has it.
                world.confirm(hour).unwrap();
            }
            if hour == START + 25 * 24 {
                let now = world.moment(hour).wall;
                world
                    .store
                    .roll(&origin(), Role::Ksk, &world.policy, now)
                    .unwrap();
            }
        }
        zone_keys.dedup();
        let [ksk, zsk] = seen;
        let round = |states: &[&[State]], seen: &[Vec<State>]| {
            assert!(
                seen.iter().map(Vec::as_slice).eq(states.iter().copied()),
                "{seen:?}"
            );
        };
        round(
            &[
                &[Published],
                &[Submitted],
                &[Active],
                &[Active, Published],
                &[Active, Submitted],
                &[Retired, Active],
                &[Active],
            ],
            &ksk,
        );
        let once: [&[State]; 4] = [
            &[Active],
            &[Active, Published],
            &[Retired, Active],
            &[Active],
        ];
        let rounds = zone_keys.len() - 1;
        let all: Vec<&[State]> = once
            .iter()
            .copied()
            .chain((1..rounds).flat_map(|_| once.into_iter().skip(1)))
            .collect();
        round(&all, &zsk);
        assert!(rounds >= 1);
    }

    #[test]
    fn no_resolver_ever_holds_what_does_not_fit() {
        live(|_, _| {}, false);
    }

    #[test]
    fn nor_when_the_server_restarts_every_hour() {
        live(|_, _| {}, true);
    }

    #[test]
    fn nor_when_the_clock_is_set_at_any_time() {
        // Into every wait there is: of the first DS, of a ZSK and a KSK, before and after each step.
        for shift in [1_000_i64, -1_000, 400_000, -400_000] {
            live(
                |world, hour| {
                    if hour.is_multiple_of(5) {
                        world.error = if world.error == 0 { shift } else { 0 };
                    }
                },
                false,
            );
        }
    }

    #[test]
    fn nor_when_it_starts_in_1970_and_the_clock_is_then_set_right() {
        let restart = |world: &mut World, hour: u64| {
            if world.error != 0 {
                world.error = 0;
            } else if hour % 24 == 5 {
                world.error = 1 - i64::try_from(hour).unwrap();
                world.restart();
            }
        };
        live(restart, false);
    }

    #[test]
    fn what_a_right_clock_wrote_is_left_alone_when_a_wrong_one_is_set() {
        let mut world = World::new(policy());
        world.look(START);
        // A shorter TTL, so that the longer one is remembered.
        world.policy.ttl_sig = hours(1);
        let before = world.look(START + 1);
        assert!(before.ttls.older.is_some());
        world.restart();
        world.error = -i64::try_from(START).unwrap();
        assert_eq!(world.look(START + 2).held, before.held);
        world.error = 0;
        let after = world.look(START + 3);
        assert_eq!((&after.held, &after.ttls), (&before.held, &before.ttls));

        // What the wrong clock told itself moves along.
        world.restart();
        world.error = -i64::try_from(START).unwrap();
        world.look(START + 4);
        let now = world.moment(START + 4).wall;
        let rolled = world
            .store
            .roll(&origin(), Role::Zsk, &world.policy, now)
            .unwrap();
        assert_eq!(rolled.held[2].since, 4 * HOUR);
        world.error = 0;
        let after = world.look(START + 5);
        assert_eq!(after.held[2].since, (START + 4) * HOUR);
        assert_eq!(after.held[..2], before.held[..2]);
    }

    #[test]
    fn a_clock_that_went_back_while_nobody_looked_undoes_nothing() {
        let mut world = World::new(policy());
        let mut hour = START;
        let mut reach = |world: &mut World, wanted: State| loop {
            hour += 1;
            let keys = world.look(hour);
            if states(&keys, Role::Zsk).contains(&wanted) || hour > START + 40 * 24 {
                return (hour, keys);
            }
        };
        for wanted in [State::Published, State::Retired] {
            let (hour, before) = reach(&mut world, wanted);
            world.error = -10 * 24;
            world.restart();
            let after = world.look(hour);
            assert_eq!((&after.held, &after), (&before.held, &before));
            // And right again.
            world.error = 0;
            world.restart();
            assert_eq!(world.look(hour).held, before.held);
        }
    }

    #[test]
    fn steps_that_are_late_keep_their_distance() {
        let p = policy();
        let at = |hour: u64| time(hour * HOUR);
        let mut make = Key::generate;
        let mut keys = ZoneKeys::first(origin(), &p, at(START), &mut make).unwrap();
        // Off for a year, three times over: each time one step, and the next in its time from then.
        let mut hour = START;
        for (zsk, wait) in [
            (vec![State::Active, State::Published], 1 + 4),
            (vec![State::Retired, State::Active], 1 + 1 + 6),
            (vec![State::Active], 30 * 24 - 5),
        ] {
            hour += 365 * 24;
            // The last wait runs from the activation, a year ago.
            let from = if zsk == [State::Active] {
                hour - 365 * 24
            } else {
                hour
            };
            assert!(advance(&mut keys, &p, at(hour), &mut make).unwrap());
            assert_eq!(states(&keys, Role::Zsk), zsk);
            assert!(
                !advance(&mut keys, &p, at(hour), &mut make).unwrap() || zsk == [State::Active]
            );
            if zsk != [State::Active] {
                assert_eq!(next(&keys, Role::Zsk, &p).unwrap().at(), at(from + wait));
            }
        }
    }

    #[test]
    fn the_admin_acts_in_order() {
        let p = policy();
        let at = |hour: u64| time((START + hour) * HOUR);
        let mut make = Key::generate;
        let mut keys = ZoneKeys::first(origin(), &p, at(0), &mut make).unwrap();
        let roll = |keys: &mut ZoneKeys, role, hour| {
            start(keys, role, &p, at(hour), &mut Key::generate).unwrap()
        };
        assert_eq!(roll(&mut keys, Role::Ksk, 0), Err(Refusal::Unconfirmed));
        assert_eq!(keys.ds_not_before(), Some(at(8)));
        assert_eq!((keys.cds().len(), keys.ds().len()), (0, 1));
        let early = confirm(&mut keys, &p, at(7)).unwrap_err();
        assert_eq!(early, Refusal::TooEarly(at(8)));
        assert!(early.to_string().contains("before 2027-"), "{early}");
        assert!(advance(&mut keys, &p, at(8), &mut make).unwrap());
        assert_eq!((keys.cds().len(), keys.ds_not_before()), (2, None));
        assert_eq!(confirm(&mut keys, &p, at(9)), Ok(()));
        assert_eq!(confirm(&mut keys, &p, at(9)), Err(Refusal::Confirmed));

        let old = keys.ds();
        assert_eq!(roll(&mut keys, Role::Ksk, 10), Ok(()));
        assert_eq!(
            roll(&mut keys, Role::Ksk, 10),
            Err(Refusal::UnderWay(Role::Ksk))
        );
        assert_eq!((keys.ds(), keys.signing_keys().count()), (old.clone(), 2));
        assert_eq!(
            confirm(&mut keys, &p, at(14)),
            Err(Refusal::TooEarly(at(15)))
        );
        assert!(advance(&mut keys, &p, at(15), &mut make).unwrap());
        assert!(keys.ds() != old && keys.ds().len() == 1 && keys.cds().len() == 2);
        assert!(
            !advance(&mut keys, &p, at(500), &mut make).unwrap(),
            "the parent decides"
        );
        let before = keys.clone();
        assert_eq!(confirm(&mut keys, &p, at(500)), Ok(()));
        assert_eq!(keys, before, "the zone is the same");
        assert_eq!(
            roll(&mut keys, Role::Ksk, 500),
            Err(Refusal::UnderWay(Role::Ksk))
        );
        let remove = next(&keys, Role::Ksk, &p).unwrap();
        assert_eq!((remove.step, remove.at()), (Step::Remove, at(500 + 1 + 24)));
        assert_eq!(
            next(
                &keys,
                Role::Zsk,
                &Policy {
                    zsk_lifetime: None,
                    ..p.clone()
                }
            ),
            None
        );
    }

    #[test]
    fn a_ksk_with_a_lifetime_is_replaced_by_itself() {
        let p = Policy {
            ksk_lifetime: Some(hours(1_000)),
            zsk_lifetime: None,
            ..policy()
        };
        let at = |hour: u64| time((START + hour) * HOUR);
        let mut make = Key::generate;
        let mut keys = ZoneKeys::first(origin(), &p, at(0), &mut make).unwrap();
        advance(&mut keys, &p, at(2_000), &mut make).unwrap();
        assert!(
            !advance(&mut keys, &p, at(9_000), &mut make).unwrap(),
            "not before the parent knows the first"
        );
        confirm(&mut keys, &p, at(9_000)).unwrap();
        assert_eq!(keys.next_event(&p), Some(at(9_995)));
        assert!(advance(&mut keys, &p, at(9_995), &mut make).unwrap());
        assert_eq!(keys.signing_keys().count(), 2);
    }

    #[test]
    fn ttls_count_for_as_long_as_they_are_held() {
        let mut p = policy();
        let at = |hour: u64| time((START + hour) * HOUR);
        let mut make = Key::generate;
        let mut keys = ZoneKeys::first(origin(), &p, at(0), &mut make).unwrap();
        p.ttl_key = hours(1);
        assert!(keys.is_due(&p, at(100)) && advance(&mut keys, &p, at(100), &mut make).unwrap());
        let mut early = keys.clone();
        start(&mut early, Role::Zsk, &p, at(101), &mut make)
            .unwrap()
            .unwrap();
        assert_eq!(next(&early, Role::Zsk, &p).unwrap().at(), at(101 + 1 + 4));
        start(&mut keys, Role::Zsk, &p, at(110), &mut make)
            .unwrap()
            .unwrap();
        assert_eq!(next(&keys, Role::Zsk, &p).unwrap().at(), at(110 + 1 + 1));
        p.ttl_key = hours(9);
        assert!(advance(&mut keys, &p, at(111), &mut make).unwrap());
        assert_eq!(
            next(&keys, Role::Zsk, &p).unwrap().at(),
            at(112),
            "sets from before have the old TTL"
        );
    }

    #[test]
    fn tags_are_unique() {
        let p = policy();
        let ksk = Key::generate(Role::Ksk).unwrap();
        let zsk = Key::generate(Role::Zsk).unwrap();
        let mut given = vec![zsk.clone(), zsk.clone(), ksk.clone(), ksk];
        let mut make = |_: Role| given.pop().ok_or(KeyFailure::Random);
        let keys = ZoneKeys::first(origin(), &p, time(START), &mut make).unwrap();
        assert_eq!(keys.zone_key(), &zsk);
        let mut stuck = |_: Role| Ok(zsk.clone());
        let mut keys = keys;
        assert_eq!(
            start(&mut keys, Role::Zsk, &p, time(START), &mut stuck),
            Err(KeyFailure::Random)
        );
        assert_eq!(keys.held.len(), 2, "nothing happened");
    }
}
