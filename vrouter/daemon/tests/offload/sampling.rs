//! sFlow of what the kernel forwards: as many samples as the rate says, of the same form as the
//! engine's, with a pool that counts every packet.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use datapath_api::v1;
use flowtable::entry::{Entry, Op};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

use super::{stats, switched, talkers};
use crate::node::{LIMIT, config_file, until};
use crate::{Pair, transfer};

const RECEIVE_BYTES: usize = 4 << 20;

/// A flow sample (sFlow v5, section 5) with its raw header.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    sequence: u32,
    source: u32,
    rate: u32,
    pool: u32,
    lost: u32,
    ways: [u32; 2],
    frame_len: u32,
    header: Vec<u8>,
    bytes: u32,
}

/// Takes datagrams as they come: a socket's buffer holds those of a moment only.
struct Collector {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// vrouterd sends it one in `rate` packets of ports that say nothing else, and no counters.
    fn start(pair: &Pair, rate: u32) -> Self {
        let socket = pair.node.inside(|| UdpSocket::bind("127.0.0.1:6343").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        // This thread may be kept waiting: what it counts is what was sent.
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES).unwrap();
        let text = format!(
            "sflow-collector = \"127.0.0.1:6343\"\nsflow-rate = {rate}\nsflow-polling = 0\n"
        );
        std::fs::write(config_file(&pair.engine.run_dir), text).unwrap();
        pair.engine.signal(Signal::SIGHUP);
        let (samples, stop) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (samples, stop) = (Arc::clone(&samples), Arc::clone(&stop));
            move || gather(&socket, &samples, &stop)
        });
        Self { samples, stop, thread: Some(thread) }
    }

    fn of(&self, pair: &Pair, port: u32) -> Vec<Sample> {
        let source = port_of(pair, port).ifindex;
        self.samples.lock().unwrap().iter().filter(|s| s.source == source).cloned().collect()
    }

    fn count(&self) -> usize {
        self.samples.lock().unwrap().len()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        assert!(thread.join().is_ok() || std::thread::panicking());
    }
}

fn gather(socket: &UdpSocket, samples: &Mutex<Vec<Sample>>, stop: &AtomicBool) {
    let mut datagram = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(len) = socket.recv(&mut datagram) {
            samples.lock().unwrap().extend(read(&datagram[..len]));
        }
    }
}

fn read(datagram: &[u8]) -> Vec<Sample> {
    let word = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().unwrap());
    let (mut at, mut samples) = (28, Vec::new());
    for _ in 0..word(24) {
        assert_eq!(word(at), 1, "a flow sample");
        let body = at + 8;
        // After eight words, two records: the raw header and the tags.
        assert_eq!((word(body + 28), word(body + 32), word(body + 40)), (2, 1, 1));
        let len = word(body + 52) as usize;
        samples.push(Sample {
            sequence: word(body),
            source: word(body + 4),
            rate: word(body + 8),
            pool: word(body + 12),
            lost: word(body + 16),
            ways: [word(body + 20), word(body + 24)],
            frame_len: word(body + 44),
            header: datagram[body + 56..body + 56 + len].to_vec(),
            bytes: word(at + 4),
        });
        at = body + word(at + 4) as usize;
    }
    assert_eq!(at, datagram.len());
    samples
}

fn port_of(pair: &Pair, id: u32) -> v1::Port {
    pair.engine.ports().into_iter().find(|port| port.id == id).unwrap()
}

/// What differs between two packets of a flow that say the same: the identification, and checksums,
/// which are complete or not.
fn without_numbers(mut sample: Sample) -> Sample {
    (sample.sequence, sample.pool) = (0, 0);
    for at in [18, 19, 24, 25, 40, 41] {
        sample.header[at] = 0;
    }
    sample
}

