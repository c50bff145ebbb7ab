//! Flows that the kernel forwards without the engine, one by one and in numbers.

use datapath_api::v1;
use serde::Serialize;

/// A cached flow, and what of it is offloaded.
#[derive(Debug, Serialize)]
pub(crate) struct CachedFlowView {
    #[serde(rename = "match")]
    matches: String,
    actions: String,
    packets: u64,
    bytes: u64,
    offload: String,
    offloaded_packets: u64,
    offloaded_bytes: u64,
}

impl From<v1::Flow> for CachedFlowView {
    fn from(flow: v1::Flow) -> Self {
        Self {
            matches: flow.r#match,
            actions: flow.actions,
            packets: flow.packets,
            bytes: flow.bytes,
            offload: flow.offload,
            offloaded_packets: flow.offloaded_packets,
            offloaded_bytes: flow.offloaded_bytes,
        }
    }
}

/// What a reason asks of who wants the flow to be offloaded.
fn meaning(offload: &str) -> &str {
    match offload {
        "yes" => "the kernel forwards it",
        "off" => "offloading is off: `vrctl offload on`",
        "new" => "it has not carried enough yet",
        "switched-off" => "it is off for a tenant or network: `netctl tenant|network update`",
        "not-forwarded" => "it is dropped, or the gateway answers it",
        "off-node" => {
            "it comes from or goes to a VLAN, or to another node by an uplink without wr-vx0"
        }
        "protocol" => "it is neither TCP nor UDP",
        "unusual" => "fragments, IP options or a TTL of 1",
        "metered" => "a rate limits it",
        "not-established" => "its connection is not answered yet, or is ending",
        "flag-rules" => "rules look at the TCP flags of each of its packets",
        "port-quota" => "its sender has all the flows it may have: --offload-port-flows",
        "tenant-quota" => "its tenant has all the flows it may have: --offload-tenant-flows",
        "full" => "all places are taken: --offload-flows",
        "watched" => "somebody watches it: `vrctl trace --live`",
        "refused" => "its offer waits or was refused: `vrctl offload` counts why",
        _ => "this version of vrctl does not know why",
    }
}

/// The lines of `flow get`.
pub(crate) fn cached_flow_lines(flows: &[CachedFlowView]) -> String {
    let lines = |f: &CachedFlowView| {
        format!(
            "{} actions={}\n  packets: {}, bytes: {}\n  offload: {} ({}), packets: {}, bytes: {}\n",
            f.matches,
            f.actions,
            f.packets,
            f.bytes,
            f.offload,
            meaning(&f.offload),
            f.offloaded_packets,
            f.offloaded_bytes,
        )
    };
    flows.iter().map(lines).collect::<Vec<_>>().concat()
}

/// Offloaded flows in numbers.
#[derive(Debug, Serialize)]
pub(crate) struct OffloadView {
    on: bool,
    flows: u64,
    flows_max: u64,
    packets: u64,
    bytes: u64,
    offloaded: u64,
    idle: u64,
    ended: u64,
    changed: u64,
    confirmed: u64,
    refused: Vec<RefusalView>,
    tenants: Vec<TenantView>,
}

#[derive(Debug, Serialize)]
struct TenantView {
    vrf: u32,
    flows: u32,
    flows_max: u32,
    ports_off: u32,
}

#[derive(Debug, Serialize)]
struct RefusalView {
    reason: String,
    count: u64,
}

impl From<v1::OffloadReply> for OffloadView {
    fn from(reply: v1::OffloadReply) -> Self {
        let tenant = |t: v1::offload_reply::Tenant| TenantView {
            vrf: t.vrf,
            flows: t.flows,
            flows_max: t.flows_max,
            ports_off: t.ports_off,
        };
        let refusal =
            |r: v1::offload_reply::Refusal| RefusalView { reason: r.reason, count: r.count };
        Self {
            on: reply.on,
            flows: reply.flows,
            flows_max: reply.flows_max,
            packets: reply.packets,
            bytes: reply.bytes,
            offloaded: reply.offloaded,
            idle: reply.idle,
            ended: reply.ended,
            changed: reply.changed,
            confirmed: reply.confirmed,
            refused: reply.refused.into_iter().map(refusal).collect(),
            tenants: reply.tenants.into_iter().map(tenant).collect(),
        }
    }
}

