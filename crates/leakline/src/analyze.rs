//! Turns evidence into findings. No file, clock or process is touched below this module.
//!
//! The way: every live sample becomes one or more [deposits](deposit) on a route, an outcome and a line; the deposits are
//! [grouped](group) by route and application line; each group is [judged](decision) by the ages of its survivors; a
//! group that only a leak explains becomes a [finding](finding) with its [rate](rate) and what it [leads to](outlook).
//! Beside them stand [balloons]: what few requests held at once and gave back, which no survivor tells of; what is
//! [retained]: free memory that the allocators keep; and what each route's requests exchanged over [sockets].
//! `docs/decision.md` derives the formulas and gives their measured error rates.
mod balloons;
mod blame;
pub mod decision;
mod deposit;
pub mod evidence;
mod finding;
mod group;
mod lines;
mod outlook;
mod rate;
mod retained;
mod routes;
mod sockets;
mod window;

pub use balloons::{Balloon, Reached};
pub use blame::{Blamed, Taken};
pub use finding::{Analysis, Beside, Finding, Grown, Holder, Kind, Origin, Share, Survivor, findings};
pub use outlook::span;
pub use rate::Rate;
pub use retained::{After, Remedy, Retained};
pub use routes::{RouteTotals, Unattributed};
pub use sockets::SocketTotals;
