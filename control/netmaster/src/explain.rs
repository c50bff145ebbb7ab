//! `Explain`: the question as the model asks it, and its answer as a message.

use control_api::v1;
use control_model::{
    End, Explained, Explanation, Party, Permit, Protocol, Question, Reason, Refused, Side,
    TenantName, Tracking,
};

/// Reads a question.
pub(crate) fn question(request: &v1::ExplainRequest) -> Result<Question, Refused> {
    let protocol = Protocol::parse("protocol", &request.protocol)?;
    let bad_protocol = || Refused::new("protocol", &request.protocol, Reason::BadProtocol);
    let protocol = protocol.ok_or_else(bad_protocol)?;
    let port = u16::try_from(request.port);
    let bad_port = |_too_large| Refused::new("port", &request.port, Reason::BadPort);
    let port = port.map_err(bad_port)?;
    // A packet of these has a port; "any" has no verdict.
    if matches!(protocol, Protocol::Tcp | Protocol::Udp) && port == 0 {
        return Err(Refused::new("port", &port, Reason::NoPort));
    }
    Ok(Question {
        tenant: TenantName::parse("tenantName", &request.tenant_name)?,
        from: End::parse("from", &request.from)?,
        to: End::parse("to", &request.to)?,
        protocol,
        port,
    })
}

/// Writes an answer.
pub(crate) fn reply(explained: &Explained, revision: u64) -> v1::ExplainReply {
    let tracking = match explained.tracking {
        Tracking::Stateful => "stateful",
        Tracking::Stateless => "stateless",
    };
    v1::ExplainReply {
        pairs: explained.pairs.iter().map(pair).collect(),
        partial: !explained.is_whole,
        tracking: tracking.to_owned(),
        revision,
    }
}

fn pair(explanation: &Explanation) -> v1::ExplainPair {
    let dropped = explanation.dropped();
    v1::ExplainPair {
        from: Some(end(&explanation.from)),
        to: Some(end(&explanation.to)),
        out: Some(side(explanation.out.as_ref())),
        r#in: Some(side(explanation.into.as_ref())),
        verdict: if dropped.is_some() { "drop" } else { "forward" }.to_owned(),
        reason: dropped.map(|reason| reason.to_string()).unwrap_or_default(),
    }
}

fn end(party: &Party) -> v1::ExplainEnd {
    v1::ExplainEnd {
        endpoint_id: party.endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
        endpoint_group: party.group.as_ref().map(ToString::to_string).unwrap_or_default(),
        ip_address: party.address.to_string(),
        homing_host: party.node.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn side(side: Option<&Side>) -> v1::ExplainSide {
    let Some(side) = side else { return v1::ExplainSide::default() };
    let action = match side.permit {
        Permit::Allow => "allow",
        Permit::Deny => "deny",
    };
    let rule = side.rule.as_ref();
    v1::ExplainSide {
        asked: true,
        policy_name: rule.map(|rule| rule.policy.to_string()).unwrap_or_default(),
        rule_id: rule.map(|rule| rule.rule.to_string()).unwrap_or_default(),
        priority: side.priority.into(),
        action: action.to_owned(),
    }
}
