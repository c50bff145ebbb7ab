//! Three collectors that others wrote read what the exporter says: pmacct's `sfacctd`, nfdump's
//! `sfcapd` and Wireshark's `tshark`, each in a network namespace of its own. Without root or
//! without the program a test is shown as ignored, with the reason as its kind;
//! `WEIR_REQUIRE_ALL=1` turns that into a failure.
#![expect(
    clippy::disallowed_methods,
    reason = "a test of programs waits for them, which the crate itself never does"
)]

use std::fs;
use std::io::Read as _;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use sflow::{
    Config, CounterSample, Exporter, FlowSample, IfIndex, InterfaceCounters, Output, Traffic,
};

/// How long a collector may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const RATE: u32 = 256;
const SAMPLES: u32 = 20;
/// Length of the sampled frame without FCS.
const FRAME_LEN: u16 = 1000;

fn main() -> ExitCode {
    let trials = vec![
        trial("sfacctd_estimates_the_traffic_and_reads_the_counters", &["sfacctd"], sfacctd),
        trial("sfcapd_reads_flows_and_vlans_without_an_error", &["sfcapd", "nfdump"], sfcapd),
        trial("tshark_names_every_field", &["tshark", "dumpcap"], tshark),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The test, run in a fresh network namespace, or ignored with the reason.
fn trial(name: &str, programs: &[&str], test: fn() -> Result<()>) -> Trial {
    let body = move || {
        let in_namespace = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
            run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
            test()
        });
        match in_namespace.join() {
            Ok(outcome) => outcome.map_err(|e| format!("{e:#}").into()),
            Err(_) => Err("the test panicked".into()),
        }
    };
    let missing = programs.iter().find(|p| !installed(p));
    let reason = match missing {
        _ if !geteuid().is_root() => Some("needs root".to_owned()),
        Some(program) => Some(format!("needs {program}")),
        None => None,
    };
    let required = std::env::var("WEIR_REQUIRE_ALL").is_ok_and(|v| v == "1");
    match reason {
        None => Trial::test(name, body),
        Some(reason) if required => Trial::test(name, move || Err(reason.into())),
        Some(reason) => Trial::test(name, body).with_kind(reason).with_ignored_flag(true),
    }
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = std::env::split_paths(&path).collect();
    directories.push("/usr/sbin".into());
    directories.iter().any(|d| d.join(program).exists())
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    Ok(output.stdout)
}

/// Waits until `condition` holds or gives an error.
fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A collector that is killed when the test is over, however it ends.
struct Collector(Child);

impl Collector {
    fn start(command: &mut Command) -> Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(quiet.spawn().with_context(|| format!("{command:?}"))?))
    }

    /// Waits until somebody listens on `port` in this thread's namespace.
    fn listening(command: &mut Command, port: u16) -> Result<Self> {
        let mut collector = Self::start(command)?;
        let local = format!(":{port:04X} ");
        wait_until("the collector's socket", || {
            if let Some(status) = collector.0.try_wait()? {
                bail!("the collector ended: {status}");
            }
            Ok(fs::read_to_string("/proc/thread-self/net/udp")?.contains(&local))
        })?;
        Ok(collector)
    }

    fn stop(&mut self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal)?;
        wait_until("the collector's end", || Ok(self.0.try_wait()?.is_some()))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

/// 10.9.0.1:35000 to 10.9.0.2:`port` over UDP, the first 42 bytes of a frame with 958 more.
fn header(port: u16) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let ip_len = (FRAME_LEN - 14).to_be_bytes();
    frame[14..34].copy_from_slice(&[
        0x45, 0, ip_len[0], ip_len[1], 0, 1, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2,
    ]);
    let udp_len = (FRAME_LEN - 34).to_be_bytes();
    frame[34..36].copy_from_slice(&35_000_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[38..40].copy_from_slice(&udp_len);
    frame
}

