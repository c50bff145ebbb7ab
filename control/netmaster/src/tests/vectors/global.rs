//! Tags, their ranges, and the global settings: `TestNetworkPktRanges`, `TestDynamicGlobalVlanRange`,
//! `TestDynamicGlobalVxlanRange`, `TestGlobalSetting`, `TestGlobalSettingFwdMode`,
//! `TestGlobalSettingSubnet`.

use super::*;

fn ranges(vlans: &str, vxlans: &str) -> v1::Global {
    v1::Global { vlans: vlans.into(), vxlans: vxlans.into(), ..Default::default() }
}

/// The next network of tenant default, each with addresses of its own.
#[derive(Debug, Default)]
struct Networks(u8);

impl Networks {
    async fn add(&mut self, client: &mut Client, encap: &str, tag: u32) -> Result<u32, Status> {
        self.0 += 1;
        let third = self.0;
        let plain = net(&format!("n{third}"), &format!("10.1.{third}.0/24"), "");
        client.tagged(on(plain, encap, tag)).await
    }

    async fn refuse(&mut self, client: &mut Client, encap: &str, tag: u32) -> String {
        let (_, field, reason) = refusal(self.add(client, encap, tag).await);
        assert_eq!(field, "pktTag", "{encap} {tag}");
        reason
    }
}

#[tokio::test]
async fn ipam_1_tags_are_given_allocated_and_refused() {
    let (_server, mut client) = contiv().await;
    let mut nets = Networks::default();
    let vlan = nets.refuse(&mut client, "vlan", 5000).await;
    assert_eq!(vlan, "requested vlan not available - vlan:5000");
    let vxlan = nets.refuse(&mut client, "vxlan", 20000).await;
    assert_eq!(vxlan, "requested vxlan is out of range");
    assert_eq!(nets.add(&mut client, "vlan", 0).await.unwrap(), 1);
    assert_eq!(nets.refuse(&mut client, "vlan", 1).await, "requested vlan not available - vlan:1");
    for tag in [1, 2] {
        assert_eq!(nets.add(&mut client, "vxlan", 0).await.unwrap(), tag);
    }
    assert_eq!(nets.refuse(&mut client, "vxlan", 1).await, "requested vxlan not available");
    assert_eq!(nets.add(&mut client, "vxlan", 1000).await.unwrap(), 1000);
}

#[tokio::test]
async fn d11_a_vxlan_network_takes_no_vlan_and_every_vni_can_be_used() {
    let (_server, mut client) = contiv().await;
    client.update(Wire::Global(ranges("1-1", "1-16777215"))).await.unwrap();
    let mut nets = Networks::default();
    for tag in [1000, 16_777_215, 70_000] {
        assert_eq!(nets.add(&mut client, "vxlan", tag).await.unwrap(), tag);
    }
    // Contiv would have none of its VLANs left.
    assert_eq!(nets.add(&mut client, "vlan", 0).await.unwrap(), 1);
    assert_eq!(nets.add(&mut client, "vxlan", 0).await.unwrap(), 1);
    let none = nets.refuse(&mut client, "vlan", 0).await;
    assert_eq!(none, "no vlans available");
    let oper = client.oper(v1::Kind::Global, "global").await;
    assert_eq!(oper.vxlans_in_use, "1, 1000, 70000, 16777215");
    assert_eq!((oper.vlans_in_use.as_str(), oper.num_networks), ("1", 5));
}

#[tokio::test]
async fn ipam_1_tags_keep_inside_their_ranges() {
    let (_server, mut client) = contiv().await;
    let settings =
        v1::Global { pvt_subnet: "172.20.0.0/16".into(), ..ranges("100-1000", "1001-2000") };
    client.update(Wire::Global(settings)).await.unwrap();
    let mut nets = Networks::default();
    for (encap, tag) in [("vlan", 1001), ("vlan", 99), ("vxlan", 2001), ("vxlan", 1000)] {
        nets.refuse(&mut client, encap, tag).await;
    }
    for (encap, lowest) in [("vlan", 100), ("vxlan", 1001)] {
        assert_eq!(nets.add(&mut client, encap, 0).await.unwrap(), lowest);
    }
}

#[tokio::test]
async fn ipam_1_vlan_ranges_change_live() {
    let (_server, mut client) = contiv().await;
    let mut nets = Networks::default();
    for tag in [10, 11, 300] {
        nets.add(&mut client, "vlan", tag).await.unwrap();
    }
    client.update(Wire::Global(ranges("9-301", ""))).await.unwrap();
    for tag in [10, 302] {
        nets.refuse(&mut client, "vlan", tag).await;
    }
    nets.add(&mut client, "vlan", 299).await.unwrap();
    for bad in ["50-301", "1-200"] {
        let refused = client.refused(Wire::Global(ranges(bad, ""))).await;
        assert_eq!(refused, ("vlans".into(), "process failed on error checks vlan".into()));
    }
    let wider = v1::Global { arp_mode: "flood".into(), ..ranges("1-800", "") };
    client.update(Wire::Global(wider)).await.unwrap();
    for _ in 0..2 {
        nets.add(&mut client, "vlan", 700).await.unwrap();
        let key = format!("default:n{}", nets.0);
        client.delete(v1::Kind::Network, &key).await.unwrap();
    }
}