pub(super) fn sfl_1_the_pool_counts_offloaded_packets_exactly() {
    const ROUNDS: u64 = 4;
    /// Fewer samples than a socket has room for before the collector takes them.
    const EXCHANGES: u64 = 200;
    let pair = Pair::new(&["--port-pps", "0", "--port-mbps", "0"]);
    let (from, to) = talkers(&pair);
    let exchange = || {
        for (socket, other) in [(&from, &to), (&to, &from)] {
            socket.send(&[7; 100]).unwrap();
            assert_eq!(other.recv(&mut [0; 200]).unwrap(), 100);
        }
    };
    switched(&pair, Some(false));
    (0..40).for_each(|_| exchange());
    let collector = Collector::start(&pair, 1 << 24);
    let mut sampled = pair.a.local();
    let Some(Op::Put(Entry::Port(entry))) = sampled.first_mut() else { panic!("no port entry") };
    entry.sample_rate = 1;
    until("the collector to be in force", || {
        exchange();
        pair.engine.write(&sampled);
        !collector.of(&pair, 5).is_empty()
    });
    switched(&pair, Some(true));
    until("both ways to be offloaded", || {
        exchange();
        stats(&pair).flows == 2
    });
    let before = stats(&pair).packets;
    for _ in 0..ROUNDS {
        (0..EXCHANGES).for_each(|_| exchange());
        let received = port_of(&pair, 5).rx_packets;
        until("all packets to be sampled", || {
            let last = collector.of(&pair, 5).pop();
            last.is_some_and(|sample| u64::from(sample.pool) == received)
        });
    }
    let offloaded = stats(&pair).packets - before;
    assert!(offloaded >= ROUNDS * EXCHANGES * 19 / 10, "{offloaded}");
    let samples = collector.of(&pair, 5);
    let (first, last) = (samples.first().unwrap(), samples.last().unwrap());
    // One by one: each packet of the container was sampled, whoever forwarded it.
    let pooled = last.pool - first.pool + 1;
    assert_eq!((samples.len(), last.lost), (pooled as usize, 0));
    assert!(samples.is_sorted_by_key(|s| (s.pool, s.sequence)));
    let udp: Vec<_> = samples.into_iter().filter(|s| s.header[23] == 17).collect();
    let [engines, kernels] = [udp.first(), udp.last()].map(|s| without_numbers(s.unwrap().clone()));
    let [a, b] = [5, 6].map(|id| port_of(&pair, id).ifindex);
    assert_eq!((kernels.ways, kernels.frame_len, kernels.rate), ([a, b], 142 + 4, 1));
    assert_eq!(kernels, engines);
    // The other container's port says nothing of its own.
    assert_eq!(collector.of(&pair, 6), []);
}

pub(super) fn sfl_1_offloaded_packets_are_sampled_at_the_configured_rate() {
    const RATE: u32 = 40;
    let pair = Pair::new(&["--port-pps", "0", "--port-mbps", "0"]);
    let collector = Collector::start(&pair, RATE);
    until("the collector to be in force", || {
        assert!(pair.a.pings(&pair.b));
        !collector.of(&pair, 5).is_empty()
    });
    let before = (port_of(&pair, 5).rx_packets, collector.of(&pair, 5).len());
    transfer(&pair.a, &pair.b, 50_000_000);
    let packets = port_of(&pair, 5).rx_packets - before.0;
    assert!(stats(&pair).packets > packets / 2, "{:?}", stats(&pair));
    let quiet = || {
        let seen = collector.count();
        // The exporter sends five times in it.
        std::thread::sleep(LIMIT / 20);
        collector.count() == seen
    };
    until("the last samples", quiet);
    let samples = collector.of(&pair, 5).split_off(before.1);
    let [taken, packets] = [samples.len() as u64, packets].map(|n| f64::from(n as u32));
    let wanted = packets / f64::from(RATE);
    eprintln!("{packets} packets at 1:{RATE}: {taken} samples of {wanted:.0}");
    // Packets of one large packet share their luck, which makes it more even.
    assert!((taken - wanted).abs() < 4.5 * wanted.sqrt(), "{taken} of {wanted}");
    assert_eq!(samples.last().unwrap().lost, 0);
    for sample in samples.iter().filter(|s| s.header[23] == 6) {
        // A packet as on the wire, whatever was handed over at once.
        assert!(sample.frame_len <= 1450 + 14 + 4, "{sample:?}");
        let ip_len = u16::from_be_bytes([sample.header[16], sample.header[17]]);
        assert_eq!(u32::from(ip_len) + 14 + 4, sample.frame_len.max(64), "{sample:?}");
    }
}
