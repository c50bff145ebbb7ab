//! The exporter seen from the collector: every byte of known samples, what is sent when, and random
//! runs that two decoders (the oracle beside this file, and the crate `sflow-parser`) take apart.
#![expect(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod oracle;
mod random;

use std::time::Duration;

use sflow::{
    Config, ConfigError, CounterSample, EthernetCounters, Exporter, FlowSample, IfIndex,
    InterfaceCounters, Output, SOURCES_MAX, SampleError, SourcesFull, Traffic,
};

const SECOND: Duration = Duration::from_secs(1);

fn config() -> Config {
    Config::new([192, 0, 2, 1].into())
}

fn port(index: u32) -> IfIndex {
    IfIndex::new(index).expect("in range")
}

/// An exporter with the sources 1 to 9.
fn exporter(config: Config) -> Exporter {
    let mut exporter = Exporter::new(config).expect("a good configuration");
    for index in 1..=9 {
        exporter.add_source(port(index), Duration::ZERO).expect("room for nine");
    }
    exporter
}

fn sample(source: u32, header: &[u8]) -> FlowSample<'_> {
    let (source, output) = (port(source), Output::Interface(port(9)));
    FlowSample {
        source,
        rate: 400,
        pool: 800,
        output,
        frame_len: 60,
        vlan_in: 0,
        vlan_out: 0,
        header,
    }
}

fn counters(source: u32, name: &str) -> CounterSample<'_> {
    let interface = InterfaceCounters::default();
    CounterSample { source: port(source), name, interface, ethernet: None }
}

/// What `poll` gives at `now`, taken apart.
fn sent(exporter: &mut Exporter, now: Duration) -> Vec<oracle::Datagram> {
    let mut datagrams = Vec::new();
    while let Some(datagram) = exporter.poll(now) {
        datagrams.push(oracle::decode(datagram));
    }
    datagrams
}

#[test]
fn a_flow_sample_has_these_bytes_and_no_others() {
    let mut exporter = exporter(Config { sub_agent: 3, ..config() });
    let now = Duration::from_millis(12_345);
    let packet = FlowSample {
        source: port(7),
        rate: 512,
        pool: 4096,
        output: Output::Dropped(258),
        frame_len: 1514,
        vlan_in: 0xa064,
        vlan_out: 0x0005,
        header: &[1, 2, 3, 4, 5],
    };
    exporter.lost(port(7), 2);
    exporter.flow_sample(now, &packet).unwrap();
    let datagram = exporter.poll(now + SECOND).unwrap();
    let expected = [
        &[5, 1, 0xc000_0201, 3, 1, 13_345, 1][..],
        &[1, 32 + 32 + 24, 1, 7, 512, 4096, 2, 7, 0x4000_0102, 2],
        &[1, 24, 1, 1518, 4, 5, 0x0102_0304, 0x0500_0000],
        &[1001, 16, 100, 5, 5, 0],
    ];
    assert_eq!(oracle::words(datagram), expected.concat());
}

#[test]
fn a_counter_sample_has_these_bytes_and_no_others() {
    let agent = "2001:db8::7".parse().unwrap();
    let mut exporter = exporter(Config::new(agent));
    let rx = Traffic {
        octets: 1 << 33,
        unicast: Some(11),
        multicast: Some(12),
        broadcast: Some(13),
        discards: Some(14),
        errors: Some(15),
    };
    let tx = Traffic { octets: 21, unicast: Some(22), ..Traffic::default() };
    let interface = InterfaceCounters {
        speed_bps: 10_000_000_000,
        admin_up: true,
        oper_up: true,
        rx,
        rx_unknown_protocols: Some(16),
        tx,
    };
    let ethernet = EthernetCounters {
        alignment_errors: Some(31),
        fcs_errors: Some(32),
        symbol_errors: Some(33),
        ..EthernetCounters::default()
    };
    let sample =
        CounterSample { source: port(4), name: "eth0x", interface, ethernet: Some(ethernet) };
    exporter.counter_sample(SECOND, &sample).unwrap();
    let datagram = exporter.poll(2 * SECOND).unwrap();
    let none = u32::MAX;
    let expected = [
        &[5, 2, 0x2001_0db8, 0, 0, 7, 0, 1, 2000, 1][..],
        &[2, 12 + 96 + 60 + 20, 1, 4, 3],
        &[1, 88, 4, 6, 2, 0x540b_e400, 1, 3],
        &[2, 0, 11, 12, 13, 14, 15, 16],
        &[0, 21, 22, none, none, none, none, 2],
        &[2, 52, 31, 32, none, none, none, none, none, none, none, none, none, none, 33],
        &[1005, 12, 5, 0x6574_6830, 0x7800_0000],
    ];
    assert_eq!(oracle::words(datagram), expected.concat());
}

