//! `explain`: which rules let one end open a connection to another.

use control_api::v1;
use serde::Serialize;

use super::{Done, Outcome, Runner};
use crate::args::{ExplainArgs, Format};
use crate::session::Session;

/// One pair of ends, as programs read it.
#[derive(Debug, Serialize)]
struct Pair {
    from: End,
    to: End,
    out: Option<Side>,
    r#in: Option<Side>,
    verdict: String,
    reason: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    #[serde(rename = "endpointID")]
    endpoint_id: String,
    endpoint_group: String,
    ip_address: String,
    homing_host: String,
}

/// What an end says; the rule is empty where the tenant's default speaks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Side {
    policy_name: String,
    rule_id: String,
    priority: u32,
    action: String,
}

impl Runner {
    pub(super) async fn explain(&self, args: ExplainArgs) -> Done {
        let format = self.format(&args.output);
        let question = v1::ExplainRequest {
            tenant_name: args.tenant,
            from: args.from,
            to: args.to,
            protocol: args.protocol,
            port: args.port,
        };
        let reply = Session::open(&self.global).await?.explain(question).await?;
        let warnings = warnings(&reply);
        let pairs: Vec<Pair> = reply.pairs.into_iter().map(Pair::from).collect();
        let text = match format {
            Format::Data(data) => data.text(&pairs)?,
            Format::Table => pairs.iter().map(Pair::lines).collect::<Vec<_>>().concat(),
        };
        Ok(Outcome { text, warnings })
    }
}

fn warnings(reply: &v1::ExplainReply) -> Vec<String> {
    let partial = reply.partial.then_some("the groups have more endpoints than are shown");
    let stateless = (reply.tracking == "stateless").then_some(
        "the tenant is stateless: replies need rules of their own, ask the other way too",
    );
    partial.into_iter().chain(stateless).map(str::to_owned).collect()
}

impl From<v1::ExplainPair> for Pair {
    fn from(pair: v1::ExplainPair) -> Self {
        Self {
            from: pair.from.unwrap_or_default().into(),
            to: pair.to.unwrap_or_default().into(),
            out: Side::of(pair.out),
            r#in: Side::of(pair.r#in),
            verdict: pair.verdict,
            reason: pair.reason,
        }
    }
}

impl From<v1::ExplainEnd> for End {
    fn from(end: v1::ExplainEnd) -> Self {
        Self {
            endpoint_id: end.endpoint_id,
            endpoint_group: end.endpoint_group,
            ip_address: end.ip_address,
            homing_host: end.homing_host,
        }
    }
}

impl Side {
    fn of(side: Option<v1::ExplainSide>) -> Option<Self> {
        let side = side.filter(|side| side.asked)?;
        let v1::ExplainSide { policy_name, rule_id, priority, action, .. } = side;
        Some(Self { policy_name, rule_id, priority, action })
    }

    fn words(&self) -> String {
        let Self { policy_name, rule_id, priority, action } = self;
        if rule_id.is_empty() {
            format!("{action}, by the tenant's default")
        } else {
            format!("{action}, by rule {rule_id} of policy {policy_name}, priority {priority}")
        }
    }
}

impl End {
    fn words(&self) -> String {
        if self.endpoint_id.is_empty() {
            return format!("{} (no endpoint)", self.ip_address);
        }
        let group = if self.endpoint_group.is_empty() { "-" } else { &self.endpoint_group };
        format!(
            "{} ({}, group {group}, on {})",
            self.ip_address, self.endpoint_id, self.homing_host
        )
    }
}

impl Pair {
    fn lines(&self) -> String {
        let side = |side: &Option<Side>| {
            side.as_ref().map_or_else(|| "not asked: no endpoint".to_owned(), Side::words)
        };
        let reason =
            if self.reason.is_empty() { String::new() } else { format!(" ({})", self.reason) };
        format!(
            "{} -> {}\n  out: {}\n  in:  {}\n  verdict: {}{reason}\n",
            self.from.words(),
            self.to.words(),
            side(&self.out),
            side(&self.r#in),
            self.verdict,
        )
    }
}

#[cfg(test)]
mod tests {
    use control_api::v1;

    use super::{Pair, warnings};

    #[test]
    fn cli_1_an_explanation_names_the_deciding_rule_at_both_ends() {
        let pair = v1::ExplainPair {
            from: Some(v1::ExplainEnd {
                endpoint_id: "c1:eth0".into(),
                endpoint_group: "web".into(),
                ip_address: "10.1.1.1".into(),
                homing_host: "node-a".into(),
            }),
            to: Some(v1::ExplainEnd { ip_address: "192.0.2.9".into(), ..Default::default() }),
            out: Some(v1::ExplainSide {
                asked: true,
                policy_name: "guard".into(),
                rule_id: "1".into(),
                priority: 10,
                action: "deny".into(),
            }),
            r#in: Some(v1::ExplainSide::default()),
            verdict: "drop".into(),
            reason: "policy-deny".into(),
        };
        assert_eq!(
            Pair::from(pair).lines(),
            "10.1.1.1 (c1:eth0, group web, on node-a) -> 192.0.2.9 (no endpoint)\n\
             \x20 out: deny, by rule 1 of policy guard, priority 10\n\
             \x20 in:  not asked: no endpoint\n\
             \x20 verdict: drop (policy-deny)\n"
        );
    }

    #[test]
    fn what_an_answer_leaves_out_is_said() {
        let reply =
            v1::ExplainReply { partial: true, tracking: "stateless".into(), ..Default::default() };
        assert_eq!(warnings(&reply).len(), 2);
        assert!(warnings(&v1::ExplainReply::default()).is_empty());
    }
}
