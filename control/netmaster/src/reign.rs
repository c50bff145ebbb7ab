//! Who answers: this process for ever, when its store is its own, or for as long as it leads among
//! those that share an etcd.

use std::convert::Infallible;
use std::sync::Arc;

use control_api::v1::net_master_server::NetMasterServer;
use control_api::v1::node_server::NodeServer;
use control_store::{AnyStore, Election, EtcdStore, Tenure, Term};
use tokio::sync::{Semaphore, watch};
use tonic::service::Routes;
use tracing::{error, info};

use crate::api::{Api, VIEWERS_MAX};
use crate::gate::{Peer, Role};
use crate::history::Cluster;
use crate::master::{Failure, Master, State};
use crate::metrics::{Observer, Transactions};
use crate::node_api::NodeApi;
use crate::reclaim::Reclaim;
use crate::sessions::Sessions;

/// What is the same for every term of a process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Basics {
    pub(crate) transactions: Transactions,
    /// What the store is to be; `None`: whatever it is.
    pub(crate) cluster: Option<Cluster>,
}

/// What a process does for as long as it answers.
pub(crate) async fn lead(
    store: AnyStore,
    tenure: Option<Tenure>,
    basics: &Basics,
    stopping: watch::Receiver<bool>,
) -> Result<Role, Failure> {
    let master = Master::start(store, basics.transactions.clone(), basics.cluster).await?;
    let nodes = |state: &State| state.ledger.intent().nodes().map(|o| o.name.clone()).collect();
    let sessions = Sessions::begin(master.read(nodes).await?);
    let reclaim = Reclaim { master: master.clone(), sessions: sessions.clone() };
    // It ends with the term.
    tokio::spawn(reclaim.clone().run(stopping.clone()));
    let node_api =
        NodeApi { master: master.clone(), sessions: sessions.clone(), stopping: stopping.clone() };
    let observer = Observer { master: master.clone(), sessions: sessions.clone() };
    let viewers = Arc::new(Semaphore::new(VIEWERS_MAX));
    let routes =
        Routes::new(NetMasterServer::new(Api { master, sessions, reclaim, stopping, viewers }))
            .add_service(NodeServer::new(node_api))
            .prepare();
    Ok(Role::Leads { routes, tenure, observer })
}

/// One of the netmasters that share an etcd.
pub(crate) struct Contender {
    pub(crate) store: EtcdStore,
    /// Where the others reach it.
    pub(crate) address: String,
    pub(crate) basics: Basics,
    pub(crate) role: watch::Sender<Role>,
    /// Becomes true when the process is to end.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Contender {
    /// Leads and follows in turn until the process is to end; then it resigns. An error means that
    /// this process can't ever lead.
    pub(crate) async fn take_turns(&self) -> Result<(), Failure> {
        let election = self.store.election(&self.address);
        loop {
            let term = tokio::select! {
                term = election.campaign() => term,
                never = follow(&election, &self.address, &self.role) => match never {},
                () = stop(self.stopping.clone()) => return Ok(()),
            };
            let (end, over) = watch::channel(false);
            let led = self.serve_term(term, over).await;
            // Streams of the term end: their nodes go to the next leader.
            end.send_replace(true);
            self.role.send_replace(Role::Follows(None));
            match led {
                Ok(Led::ToTheEnd) => {}
                Ok(Led::UntilStopped(term)) => {
                    term.resign().await;
                    return Ok(());
                }
                Err(failure @ (Failure::Unreadable(_) | Failure::Cluster { .. })) => {
                    return Err(failure);
                }
                Err(failure) => {
                    error!(error = &failure as &dyn std::error::Error, "can't lead yet");
                }
            }
        }
    }

    async fn serve_term(
        &self,
        mut term: Term,
        over: watch::Receiver<bool>,
    ) -> Result<Led, Failure> {
        let store = AnyStore::Etcd(term.store());
        let begun = tokio::select! {
            begun = lead(store, Some(term.tenure()), &self.basics, over) => begun,
            () = term.ended() => return Ok(Led::ToTheEnd),
            () = stop(self.stopping.clone()) => return Ok(Led::UntilStopped(term)),
        };
        match begun {
            Ok(leads) => drop(self.role.send_replace(leads)),
            Err(failure) => {
                term.resign().await;
                return Err(failure);
            }
        }
        info!("this netmaster leads");
        tokio::select! {
            () = term.ended() => Ok(Led::ToTheEnd),
            () = stop(self.stopping.clone()) => Ok(Led::UntilStopped(term)),
        }
    }
}

/// How a term went.
enum Led {
    ToTheEnd,
    UntilStopped(Term),
}

/// Keeps `role` at whoever else leads, for ever.
#[expect(clippy::infinite_loop, reason = "the caller drops it when this process leads")]
async fn follow(election: &Election, own: &str, role: &watch::Sender<Role>) -> Infallible {
    let mut leader = election.leader();
    let peer = |address| Peer::new(address, election.contact());
    loop {
        // An address of our own is from an earlier term, or life, of this process.
        let address = leader.address().filter(|address| address != own);
        info!(leader = address.as_deref().unwrap_or("none"), "this netmaster follows");
        role.send_replace(Role::Follows(address.and_then(peer)));
        leader.changed().await;
    }
}

async fn stop(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone stops the process as well.
    drop(stopping.wait_for(|stopping| *stopping).await);
}