/// Twenty forwarded samples, one dropped, one set of counters, as the datagrams of one second.
fn datagrams() -> Result<Vec<Vec<u8>>> {
    let (source, output) = (IfIndex::new(17)?, IfIndex::new(18)?);
    let mut exporter = Exporter::new(Config::new([127, 0, 0, 1].into()))?;
    let now = Duration::from_secs(5);
    exporter.add_source(source, now)?;
    let mut sent = Vec::new();
    for number in 1..=SAMPLES {
        let sample = FlowSample {
            source,
            rate: RATE,
            pool: number * RATE,
            output: Output::Interface(output),
            frame_len: FRAME_LEN.into(),
            vlan_in: 0,
            vlan_out: 100,
            header: &header(40_001),
        };
        exporter.flow_sample(now, &sample)?;
        sent.extend(exporter.poll(now).map(<[u8]>::to_vec));
    }
    let dropped = FlowSample {
        source,
        rate: RATE,
        pool: (SAMPLES + 1) * RATE,
        output: Output::Dropped(258),
        frame_len: FRAME_LEN.into(),
        vlan_in: 0,
        vlan_out: 0,
        header: &header(40_002),
    };
    exporter.flow_sample(now, &dropped)?;
    sent.extend(exporter.poll(now).map(<[u8]>::to_vec));
    let rx = Traffic { octets: 5_000_000_000, unicast: Some(4242), ..Traffic::default() };
    let interface =
        InterfaceCounters { speed_bps: 10_000_000_000, rx, ..InterfaceCounters::default() };
    let counters = CounterSample { source, name: "wr0123456789", interface, ethernet: None };
    exporter.counter_sample(now, &counters)?;
    while let Some(datagram) = exporter.poll(now + Duration::from_secs(1)) {
        sent.push(datagram.to_vec());
    }
    Ok(sent)
}

fn send(datagrams: &[Vec<u8>], port: u16) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for datagram in datagrams {
        socket.send_to(datagram, ("127.0.0.1", port))?;
    }
    Ok(())
}

fn sfacctd() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (flows, counters) = (dir.path().join("flows.json"), dir.path().join("counters.json"));
    let (config, log) = (dir.path().join("sfacctd.conf"), dir.path().join("log"));
    let text = format!(
        "daemonize: false\nsfacctd_ip: 127.0.0.1\nsfacctd_port: 6345\nsfacctd_renormalize: true\n\
         plugins: print[f]\naggregate[f]: src_host, dst_host, src_port, dst_port, in_iface, out_iface\n\
         print_output[f]: json\nprint_output_file[f]: {}\nprint_output_file_append[f]: true\n\
         print_refresh_time[f]: 1\nsfacctd_counter_file: {}\nsfacctd_counter_output: json\n\
         logfile: {}\n",
        flows.display(),
        counters.display(),
        log.display(),
    );
    fs::write(&config, text)?;
    let mut command = Command::new("sfacctd");
    command.stderr(Stdio::null());
    let mut collector = Collector::listening(command.arg("-f").arg(&config), 6345)?;
    // What comes before its plugin runs is lost.
    wait_until("sfacctd's plugin", || {
        Ok(fs::read_to_string(&log)?.contains("Purging cache - END"))
    })?;
    send(&datagrams()?, 6345)?;
    let estimated = |flow: &[Value]| -> u64 {
        flow.iter().filter(|f| f["port_dst"] == 40_001).filter_map(|f| f["packets"].as_u64()).sum()
    };
    wait_until("sfacctd's estimate", || {
        Ok(estimated(&json_lines(&flows)?) >= u64::from(SAMPLES * RATE))
    })?;
    // It ignores SIGTERM.
    collector.stop(Signal::SIGINT)?;
    let lines = json_lines(&flows)?;
    ensure!(estimated(&lines) == u64::from(SAMPLES * RATE), "{lines:?}");
    let dropped: Vec<_> = lines.iter().filter(|f| f["port_dst"] == 40_002).collect();
    ensure!(dropped.len() == 1 && dropped[0]["packets"] == RATE, "{dropped:?}");
    let flow = lines.iter().find(|f| f["port_dst"] == 40_001).context("a forwarded flow")?;
    let ends = [&flow["ip_src"], &flow["ip_dst"]];
    ensure!(ends == ["10.9.0.1", "10.9.0.2"], "{flow}");
    let ports = [&flow["port_src"], &flow["port_dst"], &flow["iface_in"], &flow["iface_out"]];
    ensure!(ports == [35000, 40001, 17, 18], "{flow}");
    let counters = json_lines(&counters)?;
    let generic = counters.iter().find(|line| line["sf_cnt_type"] == "sflow_cnt_generic");
    let generic = generic.with_context(|| format!("no interface counters in {counters:?}"))?;
    ensure!(generic["ifIndex"] == 17 && generic["ifSpeed"] == 10_000_000_000_u64, "{generic}");
    ensure!(generic["ifInOctets"] == 5_000_000_000_u64, "{generic}");
    ensure!(generic["ifInUcastPkts"] == 4242 && generic["ifInErrors"] == u32::MAX, "{generic}");
    Ok(())
}

