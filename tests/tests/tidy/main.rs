//! The rules of CONTRIBUTING.md that a compiler does not know. Each check takes the root of a source
//! tree and gives its violations, so that it runs on this repository and, in a test of its own, on a
//! small tree in which the rule is broken on purpose: a check nobody has seen fail checks nothing.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its notes are for whoever reads its output"
)]

mod arrows;
mod source;
mod tree;
mod units;

use std::path::Path;

use arrows::{arrows, test_arrows};
use source::{decisions, file_lengths, named_tests, unsafe_code};
use tree::{Planted, Violations};
use units::units;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository")
}

#[test]
fn every_crate_arrow_is_listed_in_the_architecture_and_exists() {
    assert_eq!(arrows(repository()), Violations::none());
    for line in test_arrows(repository()) {
        println!("note: {line} (dev-dependency, in no list)");
    }
}

#[test]
fn pure_crates_depend_on_nothing_asynchronous() {
    assert_eq!(arrows::purity(repository()), Violations::none());
}

#[test]
fn unsafe_code_is_in_three_crates_only() {
    assert_eq!(unsafe_code(repository()), Violations::none());
}

#[test]
fn no_file_is_longer_than_the_limit() {
    assert_eq!(file_lengths(repository()), Violations::none());
}

#[test]
fn decision_records_have_numbers_of_their_own() {
    assert_eq!(decisions(repository()), Violations::none());
}

#[test]
fn tests_that_documents_name_exist() {
    assert_eq!(named_tests(repository()), Violations::none());
}

#[test]
fn units_allow_what_the_daemons_do() {
    assert_eq!(units(repository()), Violations::none());
}

#[test]
fn a_unit_that_forbids_what_its_daemon_does_is_found() {
    let tree = Planted::new();
    let unit = |name: &str, text: &str| tree.file(&format!("deploy/systemd/{name}.service"), text);
    unit("netmaster", "RestrictAddressFamilies=AF_UNIX\nProtectKernelTunables=yes\n");
    unit("netplugin", "ProtectKernelTunables=yes\n");
    unit("vrouterd", "RestrictAddressFamilies=AF_INET AF_PACKET\n");
    tree.file("control/netmaster/src/server.rs", "UnixListener::bind(path)");
    tree.file("control/netplugin/src/links.rs", "refuse_ipv4(ifname)");
    tree.file("vrouter/daemon/src/uplink.rs", "PacketSocket::open(name)");
    let found = [
        "netplugin.service: refuse_ipv4 cannot be with ProtectKernelTunables=yes",
        "vrouterd.service: PacketSocket needs CAP_NET_RAW in CapabilityBoundingSet",
    ];
    assert_eq!(units(tree.root()), found.map(str::to_owned).into_iter().collect());
}

/// Two crates, `a` and `b`, and an architecture that lists what `listed` says.
fn two_crates(manifest_of_a: &str, listed: &str) -> Planted {
    let tree = Planted::new();
    tree.file(
        "Cargo.toml",
        "[workspace]\nmembers = [\"a\", \"sub/b\"]\n[workspace.dependencies]\n\
         b = { path = \"sub/b\" }\ntokio = \"1\"\n",
    );
    tree.file("a/Cargo.toml", &format!("[package]\nname = \"a\"\n{manifest_of_a}"));
    tree.file("sub/b/Cargo.toml", "[package]\nname = \"b\"\n");
    tree.file("ARCHITECTURE.md", &format!("# A\n\n```arrows\n{listed}```\n"));
    tree
}

#[test]
fn a_listed_arrow_that_exists_is_accepted() {
    let tree = two_crates("[dependencies]\nb.workspace = true\ntokio = \"1\"\n", "a: b\nb:\n");
    assert_eq!(arrows(tree.root()), Violations::none());
}

#[test]
fn an_arrow_that_is_not_listed_is_found() {
    let found = Violations::one("a -> b is not listed in ARCHITECTURE.md");
    for manifest in [
        "[dependencies]\nb.workspace = true\n",
        "[dependencies]\nb = { path = \"../sub/b\" }\n",
        "[dependencies]\nrenamed = { package = \"b\", path = \"../sub/b\" }\n",
        "[build-dependencies]\nb = { workspace = true }\n",
        "[target.'cfg(unix)'.dependencies]\nb = { workspace = true }\n",
    ] {
        assert_eq!(arrows(two_crates(manifest, "a:\nb:\n").root()), found, "{manifest}");
    }
}

#[test]
fn a_listed_arrow_that_does_not_exist_is_found() {
    let found = Violations::one("a -> b is listed in ARCHITECTURE.md and does not exist");
    assert_eq!(arrows(two_crates("", "a: b\nb:\n").root()), found);
}

#[test]
fn a_crate_without_a_line_is_found() {
    let found = Violations::one("b has no line among the arrows of ARCHITECTURE.md");
    assert_eq!(arrows(two_crates("", "a:\n").root()), found);
}

