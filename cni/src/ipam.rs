//! Delegated IPAM: another plugin chooses the addresses, where the configuration names one.
//!
//! It is executed as runtimes execute plugins: from `CNI_PATH`, with our environment and the whole
//! configuration on stdin. netmaster still owns the addresses: what the plugin chose is asked for there
//! like a runtime's own wish, and refused when the network does not have it or somebody else does.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cni_api::v1::Code;
use serde_json::Value;

use crate::config::Config;
use crate::environment::{Command, Environment};
use crate::failure::Failure;
use crate::times::Times;

/// An answer larger than this is cut, and then not JSON.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const POLL: Duration = Duration::from_millis(1);

/// The plugin that a configuration delegates to.
#[derive(Debug)]
pub(crate) struct Delegate<'a> {
    kind: String,
    program: PathBuf,
    env: &'a Environment,
    stdin: &'a [u8],
    times: Times,
}

impl<'a> Delegate<'a> {
    /// The plugin that `config` names, if it does.
    pub(crate) fn of(
        config: &Config,
        env: &'a Environment,
        stdin: &'a [u8],
        times: Times,
    ) -> Result<Option<Self>, Failure> {
        let invalid = |msg: String| Err(Failure::new(Code::InvalidConfig, msg));
        let Some(ipam) = &config.ipam else { return Ok(None) };
        let kind = ipam.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
            return invalid(format!(
                "ipam: type {kind:?} is no plugin; leave ipam out for Weir's own"
            ));
        }
        let places = std::env::split_paths(env.path()).map(|dir| dir.join(kind));
        let Some(program) = places.into_iter().find(|program| program.is_file()) else {
            return invalid(format!("ipam plugin {kind} is not in CNI_PATH {:?}", env.path()));
        };
        Ok(Some(Self { kind: kind.to_owned(), program, env, stdin, times }))
    }

    /// Addresses with their prefix lengths.
    pub(crate) fn add(&self) -> Result<Vec<String>, Failure> {
        let chosen = self.execute(Command::Add, self.times.asking).and_then(|text| {
            let result = serde_json::from_slice(&text).map_err(|error| {
                let msg = format!("ipam plugin {}: its result is not JSON: {error}", self.kind);
                Failure::new(Code::Decode, msg)
            })?;
            self.addresses(&result)
        });
        // One that was ended may have written down what it chose.
        chosen.inspect_err(|_refused| {
            // The first failure is the one to report.
            drop(self.forward(Command::Del));
        })
    }

    fn addresses(&self, result: &Value) -> Result<Vec<String>, Failure> {
        let items = |key: &str| result.get(key).and_then(Value::as_array).into_iter().flatten();
        let defaults = [Some("0.0.0.0/0"), Some("::/0")];
        let mut routes = items("routes").map(|route| route.get("dst").and_then(Value::as_str));
        if let Some(other) = routes.find(|dst| !defaults.contains(dst)) {
            let msg =
                format!("ipam plugin {} wants a route to {}", self.kind, other.unwrap_or("?"));
            return Err(Failure::new(Code::UnsupportedField, msg)
                .details("Weir makes the default route by the network's gateway, and no other"));
        }
        let texts = items("ips").map(|ip| ip.get("address").and_then(Value::as_str));
        let texts: Option<Vec<String>> = texts.map(|text| text.map(str::to_owned)).collect();
        texts.filter(|texts| !texts.is_empty()).ok_or_else(|| {
            let msg = format!("ipam plugin {} returned missing IP config", self.kind);
            Failure::new(Code::Internal, msg)
        })
    }

    /// DEL, CHECK, GC or STATUS, which print nothing, and come after what took the time before.
    pub(crate) fn forward(&self, command: Command) -> Result<(), Failure> {
        self.execute(command, self.times.end).map(drop)
    }

    fn execute(&self, command: Command, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let failed = |what: &str, error: &std::io::Error| {
            let msg = format!("ipam plugin {}: {what}: {error}", self.program.display());
            Failure::new(Code::Io, msg)
        };
        let mut process = Process::new(&self.program);
        process.envs(self.env.variables()).env("CNI_COMMAND", command.text());
        // Its stderr is ours: what it logs there is relayed.
        process.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process.spawn().map_err(|error| failed("starting it", &error))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        // One that reads or prints nothing must not keep us past the deadline.
        let input = self.stdin.to_vec();
        thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
        let output = thread::spawn(move || {
            let mut text = Vec::new();
            let read = stdout.map(|pipe| pipe.take(ANSWER_BYTES_MAX).read_to_end(&mut text));
            read.transpose().map(|_| text)
        });
        let status =
            wait(&mut child, deadline).map_err(|error| failed("waiting for it", &error))?;
        let Some(status) = status else {
            let msg = format!("ipam plugin {} did not finish in time", self.kind);
            return Err(Failure::new(Code::TryAgain, msg));
        };
        let text = output.join().unwrap_or_else(|_panic| Ok(Vec::new()));
        let text = text.map_err(|error| failed("reading its answer", &error))?;
        if status.success() { Ok(text) } else { Err(self.refusal(&text, status)) }
    }

    /// Its error object, or that it has none.
    fn refusal(&self, text: &[u8], status: ExitStatus) -> Failure {
        let object: Value = serde_json::from_slice(text).unwrap_or_default();
        let field = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
        let code = object.get("code").and_then(Value::as_u64).and_then(|c| u32::try_from(c).ok());
        let msg = match field("msg") {
            "" => format!("ipam plugin {} failed ({status}) and does not say why", self.kind),
            msg => format!("ipam plugin {}: {msg}", self.kind),
        };
        let failure = Failure::new(Code::Internal, msg).details(field("details"));
        Failure { code: code.filter(|code| *code != 0).unwrap_or(failure.code), ..failure }
    }
}

