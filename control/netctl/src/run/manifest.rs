//! Objects as files: `get` writes them, `apply` makes them so, `diff` says what that would change.

use std::io::Read as _;

use clap::ValueEnum as _;
use control_api::v1;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Done, Outcome, Runner};
use crate::args::{ApplyArgs, DiffArgs, Format, GetArgs, KindName};
use crate::data::DataError;
use crate::failure::Failure;
use crate::manifest;
use crate::session::{Rehearsal, Session};
use crate::table;

/// What became, or would become, of an object.
#[derive(Debug, Serialize)]
struct Row {
    kind: String,
    key: String,
    action: &'static str,
}

/// A row with the object before and after.
#[derive(Debug, Serialize)]
struct Difference {
    #[serde(flatten)]
    row: Row,
    before: Value,
    after: Value,
}

impl Runner {
    pub(super) async fn get(&self, args: GetArgs) -> Done {
        let mut session = Session::open(&self.global).await?;
        let objects = match (args.kind, args.key) {
            (Some(kind), Some(key)) => {
                let (found, _) = session.get(kind.kind(), &key).await?;
                vec![v1::Object { kind: Some(found) }]
            }
            (kind, _) => {
                let kinds = kind.map_or(KindName::CONFIGURATION.to_vec(), |kind| vec![kind]);
                let mut all = Vec::new();
                for kind in kinds {
                    all.extend(session.objects(kind.kind(), args.tenant.as_deref()).await?);
                }
                all.retain(|object| !manifest::is_on_its_way_back(object));
                all
            }
        };
        match self.format(&args.output) {
            Format::Data(data) => Ok(manifest::write(&objects, data)?.into()),
            Format::Table => {
                let known = objects.iter().filter_map(manifest::identity);
                let rows: Vec<_> = known.map(|(kind, key)| vec![noun(kind), key]).collect();
                Ok(table::render(&[("Kind", 4), ("Key", 3)], &rows).into())
            }
        }
    }

    pub(super) async fn apply(&self, args: ApplyArgs) -> Done {
        let objects = manifest::read(&text_of(&args.filename)?)?;
        let mut session = Session::open(&self.global).await?;
        let (results, warnings) = session.apply(objects, args.dry_run.into()).await?;
        let rows: Vec<Row> = results.iter().map(Row::of).collect();
        let text = match self.format(&args.output) {
            Format::Data(data) => data.text(&rows)?,
            Format::Table => summary(&rows),
        };
        Ok(Outcome { text, warnings })
    }

    pub(super) async fn diff(&self, args: DiffArgs) -> Done {
        let objects = manifest::read(&text_of(&args.filename)?)?;
        let mut session = Session::open(&self.global).await?;
        let (results, warnings) = session.apply(objects, Rehearsal::Only).await?;
        let changes = results.iter().filter(|result| result.action() != v1::ApplyAction::Unchanged);
        let differences = changes.map(Difference::of).collect::<Result<Vec<_>, _>>()?;
        let text = match self.format(&args.output) {
            Format::Data(data) => data.text(&differences)?,
            Format::Table => differences.iter().map(Difference::lines).collect(),
        };
        Ok(Outcome { text, warnings })
    }
}

