//! What reaches a delegated IPAM plugin, and when.

use super::*;
use crate::ipam::tests::place;

/// A configuration that delegates to a plugin, and what that is asked for.
struct Chooser {
    dir: tempfile::TempDir,
    config: Value,
}

impl Chooser {
    /// The plugin runs `script`; netplugin is at `socket`.
    fn new(socket: &Path, script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        place(dir.path(), script);
        let config = json!({"cniVersion": "1.1.0", "name": "n1", "network": "blue",
            "socket": socket, "stateDir": dir.path(), "ipam": {"type": "chooser"},
            "cni.dev/valid-attachments": [], "prevResult": {}});
        Self { dir, config }
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn env(&self, command: &str) -> Environment {
        let path = self.dir.path().to_str().unwrap();
        env_with(&[("CNI_COMMAND", command), ("CNI_NETNS", "/x"), ("CNI_PATH", path)])
    }

    /// Commands that the plugin was executed with.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

const NOBODY: &str = "/no/such.sock";

#[test]
fn what_is_refused_for_its_input_does_not_reach_the_delegated_plugin() {
    with_netplugin(|socket| {
        let chooser = || Chooser::new(socket, "");
        let odd = json!([{"containerID": "-", "ifname": "eth0"}]);
        for (command, code, chooser) in [
            // Everything would be garbage.
            ("GC", 7, chooser().with("cni.dev/valid-attachments", json!(null))),
            ("GC", 1, chooser().with("cniVersion", json!("1.0.0"))),
            ("GC", 4, chooser().with("cni.dev/valid-attachments", odd)),
            ("CHECK", 1, chooser().with("cniVersion", json!("0.3.1"))),
            ("CHECK", 7, chooser().with("prevResult", json!(null))),
            ("STATUS", 1, chooser().with("cniVersion", json!("1.0.0"))),
        ] {
            let error = refused(&chooser.env(command), &chooser.config);
            assert_eq!(error["code"], json!(code), "{command}: {error}");
            assert_eq!(chooser.log(), "", "{command}: {error}");
        }
        let chooser = chooser();
        let own = [("CNI_COMMAND", "DEL"), ("CNI_NETNS", "/proc/self/ns/net")];
        let env = env_with(&[own[0], own[1], ("CNI_PATH", chooser.dir.path().to_str().unwrap())]);
        assert_eq!(refused(&env, &chooser.config)["code"], json!(8));
        assert_eq!(chooser.log(), "");
    });
}

#[test]
fn what_gives_back_reaches_the_delegated_plugin_also_while_netplugin_is_away() {
    let chooser = || Chooser::new(Path::new(NOBODY), "");
    for (command, code, log, chooser) in [
        // It is queued.
        ("DEL", None, "DEL\n", chooser()),
        ("DEL", Some(100), "DEL\n", chooser().with("stateDir", json!("/proc/no-such-dir"))),
        ("GC", Some(100), "GC\n", chooser()),
        // These change nothing: the first failure is the answer.
        ("CHECK", Some(11), "", chooser()),
        ("STATUS", Some(50), "", chooser()),
    ] {
        let (_, answer) = run_json(&chooser.env(command), &chooser.config);
        assert_eq!(answer.get("code"), code.map(|code| json!(code)).as_ref(), "{command}");
        assert_eq!(chooser.log(), log, "{command}: {answer}");
    }
    with_netplugin(|socket| {
        for command in ["DEL", "GC"] {
            let chooser = Chooser::new(socket, "");
            assert_eq!(run_json(&chooser.env(command), &chooser.config), (true, Value::Null));
            assert_eq!(chooser.log(), format!("{command}\n"));
        }
    });
}

#[test]
fn where_both_fail_the_error_tells_of_both() {
    let chooser =
        Chooser::new(Path::new(NOBODY), "echo '{\"code\": 5, \"msg\": \"full\"}'; exit 1");
    let error = refused(&chooser.env("GC"), &chooser.config);
    assert_eq!(error["code"], json!(100));
    let details = "No such file or directory (os error 2); ipam plugin chooser: full";
    assert_eq!(error["details"], json!(details));
}

#[test]
fn a_del_ends_well_without_the_delegated_plugin_and_says_what_is_not_given_back() {
    with_netplugin(|socket| {
        for (ipam, why) in [
            (json!({"type": "gone"}), "ipam plugin gone is not in CNI_PATH"),
            (json!({"type": "../sh"}), "ipam: type \"../sh\" is no plugin"),
            (json!("gone"), "ipam: type \"\" is no plugin"),
        ] {
            let log = tempfile::NamedTempFile::new().unwrap();
            let chooser = Chooser::new(socket, "").with("ipam", ipam);
            let chooser =
                chooser.with("logFile", json!(log.path())).with("logLevel", json!("error"));
            let output = run(&chooser.env("DEL"), chooser.config.to_string().as_bytes());
            assert_eq!((output.stdout.as_str(), output.exit), ("", ExitCode::SUCCESS), "{why}");
            let says = format!("weir-cni: the ipam plugin keeps what it may have lent: {why}");
            assert!(output.stderr.starts_with(&says), "{}", output.stderr);
            let logged = std::fs::read_to_string(log.path()).unwrap();
            let line: Value = serde_json::from_str(&logged).unwrap();
            assert!(line["outcome"].as_str().unwrap().contains(&why[..4]), "{line}");
            // What is not given back of ours is another matter.
            let chooser =
                chooser.with("socket", json!(NOBODY)).with("stateDir", json!("/dev/null"));
            let output = run(&chooser.env("DEL"), chooser.config.to_string().as_bytes());
            assert_eq!(output.exit, ExitCode::FAILURE);
        }
        let gone = Chooser::new(socket, "").with("ipam", json!({"type": "gone"}));
        assert_eq!(refused(&gone.env("GC"), &gone.config)["code"], json!(7));
    });
}

/// Chooses, and needs a moment for giving back.
const SLOW: &str = r#"case $CNI_COMMAND in
    ADD) echo '{"ips": [{"address": "10.1.1.7/24"}]}' ;;
    DEL) sleep 0.05; echo given back >>"$CNI_PATH/log" ;;
esac"#;

#[test]
fn an_address_is_given_back_after_an_add_in_which_netplugin_took_all_the_time() {
    with_netplugin(|socket| {
        let chooser = Chooser::new(socket, SLOW).with("timeoutSeconds", json!(2));
        let mut chooser = chooser.with("network", json!("hangs"));
        chooser.config.as_object_mut().unwrap().remove("prevResult");
        let env = env_with(&[
            ("CNI_NETNS", socket.to_str().unwrap()),
            ("CNI_PATH", chooser.dir.path().to_str().unwrap()),
        ]);
        let error = refused(&env, &chooser.config);
        assert_eq!(error["code"], json!(11), "{error}");
        assert_eq!(chooser.log(), "ADD\nDEL\ngiven back\n");
    });
}

#[test]
fn an_address_is_given_back_in_a_del_in_which_netplugin_took_all_the_time() {
    with_netplugin(|socket| {
        let chooser = Chooser::new(socket, SLOW).with("timeoutSeconds", json!(2));
        let path = chooser.dir.path().to_str().unwrap();
        let env = env_with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "hangs"), ("CNI_PATH", path)]);
        assert_eq!(refused(&env, &chooser.config)["code"], json!(11));
        assert_eq!(chooser.log(), "DEL\ngiven back\n");
    });
}