/// `None`: it was killed at the deadline.
fn wait(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// Makes plugin `chooser` in `dir`, which writes down each command and runs `script`; the file
    /// where it writes.
    pub(crate) fn place(dir: &Path, script: &str) -> PathBuf {
        let (source, log) = (dir.join("source"), dir.join("log"));
        std::fs::write(&log, "").unwrap();
        let text = format!("#!/bin/sh\necho \"$CNI_COMMAND\" >>{}\n{script}\n", log.display());
        std::fs::write(&source, text).unwrap();
        // Another process writes it: a child of a test beside this one could hold our descriptor, and what
        // is open for writing cannot be executed.
        let install = Process::new("install").arg(source).arg(dir.join("chooser")).status();
        assert!(install.unwrap().success());
        log
    }

    /// A plugin that writes down each command and runs `script`.
    fn with_plugin<T>(
        script: &str,
        test: impl FnOnce(&Delegate<'_>, &dyn Fn() -> String) -> T,
    ) -> T {
        let dir = tempfile::tempdir().unwrap();
        let log = place(dir.path(), script);
        let path = dir.path().display().to_string();
        let env = Environment::of(&[("CNI_PATH", &path), ("CNI_CONTAINERID", "c1")]);
        let stdin = br#"{"cniVersion": "1.0.0", "name": "n", "ipam": {"type": "chooser"},
            "timeoutSeconds": 1}"#;
        let config = Config::parse(stdin).unwrap();
        let delegate = Delegate::of(&config, &env, stdin, Times::of(&config)).unwrap().unwrap();
        test(&delegate, &|| std::fs::read_to_string(&log).unwrap())
    }

    #[test]
    fn the_whole_configuration_and_environment_reach_the_plugin() {
        let script = r#"grep -q '"type": "chooser"' && [ "$CNI_CONTAINERID" = c1 ] &&
            echo '{"ips": [{"address": "10.1.1.7/24"}], "routes": [{"dst": "0.0.0.0/0"}]}'"#;
        with_plugin(script, |delegate, log| {
            assert_eq!(delegate.add(), Ok(vec!["10.1.1.7/24".to_owned()]));
            for command in [Command::Check, Command::Gc, Command::Status, Command::Del] {
                delegate.forward(command).unwrap();
            }
            assert_eq!(log(), "ADD\nCHECK\nGC\nSTATUS\nDEL\n");
        });
    }

    #[test]
    fn a_result_that_cannot_be_used_is_given_back() {
        for (answer, code, text) in [
            ("{\"ips\": []}", 999, "returned missing IP config"),
            ("{\"ips\": [{\"address\": 7}]}", 999, "returned missing IP config"),
            ("prose", 6, "is not JSON"),
            ("{\"ips\": [], \"routes\": [{\"dst\": \"10.0.0.0/8\"}]}", 2, "a route to 10.0.0.0/8"),
        ] {
            with_plugin(&format!("echo '{answer}'"), |delegate, log| {
                let failure = delegate.add().unwrap_err();
                assert_eq!(failure.code, code, "{answer}");
                assert!(failure.msg.contains(text), "{answer}: {}", failure.msg);
                assert_eq!(log(), "ADD\nDEL\n", "{answer}");
            });
        }
    }

    #[test]
    fn its_refusals_keep_code_and_words_and_silence_is_named() {
        let script = "echo '{\"code\": 11, \"msg\": \"none left\", \"details\": \"d\"}'; exit 1";
        with_plugin(script, |delegate, _| {
            let failure = delegate.add().unwrap_err();
            assert_eq!((failure.code, failure.details.as_str()), (11, "d"));
            assert_eq!(failure.msg, "ipam plugin chooser: none left");
        });
        with_plugin("exit 3", |delegate, _| {
            let failure = delegate.forward(Command::Del).unwrap_err();
            assert_eq!(failure.code, 999);
            assert!(failure.msg.contains("does not say why"), "{}", failure.msg);
        });
    }

    #[test]
    fn a_plugin_that_hangs_is_ended() {
        with_plugin("exec sleep 60", |delegate, _| {
            let started = Instant::now();
            assert_eq!(delegate.forward(Command::Del).unwrap_err().code, 11);
            assert!(started.elapsed() < Duration::from_secs(10));
        });
        with_plugin("[ $CNI_COMMAND = DEL ] || exec sleep 60", |delegate, log| {
            assert_eq!(delegate.add().unwrap_err().code, 11);
            assert_eq!(log(), "ADD\nDEL\n", "what it may have chosen is not given back");
        });
    }

    #[test]
    fn names_that_are_no_plugin_are_refused() {
        for kind in ["", "../sh", "/bin/sh", "no-such-plugin"] {
            let stdin = serde_json::json!({"cniVersion": "1.0.0", "name": "n",
                "ipam": {"type": kind, "subnet": "10.1.1.0/24"}});
            let config = Config::parse(stdin.to_string().as_bytes()).unwrap();
            let env = Environment::of(&[("CNI_PATH", "/bin")]);
            assert_eq!(
                Delegate::of(&config, &env, b"", Times::of(&config)).unwrap_err().code,
                7,
                "{kind}"
            );
        }
    }
}
