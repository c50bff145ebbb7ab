//! The series, made of the engine's messages. Names begin with `weir_`; a counter's ends in `_total`.

use std::collections::BTreeMap;
use std::fmt;

use datapath_api::v1;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tonic::Status;

use crate::rpc::Service;

/// Rules with series of their own; `weir_rules` tells how many there are.
const RULES_MAX: usize = 10_000;

/// A series' name, its help text and where its value is.
type Reading<T> = (&'static str, &'static str, fn(&T) -> u64);
type Label = (&'static str, String);

const PORT: [Reading<v1::Port>; 5] = [
    ("port_rx_packets", "Packets received from the port", |p| p.rx_packets),
    ("port_rx_bytes", "Bytes received from the port", |p| p.rx_bytes),
    ("port_tx_packets", "Packets sent to the port", |p| p.tx_packets),
    ("port_tx_bytes", "Bytes sent to the port", |p| p.tx_bytes),
    (
        "port_drops",
        "Packets received from the port and dropped, in the kernel's programs too",
        |p| p.drops,
    ),
];

const TENANT: [Reading<v1::Port>; 5] = [
    ("tenant_rx_packets", "Packets received from the tenant's ports", |p| p.rx_packets),
    ("tenant_rx_bytes", "Bytes received from the tenant's ports", |p| p.rx_bytes),
    ("tenant_tx_packets", "Packets sent to the tenant's ports", |p| p.tx_packets),
    ("tenant_tx_bytes", "Bytes sent to the tenant's ports", |p| p.tx_bytes),
    ("tenant_drops", "Packets received from the tenant's ports and dropped", |p| p.drops),
];

const DROP: [Reading<v1::Drop>; 2] = [
    ("drops", "Packets dropped, by reason", |d| d.packets),
    (
        "drop_bytes",
        "Bytes dropped, by reason; the kernel does not count those of its queues",
        |d| d.bytes,
    ),
];

const RULE: [Reading<v1::RuleCounter>; 2] = [
    ("rule_packets", "Packets that a policy rule matched", |r| r.packets),
    ("rule_bytes", "Bytes that a policy rule matched", |r| r.bytes),
];

const WORKER: [Reading<v1::Worker>; 5] = [
    ("worker_loops", "Loops over all queues", |w| w.loops),
    ("worker_busy_loops", "Loops that handled a packet", |w| w.busy_loops),
    ("worker_sleeps", "Times that the worker went to sleep", |w| w.sleeps),
    ("worker_packets", "Packets received by the worker", |w| w.packets),
    ("worker_moved_packets", "Packets copied within their buffer before sending", |w| {
        w.moved_packets
    }),
];

const QUEUE: [Reading<v1::Queue>; 10] = [
    ("queue_rx_packets", "Frames received by an AF_XDP socket", |q| q.rx_packets),
    ("queue_tx_packets", "Frames given to an AF_XDP socket to send", |q| q.tx_packets),
    ("queue_wakeups", "Calls that made the kernel send", |q| q.wakeups),
    ("queue_wakeups_cut", "Calls that left frames in the transmit ring", |q| q.wakeups_cut),
    ("queue_rx_dropped", "Frames too long for a buffer (XDP_STATISTICS)", |q| q.rx_dropped),
    ("queue_rx_ring_full", "Frames that the worker was too late for", |q| q.rx_ring_full),
    ("queue_fill_ring_empty", "Frames that found no buffer", |q| q.fill_ring_empty),
    ("queue_rx_invalid", "Bad buffers given to the kernel: a bug", |q| q.rx_invalid),
    ("queue_tx_invalid", "Bad descriptors given to the kernel: a bug", |q| q.tx_invalid),
    ("queue_tx_ring_empty", "Wake-ups that found nothing to send", |q| q.tx_ring_empty),
];

const RING: [Reading<v1::Queue>; 3] = [
    ("queue_ring_frames", "Frames that each ring of a queue holds at most", |q| {
        q.ring_frames.into()
    }),
    ("queue_receiving_frames", "Frames in the fill and the receive ring", |q| {
        q.receiving_frames.into()
    }),
    ("queue_sending_frames", "Frames in the transmit and the completion ring", |q| {
        q.sending_frames.into()
    }),
];

/// All that is read for one answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Readings {
    instance: String,
    counters: v1::CountersReply,
    drops: Vec<v1::Drop>,
    workers: Vec<v1::Worker>,
    offload: v1::OffloadReply,
    samples_lost: u64,
}

