//! An etcd of the tests' own: its ports, its directory, gone with the last test that uses it.

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const READY_BOUND: Duration = Duration::from_secs(20);

/// A running etcd of one member.
#[derive(Debug)]
pub(crate) struct Etcd {
    process: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Etcd {
    /// Starts it with these flags beside the necessary ones, and waits until it answers.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (url, peer) = (free_url(), free_url());
        let mut command = Command::new("etcd");
        command.args(["--name", "default", "--logger", "zap", "--log-level", "error"]);
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]).args(flags);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let etcd = Self { process, url, _dir: dir };
        let deadline = Instant::now() + READY_BOUND;
        while !etcd.try_ctl(&["endpoint", "health"]).status.success() {
            assert!(Instant::now() < deadline, "etcd does not answer within {READY_BOUND:?}");
        }
        etcd
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        vec![self.url.clone()]
    }

    /// Runs etcdctl, which must succeed; its stdout.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let output = self.try_ctl(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_ctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]).args(args);
        command.output().unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // One that has ended by itself has nothing left to be killed.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The etcd that the sentences share, started by the first that needs it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedEtcd {
    started: Arc<Mutex<Option<Arc<Etcd>>>>,
}

impl SharedEtcd {
    pub(crate) fn running(&self) -> Arc<Etcd> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(started.get_or_insert_with(|| Arc::new(Etcd::start(&[]))))
    }
}

/// Whether a program is in PATH.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
