//! What is known of sites at run time: which of them are awake, and where.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

/// What a site's container is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No container: it is made when somebody looks.
    #[default]
    Archived,
    /// A stopped container.
    Asleep,
    /// Being started or unfrozen.
    Waking,
    /// Answering.
    Awake,
    /// Frozen in memory.
    Dozing,
    /// Failed again and again: left alone until somebody mends it.
    Crashed,
}

impl State {
    /// Every state, for metrics and tables.
    pub const ALL: [Self; 6] = [
        Self::Archived,
        Self::Asleep,
        Self::Waking,
        Self::Awake,
        Self::Dozing,
        Self::Crashed,
    ];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Archived => "archived",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
            Self::Awake => "awake",
            Self::Dozing => "dozing",
            Self::Crashed => "crashed",
        }
    }
}

/// What is known of one site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// What its container is doing.
    pub state: State,
    /// Where it answers.
    pub address: Option<SocketAddr>,
    /// Changes with each start: what was connected to an older one is not connected to this one.
    #[serde(default)]
    pub generation: u64,
    /// Whether its disk is full.
    #[serde(default)]
    pub full: bool,
    /// Why it does not run, when it should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Sites by full name. What is not here is archived.
pub type Observed = HashMap<Arc<str>, Live>;

/// One line of the observed stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// What is known of a site now.
    Site(Arc<str>, Live),
    /// Nothing is known of it any more.
    Gone(Arc<str>),
    /// Everything known at the start of the stream has been said.
    Whole,
    /// Nothing new; control is alive.
    Alive,
}
