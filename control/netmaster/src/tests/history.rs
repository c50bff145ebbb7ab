//! What a node may resume from, over restarts, restores and losses of the store.

use super::*;
use crate::reign::Basics;

/// What a node knows after it has heard of `revision` from whoever gave this reply.
fn known(reply: &v1::RegisterReply, revision: u64) -> v1::RegisterRequest {
    v1::RegisterRequest {
        api_version: 1,
        node_name: "n1".into(),
        cluster: reply.cluster,
        known_instance: reply.instance,
        known_revision: revision,
        ..Default::default()
    }
}

async fn register(client: &mut Client, request: v1::RegisterRequest) -> v1::RegisterReply {
    client.node.register(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_node_resumes_after_a_restart_and_not_after_a_restore_or_a_loss() {
    let dir = tempfile::tempdir().unwrap();
    let (file, backup) = (dir.path().join("netmaster.redb"), dir.path().join("backup"));
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    client.create(tenant("red")).await.unwrap();
    drop(client);
    server.stop().await;
    std::fs::copy(&file, &backup).unwrap();

    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    let first = register(&mut client, known(&v1::RegisterReply::default(), 0)).await;
    assert!(first.cluster != 0 && !first.resumes, "{first:?}");
    let newest = client.create(tenant("blue")).await.unwrap().revision;
    assert!(register(&mut client, known(&first, newest)).await.resumes);
    assert!(!register(&mut client, known(&first, newest + 1)).await.resumes);
    drop(client);
    server.stop().await;

    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    let again = register(&mut client, known(&first, newest)).await;
    assert!(again.resumes && again.cluster == first.cluster && again.instance != first.instance);
    drop(client);
    server.stop().await;

    std::fs::copy(&backup, &file).unwrap();
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    // As many writes as before, but others.
    while client.create(tenant("green")).await.unwrap().revision <= newest {
        client.delete(v1::Kind::Tenant, "green").await.unwrap();
    }
    let restored = register(&mut client, known(&first, newest)).await;
    assert!(!restored.resumes && restored.cluster == first.cluster, "{restored:?}");
    drop(client);
    server.stop().await;

    std::fs::remove_file(&file).unwrap();
    let server = Server::start(redb(&dir)).await;
    let lost = register(&mut server.client().await, known(&first, 1)).await;
    assert!(!lost.resumes && lost.cluster != first.cluster, "{lost:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_new_store_can_be_told_whose_it_is_and_an_old_one_is_not_renamed() {
    let store = AnyStore::Memory(MemoryStore::default());
    let named = |text: &str| Basics { cluster: Some(text.parse().unwrap()), ..Basics::default() };
    let (_stop, stopping) = watch::channel(false);
    let lead = async |text| reign::lead(store.clone(), None, &named(text), stopping.clone()).await;
    lead("00000000000000aa").await.unwrap();
    lead("00000000000000aa").await.unwrap();
    let refused = lead("00000000000000bb").await.unwrap_err().to_string();
    assert!(refused.starts_with("the store is cluster 00000000000000aa's"), "{refused}");
}