impl Readings {
    /// Of the engine, now. Waits for the worker.
    pub(super) fn of(service: &Service) -> Result<Self, Status> {
        Ok(Self {
            instance: service.events.instance().to_owned(),
            counters: service.counted()?,
            drops: service.dropped()?.drops,
            workers: service.working()?.workers,
            offload: service.offloading(),
            samples_lost: service.engine.samples_lost(),
        })
    }

    pub(super) fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("weir");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn ports(&self, to: &mut Writer<'_>) -> fmt::Result {
        let ports = &self.counters.ports;
        for reading in PORT {
            to.counters(reading, ports, |port| {
                let kind = match port.kind() {
                    v1::PortKind::Uplink => "uplink",
                    v1::PortKind::Container | v1::PortKind::Unspecified => "container",
                };
                [
                    ("port", port.id.to_string()),
                    ("device", port.name.clone()),
                    ("kind", kind.to_owned()),
                    ("vrf", port.vrf.to_string()),
                ]
            })?;
        }
        for (name, help, of) in TENANT {
            let mut sums = BTreeMap::<u32, u64>::new();
            for port in ports.iter().filter(|port| port.vrf != 0) {
                *sums.entry(port.vrf).or_default() += of(port);
            }
            let rows = sums.into_iter().map(|(vrf, sum)| ([("vrf", vrf.to_string())], sum));
            to.rows(name, help, MetricType::Counter, rows)?;
        }
        Ok(())
    }

    fn rules(&self, to: &mut Writer<'_>) -> fmt::Result {
        let rules = &self.counters.rules;
        to.gauge("rules", "Policy rules", rules.len() as u64)?;
        let listed = &rules[..rules.len().min(RULES_MAX)];
        for reading in RULE {
            to.counters(reading, listed, |rule| [("rule", rule.cookie.to_string())])?;
        }
        Ok(())
    }

    fn lookups(&self, to: &mut Writer<'_>) -> fmt::Result {
        let counters = &self.counters;
        let tiers = [
            ("exact", counters.exact_hits),
            ("masked", counters.masked_hits),
            ("pipeline", counters.pipeline),
        ];
        let rows = tiers.into_iter().map(|(tier, count)| ([("tier", tier.to_owned())], count));
        to.rows("lookups", "Packets decided, by the tier that did", MetricType::Counter, rows)?;
        let caches = [("exact", counters.flow_entries), ("masked", counters.masked_entries)];
        let rows = caches.into_iter().map(|(cache, count)| ([("cache", cache.to_owned())], count));
        to.rows("cache_entries", "Entries of a cache", MetricType::Gauge, rows)
    }

    fn connections(&self, to: &mut Writer<'_>) -> fmt::Result {
        let Some(connections) = &self.counters.connections else { return Ok(()) };
        to.gauge("connections", "Connections", connections.open)?;
        let half_open = connections.half_open;
        to.gauge("connections_half_open", "Connections that nobody answered yet", half_open)?;
        for (name, help, count) in [
            ("connections_opened", "Connections opened", connections.opened),
            ("connections_expired", "Connections that ended by their time", connections.expired),
            ("connections_evicted", "Half-open connections that made room", connections.evicted),
        ] {
            to.counter(name, help, count)?;
        }
        let refused = connections.refused.iter();
        let rows = refused.map(|r| ([("cause", r.cause.clone())], r.count));
        to.rows("connections_refused", "Connections refused, by cause", MetricType::Counter, rows)
    }

