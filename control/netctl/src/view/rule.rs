//! Rules of a policy, with the counters of the data plane: two tables, one per direction, as Contiv
//! prints them; `--stats` adds two columns before the last.

use std::collections::BTreeMap;

use control_api::v1;
use serde::Serialize;

use super::View;
use crate::table::{self, Column};

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuleView {
    key: String,
    tenant_name: String,
    policy_name: String,
    rule_id: String,
    direction: String,
    priority: u32,
    from_endpoint_group: String,
    to_endpoint_group: String,
    from_network: String,
    to_network: String,
    from_ip_address: String,
    to_ip_address: String,
    protocol: String,
    port: u32,
    action: String,
    /// The rule's id in the data plane, as `vrctl trace` prints it.
    cookie: u64,
    packets: u64,
    bytes: u64,
}

/// Whether the tables show counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stats {
    Shown,
    Hidden,
}

const INCOMING: &[Column] = &[
    ("Rule", 4),
    ("Priority", 8),
    ("From EndpointGroup", 18),
    ("From Network", 12),
    ("From IpAddress", 9),
    ("To IpAddress", 12),
    ("Protocol", 8),
    ("Port", 4),
    ("Action", 6),
];
const OUTGOING: &[Column] = &[
    ("Rule", 4),
    ("Priority", 8),
    ("To EndpointGroup", 16),
    ("To Network", 10),
    ("To IpAddress", 9),
    ("Protocol", 8),
    ("Port", 4),
    ("Action", 6),
];
const WATCHED: &[Column] = &[
    ("Rule", 4),
    ("Direction", 9),
    ("Priority", 8),
    ("EndpointGroup", 13),
    ("Network", 7),
    ("From IpAddress", 14),
    ("To IpAddress", 12),
    ("Protocol", 8),
    ("Port", 4),
    ("Action", 6),
];
const COUNTERS: &[Column] = &[("Packets", 7), ("Bytes", 5)];

impl RuleView {
    /// Fills in what the data plane counted. Rules without a counter have decided nothing yet.
    pub(crate) fn with_counters(mut rules: Vec<Self>, counters: &[v1::RuleCounter]) -> Vec<Self> {
        let by_cookie: BTreeMap<u64, &v1::RuleCounter> =
            counters.iter().map(|counter| (counter.cookie, counter)).collect();
        for rule in &mut rules {
            if let Some(counter) = by_cookie.get(&rule.cookie) {
                (rule.packets, rule.bytes) = (counter.packets, counter.bytes);
            }
        }
        rules
    }

    /// Lowest priority first, as Contiv sorts; the order within a priority is netmaster's.
    pub(crate) fn sorted(mut rules: Vec<Self>) -> Vec<Self> {
        rules.sort_by_key(|rule| rule.priority);
        rules
    }
}

/// Both tables.
pub(crate) fn rule_tables(rules: &[RuleView], stats: Stats) -> String {
    let table = |direction: &str, columns: &[Column]| {
        let columns = match stats {
            Stats::Shown => [columns, COUNTERS].concat(),
            Stats::Hidden => columns.to_vec(),
        };
        let of_direction = rules.iter().filter(|rule| rule.direction == direction);
        let rows: Vec<_> = of_direction.map(|rule| cells(rule, stats)).collect();
        table::render(&columns, &rows)
    };
    format!("Incoming Rules:\n{}Outgoing Rules:\n{}", table("in", INCOMING), table("out", OUTGOING))
}

fn cells(rule: &RuleView, stats: Stats) -> Vec<String> {
    let mut cells = rule.row();
    if stats == Stats::Shown {
        cells.extend([rule.packets.to_string(), rule.bytes.to_string()]);
    }
    cells
}

impl View for RuleView {
    const KIND: v1::Kind = v1::Kind::Rule;
    const COLUMNS: &'static [Column] = INCOMING;
    type Oper = ();

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::Rule(r) = kind else { return None };
        Some(Self {
            key: format!("{}:{}:{}", r.tenant_name, r.policy_name, r.rule_id),
            tenant_name: r.tenant_name,
            policy_name: r.policy_name,
            rule_id: r.rule_id,
            direction: r.direction,
            priority: r.priority,
            from_endpoint_group: r.from_endpoint_group,
            to_endpoint_group: r.to_endpoint_group,
            from_network: r.from_network,
            to_network: r.to_network,
            from_ip_address: r.from_ip_address,
            to_ip_address: r.to_ip_address,
            protocol: r.protocol,
            port: r.port,
            action: r.action,
            cookie: r.cookie,
            packets: 0,
            bytes: 0,
        })
    }

    fn name(&self) -> &str {
        &self.rule_id
    }

    fn row(&self) -> Vec<String> {
        let (rule, priority) = (self.rule_id.clone(), self.priority.to_string());
        let peer = if self.direction == "in" {
            vec![
                self.from_endpoint_group.clone(),
                self.from_network.clone(),
                self.from_ip_address.clone(),
                self.to_ip_address.clone(),
            ]
        } else {
            vec![
                self.to_endpoint_group.clone(),
                self.to_network.clone(),
                self.to_ip_address.clone(),
            ]
        };
        let l4 = [self.protocol.clone(), self.port.to_string(), self.action.clone()];
        [rule, priority].into_iter().chain(peer).chain(l4).collect()
    }

    fn watch_columns() -> &'static [Column] {
        WATCHED
    }

    fn watch_row(&self) -> Vec<String> {
        // A rule names the other end only: one of the two is empty.
        let either = |from: &str, to: &str| [from, to].concat();
        vec![
            self.rule_id.clone(),
            self.direction.clone(),
            self.priority.to_string(),
            either(&self.from_endpoint_group, &self.to_endpoint_group),
            either(&self.from_network, &self.to_network),
            self.from_ip_address.clone(),
            self.to_ip_address.clone(),
            self.protocol.clone(),
            self.port.to_string(),
            self.action.clone(),
        ]
    }

    fn oper(&self, _oper: v1::Oper) {}
}
