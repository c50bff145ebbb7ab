//! Random runs of an exporter. What two decoders read from its datagrams must be what went in, in
//! order and numbered without a gap, in datagrams that are never too long and never late.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sflow::{
    Config, CounterSample, EthernetCounters, Exporter, FlowSample, IfIndex, InterfaceCounters,
    Output, Traffic,
};
use sflow_parser::models::{CounterData, FlowData, SampleData};

use crate::oracle;

/// A flow sample that owns its header.
#[derive(Debug, Clone)]
struct Flow {
    source: u32,
    pool: u32,
    output: Output,
    frame_len: u32,
    vlans: (u16, u16),
    header: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Counters {
    source: u32,
    name: String,
    interface: InterfaceCounters,
    ethernet: Option<EthernetCounters>,
}

#[derive(Debug, Clone)]
enum Step {
    Flow(Flow),
    Counters(Box<Counters>),
    Wait(Duration),
}

fn output() -> impl Strategy<Value = Output> {
    prop_oneof![
        Just(Output::Unknown),
        (1..1u32 << 24).prop_map(|i| Output::Interface(IfIndex::new(i).expect("in range"))),
        (0..372u16).prop_map(Output::Dropped),
    ]
}

prop_compose! {
    fn flow()(
        source in 1..6u32, pool: u32, output in output(), frame_len in 14..65_536u32,
        vlans: (u16, u16), header in vec(any::<u8>(), 0..200),
    ) -> Flow {
        Flow { source, pool, output, frame_len, vlans, header }
    }
}

prop_compose! {
    fn traffic()(octets: u64, counts: [Option<u32>; 5]) -> Traffic {
        let [unicast, multicast, broadcast, discards, errors] = counts;
        Traffic { octets, unicast, multicast, broadcast, discards, errors }
    }
}

prop_compose! {
    fn counters()(
        source in 1..6u32, name in "[a-z0-9.é-]{0,20}", speed_bps: u64, admin_up: bool,
        oper_up: bool, rx in traffic(), tx in traffic(), rx_unknown_protocols: Option<u32>,
        wire: Option<(Option<u32>, Option<u32>)>,
    ) -> Box<Counters> {
        let interface =
            InterfaceCounters { speed_bps, admin_up, oper_up, rx, rx_unknown_protocols, tx };
        let ethernet = wire.map(|(fcs_errors, frames_too_long)| {
            EthernetCounters { fcs_errors, frames_too_long, ..EthernetCounters::default() }
        });
        Box::new(Counters { source, name, interface, ethernet })
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => flow().prop_map(Step::Flow),
        2 => counters().prop_map(Step::Counters),
        1 => (0..1500u64).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ]
}

/// What came out of a run: datagrams with the time at which they were polled.
struct Run {
    header_bytes: usize,
    accepted: Vec<Step>,
    sent: Vec<(Duration, Vec<u8>)>,
    ended: Duration,
}

fn run(config: Config, steps: &[Step]) -> Run {
    let mut exporter = Exporter::new(config).expect("a good configuration");
    for index in 1..6 {
        let source = IfIndex::new(index).expect("in range");
        exporter.add_source(source, Duration::ZERO).expect("room for five");
    }
    let mut now = Duration::ZERO;
    let (mut sent, mut accepted) = (Vec::new(), Vec::new());
    for step in steps.iter().chain([&Step::Wait(Duration::from_secs(1))]) {
        match step {
            Step::Flow(flow) => {
                exporter.flow_sample(now, &flow.as_sample()).expect("it is polled each time");
                accepted.push(step.clone());
            }
            Step::Counters(counters) => {
                let sample = counters.as_sample();
                exporter.counter_sample(now, &sample).expect("it is polled each time");
                accepted.push(step.clone());
            }
            Step::Wait(time) => now += *time,
        }
        while let Some(datagram) = exporter.poll(now) {
            sent.push((now, datagram.to_vec()));
        }
    }
    Run { header_bytes: config.header_bytes, accepted, sent, ended: now }
}

impl Flow {
    fn as_sample(&self) -> FlowSample<'_> {
        FlowSample {
            source: IfIndex::new(self.source).expect("in range"),
            rate: 400,
            pool: self.pool,
            output: self.output,
            frame_len: self.frame_len,
            vlan_in: self.vlans.0,
            vlan_out: self.vlans.1,
            header: &self.header,
        }
    }