/// The lines of `offload`.
pub(crate) fn offload_lines(view: &OffloadView) -> String {
    let state = match (view.flows_max, view.on) {
        (0, _) => "not possible here, see vrouterd's log",
        (_, true) => "on",
        (_, false) => "off",
    };
    let refused = view.refused.iter().map(|r| format!("refused ({}): {}\n", r.reason, r.count));
    let tenants = view.tenants.iter().map(|t| {
        let TenantView { vrf, flows, flows_max, ports_off } = t;
        format!("vrf {vrf}: {flows} of {flows_max} flows, {ports_off} ports switched off\n")
    });
    format!(
        "offload: {state}\nflows: {} of {}\npackets: {}\nbytes: {}\noffloaded: {}\nidle: {}\n\
         ended: {}\nchanged: {}\nconfirmed: {}\n{}",
        view.flows,
        view.flows_max,
        view.packets,
        view.bytes,
        view.offloaded,
        view.idle,
        view.ended,
        view.changed,
        view.confirmed,
        refused.chain(tenants).collect::<Vec<_>>().concat()
    )
}

#[cfg(test)]
mod tests {
    use datapath_api::v1;
    use datapath_api::v1::offload_reply::{Refusal, Tenant};

    use super::{CachedFlowView, OffloadView, cached_flow_lines, offload_lines};

    fn flow(offload: &str) -> CachedFlowView {
        let flow = v1::Flow {
            r#match: "in_port=3,tcp".into(),
            actions: "output:4".into(),
            packets: 20,
            bytes: 2000,
            offload: offload.into(),
            offloaded_packets: 4,
            offloaded_bytes: 400,
        };
        flow.into()
    }

    #[test]
    fn a_flow_says_whether_it_is_offloaded_and_why_not() {
        assert_eq!(
            cached_flow_lines(&[flow("yes"), flow("metered")]),
            "in_port=3,tcp actions=output:4\n  packets: 20, bytes: 2000\n  \
             offload: yes (the kernel forwards it), packets: 4, bytes: 400\n\
             in_port=3,tcp actions=output:4\n  packets: 20, bytes: 2000\n  \
             offload: metered (a rate limits it), packets: 4, bytes: 400\n"
        );
        assert_eq!(
            serde_json::to_string(&flow("yes")).unwrap(),
            r#"{"match":"in_port=3,tcp","actions":"output:4","packets":20,"bytes":2000,"offload":"yes","offloaded_packets":4,"offloaded_bytes":400}"#
        );
    }

    #[test]
    fn offloaded_flows_are_told_in_numbers() {
        let reply = v1::OffloadReply {
            on: true,
            flows: 2,
            flows_max: 64,
            packets: 9,
            bytes: 900,
            offloaded: 8,
            idle: 1,
            ended: 2,
            changed: 3,
            confirmed: 4,
            refused: vec![Refusal { reason: "full".into(), count: 5 }],
            tenants: vec![Tenant { vrf: 3, flows: 2, flows_max: 32, ports_off: 1 }],
        };
        let view = OffloadView::from(reply);
        assert_eq!(
            offload_lines(&view),
            "offload: on\nflows: 2 of 64\npackets: 9\nbytes: 900\noffloaded: 8\nidle: 1\nended: 2\n\
             changed: 3\nconfirmed: 4\nrefused (full): 5\n\
             vrf 3: 2 of 32 flows, 1 ports switched off\n"
        );
        assert_eq!(
            serde_json::to_string(&view).unwrap(),
            r#"{"on":true,"flows":2,"flows_max":64,"packets":9,"bytes":900,"offloaded":8,"idle":1,"ended":2,"changed":3,"confirmed":4,"refused":[{"reason":"full","count":5}],"tenants":[{"vrf":3,"flows":2,"flows_max":32,"ports_off":1}]}"#
        );
        let none = OffloadView::from(v1::OffloadReply::default());
        assert!(offload_lines(&none).starts_with("offload: not possible here"));
    }
}