#[tokio::test]
async fn ipam_1_vni_ranges_change_live() {
    let (_server, mut client) = contiv().await;
    let mut nets = Networks::default();
    for tag in [1000, 1001, 2000] {
        nets.add(&mut client, "vxlan", tag).await.unwrap();
    }
    client.update(Wire::Global(ranges("", "1000-2500"))).await.unwrap();
    for tag in [1000, 2501] {
        nets.refuse(&mut client, "vxlan", tag).await;
    }
    nets.add(&mut client, "vxlan", 2200).await.unwrap();
    for bad in ["2000-10000", "1000-2000"] {
        let refused = client.refused(Wire::Global(ranges("", bad))).await;
        assert_eq!(refused, ("vxlans".into(), "process failed on error checks vxlan".into()));
    }
    client.update(Wire::Global(ranges("", "1000-9000"))).await.unwrap();
    for _ in 0..2 {
        nets.add(&mut client, "vxlan", 3200).await.unwrap();
        let key = format!("default:n{}", nets.0);
        client.delete(v1::Kind::Network, &key).await.unwrap();
    }
}

#[tokio::test]
async fn api_1_global_settings_are_accepted_and_refused() {
    let (_server, mut client) = Server::memory().await;
    let none = v1::Global::default;
    let (shown, _) = client.get(v1::Kind::Global, "global").await.unwrap();
    let Wire::Global(shown) = shown else { panic!("the settings") };
    let modes =
        (shown.fwd_mode.as_str(), shown.arp_mode.as_str(), shown.network_infra_type.as_str());
    assert_eq!(modes, ("routing", "proxy", "default"));
    assert_eq!((shown.vlans.as_str(), shown.pvt_subnet.as_str()), ("1-4094", "172.19.0.0/16"));
    for (bad, field) in [
        (v1::Global { network_infra_type: "xyz".into(), ..none() }, "networkInfraType"),
        (v1::Global { network_infra_type: "aci".into(), ..none() }, "networkInfraType"),
        (v1::Global { fwd_mode: "xyz".into(), ..none() }, "fwdMode"),
        (v1::Global { arp_mode: "xyz".into(), ..none() }, "arpMode"),
        (ranges("1-5000", ""), "vlans"),
        (ranges("0-4094", ""), "vlans"),
        (ranges("1", ""), "vlans"),
        (ranges("1?2", ""), "vlans"),
        (ranges("abcd", ""), "vlans"),
        // D11: Contiv refuses 1-100000 and 1-20000, ours end at 24 bits.
        (ranges("", "1-16777216"), "vxlans"),
        (v1::Global { pvt_subnet: "172.21.0.0/24".into(), ..none() }, "pvtSubnet"),
        (v1::Global { name: "other".into(), ..none() }, "name"),
    ] {
        assert_eq!(client.refused(Wire::Global(bad)).await.0, field);
    }
    for subnet in ["172.20.0.0/16", "172.21.0.0/16"] {
        let good = v1::Global { pvt_subnet: subnet.into(), ..ranges("1-1000", "1001-2000") };
        client.update(Wire::Global(good)).await.unwrap();
    }
    let oper = client.oper(v1::Kind::Global, "global").await;
    assert_eq!(oper.not_in_force, "pvtSubnet: nodes have no access network");
    assert!(client.kept(v1::Kind::Global, "global").await.contains("cannot be deleted"));
}

#[tokio::test]
async fn api_1_forwarding_mode_and_private_subnet_stay_while_there_are_networks() {
    let (_server, mut client) = contiv().await;
    let routing = || v1::Global { fwd_mode: "routing".into(), ..Default::default() };
    let subnet = || v1::Global { pvt_subnet: "172.21.0.0/16".into(), ..Default::default() };
    for encap in ["vxlan", "vlan"] {
        client.tagged(on(net("n", "10.1.1.0/24", ""), encap, 3200)).await.unwrap();
        let (_, mode) = client.refused(Wire::Global(routing())).await;
        let text = format!("Unable to update forwarding mode due to existing 1 {encap}s");
        assert_eq!(mode, text);
        let (_, private) = client.refused(Wire::Global(subnet())).await;
        let text = format!("Unable to update private subnet due to existing 1 {encap}s");
        assert_eq!(private, text);
        client.delete(v1::Kind::Network, "default:n").await.unwrap();
    }
    client.update(Wire::Global(routing())).await.unwrap();
    client.update(Wire::Global(subnet())).await.unwrap();
    client.create(Wire::Bgp(bgp("hostA"))).await.unwrap();
    let bridge = v1::Global { fwd_mode: "bridge".into(), ..Default::default() };
    let (_, reason) = client.refused(Wire::Global(bridge)).await;
    assert_eq!(reason, "please delete existing Bgp configs");
}

#[tokio::test]
async fn d04_a_restart_changes_no_setting() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    let settings = v1::Global {
        fwd_mode: "bridge".into(),
        arp_mode: "flood".into(),
        pvt_subnet: "172.21.0.0/16".into(),
        ..ranges("9-301", "1000-2500")
    };
    client.update(Wire::Global(settings)).await.unwrap();
    let before = client.everything().await;
    server.stop().await;
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    assert_eq!(client.everything().await, before);
    // What is shown is what is enforced.
    let mut nets = Networks::default();
    assert_eq!(nets.add(&mut client, "vlan", 0).await.unwrap(), 9);
    assert_eq!(nets.add(&mut client, "vxlan", 0).await.unwrap(), 1000);
}
