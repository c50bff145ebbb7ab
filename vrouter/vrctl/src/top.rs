//! What packets cost a worker between two readings, by stage: as `pmd-perf-show` does for OVS.

use datapath_api::v1;
use serde::Serialize;

use crate::table::{self, Side};

/// A worker between two readings.
#[derive(Debug, Serialize)]
pub(crate) struct Top {
    worker: u32,
    cpu: Option<u32>,
    seconds: f64,
    ticks_per_second: f64,
    /// Share of the time that was not idle, 0 to 1.
    busy: f64,
    packets_per_second: f64,
    packets_per_burst: f64,
    /// Idle ones left out.
    ticks_per_packet: f64,
    sleeps_per_second: f64,
    stages: Vec<StageTop>,
    queues: Vec<QueueTop>,
}

#[derive(Debug, Serialize)]
struct StageTop {
    stage: String,
    ticks_per_packet: f64,
    /// Of all time, 0 to 1.
    share: f64,
}

#[derive(Debug, Serialize)]
struct QueueTop {
    queue: u32,
    device: String,
    rx_packets_per_second: f64,
    tx_packets_per_second: f64,
    tx_packets_per_wakeup: f64,
    receiving_frames: u32,
    sending_frames: u32,
    /// Frames that the kernel had for the worker and dropped.
    lost_per_second: f64,
}

