//! The keys zones are signed with, and their life: made at first use, rolled over by the timings of
//! RFC 7583, kept in one state file a zone; and the signing itself.
//!
//! ```text
//! Policy ─┐
//! clock  ─┼─> rollover (pure) ─> ZoneKeys ─> DNSKEY, CDS, CDNSKEY, DS; who signs what
//! file   ─┘        └── Store: reads, locks, saves, follows other processes
//! ```

mod clock;
mod kept;
mod key;
mod policy;
mod rollover;
mod sign;
mod signers;
mod store;
mod zone_keys;

pub use clock::Moment;
pub use kept::Kept;
pub use key::{Key, KeyFailure, Role};
pub use policy::{Dnssec, Policy};
pub use rollover::{Next, Refusal, Step, advance, confirm, next, start};
pub use sign::{Sealed, sign};
pub use signers::Signers;
pub use store::{KeyError, Store};
pub use zone_keys::{Held, State, ZoneKeys};