#[test]
fn a_sample_waits_a_second_for_others_and_no_longer() {
    let mut exporter = exporter(Config { polling: None, ..config() });
    assert_eq!(exporter.wake_at(), None);
    exporter.flow_sample(3 * SECOND, &sample(1, &[0; 14])).unwrap();
    assert_eq!(exporter.wake_at(), Some(4 * SECOND));
    assert_eq!(sent(&mut exporter, Duration::from_millis(3999)), []);
    exporter.flow_sample(Duration::from_millis(3999), &sample(2, &[0; 14])).unwrap();
    let datagrams = sent(&mut exporter, 4 * SECOND);
    assert_eq!(datagrams.len(), 1);
    assert_eq!((datagrams[0].uptime_ms, datagrams[0].samples.len()), (4000, 2));
    assert_eq!(exporter.wake_at(), None, "both are sent");
}

#[test]
fn a_full_datagram_leaves_at_once() {
    // 28 bytes of header and 216 for each sample: six fit exactly.
    let mut exporter = exporter(Config { datagram_max: 28 + 6 * 216, ..config() });
    let mut datagrams = Vec::new();
    for _ in 0..7 {
        exporter.flow_sample(SECOND, &sample(1, &[0xaa; 128])).unwrap();
        datagrams.extend(sent(&mut exporter, SECOND));
    }
    assert_eq!(datagrams.len(), 1);
    assert_eq!(datagrams[0].samples.len(), 6);
    assert_eq!(exporter.wake_at(), Some(2 * SECOND), "the seventh waits for others");
}

#[test]
fn a_sample_that_finds_no_room_is_reported_as_lost() {
    let mut exporter = exporter(config());
    for _ in 0..12 {
        exporter.flow_sample(SECOND, &sample(1, &[0; 128])).unwrap();
    }
    let thirteenth = exporter.flow_sample(SECOND, &sample(1, &[0; 128]));
    assert_eq!(thirteenth, Err(SampleError::Unsent));
    assert_eq!(exporter.wake_at(), Some(Duration::ZERO), "one waits to be sent now");
    let sequences = |datagrams: &[oracle::Datagram]| -> Vec<u32> {
        datagrams.iter().flat_map(|d| &d.samples).map(|s| s.words[0]).collect()
    };
    assert_eq!(sequences(&sent(&mut exporter, SECOND)), [1, 2, 3, 4, 5, 6]);
    exporter.flow_sample(SECOND, &sample(1, &[0; 128])).unwrap();
    let datagrams = sent(&mut exporter, 2 * SECOND);
    assert_eq!(sequences(&datagrams), [7, 8, 9, 10, 11, 12, 13]);
    assert_eq!(datagrams[1].samples[0].words[4], 1, "one sample of this source was lost");
}

#[test]
fn headers_are_cut_and_frame_lengths_are_not() {
    let mut exporter = exporter(Config { header_bytes: 61, ..config() });
    let packet = FlowSample { frame_len: 1500, ..sample(1, &[7; 200]) };
    exporter.flow_sample(SECOND, &packet).unwrap();
    let datagrams = sent(&mut exporter, 2 * SECOND);
    let (tag, record) = &datagrams[0].samples[0].records[0];
    assert_eq!((*tag, oracle::words(&record[..12])), (1, vec![1, 1504, 4]));
    assert_eq!(oracle::opaque(&record[12..]), [7; 61]);
}

#[test]
fn a_new_rate_starts_the_sequence_of_its_source_again() {
    let mut exporter = exporter(config());
    for (source, rate) in [(1, 400), (2, 400), (1, 400), (1, 800), (1, 800), (2, 400)] {
        exporter.flow_sample(SECOND, &FlowSample { rate, ..sample(source, &[0; 14]) }).unwrap();
    }
    let datagrams = sent(&mut exporter, 2 * SECOND);
    let numbers: Vec<_> = datagrams[0].samples.iter().map(|s| (s.words[1], s.words[0])).collect();
    assert_eq!(numbers, [(1, 1), (2, 1), (1, 2), (1, 1), (1, 2), (2, 2)]);
}

