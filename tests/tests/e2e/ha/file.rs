//! A store that is one file: lost, full, not writable.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use kit::{Daemon, DirGuard, Flow, Purpose, Topology, binary, wait_until};
use nix::mount::MsFlags;
use tonic::{Code, Status};

use crate::Test;
use crate::control::with_netmaster;
use crate::disk::SmallDisk;
use crate::site::{
    BOUND, all_connected, attach, configure, endpoints, netctl, netctl_json, reach, reach_soon,
};

const INTERVAL: Duration = Duration::from_millis(20);

pub(crate) fn tests() -> Vec<Test> {
    vec![
        ("ha_5_a_lost_store_costs_running_containers_nothing".to_owned(), Box::new(lost)),
        ("ha_5_a_full_store_refuses_whole_writes_and_goes_on".to_owned(), Box::new(full)),
        ("ha_5_a_store_that_can_t_be_written_is_refused_by_name".to_owned(), Box::new(read_only)),
    ]
}

const CONFIGURATION: [&str; 2] =
    ["tenant create blue", "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front"];

/// netmaster comes back with an empty store, twice: as anybody, whom the nodes do not follow, and
/// then as the cluster that was lost, which gets its endpoints back.
fn lost() -> Result<()> {
    let mut nodes = Topology::new(Purpose::Test).two_nodes()?;
    configure(&nodes.one, &CONFIGURATION)?;
    let a = attach(&nodes.one, "a", "front")?;
    let b = attach(&nodes.one, "b", "front")?;
    let c = attach(&nodes.two, "c", "front")?;
    reach_soon(&a, c.address())?;
    let before = netctl_json(&nodes.one, "endpoint ls -a")?;
    let near = Flow::start(a.namespace(), b.address(), INTERVAL)?;
    let far = Flow::start(c.namespace(), a.address(), INTERVAL)?;
    let file = nodes.one.state_dir().join("netmaster.redb");
    nodes.one.stop(Daemon::Netmaster)?;
    fs::remove_file(&file)?;
    nodes.one.start(Daemon::Netmaster)?;
    let told = "start netmaster on it with --cluster ";
    let refused = || {
        let logs = [&nodes.one, &nodes.two].map(|node| node.log(Daemon::Netplugin));
        let ids = logs.map(|log| Some(log.ok()?.rsplit_once(told)?.1.get(..16)?.to_owned()));
        let [one, two] = ids;
        (one.is_some() && one == two).then_some(one).flatten()
    };
    let cluster = wait_until(BOUND, "both nodes to refuse another cluster", refused)?;
    nodes.one.stop(Daemon::Netmaster)?;
    fs::remove_file(&file)?;
    nodes.one.start_with(Daemon::Netmaster, &["--cluster", &cluster])?;
    let waits = "the snapshot lacks endpoints of running containers";
    let holds = || {
        let logs = [&nodes.one, &nodes.two].map(|node| node.log(Daemon::Netplugin));
        logs.iter().all(|log| log.as_ref().is_ok_and(|log| log.contains(waits))).then_some(())
    };
    wait_until(BOUND, "both nodes to keep their intent", holds)?;
    reach(&a, c.address())?;
    configure_late(&nodes.one)?;
    let back = || {
        let now = netctl_json(&nodes.one, "endpoint ls -a").ok()?;
        (now == before).then_some(())
    };
    wait_until(BOUND, "the endpoints to be back", back).with_context(|| {
        format!("{:?}, before {before}", netctl_json(&nodes.one, "endpoint ls -a"))
    })?;
    all_connected(&nodes.one)?;
    let d = attach(&nodes.one, "d", "front")?;
    reach_soon(&d, c.address())?;
    for flow in [near, far] {
        let report = flow.stop()?;
        ensure!(report.received == report.sent, "{report:?}");
    }
    Ok(())
}

/// Nodes that hold their intent are late, which netctl says.
fn configure_late(node: &kit::Node) -> Result<()> {
    for line in CONFIGURATION {
        let words: Vec<&str> = line.split_whitespace().collect();
        node.netctl_run(&words)?.success().with_context(|| format!("netctl {line}"))?;
    }
    Ok(())
}

