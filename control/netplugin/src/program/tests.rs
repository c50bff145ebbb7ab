//! The programmer against an engine that records what it is told.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser as _;
use datapath_api::convert::ops_from_proto;
use datapath_api::v1::datapath_server::{Datapath, DatapathServer};
use datapath_api::v1::{
    AddPortReply, ConfirmPortReply, ConfirmPortRequest, CountersReply, CountersRequest,
    DropLogRequest, DroppedPacket, DropsReply, DropsRequest, Event, EventsRequest, Feature,
    HelloReply, HelloRequest, ListReply, ListRequest, OffloadReply, OffloadRequest,
    RemovePortReply, RemovePortRequest, TraceLiveRequest, TraceReply, TraceRequest, WorkersReply,
    WorkersRequest, WriteReply, WriteRequest,
};
use flowtable::entry::{Entry, EntryKey, Op};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use super::*;
use crate::config::Arguments;
use crate::mirror::tests::{endpoint, gold_group, member, network, snapshot, tenant};

/// What one engine process was told, in order.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Add(u32, String, Vec<u32>),
    Remove(Vec<u32>),
    Write(Vec<Op>),
}

/// Event streams: open as long as the engine is.
type Clients = Arc<Mutex<Vec<tokio::sync::mpsc::Sender<Result<Event, Status>>>>>;
/// Streams of dropped packets: likewise.
type Followers = Arc<Mutex<Vec<tokio::sync::mpsc::Sender<Result<DroppedPacket, Status>>>>>;

struct Fake {
    instance: String,
    features: u64,
    told: Arc<Mutex<Vec<Told>>>,
    ports: Mutex<BTreeMap<u32, String>>,
    refused_device: &'static str,
    /// Takes the next batch, but its answer never arrives.
    loses_answer: Arc<AtomicBool>,
    alive: Clients,
    followers: Followers,
}

