//! Everything of Nuage that needs no socket: the files people write, the names in them, and the
//! immutable [`Registry`] that DNS and proxy answer from.
//!
//! Data flows one way:
//!
//! ```text
//! nuage.toml ─> config ─┐
//! zones/*.toml ─> zone ─┼─> compile ─> Registry ─> publish (one atomic store)
//! serials (state) ──────┘
//! ```
//!
//! [`declared`] drives that flow over a folder of files, keeps the last good content of each zone,
//! and [`watch`] calls it when a file lands. [`edit`] changes a zone file for the command line.

pub mod answers;
pub mod authority;
pub mod config;
pub mod container;
pub mod containers;
pub mod declared;
pub mod difference;
pub mod dnssec;
pub mod durable;
pub mod edit;
pub mod gate;
pub mod group;
pub mod journal;
pub mod labels;
pub mod lookup;
pub mod metrics;
pub mod name;
pub mod observed;
mod paths;
pub mod problem;
pub mod publish;
pub mod record;
pub mod registry;
pub mod reverse;
pub mod secondary;
pub mod serial;
pub mod served;
pub mod signed;
pub mod site;
mod stamp;
mod table;
pub mod watch;
pub mod wire;
pub mod zone;

pub use config::Config;
pub use declared::Declared;
pub use lookup::{Answer, lookup};
pub use name::{HostName, SiteName};
pub use problem::{Position, Problem, Severity};
pub use publish::Published;
pub use registry::{Registry, Route};
pub use site::{Backend, HttpsPolicy, Site};
pub use zone::Zone;
