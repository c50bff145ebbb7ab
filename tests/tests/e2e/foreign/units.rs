//! What `deploy` gives to systemd and Kubernetes, read by systemd itself and as the YAML that it is.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use kit::{DirGuard, Purpose, binary};
use serde_json::Value;

use crate::Test;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

pub(super) fn tests() -> Vec<Test> {
    vec![
        ("cni_1_systemd_finds_nothing_wrong_with_the_units".to_owned(), Box::new(units)),
        (
            "cni_1_the_daemon_set_runs_our_programs_on_volumes_that_it_has".to_owned(),
            Box::new(daemon_set),
        ),
    ]
}

/// What systemd says of a unit whose program is the built one.
fn verified(dir: &Path, name: &str, text: &str) -> Result<String> {
    let built = binary("weir-cni")?;
    let built = built.parent().context("no directory of programs")?.display().to_string();
    let file = dir.join(name);
    fs::write(&file, text.replace("=/usr/bin/", &format!("={built}/")))?;
    let output = Command::new("systemd-analyze").arg("verify").arg(&file).output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn units() -> Result<()> {
    let dir = DirGuard::new(Purpose::Test, "units")?;
    let mut count = 0;
    for entry in fs::read_dir(Path::new(DEPLOY).join("systemd"))? {
        let entry = entry?;
        let (name, text) = (entry.file_name(), fs::read_to_string(entry.path())?);
        let said = verified(dir.path(), &name.to_string_lossy(), &text)?;
        ensure!(said.is_empty(), "{}: {said}", name.display());
        count += 1;
    }
    ensure!(count == 4, "{count} units");
    let install = fs::read_to_string(Path::new(DEPLOY).join("systemd/weir-cni.service"))?;
    let start = install.lines().find(|line| line.starts_with("ExecStart="));
    ensure!(start.is_some_and(|line| line.contains(" --wait ")), "{start:?} waits for nobody");
    ensure!(install.contains("\nAfter=netplugin.service\n"), "{install}");
    let said = verified(dir.path(), "odd.service", "[Service]\nExecStart=/bin/true\nWeir=odd\n")?;
    ensure!(said.contains("Weir"), "systemd overlooks what it does not know: {said}");
    Ok(())
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("no {key}: {value}"))
}

fn mount<'a>(container: &'a Value, path: &str) -> Result<&'a Value> {
    let mut mounts = list(container, "volumeMounts")?.iter();
    mounts
        .find(|mount| mount["mountPath"] == path)
        .with_context(|| format!("no {path}: {container}"))
}

/// It may write below /proc/sys/net, which runtimes make read-only for containers that only have
/// capabilities, and sees what is bound in /run/netns while it runs.
fn runs_a_daemon(container: &Value) -> Result<()> {
    let program = container["command"][0].as_str().context("no command")?;
    binary(program).with_context(|| format!("{program} is none of ours"))?;
    ensure!(container["securityContext"]["privileged"] == true, "{container}");
    mount(container, "/run/weir")?;
    let netns = mount(container, "/run/netns")?;
    ensure!(netns["mountPropagation"] == "HostToContainer", "{netns}");
    Ok(())
}

/// It waits for the node, at the socket that netplugin has, and may do nothing but write files.
fn installs_last(container: &Value) -> Result<()> {
    let command = &container["command"];
    let script = command[2].as_str().context("no script")?;
    ensure!(
        script.starts_with("until weir-cni install ") && script.contains(" --wait "),
        "{script}"
    );
    for path in ["/run/weir", "/host/opt/cni/bin", "/host/etc/cni/net.d"] {
        mount(container, path)?;
    }
    ensure!(container["securityContext"]["capabilities"]["drop"][0] == "ALL", "{container}");
    Ok(())
}

fn daemon_set() -> Result<()> {
    let text = fs::read_to_string(Path::new(DEPLOY).join("kubernetes/weir-node.yaml"))?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str()).collect();
    ensure!(kinds == ["Namespace", "ConfigMap", "DaemonSet"].map(Some), "{kinds:?}");
    let pod = &objects[2]["spec"]["template"]["spec"];
    // Namespaces are the host's, and named by the host's PIDs.
    ensure!(pod["hostNetwork"] == true && pod["hostPID"] == true, "{pod}");
    // The pod's other containers run after these: nothing tells of a node that is not ready.
    ensure!(pod["initContainers"].is_null(), "{pod}");
    let containers = list(pod, "containers")?;
    let named = |value: &Value| value["name"].as_str().map(str::to_owned);
    let names: Vec<_> = containers.iter().filter_map(named).collect();
    ensure!(names == ["vrouterd", "netplugin", "install-cni"], "{names:?}");
    let volumes: Vec<_> = list(pod, "volumes")?.iter().map(named).collect();
    for container in containers {
        for mount in list(container, "volumeMounts")? {
            ensure!(volumes.contains(&named(mount)), "no volume for {mount}");
        }
    }
    let [daemons @ .., install] = &containers[..] else { bail!("{names:?}") };
    daemons.iter().try_for_each(runs_a_daemon)?;
    installs_last(install)?;
    // What it installs is what `weir-cni install` takes.
    let dir = DirGuard::new(Purpose::Test, "daemon-set")?;
    let conflist = objects[1]["data"]["10-weir.conflist"].as_str().context("no conflist")?;
    let file = dir.path().join("10-weir.conflist");
    fs::write(&file, conflist)?;
    let mut install = Command::new(binary("weir-cni")?);
    install.arg("install").arg("--bin-dir").arg(dir.path().join("bin"));
    install.arg("--conf-dir").arg(dir.path().join("net.d")).arg("--conf").arg(&file);
    let output = install.output()?;
    ensure!(output.status.success(), "{output:?}");
    let installed: Value =
        serde_json::from_slice(&fs::read(dir.path().join("net.d/10-weir.conflist"))?)?;
    ensure!(installed == serde_json::from_str::<Value>(conflist)?, "{installed}");
    Ok(())
}
