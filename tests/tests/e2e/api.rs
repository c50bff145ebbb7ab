//! The control plane alone: real netctl and netmaster, no node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use kit::{Daemon, Node, Purpose, Topology, TwoNodes, retry, wait_until};
use netdev::Namespace;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::Test;
use crate::control::{connected, with_netmaster};
use crate::shared::sharing;
use crate::site::{BOUND, configure, netctl, netctl_json};

/// Clients that ask for one address at the same time.
const CLIENTS: usize = 64;

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("api_1_wrong_input_is_refused_with_its_field_and_reason", wrong_input),
            ("api_1_unknown_references_are_refused_with_contivs_texts", unknown_references),
            ("api_1_what_is_in_use_is_not_deleted", in_use),
            ("pol_1_rules_that_mix_directions_are_refused", mixed_rules),
            ("ten_1_tenants_may_overlap_and_networks_of_one_may_not", overlaps),
            ("ipam_1_tags_are_given_once_and_come_back", tags),
            ("cli_wrong_usage_exits_1_and_no_netmaster_exits_2", exit_codes),
            ("ha_4_a_killed_netmaster_comes_back_with_everything_it_acknowledged", restart),
            ("ipam_5_of_64_clients_that_ask_for_one_address_one_gets_it", one_winner),
            ("ipam_5_a_killed_netmaster_gives_no_address_twice", one_owner),
            (
                "ipam_5_of_64_clients_one_gets_the_address_while_netmaster_is_killed",
                one_through_kills,
            ),
        ],
    )
}

fn build() -> Result<TwoNodes> {
    let mut nodes = Topology::new(Purpose::Test).two_nodes_stopped()?;
    nodes.one.start(Daemon::Netmaster)?;
    let lines = [
        "tenant create blue",
        "tenant create red",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t blue -s 10.1.2.0/24 -e vlan -p 77 back",
        "policy create -t blue guard",
        "group create -t blue -p guard front web",
        "policy rule-add -t blue -d in -l tcp -P 80 -j deny guard shut",
    ];
    configure(&nodes.one, &lines)?;
    Ok(nodes)
}

/// A refusal: exit code 3, nothing on stdout, and on stderr the reason and the field at fault.
fn refused(node: &Node, line: &str, field: &str, reason: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let done = node.netctl_run(&words)?;
    let named = done.stderr.lines().any(|line| line.trim() == format!("field: {field}"));
    let right = done.code == Some(3) && done.stdout.is_empty() && named;
    ensure!(
        right && done.stderr.contains(reason),
        "netctl {line}: {done:?}, not {field}: {reason}"
    );
    Ok(())
}

fn all_refused(node: &Node, lines: &[(&str, &str, &str)]) -> Result<()> {
    let before = everything(node)?;
    for (line, field, reason) in lines {
        refused(node, line, field, reason)?;
    }
    let after = everything(node)?;
    ensure!(after == before, "something refused was stored: {after:?}, before {before:?}");
    Ok(())
}

/// Every object a user made, as netctl shows it.
fn everything(node: &Node) -> Result<Vec<Value>> {
    let lines = [
        "tenant ls",
        "network ls -a",
        "group ls -a",
        "policy ls -a",
        "policy rule-ls -t blue guard",
        "endpoint ls -a",
        "global info",
    ];
    lines.iter().map(|line| netctl_json(node, line)).collect()
}

