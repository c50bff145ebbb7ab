//! A client that writes all the time, at whichever netmaster answers, and remembers what it was told.
//!
//! A network is the same whoever creates it again, so that it does not show what is done twice. In
//! each it also asks for an address without an owner, once: done twice, it would be two addresses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use kit::{Node, wait_until};
use serde_json::Value;
use tonic::transport::Endpoint;

use crate::site::BOUND;

const TIMEOUT: Duration = Duration::from_secs(1);
/// Of an address: none ends while anything here runs.
const TTL_SECONDS: u64 = 7 * 24 * 3600;
/// Between two writes: some hundred in a sentence.
const PAUSE: Duration = Duration::from_millis(50);

/// A running client.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU32>,
    thread: JoinHandle<Result<Acknowledged>>,
}

/// Names of the networks whose creation was acknowledged, with the VNI that each was given, and those
/// of them that were given an address, with it.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    networks: BTreeMap<String, u64>,
    addresses: BTreeMap<String, String>,
    asked: u32,
}

impl Writer {
    /// Starts one in a node's namespace; `serial` names its objects.
    pub(crate) fn start(urls: &[String], node: &Node, serial: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU32::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let urls = urls.to_vec();
        // A thread in the namespace: its sockets are made there.
        let path = node.netns().path();
        let thread = thread::spawn(move || {
            let namespace = netdev::Namespace::open(&path)?;
            namespace.run(|| write(&urls, serial, &stopped, &count))?
        });
        Self { stop, acknowledged, thread }
    }

    /// Waits until another of its writes is acknowledged.
    pub(crate) fn goes_on(&self) -> Result<()> {
        let before = self.acknowledged.load(Ordering::Relaxed);
        let more = || (self.acknowledged.load(Ordering::Relaxed) > before).then_some(());
        Ok(wait_until(BOUND, "the next write to be acknowledged", more)?)
    }

    /// Ends it; what it was told.
    pub(crate) fn stop(self) -> Result<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow!("the writer panicked"))?
    }
}

fn write(
    urls: &[String],
    serial: u32,
    stop: &AtomicBool,
    count: &AtomicU32,
) -> Result<Acknowledged> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut told = Acknowledged::default();
        let mut clients = Vec::new();
        for url in urls {
            let endpoint = Endpoint::from_shared(url.clone())?;
            let channel = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect_lazy();
            clients.push(NetMasterClient::new(channel));
        }
        for turn in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let place = turn % clients.len();
            let client = clients.get_mut(place).context("no netmaster")?;
            told.ask(client, format!("w{serial}-{turn}"), turn).await;
            count.store(u32::try_from(told.networks.len())?, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(told)
    })
}

impl Acknowledged {
    async fn ask(
        &mut self,
        client: &mut NetMasterClient<tonic::transport::Channel>,
        name: String,
        turn: usize,
    ) {
        let network = v1::Network {
            tenant_name: "blue".into(),
            network_name: name.clone(),
            encap: "vxlan".into(),
            subnet: format!("10.{}.{}.0/24", 64 + turn / 256 % 128, turn % 256),
            ..v1::Network::default()
        };
        let object = Some(v1::Object { kind: Some(v1::object::Kind::Network(network)) });
        self.asked += 1;
        // Whatever else the answer is, it promises nothing.
        let reply = client.create(v1::CreateRequest { object, no_wait: true }).await;
        let stored = reply.ok().and_then(|reply| reply.into_inner().object?.kind);
        let Some(v1::object::Kind::Network(network)) = stored else { return };
        self.networks.insert(name.clone(), network.pkt_tag.into());
        let request = v1::AllocateAddressRequest {
            tenant_name: "blue".into(),
            network_name: name.clone(),
            ttl_seconds: TTL_SECONDS,
            ..v1::AllocateAddressRequest::default()
        };
        if let Ok(reply) = client.allocate_address(request).await {
            self.addresses.insert(name, reply.into_inner().address);
        }
    }

    /// Everything acknowledged is there, once, as it was told. Given networks and addresses as netctl
    /// lists them.
    pub(crate) fn check(&self, networks: &Value, addresses: &Value) -> Result<()> {
        self.check_networks(networks)?;
        let mut held = BTreeMap::new();
        let rows = addresses.as_array().context("ip ls is no list")?;
        for row in rows.iter().filter(|row| row["state"] == "reserved") {
            let name = row["networkName"].as_str().context("an address without a network")?;
            let address = row["ipAddress"].as_str().context("no address")?;
            let other = held.insert(name, address).filter(|_| self.networks.contains_key(name));
            ensure!(other.is_none(), "{name}: asked once for an address, {address} and {other:?}");
        }
        ensure!(!self.addresses.is_empty(), "no address was acknowledged");
        for (name, address) in &self.addresses {
            let now = held.get(name.as_str());
            ensure!(now == Some(&address.as_str()), "{name} was told {address}, now {now:?}");
        }
        Ok(())
    }

    fn check_networks(&self, listed: &Value) -> Result<()> {
        let rows = listed.as_array().context("network ls is no list")?;
        let mut tags = BTreeMap::new();
        let mut found = BTreeMap::new();
        for row in rows {
            let name = row["networkName"].as_str().context("a network without a name")?;
            let tag = row["pktTag"].as_u64().context("a network without a tag")?;
            if let Some(other) = tags.insert(tag, name) {
                anyhow::bail!("{other} and {name} both have VNI {tag}");
            }
            ensure!(found.insert(name, tag).is_none(), "{name} is there twice");
        }
        ensure!(!self.networks.is_empty(), "none of {} writes was acknowledged", self.asked);
        for (name, tag) in &self.networks {
            let now = found.get(name.as_str());
            ensure!(now == Some(tag), "{name} was acknowledged with VNI {tag}, now {now:?}");
        }
        Ok(())
    }
}
