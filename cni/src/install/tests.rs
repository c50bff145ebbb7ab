use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::command::tests::{Netplugin, serving};

struct Root {
    dir: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("net.d")
    }

    fn run(&self, words: &str) -> Output {
        let dirs = ["--bin-dir".into(), self.bin().into(), "--conf-dir".into(), self.conf().into()];
        let mut all: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        all.extend::<[OsString; 4]>(dirs);
        run(all.into_iter())
    }

    fn says(&self, words: &str) -> String {
        let output = self.run(words);
        assert_eq!(output.stderr, "", "{words}");
        output.stdout
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        let of = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path());
        of(self.bin()).chain(of(self.conf())).collect()
    }

    fn installed(&self) -> BTreeSet<PathBuf> {
        [self.bin().join(PROGRAM), self.conf().join(CONFIGURATION)].into()
    }
}

#[test]
fn cni_1_lesson_14_install_places_program_and_configuration_and_again_changes_nothing() {
    let root = Root::new();
    let said = root.says("install --network front --tenant blue");
    assert_eq!(said.lines().filter(|line| line.ends_with(": installed")).count(), 2, "{said}");
    assert_eq!(root.files(), root.installed());
    let program = root.bin().join(PROGRAM);
    assert_eq!(fs::read(&program).unwrap(), fs::read("/proc/self/exe").unwrap());
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
    let list: Value =
        serde_json::from_slice(&fs::read(root.conf().join(CONFIGURATION)).unwrap()).unwrap();
    assert_eq!(list["plugins"][0]["network"], "front");
    assert_eq!(list["plugins"][0]["tenant"], "blue");
    let inode = fs::metadata(&program).unwrap().ino();
    for again in ["install --network front --tenant blue", "install"] {
        let said = root.says(again);
        assert_eq!(said.lines().filter(|line| line.ends_with(": unchanged")).count(), 2, "{said}");
    }
    assert_eq!(fs::metadata(&program).unwrap().ino(), inode);
}

#[test]
fn cni_1_lesson_14_what_killed_runs_and_cp_left_is_replaced() {
    let root = Root::new();
    root.says("install --network front");
    let program = root.bin().join(PROGRAM);
    fs::write(&program, "half").unwrap();
    fs::write(root.conf().join(CONFIGURATION), "{\"cniVersion\":").unwrap();
    fs::write(root.bin().join(".weir-cni.7-8.new"), "half").unwrap();
    let running = File::open(&program).unwrap();
    let refused = root.run("install");
    assert!(refused.stderr.contains("name one with --network or --conf"), "{}", refused.stderr);
    assert_eq!(fs::read(&program).unwrap(), b"half", "a refused install changed something");
    root.says("install --network front");
    assert_eq!(root.files(), root.installed());
    let (old, new) = (running.metadata().unwrap().ino(), fs::metadata(&program).unwrap().ino());
    assert_ne!(old, new, "a running program would have been written to");
}

#[test]
fn a_configuration_that_the_plugin_would_refuse_is_not_installed() {
    let root = Root::new();
    let file = root.dir.path().join("mine.conflist");
    for (text, reason) in [
        ("{", "EOF while parsing"),
        ("{\"name\": \"n\"}", "no list of plugins"),
        ("{\"plugins\": [{\"type\": \"bridge\"}]}", "no plugin of type weir-cni"),
        (
            "{\"cniVersion\": \"1.0.0\", \"name\": \"n\", \"plugins\": [{\"type\": \"weir-cni\"}]}",
            "no network named",
        ),
        (
            "{\"cniVersion\": \"1.0.0\", \"name\": \"a b\", \"plugins\": [{\"type\": \"weir-cni\", \
              \"network\": \"f\"}]}",
            "invalid characters found in network name",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let output = root.run(&format!("install --conf {}", file.display()));
        assert!(output.stderr.contains(reason), "{text}: {}", output.stderr);
        assert_eq!(root.files(), BTreeSet::new(), "{text}");
    }
}

#[test]
fn cni_1_lesson_14_the_configuration_comes_last_and_goes_first() {
    let root = Root::new();
    // A directory in the configuration's place: the second step fails.
    fs::create_dir_all(root.conf().join(CONFIGURATION)).unwrap();
    let failed = root.run("install --network front");
    assert_eq!(failed.exit, ExitCode::from(LOCAL));
    assert!(failed.stderr.contains(CONFIGURATION), "{}", failed.stderr);
    assert!(root.bin().join(PROGRAM).is_file());
    fs::remove_dir(root.conf().join(CONFIGURATION)).unwrap();
    root.says("install --network front");
    let said = root.says("uninstall");
    let names: Vec<&str> = said.lines().filter_map(|l| l.rsplit('/').next()).collect();
    assert_eq!(names, ["10-weir.conflist: removed", "weir-cni: removed"]);
    assert_eq!(root.files(), BTreeSet::new());
    assert_eq!(root.says("uninstall").matches("not there").count(), 2);
}

#[test]
fn cni_1_lesson_14_the_configuration_waits_for_the_node() {
    let root = Root::new();
    let wait =
        |socket: &Path| format!("install --network front --wait 0 --socket {}", socket.display());
    let program = BTreeSet::from([root.bin().join(PROGRAM)]);
    let absent = root.run(&wait(Path::new("/no/such.sock")));
    assert_eq!(absent.exit, ExitCode::from(NOT_DONE));
    assert!(absent.stderr.contains("netplugin does not answer"), "{}", absent.stderr);
    serving(Netplugin::default(), |socket| {
        let refused = root.run(&wait(socket));
        assert!(refused.stderr.contains("vrouterd is not there"), "{}", refused.stderr);
        assert_eq!(root.files(), program);
    });
    let ready = Netplugin { is_ready: true, ..Netplugin::default() };
    serving(ready, |socket| assert_eq!(root.says(&wait(socket)).lines().count(), 2));
    assert_eq!(root.files(), root.installed());
}

#[test]
fn a_dry_run_changes_nothing() {
    let root = Root::new();
    let said = root.says("install --network front --dry-run");
    assert_eq!(said.matches("would be installed").count(), 2, "{said}");
    assert!(!root.bin().exists() && !root.conf().exists());
    root.says("install --network front");
    assert_eq!(root.says("uninstall --dry-run").matches("would be removed").count(), 2);
    assert_eq!(root.files(), root.installed());
}

#[test]
fn cni_1_lesson_14_many_at_once_leave_one_whole_file_each() {
    let root = Root::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| root.says("install --network front"));
        }
    });
    assert_eq!(root.files(), root.installed());
    assert_eq!(root.says("install").matches("unchanged").count(), 2);
}

#[test]
fn what_deploy_offers_as_a_configuration_is_sound() {
    sound(TEMPLATE.as_bytes()).unwrap();
    let manifest = include_str!("../../../deploy/kubernetes/weir-node.yaml");
    let (_, rest) = manifest.split_once("10-weir.conflist: |\n").unwrap();
    let (list, _) = rest.split_once("---").unwrap();
    sound(list.as_bytes()).unwrap();
}