fn wrong_input(nodes: &mut TwoNodes) -> Result<()> {
    let format = "Network subnet format not valid";
    all_refused(
        &nodes.one,
        &[
            ("tenant create bad_name", "tenantName", "a name has 1 to 64 letters"),
            ("network create -t blue -s 10.9.0.0 x", "subnet", format),
            ("network create -t blue -s 10.9.0.300/24 x", "subnet", format),
            ("network create -t blue -s 10.9.0.9-10.9.0.5/24 x", "subnet", format),
            ("network create -t blue -s 10.9.0.0/33 x", "subnet", "length 33 not supported"),
            (
                "network create -t blue -s 10.9.0.0/24 -g 10.8.0.1 x",
                "gateway",
                "exceeding beyond subnet 10.9.0.0/24",
            ),
            ("network create -t blue -s 10.9.0.0/24 -g 10.9.0.255 x", "gateway", "broadcast"),
            ("network create -t blue -s 10.9.0.0/24 -e gre x", "encap", "vlan, vxlan"),
            ("network create -t blue -s 10.9.0.0/24 -n odd x", "nwType", "data, infra"),
            (
                "network create -t blue -s 10.9.0.0/24 -e vlan -p 5000 x",
                "pktTag",
                "requested vlan not available - vlan:5000",
            ),
            (
                "network create -t blue -s 10.9.0.0/24 -p 16777216 x",
                "pktTag",
                "requested vxlan is out of range",
            ),
            ("network create -t blue -s 10.9.0.0/24 web", "networkName", "conflicts with the"),
            ("group create -t blue front back", "groupName", "conflicts with the"),
            ("group create -t blue -r 10.1.1.250-10.1.2.5 front x", "ipPool", "must be a subset"),
            ("policy rule-add -t blue -p 101 guard x", "priority", "a priority is 1 to 100"),
            ("policy rule-add -t blue -l gre guard x", "protocol", "a protocol is tcp, udp"),
            ("policy rule-add -t blue -l tcp -P 70000 guard x", "port", "a port is 1 to 65535"),
            ("policy rule-add -t blue -P 80 guard x", "port", "needs protocol tcp or udp"),
            ("policy rule-add -t blue -j maybe guard x", "action", "allow, deny"),
            (
                "policy rule-add -t blue -i 10.1.1.0/40 guard x",
                "fromIpAddress",
                "not an IP address",
            ),
            (
                "policy rule-add -t blue -d in -j allow guard shut",
                "ruleId",
                "can not update a rule",
            ),
            ("global set -v 10-5", "vlans", "min is greater than max"),
            ("global set -v 1-5000", "vlans", "exceed 4095"),
            ("global set -x 0-5", "vxlans", "values less than 1"),
        ],
    )
}

fn unknown_references(nodes: &mut TwoNodes) -> Result<()> {
    all_refused(
        &nodes.one,
        &[
            ("network create -t nobody -s 10.9.0.0/24 x", "tenantName", "Tenant not found"),
            ("group create -t nobody front x", "tenantName", "Tenant not found"),
            ("group create -t blue nowhere x", "networkName", "Network nowhere not found"),
            ("group create -t blue -p nothing front x", "policies", "Policy not found"),
            ("policy create -t nobody x", "tenantName", "Tenant not found"),
            ("policy rule-add -t blue nothing x", "policyName", "Policy not found"),
            ("policy rule-add -t blue -g nobody guard x", "fromEndpointGroup", "not found"),
            ("policy rule-add -t blue -n nowhere guard x", "fromNetwork", "from Network not found"),
            (
                "policy rule-add -t blue -d out -o nowhere guard x",
                "toNetwork",
                "to Network not found",
            ),
            ("tenant rm nobody", "key", "Tenant not found"),
            ("network rm -t blue nowhere", "key", "network not found"),
            ("group rm -t blue nobody", "key", "endpoint group not found"),
            ("policy rm -t blue nothing", "key", "Policy not found"),
            ("policy rule-rm -t blue guard nothing", "key", "rule not found"),
            ("tenant inspect nobody", "key", "Tenant not found"),
            ("network ls -t nobody", "key", "Tenant not found"),
            ("endpoint inspect c1:eth0", "key", "endpoint not found"),
        ],
    )
}

fn in_use(nodes: &mut TwoNodes) -> Result<()> {
    all_refused(
        &nodes.one,
        &[
            ("tenant rm blue", "key", "cannot delete blue has 1 endpoint groups"),
            ("network rm -t blue front", "key", "cannot delete front has 1 endpoint groups"),
            ("policy rm -t blue guard", "key", "Policy is being used"),
            ("tenant rm default", "key", "the tenant default cannot be deleted"),
            ("global set -v 100-200", "vlans", "process failed on error checks"),
        ],
    )?;
    // In the right order everything goes, also a policy that still has rules.
    let lines = [
        "tenant create green",
        "network create -t green -s 10.1.1.0/24 n",
        "policy create -t green p",
        "policy rule-add -t green p r",
        "group create -t green -p p n g",
        "group rm -t green g",
        "policy rm -t green p",
        "network rm -t green n",
        "tenant rm green",
    ];
    configure(&nodes.one, &lines)?;
    let tenants = netctl_json(&nodes.one, "tenant ls")?;
    ensure!(tenants.as_array().map(Vec::len) == Some(3), "{tenants}");
    Ok(())
}