#[test]
fn a_line_without_a_crate_is_found() {
    let found = Violations::one("c is listed in ARCHITECTURE.md and no member");
    assert_eq!(arrows(two_crates("", "a:\nb:\nc:\n").root()), found);
}

#[test]
fn an_architecture_without_arrows_is_found() {
    let tree = two_crates("", "");
    tree.file("ARCHITECTURE.md", "# A\n");
    assert_eq!(arrows(tree.root()), Violations::one("ARCHITECTURE.md has no ```arrows block"));
}

#[test]
fn a_dev_dependency_is_a_note_and_no_violation() {
    let tree = two_crates("[dev-dependencies]\nb.workspace = true\n", "a:\nb:\n");
    assert_eq!(arrows(tree.root()), Violations::none());
    assert_eq!(test_arrows(tree.root()), ["a -> b"]);
}

#[test]
fn a_runtime_in_a_pure_crate_is_found() {
    let tree = Planted::new();
    tree.file("Cargo.toml", "[workspace]\nmembers = [\"flowtable\"]\n");
    let manifest = "[package]\nname = \"flowtable\"\n[dev-dependencies]\nserde_json = \"1\"\n";
    tree.file("flowtable/Cargo.toml", manifest);
    assert_eq!(arrows::purity(tree.root()), Violations::none());
    tree.file("flowtable/Cargo.toml", &format!("{manifest}[dependencies]\ntokio = \"1\"\n"));
    assert_eq!(arrows::purity(tree.root()), Violations::one("flowtable depends on tokio"));
}

#[test]
fn unsafe_outside_the_three_crates_is_found() {
    let tree = Planted::new();
    tree.file("vrouter/afxdp/src/ring.rs", "fn f() { unsafe { g() } }\n");
    tree.file("vrouter/netdev/src/link.rs", "unsafe fn f() {}\n");
    tree.file("vrouter/offload/src/map.rs", "unsafe fn f() {}\n");
    tree.file(
        "cni/src/main.rs",
        "// unsafe\n/* unsafe /* unsafe */ */ #![warn(unsafe_code)]\nfn f() -> char { g(\"unsafe \\\" unsafe\", r#\"\"unsafe\"#, 'u', '\"'); '\\'' }\n",
    );
    assert_eq!(unsafe_code(tree.root()), Violations::none());
    tree.file("cni/src/more.rs", "fn f<'a>(x: &'a str) {\n    // a\n    unsafe { g() }\n}\n");
    assert_eq!(unsafe_code(tree.root()), Violations::one("cni/src/more.rs:3: unsafe code"));
}

#[test]
fn a_file_over_the_limit_is_found_and_its_tests_do_not_count() {
    let tree = Planted::new();
    let (limit, tests) = ("x\n".repeat(600), "#[cfg(test)]\n".to_owned() + &"y\n".repeat(900));
    tree.file("a/src/lib.rs", &(limit.clone() + &tests));
    tree.file("a/src/bpf/prog.bpf.c", &limit);
    assert_eq!(file_lengths(tree.root()), Violations::none());
    tree.file("a/src/bpf/prog.bpf.c", &(limit + "x\n"));
    let found = Violations::one("a/src/bpf/prog.bpf.c: 601 lines, 600 are the limit");
    assert_eq!(file_lengths(tree.root()), found);
}

#[test]
fn a_named_test_that_is_not_there_is_found() {
    let tree = Planted::new();
    tree.file("a/src/lib.rs", "#[test]\nfn it_is_here_and_it_runs() {}\n");
    let table = "| R1 | `it_is_here_and_it_runs`, `aliases` | `it_was_here_and_it_ran` (a) |\n";
    tree.file("docs/cni.md", table);
    let found = "docs/cni.md: there is no test it_was_here_and_it_ran";
    assert_eq!(named_tests(tree.root()), Violations::one(found));
}

#[test]
fn a_decision_without_a_number_of_its_own_is_found() {
    let tree = Planted::new();
    tree.file("docs/decisions/0001-first.md", "# 0001: First\n");
    tree.file("docs/decisions/0002-second.md", "# 0002: Second\n");
    tree.file("docs/decisions/0021-later.md", "# 0021: Later\n");
    assert_eq!(decisions(tree.root()), Violations::none());
    for (name, text, found) in [
        ("notes.md", "", "docs/decisions/notes.md: not named like 0001-what-was-decided.md"),
        (
            "0002-again.md",
            "# 0002: Again\n",
            "docs/decisions/0002-second.md: another has its number",
        ),
        ("0003-b.md", "# 3: B\n", "docs/decisions/0003-b.md: does not begin with \"# 0003: \""),
    ] {
        let path = format!("docs/decisions/{name}");
        tree.file(&path, text);
        assert_eq!(decisions(tree.root()), Violations::one(found));
        tree.remove(&path);
    }
}
