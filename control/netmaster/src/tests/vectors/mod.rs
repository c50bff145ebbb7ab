//! Contiv's API tests (`objapi_test.go`) with all their input vectors, over gRPC. Each vector is
//! accepted or refused as Contiv does, but for D21 (addresses are parsed as such) and D11 (every VNI
//! can be used, and a VXLAN network takes no VLAN). The ACI tests are left out, and
//! `TestClusterMode`: there is one mode.

mod defects;
mod global;
mod groups;
mod integration;
mod kept;
mod networks;
mod rules;
mod scale;

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;

/// A server with the global settings of Contiv's tests.
async fn contiv() -> (Server, Client) {
    let (server, mut client) = Server::memory().await;
    let bridge = v1::Global { fwd_mode: "bridge".into(), ..Default::default() };
    client.update(Wire::Global(bridge)).await.unwrap();
    (server, client)
}

impl Client {
    /// A refusal that stores nothing; its field and reason.
    async fn refused(&mut self, kind: Wire) -> (String, String) {
        let before = self.everything().await;
        let text = format!("{kind:?}");
        let Err(status) = self.create(kind).await else { panic!("accepted: {text}") };
        let (code, field, reason) = refusal::<()>(Err(status));
        assert_ne!(code, Code::Unavailable, "{text}");
        assert!(!field.is_empty(), "{text}: {reason}");
        assert_eq!(self.everything().await, before, "{text}");
        (field, reason)
    }

    /// A refused delete, which deletes nothing; its reason.
    async fn kept(&mut self, kind: v1::Kind, key: &str) -> String {
        let before = self.everything().await;
        let (_, _, reason) = refusal(self.delete(kind, key).await);
        assert_eq!(self.everything().await, before, "{key}");
        reason
    }

    async fn oper(&mut self, kind: v1::Kind, key: &str) -> v1::Oper {
        self.get(kind, key).await.unwrap().1
    }

    /// Creates a network and says what tag it has.
    async fn tagged(&mut self, network: v1::Network) -> Result<u32, Status> {
        let reply = self.create(Wire::Network(network)).await?;
        let Some(Wire::Network(stored)) = reply.object.unwrap().kind else { panic!("a network") };
        Ok(stored.pkt_tag)
    }
}

/// A network of tenant default.
fn net(name: &str, subnet: &str, gateway: &str) -> v1::Network {
    v1::Network { gateway: gateway.into(), ..network("default", name, subnet) }
}

/// With an encapsulation and a tag, 0 for any.
fn on(network: v1::Network, encap: &str, pkt_tag: u32) -> v1::Network {
    v1::Network { encap: encap.into(), pkt_tag, ..network }
}
