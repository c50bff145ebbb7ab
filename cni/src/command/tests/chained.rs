//! Behind another plugin, whose interface is adopted.

use super::*;

/// A result of another plugin for `env_with`'s interface, changed by `change`.
fn previous(change: impl FnOnce(&mut Value)) -> Value {
    let mut previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "veth7", "mac": "02:aa:aa:aa:aa:aa"},
            {"name": "eth0", "mac": "02:bb:bb:bb:bb:bb", "sandbox": "/no/such/netns"},
        ],
        "ips": [
            {"address": "10.1.1.7/24", "gateway": "10.1.1.254", "interface": 1},
            {"address": "10.1.9.9/24", "interface": 0},
        ],
    });
    change(&mut previous);
    previous
}

#[test]
fn a_chained_add_asks_for_what_the_interface_has() {
    let env = env_with(&[("CNI_ARGS", "IP=10.1.1.99;MAC=02:00:00:00:00:99")]);
    let first = request(&env, &config());
    assert_eq!((first.chained, first.ips.len()), (false, 1));
    let chained = request(&env, &config_with("prevResult", previous(|_| {})));
    assert!(chained.chained);
    assert_eq!(chained.ips, ["10.1.1.7/24"]);
    assert_eq!(chained.mac, "");
}

#[test]
fn a_chained_add_without_an_interface_to_adopt_is_refused() {
    for (msg, previous) in [
        (
            "prevResult has no interface eth0 in /no/such/netns to adopt",
            previous(|p| p["interfaces"][1]["sandbox"] = json!("/another")),
        ),
        ("prevResult has no interface eth0 in /no/such/netns to adopt", json!({"ips": []})),
        ("prevResult gives eth0 no address", previous(|p| p["ips"] = json!([]))),
        (
            "prevResult.ips: \"10.1.1\" is not an IP address",
            previous(|p| p["ips"][0]["address"] = json!("10.1.1")),
        ),
    ] {
        let error = refused(&env_with(&[]), &config_with("prevResult", previous));
        assert_eq!((&error["code"], &error["msg"]), (&json!(7), &json!(msg)));
    }
    let mut config = config_with("prevResult", previous(|_| {}));
    config["ipam"] = json!({"type": "host-local"});
    let env = env_with(&[("CNI_PATH", "/usr/lib/cni")]);
    assert_eq!(refused(&env, &config)["code"], json!(7));
}

#[test]
fn the_result_of_a_chained_add_has_the_mtu_in_force_and_the_dns_asked_for() {
    with_netplugin(|socket| {
        let mut previous = previous(|p| {
            p["cniVersion"] = json!("1.1.0");
            p["interfaces"][0] = json!({"name": "wr0123456789", "mtu": 1500});
            p["interfaces"][1]["sandbox"] = json!(socket);
            p["interfaces"][1]["mtu"] = json!(1500);
            p["dns"] = json!({"nameservers": ["10.0.0.9"], "domain": "a.b", "odd": 1});
        });
        let mut config = config_with("prevResult", previous.clone());
        config["cniVersion"] = json!("1.1.0");
        config["socket"] = json!(socket);
        let env = env_with(&[("CNI_NETNS", socket.to_str().unwrap())]);
        for end in 0..2 {
            previous["interfaces"][end]["mtu"] = json!(1450);
        }
        assert_eq!(run_json(&env, &config), (true, previous.clone()));

        config["dns"] = json!({"nameservers": ["10.0.0.1"], "options": ["ndots:5"]});
        config["runtimeConfig"] = json!({"dns": {"servers": ["10.0.0.2"]}});
        previous["dns"] = json!({"nameservers": ["10.0.0.2"], "domain": "a.b",
            "options": ["ndots:5"], "odd": 1});
        assert_eq!(run_json(&env, &config), (true, previous.clone()));

        config["prevResult"].as_object_mut().unwrap().remove("dns");
        previous["dns"] = json!({"nameservers": ["10.0.0.2"], "options": ["ndots:5"]});
        assert_eq!(run_json(&env, &config), (true, previous));
    });
}