fn full() -> Result<()> {
    let disk = SmallDisk::new(MsFlags::empty())?;
    let store = format!("redb:{}", disk.path().join("netmaster.redb").display());
    let topology =
        Topology::new(Purpose::Test).daemon_args(Daemon::Netmaster, &["--store", &store]);
    let mut nodes = topology.two_nodes()?;
    configure(&nodes.one, &CONFIGURATION)?;
    let a = attach(&nodes.one, "a", "front")?;
    let c = attach(&nodes.two, "c", "front")?;
    let names: Vec<String> = (0..100).map(|i| format!("{i:0>60}")).collect();
    for name in &names {
        netctl(&nodes.one, &format!("policy create -t blue {name}"))?;
    }
    disk.fill()?;
    for round in 0..2 {
        let refused = fill_store(&nodes.one, &names).with_context(|| format!("round {round}"))?;
        ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
        ensure!(refused.message().starts_with("the store is full"), "{refused:?}");
        let says = |part: &[u8]| refused.details().windows(part.len()).any(|text| text == part);
        ensure!(says(b"make room where netmaster's store is"), "{refused:?}");
    }
    let tag = shown_tag(&nodes.one)?;
    reach(&a, c.address())?;
    ensure!(endpoints(&nodes.one)?.len() == 2, "{:?}", endpoints(&nodes.one));
    disk.empty()?;
    let works = || netctl(&nodes.one, "tenant create after").ok();
    wait_until(BOUND, "a write once there is room", works)?;
    let now = shown_tag(&nodes.one)?;
    ensure!(now == tag, "{tag} became {now}: a refused write was half done");
    nodes.one.kill(Daemon::Netmaster)?;
    nodes.one.start(Daemon::Netmaster)?;
    ensure!(shown_tag(&nodes.one)? == tag, "another state after a crash");
    all_connected(&nodes.one)?;
    a.detach(&nodes.one)?;
    c.detach(&nodes.two)
}

fn shown_tag(node: &kit::Node) -> Result<String> {
    let group = netctl_json(node, "group inspect -t blue big")?;
    let tag = group["Config"]["cfgdTag"].as_str().map(str::to_owned);
    tag.filter(|tag| tag.starts_with('t')).with_context(|| format!("no tag in {group}"))
}

/// Changes a large object until a change is refused, as it is.
fn fill_store(node: &kit::Node, policies: &[String]) -> Result<Status> {
    with_netmaster(node, async |channel| {
        let mut client = NetMasterClient::new(channel);
        for i in 0..2000 {
            let group = v1::EndpointGroup {
                tenant_name: "blue".into(),
                group_name: "big".into(),
                network_name: "front".into(),
                policies: policies.to_vec(),
                cfgd_tag: format!("t{i}"),
                ..v1::EndpointGroup::default()
            };
            let object = Some(v1::Object { kind: Some(v1::object::Kind::EndpointGroup(group)) });
            let request = v1::CreateRequest { object, no_wait: true };
            if let Err(status) = client.create(request).await {
                return Ok(status);
            }
        }
        bail!("2,000 changes of 6 KB are in a store of 4 MB")
    })
}

fn read_only() -> Result<()> {
    let disk = SmallDisk::new(MsFlags::MS_RDONLY)?;
    let dir = DirGuard::new(Purpose::Test, "master")?;
    let config = dir.path().join("empty.toml");
    fs::write(&config, "")?;
    let path = disk.path().join("netmaster.redb");
    let mut command = Command::new(binary("netmaster")?);
    command.arg("--config").arg(config).arg("--plaintext");
    command.arg("--run-dir").arg(dir.path()).arg("--state-dir").arg(dir.path());
    command.args(["--listen", "unix:m.sock", "--store", &format!("redb:{}", path.display())]);
    let finished = command.output()?;
    let stderr = String::from_utf8_lossy(&finished.stderr);
    ensure!(finished.status.code() == Some(4), "{finished:?}");
    ensure!(stderr.contains(&format!("can't open the store {}", path.display())), "{stderr}");
    ensure!(stderr.contains("Read-only file system"), "{stderr}");
    Ok(())
}
