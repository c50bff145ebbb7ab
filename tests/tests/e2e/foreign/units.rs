//! What `deploy` gives to systemd and Kubernetes, read by systemd itself and as the YAML that it is.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
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
    let said = verified(dir.path(), "odd.service", "[Service]\nExecStart=/bin/true\nWeir=odd\n")?;
    ensure!(said.contains("Weir"), "systemd overlooks what it does not know: {said}");
    Ok(())
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("no {key}: {value}"))
}

fn daemon_set() -> Result<()> {
    let text = fs::read_to_string(Path::new(DEPLOY).join("kubernetes/weir-node.yaml"))?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str()).collect();
    ensure!(kinds == ["Namespace", "ConfigMap", "DaemonSet"].map(Some), "{kinds:?}");
    let pod = &objects[2]["spec"]["template"]["spec"];
    let named = |value: &Value| value["name"].as_str().map(str::to_owned);
    let volumes: Vec<_> = list(pod, "volumes")?.iter().map(named).collect();
    for container in list(pod, "initContainers")?.iter().chain(list(pod, "containers")?) {
        let program = container["command"][0].as_str().context("no command")?;
        binary(program).with_context(|| format!("{program} is none of ours"))?;
        for mount in list(container, "volumeMounts")? {
            ensure!(volumes.contains(&named(mount)), "no volume for {mount}");
        }
        ensure!(container["securityContext"]["capabilities"]["drop"][0] == "ALL", "{container}");
    }
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
