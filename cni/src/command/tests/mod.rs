//! Golden tests: environment and stdin in, stdout, stderr and exit code out.

use std::path::Path;
use std::sync::Mutex;

use cni_api::v1::cni_server::{Cni, CniServer};
use cni_api::v1::{
    AddReply, Attachment, CheckReply, CniError, DelReply, GcReply, Ip, Route, StatusReply,
    StatusRequest,
};
use prost::Message as _;
use serde_json::json;
use tonic::{Request, Response, Status};

use super::*;

mod chained;
mod delegated;
mod names;

const ENV: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/no/such/netns"),
    ("CNI_IFNAME", "eth0"),
];

fn env_with(changes: &[(&str, &str)]) -> Environment {
    let mut pairs: Vec<(&str, &str)> = ENV.to_vec();
    for &(key, value) in changes {
        pairs.retain(|(k, _)| *k != key);
        pairs.push((key, value));
    }
    Environment::of(&pairs)
}

fn run_json(env: &Environment, config: &Value) -> (bool, Value) {
    let output = run(env, config.to_string().as_bytes());
    assert_eq!(output.stderr, "");
    let value = if output.stdout.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&output.stdout).expect("stdout is one JSON value")
    };
    (output.exit == ExitCode::SUCCESS, value)
}

fn refused(env: &Environment, config: &Value) -> Value {
    let (ok, value) = run_json(env, config);
    assert!(!ok, "{value}");
    value
}

fn config() -> Value {
    json!({"cniVersion": "1.0.0", "name": "n1", "type": "weir-cni", "network": "blue"})
}

fn config_with(key: &str, value: Value) -> Value {
    let mut config = config();
    config[key] = value;
    config
}

#[test]
fn without_a_command_the_about_text_is_on_stderr_and_the_exit_is_clean() {
    let output = run(&Environment::default(), b"");
    assert_eq!(output.stdout, "");
    assert!(
        output
            .stderr
            .ends_with("CNI protocol versions supported: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n")
    );
    assert_eq!(output.exit, ExitCode::SUCCESS);
}

#[test]
fn version_answers_podmans_dummy_environment() {
    let env = Environment::of(&[
        ("CNI_COMMAND", "VERSION"),
        ("CNI_CONTAINERID", ""),
        ("CNI_NETNS", "dummy"),
        ("CNI_IFNAME", "dummy"),
        ("CNI_PATH", "dummy"),
        ("CNI_ARGS", ""),
    ]);
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(
        run_json(&env, &json!({"cniVersion": "0.4.0"})),
        (true, json!({"cniVersion": "0.4.0", "supportedVersions": supported}))
    );
    let empty = run(&env, b"");
    assert_eq!(
        serde_json::from_str::<Value>(&empty.stdout).unwrap(),
        json!({"cniVersion": "1.1.0", "supportedVersions": supported})
    );
}

#[test]
fn missing_variables_are_named() {
    let env = Environment::of(&[("CNI_COMMAND", "ADD")]);
    assert_eq!(
        refused(&env, &config()),
        json!({"cniVersion": "1.1.0", "code": 4,
            "msg": "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing"})
    );
    assert_eq!(
        refused(&Environment::of(&[("CNI_COMMAND", "MOVE")]), &config()),
        json!({"cniVersion": "1.1.0", "code": 4, "msg": "unknown CNI_COMMAND: MOVE",
            "details": "use ADD, DEL, CHECK, GC, STATUS or VERSION"})
    );
}

#[test]
fn refusals_are_in_the_configurations_version() {
    assert_eq!(
        refused(&env_with(&[]), &json!({"cniVersion": "0.3.1", "name": "n1"})),
        json!({"cniVersion": "0.3.1", "code": 7,
            "msg": "no network named: set \"network\" in the configuration or WEIR_NETWORK in CNI_ARGS"})
    );
    assert_eq!(
        refused(&env_with(&[]), &config_with("cniVersion", json!("2.0.0"))),
        json!({"cniVersion": "1.1.0", "code": 1, "msg": "incompatible CNI versions",
            "details": "config is \"2.0.0\", plugin supports [0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0]"})
    );
}

