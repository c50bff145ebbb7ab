//! The kit against the kernel: what it makes works, and is gone afterwards.
//!
//! Without root every test shows as ignored, with the reason.

use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::{
    DirGuard, Flow, Needs, NetnsGuard, ProcessGuard, Purpose, TcpServer, Topology, TwoNodes,
    capture, frame, ping, remove_leftovers, requirements, run, run_with_input, tcp_connect,
    tcp_echo, tcp_transfer, wait_until,
};
use libtest_mimic::{Arguments, Failed, Trial};

const BOUND: Duration = Duration::from_secs(10);

/// Name and body.
type Test = (&'static str, fn() -> Result<()>);

fn main() {
    if std::env::args().nth(1).as_deref() == Some(VICTIM) {
        victim();
    }
    let arguments = Arguments::from_args();
    let tests: [Test; 10] = [
        ("a_namespace_goes_with_its_guard", a_namespace_goes_with_its_guard),
        ("a_panic_leaves_nothing_behind", a_panic_leaves_nothing_behind),
        ("a_process_runs_in_the_namespace_and_ends", a_process_runs_in_the_namespace_and_ends),
        (
            "a_process_that_dies_is_reported_with_its_log",
            a_process_that_dies_is_reported_with_its_log,
        ),
        ("a_tool_gets_input_and_gives_output", a_tool_gets_input_and_gives_output),
        (
            "a_directory_goes_with_what_is_mounted_in_it",
            a_directory_goes_with_what_is_mounted_in_it,
        ),
        ("joined_nodes_reach_each_other", joined_nodes_reach_each_other),
        ("a_flow_shows_an_outage_as_a_gap", a_flow_shows_an_outage_as_a_gap),
        ("crafted_frames_are_captured", crafted_frames_are_captured),
        ("a_signal_removes_everything", a_signal_removes_everything),
    ];
    let missing = requirements(&Needs::default()).err();
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || test().map_err(|e| Failed::from(format!("{e:#}"))));
        match &missing {
            None => trial,
            Some(reason) => trial.with_kind(reason.to_string()).with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

fn a_namespace_goes_with_its_guard() -> Result<()> {
    let first = NetnsGuard::new(Purpose::Test, "a")?;
    let second = NetnsGuard::new(Purpose::Test, "a")?;
    assert_ne!(first.name(), second.name());
    assert!(first.name().starts_with("wt-"), "{}", first.name());
    let (name, path) = (first.name().to_owned(), first.path());
    ensure!(exists(&name) && path.exists(), "{name} is not there");
    let loopback = first.netlink()?.link_by_name("lo")?.context("no lo")?;
    assert!(loopback.up);
    drop(first);
    assert!(!exists(&name));
    assert!(exists(second.name()));
    // Its process, this one, is alive.
    let removed = remove_leftovers(Purpose::Test)?;
    assert!(!removed.contains(&second.name().to_owned()), "{removed:?}");
    assert!(exists(second.name()));
    Ok(())
}

fn a_panic_leaves_nothing_behind() -> Result<()> {
    let mut seen = None;
    let caught = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        let netns = NetnsGuard::new(Purpose::Test, "panic")?;
        let dir = DirGuard::new(Purpose::Test, "panic")?;
        let process = sleeper(&netns, &dir)?;
        seen = Some((netns.name().to_owned(), dir.path().to_owned(), process.pid()));
        // Not `panic!`: the hook would print it into the test's output.
        std::panic::resume_unwind(Box::new("as a failed assertion"));
    }));
    assert!(caught.is_err());
    let (name, dir, pid) = seen.context("nothing was made")?;
    assert!(!exists(&name) && !dir.exists() && !Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}

fn sleeper(netns: &NetnsGuard, dir: &DirGuard) -> Result<ProcessGuard> {
    let mut command = Command::new("sleep");
    command.arg("1000");
    ProcessGuard::spawn(netns.namespace(), "sleep", command, &dir.path().join("log"))
}

fn a_process_runs_in_the_namespace_and_ends() -> Result<()> {
    let netns = NetnsGuard::new(Purpose::Test, "process")?;
    let dir = DirGuard::new(Purpose::Test, "process")?;
    let mut process = sleeper(&netns, &dir)?;
    let inside = netdev::Namespace::open(format!("/proc/{}/ns/net", process.pid()))?;
    assert_eq!(inside.inode(), netns.namespace().inode());
    assert!(process.is_running()?);
    assert!(process.cpu_time()? < Duration::from_secs(1));
    let status = process.stop(BOUND)?;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    let status = sleeper(&netns, &dir)?.kill()?;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    Ok(())
}

fn a_process_that_dies_is_reported_with_its_log() -> Result<()> {
    let netns = NetnsGuard::new(Purpose::Test, "dies")?;
    let dir = DirGuard::new(Purpose::Test, "dies")?;
    let mut command = Command::new("sh");
    command.args(["-c", "echo no such device >&2; exit 3"]);
    let log = dir.path().join("log");
    let mut process = ProcessGuard::spawn(netns.namespace(), "the daemon", command, &log)?;
    let start = Instant::now();
    let ready = process.wait_ready(BOUND, || -> Result<()> { anyhow::bail!("not yet") });
    let error = ready.err().context("it was ready")?.to_string();
    assert_eq!(error, "the daemon ended with exit status: 3; its log ends:\nno such device");
    assert!(start.elapsed() < BOUND);
    Ok(())
}

