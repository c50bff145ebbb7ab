//! Results on stdout, in the shape of the configuration's version.
//!
//! libcni refuses a result in another version than it asked for, so newer fields are left out and
//! older ones (`ips[].version` before 1.0.0) put in.

use cni_api::v1::{AddReply, Ip};
use serde_json::{Value, json};

use crate::config::Dns;
use crate::version::Version;

/// Index of the container's end in `interfaces`: the host's end comes first.
const CONTAINER_INTERFACE: u32 = 1;

/// Where the container's end went, in the runtime's own words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sandbox<'a> {
    pub(crate) ifname: &'a str,
    pub(crate) netns: &'a str,
}

/// The result of ADD.
pub(crate) fn added(reply: &AddReply, sandbox: Sandbox<'_>, dns: &Dns, version: Version) -> Value {
    let mut host = json!({"name": reply.host_ifname, "mac": reply.host_mac});
    let mut container = json!({"name": sandbox.ifname, "mac": reply.mac, "sandbox": sandbox.netns});
    if version >= Version::V1_1_0 {
        host["mtu"] = json!(reply.mtu);
        container["mtu"] = json!(reply.mtu);
    }
    let ips: Vec<Value> = reply.ips.iter().map(|ip| address(ip, version)).collect();
    let routes: Vec<Value> =
        reply.routes.iter().map(|r| without_empty("gw", &r.gw, json!({"dst": r.dst}))).collect();
    let mut result = json!({
        "cniVersion": version.text(),
        "interfaces": [host, container],
        "ips": ips,
    });
    if !routes.is_empty() {
        result["routes"] = json!(routes);
    }
    if *dns != Dns::default() {
        result["dns"] = json!(dns);
    }
    result
}

/// The result of ADD behind other plugins: theirs, with what is not so any more.
pub(crate) fn adopted(
    previous: &Value,
    reply: &AddReply,
    sandbox: Sandbox<'_>,
    dns: &Dns,
    version: Version,
) -> Value {
    let mut result = previous.clone();
    if version >= Version::V1_1_0 {
        tell_mtu(&mut result["interfaces"], reply, sandbox);
    }
    // Key by key, as the runtime's over the configuration's.
    if let Value::Object(ours) = json!(dns)
        && !ours.is_empty()
    {
        if !result["dns"].is_object() {
            result["dns"] = json!({});
        }
        for (key, value) in ours {
            result["dns"][key] = value;
        }
    }
    result
}

/// netplugin lowers the MTU of both ends where the container's is above the network's, and leaves both
/// where it is not. What is not told of the host's end is not untrue.
fn tell_mtu(interfaces: &mut Value, reply: &AddReply, sandbox: Sandbox<'_>) {
    let Some(interfaces) = interfaces.as_array_mut() else { return };
    let is_above = |i: &Value| i["mtu"].as_u64().is_some_and(|mtu| mtu > u64::from(reply.mtu));
    let is_container = |i: &Value| i["name"] == sandbox.ifname && i["sandbox"] == sandbox.netns;
    let is_host = |i: &Value| {
        i["name"] == reply.host_ifname && i["sandbox"].as_str().unwrap_or_default().is_empty()
    };
    let Some(container) = interfaces.iter_mut().find(|i| is_container(i)) else { return };
    let is_lowered = container["mtu"].is_null() || is_above(container);
    container["mtu"] = json!(reply.mtu);
    if let Some(host) = interfaces.iter_mut().find(|i| is_host(i) && is_lowered && is_above(i)) {
        host["mtu"] = json!(reply.mtu);
    }
}

fn address(ip: &Ip, version: Version) -> Value {
    let mut address = json!({"address": ip.address, "interface": CONTAINER_INTERFACE});
    if version < Version::V1_0_0 {
        address["version"] = json!(if ip.address.contains(':') { "6" } else { "4" });
    }
    without_empty("gateway", &ip.gateway, address)
}

fn without_empty(key: &str, text: &str, mut object: Value) -> Value {
    if !text.is_empty() {
        object[key] = json!(text);
    }
    object
}

/// The result of VERSION. `stated` is the version of the input, which may be anything or absent.
pub(crate) fn versions(stated: Option<String>) -> Value {
    json!({
        "cniVersion": stated.unwrap_or_else(|| Version::NEWEST.text().to_owned()),
        "supportedVersions": Version::ALL.map(Version::text),
    })
}

#[cfg(test)]
mod tests {
    use cni_api::v1::Route;

    use super::*;

    fn reply() -> AddReply {
        AddReply {
            host_ifname: "wr0123456789".into(),
            host_mac: "02:aa:aa:aa:aa:aa".into(),
            mac: "02:02:0a:01:01:05".into(),
            mtu: 1450,
            ips: vec![Ip { address: "10.1.1.5/24".into(), gateway: "10.1.1.254".into() }],
            routes: vec![Route { dst: "0.0.0.0/0".into(), gw: "10.1.1.254".into() }],
        }
    }