#[tonic::async_trait]
impl Datapath for Fake {
    type EventsStream = ReceiverStream<Result<Event, Status>>;

    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let (instance, features) = (self.instance.clone(), self.features);
        Ok(Response::new(HelloReply { instance, features, ..Default::default() }))
    }

    async fn write(&self, r: Request<WriteRequest>) -> Result<Response<WriteReply>, Status> {
        let ops =
            ops_from_proto(r.into_inner()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.told.lock().unwrap().push(Told::Write(ops));
        if self.loses_answer.swap(false, Ordering::Relaxed) {
            return Err(Status::deadline_exceeded("the answer got lost"));
        }
        Ok(Response::new(WriteReply { revision: 1 }))
    }

    async fn add_port(&self, r: Request<AddPortRequest>) -> Result<Response<AddPortReply>, Status> {
        let AddPortRequest { port, name, vid, .. } = r.into_inner();
        if name == self.refused_device {
            return Err(Status::failed_precondition("no such device"));
        }
        self.ports.lock().unwrap().insert(port, name.clone());
        self.told.lock().unwrap().push(Told::Add(port, name, vid));
        Ok(Response::new(AddPortReply { ifindex: 1 }))
    }

    async fn remove_port(
        &self,
        r: Request<RemovePortRequest>,
    ) -> Result<Response<RemovePortReply>, Status> {
        let RemovePortRequest { port, more } = r.into_inner();
        let gone: Vec<u32> = std::iter::once(port).chain(more).collect();
        self.ports.lock().unwrap().retain(|port, _| !gone.contains(port));
        self.told.lock().unwrap().push(Told::Remove(gone));
        Ok(Response::new(RemovePortReply {}))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let ports = self.ports.lock().unwrap().clone().into_iter();
        let ports = ports.map(|(id, name)| Port { id, name, ..Default::default() }).collect();
        Ok(Response::new(ListReply { ports, ..Default::default() }))
    }

    async fn counters(
        &self,
        _: Request<CountersRequest>,
    ) -> Result<Response<CountersReply>, Status> {
        Ok(Response::new(CountersReply::default()))
    }

    async fn drops(&self, _: Request<DropsRequest>) -> Result<Response<DropsReply>, Status> {
        Ok(Response::new(DropsReply::default()))
    }

    async fn confirm_port(
        &self,
        _: Request<ConfirmPortRequest>,
    ) -> Result<Response<ConfirmPortReply>, Status> {
        Ok(Response::new(ConfirmPortReply::default()))
    }

    async fn workers(&self, _: Request<WorkersRequest>) -> Result<Response<WorkersReply>, Status> {
        Ok(Response::new(WorkersReply::default()))
    }

    async fn trace(&self, _: Request<TraceRequest>) -> Result<Response<TraceReply>, Status> {
        Ok(Response::new(TraceReply::default()))
    }

    type TraceLiveStream = ReceiverStream<Result<TraceReply, Status>>;

    async fn trace_live(
        &self,
        _: Request<TraceLiveRequest>,
    ) -> Result<Response<Self::TraceLiveStream>, Status> {
        Err(Status::unimplemented("netplugin does not trace"))
    }

    async fn offload(&self, _: Request<OffloadRequest>) -> Result<Response<OffloadReply>, Status> {
        Err(Status::unimplemented("netplugin leaves offloading as it is"))
    }

    type DropLogStream = ReceiverStream<Result<DroppedPacket, Status>>;

    async fn drop_log(
        &self,
        r: Request<DropLogRequest>,
    ) -> Result<Response<Self::DropLogStream>, Status> {
        assert_eq!(r.into_inner(), DropLogRequest { follow: true, vrf: None });
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        self.followers.lock().unwrap().push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn events(
        &self,
        _: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        self.alive.lock().unwrap().push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// An engine process: gone, with its connections, when dropped.
pub(crate) struct Process {
    told: Arc<Mutex<Vec<Told>>>,
    loses_answer: Arc<AtomicBool>,
    alive: Clients,
    followers: Followers,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Process {
    pub(crate) fn start(socket: &PathBuf, instance: &str, ports: &[(u32, &str)]) -> Self {
        Self::start_with(socket, instance, ports, Feature::RemoveMany as u64)
    }

    fn start_with(socket: &PathBuf, instance: &str, ports: &[(u32, &str)], features: u64) -> Self {
        drop(std::fs::remove_file(socket));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (loses_answer, alive) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let followers = Followers::default();
        let fake = Fake {
            instance: instance.to_owned(),
            features,
            told: Arc::clone(&told),
            ports: Mutex::new(ports.iter().map(|&(id, name)| (id, name.to_owned())).collect()),
            refused_device: "wrbad",
            loses_answer: Arc::clone(&loses_answer),
            alive: Arc::clone(&alive),
            followers: Arc::clone(&followers),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(DatapathServer::new(fake))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { told, loses_answer, alive, followers, runtime: Some(runtime) }
    }

    /// Waits until it was told this, at most 10 seconds.
    async fn hear(&self, expected: &Told) {
        let heard = async {
            while !self.told.lock().unwrap().contains(expected) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), heard).await.expect("told in time");
    }

    /// Tells every client that a port's device is gone.
    async fn lose_device(&self, port: u32) {
        let kind = v1::event::Kind::PortGone.into();
        let event = Event { kind, port, ..Event::default() };
        let clients = self.alive.lock().unwrap().clone();
        for client in clients {
            // A client of an earlier connection may be gone.
            drop(client.send(Ok(event.clone())).await);
        }
    }

    /// Tells the one that follows the drop log, once there is one, at most 10 seconds later.
    pub(crate) async fn drop_packet(&self, dropped: DroppedPacket) {
        let follower = async {
            loop {
                let last = self.followers.lock().unwrap().last().cloned();
                match last {
                    Some(follower) => break follower,
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        let follower = tokio::time::timeout(Duration::from_secs(10), follower).await;
        follower.expect("followed in time").send(Ok(dropped)).await.unwrap();
    }

    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) programmer: Arc<Programmer>,
    task: tokio::task::JoinHandle<Infallible>,
}

impl Bench {
    pub(crate) fn start(uplink: Option<&str>, ports: BTreeMap<PortId, Wanted>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.toml");
        std::fs::write(&empty, "").unwrap();
        let run_dir = dir.path().to_str().unwrap().to_owned();
        let mut arguments = vec!["netplugin", "--config", empty.to_str().unwrap()];
        arguments.extend(["--node", "n1", "--run-dir", &run_dir, "--vtep", "192.0.2.1"]);
        arguments.extend(uplink.into_iter().flat_map(|device| ["--uplink", device]));
        let config = Arguments::try_parse_from(arguments).unwrap().resolve().unwrap();
        let mirror = Arc::new(Mirror::new());
        let programmer = Arc::new(Programmer::new(ports));
        let (m, p) = (Arc::clone(&mirror), Arc::clone(&programmer));
        let task = tokio::spawn(async move { run(&config, &m, &p).await });
        Self { dir, mirror, programmer, task }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("vrouterd.sock")
    }

    /// Waits until what was applied fits, at most 10 seconds.
    async fn applied(&self, fits: impl FnMut(&Applied) -> bool) -> Applied {
        let mut applied = self.programmer.watch();
        let wait = tokio::time::timeout(Duration::from_secs(10), applied.wait_for(fits));
        wait.await.expect("applied in time").unwrap().clone()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn port(n: u32) -> PortId {
    PortId::new(n).unwrap()
}

fn wanted(ifname: &str, id: &str) -> Wanted {
    let endpoint = EndpointId::parse("endpointID", id).unwrap();
    let (limits, published) = (PortLimits::default(), Vec::new());
    Wanted { ifname: ifname.to_owned(), endpoint, limits, published }
}

/// Keys a batch puts and deletes.
fn keys(told: &Told) -> (Vec<EntryKey>, Vec<EntryKey>) {
    let Told::Write(ops) = told else { panic!("not a write: {told:?}") };
    let put = ops.iter().filter_map(|op| if let Op::Put(e) = op { Some(e.key()) } else { None });
    let gone = ops.iter().filter_map(|op| if let Op::Delete(k) = op { Some(*k) } else { None });
    (put.collect(), gone.collect())
}

#[tokio::test]
async fn a_port_is_added_before_the_tables_that_name_it() {
    let bench = Bench::start(None, BTreeMap::new());
    let engine = Process::start(&bench.socket(), "a", &[]);
    let events =
        vec![tenant(1), network(2, "b", "vxlan", 40), endpoint(3, "c1:eth0", "b", "10.40.0.5")];
    snapshot(&bench.mirror, 3, events);
    bench.applied(|now| now.stamp.revision == 3).await;
    let before = engine.take();
    assert!(matches!(&before[0], Told::Write(ops) if ops[0] == Op::Clear), "{before:?}");

    let generation = bench.programmer.place(port(5), wanted("wr0123456789", "c1:eth0"));
    bench.applied(|now| now.generation >= generation).await;
    let told = engine.take();
    assert_eq!(told[0], Told::Add(5, "wr0123456789".into(), vec![]));
    let (put, gone) = keys(&told[1]);
    assert!(put.contains(&EntryKey::Port(port(5))), "{put:?}");
    assert_eq!(gone, []);
    assert_eq!(told.len(), 2);

    let generation = bench.programmer.unplace(&[port(5)]);
    bench.applied(|now| now.generation >= generation).await;
    let told = engine.take();
    assert_eq!(told[0], Told::Remove(vec![5]));
    assert!(keys(&told[1]).1.contains(&EntryKey::Port(port(5))));
}

#[tokio::test]
async fn nothing_is_written_before_there_is_intent() {
    let bench = Bench::start(None, BTreeMap::new());
    let engine = Process::start(&bench.socket(), "a", &[]);
    bench.applied(|now| now.engine.is_some()).await;
    assert_eq!(engine.take(), []);
    snapshot(&bench.mirror, 1, vec![tenant(1)]);
    bench.applied(|now| now.stamp.revision == 1).await;
    assert!(matches!(&engine.take()[..], [Told::Write(ops)] if ops.len() == 2));
}

#[tokio::test]
async fn a_new_engine_gets_uplink_ports_and_all_tables_again() {
    let ports = BTreeMap::from([(port(5), wanted("wr0123456789", "c1:eth0"))]);
    let bench = Bench::start(Some("up0"), ports);
    let first = Process::start(&bench.socket(), "a", &[]);
    let events = vec![
        tenant(1),
        network(2, "b", "vxlan", 40),
        network(3, "v", "vlan", 20),
        endpoint(4, "c1:eth0", "b", "10.40.0.5"),
    ];
    snapshot(&bench.mirror, 4, events);
    bench.applied(|now| now.stamp.revision == 4).await;
    drop(first);
    bench.applied(|now| now.engine.is_none()).await;

    let second = Process::start(&bench.socket(), "b", &[]);
    bench.applied(|now| now.engine.is_some()).await;
    let told = second.take();
    assert_eq!(told[0], Told::Add(1, "up0".into(), vec![20]));
    assert_eq!(told[1], Told::Add(5, "wr0123456789".into(), vec![]));
    let Told::Write(ops) = &told[2] else { panic!("{told:?}") };
    assert_eq!(ops[0], Op::Clear);
    let (put, _) = keys(&told[2]);
    assert!(put.contains(&EntryKey::Port(port(5))), "{put:?}");
    assert_eq!(told.len(), 3);
}

#[tokio::test]
async fn ports_of_a_running_engine_are_adopted_and_strangers_removed() {
    let ports = BTreeMap::from([(port(5), wanted("wr0123456789", "c1:eth0"))]);
    let bench = Bench::start(None, ports);
    snapshot(&bench.mirror, 1, vec![tenant(1)]);
    let held = [(5, "wr0123456789"), (6, "wr9999999999"), (7, "wr0000000000")];
    let engine = Process::start(&bench.socket(), "a", &held);
    bench.applied(|now| now.stamp.revision == 1).await;
    let told = engine.take();
    assert_eq!(told[0], Told::Remove(vec![6, 7]));
    assert!(matches!(&told[1], Told::Write(_)));
    assert_eq!(told.len(), 2);
}

#[tokio::test]
async fn an_engine_of_before_is_asked_for_one_port_at_a_time() {
    let bench = Bench::start(None, BTreeMap::new());
    snapshot(&bench.mirror, 1, vec![tenant(1)]);
    let held = [(6, "wr9999999999"), (7, "wr0000000000")];
    let engine = Process::start_with(&bench.socket(), "a", &held, 0);
    bench.applied(|now| now.stamp.revision == 1).await;
    assert_eq!(engine.take()[..2], [Told::Remove(vec![6]), Told::Remove(vec![7])]);
}

#[tokio::test]
async fn vlans_of_a_running_uplink_stay_until_intent_is_known() {
    let bench = Bench::start(Some("up0"), BTreeMap::new());
    let engine = Process::start(&bench.socket(), "a", &[(1, "up0")]);
    bench.applied(|now| now.engine.is_some()).await;
    assert_eq!(engine.take(), []);
    snapshot(&bench.mirror, 2, vec![tenant(1), network(2, "v", "vlan", 20)]);
    bench.applied(|now| now.stamp.revision == 2).await;
    assert_eq!(engine.take()[0], Told::Add(1, "up0".into(), vec![20]));
}

#[tokio::test]
async fn a_refused_port_is_reported_and_gets_no_tables() {
    let bench = Bench::start(None, BTreeMap::new());
    let engine = Process::start(&bench.socket(), "a", &[]);
    let events =
        vec![tenant(1), network(2, "b", "vxlan", 40), endpoint(3, "c1:eth0", "b", "10.40.0.5")];
    snapshot(&bench.mirror, 3, events);
    let generation = bench.programmer.place(port(5), wanted("wrbad", "c1:eth0"));
    let now = bench.applied(|now| now.generation >= generation && now.stamp.revision == 3).await;
    assert_eq!(now.failed_ports, BTreeMap::from([(port(5), "no such device".to_owned())]));
    let ports = |told: &Told| match told {
        Told::Write(ops) => ops.iter().any(|op| matches!(op, Op::Put(Entry::Port(_)))),
        Told::Add(..) | Told::Remove(_) => true,
    };
    assert!(!engine.take().iter().any(ports));
}

#[tokio::test]
async fn a_new_vlan_network_is_taken_from_the_uplink_before_its_tables() {
    let bench = Bench::start(Some("up0"), BTreeMap::new());
    let engine = Process::start(&bench.socket(), "a", &[]);
    snapshot(&bench.mirror, 1, vec![tenant(1)]);
    bench.applied(|now| now.stamp.revision == 1).await;
    engine.take();
    bench.mirror.hear(network(2, "v", "vlan", 20)).unwrap();
    bench.applied(|now| now.stamp.revision == 2).await;
    let told = engine.take();
    assert_eq!(told[0], Told::Add(1, "up0".into(), vec![20]));
    let vid = flowtable::ids::Vid::new(20).unwrap();
    assert!(keys(&told[1]).0.contains(&EntryKey::Vlan(UPLINK, vid)));
}

#[tokio::test]
async fn after_a_lost_answer_everything_is_written_again() {
    let bench = Bench::start(None, BTreeMap::new());
    let engine = Process::start(&bench.socket(), "a", &[]);
    snapshot(&bench.mirror, 1, vec![tenant(1)]);
    bench.applied(|now| now.stamp.revision == 1).await;
    engine.take();
    engine.loses_answer.store(true, Ordering::Relaxed);
    bench.mirror.hear(network(2, "b", "vxlan", 40)).unwrap();
    bench.applied(|now| now.stamp.revision == 2 && now.engine.is_some()).await;
    let told = engine.take();
    assert!(matches!(&told[0], Told::Write(ops) if ops[0] != Op::Clear), "{told:?}");
    assert!(matches!(&told[1], Told::Write(ops) if ops[0] == Op::Clear), "{told:?}");
}

#[tokio::test]
async fn a_port_whose_device_went_is_added_again() {
    let ports = BTreeMap::from([(port(5), wanted("wr0123456789", "c1:eth0"))]);
    let bench = Bench::start(Some("up0"), ports);
    let engine = Process::start(&bench.socket(), "a", &[]);
    snapshot(&bench.mirror, 2, vec![tenant(1), network(2, "v", "vlan", 20)]);
    bench.applied(|now| now.stamp.revision == 2).await;
    engine.take();
    engine.lose_device(1).await;
    engine.hear(&Told::Add(1, "up0".into(), vec![20])).await;
    engine.lose_device(5).await;
    engine.hear(&Told::Add(5, "wr0123456789".into(), vec![])).await;
}

/// Keys of the meters and marks that a batch puts and deletes, in order.
fn qos_keys(told: &Told) -> (Vec<EntryKey>, Vec<EntryKey>) {
    let is_qos = |key: &EntryKey| matches!(key, EntryKey::Meter(_) | EntryKey::Qos(_));
    let (put, gone) = keys(told);
    (put.into_iter().filter(is_qos).collect(), gone.into_iter().filter(is_qos).collect())
}

/// Endpoint c1 in a group with a profile of 6 Mbps, on port 5.
fn limited() -> Vec<control_api::v1::WatchEvent> {
    let mut events = vec![tenant(1), network(2, "b", "vxlan", 40)];
    events.extend(gold_group(3, "b", "6 Mbps"));
    events.push(member(endpoint(4, "c1:eth0", "b", "10.40.0.5")));
    events
}

#[tokio::test]
async fn meters_and_marks_come_and_go_with_their_port_in_the_batch_of_its_tables() {
    let bench = Bench::start(None, BTreeMap::new());
    let engine = Process::start(&bench.socket(), "a", &[]);
    let mut events = limited();
    events.push(endpoint(5, "c2:eth0", "b", "10.40.0.6"));
    snapshot(&bench.mirror, 5, events);
    bench.applied(|now| now.stamp.revision == 5).await;
    assert_eq!(qos_keys(&engine.take()[0]), (vec![], vec![]));

    let generation = bench.programmer.place(port(5), wanted("wr0123456789", "c1:eth0"));
    bench.applied(|now| now.generation >= generation).await;
    let told = engine.take();
    let meter = |n| EntryKey::Meter(flowtable::ids::MeterId::new(n).unwrap());
    let all = vec![meter(10), meter(11), EntryKey::Qos(port(5))];
    assert_eq!(qos_keys(&told[1]), (all.clone(), vec![]));
    assert!(keys(&told[1]).0.contains(&EntryKey::Port(port(5))));

    let generation = bench.programmer.unplace(&[port(5)]);
    bench.applied(|now| now.generation >= generation).await;
    let told = engine.take();
    assert_eq!(qos_keys(&told[1]), (vec![], all.into_iter().rev().collect()));

    // The id goes to a container without a limit.
    let generation = bench.programmer.place(port(5), wanted("wr9999999999", "c2:eth0"));
    bench.applied(|now| now.generation >= generation).await;
    assert_eq!(qos_keys(&engine.take()[1]), (vec![], vec![]));
}

#[tokio::test]
async fn a_port_id_taken_over_within_one_pass_loses_the_limit_of_the_container_before() {
    let bench = Bench::start(None, BTreeMap::new());
    let engine = Process::start(&bench.socket(), "a", &[]);
    let mut events = limited();
    events.push(endpoint(5, "c2:eth0", "b", "10.40.0.6"));
    snapshot(&bench.mirror, 5, events);
    let generation = bench.programmer.place(port(5), wanted("wr0123456789", "c1:eth0"));
    bench.applied(|now| now.generation >= generation && now.stamp.revision == 5).await;
    engine.take();
    let generation = bench.programmer.place(port(5), wanted("wr9999999999", "c2:eth0"));
    bench.applied(|now| now.generation >= generation).await;
    let told = engine.take();
    assert_eq!(told[..2], [Told::Remove(vec![5]), Told::Add(5, "wr9999999999".into(), vec![])]);
    let (put, gone) = qos_keys(&told[2]);
    assert_eq!((put.len(), gone.len(), gone[0]), (0, 3, EntryKey::Qos(port(5))));
}

#[tokio::test]
async fn a_changed_profile_changes_meters_only_and_a_new_engine_gets_them_again() {
    let ports = BTreeMap::from([(port(5), wanted("wr0123456789", "c1:eth0"))]);
    let bench = Bench::start(None, ports);
    let first = Process::start(&bench.socket(), "a", &[]);
    snapshot(&bench.mirror, 4, limited());
    bench.applied(|now| now.stamp.revision == 4).await;
    first.take();
    let [_, changed] = gold_group(5, "b", "16 Mbps");
    bench.mirror.hear(changed).unwrap();
    bench.applied(|now| now.stamp.revision == 5).await;
    let told = first.take();
    let [Told::Write(ops)] = told.as_slice() else { panic!("{told:?}") };
    let rates: Vec<_> = ops
        .iter()
        .map(|op| {
            let Op::Put(Entry::Meter(meter)) = op else { panic!("{op:?}") };
            (meter.meter.get(), meter.committed.rate)
        })
        .collect();
    assert_eq!(rates, [(10, 16_000_000), (11, 16_000_000)]);
    drop(first);
    bench.applied(|now| now.engine.is_none()).await;
    let second = Process::start(&bench.socket(), "b", &[]);
    bench.applied(|now| now.engine.is_some()).await;
    assert_eq!(qos_keys(&second.take()[1]).0.len(), 3);
}
