//! Cached flows and those that the kernel forwards, as one list: a flow is usually in both.

use datapath_api::v1;
use flowtable::Verdict;
use flowtable::exact::ExactMap;
use flowtable::ids::Vrf;
use flowtable::key::FlowKey;
use flowtable::text::FlowSpec;
use vrouter::{Count, FlowStats, HotFlowStats, NotHot};

use crate::listing::Tenants;

/// A flow of the list.
#[derive(Debug, Clone)]
pub(crate) struct CachedFlow {
    key: FlowKey,
    verdict: Verdict,
    /// By the engine.
    count: Count,
    /// What the kernel has forwarded of it, or why it forwards none.
    offloaded: Result<Count, NotHot>,
}

impl CachedFlow {
    /// Finds the offloaded flows among the cached ones, and adds those that the cache has forgotten.
    /// `refusal` says why one is not offloaded that may be.
    pub(crate) fn join(
        cached: Vec<FlowStats>,
        offloaded: &[HotFlowStats],
        refusal: impl Fn(&FlowKey, Verdict) -> NotHot,
    ) -> Vec<Self> {
        let mut left: ExactMap<FlowKey, &HotFlowStats> =
            offloaded.iter().map(|hot| (name(&hot.flow.key), hot)).collect();
        let flow = |FlowStats { key, verdict, count, not_hot }| {
            let hot = left.remove(&name(&key)).map(|hot| hot.count);
            let offloaded = hot.ok_or_else(|| not_hot.unwrap_or_else(|| refusal(&key, verdict)));
            Self { key, verdict, count, offloaded }
        };
        let mut flows: Vec<Self> = cached.into_iter().map(flow).collect();
        let forgotten = offloaded.iter().filter(|hot| left.contains_key(&name(&hot.flow.key)));
        flows.extend(forgotten.map(|hot| Self {
            key: hot.flow.key,
            verdict: Verdict::Forward(hot.flow.actions),
            count: Count::default(),
            offloaded: Ok(hot.count),
        }));
        flows
    }
}

/// The key without the flags that some rules look at.
fn name(key: &FlowKey) -> FlowKey {
    FlowKey { tcp_flags: 0, ..*key }
}

/// Which flows a client wants.
#[derive(Debug)]
pub(crate) struct FlowFilter {
    pub(crate) spec: FlowSpec,
    pub(crate) vrf: Option<u32>,
    pub(crate) limit: usize,
}

/// The first flows that pass the filter.
pub(crate) fn list(all: &[CachedFlow], filter: &FlowFilter, tenants: &Tenants) -> v1::ListReply {
    let vrf = filter.vrf.or(filter.spec.tenant.vrf.map(Vrf::get));
    let wanted = |flow: &&CachedFlow| {
        filter.spec.matches(&flow.key)
            && vrf.is_none_or(|vrf| tenants.of_flow(&flow.key).is_some_and(|v| v.get() == vrf))
    };
    let mut listed = all.iter().filter(wanted).map(message);
    let flows = listed.by_ref().take(filter.limit).collect();
    v1::ListReply { flows, truncated: listed.next().is_some(), ..v1::ListReply::default() }
}

fn message(flow: &CachedFlow) -> v1::Flow {
    let actions = match &flow.verdict {
        Verdict::Forward(actions) => actions.to_string(),
        Verdict::Punt(punt) => punt.to_string(),
        Verdict::Drop(reason) => format!("drop({reason})"),
    };
    let offloaded = flow.offloaded.unwrap_or_default();
    v1::Flow {
        r#match: flow.key.to_string(),
        actions,
        packets: flow.count.packets + offloaded.packets,
        bytes: flow.count.bytes + offloaded.bytes,
        offload: flow.offloaded.map_or_else(|why| why.name().to_owned(), |_| "yes".to_owned()),
        offloaded_packets: offloaded.packets,
        offloaded_bytes: offloaded.bytes,
    }
}

#[cfg(test)]
mod tests {
    use flowtable::action::{Exit, Pop};
    use flowtable::entry::{Entry, Ipv6, Offload, PortEntry};
    use flowtable::hot::HotFlow;
    use flowtable::ids::{Bd, Group, Mac, PortId};
    use flowtable::{ActionList, DropReason};
    use vrouter::EntryStats;

    use super::*;

    fn cached(in_port: u16, dst_port: u16) -> FlowStats {
        FlowStats {
            key: FlowKey { in_port, dst_port, eth_type: 0x88b5, ..FlowKey::default() },
            verdict: Verdict::Drop(DropReason::NoRoute),
            count: Count { packets: 2, bytes: 120 },
            not_hot: Some(NotHot::NotForwarded),
        }
    }

    const fn refusal(_: &FlowKey, _: Verdict) -> NotHot {
        NotHot::PortQuota
    }

    #[test]
    fn flows_are_filtered_by_text_and_by_tenant() {
        let entry = Entry::Port(PortEntry {
            port: PortId::new(7).unwrap(),
            vrf: Vrf::new(10).unwrap(),
            bd: Bd::new(1).unwrap(),
            group: Group::NONE,
            mac: Mac::GATEWAY,
            ips: Vec::new(),
            ipv6: Ipv6::Off,
            sample_rate: 0,
            offload: Offload::On,
        });
        let tenants = Tenants::new(&[EntryStats { entry, count: Count::default() }]);
        let all = CachedFlow::join(vec![cached(7, 80), cached(7, 81), cached(8, 80)], &[], refusal);
        let count = |text: &str, vrf, limit| {
            let filter = FlowFilter { spec: text.parse().unwrap(), vrf, limit };
            let reply = list(&all, &filter, &tenants);
            (reply.flows.len(), reply.truncated)
        };
        assert_eq!(count("in_port=7", None, 10), (2, false));
        assert_eq!(count("in_port=7", None, 1), (1, true));
        assert_eq!(count("in_port=8", Some(10), 10), (0, false));
        assert_eq!(count("", Some(10), 10), (2, false));
        assert_eq!(count("vrf=11", None, 10), (0, false));
    }

    #[test]
    fn an_offloaded_flow_is_one_flow_with_both_counts_and_another_says_why_not() {
        let actions = ActionList {
            pop: Pop::Nothing,
            route: None,
            dscp: None,
            exit: Exit::Plain(PortId::new(9).unwrap()),
        };
        let hot = |key| HotFlowStats {
            flow: HotFlow { key, actions, set: 0, revision: 1, is_reply: false },
            count: Count { packets: 5, bytes: 700 },
        };
        let flow = FlowStats { verdict: Verdict::Forward(actions), not_hot: None, ..cached(7, 80) };
        let forgotten = FlowKey { tcp_flags: 0, ..cached(7, 82).key };
        let offloaded = [hot(FlowKey { tcp_flags: 16, ..flow.key }), hot(forgotten)];
        let refused = FlowStats { not_hot: None, ..cached(7, 83) };
        let all = CachedFlow::join(vec![flow, cached(7, 81), refused], &offloaded, refusal);
        let told: Vec<_> = all.iter().map(message).collect();
        let told = told.iter().map(|f| (f.packets, f.bytes, f.offloaded_packets, &f.offload[..]));
        let wanted = [
            (7, 820, 5, "yes"),
            (2, 120, 0, "not-forwarded"),
            (2, 120, 0, "port-quota"),
            (5, 700, 5, "yes"),
        ];
        assert_eq!(told.collect::<Vec<_>>(), wanted);
    }
}
