//! What the systemd units of the daemons forbid, against what the sources use. A daemon that may not do
//! something often goes on without it and only says so in its log.

use std::path::Path;

use crate::tree::{Violations, files, read};

/// Each unit with the sources of its program, whose libraries open nothing by themselves.
const DAEMONS: [(&str, &str); 3] = [
    ("netmaster", "control/netmaster/src"),
    ("netplugin", "control/netplugin/src"),
    ("vrouterd", "vrouter/daemon/src"),
];
const FAMILIES: &str = "RestrictAddressFamilies";
const CAPABILITIES: &str = "CapabilityBoundingSet";
/// A name in the sources, and the directive that must list what.
const USES: [(&str, &str, &str); 15] = [
    ("UnixListener", FAMILIES, "AF_UNIX"),
    ("TcpListener", FAMILIES, "AF_INET"),
    ("TcpListener", FAMILIES, "AF_INET6"),
    ("UdpSocket", FAMILIES, "AF_INET"),
    ("UdpSocket", FAMILIES, "AF_INET6"),
    ("ethtool", FAMILIES, "AF_INET"),
    ("Namespace", FAMILIES, "AF_INET"),
    ("Netlink", FAMILIES, "AF_NETLINK"),
    ("XskQueue", FAMILIES, "AF_XDP"),
    ("PacketSocket", FAMILIES, "AF_PACKET"),
    ("Promiscuous", FAMILIES, "AF_PACKET"),
    ("PacketSocket", CAPABILITIES, "CAP_NET_RAW"),
    ("Netlink", CAPABILITIES, "CAP_NET_ADMIN"),
    ("Namespace", CAPABILITIES, "CAP_SYS_ADMIN"),
    ("setpriority_process", CAPABILITIES, "CAP_SYS_NICE"),
];
/// Names of what writes below /proc/sys, which the directive makes read-only.
const TUNERS: [&str; 3] = ["set_disable_ipv6", "refuse_ipv4", "take_only_given_ipv6"];
const TUNABLES: &str = "ProtectKernelTunables=yes";

/// What a unit forbids its program although the sources use it.
pub(crate) fn units(root: &Path) -> Violations {
    let found = DAEMONS.into_iter().flat_map(|(name, sources)| {
        let sources = root.join(sources);
        let code: String =
            files(&sources, &["rs"]).iter().map(|path| read(&sources.join(path))).collect();
        let unit = read(&root.join(format!("deploy/systemd/{name}.service")));
        let lists = |directive: &str, what: &str| {
            let value = |line| str::strip_prefix(line, directive)?.strip_prefix('=');
            let mut listed = unit.lines().filter_map(value).flat_map(str::split_whitespace);
            listed.any(|word| word == what)
        };
        let uses = USES.into_iter().filter(|(word, ..)| code.contains(word));
        let missing = uses.filter(|(_, directive, what)| !lists(directive, what));
        let missing = missing.map(|(word, directive, what)| {
            format!("{name}.service: {word} needs {what} in {directive}")
        });
        let tuners = TUNERS.into_iter().filter(|word| code.contains(word));
        let tuners = tuners.filter(|_| unit.lines().any(|line| line == TUNABLES));
        let tuners = tuners.map(|word| format!("{name}.service: {word} cannot be with {TUNABLES}"));
        missing.chain(tuners).collect::<Vec<_>>()
    });
    found.collect()
}
