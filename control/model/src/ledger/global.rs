//! Writes of the global settings.

use super::{Ledger, Outcome, unchanged};
use crate::global::{FwdMode, GlobalSpec};
use crate::intent::Object;
use crate::network::Encap;
use crate::refusal::{Reason, Refused};

impl Ledger {
    pub(super) fn set_global(&mut self, spec: &GlobalSpec) -> Result<Outcome, Refused> {
        let current = &self.intent.global;
        let wanted = current.changed_by(spec);
        if !self.vlans.fits(wanted.vlans) {
            let reason = Reason::TagRangeInUse { kind: "vlan" };
            return Err(Refused::new("vlans", &wanted.vlans, reason));
        }
        if !self.vxlans.fits(wanted.vxlans) {
            let reason = Reason::TagRangeInUse { kind: "vxlan" };
            return Err(Refused::new("vxlans", &wanted.vxlans, reason));
        }
        if wanted.fwd_mode != current.fwd_mode {
            self.check_forwarding(wanted.fwd_mode)?;
        }
        if wanted.pvt_subnet != current.pvt_subnet && !self.intent.networks.is_empty() {
            let reason = Reason::PrivateSubnetInUse { networks: self.network_counts() };
            return Err(Refused::new("pvtSubnet", &wanted.pvt_subnet, reason));
        }
        if wanted == *current {
            return Ok(unchanged(Object::Global(wanted)));
        }
        self.tags_mut(Encap::Vlan).set_range(wanted.vlans);
        self.tags_mut(Encap::Vxlan).set_range(wanted.vxlans);
        Ok(self.commit_one(Object::Global(wanted)))
    }

    fn check_forwarding(&self, wanted: FwdMode) -> Result<(), Refused> {
        let refuse = |reason| Err(Refused::new("fwdMode", wanted.name(), reason));
        if !self.intent.networks.is_empty() {
            return refuse(Reason::ForwardingInUse { networks: self.network_counts() });
        }
        if wanted == FwdMode::Bridge && !self.intent.bgps.is_empty() {
            return refuse(Reason::ForwardingHasBgp);
        }
        Ok(())
    }

    /// As Contiv counts them: `1 vlans and 2 vxlans`.
    fn network_counts(&self) -> String {
        let counts = [(self.vlans.count(), "vlans"), (self.vxlans.count(), "vxlans")];
        let some = counts.iter().filter(|(count, _)| *count > 0);
        some.map(|(count, kind)| format!("{count} {kind}")).collect::<Vec<_>>().join(" and ")
    }
}
