//! Turns evidence into findings. No file, clock or process is touched below this module.
//!
//! The way: every live sample becomes one or more [deposits](deposit) on a route, an outcome and a line; the deposits are
//! [grouped](group) by route and application line; each group is [judged](decision) by the ages of its survivors; a
//! group that only a leak explains becomes a [finding](finding) with its [rate](rate) and what it [leads to](outlook).
//! Beside them stand [balloons]: what few requests held at once and gave back, which no survivor tells of.
//! What each route's requests exchanged over [sockets] stands beside all of them. `docs/decision.md` derives the formulas and gives their measured error rates.
mod balloons;
pub mod decision;
mod deposit;
pub mod evidence;
mod finding;
mod group;
mod lines;
mod outlook;
mod rate;
mod routes;
mod sockets;
mod window;

pub use balloons::{Balloon, Reached};
pub use finding::{Analysis, Finding, Grown, Kind, Origin, Share, findings};
pub use outlook::span;
pub use rate::Rate;
pub use routes::{RouteTotals, Unattributed};
pub use sockets::SocketTotals;