    fn offload(&self, to: &mut Writer<'_>) -> fmt::Result {
        let offload = &self.offload;
        to.gauge("offload_on", "Whether flows are offloaded", offload.on.into())?;
        to.gauge("offload_flows", "Flows that the kernel forwards", offload.flows)?;
        to.gauge("offload_flows_max", "Most of them", offload.flows_max)?;
        for (name, help, count) in [
            ("offload_packets", "Packets that the kernel forwarded", offload.packets),
            ("offload_bytes", "Bytes that the kernel forwarded", offload.bytes),
            ("offload_flows_added", "Flows offloaded", offload.offloaded),
            ("offload_flows_confirmed", "Flows decided the same again", offload.confirmed),
        ] {
            to.counter(name, help, count)?;
        }
        let ends = [("idle", offload.idle), ("ended", offload.ended), ("changed", offload.changed)];
        let rows = ends.map(|(cause, count)| ([("cause", cause.to_owned())], count));
        let help = "Flows taken back, by cause";
        to.rows("offload_flows_removed", help, MetricType::Counter, rows)?;
        let rows = offload.refused.iter().map(|r| ([("reason", r.reason.clone())], r.count));
        to.rows("offload_refused", "Offers refused, by reason", MetricType::Counter, rows)
    }

    fn work(&self, to: &mut Writer<'_>) -> fmt::Result {
        for reading in WORKER {
            to.counters(reading, &self.workers, |worker| [of_worker(worker)])?;
        }
        let stages = self.workers.iter().flat_map(|worker| {
            let row =
                |s: &v1::worker::Stage| ([of_worker(worker), ("stage", s.name.clone())], s.ticks);
            worker.stages.iter().map(row)
        });
        let help = "Cycles of the worker, by what it did";
        to.rows("worker_cycles", help, MetricType::Counter, stages)?;
        let frames = self.workers.iter().map(|w| ([of_worker(w)], w.frames.into()));
        to.rows("worker_frames", "Packet buffers", MetricType::Gauge, frames)?;
        let free = self.workers.iter().map(|w| ([of_worker(w)], w.free_frames.into()));
        to.rows("worker_free_frames", "Packet buffers in no ring", MetricType::Gauge, free)?;
        to.bursts(&self.workers)
    }

    fn queues(&self, to: &mut Writer<'_>) -> fmt::Result {
        let all = || self.workers.iter().flat_map(|w| w.queues.iter().map(move |q| (w, q)));
        let kinds = [(&QUEUE[..], MetricType::Counter), (&RING[..], MetricType::Gauge)];
        for (readings, kind) in kinds {
            for (name, help, of) in readings {
                let rows = all().map(|(worker, queue)| (of_queue(worker, queue), of(queue)));
                to.rows(name, help, kind, rows)?;
            }
        }
        Ok(())
    }
}

fn of_worker(worker: &v1::Worker) -> Label {
    ("worker", worker.id.to_string())
}

fn of_queue(worker: &v1::Worker, queue: &v1::Queue) -> [Label; 3] {
    [of_worker(worker), ("queue", queue.id.to_string()), ("device", queue.device.clone())]
}