/// The text of a file, or of standard input; never more than is worth reading.
fn text_of(name: &str) -> Result<String, Failure> {
    let failed = |source| Failure::File { name: name.to_owned(), source };
    let limit = manifest::BYTES_MAX as u64 + 1;
    let mut text = String::new();
    let read = if name == "-" {
        std::io::stdin().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(name).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(failed)?;
    if text.len() > manifest::BYTES_MAX {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

impl Row {
    fn of(result: &v1::ApplyResult) -> Self {
        let action = match result.action() {
            v1::ApplyAction::Created => "created",
            v1::ApplyAction::Updated => "updated",
            v1::ApplyAction::Unchanged => "unchanged",
            v1::ApplyAction::Deleted => "deleted",
            v1::ApplyAction::Unspecified => "unknown",
        };
        Self { kind: noun(result.kind()), key: result.key.clone(), action }
    }
}

/// A line for each object that changed, and the counts.
fn summary(rows: &[Row]) -> String {
    let count = |action| rows.iter().filter(|row| row.action == action).count();
    let changed = rows.iter().filter(|row| row.action != "unchanged");
    let lines = changed.map(|row| format!("{} {} {}\n", row.action, row.kind, row.key));
    let lines = lines.collect::<Vec<_>>().concat();
    format!(
        "{lines}{} created, {} updated, {} unchanged\n",
        count("created"),
        count("updated"),
        count("unchanged")
    )
}

impl Difference {
    fn of(result: &v1::ApplyResult) -> Result<Self, DataError> {
        let value =
            |object: &Option<v1::Object>| object.as_ref().map_or(Ok(Value::Null), manifest::value);
        let (before, after) = (value(&result.before)?, value(&result.after)?);
        Ok(Self { row: Row::of(result), before, after })
    }

    /// The object with a sign before it, and below it the fields that differ.
    fn lines(&self) -> String {
        let none = Map::new();
        let (before, after) =
            (self.before.as_object().unwrap_or(&none), self.after.as_object().unwrap_or(&none));
        let sign = match self.row.action {
            "created" => '+',
            "deleted" => '-',
            _ => '~',
        };
        let mut lines = vec![format!("{sign} {} {}\n", self.row.kind, self.row.key)];
        let gone = before.iter().filter(|(name, value)| after.get(*name) != Some(value));
        let new = after.iter().filter(|(name, value)| before.get(*name) != Some(value));
        for (sign, (name, value)) in gone.map(|f| ('-', f)).chain(new.map(|f| ('+', f))) {
            if name != "kind" {
                lines.push(format!("{sign}   {name}: {}\n", plain(value)));
            }
        }
        lines.concat()
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The noun of a kind in files.
fn noun(kind: v1::Kind) -> String {
    let named = KindName::value_variants().iter().find(|name| name.kind() == kind);
    named.map_or_else(String::new, |name| name.noun())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use control_api::convert;
    use control_api::v1::object::Kind as Object;
    use control_model::Ledger;

    use super::*;
    use crate::data::Data;

    fn network(gateway: &str) -> v1::Object {
        let network = v1::Network {
            tenant_name: "blue".into(),
            network_name: "web".into(),
            gateway: gateway.into(),
            pkt_tag: 7,
            ..Default::default()
        };
        v1::Object { kind: Some(Object::Network(network)) }
    }

    fn result(
        action: v1::ApplyAction,
        before: Option<v1::Object>,
        after: Option<v1::Object>,
    ) -> v1::ApplyResult {
        let kind = v1::Kind::Network.into();
        v1::ApplyResult { kind, key: "blue:web".into(), action: action.into(), before, after }
    }

    #[test]
    fn cli_1_a_diff_shows_each_field_that_differs() {
        let lines = |result: &v1::ApplyResult| Difference::of(result).unwrap().lines();
        let changed = result(
            v1::ApplyAction::Updated,
            Some(network("10.1.1.254")),
            Some(network("10.1.1.253")),
        );
        assert_eq!(
            lines(&changed),
            "~ network blue:web\n-   gateway: 10.1.1.254\n+   gateway: 10.1.1.253\n"
        );
        let created = result(v1::ApplyAction::Created, None, Some(network("")));
        assert_eq!(
            lines(&created),
            "+ network blue:web\n+   tenantName: blue\n+   networkName: web\n+   pktTag: 7\n"
        );
    }

    #[test]
    fn cli_1_an_apply_names_what_changed_and_counts_the_rest() {
        let rows = [v1::ApplyAction::Created, v1::ApplyAction::Unchanged]
            .map(|action| Row::of(&result(action, None, None)));
        assert_eq!(summary(&rows), "created network blue:web\n1 created, 0 updated, 1 unchanged\n");
    }

    #[test]
    fn every_kind_has_a_noun_and_it_is_the_one_in_files() {
        for kind in KindName::value_variants() {
            let noun = noun(kind.kind());
            let text = format!("kind: {noun}\n");
            let objects = manifest::read(&text).unwrap();
            assert_eq!(manifest::identity(&objects[0]).unwrap().0, kind.kind(), "{noun}");
        }
    }

    /// What does not change while the configurations below do.
    const STAGE: &str = "
[{kind: tenant, tenantName: blue, defaultNetwork: web}, {kind: tenant, tenantName: red},
 {kind: network, tenantName: blue, networkName: web, encap: vxlan, subnet: 10.1.1.0/24},
 {kind: network, tenantName: blue, networkName: db, encap: vxlan, subnet: 10.1.2.0/24},
 {kind: policy, tenantName: blue, policyName: p}, {kind: netprofile, tenantName: blue, profileName: gold},
 {kind: group, tenantName: blue, groupName: g, networkName: web},
 {kind: group, tenantName: blue, groupName: h, networkName: web}]";
    /// Little is said: most fields have their default.
    const PLAIN: &str = "
[{kind: global, name: global, vlans: 1-4094, vxlans: 1-10000, arpMode: proxy, allocation: lowest},
 {kind: tenant, tenantName: blue, defaultVerdict: allow, tracking: stateful, onDeny: cut, maxConnections: 0,
  maxNewFlows: 0, bandwidth: '', burst: 0, offload: 'on'},
 {kind: network, tenantName: blue, networkName: web, encap: vxlan, subnet: 10.1.1.0/24, offload: 'on'},
 {kind: rule, tenantName: blue, policyName: p, ruleId: '1', direction: in, action: allow},
 {kind: rule, tenantName: blue, policyName: p, ruleId: '2', direction: in, action: allow},
 {kind: rule, tenantName: blue, policyName: p, ruleId: '3', direction: in, action: allow},
 {kind: rule, tenantName: blue, policyName: p, ruleId: '4', direction: in, action: allow},
 {kind: netprofile, tenantName: blue, profileName: gold},
 {kind: group, tenantName: blue, groupName: g, networkName: web},
 {kind: app-profile, tenantName: blue, appProfileName: shop},
 {kind: service, tenantName: blue, serviceName: s, networkName: web, selectors: [a=b], ports: ['80:80:TCP']},
 {kind: bgp, hostname: h, routerip: 10.9.0.1/24, as: '1'}]";
    /// Every field that can be changed is another.
    const FULL: &str = "
[{kind: global, name: global, vlans: 2-10, vxlans: 1-20, arpMode: flood, allocation: spread},
 {kind: tenant, tenantName: blue, defaultVerdict: deny, tracking: stateless, onDeny: finish, maxConnections: 9,
  maxNewFlows: 8, bandwidth: 1 Gbps, burst: 100, offload: 'off'},
 {kind: network, tenantName: blue, networkName: web, encap: vxlan, subnet: 10.1.1.0/24, offload: 'off'},
 {kind: rule, tenantName: blue, policyName: p, ruleId: '1', direction: in, priority: 5, fromEndpointGroup: h,
  fromIpAddress: 10.1.1.1, toIpAddress: 10.1.1.9, protocol: tcp, port: 80, action: deny},
 {kind: rule, tenantName: blue, policyName: p, ruleId: '2', direction: in, fromNetwork: db, action: allow},
 {kind: rule, tenantName: blue, policyName: p, ruleId: '3', direction: out, toNetwork: db, action: allow},
 {kind: rule, tenantName: blue, policyName: p, ruleId: '4', direction: out, toEndpointGroup: h, action: allow},
 {kind: netprofile, tenantName: blue, profileName: gold, bandwidth: 10 Mbps, burst: 9, DSCP: 10, scope: group},
 {kind: group, tenantName: blue, groupName: g, networkName: web, policies: [p], netProfile: gold, cfgdTag: x},
 {kind: app-profile, tenantName: blue, appProfileName: shop, endpointGroups: [g]},
 {kind: service, tenantName: blue, serviceName: s, networkName: web, ipAddress: 10.1.1.1, selectors: [c=d],
  ports: ['53:53:UDP']},
 {kind: bgp, hostname: h, routerip: 10.9.0.2/24, as: '2', neighbor: 10.9.0.9, neighbor-as: '3'}]";

    /// What no change is possible of, kind by kind, beside the names that are the key.
    const IMMUTABLE: [(&str, &[&str]); 4] = [
        // These two can be changed while there is no network.
        ("global", &["name", "networkInfraType", "fwdMode", "pvtSubnet"]),
        ("tenant", &["defaultNetwork"]),
        (
            "network",
            &[
                "nwType",
                "encap",
                "pktTag",
                "subnet",
                "gateway",
                "ipv6Subnet",
                "ipv6Gateway",
                "cfgdTag",
            ],
        ),
        ("group", &["ipPool", "ipv6Pool"]),
    ];
    const NAMES: [&str; 10] = [
        "kind",
        "tenantName",
        "networkName",
        "policyName",
        "ruleId",
        "profileName",
        "groupName",
        "appProfileName",
        "serviceName",
        "hostname",
    ];

    fn apply(ledger: &mut Ledger, text: &str) -> Vec<v1::ApplyResult> {
        let batch = convert::to_batch(&manifest::read(text).unwrap(), &[]).unwrap();
        let (applied, _) =
            ledger.apply(&batch).unwrap_or_else(|refused| panic!("{refused}: {text}"));
        applied.iter().map(convert::from_applied).collect()
    }

    /// A rule that names an address of its own group needs it to be there.
    fn attach(ledger: &mut Ledger) {
        let node = v1::NodeInfo { node_name: "n1".into(), ..Default::default() };
        let endpoint = v1::Endpoint {
            endpoint_id: "c1:eth0".into(),
            tenant_name: "blue".into(),
            network_name: "web".into(),
            endpoint_group: "g".into(),
            ip_address: vec!["10.1.1.9".into()],
            homing_host: "n1".into(),
            ..Default::default()
        };
        for kind in [Object::Node(node), Object::Endpoint(endpoint)] {
            let spec = convert::to_spec(&v1::Object { kind: Some(kind) }).unwrap();
            ledger.create(spec).unwrap();
        }
    }

    fn rehearse(ledger: &Ledger, text: &str) -> String {
        let results = apply(&mut ledger.clone(), text);
        let changed = results.iter().filter(|r| r.action() != v1::ApplyAction::Unchanged);
        changed.map(|result| Difference::of(result).unwrap().lines()).collect()
    }

    /// What `get` prints.
    fn saved(ledger: &Ledger, data: Data) -> String {
        let kinds = KindName::CONFIGURATION.iter();
        let objects = kinds.flat_map(|name| {
            let kind = convert::to_kind(name.kind().into()).unwrap();
            ledger.intent().objects(kind)
        });
        let objects: Vec<_> = objects.map(|object| convert::from_model(&object)).collect();
        manifest::write(&objects, data).unwrap()
    }

    /// All fields of all kinds, as `get -o json` has them; what it leaves out is null.
    fn fields(text: &str) -> BTreeMap<(String, String), Map<String, Value>> {
        let objects = manifest::read(text).unwrap();
        let whole = |object: &v1::Object| {
            let (_, key) = manifest::identity(object).unwrap();
            let Value::Object(fields) = serde_json::to_value(&object.kind).unwrap() else {
                panic!()
            };
            let kind = fields["kind"].as_str().unwrap().to_owned();
            ((kind, key), fields)
        };
        objects.iter().map(whole).collect()
    }

    /// Fields of each kind that differ between two saved states.
    fn changed(one: &str, other: &str) -> BTreeMap<String, BTreeSet<String>> {
        let (one, other) = (fields(one), fields(other));
        let mut changed = BTreeMap::<String, BTreeSet<String>>::new();
        for ((kind, key), fields) in one {
            let Some(others) = other.get(&(kind.clone(), key)) else { continue };
            let names = fields.into_iter().filter(|(name, value)| others[name] != *value);
            changed.entry(kind).or_default().extend(names.map(|(name, _)| name));
        }
        changed
    }

    /// Fields that can be changed, by kind.
    fn mutable(kind: &str) -> BTreeSet<String> {
        let blank = &manifest::read(&format!("kind: {kind}\n")).unwrap()[0].kind;
        let Value::Object(all) = serde_json::to_value(blank).unwrap() else { panic!() };
        let immutable = IMMUTABLE.iter().find(|(name, _)| *name == kind);
        let immutable = immutable.map_or(&[][..], |(_, fields)| fields);
        let names = all.into_iter().map(|(name, _)| name);
        names.filter(|name| ![&NAMES, immutable].concat().contains(&name.as_str())).collect()
    }

    #[test]
    fn cli_1_a_saved_file_restores_every_field_that_was_changed_since() {
        for (data, then, now) in [
            (Data::Yaml, PLAIN, FULL),
            (Data::Json, PLAIN, FULL),
            (Data::Yaml, FULL, PLAIN),
            (Data::Json, FULL, PLAIN),
        ] {
            let mut ledger = Ledger::default();
            apply(&mut ledger, STAGE);
            attach(&mut ledger);
            apply(&mut ledger, then);
            let file = saved(&ledger, data);
            apply(&mut ledger, now);
            for (kind, changed) in changed(&file, &saved(&ledger, data)) {
                assert_eq!(changed, mutable(&kind), "all that can be changed of a {kind}");
            }
            let differs = rehearse(&ledger, &file);
            for kind in KindName::CONFIGURATION.iter().filter(|kind| **kind != KindName::Policy) {
                assert!(differs.contains(&format!("~ {} ", kind.noun())), "{kind:?}: {differs}");
            }
            apply(&mut ledger, &file);
            assert_eq!(saved(&ledger, data), file);
            assert_eq!(rehearse(&ledger, &file), "");
        }
    }

    #[test]
    fn cli_1_saved_settings_restore_what_networks_would_forbid() {
        let mut ledger = Ledger::default();
        let file = saved(&ledger, Data::Yaml);
        apply(&mut ledger, "{kind: global, fwdMode: bridge, pvtSubnet: 10.0.0.0/16}");
        assert_eq!(
            rehearse(&ledger, &file),
            "~ global global\n-   fwdMode: bridge\n-   pvtSubnet: 10.0.0.0/16\n\
             +   fwdMode: routing\n+   pvtSubnet: 172.19.0.0/16\n"
        );
        apply(&mut ledger, &file);
        assert_eq!(saved(&ledger, Data::Yaml), file);
    }
}
