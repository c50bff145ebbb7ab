//! Many of everything.

use std::time::Instant;

use super::*;

const TENANTS: usize = 1000;
const NETWORKS: usize = 10_000;
/// Of one request: 4 MiB hold them.
const AT_ONCE: usize = 10_000;

/// Resident memory of this process in MB.
fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1000
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "what it took is the result")]
async fn ten_3_ten_thousand_overlapping_networks_of_a_thousand_tenants_get_any_vni() {
    let (_server, mut client) = Server::memory().await;
    let range = v1::Global { vxlans: "1-16777215".into(), ..Default::default() };
    client.update(Wire::Global(range)).await.unwrap();
    let (start, before) = (Instant::now(), resident_mb());
    let tenants = (0..TENANTS).map(|i| tenant(&format!("t{i}")));
    client.apply(tenants.collect(), &[]).await.unwrap();
    // The tenants' addresses are all the same ones; VNIs go up to the last.
    let each = NETWORKS / TENANTS;
    let networks = (0..NETWORKS).map(|i| {
        let (tenant, number) = (i / each, i % each);
        let plain =
            network(&format!("t{tenant}"), &format!("n{number}"), &format!("10.{number}.0.0/16"));
        let pkt_tag = 16_777_215 - u32::try_from(i).unwrap();
        Wire::Network(v1::Network { pkt_tag, ..plain })
    });
    let networks: Vec<_> = networks.collect();
    for part in networks.chunks(AT_ONCE) {
        client.apply(part.to_vec(), &[]).await.unwrap();
    }
    let oper = client.oper(v1::Kind::Global, "global").await;
    assert_eq!((oper.num_networks, oper.vlans_in_use.as_str()), (10_000, ""));
    assert_eq!(oper.vxlans_in_use, "16767216-16777215");
    let one = client.oper(v1::Kind::Tenant, "t999").await;
    assert_eq!(one.total_networks, 10);
    // Another one takes the lowest, and is as quick as the first.
    let next = client.tagged(network("t0", "more", "11.0.0.0/16")).await.unwrap();
    assert_eq!(next, 1);
    let (took, grown) = (start.elapsed(), resident_mb().saturating_sub(before));
    println!("{TENANTS} tenants, {NETWORKS} networks: {took:?}, {grown} MB with client and server");
}