impl Collector for Readings {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(encoder);
        let who = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("instance", self.instance.clone()),
        ];
        let help = "The engine's process: another instance began with empty tables";
        to.rows("engine", help, MetricType::Gauge, [(who, 1)])?;
        self.ports(&mut to)?;
        for reading in DROP {
            to.counters(reading, &self.drops, |drop| [("reason", drop.reason.clone())])?;
        }
        self.rules(&mut to)?;
        self.lookups(&mut to)?;
        self.connections(&mut to)?;
        self.offload(&mut to)?;
        self.work(&mut to)?;
        self.queues(&mut to)?;
        to.counter("sflow_samples_lost", "Samples that found no room", self.samples_lost)
    }
}

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// A series with a row for each of `all`.
    fn counters<T, L: EncodeLabelSet>(
        &mut self,
        (name, help, of): Reading<T>,
        all: &[T],
        labels: impl Fn(&T) -> L,
    ) -> fmt::Result {
        let rows = all.iter().map(|item| (labels(item), of(item)));
        self.rows(name, help, MetricType::Counter, rows)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut series = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        series.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// A series, which is a gauge or a counter.
    fn rows<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut series = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            let mut row = series.encode_family(&labels)?;
            if matches!(kind, MetricType::Counter) {
                row.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            } else {
                row.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "below 2^53 packets, a float is exact")]
    fn bursts(&mut self, workers: &[v1::Worker]) -> fmt::Result {
        let help = "Packets received from a queue at once";
        let mut series =
            self.0.encode_descriptor("worker_burst_packets", help, None, MetricType::Histogram)?;
        for worker in workers {
            let sizes = worker.bursts.iter().map(|b| (f64::from(b.packets_max), b.count));
            // What is above the last bound: no burst, but the format wants the bucket.
            let sizes = sizes.chain([(f64::INFINITY, 0)]).collect::<Vec<_>>();
            let count = sizes.iter().map(|(_, count)| count).sum();
            let labels = [of_worker(worker)];
            let sum = worker.packets as f64;
            series
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &sizes, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings() -> Readings {
        let port = |id, vrf, rx_packets| v1::Port {
            id,
            name: format!("wr{id}"),
            kind: v1::PortKind::Container.into(),
            vrf,
            rx_packets,
            ..v1::Port::default()
        };
        let queue = v1::Queue {
            device: "wr-t1.0".into(),
            ring_frames: 2048,
            receiving_frames: 2000,
            rx_ring_full: 3,
            ..v1::Queue::default()
        };
        let burst = |packets_max, count| v1::worker::Burst { packets_max, count };
        let stage = v1::worker::Stage { name: "forward".into(), ticks: 900 };
        let worker = v1::Worker {
            packets: 11,
            bursts: vec![burst(1, 5), burst(2, 3)],
            stages: vec![stage],
            queues: vec![queue],
            ..v1::Worker::default()
        };
        let counters = v1::CountersReply {
            ports: vec![port(1, 7, 10), port(2, 7, 5), port(3, 0, 1)],
            rules: vec![v1::RuleCounter { cookie: 99, packets: 4, bytes: 400 }],
            exact_hits: 8,
            connections: Some(v1::ConnectionCounters { open: 6, ..Default::default() }),
            ..v1::CountersReply::default()
        };
        let drops =
            vec![v1::Drop { reason: "policy-deny".into(), packets: 2, ..v1::Drop::default() }];
        let refused = v1::offload_reply::Refusal { reason: "full".into(), count: 12 };
        let offload = v1::OffloadReply {
            on: true,
            flows: 13,
            idle: 14,
            refused: vec![refused],
            ..v1::OffloadReply::default()
        };
        let workers = vec![worker];
        Readings { instance: "a1".into(), counters, drops, workers, offload, samples_lost: 0 }
    }

    #[test]
    fn every_kind_of_series_is_written_with_its_labels() {
        let text = readings().text().unwrap();
        for line in [
            r#"weir_port_rx_packets_total{port="1",device="wr1",kind="container",vrf="7"} 10"#,
            r#"weir_tenant_rx_packets_total{vrf="7"} 15"#,
            r#"weir_drops_total{reason="policy-deny"} 2"#,
            r#"weir_rule_packets_total{rule="99"} 4"#,
            r#"weir_lookups_total{tier="exact"} 8"#,
            "weir_connections 6",
            "weir_offload_on 1",
            "weir_offload_flows 13",
            r#"weir_offload_flows_removed_total{cause="idle"} 14"#,
            r#"weir_offload_refused_total{reason="full"} 12"#,
            "weir_rules 1",
            r#"weir_worker_cycles_total{worker="0",stage="forward"} 900"#,
            r#"weir_worker_burst_packets_bucket{le="2.0",worker="0"} 8"#,
            r#"weir_worker_burst_packets_bucket{le="+Inf",worker="0"} 8"#,
            r#"weir_worker_burst_packets_sum{worker="0"} 11.0"#,
            r#"weir_queue_receiving_frames{worker="0",queue="0",device="wr-t1.0"} 2000"#,
            r#"weir_queue_rx_ring_full_total{worker="0",queue="0",device="wr-t1.0"} 3"#,
            "weir_sflow_samples_lost_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains(r#"tenant_rx_packets_total{vrf="0"}"#));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn rules_beyond_the_bound_have_no_series_and_are_counted() {
        let mut many = readings();
        let rule = |cookie| v1::RuleCounter { cookie, ..v1::RuleCounter::default() };
        many.counters.rules = (0..RULES_MAX as u64 + 5).map(rule).collect();
        let text = many.text().unwrap();
        assert!(text.contains("weir_rules 10005\n"));
        assert_eq!(text.matches("weir_rule_packets_total{").count(), RULES_MAX);
    }
}
