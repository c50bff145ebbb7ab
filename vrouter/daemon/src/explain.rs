//! Traces as messages of `datapath.v1`.

use datapath_api::v1;
use flowtable::Verdict;
use flowtable::meter::Colour;
use flowtable::text::MaskedKey;
use vrouter::{LiveTrace, MeterUse, MeterWay, Tier, Trace, TraceStep};

/// What an imagined packet of `packet_bytes` is. `tier` would answer now; `None`: nobody knows.
pub(crate) fn imagined(trace: Trace, tier: Option<Tier>, packet_bytes: usize) -> v1::TraceReply {
    let bytes = u32::try_from(packet_bytes).unwrap_or(u32::MAX);
    v1::TraceReply {
        cache: tier.map_or("", Tier::name).to_owned(),
        packet_bytes: bytes,
        ..message(trace)
    }
}

/// What a real packet was.
pub(crate) fn live(live: LiveTrace) -> v1::TraceReply {
    v1::TraceReply {
        cache: live.tier.name().to_owned(),
        packet_bytes: live.frame_len,
        ..message(live.trace)
    }
}

fn message(trace: Trace) -> v1::TraceReply {
    let (verdict, reason, out_ports) = match trace.verdict {
        Verdict::Forward(actions) => ("forward", "", vec![u32::from(actions.output().get())]),
        Verdict::Punt(_) => ("punt", "", Vec::new()),
        Verdict::Drop(reason) => ("drop", reason.name(), Vec::new()),
    };
    let mask = trace.key.map(|key| MaskedKey { key: &key, mask: &trace.mask }.to_string());
    v1::TraceReply {
        verdict: verdict.to_owned(),
        reason: reason.to_owned(),
        rule: trace.rule.map_or(0, |r| r.0),
        out_ports,
        steps: trace.steps.into_iter().map(step).collect(),
        flow: trace.key.map_or_else(String::new, |key| key.to_string()),
        mask: mask.unwrap_or_default(),
        ct_state: trace.ct_state.to_owned(),
        meters: trace.meters.into_iter().map(meter).collect(),
        in_port: trace.key.map_or(0, |key| key.in_port.into()),
        ..v1::TraceReply::default()
    }
}

fn step(step: TraceStep) -> v1::TraceStep {
    v1::TraceStep {
        table: step.table.to_owned(),
        rule: step.rule.map_or(0, |r| r.0),
        r#match: step.matched,
        actions: step.actions,
    }
}

fn meter(charge: MeterUse) -> v1::TraceMeter {
    let way = match charge.way {
        MeterWay::From => "from",
        MeterWay::To => "to",
    };
    let colour = charge.colour.map_or("", |colour| match colour {
        Colour::Green => "green",
        Colour::Yellow => "yellow",
        Colour::Red => "red",
    });
    v1::TraceMeter { meter: charge.meter.get(), way: way.to_owned(), colour: colour.to_owned() }
}

#[cfg(test)]
mod tests {
    use flowtable::DropReason;
    use flowtable::ids::{MeterId, RuleId};
    use flowtable::key::FlowKey;

    use super::*;

    #[test]
    fn a_trace_says_packet_mask_state_and_meters() {
        let key = FlowKey { in_port: 5, eth_type: 0x88b5, ..FlowKey::default() };
        let meter = |id, way, colour| MeterUse { meter: MeterId::new(id).unwrap(), way, colour };
        let trace = Trace {
            verdict: Verdict::Drop(DropReason::RateLimit),
            rule: Some(RuleId(7)),
            steps: Vec::new(),
            key: Some(key),
            mask: FlowKey { in_port: u16::MAX, ..FlowKey::default() },
            ct_state: "+trk+new",
            meters: vec![meter(3, MeterWay::From, Some(Colour::Red)), meter(4, MeterWay::To, None)],
        };
        let reply = live(LiveTrace { trace: trace.clone(), frame_len: 60, tier: Tier::Masked });
        assert_eq!((reply.verdict.as_str(), reply.reason.as_str()), ("drop", "rate-limit"));
        assert_eq!((reply.rule, reply.in_port, reply.packet_bytes), (7, 5, 60));
        assert_eq!((reply.mask.as_str(), reply.cache.as_str()), ("in_port=5", "masked"));
        assert_eq!((reply.flow, reply.ct_state), (key.to_string(), "+trk+new".to_owned()));
        let meters = reply.meters.iter().map(|m| (m.meter, m.way.as_str(), m.colour.as_str()));
        assert_eq!(meters.collect::<Vec<_>>(), [(3, "from", "red"), (4, "to", "")]);
        assert_eq!(imagined(trace, None, 60).cache, "");
    }
}
