//! The checks, in the order of the demo.

mod detach;
mod outage;
mod policy;
mod reach;
mod sflow;
mod speed;
mod tenants;
mod trace;

use crate::check::Check;

/// Every check. They run in this order on one world: the last ones take it apart.
pub const ALL: &[Check] = &[
    reach::CHECK,
    tenants::CHECK,
    policy::CHECK,
    trace::CHECK,
    outage::CHECK,
    sflow::CHECK,
    detach::CHECK,
    speed::CHECK,
];