fn mixed_rules(nodes: &mut TwoNodes) -> Result<()> {
    // Contiv's client refuses these by itself.
    for (flags, text) in [
        ("-d in -e web", "Cant specify to-group for incoming rule"),
        ("-d in -o front", "Cant specify to-network for incoming rule"),
        ("-d out -g web", "Cant specify from-group for outgoing rule"),
        ("-d out -n front", "Cant specify from-network for outgoing rule"),
        ("-d out -i 10.1.1.1", "Cant specify from-ip-address for outgoing rule"),
        ("-d in -g web -n front", "Can't specify both from-group argument and -from-network"),
        ("-d both", "Unknown direction"),
    ] {
        let line = format!("policy rule-add -t blue {flags} guard x");
        let done = nodes.one.netctl_run(&line.split_whitespace().collect::<Vec<_>>())?;
        ensure!(done.code == Some(1) && done.stderr.contains(text), "{flags}: {done:?}");
    }
    let both = "can not specify both";
    all_refused(
        &nodes.one,
        &[
            ("policy rule-add -t blue -n front -i 10.1.1.1 guard x", "fromIpAddress", both),
            ("policy rule-add -t blue -d out -o front -s 10.1.1.1 guard x", "toIpAddress", both),
        ],
    )?;
    // Another client may send what netctl does not.
    let texts = [
        (("in", "web", ""), "can not specify 'to' parameters in incoming rule"),
        (("out", "", "web"), "can not specify 'from' parameters in outgoing rule"),
        (("both", "", ""), "invalid direction for the rule"),
    ];
    with_netmaster(&nodes.one, async move |channel| {
        for ((direction, to_group, from_group), text) in texts {
            let rule = v1::Rule {
                tenant_name: "blue".into(),
                policy_name: "guard".into(),
                rule_id: "x".into(),
                direction: direction.into(),
                to_endpoint_group: to_group.into(),
                from_endpoint_group: from_group.into(),
                action: "allow".into(),
                ..Default::default()
            };
            let object = Some(v1::Object { kind: Some(v1::object::Kind::Rule(rule)) });
            let request = v1::CreateRequest { object, no_wait: false };
            let answer = NetMasterClient::new(channel.clone()).create(request).await;
            let status = answer.err().with_context(|| format!("{direction} was accepted"))?;
            ensure!(status.code() == Code::InvalidArgument, "{status}");
            ensure!(status.message() == text, "{}, not {text}", status.message());
        }
        Ok(())
    })
}

fn overlaps(nodes: &mut TwoNodes) -> Result<()> {
    let node = &nodes.one;
    all_refused(
        node,
        &[
            ("network create -t blue -s 10.1.1.0/24 x", "subnet", "front conflicts with subnet"),
            ("network create -t blue -s 10.1.1.128/25 x", "subnet", "front conflicts with subnet"),
            ("network create -t blue -s 10.0.0.0/8 x", "subnet", "conflicts with subnet"),
        ],
    )?;
    let lines = [
        "network create -t red -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t red -s 10.3.0.10-10.3.0.20/24 low",
        "network create -t red -s 10.3.0.30-10.3.0.40/24 high",
        "network rm -t red high",
        "network rm -t red low",
        "network rm -t red front",
    ];
    configure(node, &lines)
}

fn tag_of(node: &Node, line: &str) -> Result<u64> {
    let network = netctl_json(node, line)?;
    network["pktTag"].as_u64().with_context(|| format!("no pktTag: {network}"))
}

fn tags(nodes: &mut TwoNodes) -> Result<()> {
    let node = &nodes.one;
    let first = tag_of(node, "network create -t red -s 10.7.1.0/24 t1")?;
    let second = tag_of(node, "network create -t red -s 10.7.2.0/24 t2")?;
    ensure!(first != second, "tag {first} was given twice");
    all_refused(
        node,
        &[
            (
                &format!("network create -t blue -s 10.7.3.0/24 -p {first} t3"),
                "pktTag",
                "requested vxlan not available",
            ),
            (
                "network create -t red -s 10.7.3.0/24 -e vlan -p 77 t3",
                "pktTag",
                "requested vlan not available - vlan:77",
            ),
        ],
    )?;
    netctl(node, "network rm -t red t1")?;
    let line = format!("network create -t red -s 10.7.1.0/24 -p {first} t1");
    ensure!(tag_of(node, &line)? == first, "tag {first} did not come back");
    configure(node, &["network rm -t red t1", "network rm -t red t2"])
}

