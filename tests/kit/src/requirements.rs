//! What this machine must have before an end-to-end test can run.

use std::env;
use std::fmt;
use std::fs;

use crate::binary::binary;

/// Bits of linux/capability.h.
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13), ("CAP_SYS_ADMIN", 21)];

/// The Debian package of each program that tests use.
const PACKAGES: [(&str, &str); 23] = [
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
    ("/usr/share/gocode/src/github.com/containernetworking/cni", "golang-github-appc-cni-dev"),
    ("bpftool", "bpftool"),
    ("busybox", "busybox-static"),
    ("clang", "clang"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("ethtool", "ethtool"),
    ("faketime", "faketime"),
    ("go", "golang-go"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nfdump", "nfdump"),
    ("ovs-vsctl", "openvswitch-switch"),
    ("ping", "iputils-ping"),
    ("podman", "podman"),
    ("sfacctd", "pmacct"),
    ("sfcapd", "nfdump-sflow"),
    ("tc", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
];

/// What a test uses beyond namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs<'a> {
    /// Programs of this workspace.
    pub binaries: &'a [&'a str],
    /// Programs of the system, looked for in PATH; an absolute path is looked for as it is.
    pub programs: &'a [&'a str],
}

/// What is not there; its text is the reason a test is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(Vec<String>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs {}", self.0.join(", "))
    }
}

impl std::error::Error for Missing {}

/// Whether this machine and user can run end-to-end tests with those needs.
///
/// # Errors
/// [`Missing`] lists all that is not there.
pub fn requirements(needs: &Needs<'_>) -> Result<(), Missing> {
    let mut missing = missing_privileges();
    missing.extend(
        needs
            .binaries
            .iter()
            .filter(|name| binary(name).is_err())
            .map(|name| format!("{name} (make build)")),
    );
    missing.extend(needs.programs.iter().filter(|name| !is_installed(name)).map(|name| {
        let package = PACKAGES.iter().find(|(program, _)| program == name);
        format!("{name} (apt-get install {})", package.map_or(*name, |(_, package)| package))
    }));
    if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
}

fn missing_privileges() -> Vec<String> {
    if !nix::unistd::geteuid().is_root() {
        return vec!["root".into()];
    }
    let effective = effective_capabilities();
    let absent = CAPABILITIES.iter().filter(|(_, bit)| effective & (1_u64 << bit) == 0);
    absent.map(|(name, _)| (*name).to_owned()).collect()
}

/// None where /proc does not tell: then nothing can be promised.
fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    field.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default()
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // A user's PATH may lack the directories of the administrator's tools.
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path).chain(system).any(|dir| dir.join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_listed_with_what_to_do() {
        let needs = Needs { binaries: &["no-such-binary"], programs: &["no-such-program", "sh"] };
        let reason = requirements(&needs).unwrap_err().to_string();
        assert!(reason.starts_with("needs "), "{reason}");
        assert!(reason.contains("no-such-binary (make build)"), "{reason}");
        assert!(reason.contains("no-such-program (apt-get install no-such-program)"), "{reason}");
        assert!(!reason.contains("sh ("), "{reason}");
    }
}
