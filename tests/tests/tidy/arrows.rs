//! Who depends on whom, read from the manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::tree::{Violations, read};

/// Crates that compute and do nothing else, or whose threads must not meet a runtime.
const SYNCHRONOUS: [&str; 6] = ["flowtable", "control-model", "sflow", "vrouter", "io", "afxdp"];
const ASYNCHRONOUS: [&str; 5] = ["tokio", "tonic", "prost", "clap", "serde_json"];

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// A member's manifest and where it lies.
struct Member {
    name: String,
    directory: PathBuf,
    manifest: Table,
}

/// Normal and build dependencies between members, compared with the list in ARCHITECTURE.md.
pub(crate) fn arrows(root: &Path) -> Violations {
    let Some(listed) = listed(&read(&root.join("ARCHITECTURE.md"))) else {
        return Violations::one("ARCHITECTURE.md has no ```arrows block");
    };
    let real = between_members(root, &["dependencies", "build-dependencies"]);
    let mut found = Vec::new();
    for (from, to) in pairs(&real).difference(&pairs(&listed)) {
        found.push(format!("{from} -> {to} is not listed in ARCHITECTURE.md"));
    }
    for (from, to) in pairs(&listed).difference(&pairs(&real)) {
        found.push(format!("{from} -> {to} is listed in ARCHITECTURE.md and does not exist"));
    }
    for name in real.keys().filter(|name| !listed.contains_key(*name)) {
        found.push(format!("{name} has no line among the arrows of ARCHITECTURE.md"));
    }
    for name in listed.keys().filter(|name| !real.contains_key(*name)) {
        found.push(format!("{name} is listed in ARCHITECTURE.md and no member"));
    }
    found.into_iter().collect()
}

/// Arrows that exist for tests only.
pub(crate) fn test_arrows(root: &Path) -> Vec<String> {
    let real = between_members(root, &["dev-dependencies"]);
    pairs(&real).iter().map(|(from, to)| format!("{from} -> {to}")).collect()
}

/// Runtimes, command lines and JSON in crates that must not know of them.
pub(crate) fn purity(root: &Path) -> Violations {
    let members = members(root);
    let pure = members.iter().filter(|m| SYNCHRONOUS.contains(&m.name.as_str()));
    let found = pure.flat_map(|member| {
        let tables = dependency_tables(&member.manifest, &["dependencies", "build-dependencies"]);
        let names = tables.into_iter().flat_map(|table| table.iter().map(package_name));
        let wrong = names.filter(|name| ASYNCHRONOUS.contains(&name.as_str()));
        wrong.map(|name| format!("{} depends on {name}", member.name)).collect::<Vec<_>>()
    });
    found.collect()
}

/// The lines `crate: dep dep` of the fenced block "arrows".
fn listed(architecture: &str) -> Option<Arrows> {
    let (_, block) = architecture.split_once("```arrows\n")?;
    let (block, _) = block.split_once("```")?;
    let line = |line: &str| {
        let (from, to) = line.split_once(':').unwrap_or((line, ""));
        (from.trim().to_owned(), to.split_whitespace().map(str::to_owned).collect())
    };
    Some(block.lines().filter(|l| !l.trim().is_empty()).map(line).collect())
}

fn pairs(arrows: &Arrows) -> BTreeSet<(String, String)> {
    let pair = |(from, to): (&String, &BTreeSet<String>)| {
        to.iter().map(|to| (from.clone(), to.clone())).collect::<Vec<_>>()
    };
    arrows.iter().flat_map(pair).collect()
}

/// Each member with the members it depends on by one of the `kinds` of dependencies.
fn between_members(root: &Path, kinds: &[&str]) -> Arrows {
    let members = members(root);
    let by_path: BTreeMap<_, _> = members.iter().map(|m| (m.directory.clone(), &m.name)).collect();
    let workspace = manifest(&root.join("Cargo.toml"));
    let shared = workspace["workspace"].get("dependencies").and_then(Value::as_table);
    let member_arrows = |member: &Member| {
        let tables = dependency_tables(&member.manifest, kinds);
        let paths = tables.into_iter().flatten().filter_map(|(key, spec)| {
            let (base, spec) = match spec.get("workspace") {
                Some(_) => (root, shared?.get(key)?),
                None => (member.directory.as_path(), spec),
            };
            let path = base.join(spec.get("path")?.as_str()?);
            Some(path.canonicalize().expect("a dependency's path exists"))
        });
        let to = paths.filter_map(|path| by_path.get(&path).map(|name| (*name).clone()));
        (member.name.clone(), to.collect())
    };
    members.iter().map(member_arrows).collect()
}

fn members(root: &Path) -> Vec<Member> {
    let workspace = manifest(&root.join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().expect("a list of members");
    let member = |path: &Value| {
        let directory = root.join(path.as_str().expect("a path"));
        let manifest = manifest(&directory.join("Cargo.toml"));
        let name = manifest["package"]["name"].as_str().expect("a name").to_owned();
        let directory = directory.canonicalize().expect("it has a manifest");
        Member { name, directory, manifest }
    };
    members.iter().map(member).collect()
}

fn manifest(path: &Path) -> Table {
    read(path).parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The tables of the given kinds, also those for one target only.
fn dependency_tables<'a>(manifest: &'a Table, kinds: &[&str]) -> Vec<&'a Table> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let places = std::iter::once(manifest).chain(targets);
    places.flat_map(|place| kinds.iter().filter_map(|kind| place.get(*kind)?.as_table())).collect()
}

/// The crate that a dependency names, which is its key unless it is renamed.
fn package_name((key, spec): (&String, &Value)) -> String {
    spec.get("package").and_then(Value::as_str).unwrap_or(key).to_owned()
}
