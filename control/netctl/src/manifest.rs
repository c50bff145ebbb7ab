//! Objects in files: YAML documents or JSON, each an object or a list of them. An object has a
//! `kind`, netctl's noun for it, and Contiv's field names. Applied, a file that was written here restores
//! what it was written of: a field is left out only where its absence says the same.

use control_api::v1;
use control_api::v1::object::Kind as Object;
use serde_json::{Map, Value};
use serde_saphyr::{Budget, Options};

use crate::data::{Data, DataError};

/// Longest input, in bytes. What netmaster takes at once is smaller.
pub(crate) const BYTES_MAX: usize = 16 << 20;
/// An object is two deep, a list of them three.
const DEPTH_MAX: usize = 8;
/// Far more than netmaster takes at once; its refusal is the better one.
const OBJECTS_MAX: usize = 100_000;
/// Names and values, at most 20 fields of an object.
const NODES_MAX: usize = 100 * OBJECTS_MAX;

/// Why a text is no list of objects.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("not YAML or JSON: {0}")]
    Syntax(#[from] serde_saphyr::Error),
    #[error("object {place} is not one: {source}")]
    Object {
        /// Counted from 1, through all documents.
        place: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    #[error("there is no object in it")]
    Empty,
}

/// Reads all objects of a text.
pub(crate) fn read(text: &str) -> Result<Vec<v1::Object>, ManifestError> {
    let mut budget = Budget::default();
    budget.max_depth = DEPTH_MAX;
    // References between parts make small texts large; objects are written out.
    (budget.max_aliases, budget.max_anchors) = (0, 0);
    (budget.max_events, budget.max_nodes) = (NODES_MAX, NODES_MAX);
    (budget.max_documents, budget.max_total_scalar_bytes) = (OBJECTS_MAX, BYTES_MAX);
    let mut options = Options::default();
    (options.budget, options.with_snippet) = (Some(budget), false);
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)?;
    let values = documents.into_iter().flat_map(|document| match document {
        Value::Array(objects) => objects,
        Value::Null => Vec::new(),
        one @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            vec![one]
        }
    });
    let objects = values.enumerate().map(|(index, value)| {
        let kind = serde_json::from_value(value)
            .map_err(|source| ManifestError::Object { place: index + 1, source })?;
        Ok(v1::Object { kind: Some(kind) })
    });
    let objects: Vec<v1::Object> = objects.collect::<Result<_, ManifestError>>()?;
    if objects.is_empty() { Err(ManifestError::Empty) } else { Ok(objects) }
}

/// What [`read`] reads: one document an object, or in JSON one list.
pub(crate) fn write(objects: &[v1::Object], data: Data) -> Result<String, DataError> {
    let values = objects.iter().map(value).collect::<Result<Vec<_>, _>>()?;
    match data {
        Data::Json => data.text(&values),
        Data::Yaml => Ok(values
            .iter()
            .map(|value| Ok("---\n".to_owned() + &data.text(value)?))
            .collect::<Result<Vec<_>, DataError>>()?
            .concat()),
    }
}

/// An object as it is written: without the fields that read the same when they are absent. A bound of a
/// tenant is written also when it is 0, since an absent one leaves the bound as it is.
pub(crate) fn value(object: &v1::Object) -> Result<Value, DataError> {
    const KIND: &str = "kind";
    let mut value = serde_json::to_value(&object.kind)?;
    if let Value::Object(fields) = &mut value {
        let only_kind =
            Map::from_iter(fields.get_key_value(KIND).map(|(k, v)| (k.clone(), v.clone())));
        let blank: Object = serde_json::from_value(Value::Object(only_kind))?;
        let blank = serde_json::to_value(blank)?;
        fields.retain(|name, value| name == KIND || blank.get(name) != Some(value));
    }
    Ok(value)
}

/// Whether it is an address that nobody has reserved and that nodes may still know. It is in no file:
/// applied, it would be a reservation.
pub(crate) fn is_on_its_way_back(object: &v1::Object) -> bool {
    match &object.kind {
        Some(Object::AddressLease(o)) => o.leaving && o.owner.is_empty() && o.ttl_seconds == 0,
        Some(_) | None => false,
    }
}

/// Kind and key of an object.
pub(crate) fn identity(object: &v1::Object) -> Option<(v1::Kind, String)> {
    let join = |names: &[&str]| names.join(":");
    Some(match object.kind.as_ref()? {
        Object::Tenant(o) => (v1::Kind::Tenant, o.tenant_name.clone()),
        Object::Network(o) => (v1::Kind::Network, join(&[&o.tenant_name, &o.network_name])),
        Object::EndpointGroup(o) => {
            (v1::Kind::EndpointGroup, join(&[&o.tenant_name, &o.group_name]))
        }
        Object::Policy(o) => (v1::Kind::Policy, join(&[&o.tenant_name, &o.policy_name])),
        Object::Rule(o) => (v1::Kind::Rule, join(&[&o.tenant_name, &o.policy_name, &o.rule_id])),
        Object::Global(o) => (v1::Kind::Global, o.name.clone()),
        Object::Endpoint(o) => (v1::Kind::Endpoint, o.endpoint_id.clone()),
        Object::Node(o) => (v1::Kind::Node, o.node_name.clone()),
        Object::AddressLease(o) => {
            (v1::Kind::AddressLease, join(&[&o.tenant_name, &o.network_name, &o.address]))
        }
        Object::NetProfile(o) => (v1::Kind::NetProfile, join(&[&o.tenant_name, &o.profile_name])),
        Object::ServiceLb(o) => (v1::Kind::ServiceLb, join(&[&o.tenant_name, &o.service_name])),
        Object::AppProfile(o) => {
            (v1::Kind::AppProfile, join(&[&o.tenant_name, &o.app_profile_name]))
        }
        Object::Bgp(o) => (v1::Kind::Bgp, o.hostname.clone()),
    })
}