    fn rendered(version: Version) -> Value {
        let sandbox = Sandbox { ifname: "eth0", netns: "/run/netns/x" };
        added(&reply(), sandbox, &Dns::default(), version)
    }

    #[test]
    fn the_newest_result_names_both_ends_with_mtu_and_points_at_the_container() {
        assert_eq!(
            rendered(Version::V1_1_0),
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [
                    {"name": "wr0123456789", "mac": "02:aa:aa:aa:aa:aa", "mtu": 1450},
                    {"name": "eth0", "mac": "02:02:0a:01:01:05", "mtu": 1450, "sandbox": "/run/netns/x"},
                ],
                "ips": [{"address": "10.1.1.5/24", "gateway": "10.1.1.254", "interface": 1}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.1.254"}],
            })
        );
    }

    #[test]
    fn mtu_came_with_1_1_0() {
        assert_eq!(
            rendered(Version::V1_0_0),
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [
                    {"name": "wr0123456789", "mac": "02:aa:aa:aa:aa:aa"},
                    {"name": "eth0", "mac": "02:02:0a:01:01:05", "sandbox": "/run/netns/x"},
                ],
                "ips": [{"address": "10.1.1.5/24", "gateway": "10.1.1.254", "interface": 1}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.1.254"}],
            })
        );
    }

    #[test]
    fn versions_before_1_0_0_name_the_address_family() {
        let mut reply = reply();
        let v6 = Ip { address: "2001:db8::5/64".into(), gateway: "2001:db8::fe".into() };
        reply.ips.push(v6);
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let sandbox = Sandbox { ifname: "eth0", netns: "/run/netns/x" };
            let result = added(&reply, sandbox, &Dns::default(), version);
            assert_eq!(result["cniVersion"], json!(version.text()));
            assert_eq!(
                result["ips"],
                json!([
                    {"version": "4", "address": "10.1.1.5/24", "gateway": "10.1.1.254", "interface": 1},
                    {"version": "6", "address": "2001:db8::5/64", "gateway": "2001:db8::fe",
                        "interface": 1},
                ])
            );
        }
    }

    #[test]
    fn a_network_without_gateway_has_no_gateway_and_no_routes() {
        let mut reply = reply();
        reply.ips[0].gateway.clear();
        reply.routes.clear();
        let sandbox = Sandbox { ifname: "eth0", netns: "/run/netns/x" };
        let result = added(&reply, sandbox, &Dns::default(), Version::V1_0_0);
        assert_eq!(result["ips"], json!([{"address": "10.1.1.5/24", "interface": 1}]));
        assert_eq!(result.get("routes"), None);
        assert_eq!(result.get("dns"), None);
    }

    /// A result of the plugin before, with these MTUs of host's and container's end.
    fn previous([host, container]: [Value; 2]) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "lo", "mtu": 65535, "sandbox": "/run/netns/x"},
                {"name": "wr0123456789", "mtu": 7, "sandbox": "/another"},
                {"name": "wr0123456789", "mtu": host, "mac": "02:cc:cc:cc:cc:cc", "pciID": "0"},
                {"name": "eth0", "mtu": container, "sandbox": "/run/netns/x", "socketPath": "/s"},
            ],
            "ips": [{"address": "10.1.1.5/24", "interface": 3}],
            "routes": [{"dst": "0.0.0.0/0", "priority": 7}],
            "odd": [1],
        })
    }

    fn handed_on(mtus: [Value; 2], version: Version) -> Value {
        let sandbox = Sandbox { ifname: "eth0", netns: "/run/netns/x" };
        adopted(&previous(mtus), &reply(), sandbox, &Dns::default(), version)
    }

    #[test]
    fn behind_another_plugin_the_mtu_is_the_one_in_force_and_all_else_as_it_was() {
        let n = |mtu: u32| json!(mtu);
        for (theirs, told) in [
            ([n(1500), n(1500)], [n(1450), n(1450)]),
            ([n(1450), n(1450)], [n(1450), n(1450)]),
            // Nothing was lowered.
            ([n(9000), n(1450)], [n(9000), n(1450)]),
            ([n(1500), Value::Null], [n(1450), n(1450)]),
            ([Value::Null, n(1500)], [Value::Null, n(1450)]),
            ([n(1400), n(1500)], [n(1400), n(1450)]),
        ] {
            let result = handed_on(theirs.clone(), Version::V1_1_0);
            assert_eq!(result, previous(told), "{theirs:?}");
        }
        let old = handed_on([n(1500), n(1500)], Version::V1_0_0);
        assert_eq!(old, previous([n(1500), n(1500)]), "mtu came with 1.1.0");
    }
}
