//! Compiles `proto/control.proto` without a protoc binary.
use std::path::PathBuf;

use tonic_prost_build::Builder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/control.proto");
    let descriptors = protox::compile(["control.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    written_form(tonic_prost_build::configure()).compile_fds(descriptors)?;
    Ok(())
}

/// Objects have a form for people: `kind` and Contiv's field names. What only netmaster hands out is
/// no part of it, an unknown field is an error, and an absent one is the message's: 0, empty, or none.
fn written_form(mut builder: Builder) -> Builder {
    builder = builder.type_attribute(
        ".control.v1.Object.kind",
        "#[derive(serde::Serialize, serde::Deserialize)] #[serde(tag = \"kind\")]",
    );
    for (field, message, kind) in KINDS {
        builder = builder
            .type_attribute(
                format!(".control.v1.{message}"),
                "#[derive(serde::Serialize, serde::Deserialize)] \
                 #[serde(default, deny_unknown_fields, rename_all = \"camelCase\")]",
            )
            .field_attribute(
                format!(".control.v1.Object.kind.{field}"),
                format!("#[serde(rename = \"{kind}\")]"),
            );
    }
    for (field, name) in NAMES {
        let rename = format!("#[serde(rename = \"{name}\")]");
        builder = builder.field_attribute(format!(".control.v1.{field}"), rename);
    }
    for field in HANDED_OUT {
        builder = builder.field_attribute(format!(".control.v1.{field}"), "#[serde(skip)]");
    }
    builder
}

/// Fields of `Object`, their messages, and the word for the kind: netctl's noun.
const KINDS: [(&str, &str, &str); 13] = [
    ("tenant", "Tenant", "tenant"),
    ("network", "Network", "network"),
    ("endpoint_group", "EndpointGroup", "group"),
    ("policy", "Policy", "policy"),
    ("rule", "Rule", "rule"),
    ("global", "Global", "global"),
    ("endpoint", "Endpoint", "endpoint"),
    ("node", "NodeInfo", "node"),
    ("address_lease", "AddressLease", "lease"),
    ("net_profile", "NetProfile", "netprofile"),
    ("service_lb", "ServiceLb", "service"),
    ("app_profile", "AppProfile", "app-profile"),
    ("bgp", "Bgp", "bgp"),
];

/// Contiv's names where they are not the field's in camel case.
const NAMES: [(&str, &str); 6] = [
    ("NetProfile.dscp", "DSCP"),
    ("Endpoint.endpoint_id", "endpointID"),
    ("Endpoint.container_id", "containerID"),
    ("NodeInfo.vtep_ip", "vtepIP"),
    ("Bgp.as_number", "as"),
    ("Bgp.neighbor_as", "neighbor-as"),
];

/// What netmaster hands out or finds out.
const HANDED_OUT: [&str; 13] = [
    "Tenant.vrf",
    "Network.bd",
    "EndpointGroup.group_id",
    "Rule.cookie",
    "Endpoint.vtep_ip",
    "NodeInfo.acked_revision",
    "NodeInfo.connected",
    "NodeInfo.lag",
    "NodeInfo.dead",
    "AddressLease.expires_at",
    "AddressLease.leaving",
    "AddressLease.left_group",
    "ServiceLb.service_vip",
];
