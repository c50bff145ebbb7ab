//! What a netmaster that does not lead does with requests.

use control_store::{EtcdStore, Op, Store as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::gate::Peer;

/// The leader at `url`, as told by an etcd that has not been heard since.
fn peer(url: String) -> Option<Peer> {
    let etcd = EtcdStore::open(vec!["http://127.0.0.1:1".into()]);
    Peer::new(url, etcd.election("http://127.0.0.1:2").contact())
}

/// A netmaster that takes the one at `leader` for the leader.
async fn follower(leader: Option<String>) -> Server {
    let role = Role::Follows(leader.and_then(peer));
    let (stop, stopping) = watch::channel(false);
    Server::serve(watch::Sender::new(role), stop, stopping).await
}

fn url(server: &Server) -> String {
    format!("http://{}", server.address)
}

#[tokio::test]
async fn a_follower_passes_calls_refusals_and_streams_on() {
    let (leader, mut at_leader) = Server::memory().await;
    let server = follower(Some(url(&leader))).await;
    let mut client = server.client().await;
    populate(&mut client).await;
    assert_eq!(client.everything().await, at_leader.everything().await);
    let refused = refusal(client.create(tenant("in_valid")).await);
    assert_eq!((refused.0, refused.1.as_str()), (Code::InvalidArgument, "tenantName"));
    let request = v1::WatchRequest { node_name: "n1".into(), ..Default::default() };
    let mut stream = client.node.watch(request).await.unwrap().into_inner();
    let mut last = 0;
    let reply = at_leader.create(tenant("blue")).await.unwrap();
    while last < reply.revision {
        last = stream.message().await.unwrap().unwrap().revision.max(last);
    }
    // It ends with the follower, which does not wait for the leader to end it.
    server.stop().await;
    let ended = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert!(ended.is_err() || ended.unwrap().is_none());
}

#[tokio::test]
async fn without_a_leader_the_answer_is_unavailable_with_what_to_do() {
    let server = follower(None).await;
    let mut client = server.client().await;
    let refused = refusal(client.create(tenant("blue")).await);
    assert_eq!(
        (refused.0, refused.2.as_str()),
        (Code::Unavailable, "no netmaster leads at the moment")
    );
    let server = follower(Some("http://127.0.0.1:1".into())).await;
    let mut client = server.client().await;
    let refused = refusal(client.create(tenant("blue")).await);
    assert_eq!(refused.0, Code::Unavailable);
    assert!(refused.2.contains("http://127.0.0.1:1, does not answer"), "{}", refused.2);
}

#[tokio::test]
async fn what_was_passed_on_once_is_not_passed_on_again() {
    let end = follower(Some("http://127.0.0.1:1".into())).await;
    let server = follower(Some(url(&end))).await;
    let mut client = server.client().await;
    let refused = refusal(client.create(tenant("blue")).await);
    assert_eq!(
        (refused.0, refused.2.as_str()),
        (Code::Unavailable, "no netmaster leads at the moment")
    );
}

/// What `/readyz` answers.
async fn readyz(server: &Server) -> String {
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let request = "GET /readyz HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn health_and_readiness_say_whether_there_is_a_leader_and_a_store() {
    let (stop, stopping) = watch::channel(false);
    let role = watch::Sender::new(Role::Follows(None));
    let server = Server::serve(role.clone(), stop, stopping.clone()).await;
    let mut health = HealthClient::new(server.client().await.channel);
    let service = String::from("control.v1.NetMaster");
    let mut told = health.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    let mut next = async || told.message().await.unwrap().unwrap().status().as_str_name();
    assert_eq!(next().await, "NOT_SERVING");
    let answer = readyz(&server).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("no netmaster leads"),
        "{answer}"
    );
    role.send_replace(Role::Follows(peer("http://127.0.0.1:1".into())));
    let answer = readyz(&server).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("etcd does not answer"),
        "{answer}"
    );
    let store = MemoryStore::default();
    let basics = reign::Basics::default();
    let leads = reign::lead(AnyStore::Memory(store.clone()), None, &basics, stopping).await;
    role.send_replace(leads.unwrap());
    assert_eq!(next().await, "SERVING");
    assert!(readyz(&server).await.starts_with("HTTP/1.1 200"));
    store.txn(Vec::new(), vec![Op::Put(b"other".to_vec(), Vec::new())]).await.unwrap();
    assert_eq!(next().await, "NOT_SERVING");
    let answer = readyz(&server).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("cannot be read"), "{answer}");
}