/// The objects in a file of one JSON object a line; none when it does not exist yet.
fn json_lines(path: &Path) -> Result<Vec<Value>> {
    let text = if path.exists() { fs::read_to_string(path)? } else { String::new() };
    // The last line may be half written.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn sfcapd() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let mut command = Command::new("sfcapd");
    command.stderr(fs::File::create(&log)?);
    command.args(["-b", "127.0.0.1", "-p", "6344", "-t", "60", "-w"]).arg(dir.path());
    let mut collector = Collector::listening(&mut command, 6344)?;
    let datagrams = datagrams()?;
    send(&datagrams, 6344)?;
    drained(6344)?;
    collector.stop(Signal::SIGTERM)?;
    let log = fs::read_to_string(log)?;
    let flawless = format!("Flows: {}, Packets: {}, ", SAMPLES + 1, (SAMPLES + 1) * RATE);
    ensure!(log.contains(&flawless) && log.contains("Errors: 0, Bad Packets: 0"), "{log}");
    let files: Vec<_> = fs::read_dir(dir.path())?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.to_string_lossy().contains("nfcapd.20"))
        .collect();
    ensure!(files.len() == 1, "{files:?}");
    let json = run(Command::new("nfdump").arg("-r").arg(&files[0]).args(["-o", "json"]))?;
    let flows: Vec<Value> = serde_json::from_slice(&json)?;
    ensure!(flows.len() == SAMPLES as usize + 1, "{} flows", flows.len());
    for flow in flows.iter().filter(|f| f["dst_port"] != 40_002) {
        let volume = [&flow["in_packets"], &flow["in_bytes"]];
        ensure!(volume == [RATE, RATE * (u32::from(FRAME_LEN) + 4)], "{flow}");
        let ways = [&flow["input_snmp"], &flow["output_snmp"], &flow["dst_vlan"]];
        ensure!(ways == [17, 18, 100], "{flow}");
        ensure!(flow["src4_addr"] == "10.9.0.1" && flow["dst_port"] == 40001, "{flow}");
    }
    Ok(())
}

/// Waits until the collector has read everything from its socket on `port`.
fn drained(port: u16) -> Result<()> {
    let local = format!(":{port:04X} ");
    wait_until("the collector to read its datagrams", || {
        let sockets = fs::read_to_string("/proc/thread-self/net/udp")?;
        let queue = sockets.lines().find(|line| line.contains(&local));
        Ok(queue.is_some_and(|line| line.contains(":00000000 00:")))
    })
}

fn tshark() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let capture = dir.path().join("cap.pcapng");
    let datagrams = datagrams()?;
    let count = datagrams.len().to_string();
    let mut command = Command::new("dumpcap");
    command
        .stderr(Stdio::null())
        .args(["-q", "-i", "lo", "-f", "udp dst port 6343", "-c", &count, "-w"])
        .arg(&capture);
    let mut collector = Collector::start(&mut command)?;
    // Nothing tells when it has begun to listen, so it is sent to until it has enough.
    let sink = UdpSocket::bind("127.0.0.1:6343")?;
    wait_until("dumpcap to have enough", || {
        send(&datagrams, 6343)?;
        Ok(collector.0.try_wait()?.is_some())
    })?;
    drop(sink);
    let mut text = String::new();
    let mut reader = Command::new("tshark");
    reader.args(["-d", "udp.port==6343,sflow", "-V", "-r"]).arg(&capture);
    run(&mut reader)?.as_slice().read_to_string(&mut text)?;
    let sample = "Flow sample, seq";
    ensure!(text.matches(sample).count() == SAMPLES as usize + 1, "{text}");
    let expected = [
        "Agent address type: IPv4 (1)",
        "Sampling rate: 1 out of 256 packets",
        "Input interface (ifIndex): 17",
        "Output interface: 0x40000102",
        "Frame Length: 1004",
        "Payload stripped: 4",
        "Src: 10.9.0.1, Dst: 10.9.0.2",
        "Outgoing 802.1Q VLAN: 100",
        "Interface index: 17",
        "Interface Speed: 10",
        "Input Octets: 5000000000",
    ];
    for field in expected {
        ensure!(text.contains(field), "no \"{field}\" in {text}");
    }
    ensure!(!text.contains("Malformed"), "{text}");
    Ok(())
}