#[test]
fn malformed_stdin_is_a_decode_error() {
    for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for stdin in [&b""[..], b"{", b"7", b"[]", b"\xff\xfe", b"{\"name\": \"n1\"} {}"] {
            let output = run(&env_with(&[("CNI_COMMAND", command)]), stdin);
            let error: Value = serde_json::from_str(&output.stdout).unwrap();
            assert_eq!(error["code"], json!(6), "{command} {stdin:?}: {error}");
            assert_eq!(output.exit, ExitCode::FAILURE);
        }
    }
}

#[test]
fn unsupported_requests_are_refused_with_key_and_value() {
    let sctp = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "sctp"}]);
    for (asked, text) in [
        (json!({"portMappings": sctp}), "runtimeConfig.portMappings: 8080/sctp"),
        (json!({"ipRanges": [[{"subnet": "10.0.0.0/8"}]]}), "runtimeConfig.ipRanges: [["),
    ] {
        let error = refused(&env_with(&[]), &config_with("runtimeConfig", asked));
        assert_eq!(error["code"], json!(2));
        let msg = error["msg"].as_str().unwrap();
        assert!(msg.starts_with(&format!("unsupported field {text}")), "{msg}");
    }
}

#[test]
fn ports_of_the_node_reach_netplugin() {
    let ports = |asked: Value| {
        let runtime = json!({"portMappings": asked});
        request(&env_with(&[]), &config_with("runtimeConfig", runtime)).published
    };
    let web =
        PortMapping { protocol: 6, host_port: 8080, container_port: 80, ..Default::default() };
    assert_eq!(ports(json!(null)), []);
    assert_eq!(ports(json!([{"hostPort": 0, "containerPort": 80}])), []);
    assert_eq!(ports(json!([{"hostPort": 8080, "containerPort": 80}])), vec![web.clone()]);
    let asked = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "192.0.2.1"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": ""},
    ]);
    let dns = PortMapping { protocol: 17, host_port: 53, container_port: 53, ..Default::default() };
    assert_eq!(ports(asked), [PortMapping { host_ip: "192.0.2.1".into(), ..web }, dns]);
    for bad in [json!(-1), json!("80"), json!(1.5)] {
        let runtime = json!({"portMappings": [{"hostPort": bad, "containerPort": 80}]});
        assert_eq!(
            refused(&env_with(&[]), &config_with("runtimeConfig", runtime))["code"],
            json!(6)
        );
    }
}

#[test]
fn a_bandwidth_reaches_netplugin_and_zeros_are_none() {
    let zeros = json!({"bandwidth": {"ingressRate": 0, "ingressBurst": 0}});
    assert_eq!(request(&env_with(&[]), &config_with("runtimeConfig", zeros)).bandwidth, None);
    let asked = json!({"bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3}});
    let bandwidth = request(&env_with(&[]), &config_with("runtimeConfig", asked)).bandwidth;
    let wanted = Bandwidth { ingress_rate: 1, ingress_burst: 2, egress_rate: 3, egress_burst: 0 };
    assert_eq!(bandwidth, Some(wanted));
    for bad in [json!(-1), json!("1M"), json!(1.5)] {
        let bad = json!({"bandwidth": {"ingressRate": bad}});
        assert_eq!(refused(&env_with(&[]), &config_with("runtimeConfig", bad))["code"], json!(6));
    }
}

#[test]
fn a_namespace_that_does_not_open_is_code_8() {
    let error = refused(&env_with(&[]), &config());
    assert_eq!(error["code"], json!(8));
    assert_eq!(
        error["msg"],
        json!("cannot use CNI_NETNS /no/such/netns: No such file or directory (os error 2)")
    );
}

#[test]
fn the_plugins_own_namespace_is_refused_before_anything_happens() {
    let own = [("CNI_NETNS", "/proc/self/ns/net")];
    for command in ["ADD", "DEL"] {
        let env = env_with(&[own[0], ("CNI_COMMAND", command)]);
        let error = refused(&env, &config_with("socket", json!("/no/such.sock")));
        assert_eq!(error["code"], json!(8), "{command}");
    }
    let forced = [own[0], ("CNI_NETNS_OVERRIDE", "true")];
    let error = refused(&env_with(&forced), &config_with("socket", json!("/no/such.sock")));
    assert_eq!(error["code"], json!(100));
}

#[test]
fn a_missing_daemon_has_a_code_for_each_command() {
    let mut config = config_with("socket", json!("/no/such.sock"));
    config["cniVersion"] = json!("1.1.0");
    config["prevResult"] = json!({"interfaces": [], "ips": []});
    config["cni.dev/valid-attachments"] = json!([]);
    config["stateDir"] = json!("/proc/no-such-dir");
    let del = refused(&env_with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "/x")]), &config);
    assert_eq!(del["code"], json!(100));
    let details = del["details"].as_str().unwrap();
    assert!(details.contains("the DEL cannot be queued: No such file"), "{details}");
    for (command, code) in [("CHECK", 11), ("GC", 100), ("STATUS", 50)] {
        assert_eq!(
            refused(&env_with(&[("CNI_COMMAND", command), ("CNI_NETNS", "/x")]), &config),
            json!({"cniVersion": "1.1.0", "code": code,
                "msg": "netplugin does not answer at /no/such.sock: start it, then retry",
                "details": "No such file or directory (os error 2)"}),
            "{command}"
        );
    }
}

