//! `nuage zone ds`, `keys` and `roll`: the DNSSEC keys of a zone.

use std::time::SystemTime;

use anyhow::bail;
use common::{
    Declared,
    dnssec::{Dnssec, Held, Policy, Role, State, Step, Store, ZoneKeys, next},
    record::master_line,
};
use hickory_proto::{
    dnssec::rdata::DS,
    rr::{Name, Record, RecordData},
};

use super::{delegation::plain, zone::find};
use crate::{
    args::KeyRole,
    output::{Done, Output, table},
};

/// A signed zone and where its keys are.
struct Signed {
    origin: Name,
    policy: Policy,
    store: Store,
}

/// The zone, when the files say that it is signed.
fn signed(declared: &Declared, origin: &str) -> anyhow::Result<Signed> {
    let authority = &find(declared, origin)?.content;
    let registry = declared.registry();
    let forward = registry
        .zones
        .iter()
        .find(|zone| zone.authority.apex == authority.apex);
    let dnssec = match forward {
        Some(zone) => zone.dnssec.clone(),
        None => declared.config().reverse.dnssec.then(Dnssec::default),
    };
    let origin = Name::from(&authority.apex);
    let store = Store::open(&declared.config().edge);
    let Some(dnssec) = dnssec else {
        let how = match forward {
            Some(zone) => format!(
                "add [dnssec] with enabled = true to {}",
                zone.file.display()
            ),
            None => "add dnssec = true to [reverse] of the configuration".to_owned(),
        };
        let mut text = format!("{} isn't signed: {how}", plain(&authority.apex));
        if let Some(warning) = store.warning_when_unsigned(&origin) {
            text = format!("{text}\n{warning}");
        }
        bail!(text);
    };
    Ok(Signed {
        policy: Policy::of(&dnssec, authority),
        origin,
        store,
    })
}

/// Prints what the parent must hold, or takes the word that it does.
pub(super) fn ds(
    declared: &Declared,
    origin: &str,
    published: bool,
    output: &Output,
) -> anyhow::Result<Done> {
    let zone = signed(declared, origin)?;
    if published {
        let keys = zone
            .store
            .confirm_ds(&zone.origin, &zone.policy, SystemTime::now())?;
        let tags: Vec<u16> = keys.ds().iter().map(DS::key_tag).collect();
        output.print(&serde_json::json!({ "confirmed": tags }), || {
            let mut text = format!("noted: the parent zone holds the DS record of {tags:?}\n");
            if let Some(next) = next(&keys, Role::Ksk, &zone.policy)
                && next.step == Step::Remove
            {
                text += &format!("the old KSK {} goes after {}\n", next.tag, date(next.at()));
            }
            text
        })?;
        return Ok(Done::Well);
    }
    let keys = zone.store.read(&zone.origin)?;
    let ttl = u32::try_from(zone.policy.ds_ttl.as_secs()).unwrap_or(u32::MAX);
    let records: Vec<String> = keys
        .ds()
        .into_iter()
        .map(|ds| {
            master_line(&Record::from_rdata(
                zone.origin.clone(),
                ttl,
                ds.into_rdata(),
            ))
        })
        .collect();
    let early = keys.ds_not_before().filter(|at| *at > SystemTime::now());
    let json = serde_json::json!({
        "ds": records,
        "cds_published": !keys.cds().is_empty(),
        "not_before": early.map(date),
        "confirmed": !keys.ds_unconfirmed(),
    });
    output.print(&json, || {
        // The whole stays a master file.
        let mut lines = records.clone();
        match early {
            Some(at) => lines.push(format!(
                "; not before {}: resolvers may still hold answers that were not signed",
                date(at)
            )),
            None => lines.push(
                "; CDS and CDNSKEY records of the zone say the same, for parents that look there (RFC 7344)"
                    .to_owned(),
            ),
        }
        if keys.ds_unconfirmed() {
            lines.push(
                "; when every server of the parent has it, and no other of ours: the same command with --published"
                    .to_owned(),
            );
        }
        lines.join("\n") + "\n"
    })?;
    Ok(Done::Well)
}

/// Shows the keys.
pub(super) fn list(declared: &Declared, origin: &str, output: &Output) -> anyhow::Result<Done> {
    let zone = signed(declared, origin)?;
    let keys = zone.store.read(&zone.origin)?;
    print(&keys, &zone.policy, output)
}

/// Starts a rollover.
pub(super) fn roll(
    declared: &Declared,
    origin: &str,
    role: KeyRole,
    output: &Output,
) -> anyhow::Result<Done> {
    let zone = signed(declared, origin)?;
    let role = match role {
        KeyRole::Zsk => Role::Zsk,
        KeyRole::Ksk => Role::Ksk,
    };
    let now = SystemTime::now();
    let keys = zone.store.roll(&zone.origin, role, &zone.policy, now)?;
    print(&keys, &zone.policy, output)
}

fn print(keys: &ZoneKeys, policy: &Policy, output: &Output) -> anyhow::Result<Done> {
    let rows: Vec<[String; 6]> = keys
        .held()
        .iter()
        .map(|held| row(keys, held, policy))
        .collect();
    let json: Vec<_> = keys
        .held()
        .iter()
        .zip(&rows)
        .map(|(held, [_, _, state, since, next, at])| {
            serde_json::json!({
                "tag": held.key().tag(),
                "role": held.key().role(),
                "state": state,
                "since": since,
                "next": (next != "-").then_some(next),
                "at": (at != "-").then_some(at),
            })
        })
        .collect();
    output.print(&json, || {
        let mut all = vec![
            ["TAG", "ROLE", "STATE", "SINCE", "NEXT", "WHEN"]
                .map(str::to_owned)
                .to_vec(),
        ];
        all.extend(rows.iter().map(|row| row.to_vec()));
        table("", &all)
    })?;
    Ok(Done::Well)
}

fn row(keys: &ZoneKeys, held: &Held, policy: &Policy) -> [String; 6] {
    let role = held.key().role();
    let state = match held.state() {
        State::Published => "published",
        State::Submitted => "waiting for the parent",
        State::Active => "active",
        State::Retired => "retired",
    };
    let tag = held.key().tag();
    let next = next(keys, role, policy).filter(|next| next.tag == tag);
    let (what, at) = match (&next, held.state()) {
        (Some(next), _) => {
            let what = match next.step {
                Step::Publish => "a successor is published",
                Step::Submit => "CDS asks for its DS",
                Step::Activate => "signs",
                Step::Remove => "is removed",
            };
            (what, date(next.at()))
        }
        (None, State::Submitted) => ("nuage zone ds", "when its DS is at the parent".to_owned()),
        (None, _) => ("-", "-".to_owned()),
    };
    [
        tag.to_string(),
        role.to_string(),
        state.to_owned(),
        date(held.since()),
        what.to_owned(),
        at,
    ]
}

fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
