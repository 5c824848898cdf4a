//! From what a site should be doing and what its container does to the steps in between: pure.

use crate::engine::Status;

/// How much of a site should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Files alone.
    Archived,
    /// A stopped container.
    Asleep,
    /// A frozen one.
    Dozing,
    /// A running one.
    Awake,
}

/// A container as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) digest: String,
    pub(crate) status: Status,
}

/// One thing to do to a site's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    Start,
    Unpause,
    Pause,
    Stop,
    Remove,
}

/// What is missing between `seen` and `level` of a container made from `digest`; `None` for a site
/// that is declared no more.
///
/// Sleep goes by way of a doze: requests that come meanwhile find a frozen site, which waits for
/// them, never a dying one.
pub(crate) fn plan(wanted: Option<(&str, Level)>, seen: Option<&Seen>) -> &'static [Step] {
    use Step::{Create, Pause, Remove, Start, Stop, Unpause};
    let status = seen.map(|seen| seen.status);
    let Some((digest, level)) = wanted else {
        return match status {
            None => &[],
            Some(Status::Stopped) => &[Remove],
            Some(Status::Running | Status::Paused) => &[Stop, Remove],
        };
    };
    let outdated = seen.is_some_and(|seen| seen.digest != digest);
    if outdated {
        // Its address is fixed, so the old one has to go first.
        return match (status, level) {
            (Some(Status::Stopped), Level::Awake) => &[Remove, Create, Start],
            (Some(Status::Stopped), _) => &[Remove],
            (_, Level::Awake) => &[Stop, Remove, Create, Start],
            (Some(Status::Running), Level::Dozing | Level::Asleep) => &[Pause],
            _ => &[Stop, Remove],
        };
    }
    match (status, level) {
        (None, Level::Awake) => &[Create, Start],
        (Some(Status::Stopped), Level::Awake) => &[Start],
        (Some(Status::Paused), Level::Awake) => &[Unpause],
        (Some(Status::Running), Level::Dozing | Level::Asleep | Level::Archived) => &[Pause],
        (Some(Status::Paused), Level::Asleep) => &[Stop],
        (Some(Status::Paused), Level::Archived) => &[Stop, Remove],
        (Some(Status::Stopped), Level::Archived) => &[Remove],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(steps: &[Step], seen: Option<Seen>, digest: &str) -> Option<Seen> {
        let mut seen = seen;
        for step in steps {
            let status = match step {
                Step::Remove => {
                    assert!(seen.is_some(), "nothing to remove");
                    seen = None;
                    continue;
                }
                Step::Create => {
                    assert!(seen.is_none(), "two containers of one site");
                    seen = Some(Seen {
                        id: "new".into(),
                        digest: digest.into(),
                        status: Status::Stopped,
                    });
                    continue;
                }
                Step::Start | Step::Unpause => Status::Running,
                Step::Pause => Status::Paused,
                Step::Stop => Status::Stopped,
            };
            seen.as_mut().expect("a container").status = status;
        }
        seen
    }

    /// From every start to every aim, in a few rounds, and then nothing more to do.
    #[test]
    fn every_world_converges_and_rests() {
        let statuses = [Status::Running, Status::Paused, Status::Stopped];
        let mut starts = vec![None];
        for digest in ["old", "now"] {
            starts.extend(statuses.map(|status| {
                Some(Seen {
                    id: "x".into(),
                    digest: digest.into(),
                    status,
                })
            }));
        }
        let levels = [Level::Archived, Level::Asleep, Level::Dozing, Level::Awake];
        for start in &starts {
            for level in levels {
                let mut seen = start.clone();
                for _ in 0..3 {
                    seen = apply(plan(Some(("now", level)), seen.as_ref()), seen, "now");
                }
                assert!(
                    plan(Some(("now", level)), seen.as_ref()).is_empty(),
                    "{start:?} {level:?}"
                );
                match level {
                    Level::Awake => {
                        let seen = seen.expect("a container");
                        assert_eq!((seen.status, &*seen.digest), (Status::Running, "now"));
                    }
                    Level::Archived => assert_eq!(seen, None),
                    _ => assert!(seen.is_none_or(|seen| seen.status != Status::Running)),
                }
            }
            let seen = apply(plan(None, start.as_ref()), start.clone(), "now");
            assert_eq!(seen, None, "{start:?}");
        }
    }

    #[test]
    fn sleep_never_stops_what_is_not_frozen() {
        for level in [Level::Asleep, Level::Archived] {
            let seen = Seen {
                id: "x".into(),
                digest: "now".into(),
                status: Status::Running,
            };
            assert_eq!(plan(Some(("now", level)), Some(&seen)), [Step::Pause]);
        }
    }
}