#[cfg(test)]
mod tests {
    use control_api::v1::object::Kind;

    use super::*;

    fn network() -> v1::Object {
        let network = v1::Network {
            tenant_name: "blue".into(),
            network_name: "web".into(),
            encap: "vxlan".into(),
            pkt_tag: 7,
            subnet: "10.1.1.0/24".into(),
            ipv6_subnet: "2001:db8::/64".into(),
            ..Default::default()
        };
        v1::Object { kind: Some(Kind::Network(network)) }
    }

    /// One object of each kind that users write, with every field set.
    fn all() -> Vec<v1::Object> {
        let text = r#"
            { "kind": "global", "name": "global", "networkInfraType": "default", "vlans": "1-10",
              "vxlans": "1-100", "fwdMode": "routing", "arpMode": "proxy", "pvtSubnet": "172.19.0.0/16" },
            { "kind": "tenant", "tenantName": "red", "maxConnections": 0, "maxNewFlows": 0, "bandwidth": "",
              "burst": 0 },
            { "kind": "tenant", "tenantName": "blue", "defaultNetwork": "web", "defaultVerdict": "deny",
              "tracking": "stateless", "onDeny": "finish", "maxConnections": 9, "maxNewFlows": 8,
              "bandwidth": "1 Gbps", "burst": 100, "offload": "off" },
            { "kind": "policy", "tenantName": "blue", "policyName": "guard" },
            { "kind": "rule", "tenantName": "blue", "policyName": "guard", "ruleId": "1",
              "direction": "in", "priority": 5, "fromEndpointGroup": "web", "fromIpAddress": "10.1.1.1",
              "toIpAddress": "10.1.1.2", "protocol": "tcp", "port": 80, "action": "allow" },
            { "kind": "netprofile", "tenantName": "blue", "profileName": "gold",
              "bandwidth": "10 Mbps", "burst": 9, "DSCP": 10, "scope": "group" },
            { "kind": "group", "tenantName": "blue", "groupName": "front", "networkName": "web",
              "ipPool": "10.1.1.5-10.1.1.9", "policies": ["guard"], "netProfile": "gold", "cfgdTag": "x" },
            { "kind": "app-profile", "tenantName": "blue", "appProfileName": "shop",
              "endpointGroups": ["front"] },
            { "kind": "service", "tenantName": "blue", "serviceName": "s", "networkName": "web",
              "ipAddress": "10.1.1.20", "selectors": ["a=b"], "ports": ["80:8080:TCP"] },
            { "kind": "bgp", "hostname": "h", "routerip": "10.0.0.1/24", "as": "65001",
              "neighbor": "10.0.0.2", "neighbor-as": "65002" }"#;
        let mut objects = read(&format!("[{text}]")).unwrap();
        objects.push(network());
        objects
    }

    #[test]
    fn cli_1_what_is_written_reads_back_in_both_forms() {
        for data in [Data::Json, Data::Yaml] {
            let text = write(&all(), data).unwrap();
            assert_eq!(read(&text).unwrap(), all(), "{text}");
        }
    }

    #[test]
    fn cli_1_a_document_has_kind_and_contivs_field_names_and_nothing_that_says_nothing() {
        assert_eq!(
            write(&[network()], Data::Yaml).unwrap(),
            "---\nkind: network\ntenantName: blue\nnetworkName: web\nencap: vxlan\npktTag: 7\n\
             subnet: 10.1.1.0/24\nipv6Subnet: 2001:db8::/64\n"
        );
    }

    #[test]
    fn an_address_on_its_way_back_is_no_reservation() {
        let leaving = v1::AddressLease { leaving: true, ..v1::AddressLease::default() };
        let owned = v1::AddressLease { owner: "db-1".into(), ..leaving.clone() };
        let ending = v1::AddressLease { ttl_seconds: 9, ..leaving.clone() };
        let reserved = v1::AddressLease { owner: "db-1".into(), ..v1::AddressLease::default() };
        let back = [leaving, owned, ending, reserved]
            .map(|lease| is_on_its_way_back(&v1::Object { kind: Some(Kind::AddressLease(lease)) }));
        assert_eq!(back, [true, false, false, false]);
    }

    #[test]
    fn lists_documents_and_empty_ones_mix() {
        let text = "---\n---\n- kind: tenant\n  tenantName: a\n- kind: tenant\n  tenantName: b\n\
                    ---\nkind: tenant\ntenantName: c\n";
        let names: Vec<String> = read(text)
            .unwrap()
            .into_iter()
            .map(|object| match object.kind {
                Some(Kind::Tenant(tenant)) => tenant.tenant_name,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn what_is_no_object_is_named_by_its_place() {
        for (text, part) in [
            ("", "there is no object in it"),
            ("kind: [", "not YAML or JSON"),
            (
                "kind: tenant\ntenantName: a\n---\nkind: tenant\nname: b\n",
                "object 2 is not one: unknown field `name`",
            ),
            ("kind: tennant\n", "object 1 is not one: unknown variant `tennant`"),
            ("tenantName: a\n", "missing field `kind`"),
            ("kind: tenant\ntenantName: a\ntenantName: b\n", "duplicate"),
            ("kind: network\npktTag: many\n", "expected u32"),
            ("kind: network\npktTag: -1\n", "expected u32"),
            ("kind: tenant\nvrf: 1\n", "unknown field `vrf`"),
            ("just text", "object 1 is not one"),
            ("a: &x b\nc: *x\n", "not YAML or JSON"),
            ("[[[[[[[[[[[[]]]]]]]]]]]]", "not YAML or JSON"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