fn exit_codes(nodes: &mut TwoNodes) -> Result<()> {
    for line in [
        "",
        "nonsense",
        "tenant create",
        "network create -t blue x",
        "network ls -o xml",
        "network ls --timeout soon",
        "--netmaster localhost tenant ls",
        "network create -t blue -s 10.9.0.0/24 -g gateway x",
    ] {
        let done = nodes.one.netctl_run(&line.split_whitespace().collect::<Vec<_>>())?;
        ensure!(done.code == Some(1), "netctl {line}: {done:?}");
        ensure!(!done.stderr.is_empty(), "netctl {line} does not say what is wrong");
    }
    let line = ["--netmaster", "http://127.0.0.1:1", "tenant", "ls"];
    let done = nodes.one.netctl_run(&line)?;
    ensure!(done.code == Some(2), "{done:?}");
    ensure!(done.stderr.contains("cannot reach netmaster at http://127.0.0.1:1"), "{done:?}");
    ensure!(done.stderr.contains("start netmaster"), "no next step: {done:?}");
    Ok(())
}

fn restart(nodes: &mut TwoNodes) -> Result<()> {
    let before = everything(&nodes.one)?;
    for _ in 0..3 {
        nodes.one.kill(Daemon::Netmaster)?;
        nodes.one.start(Daemon::Netmaster)?;
        let after = everything(&nodes.one)?;
        ensure!(after == before, "{after:?}, before {before:?}");
    }
    Ok(())
}

async fn allocate(
    channel: Channel,
    owner: String,
    preferred: &str,
) -> Result<String, tonic::Status> {
    let request = v1::AllocateAddressRequest {
        tenant_name: "blue".into(),
        network_name: "front".into(),
        preferred_address: preferred.into(),
        owner,
        ..Default::default()
    };
    let reply = NetMasterClient::new(channel).allocate_address(request).await?.into_inner();
    if (reply.prefix_length, reply.gateway.as_str()) == (24, "10.1.1.254") {
        Ok(reply.address)
    } else {
        Err(tonic::Status::internal(format!("{reply:?}")))
    }
}

async fn release(channel: Channel, owner: &str, address: &str) -> Result<(), tonic::Status> {
    let request = v1::ReleaseAddressRequest {
        tenant_name: "blue".into(),
        network_name: "front".into(),
        address: address.into(),
        owner: owner.into(),
    };
    NetMasterClient::new(channel).release_address(request).await.map(drop)
}

fn one_winner(nodes: &mut TwoNodes) -> Result<()> {
    const WANTED: &str = "10.1.1.99";
    with_netmaster(&nodes.one, async |channel| {
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (channel, owner) = (channel.clone(), format!("client-{client}"));
            clients.spawn(async move { (owner.clone(), allocate(channel, owner, WANTED).await) });
        }
        let (mut winners, mut losers) = (Vec::new(), Vec::new());
        for (owner, answer) in clients.join_all().await {
            match answer {
                Ok(address) => winners.push((owner, address)),
                Err(status) => losers.push(status),
            }
        }
        let [(winner, address)] = winners.as_slice() else { anyhow::bail!("{winners:?}") };
        ensure!(address == WANTED, "{winner} got {address}");
        ensure!(losers.len() == CLIENTS - 1, "{} losers", losers.len());
        for status in losers {
            ensure!(status.code() == Code::AlreadyExists, "{status}");
            ensure!(status.message().contains(winner.as_str()), "no owner: {status}");
        }
        let again = allocate(channel.clone(), winner.clone(), WANTED).await?;
        ensure!(again == WANTED, "the owner asks again and gets {again}");
        let stolen = release(channel.clone(), "thief", WANTED).await;
        ensure!(stolen.is_err(), "somebody else released it");
        Ok(release(channel, winner, WANTED).await?)
    })
}

/// What an asker was answered.
type Answer = (String, Result<String, tonic::Status>);

/// Asks until there is an answer of a netmaster that lives.
async fn answered(
    channel: Channel,
    owner: String,
    wanted: &'static str,
    count: Arc<AtomicU32>,
) -> Answer {
    loop {
        match allocate(channel.clone(), owner.clone(), wanted).await {
            // One that dies amid an answer is no longer a status of gRPC's.
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown) => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            answer => {
                count.fetch_add(1, Ordering::Relaxed);
                return (owner, answer);
            }
        }
    }
}

async fn all_ask(channel: Channel, wanted: &'static str, count: &Arc<AtomicU32>) -> Vec<Answer> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let owner = format!("client-{client}");
        clients.spawn(answered(channel.clone(), owner, wanted, Arc::clone(count)));
    }
    clients.join_all().await
}

