//! Workers and their queues, as they are.

use datapath_api::v1;
use serde::Serialize;

use crate::table::{self, Side};

/// A worker since it started.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerView {
    worker: u32,
    cpu: Option<u32>,
    seconds: f64,
    loops: u64,
    busy_loops: u64,
    sleeps: u64,
    packets: u64,
    frames: u32,
    free_frames: u32,
    moved_packets: u64,
    bursts: Vec<BurstView>,
    stages: Vec<StageView>,
    queues: Vec<QueueView>,
}

#[derive(Debug, Serialize)]
struct BurstView {
    packets_max: u32,
    count: u64,
}

#[derive(Debug, Serialize)]
struct StageView {
    stage: String,
    ticks: u64,
}

#[derive(Debug, Serialize)]
struct QueueView {
    queue: u32,
    device: String,
    ring_frames: u32,
    receiving_frames: u32,
    sending_frames: u32,
    rx_packets: u64,
    tx_packets: u64,
    wakeups: u64,
    wakeups_cut: u64,
    rx_dropped: u64,
    rx_ring_full: u64,
    fill_ring_empty: u64,
    rx_invalid: u64,
    tx_invalid: u64,
    tx_ring_empty: u64,
}

impl From<v1::Worker> for WorkerView {
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    fn from(worker: v1::Worker) -> Self {
        let burst = |b: v1::worker::Burst| BurstView { packets_max: b.packets_max, count: b.count };
        let stage = |s: v1::worker::Stage| StageView { stage: s.name, ticks: s.ticks };
        Self {
            worker: worker.id,
            cpu: worker.cpu,
            seconds: worker.elapsed_ns as f64 / 1e9,
            loops: worker.loops,
            busy_loops: worker.busy_loops,
            sleeps: worker.sleeps,
            packets: worker.packets,
            frames: worker.frames,
            free_frames: worker.free_frames,
            moved_packets: worker.moved_packets,
            bursts: worker.bursts.into_iter().map(burst).collect(),
            stages: worker.stages.into_iter().map(stage).collect(),
            queues: worker.queues.into_iter().map(QueueView::from).collect(),
        }
    }
}

impl From<v1::Queue> for QueueView {
    fn from(queue: v1::Queue) -> Self {
        Self {
            queue: queue.id,
            device: queue.device,
            ring_frames: queue.ring_frames,
            receiving_frames: queue.receiving_frames,
            sending_frames: queue.sending_frames,
            rx_packets: queue.rx_packets,
            tx_packets: queue.tx_packets,
            wakeups: queue.wakeups,
            wakeups_cut: queue.wakeups_cut,
            rx_dropped: queue.rx_dropped,
            rx_ring_full: queue.rx_ring_full,
            fill_ring_empty: queue.fill_ring_empty,
            rx_invalid: queue.rx_invalid,
            tx_invalid: queue.tx_invalid,
            tx_ring_empty: queue.tx_ring_empty,
        }
    }
}

/// A paragraph for each worker, with its queues as a table.
pub(crate) fn worker_lines(workers: &[WorkerView]) -> String {
    workers.iter().map(lines_of).collect::<Vec<_>>().join("\n")
}

fn lines_of(worker: &WorkerView) -> String {
    const COLUMNS: &[(&str, Side)] = &[
        ("QUEUE", Side::Right),
        ("DEVICE", Side::Left),
        ("RECEIVING", Side::Right),
        ("SENDING", Side::Right),
        ("RX-PACKETS", Side::Right),
        ("TX-PACKETS", Side::Right),
        ("WAKEUPS", Side::Right),
        ("CUT", Side::Right),
        ("RX-DROPPED", Side::Right),
        ("RING-FULL", Side::Right),
        ("FILL-EMPTY", Side::Right),
        ("INVALID", Side::Right),
    ];
    let cpu = worker.cpu.map_or("any".to_owned(), |cpu| cpu.to_string());
    let bursts = worker.bursts.iter().map(|b| format!("{}:{}", b.packets_max, b.count));
    let heading = format!(
        "worker {}: cpu {cpu}, up {:.1} s, {} packets, {} of {} loops busy, {} sleeps\n\
         buffers: {} of {} free, {} packets moved\n\
         bursts up to N packets: {}\n",
        worker.worker,
        worker.seconds,
        worker.packets,
        worker.busy_loops,
        worker.loops,
        worker.sleeps,
        worker.free_frames,
        worker.frames,
        worker.moved_packets,
        bursts.collect::<Vec<_>>().join(" "),
    );
    let row = |q: &QueueView| {
        vec![
            q.queue.to_string(),
            q.device.clone(),
            format!("{}/{}", q.receiving_frames, q.ring_frames),
            format!("{}/{}", q.sending_frames, q.ring_frames),
            q.rx_packets.to_string(),
            q.tx_packets.to_string(),
            q.wakeups.to_string(),
            q.wakeups_cut.to_string(),
            q.rx_dropped.to_string(),
            q.rx_ring_full.to_string(),
            q.fill_ring_empty.to_string(),
            (q.rx_invalid + q.tx_invalid).to_string(),
        ]
    };
    heading + &table::render(COLUMNS, &worker.queues.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> WorkerView {
        let queue = v1::Queue {
            device: "wr-t1.0".into(),
            ring_frames: 2048,
            receiving_frames: 2016,
            rx_packets: 7,
            tx_packets: 6,
            wakeups: 5,
            rx_ring_full: 4,
            tx_invalid: 1,
            ..v1::Queue::default()
        };
        let worker = v1::Worker {
            cpu: Some(1),
            elapsed_ns: 2_500_000_000,
            loops: 10,
            busy_loops: 5,
            sleeps: 3,
            packets: 7,
            frames: 8192,
            free_frames: 6000,
            bursts: vec![v1::worker::Burst { packets_max: 1, count: 5 }],
            stages: vec![v1::worker::Stage { name: "read".into(), ticks: 9 }],
            queues: vec![queue],
            ..v1::Worker::default()
        };
        worker.into()
    }

    #[test]
    fn a_worker_is_shown_with_its_queues() {
        assert_eq!(
            worker_lines(&[worker()]),
            "worker 0: cpu 1, up 2.5 s, 7 packets, 5 of 10 loops busy, 3 sleeps\n\
             buffers: 6000 of 8192 free, 0 packets moved\n\
             bursts up to N packets: 1:5\n\
             QUEUE  DEVICE   RECEIVING  SENDING  RX-PACKETS  TX-PACKETS  WAKEUPS  CUT  RX-DROPPED  \
             RING-FULL  FILL-EMPTY  INVALID\n    \
             0  wr-t1.0  2016/2048   0/2048           7           6        5    0           0          \
             4           0        1\n"
        );
    }

    #[test]
    fn a_worker_as_json_has_its_stages_and_queues() {
        let json = serde_json::to_value(worker()).unwrap();
        assert_eq!(json["worker"], 0);
        assert_eq!(json["stages"][0]["stage"], "read");
        assert_eq!(json["queues"][0]["device"], "wr-t1.0");
        assert_eq!(json["queues"][0]["receiving_frames"], 2016);
    }
}
