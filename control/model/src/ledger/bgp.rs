//! Writes of BGP settings.

use super::{Ledger, Outcome, unchanged};
use crate::bgp::Bgp;
use crate::intent::Object;

impl Ledger {
    /// A second create replaces the first. Nothing is named by them, so nothing can be refused.
    pub(super) fn put_bgp(&mut self, bgp: Bgp) -> Outcome {
        if self.intent.bgps.get(&bgp.host) == Some(&bgp) {
            return unchanged(Object::Bgp(bgp));
        }
        self.commit_one(Object::Bgp(bgp))
    }
}