fn a_tool_gets_input_and_gives_output() -> Result<()> {
    let netns = NetnsGuard::new(Purpose::Test, "tool")?;
    let input = vec![b'x'; 1 << 20];
    let finished = run_with_input(netns.namespace(), Command::new("cat"), &input)?;
    assert_eq!(finished.code, Some(0));
    assert_eq!(finished.stdout.len(), input.len());
    let mut command = Command::new("sh");
    command.args(["-c", "echo out; echo err >&2; exit 2"]);
    let finished = run(netns.namespace(), command)?;
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    let error = finished.success().err().context("exit 2 is a success")?.to_string();
    assert_eq!(error, "exit Some(2): errout");
    Ok(())
}

fn a_directory_goes_with_what_is_mounted_in_it() -> Result<()> {
    let dir = DirGuard::new(Purpose::Test, "mount")?;
    let (path, point) = (dir.path().to_owned(), dir.path().join("fs"));
    std::fs::create_dir(&point)?;
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "none"]).arg(&point);
    let here = netdev::Namespace::current()?;
    run(&here, command)?.success()?;
    std::fs::write(point.join("file"), "x")?;
    drop(dir);
    assert!(!path.exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(point.to_str().context("path")?));
    Ok(())
}

fn two_nodes() -> Result<TwoNodes> {
    Topology::new(Purpose::Test).two_nodes_stopped()
}

fn joined_nodes_reach_each_other() -> Result<()> {
    let nodes = two_nodes()?;
    let (one, two) = (nodes.one.namespace(), nodes.two.namespace());
    let answers = ping(one, nodes.two.vtep(), 3)?;
    assert_eq!((answers.sent, answers.received, answers.ttl), (3, 3, Some(64)));
    let server = TcpServer::start(two, SocketAddr::from((nodes.two.vtep(), 0)))?;
    tcp_echo(one, server.address(), b"hello")?;
    tcp_transfer(one, server.address(), 3_000_001)?;
    let address = server.address();
    drop(server);
    let refused = tcp_connect(one, address, BOUND).err().context("still listening")?;
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    let absent = ping(one, Ipv4Addr::new(10, 250, 0, 99), 1)?;
    assert_eq!((absent.sent, absent.received, absent.ttl), (1, 0, None));
    Ok(())
}

fn a_flow_shows_an_outage_as_a_gap() -> Result<()> {
    let nodes = two_nodes()?;
    let netlink = nodes.two.netns().netlink()?;
    let index = netlink.link_by_name(kit::UPLINK)?.context("no uplink")?.index;
    ping(nodes.one.namespace(), nodes.two.vtep(), 1)?;
    let flow = Flow::start(nodes.one.namespace(), nodes.two.vtep(), Duration::from_millis(2))?;
    let outage = Duration::from_millis(100);
    let watch = capture(nodes.two.namespace(), kit::UPLINK)?;
    wait_until(BOUND, "the first request", || watch.receive(BOUND).ok().flatten())?;
    netlink.set_down(index)?;
    let end = Instant::now() + outage;
    wait_until(BOUND, "the outage's end", || (Instant::now() >= end).then_some(()))?;
    netlink.set_up(index)?;
    let watch = capture(nodes.two.namespace(), kit::UPLINK)?;
    wait_until(BOUND, "traffic again", || watch.receive(BOUND).ok().flatten())?;
    let report = flow.stop()?;
    assert!(report.received < report.sent, "{report:?}");
    assert!(report.received > 0 && report.gap_max >= outage, "{report:?}");
    Ok(())
}

fn crafted_frames_are_captured() -> Result<()> {
    let nodes = two_nodes()?;
    let out = capture(nodes.one.namespace(), kit::UPLINK)?;
    let arrived = capture(nodes.two.namespace(), kit::UPLINK)?;
    let addresses = frame::Addresses {
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        src: Ipv4Addr::new(192, 0, 2, 1),
        dst: Ipv4Addr::new(192, 0, 2, 2),
    };
    let plain = frame::udp(addresses, 1, 2, b"payload")?;
    let sent = [plain.clone(), frame::tagged(&plain, 100), frame::arp_request(addresses)?];
    for one in &sent {
        out.send(one)?;
        wait_until(BOUND, "the frame", || {
            arrived.receive(BOUND).ok().flatten().filter(|frame| frame == one)
        })?;
    }
    Ok(())
}

/// Argument by which this program runs itself to be interrupted.
const VICTIM: &str = "victim-of-a-signal";

/// Makes one of each, says so, and waits for the signal.
fn victim() -> ! {
    let made = (|| -> Result<_> {
        kit::cleanup_on_signal()?;
        let netns = NetnsGuard::new(Purpose::Test, "victim")?;
        let dir = DirGuard::new(Purpose::Test, "victim")?;
        let process = sleeper(&netns, &dir)?;
        std::fs::write(
            std::env::args().nth(2).context("no path")?,
            format!("{} {} {}\n", netns.name(), dir.path().display(), process.pid()),
        )?;
        Ok((netns, dir, process))
    })();
    while made.is_ok() {
        std::thread::park();
    }
    std::process::exit(99);
}

fn a_signal_removes_everything() -> Result<()> {
    let dir = DirGuard::new(Purpose::Test, "signal")?;
    let here = netdev::Namespace::current()?;
    let note = dir.path().join("note");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(VICTIM).arg(&note);
    let victim = ProcessGuard::spawn(&here, "victim", command, &dir.path().join("log"))?;
    let text = wait_until(BOUND, "the victim's note", || {
        std::fs::read_to_string(&note).ok().filter(|text| text.ends_with('\n'))
    })?;
    let mut fields = text.split_whitespace();
    let mut field = || fields.next().context("a short note");
    let (name, path, pid) = (field()?, field()?, field()?);
    assert!(exists(name) && Path::new(path).exists());
    let status = victim.stop(BOUND)?;
    assert_eq!(status.code(), Some(128 + 15));
    assert!(!exists(name) && !Path::new(path).exists());
    assert!(!Path::new("/proc").join(pid).exists());
    Ok(())
}