    /// The sample as the specification lays it out.
    fn expected(&self, sequence: u32, header_bytes: usize) -> oracle::Sample {
        let output = match self.output {
            Output::Unknown => 0,
            Output::Interface(index) => index.get(),
            Output::Dropped(code) => (1 << 30) + u32::from(code),
        };
        let words = vec![sequence, self.source, 400, self.pool, 0, self.source, output];
        let mut header = self.header.clone();
        header.truncate(header_bytes);
        let mut raw = bytes(&[1, self.frame_len + 4, 4, u32::try_from(header.len()).unwrap()]);
        raw.extend(&header);
        while !raw.len().is_multiple_of(4) {
            raw.push(0);
        }
        let tag = |tci: u16| [u32::from(tci % 4096), u32::from(tci / 8192)];
        let switch = bytes(&[tag(self.vlans.0), tag(self.vlans.1)].concat());
        oracle::Sample { tag: 1, words, records: vec![(1, raw), (1001, switch)] }
    }
}

impl Counters {
    fn as_sample(&self) -> CounterSample<'_> {
        CounterSample {
            source: IfIndex::new(self.source).expect("in range"),
            name: &self.name,
            interface: self.interface,
            ethernet: self.ethernet,
        }
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

proptest! {
    #[test]
    fn both_decoders_read_what_went_in(
        steps in vec(step(), 0..80), header_bytes in 14..200usize, datagram_max in 400..2000usize,
    ) {
        let config = Config { header_bytes, datagram_max, ..Config::new([10, 0, 0, 1].into()) };
        let run = run(config, &steps);
        let mut samples = Vec::new();
        let mut parsed = Vec::new();
        for (number, (now, datagram)) in (1..).zip(&run.sent) {
            prop_assert!(datagram.len() <= datagram_max, "{} bytes", datagram.len());
            let decoded = oracle::decode(datagram);
            prop_assert_eq!(decoded.sequence, number);
            prop_assert_eq!(u128::from(decoded.uptime_ms), now.as_millis());
            prop_assert_eq!((decoded.agent, decoded.sub_agent), (config.agent, 0));
            samples.extend(decoded.samples);
            let theirs = sflow_parser::parse_datagram(datagram).expect("sflow-parser reads it");
            prop_assert_eq!(theirs.sequence_number, number);
            parsed.extend(theirs.samples.into_iter().map(|s| s.sample_data));
        }
        prop_assert!(run.sent.iter().all(|(now, _)| *now <= run.ended));
        prop_assert_eq!(samples.len(), run.accepted.len());
        prop_assert_eq!(parsed.len(), run.accepted.len());
        let mut next = BTreeMap::new();
        for ((step, sample), parsed) in run.accepted.iter().zip(&samples).zip(&parsed) {
            let key = (sample.tag, sample.words[1]);
            let sequence = *next.entry(key).and_modify(|n| *n += 1).or_insert(1);
            match step {
                Step::Flow(flow) => {
                    prop_assert_eq!(sample, &flow.expected(sequence, run.header_bytes));
                    check_flow(flow, parsed, run.header_bytes);
                }
                Step::Counters(counters) => {
                    prop_assert_eq!(&sample.words, &[sequence, counters.source]);
                    prop_assert_eq!(sample.tag, 2);
                    check_counters(counters, sequence, parsed);
                }
                Step::Wait(_) => unreachable!("no sample"),
            }
        }
    }
}

fn check_flow(flow: &Flow, parsed: &SampleData, header_bytes: usize) {
    let SampleData::FlowSample(sample) = parsed else { panic!("not a flow sample: {parsed:?}") };
    assert_eq!((sample.source_id.index(), sample.sample_pool), (flow.source, flow.pool));
    assert_eq!(sample.input.value(), flow.source);
    match flow.output {
        Output::Unknown => assert_eq!(sample.output.0, 0),
        Output::Interface(index) => {
            assert!(sample.output.is_single());
            assert_eq!(sample.output.value(), index.get());
        }
        Output::Dropped(code) => {
            assert!(sample.output.is_discarded());
            assert_eq!(sample.output.value(), u32::from(code));
        }
    }
    let [raw, switch] = &sample.flow_records[..] else { panic!("{:?}", sample.flow_records) };
    let FlowData::SampledHeader(raw) = &raw.flow_data else { panic!("{raw:?}") };
    assert_eq!((raw.frame_length, raw.stripped), (flow.frame_len + 4, 4));
    assert_eq!(raw.header, flow.header[..flow.header.len().min(header_bytes)]);
    let FlowData::ExtendedSwitch(switch) = &switch.flow_data else { panic!("{switch:?}") };
    assert_eq!(switch.src_vlan, u32::from(flow.vlans.0 & 0xfff));
    assert_eq!(switch.src_priority, u32::from(flow.vlans.0 >> 13));
    assert_eq!(switch.dst_vlan, u32::from(flow.vlans.1 & 0xfff));
    assert_eq!(switch.dst_priority, u32::from(flow.vlans.1 >> 13));
}

fn check_counters(counters: &Counters, sequence: u32, parsed: &SampleData) {
    let SampleData::CountersSample(sample) = parsed else { panic!("no counters: {parsed:?}") };
    assert_eq!((sample.sequence_number, sample.source_id.0), (sequence, counters.source));
    let records: Vec<_> = sample.counters.iter().map(|r| &r.counter_data).collect();
    let [CounterData::GenericInterface(generic), rest @ ..] = &records[..] else {
        panic!("{records:?}")
    };
    let (interface, all_ones) = (&counters.interface, u32::MAX);
    assert_eq!((generic.if_index, generic.if_type), (counters.source, 6));
    assert_eq!((generic.if_speed, generic.if_direction), (interface.speed_bps, 1));
    let status = u32::from(interface.admin_up) + 2 * u32::from(interface.oper_up);
    assert_eq!(generic.if_status, status);
    let rx = Traffic {
        octets: generic.if_in_octets,
        unicast: Some(generic.if_in_ucast_pkts),
        multicast: Some(generic.if_in_multicast_pkts),
        broadcast: Some(generic.if_in_broadcast_pkts),
        discards: Some(generic.if_in_discards),
        errors: Some(generic.if_in_errors),
    };
    assert_eq!(rx, told(interface.rx));
    let protocols = interface.rx_unknown_protocols.unwrap_or(all_ones);
    assert_eq!(generic.if_in_unknown_protos, protocols);
    let tx = Traffic {
        octets: generic.if_out_octets,
        unicast: Some(generic.if_out_ucast_pkts),
        multicast: Some(generic.if_out_multicast_pkts),
        broadcast: Some(generic.if_out_broadcast_pkts),
        discards: Some(generic.if_out_discards),
        errors: Some(generic.if_out_errors),
    };
    assert_eq!(tx, told(interface.tx));
    let [wire @ .., CounterData::OpenFlowPortName(name)] = rest else { panic!("{rest:?}") };
    assert_eq!(name.port_name, counters.name);
    match (wire, &counters.ethernet) {
        ([], None) => {}
        ([CounterData::EthernetInterface(theirs)], Some(ours)) => {
            assert_eq!(theirs.dot3_stats_fcs_errors, ours.fcs_errors.unwrap_or(all_ones));
            let long = ours.frames_too_long.unwrap_or(all_ones);
            assert_eq!(theirs.dot3_stats_frame_too_longs, long);
            assert_eq!(theirs.dot3_stats_symbol_errors, all_ones);
        }
        (wire, ours) => panic!("{ours:?} became {wire:?}"),
    }
}

/// What a collector sees: all ones where nothing is counted.
fn told(traffic: Traffic) -> Traffic {
    let all_ones = |count: Option<u32>| count.or(Some(u32::MAX));
    Traffic {
        octets: traffic.octets,
        unicast: all_ones(traffic.unicast),
        multicast: all_ones(traffic.multicast),
        broadcast: all_ones(traffic.broadcast),
        discards: all_ones(traffic.discards),
        errors: all_ones(traffic.errors),
    }
}