/// The answers of all clients, and how many had come when netmaster was killed.
fn answers_around_a_kill(
    nodes: &mut TwoNodes,
    wanted: &'static str,
) -> Result<(Vec<Answer>, usize)> {
    let namespace = Namespace::open(nodes.one.netns().path())?;
    let url = nodes.one.netmaster_url();
    let count = Arc::new(AtomicU32::new(0));
    let (answers, killed_at) = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let all = async |channel| Ok(all_ask(channel, wanted, &count).await);
            connected(&namespace, &url, all)
        });
        // All of them take a few milliseconds: nothing may come between the first one and the kill.
        let deadline = Instant::now() + BOUND;
        while count.load(Ordering::Relaxed) == 0 && Instant::now() < deadline {
            thread::yield_now();
        }
        nodes.one.process(Daemon::Netmaster)?.signal(Signal::SIGKILL)?;
        let killed_at = count.load(Ordering::Relaxed) as usize;
        nodes.one.kill(Daemon::Netmaster)?;
        nodes.one.start(Daemon::Netmaster)?;
        let answers = asking.join().map_err(|_panic| anyhow::anyhow!("the clients panicked"))??;
        anyhow::Ok((answers, killed_at))
    })?;
    Ok((answers, killed_at))
}

fn one_through_kills(nodes: &mut TwoNodes) -> Result<()> {
    const WANTED: &str = "10.1.1.99";
    const HITS: usize = 3;
    let mut hits = 0;
    for _ in 0..10 * HITS {
        let (answers, killed_at) = answers_around_a_kill(nodes, WANTED)?;
        let mut winners = answers.iter().filter(|(_, answer)| answer.is_ok());
        let (Some((winner, _)), None) = (winners.next(), winners.next()) else {
            anyhow::bail!("one winner: {answers:?}");
        };
        for status in answers.iter().filter_map(|(_, answer)| answer.as_ref().err()) {
            ensure!(status.code() == Code::AlreadyExists, "{status}");
            ensure!(status.message().contains(winner.as_str()), "no owner: {status}");
        }
        with_netmaster(&nodes.one, async |channel| Ok(release(channel, winner, WANTED).await?))?;
        hits += usize::from(killed_at < CLIENTS);
        if hits == HITS {
            return Ok(());
        }
    }
    anyhow::bail!("{hits} kills came before all had their answers")
}

fn one_owner(nodes: &mut TwoNodes) -> Result<()> {
    const OWNERS: u32 = 60;
    let namespace = Namespace::open(nodes.one.netns().path())?;
    let url = nodes.one.netmaster_url();
    let asked = AtomicU32::new(0);
    let given: Vec<(String, String)> = thread::scope(|scope| {
        let asker = scope.spawn(|| {
            let ask = |owner: u32| {
                asked.store(owner, Ordering::Relaxed);
                let owner = format!("owner-{owner}");
                let address = retry(BOUND, "an address", || ask_once(&namespace, &url, &owner))?;
                Ok((owner, address))
            };
            (0..OWNERS).map(ask).collect::<Result<Vec<_>>>()
        });
        // Every kill comes while somebody asks.
        for kill in 1..=3 {
            let some = || (asked.load(Ordering::Relaxed) >= kill * OWNERS / 4).then_some(());
            wait_until(BOUND, "some addresses to be given", some)?;
            nodes.one.kill(Daemon::Netmaster)?;
            nodes.one.start(Daemon::Netmaster)?;
        }
        asker.join().map_err(|_panic| anyhow::anyhow!("the asker panicked"))?
    })?;
    let addresses: BTreeSet<&String> = given.iter().map(|(_, address)| address).collect();
    ensure!(addresses.len() == given.len(), "an address was given twice: {given:?}");
    with_netmaster(&nodes.one, async |channel| {
        for (owner, address) in &given {
            let again = allocate(channel.clone(), owner.clone(), "").await?;
            ensure!(again == *address, "{owner} had {address} and now gets {again}");
            release(channel.clone(), owner, address).await?;
        }
        Ok(())
    })?;
    let network = netctl_json(&nodes.one, "network inspect -t blue front")?;
    let free = &network["Oper"]["availableIPAddresses"];
    ensure!(*free == "10.1.1.1-10.1.1.253", "released, and free are {free}");
    Ok(())
}

fn ask_once(namespace: &Namespace, url: &str, owner: &str) -> Result<String> {
    let owner = owner.to_owned();
    connected(namespace, url, async move |channel| Ok(allocate(channel, owner, "").await?))
}