#[test]
fn a_source_that_is_removed_is_refused_and_starts_again_when_it_is_back() {
    let mut exporter = exporter(config());
    exporter.counter_sample(SECOND, &counters(1, "a")).unwrap();
    exporter.remove_source(port(1));
    let refused = Err(SampleError::UnknownSource(port(1)));
    assert_eq!(exporter.flow_sample(SECOND, &sample(1, &[0; 14])), refused);
    assert_eq!(exporter.counter_sample(SECOND, &counters(1, "a")), refused);
    exporter.add_source(port(1), SECOND).unwrap();
    exporter.counter_sample(SECOND, &counters(1, "a")).unwrap();
    let datagrams = sent(&mut exporter, 2 * SECOND);
    let numbers: Vec<_> = datagrams[0].samples.iter().map(|s| s.words.clone()).collect();
    assert_eq!(numbers, [[1, 1], [1, 1]]);
}

#[test]
fn counters_of_each_source_are_due_once_an_interval_and_not_all_at_once() {
    let mut exporter = exporter(Config { polling: Some(20 * SECOND), ..config() });
    let mut due = Vec::new();
    for second in 0..60 {
        while let Some(source) = exporter.counters_due(second * SECOND) {
            due.push((source.get(), second));
        }
    }
    for source in 1..=9 {
        let seconds: Vec<_> = due.iter().filter(|(s, _)| *s == source).map(|(_, t)| *t).collect();
        assert_eq!(seconds, [seconds[0], seconds[0] + 20, seconds[0] + 40], "source {source}");
    }
    let firsts: std::collections::BTreeSet<_> = due.iter().take(9).map(|(_, t)| *t).collect();
    assert!(firsts.len() >= 7, "nine sources share {} seconds of twenty", firsts.len());
}

#[test]
fn intervals_in_which_nobody_asked_are_left_out() {
    let mut exporter = exporter(Config { polling: Some(10 * SECOND), ..config() });
    let mut late = Vec::new();
    while let Some(source) = exporter.counters_due(1000 * SECOND) {
        late.push(source);
    }
    late.sort();
    assert_eq!(late, (1..=9).map(port).collect::<Vec<_>>());
    let next = exporter.wake_at().unwrap();
    assert!(next > 1000 * SECOND && next <= 1010 * SECOND, "{next:?}");
}

#[test]
fn a_removed_source_is_never_due() {
    let mut exporter = Exporter::new(config()).unwrap();
    exporter.add_source(port(5), Duration::ZERO).unwrap();
    assert_eq!(exporter.counters_due(100 * SECOND), Some(port(5)));
    exporter.remove_source(port(5));
    assert_eq!(exporter.counters_due(1000 * SECOND), None);
    assert_eq!(exporter.wake_at(), None);
}

#[test]
fn sources_are_bounded() {
    let mut exporter = Exporter::new(config()).unwrap();
    for index in 1..=u32::try_from(SOURCES_MAX).unwrap() {
        exporter.add_source(port(index), SECOND).unwrap();
    }
    assert_eq!(exporter.add_source(port(7), SECOND), Ok(()), "it is a source already");
    let one_more = port(60_000);
    assert_eq!(exporter.add_source(one_more, SECOND), Err(SourcesFull(one_more)));
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let refused = |config| Exporter::new(config).map(|_| ()).unwrap_err();
    let header_bytes = 13;
    assert_eq!(refused(Config { header_bytes, ..config() }), ConfigError::HeaderBytes(13));
    let tiny = Config { datagram_max: 279, ..config() };
    assert_eq!(refused(tiny), ConfigError::DatagramMax { value: 279, first: 28 + 252 });
    let polling = Duration::from_millis(999);
    let often = Config { polling: Some(polling), ..config() };
    assert_eq!(refused(often), ConfigError::Polling(polling));
    let nobody = "0.0.0.0".parse().unwrap();
    assert_eq!(refused(Config::new(nobody)), ConfigError::Agent(nobody));
    let long = "x".repeat(65);
    let named = exporter(config()).counter_sample(SECOND, &counters(1, &long));
    assert_eq!(named, Err(SampleError::NameTooLong(65)));
}
