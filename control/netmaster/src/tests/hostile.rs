//! Clients that mean harm, or are broken: whoever else asks is served.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

const BOUND: Duration = Duration::from_secs(20);
const IDLE: usize = 300;

async fn still_serves(server: &Server) {
    let whole = async {
        let mut client = server.client().await;
        client.create(tenant("red")).await.unwrap();
        client.delete(v1::Kind::Tenant, "red").await.unwrap();
    };
    timeout(BOUND, whole).await.unwrap();
}

#[tokio::test]
async fn hundreds_of_silent_and_half_open_connections_hinder_nobody_and_are_closed() {
    let (server, _client) = Server::memory().await;
    let mut silent = Vec::new();
    for i in 0..IDLE {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Every other one stops in the middle of its greeting.
        stream.write_all(&b"PRI * HTTP/2.0"[..(i % 2) * 14]).await.unwrap();
        silent.push(stream);
    }
    still_serves(&server).await;
    for mut stream in silent {
        // Closed or reset, but not kept; what the server said before is its own greeting.
        let ended = timeout(BOUND, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "kept open");
    }
    still_serves(&server).await;
}

#[tokio::test]
async fn bytes_that_are_no_protocol_end_their_connection_alone() {
    let (server, _client) = Server::memory().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let frame = |length: [u8; 3], kind: u8| {
        [&preface[..], &length, &[kind, 0, 0, 0, 0, 1], &[0xff; 64]].concat()
    };
    for bytes in [
        vec![0; 4096],
        vec![0xff; 4096],
        b"GET / HTTP/9.9\r\n\r\n and more than a greeting".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello on a plain port".to_vec(),
        frame([0xff, 0xff, 0xff], 0),
        frame([0, 0, 9], 1),
        frame([0, 0, 5], 4),
        frame([0, 0, 0], 0xee),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // A server that has closed already says the same.
        drop(stream.write_all(&bytes).await);
        drop(stream.shutdown().await);
        let ended = timeout(BOUND, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "kept open after {:?}", &bytes[..16]);
    }
    still_serves(&server).await;
}

/// What a client of a later version sends: the messages of this one, with fields that it does not know.
mod later {
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub(super) struct Create {
        #[prost(message, optional, tag = "1")]
        pub(super) object: Option<Object>,
        #[prost(string, tag = "900")]
        pub(super) reason: String,
    }

    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub(super) struct Object {
        #[prost(message, optional, tag = "1")]
        pub(super) tenant: Option<Named>,
        #[prost(uint64, tag = "901")]
        pub(super) generation: u64,
    }

    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub(super) struct Named {
        #[prost(string, tag = "1")]
        pub(super) tenant_name: String,
        #[prost(string, tag = "3")]
        pub(super) default_verdict: String,
        #[prost(string, repeated, tag = "902")]
        pub(super) owners: Vec<String>,
    }
}

#[tokio::test]
async fn fields_of_a_later_version_are_ignored_and_those_beside_them_hold() {
    let (server, mut client) = Server::memory().await;
    let tenant = later::Named {
        tenant_name: "red".into(),
        default_verdict: "deny".into(),
        owners: vec!["ops".into(), "x".repeat(100_000)],
    };
    let object = later::Object { tenant: Some(tenant), generation: u64::MAX };
    let create = later::Create { object: Some(object), reason: "a later version".into() };
    let mut raw = tonic::client::Grpc::new(client.channel.clone());
    raw.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<later::Create, v1::WriteReply>::default();
    let path = "/control.v1.NetMaster/Create".parse().unwrap();
    let reply = raw.unary(tonic::Request::new(create), path, codec).await.unwrap().into_inner();
    let Some(Wire::Tenant(made)) = reply.object.and_then(|object| object.kind) else {
        panic!("no tenant")
    };
    assert_eq!((made.tenant_name.as_str(), made.default_verdict.as_str()), ("red", "deny"));
    let (Wire::Tenant(stored), _) = client.get(v1::Kind::Tenant, "red").await.unwrap() else {
        panic!("no tenant")
    };
    assert_eq!(stored, made);
    client.delete(v1::Kind::Tenant, "red").await.unwrap();
    still_serves(&server).await;
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_whole() {
    let (server, mut client) = Server::memory().await;
    let before = client.everything().await;
    let name = "x".repeat(5 << 20);
    let status = client.create(tenant(&name)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains("limit"), "{status}");
    // Each of them is fine, and together they are more than one request may be.
    let many = (0..60_000).map(|i| policy("default", &format!("{i:0>64}"))).collect();
    let status = client.apply(many, &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(client.everything().await, before);
    still_serves(&server).await;
}

#[tokio::test]
async fn texts_that_are_no_names_are_refused_wherever_they_are() {
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let before = client.everything().await;
    for text in ["\0", "a\nb", "../../etc", "a/b", "%s%n", "a;drop", "\u{202e}b", "a:b:c", " "] {
        let bad = || text.to_owned();
        let net = || network("red", "n", "10.9.0.0/24");
        for object in [
            tenant(text),
            Wire::Network(v1::Network { tenant_name: bad(), ..net() }),
            Wire::Network(v1::Network { network_name: bad(), ..net() }),
            Wire::Network(v1::Network { subnet: bad(), ..net() }),
            Wire::Network(v1::Network { encap: bad(), ..net() }),
            Wire::EndpointGroup(group("red", "g", text, &[])),
            Wire::EndpointGroup(group("red", "g", "net", &[text])),
            policy("red", text),
            Wire::Rule(v1::Rule { from_endpoint_group: bad(), ..rule("red", "first", "9") }),
            Wire::Rule(v1::Rule { from_ip_address: bad(), ..rule("red", "first", "9") }),
            Wire::Rule(v1::Rule { protocol: bad(), ..rule("red", "first", "9") }),
            Wire::NetProfile(profile("red", "iron", text)),
            Wire::ServiceLb(service("red", "s", text)),
            Wire::AppProfile(app_profile("red", "a", &[text])),
            Wire::Bgp(bgp(text)),
            Wire::Endpoint(endpoint("e", "red", "net", text)),
        ] {
            let refused = refusal(client.create(object.clone()).await);
            assert!(
                matches!(refused.0, Code::InvalidArgument | Code::NotFound),
                "{object:?}: {refused:?}"
            );
            assert!(!refused.1.is_empty(), "{object:?}: {refused:?}");
        }
        let refused = refusal(client.get(v1::Kind::Network, text).await);
        assert_eq!(refused.0, Code::InvalidArgument, "{text:?}");
    }
    assert_eq!(client.everything().await, before);
}