#[test]
fn commands_newer_than_the_configuration_are_refused() {
    for (command, version, came) in
        [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0"), ("STATUS", "0.4.0", "1.1.0")]
    {
        let config = config_with("cniVersion", json!(version));
        assert_eq!(
            refused(&env_with(&[("CNI_COMMAND", command)]), &config),
            json!({"cniVersion": version, "code": 1,
                "msg": format!("config version does not allow {command}"),
                "details": format!("config is {version}, {command} came with {came}")})
        );
    }
}

#[test]
fn check_without_prev_result_and_gc_without_list_are_refused() {
    let error = refused(&env_with(&[("CNI_COMMAND", "CHECK")]), &config());
    assert_eq!(error["msg"], json!("required prevResult missing"));
    let config = config_with("cniVersion", json!("1.1.0"));
    let error = refused(&env_with(&[("CNI_COMMAND", "GC")]), &config);
    assert_eq!(error["code"], json!(7));
}

#[test]
fn check_against_a_prev_result_that_is_no_result_is_refused() {
    let env = env_with(&[("CNI_COMMAND", "CHECK")]);
    for (bad, msg) in [
        (json!(7), "prevResult: 7 is no object"),
        (json!({"ips": {}}), "prevResult: ips {} is no list"),
        (json!({"interfaces": "eth0"}), "prevResult: interfaces \"eth0\" is no list"),
        (json!({"interfaces": ["eth0"]}), "prevResult: interfaces: \"eth0\" is no object"),
        (json!({"ips": [{}]}), "prevResult.ips: \"\" is not an IP address"),
        (
            json!({"ips": [{"address": "10.1.1"}]}),
            "prevResult.ips: \"10.1.1\" is not an IP address",
        ),
        (
            json!({"ips": [{"address": "10.1.1.1/33"}]}),
            "prevResult.ips: \"10.1.1.1/33\" has no prefix length of 0..=32",
        ),
    ] {
        let error = refused(&env, &config_with("prevResult", bad));
        assert_eq!((&error["code"], &error["msg"]), (&json!(7), &json!(msg)));
    }
}

#[test]
fn bad_wanted_addresses_name_their_source() {
    let error = refused(&env_with(&[("CNI_ARGS", "IP=10.1.1")]), &config());
    assert_eq!(error["code"], json!(4));
    assert_eq!(error["msg"], json!("IP in CNI_ARGS: \"10.1.1\" is not an IP address"));
    let config = config_with("runtimeConfig", json!({"ips": ["10.1.1.5/33"]}));
    let error = refused(&env_with(&[]), &config);
    assert_eq!(error["code"], json!(7));
    assert_eq!(
        error["msg"],
        json!("runtimeConfig.ips: \"10.1.1.5/33\" has no prefix length of 0..=32")
    );
}

fn request(env: &Environment, config: &Value) -> AddRequest {
    add_request(env, &Config::parse(config.to_string().as_bytes()).unwrap()).unwrap()
}

#[test]
fn args_win_over_the_configuration_and_runtime_config_over_args() {
    let args = [(
        "CNI_ARGS",
        "IgnoreUnknown=1;WEIR_TENANT=red;WEIR_GROUP=web;IP=10.1.1.9;\
        MAC=02:00:00:00:00:09;K8S_POD_NAME=p1;WEIR_LABELS=app=web,tier=front;OTHER=x",
    )];
    assert_eq!(
        request(&env_with(&args), &config_with("tenant", json!("green"))),
        AddRequest {
            bandwidth: None,
            published: Vec::new(),
            attachment: Some(Attachment { container_id: "c1".into(), ifname: "eth0".into() }),
            netns: "/no/such/netns".into(),
            tenant: "red".into(),
            network: "blue".into(),
            group: "web".into(),
            ips: vec!["10.1.1.9".into()],
            mac: "02:00:00:00:00:09".into(),
            mtu: 0,
            container_name: "p1".into(),
            chained: false,
            labels: vec!["app=web".into(), "tier=front".into()],
            config_name: "n1".into(),
        }
    );
    let runtime =
        json!({"ips": ["10.1.1.7", "10.1.1.7", "10.1.1.7/24"], "mac": "02:00:00:00:00:07"});
    let request = request(&env_with(&args), &config_with("runtimeConfig", runtime));
    assert_eq!(request.ips, ["10.1.1.7"]);
    assert_eq!(request.mac, "02:00:00:00:00:07");
}

#[test]
fn the_tenant_is_default_where_nobody_names_one() {
    assert_eq!(request(&env_with(&[]), &config()).tenant, "default");
}

#[test]
fn args_cni_labels_silence_those_of_cni_args_and_are_keys_with_values() {
    let env = env_with(&[("CNI_ARGS", "WEIR_LABELS=app=db")]);
    let labels = json!([{"key": "app", "value": "web"}, {"key": "note", "value": "a,b=c"}]);
    let config = config_with("args", json!({"cni": {"labels": labels}}));
    assert_eq!(request(&env, &config).labels, ["app=web", "note=a,b=c"]);
    let config = config_with("args", json!({"cni": {"labels": [{"key": "app"}]}}));
    let error = refused(&env, &config);
    assert_eq!(error["code"], json!(7));
    assert_eq!(error["msg"], json!("args.cni.labels: {\"key\":\"app\"} is not a key and a value"));
}

#[test]
fn args_cni_ips_silence_the_ip_of_cni_args() {
    let config = config_with("args", json!({"cni": {"ips": ["10.1.1.8"]}}));
    assert_eq!(request(&env_with(&[("CNI_ARGS", "IP=10.1.1.9")]), &config).ips, ["10.1.1.8"]);
}

#[test]
fn check_asks_only_for_addresses_of_its_own_interface() {
    let prev = json!({
        "interfaces": [{"name": "wr1"}, {"name": "eth0"}, {"name": "eth1"}],
        "ips": [{"address": "10.1.1.5/24", "interface": 1}, {"address": "10.2.0.1/24", "interface": 2},
            {"address": "10.3.0.1/24"}, {"address": "10.4.0.1/24", "interface": 9}],
    });
    assert_eq!(listed_ips(&prev, "eth0"), ["10.1.1.5/24", "10.3.0.1/24"]);
    assert_eq!(listed_ips(&json!({}), "eth0"), Vec::<String>::new());
}

/// Answers like a netplugin with one network, refuses the address 10.1.1.66, and never answers of network
/// or namespace `hangs`.
#[derive(Default)]
pub(crate) struct Netplugin {
    /// The node is, its networks are full.
    pub(crate) is_ready: bool,
    pub(crate) removed: Mutex<Vec<GcRequest>>,
}

#[tonic::async_trait]
impl Cni for Netplugin {
    async fn add(&self, request: Request<AddRequest>) -> Result<Response<AddReply>, Status> {
        if request.get_ref().network == "hangs" {
            return std::future::pending().await;
        }
        if request.get_ref().ips == ["10.1.1.66"] {
            let error = CniError {
                code: Code::AddressInUse as u32,
                msg: "10.1.1.66 is in use".into(),
                details: "by c9:eth0".into(),
            };
            let details = error.encode_to_vec().into();
            return Err(Status::with_details(tonic::Code::AlreadyExists, "in use", details));
        }
        Ok(Response::new(AddReply {
            host_ifname: "wr0123456789".into(),
            host_mac: "02:aa:aa:aa:aa:aa".into(),
            mac: "02:02:0a:01:01:05".into(),
            mtu: 1450,
            ips: vec![Ip { address: "10.1.1.5/24".into(), gateway: "10.1.1.254".into() }],
            routes: vec![Route { dst: "0.0.0.0/0".into(), gw: "10.1.1.254".into() }],
        }))
    }

    async fn del(&self, request: Request<DelRequest>) -> Result<Response<DelReply>, Status> {
        if request.get_ref().netns == "hangs" {
            return std::future::pending().await;
        }
        Ok(Response::new(DelReply {}))
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckReply>, Status> {
        std::future::pending().await
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcReply>, Status> {
        if let Some(odd) = request.get_ref().valid.iter().find(|a| a.container_id == "-") {
            let msg = format!("invalid container id {}", odd.container_id);
            let code = Code::InvalidEnvironment as u32;
            let error = CniError { code, msg, details: String::new() };
            let details = error.encode_to_vec().into();
            return Err(Status::with_details(tonic::Code::InvalidArgument, "odd", details));
        }
        self.removed.lock().unwrap().push(request.into_inner());
        Ok(Response::new(GcReply { removed: Vec::new() }))
    }

    /// Says which trace it was asked in.
    async fn status(&self, asked: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        if self.is_ready {
            let StatusRequest { tenant, network, group } = asked.into_inner();
            let ready = network.is_empty();
            let reason = format!("{network} of {tenant} is full for {group}");
            return Ok(Response::new(StatusReply { ready, connectivity_limited: false, reason }));
        }
        let trace = asked.metadata().get("traceparent").and_then(|value| value.to_str().ok());
        let reason = format!("vrouterd is not there{}", trace.unwrap_or_default());
        Ok(Response::new(StatusReply { ready: false, connectivity_limited: true, reason }))
    }
}

fn with_netplugin(test: impl FnOnce(&Path)) {
    serving(Netplugin::default(), test);
}

/// Serves `netplugin` on a socket of its own while `test` runs with the socket's path.
pub(crate) fn serving(netplugin: Netplugin, test: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cni.sock");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&path) }).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let server = tonic::transport::Server::builder()
        .add_service(CniServer::new(netplugin))
        .serve_with_incoming(incoming);
    runtime.spawn(server);
    test(&path);
    runtime.shutdown_background();
}

#[test]
fn answers_of_netplugin_become_results_and_errors() {
    with_netplugin(|socket| {
        let mut config = config_with("socket", json!(socket));
        config["cniVersion"] = json!("1.1.0");
        config["dns"] = json!({"nameservers": ["10.0.0.1"]});
        // Of another plugin, of the specification, and what libcni should not send.
        config["bridge"] = json!({"cni0": [1]});
        config["cni.dev/odd"] = json!(null);
        config["capabilities"] = json!({"ips": true});
        // The namespace is only passed on: any file that is not our own namespace will do.
        let netns = [("CNI_NETNS", socket.to_str().unwrap())];
        let (ok, result) = run_json(&env_with(&netns), &config);
        assert!(ok, "{result}");
        assert_eq!(result["cniVersion"], json!("1.1.0"));
        assert_eq!(result["interfaces"][1]["sandbox"], json!(socket));
        assert_eq!(result["ips"][0]["address"], json!("10.1.1.5/24"));
        assert_eq!(result["dns"], json!({"nameservers": ["10.0.0.1"]}));

        let taken = [netns[0], ("CNI_ARGS", "IP=10.1.1.66")];
        assert_eq!(
            refused(&env_with(&taken), &config),
            json!({"cniVersion": "1.1.0", "code": 104, "msg": "10.1.1.66 is in use",
                "details": "by c9:eth0"})
        );

        let del = [("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")];
        assert_eq!(run_json(&env_with(&del), &config), (true, Value::Null));

        assert_eq!(
            refused(&env_with(&[("CNI_COMMAND", "STATUS")]), &config),
            json!({"cniVersion": "1.1.0", "code": 51, "msg": "vrouterd is not there"})
        );

        config["cni.dev/valid-attachments"] = json!([]);
        let gc = Environment::of(&[("CNI_COMMAND", "GC")]);
        assert_eq!(run_json(&gc, &config), (true, Value::Null));
    });
}

#[test]
fn status_names_what_the_configuration_attaches_to() {
    let node = Netplugin { is_ready: true, ..Netplugin::default() };
    serving(node, |socket| {
        let mut config = config_with("socket", json!(socket));
        config["cniVersion"] = json!("1.1.0");
        config["network"] = json!("front");
        config["group"] = json!("web");
        let status = env_with(&[("CNI_COMMAND", "STATUS")]);
        for (tenant, named) in [(json!("blue"), "blue"), (json!(""), "default")] {
            config["tenant"] = tenant;
            let msg = format!("front of {named} is full for web");
            let refused = refused(&status, &config);
            assert_eq!(refused, json!({"cniVersion": "1.1.0", "code": 50, "msg": msg}));
        }
        config["network"] = json!("");
        assert_eq!(run_json(&status, &config), (true, Value::Null));
    });
}

#[test]
fn the_runtimes_trace_goes_on_and_what_is_no_header_is_left_out() {
    with_netplugin(|socket| {
        let mut config = config_with("socket", json!(socket));
        config["cniVersion"] = json!("1.1.0");
        for (given, seen) in [("00-4bf92f3577b34da6-01", "00-4bf92f3577b34da6-01"), ("a\nb", "")] {
            let env = env_with(&[("CNI_COMMAND", "STATUS"), ("TRACEPARENT", given)]);
            let msg = format!("vrouterd is not there{seen}");
            assert_eq!(refused(&env, &config)["msg"], json!(msg));
        }
    });
}

#[test]
fn a_daemon_that_never_answers_is_left_after_the_timeout() {
    with_netplugin(|socket| {
        let mut config = config_with("socket", json!(socket));
        config["timeoutSeconds"] = json!(1);
        config["prevResult"] = json!({});
        let error = refused(&env_with(&[("CNI_COMMAND", "CHECK")]), &config);
        assert_eq!(error["code"], json!(11), "{error}");
    });
}

#[test]
fn a_failed_operation_is_in_the_log_file_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("cni.log");
    let mut config = config_with("socket", json!("/no/such.sock"));
    config["logFile"] = json!(log);
    config["logLevel"] = json!("error");
    config["stateDir"] = json!("/dev/null");
    refused(&env_with(&[("CNI_COMMAND", "DEL")]), &config);
    let line: Value = serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!(line["command"], json!("DEL"));
    assert_eq!(line["container_id"], json!("c1"));
    assert_eq!(
        line["outcome"],
        json!("netplugin does not answer at /no/such.sock: start it, then retry")
    );
}

#[test]
fn a_del_by_a_configuration_that_is_wrong_elsewhere_ends_well() {
    with_netplugin(|socket| {
        let mut config = config_with("socket", json!(socket));
        config["mtu"] = json!(1);
        config["timeoutSeconds"] = json!(-1);
        config["runtimeConfig"] = json!({"portMappings": "8080:80"});
        config["args"] = json!({"cni": {"labels": ["app=web"]}});
        let del = [("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")];
        assert_eq!(run_json(&env_with(&del), &config), (true, Value::Null));
        assert_eq!(refused(&env_with(&[]), &config)["code"], json!(6));
    });
}