/// What the workers of both readings did between them.
pub(crate) fn tops(before: &[v1::Worker], now: &[v1::Worker]) -> Vec<Top> {
    let of = |worker: &v1::Worker| {
        let was = before.iter().find(|b| b.id == worker.id && b.loops <= worker.loops)?;
        Some(top(was, worker))
    };
    now.iter().filter_map(of).collect()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn top(was: &v1::Worker, now: &v1::Worker) -> Top {
    let seconds = (now.elapsed_ns - was.elapsed_ns.min(now.elapsed_ns)) as f64 / 1e9;
    let packets = since(was.packets, now.packets);
    let bursts = since(bursts(was), bursts(now));
    let ticks = since(was.elapsed_ticks, now.elapsed_ticks);
    let mut stages = Vec::new();
    let mut busy = 0.0;
    for stage in &now.stages {
        let before = was.stages.iter().find(|s| s.name == stage.name).map_or(0, |s| s.ticks);
        let spent = since(before, stage.ticks);
        if stage.name != "idle" {
            busy += spent;
        }
        stages.push(StageTop {
            stage: stage.name.clone(),
            ticks_per_packet: ratio(spent, packets),
            share: ratio(spent, ticks),
        });
    }
    let queue = |queue: &v1::Queue| {
        let was = was.queues.iter().find(|q| q.id == queue.id && q.device == queue.device);
        queue_top(was, queue, seconds)
    };
    Top {
        worker: now.id,
        cpu: now.cpu,
        seconds,
        ticks_per_second: ratio(ticks, seconds),
        busy: ratio(busy, ticks),
        packets_per_second: ratio(packets, seconds),
        packets_per_burst: ratio(packets, bursts),
        ticks_per_packet: ratio(busy, packets),
        sleeps_per_second: ratio(since(was.sleeps, now.sleeps), seconds),
        stages,
        queues: now.queues.iter().map(queue).collect(),
    }
}

fn queue_top(was: Option<&v1::Queue>, now: &v1::Queue, seconds: f64) -> QueueTop {
    let moved = |of: fn(&v1::Queue) -> u64| since(was.map_or(0, of), of(now));
    let sent = moved(|q| q.tx_packets);
    QueueTop {
        queue: now.id,
        device: now.device.clone(),
        rx_packets_per_second: ratio(moved(|q| q.rx_packets), seconds),
        tx_packets_per_second: ratio(sent, seconds),
        tx_packets_per_wakeup: ratio(sent, moved(|q| q.wakeups)),
        receiving_frames: now.receiving_frames,
        sending_frames: now.sending_frames,
        lost_per_second: ratio(
            moved(|q| q.rx_dropped + q.rx_ring_full + q.fill_ring_empty),
            seconds,
        ),
    }
}

fn bursts(worker: &v1::Worker) -> u64 {
    worker.bursts.iter().map(|b| b.count).sum()
}

/// A counter of a socket that was attached anew begins at zero again.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
const fn since(before: u64, now: u64) -> f64 {
    now.saturating_sub(before) as f64
}

fn ratio(part: f64, of: f64) -> f64 {
    if of > 0.0 { part / of } else { 0.0 }
}

/// A paragraph for each worker.
pub(crate) fn top_lines(tops: &[Top]) -> String {
    tops.iter().map(|top| lines_of(top) + "\n").collect()
}

fn lines_of(top: &Top) -> String {
    let cpu = top.cpu.map_or("any".to_owned(), |cpu| cpu.to_string());
    let heading = format!(
        "worker {}: cpu {cpu}, {:.1} s at {:.2} GHz, {:.1} % busy\n\
         {:.0} packets/s, {:.1} in a burst, {:.0} cycles each; {:.0} sleeps/s\n",
        top.worker,
        top.seconds,
        top.ticks_per_second / 1e9,
        top.busy * 100.0,
        top.packets_per_second,
        top.packets_per_burst,
        top.ticks_per_packet,
        top.sleeps_per_second,
    );
    let stages = [("STAGE", Side::Left), ("CYCLES/PACKET", Side::Right), ("TIME", Side::Right)];
    let stage = |s: &StageTop| {
        // What no packet needed has no share in one.
        let each =
            if s.stage == "idle" { "-".into() } else { format!("{:.0}", s.ticks_per_packet) };
        vec![s.stage.clone(), each, format!("{:.1} %", s.share * 100.0)]
    };
    let queues = [
        ("QUEUE", Side::Right),
        ("DEVICE", Side::Left),
        ("RX/S", Side::Right),
        ("TX/S", Side::Right),
        ("TX/WAKEUP", Side::Right),
        ("RECEIVING", Side::Right),
        ("SENDING", Side::Right),
        ("LOST/S", Side::Right),
    ];
    let queue = |q: &QueueTop| {
        vec![
            q.queue.to_string(),
            q.device.clone(),
            format!("{:.0}", q.rx_packets_per_second),
            format!("{:.0}", q.tx_packets_per_second),
            format!("{:.1}", q.tx_packets_per_wakeup),
            q.receiving_frames.to_string(),
            q.sending_frames.to_string(),
            format!("{:.0}", q.lost_per_second),
        ]
    };
    let stages = table::render(&stages, &top.stages.iter().map(stage).collect::<Vec<_>>());
    let queues = table::render(&queues, &top.queues.iter().map(queue).collect::<Vec<_>>());
    heading + &stages + &queues
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(seconds: u64, packets: u64) -> v1::Worker {
        let stage = |name: &str, ticks| v1::worker::Stage { name: name.into(), ticks };
        let queue = v1::Queue {
            device: "wr-t1.0".into(),
            rx_packets: packets,
            tx_packets: packets,
            wakeups: packets / 10,
            receiving_frames: 2000,
            rx_ring_full: packets / 100,
            ..v1::Queue::default()
        };
        v1::Worker {
            elapsed_ns: seconds * 1_000_000_000,
            elapsed_ticks: seconds * 2_000_000,
            loops: packets,
            packets,
            sleeps: seconds * 3,
            bursts: vec![v1::worker::Burst { packets_max: 8, count: packets / 5 }],
            stages: vec![stage("forward", packets * 400), stage("idle", seconds * 1_000_000)],
            queues: vec![queue],
            ..v1::Worker::default()
        }
    }

    #[test]
    fn the_cost_is_what_was_added_between_two_readings() {
        let tops = tops(&[reading(10, 1_000)], &[reading(12, 6_000)]);
        let top = &tops[0];
        let figures = [top.seconds, top.packets_per_second, top.packets_per_burst, top.busy];
        assert_eq!(figures.map(|f| f.to_string()), ["2", "2500", "5", "0.5"]);
        let costs = [top.ticks_per_packet, top.ticks_per_second, top.stages[0].share];
        assert_eq!(costs.map(|f| f.to_string()), ["400", "2000000", "0.5"]);
        let queue = &top.queues[0];
        assert_eq!((queue.tx_packets_per_wakeup, queue.lost_per_second), (10.0, 25.0));
        assert_eq!(
            top_lines(&tops),
            "worker 0: cpu any, 2.0 s at 0.00 GHz, 50.0 % busy\n\
             2500 packets/s, 5.0 in a burst, 400 cycles each; 3 sleeps/s\n\
             STAGE    CYCLES/PACKET    TIME\n\
             forward            400  50.0 %\n\
             idle                 -  50.0 %\n\
             QUEUE  DEVICE   RX/S  TX/S  TX/WAKEUP  RECEIVING  SENDING  LOST/S\n    \
             0  wr-t1.0  2500  2500       10.0       2000        0      25\n\n"
        );
    }

    #[test]
    fn an_engine_that_was_started_again_or_did_nothing_costs_nothing() {
        assert!(tops(&[reading(10, 1_000)], &[reading(1, 10)]).is_empty());
        let idle = tops(&[reading(1, 100)], &[reading(1, 100)]);
        assert_eq!((idle[0].ticks_per_packet, idle[0].busy), (0.0, 0.0));
    }
}
